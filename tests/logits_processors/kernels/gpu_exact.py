"""EM-INF on a GPU that leaves nothing out: the cross-check of `gpu.py`, and slower.

n + 1 launches over all slices of all rows, where `gpu.py` takes four: one for the first
statistics and one a step, each of which replays all steps so far from the first logits
and sums up the next. Shares the update with `gpu.py`, but neither its choice of likely
tokens nor its points nor its table.

Source: arXiv 2505.15134, section 4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from em_inf.logits_processors.kernels.gpu_math import (
    LOG2_E,
    NOTHING,
    combine,
    factors,
    replay,
    store_scalars,
    store_sums,
    update,
)
from em_inf.logits_processors.reference import BETA1, BETA2, RowFigures, RowParams

_SLICE: tl.constexpr = tl.constexpr(2048)
_UNFINISHED: tl.constexpr = tl.constexpr(-1)


@triton.jit(do_not_specialize=["t", "max_steps"])
def _step_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    partials_ptr,
    scalars_ptr,
    finished_ptr,
    n_ptr,
    rate_ptr,
    threshold_ptr,
    kl_ptr,
    bias1,
    bias2,
    t,
    max_steps,
    V: tl.constexpr,
    SLICES: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Statistics after step `t`, and the logits of rows that end there or ended before.

    Biases are 1 - beta ** t.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    z_ptr = logits_ptr + tl.load(rows_ptr + row) * row_stride
    i = part * _SLICE + tl.arange(0, _SLICE)
    z = tl.load(z_ptr + i, mask=i < V, other=-float("inf"))
    row_partials_ptr = partials_ptr + row * (max_steps + 1) * SLICES * 3
    if t == 0:
        store_sums(row_partials_ptr + part * 3, z)
        tl.store(finished_ptr + row, _UNFINISHED)
        return
    # Another program of this launch may write t - 1 meanwhile, which changes nothing.
    finished = tl.load(finished_ptr + row)
    n = tl.load(n_ptr + row)
    if ((finished >= 0) & (finished < t - 1)) | (t > n):
        return
    top, log_total, entropy = combine(row_partials_ptr, SLICES, PADDED)
    if t > 1:
        at = row_partials_ptr + (t - 1) * SLICES * 3
        highest, log_total, entropy = combine(at, SLICES, PADDED)
        log_total += highest
    kl = tl.load(kl_ptr + row)
    scalars_ptr += row * max_steps * 4
    first = tl.load(scalars_ptr, mask=t > 1, other=log_total)
    start = tl.maximum(z - top, NOTHING)
    p0 = tl.exp2(start * LOG2_E - first * LOG2_E)
    moved, m, v = replay(start, p0, t - 1, scalars_ptr, kl)
    if not (entropy >= tl.load(threshold_ptr + row)):
        if t > 1:
            tl.store(z_ptr + i, z + moved, mask=i < V)
        tl.store(finished_ptr + row, t - 1)
        return
    step_size, eps = factors(tl.load(rate_ptr + row), bias1, bias2)
    if part == 0:
        store_scalars(scalars_ptr, t - 1, log_total, entropy, step_size, eps)
    moved, m, v = update(start, moved, m, v, p0, log_total, entropy, step_size, eps, kl)
    store_sums(row_partials_ptr + (t * SLICES + part) * 3, start + moved)
    if t == n:
        tl.store(z_ptr + i, z + moved, mask=i < V)


@triton.jit(do_not_specialize=["max_steps"])
def _report_kernel(
    partials_ptr,
    finished_ptr,
    n_ptr,
    before_ptr,
    after_ptr,
    steps_ptr,
    temperature_ptr,
    max_steps,
    SLICES: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    partials_ptr += row * (max_steps + 1) * SLICES * 3
    finished = tl.load(finished_ptr + row)
    steps = tl.where(finished >= 0, finished, tl.load(n_ptr + row).to(tl.int32))
    _, _, entropy = combine(partials_ptr, SLICES, PADDED)
    tl.store(before_ptr + row, entropy)
    _, _, entropy = combine(partials_ptr + steps * SLICES * 3, SLICES, PADDED)
    tl.store(after_ptr + row, entropy)
    tl.store(steps_ptr + row, steps.to(tl.float32))
    tl.store(temperature_ptr + row, 1.0)


def minimize_rows_exactly_(
    logits: Tensor,
    rows: Tensor,
    params: RowParams,
    stats: RowFigures,
    max_grad_steps: int,
) -> None:
    """Lower the entropy of the chosen rows in place by EM-INF, whatever their method.

    Allocates its buffers. Arguments are as in `minimize.minimize_entropy_`.
    """
    num_rows, vocab_size = rows.numel(), logits.shape[1]
    if num_rows == 0:
        return
    slices = triton.cdiv(vocab_size, _SLICE.value)
    padded = triton.next_power_of_2(slices)

    def floats(*shape: int) -> Tensor:
        return torch.empty(num_rows, *shape, device=logits.device)

    partials = floats(max_grad_steps + 1, slices, 3)
    scalars = floats(max(1, max_grad_steps), 4)
    finished = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    n, rate, threshold, kl = (
        column.contiguous()
        for column in (
            params.n_grad_steps,
            params.learning_rate,
            params.threshold,
            params.kl_weight,
        )
    )
    for t in range(max_grad_steps + 1):
        _step_kernel[(num_rows, slices)](
            logits,
            logits.stride(0),
            rows,
            partials,
            scalars,
            finished,
            n,
            rate,
            threshold,
            kl,
            1 - BETA1**t,
            1 - BETA2**t,
            t,
            max_grad_steps,
            vocab_size,
            slices,
            padded,
        )
    _report_kernel[(num_rows,)](
        partials,
        finished,
        n,
        *stats.table.unbind(),
        max_grad_steps,
        slices,
        padded,
    )
