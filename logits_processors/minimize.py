"""The one public operation: minimise the entropy of chosen rows of logits, in place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from logits_processors.reference import RowParams, RowStats, Workspace, minimize_rows_

Backend = Literal["auto", "reference"]


def pick_backend(backend: Backend, device: torch.device) -> str:  # noqa: ARG001
    """The backend that will run on `device`; the reference runs on any."""
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend {backend!r} is not 'auto' or 'reference'")
    return "reference"


def minimize_entropy_(
    logits: Tensor,
    rows: Tensor,
    params: RowParams,
    *,
    workspace: Workspace,
    max_grad_steps: int,
    any_adaptive: bool = True,
    backend: Backend = "auto",
) -> RowStats:
    """Lower the entropy of the chosen rows in place; every other row stays bit for bit.

    A row's result depends on nothing but that row and its settings (on a GPU, up to
    rounding). A row below its threshold, with NaN or +inf in it, or with a single allowed
    token stays bit for bit as well; -inf stays -inf.

    Args:
        logits: [R, V] float32, last dimension contiguous.
        rows: [N] int64 on the same device, each at most once.
        params: settings of each chosen row, [N] float32 each.
        workspace: buffers for rows at least V wide, on the same device.
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
    for name in RowParams.__slots__:
        value = getattr(params, name)
        wanted = (rows.shape, torch.float32, logits.device)
        if (value.shape, value.dtype, value.device) != wanted:
            raise ValueError(
                f"params.{name} must be {list(rows.shape)} float32 on {logits.device}, "
                f"not {list(value.shape)} {value.dtype} on {value.device}"
            )
    if workspace.vocab_size < logits.shape[1]:
        raise ValueError(
            f"workspace is for rows of {workspace.vocab_size}, not {logits.shape[1]}"
        )
    if workspace.buffer.device != logits.device:
        raise ValueError(
            f"workspace must be on {logits.device}, not {workspace.buffer.device}"
        )
    pick_backend(backend, logits.device)
    stats = RowStats.empty(rows.numel(), logits.device)
    minimize_rows_(logits, rows, params, stats, workspace, max_grad_steps, any_adaptive)
    return stats
