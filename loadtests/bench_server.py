r"""What EM-INF costs a whole server, in tokens per second and latency.

    python -m em_inf.loadtests.bench_server --model stand-in --seconds 80 --tokens 16 \
        --out loadtests/results/server-cpu-stand-in.json
    python -m em_inf.loadtests.bench_server --model demo --seconds 50 --tokens 256 \
        --out loadtests/results/server-cpu-demo.json

Two servers stay loaded on this machine with the same flags: ours, and stock vLLM without
anything of ours. In each round every contender gets the same prompts, lengths and seeds,
one contender after another in shuffled order, in a closed loop at temperature 1.0; "off
again" is "off" a second time, so that its ratio shows the noise. Ratios are taken within
a round; printed are their medians with 95 % intervals (bootstrap over rounds). Output
tokens are counted from `usage`. The server's processor time for each token is there for
machines that others use at the same time: it feels them less than the clock does. So does
the share of a run's time that the worker itself counted as spent in EM-INF, recording
included.

vLLM pins both workers to the same core, and a worker spins for a second after each call.
So while one server works, the other's processes are stopped (SIGSTOP), and each run is
preceded by a short request that is not counted. What the servers take of a core when idle
and not stopped is kept with the results.

Refuses to report where a request failed, a length is not as asked, a report is missing or
says that nothing was done, an error was counted, or our server's answers differ from
stock vLLM's with the same seeds, one request at a time, while nobody asks for EM-INF.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from em_inf.loadtests.client import RequestFailedError
from em_inf.loadtests.contenders import (
    CONTENDERS,
    MODEL_NAME,
    NO_REPORT,
    OFF,
    OFF_AGAIN,
    ON,
    STOCK_VLLM,
    THROUGHPUT,
    TRACE,
    Asked,
    Bench,
    CheckFailedError,
)
from em_inf.loadtests.environment import where_it_ran
from em_inf.loadtests.ratios import Ratio, paired_ratio, spread
from em_inf.loadtests.serving import (
    EM_INF,
    ERRORS,
    FLAGS,
    STOCK,
    ServerFailedError,
    Serving,
    idle_cpu_shares,
    leave_no_server_behind,
    serving,
)
from em_inf.server.cli import DEMO_MODEL

BARS = (
    ("all on over all off", ON, OFF, 0.95, 0.98),
    ("nobody asks, over stock vLLM", OFF, STOCK_VLLM, 0.99, 1.0),
    ("report summary over none", ON, NO_REPORT, 0.99, 1.0),
    ("report trace over none", TRACE, NO_REPORT, 0.99, 1.0),
    ("noise: off again over off", OFF_AGAIN, OFF, None, None),
)
"""What is asked of output tokens per second: whose, over whose, at least, aim."""

FEWEST_ROUNDS = 5
IDLE_SECONDS = 20.0


def check_same_words(bench: Bench, tokens: int) -> None:
    """With one request at a time and equal seeds, contenders agree where they must.

    Raises:
        CheckFailedError: off differs from stock vLLM, one report from another, or on
            nowhere from off.
    """
    asked = Asked(concurrency=1, requests=4, tokens=tokens)
    words = {
        name: [answer.text for answer in bench.run(name, asked, 0).answers]
        for name in CONTENDERS
    }
    for name, other in (
        (OFF, STOCK_VLLM),
        (OFF_AGAIN, OFF),
        (NO_REPORT, ON),
        (TRACE, ON),
    ):
        if words[name] != words[other]:
            raise CheckFailedError(f"{name} and {other} answer one seed differently")
    if words[ON] == words[OFF]:
        raise CheckFailedError(f"{ON} says the same as {OFF}; more --tokens would tell")


def check_errors(ours: Serving) -> None:
    """Our server, set going if it stands still, counted no error of its own.

    Raises:
        CheckFailedError: it did.
    """
    ours.go_on()
    errors = ours.counted(*ERRORS)
    if any(errors.values()):
        raise CheckFailedError(f"the server counted errors: {errors}")


def measure(bench: Bench, asked: Asked, rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds of one concurrency.

    Args:
        bench: the servers.
        asked: what each run asks for.
        rounds: at most so many.
        seconds: no round begins after so many, once there are `FEWEST_ROUNDS`.

    Returns:
        Figures and ratios of every contender, as JSON.
    """
    for name in CONTENDERS:
        bench.run(name, asked, 0)  # Warm.
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    shares: dict[str, list[float]] = {n: [] for n, field in CONTENDERS.items() if field}
    entropies: list[float] = []
    names = list(CONTENDERS)
    order = random.Random(asked.concurrency)  # noqa: S311  Of contenders, no secret.
    began, used = time.perf_counter(), time.process_time()
    for i in range(rounds):
        order.shuffle(names)
        for name in names:
            run = bench.run(name, asked, 1000 + i * asked.requests)
            runs[name].append(run.figures())
            if name in shares:
                shares[name].append(run.em_inf_seconds / run.seconds)
            if name == TRACE:
                entropies += [
                    nats
                    for answer in run.answers
                    for choice in (answer.em_inf or {})["choices"]
                    for nats in choice["trace"]["entropy_before"]
                ]
        if time.perf_counter() - began > seconds and i + 1 >= min(FEWEST_ROUNDS, rounds):
            break
    wall = time.perf_counter() - began
    ratios = {
        (name, over): all_ratios(runs[name], runs[over])
        for name, over in [(n, OFF) for n in CONTENDERS if n != OFF]
        + [(name, over) for _, name, over, _, _ in BARS]
    }
    print_case(asked, runs, ratios)
    for name, found in shares.items():
        print(f"  share of time in EM-INF, {name:22}{statistics.median(found):.4f}")
    return {
        "concurrency": asked.concurrency,
        "requests": asked.requests,
        "rounds": len(runs[OFF]),
        "client_cpu_share": round((time.process_time() - used) / wall, 3),
        "share_of_time_in_em_inf": {
            name: spread(found) for name, found in shares.items()
        },
        "entropy_before_nats": {
            **{
                f"{q:.0%}": round(float(np.quantile(entropies, q)), 4)
                for q in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
            },
            "share_above_0.3": round(float(np.mean(np.asarray(entropies) > 0.3)), 4),
        },
        "contenders": {
            name: {m: spread([r[m] for r in found]) for m in found[0]}
            for name, found in runs.items()
        },
        "ratios": {
            f"{name} / {over}": {m: ratio.as_json() for m, ratio in found.items()}
            for (name, over), found in ratios.items()
        },
    }


def all_ratios(
    runs: list[dict[str, float]], base: list[dict[str, float]]
) -> dict[str, Ratio]:
    """Ratio of every metric."""
    return {
        metric: paired_ratio([run[metric] for run in runs], [run[metric] for run in base])
        for metric in base[0]
    }


def print_case(
    asked: Asked,
    runs: dict[str, list[dict[str, float]]],
    ratios: dict[tuple[str, str], dict[str, Ratio]],
) -> None:
    """A table for one concurrency, and where it stands to each bar."""
    print(
        f"\n{asked.concurrency} at once, {asked.requests} requests of {asked.tokens} "
        f"tokens, {len(runs[OFF])} rounds; medians, and ratios to {OFF} [95 % interval]"
    )
    for name, found in runs.items():
        for metric in found[0]:
            median = statistics.median(run[metric] for run in found)
            ratio = "" if name == OFF else str(ratios[name, OFF][metric])
            print(f"  {name:22}{metric:26}{median:12.4f}  {ratio}")
    for what, name, over, least, aim in BARS:
        found_ratio = ratios[name, over][THROUGHPUT]
        print(
            f"  {what:32}{found_ratio!s:24}{verdict(found_ratio, least, aim)}", flush=True
        )


def verdict(ratio: Ratio, least: float | None, aim: float | None) -> str:
    """A measured ratio beside what is asked of it."""
    if least is None or aim is None:
        return ""
    met = "met" if ratio.median >= least else "MISSED"
    reached = "reached" if ratio.median >= aim else "not reached"
    return f"at least {least}: {met}; aim {aim}: {reached}"


@contextlib.contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """The folder of the model asked for; a stand-in lives as long as this does."""
    if model == "demo":
        yield DEMO_MODEL
    elif model == "stand-in":
        from em_inf.loadtests.stand_in import make_stand_in

        with tempfile.TemporaryDirectory() as folder:
            make_stand_in(Path(folder))
            yield Path(folder)
    elif (Path(model) / "config.json").exists():
        yield Path(model)
    else:
        sys.exit(f"--model is {model}, allowed are demo, stand-in and a model's folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start both servers, check, measure, check again.

    Raises:
        CheckFailedError: there is nothing to report.
        RequestFailedError: a request failed.
        ServerFailedError: a server did not start.
    """
    about = where_it_ran(
        "em_inf.loadtests.bench_server",
        model=args.model,
        flags=list(FLAGS),
        tokens=args.tokens,
    )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model_folder(args.model))
        ours = stack.enter_context(serving(EM_INF, folder, MODEL_NAME))
        stock = stack.enter_context(serving(STOCK, folder, MODEL_NAME))
        if (ours.answers("/v1/em_inf"), stock.answers("/v1/em_inf")) != (200, 404):
            raise CheckFailedError("/v1/em_inf must be on our server, and only there")
        bench = Bench(ours, stock)
        idle = idle_cpu_shares([ours, stock], IDLE_SECONDS)
        about["idle_cpu_share"] = dict(zip(("ours", "stock vLLM"), idle, strict=True))
        print("idle servers take of a core:", about["idle_cpu_share"], flush=True)
        check_same_words(bench, args.tokens)
        cases = [
            measure(
                bench,
                Asked(concurrency, args.requests or concurrency, args.tokens),
                args.rounds,
                args.seconds,
            )
            for concurrency in args.concurrency
        ]
        check_errors(ours)
    return {"about": about, "cases": cases}


def main() -> None:
    """Run every case, print it, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, stand-in, or a folder")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=200, help="at most, each")
    parser.add_argument(
        "--seconds", type=float, default=150, help="no new round after, each concurrency"
    )
    parser.add_argument("--requests", type=int, help="of a run; else as many as at once")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name in (
        "rounds",
        "tokens",
        *(["requests"] if args.requests is not None else []),
    ):
        if getattr(args, name) < 2:
            parser.error(f"--{name} is {getattr(args, name)}, allowed is 2 or more")
    if min(args.concurrency) < 1:
        parser.error(f"--concurrency is {args.concurrency}, allowed is 1 or more")
    leave_no_server_behind()
    try:
        report = run(args)
    except (CheckFailedError, RequestFailedError, ServerFailedError) as error:
        sys.exit(f"nothing to report: {error}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
