"""Both methods for GPUs: four Triton launches for any number of rows and of steps.

Each row is cut into slices of 8192 logits, a fixed cut, so that a row's sums, and with
them its result, are the same whatever runs beside it and on every rank.

1. `statistics_kernel`, a program a slice: maximum, sum of exponentials, entropy.
2. `collect_kernel`, a program a slice: gathers the likeliest tokens (the head) and the
   moments of the rest (the tail). Rows below their threshold leave at once.
3. `descend_kernel`, a program a row: all steps on the head and on six weighted points
   that stand for the tail; or the search for the temperature. Leaves a plan for step 4.
4. `map_kernel`, a program a slice: the only one that writes logits.

What makes this possible is told in `kernels/cpu.py`: a token's end depends on its first
log-probability alone, given two scalars a step. Nothing here waits for the device or
depends on what it holds, so the launches can be captured in a CUDA graph.

Source: arXiv 2505.15134, section 4 and Algorithm 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from em_inf.logits_processors.kernels.gpu_collect import (
    collect_kernel,
    statistics_kernel,
)
from em_inf.logits_processors.kernels.gpu_descend import (
    descend_kernel,
)
from em_inf.logits_processors.kernels.gpu_layout import (
    CAPACITY,
    DIVIDE,
    FUSED,
    KNOTS,
    LEAVE,
    LOOK_UP,
    MAGIC,
    MIN_GROUP,
    SLICE,
    SUBSLICE,
    TAIL_DEPTH,
    WARPS,
)
from em_inf.logits_processors.kernels.gpu_math import (
    NOTHING,
    after,
)
from em_inf.logits_processors.reference import RowFigures, RowParams


@triton.jit
def look_up(z, top, edge, table_ptr):
    """Logits of the tail after all steps, from the moves of the two knots around each."""
    per_knot = (KNOTS - 1) / TAIL_DEPTH
    at = (z - top) * per_knot + (TAIL_DEPTH - edge) * per_knot
    at = tl.minimum(tl.maximum(at, 1.0), KNOTS - 1.001)
    # Adding half less than 2**23 rounds down, and leaves the knot in the lowest bits.
    rounded = at + (MAGIC - 0.5)
    knot = rounded.to(tl.int32, bitcast=True) & (KNOTS - 1)
    both = tl.load(table_ptr.to(tl.pointer_type(tl.int64)) + knot)
    value = both.to(tl.int32).to(tl.float32, bitcast=True)
    rise = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return z + (value + (at - (rounded - MAGIC)) * rise)


@triton.jit(
    do_not_specialize=["first", "params_stride", "max_steps"],
    do_not_specialize_on_alignment=["rows_ptr", "kl_ptr"],
)
def map_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    first,
    kl_ptr,
    params_stride,
    head_ptr,
    where_ptr,
    counts_ptr,
    scalars_ptr,
    max_steps,
    table_ptr,
    plan_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Write one slice of a row's logits, as its plan says."""
    row, part = tl.program_id(0), tl.program_id(1)
    plan = tl.load(plan_ptr + row * 4)
    if plan == LEAVE:
        return
    top = tl.load(plan_ptr + row * 4 + 1)
    edge = tl.load(plan_ptr + row * 4 + 2)
    figure = tl.load(plan_ptr + row * 4 + 3)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride
    begin = part * SLICE
    if plan == LOOK_UP:
        i = begin + tl.arange(0, SLICE)
        table_ptr += row * KNOTS * 2
        if SLICES * SLICE == V:  # noqa: SIM114  See above.
            tl.store(z_ptr + i, look_up(tl.load(z_ptr + i), top, edge, table_ptr))
        elif part < SLICES - 1:
            tl.store(z_ptr + i, look_up(tl.load(z_ptr + i), top, edge, table_ptr))
        else:
            z = tl.load(z_ptr + i, mask=i < V, other=0.0)
            tl.store(z_ptr + i, look_up(z, top, edge, table_ptr), mask=i < V)
        # The head's tokens have been moved as if of the tail; they are overwritten here.
        tl.debug_barrier()
        lane = tl.arange(0, CAPACITY)
        head = (row * SLICES + part) * CAPACITY + lane
        is_head = lane < tl.load(counts_ptr + row * SLICES + part)
        y = tl.load(head_ptr + head, mask=is_head, other=0.0)
        where = tl.load(where_ptr + head, mask=is_head, other=0)
        tl.store(z_ptr + where, y + top, mask=is_head)
    else:
        kl = tl.load(kl_ptr + (first + row) * params_stride)
        for offset in range(0, SLICE, SUBSLICE):
            i = begin + offset + tl.arange(0, SUBSLICE)
            z = tl.load(z_ptr + i, mask=i < V, other=-float("inf"))
            if plan == DIVIDE:
                z = tl.div_rn(z, figure)
            else:
                start = tl.maximum(z - top, NOTHING)
                steps = figure.to(tl.int32)
                z += after(start, steps, scalars_ptr + row * max_steps * 4, kl)
            tl.store(z_ptr + i, z, mask=i < V)


# Launching ----------------------------------------------------------------------------


class Scratch:
    """Room for one group of rows between the launches, allocated once.

    A group's logits fit into half of the second-level cache, so that they are read from
    memory once. None of this grows with the number of rows or the vocabulary, but for
    a few bytes for each slice of 8192 tokens.

    Args:
        vocab_size: V, the widest row that will come.
        max_rows: the most rows that will come at a time.
        device: where the logits live.
        max_grad_steps: the largest step count that will come.
        group_rows: rows of a group; None takes what the cache of the device can hold.
    """

    def __init__(
        self,
        vocab_size: int,
        max_rows: int,
        device: torch.device,
        max_grad_steps: int = 64,
        group_rows: int | None = None,
    ) -> None:
        group = group_rows or _rows_in_cache(vocab_size, device)
        rows = self.group_rows = max(1, min(max_rows, group))
        slices = triton.cdiv(vocab_size, SLICE.value)
        self.vocab_size = vocab_size
        self.max_grad_steps = max(1, max_grad_steps)

        def floats(*shape: int) -> Tensor:
            return torch.empty(rows, *shape, device=device)

        self.partials = floats(slices, 3)
        self.counts = torch.empty(rows, slices, dtype=torch.int32, device=device)
        self.head = floats(slices, CAPACITY.value)
        self.where = torch.empty_like(self.head, dtype=torch.int32)
        self.moments = floats(slices, 12)
        self.nodes = floats(16)
        self.scalars = floats(self.max_grad_steps, 4)
        self.table = floats(KNOTS.value, 2)
        self.plan = floats(4)
        self.device = self.plan.device


def _rows_in_cache(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits fill half of the device's second-level cache, but some."""
    if device.type != "cuda":
        return MIN_GROUP
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(MIN_GROUP, cache // 2 // (4 * vocab_size))


def warm_up(scratch: Scratch) -> None:
    """Compile for this device what `minimize_rows_` will launch."""
    rows = torch.arange(2, device=scratch.device)
    params = RowParams(torch.zeros(2, len(RowParams.COLUMNS), device=scratch.device))
    stats = RowFigures.empty(2, scratch.device)
    # Also with rows as far apart as a vocabulary padded by vLLM has them.
    for width in {scratch.vocab_size, triton.cdiv(scratch.vocab_size, 64) * 64}:
        logits = torch.zeros(2, width, device=scratch.device)[:, : scratch.vocab_size]
        minimize_rows_(logits, rows, params, stats, scratch)


def minimize_rows_(
    logits: Tensor, rows: Tensor, params: RowParams, stats: RowFigures, scratch: Scratch
) -> None:
    """Lower the entropy of the chosen rows in place; waits for nothing.

    Arguments are as in `minimize.minimize_entropy_`, which checks them.
    """
    vocab_size = logits.shape[1]
    rows = rows.contiguous()
    slices = triton.cdiv(vocab_size, SLICE.value)
    padded = triton.next_power_of_2(slices)
    logits_of = (logits, logits.stride(0), rows)
    columns = dict(zip(params.COLUMNS, params.table.unbind(dim=1), strict=True))
    stride = params.table.stride(0)
    heads = (scratch.head, scratch.where, scratch.counts)
    steps = (scratch.scalars, scratch.max_grad_steps, scratch.table, scratch.plan)
    for first in range(0, rows.numel(), scratch.group_rows):
        group = min(scratch.group_rows, rows.numel() - first)
        statistics_kernel[(group, slices)](
            *logits_of,
            first,
            scratch.partials,
            vocab_size,
            slices,
            num_warps=WARPS["statistics"],
            **FUSED,
        )
        collect_kernel[(group, slices)](
            *logits_of,
            first,
            scratch.partials,
            columns["adaptive"],
            columns["n_grad_steps"],
            columns["threshold"],
            columns["target_ratio"],
            stride,
            *heads,
            scratch.moments,
            vocab_size,
            slices,
            padded,
            num_warps=WARPS["collect"],
            **FUSED,
        )
        descend_kernel[(group,)](
            *logits_of,
            first,
            scratch.partials,
            *columns.values(),
            stride,
            scratch.head,
            scratch.counts,
            scratch.moments,
            scratch.nodes,
            *steps,
            *stats.table.unbind(),
            vocab_size,
            slices,
            padded,
            num_warps=WARPS["descend"],
            **FUSED,
        )
        map_kernel[(group, slices)](
            *logits_of,
            first,
            columns["kl_weight"],
            stride,
            *heads,
            *steps,
            vocab_size,
            slices,
            num_warps=WARPS["map"],
            **FUSED,
        )
