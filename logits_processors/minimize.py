"""The one public operation: minimise the entropy of chosen rows of logits, in place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from em_inf.logits_processors.reference import RowFigures, RowParams, Workspace
from em_inf.logits_processors.reference import (
    minimize_rows_ as minimize_rows_by_reference_,
)

if TYPE_CHECKING:
    from em_inf.logits_processors.kernels.gpu import Scratch

Backend = Literal["auto", "reference", "cpu", "gpu"]


def pick_backend(backend: Backend, device: torch.device) -> str:
    """The backend that will run on `device`.

    "cpu" is numba's, "gpu" Triton's (on a CPU under Triton's interpreter only, and only
    when asked for by name), "reference" runs on any device.

    Raises:
        ValueError: there is no such backend for the device.
    """
    possible = ["reference"]
    if device.type == "cpu":
        possible += (
            ["cpu", "gpu"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cpu"]
        )
    elif device.type == "cuda":
        possible.append("gpu")
    if backend == "auto":
        return possible[1] if len(possible) > 1 else "reference"
    if backend not in possible:
        raise ValueError(
            f"backend {backend!r} is not 'auto' or one of {', '.join(possible)}, "
            f"which are there for {device.type}"
        )
    return backend


def prepare(
    vocab_size: int,
    max_rows: int,
    device: torch.device,
    backend: Backend = "auto",
    max_grad_steps: int = 64,
) -> Workspace | Scratch | None:
    """Do at start what no request should wait for: compile, warm up, allocate.

    Args:
        vocab_size: V, the widest row that will come.
        max_rows: the most rows that will come at a time.
        device: where the logits live.
        backend: as for `minimize_entropy_`.
        max_grad_steps: the largest step count that will come.

    Returns:
        What `minimize_entropy_` wants as its workspace.
    """
    picked = pick_backend(backend, device)
    if picked == "gpu":
        from em_inf.logits_processors.kernels import gpu

        scratch = gpu.Scratch(vocab_size, max_rows, device, max_grad_steps)
        gpu.warm_up(scratch)
        return scratch
    if picked == "cpu":
        from em_inf.logits_processors.kernels import cpu

        cpu.warm_up(vocab_size)
        return None
    return Workspace(vocab_size, max_rows, device)


def minimize_entropy_(
    logits: Tensor,
    rows: Tensor,
    params: RowParams,
    *,
    workspace: Workspace | Scratch | None,
    max_grad_steps: int,
    any_adaptive: bool = True,
    backend: Backend = "auto",
) -> RowFigures:
    """Lower the entropy of the chosen rows in place; every other row stays bit for bit.

    A row's result depends on nothing but that row and its settings. A row below its
    threshold, with NaN or +inf in it, or with a single allowed token stays bit for bit as
    well; -inf stays -inf.

    Args:
        logits: [R, V] float32, last dimension contiguous.
        rows: [N] int64 on the same device, each at most once.
        params: settings of each chosen row.
        workspace: what `prepare` returned for this backend and device, for rows at least
            V wide; the backend "cpu" needs none.
        max_grad_steps: the largest step count in `params`, known to the host.
        any_adaptive: False spares the other method's work where no row asks for it.
        backend: "auto" takes the fastest for the device.

    Returns:
        Entropies in nats, steps and temperatures of the chosen rows, [N] each.

    Raises:
        ValueError: a shape, dtype or device is not as above.
    Source: arXiv 2505.15134, section 4 and Algorithm 1.
    """
    if logits.dim() != 2 or logits.dtype != torch.float32:
        raise ValueError(
            f"logits must be [R, V] float32, not {list(logits.shape)} {logits.dtype}"
        )
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError("the last dimension of logits must be contiguous")
    if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device != logits.device:
        raise ValueError(
            f"rows must be [N] int64 on {logits.device}, not {list(rows.shape)} "
            f"{rows.dtype} on {rows.device}"
        )
    table = params.table
    wanted = (rows.numel(), len(params.COLUMNS))
    if (table.shape, table.dtype, table.device) != (wanted, torch.float32, logits.device):
        raise ValueError(
            f"params.table must be {list(wanted)} float32 on {logits.device}, "
            f"not {list(table.shape)} {table.dtype} on {table.device}"
        )
    stats = RowFigures.empty(rows.numel(), logits.device)
    picked = pick_backend(backend, logits.device)
    if picked == "cpu":
        from em_inf.logits_processors.kernels import cpu

        cpu.minimize_rows_(logits, rows, params, stats)
        return stats
    if workspace is None:
        raise ValueError(f"the backend {picked!r} needs a workspace")
    if picked == "gpu" and isinstance(workspace, Workspace):
        raise ValueError("the backend 'gpu' needs the workspace that it prepared")
    if workspace.vocab_size < logits.shape[1]:
        raise ValueError(
            f"workspace is for rows of {workspace.vocab_size}, not {logits.shape[1]}"
        )
    if workspace.device != logits.device:
        raise ValueError(f"workspace must be on {logits.device}, not {workspace.device}")
    if isinstance(workspace, Workspace):
        minimize_rows_by_reference_(
            logits, rows, params, stats, workspace, max_grad_steps, any_adaptive
        )
        return stats
    if workspace.max_grad_steps < max_grad_steps:
        raise ValueError(
            f"workspace is for {workspace.max_grad_steps} steps, not {max_grad_steps}"
        )
    from em_inf.logits_processors.kernels import gpu

    gpu.minimize_rows_(logits, rows, params, stats, workspace)
    return stats
