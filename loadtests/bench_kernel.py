"""What EM-INF costs for a step's rows of logits, beside what else is done with them.

    python -m loadtests.bench_kernel --out loadtests/results/kernel-cpu.json

All contenders of a case run in every round, in shuffled order, in one process, on the
same rows freshly copied; printed are medians in microseconds for each row, their
quartiles, and the median of the ratios to torch.softmax of the same round. Refuses to
report when its own check of the results fails.
"""

from __future__ import annotations

import argparse
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

from loadtests.environment import where_it_ran
from logits_processors.minimize import minimize_entropy_, pick_backend, prepare
from logits_processors.reference import RowParams, Workspace

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
        return torch.full((num_rows,), value)

    return RowParams(
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


def vllm_top_p(logits: Tensor) -> Tensor:
    """vLLM's own top-p 0.95, in PyTorch."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    return apply_top_k_top_p_pytorch(logits, None, torch.full((len(logits),), 0.95))


def vllm_sample(logits: Tensor) -> Tensor:
    """vLLM's own random sampling (softmax and exponential noise)."""
    from vllm.v1.sample.ops.topk_topp_sampler import random_sample

    return random_sample(logits.softmax(dim=1), {})


def check(logits: Tensor, run: Contender, n: int) -> float:
    """Largest total-variation distance of ours to the reference, which must be small.

    Raises:
        SystemExit: it is not.
    """
    ours = logits.clone()
    run(ours)
    expected = logits.clone()
    active = torch.ones(len(logits), dtype=torch.bool)
    minimize_entropy_(
        expected,
        torch.arange(len(logits)),
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
    rows = torch.arange(num_rows)
    workspace = prepare(vocab_size, num_rows, torch.device("cpu"))

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

    target = torch.empty(num_rows, vocab_size)
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
        found["vLLM top-p"] = vllm_top_p
        found["vLLM sampling"] = vllm_sample
        found["batched autograd"] = lambda logits: batched_autograd(logits, n)
        found["authors' row loop"] = lambda logits: row_loop(logits, n)
    return found


def measure(logits: Tensor, found: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """Medians and quartiles in microseconds for each row, and ratios to softmax."""
    times: dict[str, list[float]] = {name: [] for name in found}
    copy = logits.clone()
    for run in found.values():
        copy.copy_(logits)
        run(copy)  # Warm.
    began = time.perf_counter()
    order = random.Random(0)  # noqa: S311  Whoever runs after a heavy one finds cold caches.
    names = list(found)
    for _ in range(ROUNDS):
        order.shuffle(names)
        for name in names:
            run = found[name]
            copy.copy_(logits)
            start = time.perf_counter()
            run(copy)
            times[name].append((time.perf_counter() - start) / len(logits) * 1e6)
        if time.perf_counter() - began > MOST_SECONDS and len(times["EM-INF"]) >= 5:
            break
    result = {}
    for name, values in times.items():
        ratios = [t / s for t, s in zip(values, times["torch.softmax"], strict=True)]
        quartiles = statistics.quantiles(values, n=4)
        result[name] = {
            "median_us_per_row": round(statistics.median(values), 3),
            "first_quartile_us": round(quartiles[0], 3),
            "third_quartile_us": round(quartiles[2], 3),
            "median_ratio_to_softmax": round(statistics.median(ratios), 3),
            "rounds": len(values),
        }
    return result


def main() -> None:
    """Run every case, print a line for each contender, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--vocab-sizes", type=int, nargs="+", default=[512, 32000, 151936]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5, 15])
    parser.add_argument("--active", type=float, nargs="+", default=[0, 0.25, 1])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    import numba

    about = where_it_ran(
        "loadtests.bench_kernel",
        threads=args.threads,
        backend=pick_backend("auto", torch.device("cpu")),
    )
    report: dict[str, Any] = {"about": about, "cases": []}
    for vocab_size in args.vocab_sizes:
        # Compiles, and takes as many threads as torch has.
        prepare(vocab_size, 1, torch.device("cpu"))
        numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
        for num_rows in args.rows:
            logits = served_rows(num_rows, vocab_size)
            for share in args.active:
                active = torch.arange(num_rows) < round(share * num_rows)
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
                            f"active {share:4.0%}  {name:22}"
                            f"{figures['median_us_per_row']:12.1f} us a row"
                            f"{figures['median_ratio_to_softmax']:10.2f} x softmax",
                            flush=True,
                        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
