"""What the figures cost on their way back, beside the kernels: CPU time of each token.

    python -m em_inf.loadtests.bench_statistics --out loadtests/results/statistics.json

In one process and on one thread, without a server: a worker's recorder with some answers
that grow together, a token of each a step; all that we do in a step of vLLM's V1 runner
but the kernel, which does nothing here; then what an API server does with the figures
of an answer of a given length, for both kinds of report; then the longest time that the
event loop is held while a long answer with a trace ends. CPU time, not time on the clock:
medians over rounds, with quartiles. Refuses to report where the figures that come out
are not those that went in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from em_inf.loadtests.environment import where_it_ran
from em_inf.logits_processors.figures import COLUMNS, Figures
from em_inf.logits_processors.recorder import Recorder
from em_inf.logits_processors.reference import RowFigures
from em_inf.logits_processors.settings import Settings

BARS = {
    "worker, us a token": 0.3,
    "worker, bytes a token": 20.0,
    "worker, us a step of 16 rows, kernel apart": 100.0,
    "API server, summary, us a token": 0.3,
    "API server, trace, us a token": 1.2,
    "longest pause of the event loop, ms": 10.0,
}


class WrongFiguresError(Exception):
    """What came out is not what went in."""


def cpu_microseconds(work: Callable[[], Any], rounds: int) -> list[float]:
    """CPU time of each of some rounds; the first, untimed, fills caches."""
    work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append((time.process_time() - began) * 1e6)
    return times


def worker(rows: int, tokens: int, rounds: int) -> tuple[list[float], float]:
    """Microseconds a token of recording and handing out; bytes a token of the pages."""
    steps = [
        RowFigures(torch.full((len(COLUMNS), rows), float(position)))
        for position in range(tokens)
    ]
    keys = [f"answer {i}" for i in range(rows)]
    num_bytes = 0

    def work() -> None:
        nonlocal num_bytes
        recorder = Recorder()
        handles = np.array([recorder.open(key) for key in keys])
        places = np.zeros(rows, np.int64)
        # Answers begin at different times, and so do their pages.
        places -= np.arange(rows) % 32
        for step in steps:
            recorder.add(step, handles, places)
            places = places + 1
        num_bytes = recorder.num_bytes
        found = Figures.from_bytes(recorder.pop(keys)[keys[0]])
        if found.entropy_before.tolist() != list(range(tokens)):
            raise WrongFiguresError("the worker's")

    times = cpu_microseconds(work, rounds)
    all_tokens = rows * tokens
    return [t / all_tokens for t in times], num_bytes / all_tokens


def host_time(rows: int, rounds: int) -> list[float]:
    """Microseconds of a step with so many rows, all with EM-INF on, but the kernel's."""
    from em_inf.logits_processors.extra_args import to_extra_args
    from em_inf.logits_processors.runners import V1Runner
    from em_inf.logits_processors.step import Step

    step = Step("V1", rows, 1, 4096, torch.device("cpu"), samples=True)
    figures = RowFigures(torch.ones(len(COLUMNS), rows))
    step._minimize_entropy_ = lambda *_, **__: figures
    outputs: list[list[int]] = [[] for _ in range(rows)]
    asked = [to_extra_args(Settings(), f"answer {row}") for row in range(rows)]
    params: Any = [SimpleNamespace(extra_args={"em_inf": each}) for each in asked]
    added = [(row, params[row], None, outputs[row]) for row in range(rows)]
    runner = V1Runner(step, rows)
    update: Any = SimpleNamespace(removed=[], added=added, moved=[])
    for row, of_row in runner.follow(update):
        step.take_up(row, of_row)
    logits = torch.zeros(rows, 4096)
    steps = 256

    def work() -> None:
        for _ in range(steps):
            runner.apply(logits, None)
            for output in outputs:
                output.append(7)

    times = cpu_microseconds(work, rounds)
    found = Figures.from_bytes(step.recorder.pop(["answer 0"])["answer 0"])
    if len(found) != steps * (rounds + 1):
        raise WrongFiguresError("those of whole steps")
    return [t / steps for t in times]


def made_up(tokens: int) -> bytes:
    """Figures of an answer, as bytes, like those of a language model's."""
    rng = np.random.default_rng(7)
    before = rng.exponential(0.8, tokens)
    touched = before > 0.3
    columns = {
        "entropy_before": before,
        "entropy_after": np.where(touched, 0.29, before),
        "grad_steps": np.where(touched, rng.integers(1, 16, tokens), 0),
        "temperature": np.ones(tokens),
    }
    table = np.stack([columns[name] for name in COLUMNS]).astype(np.float32)
    return Figures(table).to_bytes()


async def server_end(data: bytes, tokens: int, report: str) -> bytes:
    """What an API server does with an answer's figures, from bytes to JSON."""
    from em_inf.server import metrics
    from em_inf.server.report import Report
    from em_inf.server.responses import rendered

    found = Report(Settings(report=report), "default")  # type: ignore[arg-type]
    generation = found.new_generation(1)
    figures = Figures.from_bytes(data).cut(tokens)
    generation.figures[0] = figures
    metrics.observe(figures)
    return await rendered(found, one_choice=False)


def api_server(tokens: int, report: str, rounds: int) -> list[float]:
    """Microseconds a token of an answer of so many tokens."""
    data = made_up(tokens)
    body = json.loads(asyncio.run(server_end(data, tokens, report)))["choices"][0]
    if body["tokens"] != tokens or len(body.get("trace", {})) != 3 * (report == "trace"):
        raise WrongFiguresError("the API server's")
    answers = max(1, 8192 // tokens)

    async def many() -> None:
        for _ in range(answers):
            await server_end(data, tokens, report)

    times = cpu_microseconds(lambda: asyncio.run(many()), rounds)
    return [t / (answers * tokens) for t in times]


def longest_pause(tokens: int) -> float:
    """Milliseconds of CPU time between two turns of another task, at most."""
    data = made_up(tokens)
    longest = 0.0

    async def others() -> None:
        nonlocal longest
        last = time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    async def scenario() -> None:
        nonlocal longest
        await server_end(data, tokens, "trace")
        task = asyncio.create_task(others())
        await asyncio.sleep(0)
        longest = 0.0
        await server_end(data, tokens, "trace")
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    return longest * 1000


def quartiles(values: list[float]) -> list[float]:
    """The three of some rounds; the middle one is the median."""
    return [round(q, 4) for q in statistics.quantiles(values, n=4)]


def main() -> None:
    """Measure, print, and keep the results where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="answers at once")
    parser.add_argument("--tokens", type=int, default=1024, help="of each, in a worker")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker-only", action="store_true", help="without a web server")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)

    results: dict[str, Any] = {}
    times, bytes_a_token = worker(args.rows, args.tokens, args.rounds)
    results["worker, us a token"] = quartiles(times)
    results["worker, bytes a token"] = round(bytes_a_token, 1)
    if not args.worker_only:
        name = "worker, us a step of 16 rows, kernel apart"
        results[name] = quartiles(host_time(16, args.rounds))
        for report in ("summary", "trace"):
            for tokens in (64, 1024, 32768):
                name = f"API server, {report}, us a token"
                found = api_server(tokens, report, args.rounds)
                results[f"{name}, {tokens} tokens"] = quartiles(found)
        pauses = [longest_pause(32768) for _ in range(args.rounds)]
        results["longest pause of the event loop, ms"] = quartiles(pauses)

    for name, value in results.items():
        bar = next((bar for start, bar in BARS.items() if name.startswith(start)), None)
        shown = value[1] if isinstance(value, list) else value
        print(f"{name:48} {shown:9.3f}   bar {bar}")
    if args.out:
        module = "em_inf.loadtests.bench_statistics"
        kept = where_it_ran(module, results=results, bars=BARS)
        args.out.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
