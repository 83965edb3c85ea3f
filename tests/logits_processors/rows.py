"""Rows of logits that tests share, and one call that runs a backend on a copy of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from em_inf.logits_processors.minimize import Backend, minimize_entropy_
from em_inf.logits_processors.reference import RowFigures, RowParams, Workspace
from em_inf.logits_processors.settings import Settings

if TYPE_CHECKING:
    from em_inf.logits_processors.kernels.gpu import Scratch

Columns = TypeVar("Columns", RowParams, RowFigures)
INF = float("inf")
NAN = float("nan")
CPU = torch.device("cpu")
TRITON = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the Triton kernels run: a GPU, or else the CPU under Triton's interpreter."""


def llm_like_rows(vocab_size: int, num_rows: int, seed: int) -> Tensor:
    """[num_rows, vocab_size] float32 rows as language models make them.

    In turn: a few competing tokens over a far tail, a Zipf head, spikes over a Gaussian
    bulk, a wide Gaussian. Every other row is rounded to bfloat16, as served logits are.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(vocab_size, generator=generator)

    def uniform(low: float, high: float, size: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    rows = []
    for i in range(num_rows):
        order = torch.randperm(vocab_size, generator=generator)
        family = i // 2 % 4
        if family == 0:
            row = noise() * 2 - 18
            row[order[:5]] = uniform(-4, 0, min(5, vocab_size))
        elif family == 1:
            rank = torch.arange(1, vocab_size + 1).float()
            row = (-uniform(1.3, 3) * rank.log())[order] + 0.3 * noise()
        elif family == 2:
            row = noise() * 1.5
            row[order[:12]] += uniform(8, 16, min(12, vocab_size))
        else:
            row = noise() * uniform(2, 5)
        rows.append(row.bfloat16().float() if i % 2 else row)
    return torch.stack(rows)


def _gaussian(vocab_size: int) -> Tensor:
    return llm_like_rows(vocab_size, 8, seed=vocab_size)[6]


def _masked_but(row: Tensor, *allowed: int) -> Tensor:
    masked = torch.full_like(row, -INF)
    masked[list(allowed)] = row[list(allowed)]
    return masked


HARD_ROWS: dict[str, Tensor] = {
    "V=1": torch.tensor([2.0]),
    "V=2": torch.tensor([0.5, 0.0]),
    "V=128": _gaussian(128),
    "V=1000": _gaussian(1000),
    "V=32001": _gaussian(32001),
    "V=151936": _gaussian(151936),
    "tie on top": torch.tensor([3.0, 3.0, 0.0, -2.0, -20.0]),
    "three-way tie on top": torch.tensor([1.0, -1.0, 1.0, 0.0, 1.0]),
    "flat, V=128": torch.full((128,), 7.25),
    "flat, V=151936": torch.full((151936,), -3.0),
    "two levels": torch.tensor([0.0, 1.0]).repeat(500),
    "all but one masked": _masked_but(_gaussian(128), 77),
    "all but one masked, V=151936": _masked_but(_gaussian(151936), 151935),
    "all but two masked": _masked_but(torch.full((128,), 1.5), 0, 127),
    "every other masked": _masked_but(_gaussian(1000), *range(0, 1000, 2)),
    "gaps of 100 to 1000": torch.tensor([0.0, -0.5, -100.0, -104.0, -110.0, -1000.0]),
    "masked with the least float32": torch.tensor(
        [1.0, 0.5, 0.0, torch.finfo(torch.float32).min, torch.finfo(torch.float32).min]
    ),
    "far from zero": _gaussian(1000) + 100,
    "zeros of both signs": torch.tensor([0.0, -0.0, 0.0, -0.0]),
}
"""One table of hard rows for every backend, each [V] float32 with a finite entry."""

UNUSABLE_ROWS: dict[str, Tensor] = {
    "all masked": torch.full((128,), -INF),
    "one masked token": torch.tensor([-INF]),
    "NaN": torch.tensor([1.0, NAN, 0.5, 0.0]),
    "NaN and -inf": torch.tensor([1.0, NAN, -INF, 0.0]),
    "+inf": torch.tensor([1.0, INF, 0.5, 0.0]),
    "two +inf and -inf": torch.tensor([INF, 0.5, INF, -INF]),
}
"""Rows without a softmax, which must be left alone."""


def params_of(settings: Sequence[Settings], device: torch.device = CPU) -> RowParams:
    """One column a setting, one entry a row."""
    columns = RowParams.of(
        adaptive=torch.tensor(
            [float(s.method == "adaptive_temperature") for s in settings]
        ),
        n_grad_steps=torch.tensor(
            [float(s.n_grad_steps * (s.method == "gradient")) for s in settings]
        ),
        learning_rate=torch.tensor([s.learning_rate for s in settings]),
        threshold=torch.tensor([s.threshold for s in settings]),
        kl_weight=torch.tensor([s.kl_weight for s in settings]),
        target_ratio=torch.tensor([s.target_ratio for s in settings]),
    )
    return moved(columns, device)


BACKENDS: tuple[Backend, ...] = ("reference", "cpu", "gpu")
"""Every backend; the last under Triton's interpreter where there is no GPU."""

current_backend: list[Backend] = ["cpu"]
"""The one that `minimized` runs, "auto" here; a fixture goes through them all."""


def minimized(
    logits: Tensor,
    settings: Settings | Sequence[Settings],
    *,
    rows: Sequence[int] | None = None,
    workspace: Workspace | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, RowFigures]:
    """Run the current backend on a copy.

    Args:
        logits: [R, V] float32.
        settings: of all chosen rows, or one for each.
        rows: the chosen rows, all where it is None.
        workspace: one that takes all rows at once where it is None.
        backend: another one than the current.
    Returns:
        The copy afterwards, and the statistics of the chosen rows, both on the CPU.
    """
    backend = backend or current_backend[0]
    device = TRITON if backend == "gpu" else CPU
    logits = logits.clone().to(device)
    rows = range(logits.shape[0]) if rows is None else rows
    if isinstance(settings, Settings):
        settings = [settings] * len(rows)
    room: Workspace | Scratch
    room = workspace or Workspace(logits.shape[1], len(rows) or 1, CPU)
    if backend == "gpu":
        room = scratch_of(room)
    # The interpreter computes with numpy, which warns where a GPU goes on with infinity.
    with np.errstate(all="ignore"):
        stats = minimize_entropy_(
            logits,
            torch.tensor(list(rows), dtype=torch.int64, device=device),
            params_of(settings, device),
            workspace=room,
            max_grad_steps=max((s.n_grad_steps for s in settings), default=0),
            any_adaptive=any(s.method == "adaptive_temperature" for s in settings),
            backend=backend,
        )
    return logits.cpu(), moved(stats, CPU)


def moved(columns: Columns, device: torch.device) -> Columns:
    """The same settings or statistics on another device."""
    return type(columns)(columns.table.to(device))


def scratch_of(workspace: Workspace) -> Scratch:
    """A scratch for the GPU's kernels, full of NaN, whose groups are the chunks."""
    from em_inf.logits_processors.kernels import gpu

    scratch = gpu.Scratch(
        workspace.vocab_size,
        workspace.chunk_rows,
        TRITON,
        group_rows=workspace.chunk_rows,
    )
    for buffer in vars(scratch).values():
        if isinstance(buffer, Tensor):
            buffer.fill_(NAN if buffer.is_floating_point() else -1)
    return scratch


def bits(tensor: Tensor) -> Tensor:
    """The bits of float32 numbers, which tell -0 from 0 and compare NaN with NaN."""
    return tensor.contiguous().view(torch.int32)
