"""What EM-INF costs for a step's rows of logits, beside what else is done with them.

    python -m em_inf.loadtests.bench_kernel --out loadtests/results/kernel-cpu.json
    python -m em_inf.loadtests.bench_kernel --device cuda --out kernel-cuda.json

All contenders of a case run in every round, in shuffled order, in one process, on the
same rows freshly copied; printed are medians in microseconds for each row, their
quartiles, and the medians of the ratios to torch.softmax and to one read of the same
round. On a GPU it is the time of the device that counts, by its own events, with the
launches captured in a CUDA graph where that is possible, as the host runs ahead of the
device in service. Refuses to report when its own check of the results fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from em_inf.loadtests.environment import where_it_ran
from em_inf.logits_processors.minimize import minimize_entropy_, pick_backend, prepare
from em_inf.logits_processors.reference import RowParams, Workspace

THRESHOLD, LEARNING_RATE, KL_WEIGHT = 0.3, 0.1, 0.001
SKIPPED = 1e3  # A threshold that no row reaches.
MOST_SECONDS = 20.0  # For all rounds of one case.
ROUNDS = 15

Contender = Callable[[Tensor], Any]


def served_rows(num_rows: int, vocab_size: int, seed: int = 7) -> Tensor:
    """[num_rows, vocab_size] float32 as language models make them, 0.4 to 4 nats.

    A Gaussian bulk far below a Zipf head; where the vocabulary is large.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, vocab_size, generator=generator) * 2.6
    size = min(4000, vocab_size // 4)
    rank = torch.arange(1, size + 1).float()
    for i, row in enumerate(rows):
        where = torch.randperm(vocab_size, generator=generator)[:size]
        jitter = 0.6 * torch.randn(size, generator=generator)
        head = 22 - (1.6 + 0.3 * (i % 8)) * rank.log() + jitter
        row[where] = torch.maximum(row[where], head)
    return rows


def params_for(num_rows: int, n: int, active: Tensor, adaptive: bool) -> RowParams:
    """Settings of each row; rows that are not active stay below their threshold."""

    def full(value: float) -> Tensor:
        return torch.full((num_rows,), value, device=active.device)

    return RowParams.of(
        adaptive=full(float(adaptive)),
        n_grad_steps=full(0.0 if adaptive else float(n)),
        learning_rate=full(LEARNING_RATE),
        threshold=torch.where(active, THRESHOLD, SKIPPED),
        kl_weight=full(KL_WEIGHT),
        target_ratio=full(0.5),
    )


def batched_autograd(logits: Tensor, n: int) -> Tensor:
    """The authors' loss for all rows at once, by autograd and torch's Adam."""
    z = logits.clone().requires_grad_(True)
    first = torch.softmax(logits, dim=1)
    adam = torch.optim.Adam([z], lr=LEARNING_RATE)
    for _ in range(n):
        log_p = torch.log_softmax(z, dim=1)
        entropy = -(log_p.exp() * log_p).sum()
        pull = torch.nn.functional.kl_div(log_p, first, reduction="sum")
        adam.zero_grad()
        (entropy + KL_WEIGHT * pull).backward()
        adam.step()
    return z.detach()


def row_loop(logits: Tensor, n: int) -> Tensor:
    """The same one row after another, as the authors' code does it."""
    return torch.cat([batched_autograd(row[None], n) for row in logits])


def vllm_samplers(num_rows: int, device: torch.device) -> dict[str, Contender]:
    """vLLM's own sampling, alone and after top-p 0.95, as its sampler runs it here.

    None where vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        return {}
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    current_platform.import_kernels()
    sampler = TopKTopPSampler()
    top_p = torch.full((num_rows,), 0.95, device=device)
    found: dict[str, Contender] = {
        "vLLM sampling": lambda logits: sampler(logits, {}, None, None),
        "vLLM top-p and sampling": lambda logits: sampler(logits, {}, None, top_p),
    }
    if device.type == "cuda":
        from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

        index = torch.arange(num_rows, dtype=torch.int32, device=device)
        one = torch.ones(num_rows, device=device)
        seeds = torch.arange(num_rows, dtype=torch.int64, device=device)
        found["vLLM V2 Gumbel sampling"] = lambda logits: gumbel_sample(
            logits, index, one, seeds, seeds, apply_temperature=False, is_drafting=False
        )
    return found


def check(logits: Tensor, run: Contender, n: int) -> float:
    """Largest total-variation distance of ours to the reference, which must be small.

    Raises:
        SystemExit: it is not.
    """
    ours = logits.clone()
    run(ours)
    expected = logits.clone()
    active = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    minimize_entropy_(
        expected,
        torch.arange(len(logits), device=logits.device),
        params_for(len(logits), n, active, adaptive=False),
        workspace=Workspace(logits.shape[1], len(logits), logits.device),
        max_grad_steps=n,
        any_adaptive=False,
        backend="reference",
    )
    p, q = (torch.softmax(rows.double(), dim=1) for rows in (ours, expected))
    distance = float((p - q).abs().sum(dim=1).max() / 2)
    if not distance <= 1e-4:
        sys.exit(f"nothing to report: total variation to the reference is {distance:.1e}")
    return distance


def contenders(
    num_rows: int, vocab_size: int, n: int, active: Tensor, everything: bool
) -> dict[str, Contender]:
    """What runs beside what, by name."""
    device = active.device
    rows = torch.arange(num_rows, device=device)
    workspace = prepare(vocab_size, num_rows, device)

    def ours(adaptive: bool, steps: int = n) -> Contender:
        params = params_for(num_rows, steps, active, adaptive)
        return lambda logits: minimize_entropy_(
            logits,
            rows,
            params,
            workspace=workspace,
            max_grad_steps=0 if adaptive else steps,
            any_adaptive=adaptive,
        )

    target = torch.empty(num_rows, vocab_size, device=device)
    found: dict[str, Contender] = {
        "EM-INF": ours(adaptive=False),
        "torch.softmax": lambda logits: torch.softmax(logits, dim=1, out=target),
        "one read (sum)": lambda logits: logits.sum(dim=1),
        "one copy": lambda logits: target.copy_(logits),
    }
    if everything:
        found["EM-INF, n 1"] = ours(adaptive=False, steps=1)
        found["EM-INF, n 15"] = ours(adaptive=False, steps=15)
        found["adaptive temperature"] = ours(adaptive=True)
        found |= vllm_samplers(num_rows, device)
        found["batched autograd"] = lambda logits: batched_autograd(logits, n)
        found["authors' row loop"] = lambda logits: row_loop(logits, n)
    return found


Clock = Callable[[], float]


def on_host(run: Contender, logits: Tensor) -> Clock:
    """Seconds that a run takes, by the host's clock."""

    def clock() -> float:
        start = time.perf_counter()
        run(logits)
        return time.perf_counter() - start

    return clock


def on_device(run: Contender, logits: Tensor) -> Clock:
    """Seconds that a run takes on the GPU, from a graph of its launches if it has one."""
    graph = torch.cuda.CUDAGraph()
    replay: Callable[[], Any] = graph.replay
    try:
        with torch.cuda.graph(graph):
            run(logits)
    except RuntimeError:  # It waits for the device or allocates.
        torch.cuda.synchronize()
        replay = lambda: run(logits)  # noqa: E731
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock() -> float:
        start.record()
        replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return clock


def measure(logits: Tensor, found: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """Medians and quartiles in microseconds for each row, and ratios to two others."""
    times: dict[str, list[float]] = {name: [] for name in found}
    copy = logits.clone()
    clocks: dict[str, Clock] = {}
    for name, run in found.items():
        copy.copy_(logits)
        run(copy)  # Warm.
        timed = on_device if logits.device.type == "cuda" else on_host
        clocks[name] = timed(run, copy)
    began = time.perf_counter()
    order = random.Random(0)  # noqa: S311  Whoever runs after a heavy one finds cold caches.
    names = list(found)
    for _ in range(ROUNDS):
        order.shuffle(names)
        for name in names:
            copy.copy_(logits)
            times[name].append(clocks[name]() / len(logits) * 1e6)
        if time.perf_counter() - began > MOST_SECONDS and len(times["EM-INF"]) >= 5:
            break
    result = {}
    for name, values in times.items():
        quartiles = statistics.quantiles(values, n=4)
        result[name] = {
            "median_us_per_row": round(statistics.median(values), 3),
            "first_quartile_us": round(quartiles[0], 3),
            "third_quartile_us": round(quartiles[2], 3),
            "median_ratio_to_softmax": median_ratio(values, times["torch.softmax"]),
            "median_ratio_to_read": median_ratio(values, times["one read (sum)"]),
            "rounds": len(values),
        }
    return result


def median_ratio(values: list[float], base: list[float]) -> float:
    """Median over the rounds of the ratio within each."""
    return round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3)


def main() -> None:
    """Run every case, print a line for each contender, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default 1")
    parser.add_argument(
        "--vocab-sizes", type=int, nargs="+", default=[512, 32000, 151936]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5, 15])
    parser.add_argument("--active", type=float, nargs="+", default=[0, 0.25, 1])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    about = where_it_ran(
        "em_inf.loadtests.bench_kernel",
        threads=args.threads,
        backend=pick_backend("auto", device),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    )
    report: dict[str, Any] = {"about": about, "cases": []}
    for vocab_size in args.vocab_sizes:
        for num_rows in args.rows:
            logits = served_rows(num_rows, vocab_size).to(device)
            for share in args.active:
                active = torch.arange(num_rows, device=device) < round(share * num_rows)
                for n in args.steps:
                    everything = n == 5 and share == 1
                    if share == 0 and n != 5:
                        continue  # No row takes a step: one step count says it all.
                    found = contenders(num_rows, vocab_size, n, active, everything)
                    distance = None
                    if share == 1:
                        distance = check(logits, found["EM-INF"], n)
                    result = measure(logits, found)
                    case = {"V": vocab_size, "rows": num_rows, "n": n, "active": share}
                    report["cases"].append(
                        {**case, "distance_to_reference": distance, "results": result}
                    )
                    for name, figures in result.items():
                        print(
                            f"V {vocab_size:6}  rows {num_rows:3}  n {n:2}  "
                            f"active {share:4.0%}  {name:24}"
                            f"{figures['median_us_per_row']:12.1f} us a row"
                            f"{figures['median_ratio_to_softmax']:10.2f} x softmax"
                            f"{figures['median_ratio_to_read']:10.2f} x read",
                            flush=True,
                        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
