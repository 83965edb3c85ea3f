"""The first two launches: statistics; likely tokens, and the moments of the rest."""

from __future__ import annotations

import triton
import triton.language as tl

from em_inf.logits_processors.kernels.gpu_layout import (
    CAPACITY,
    COLLECTED,
    INACTIVE,
    SCALE,
    SLICE,
    head_edge,
    is_active,
)
from em_inf.logits_processors.kernels.gpu_math import (
    LOG2_E,
    SMALLEST_EXP2,
    combine,
    store_sums,
)


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=["rows_ptr"])
def statistics_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    first,
    partials_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Maximum, sum of exponentials and entropy of one slice of a row."""
    row, part = tl.program_id(0), tl.program_id(1)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride + part * SLICE
    partials_ptr += (row * SLICES + part) * 3
    i = tl.arange(0, SLICE)
    # The first condition is known when compiling and leaves the rest out.
    if SLICES * SLICE == V:  # noqa: SIM114
        store_sums(partials_ptr, tl.load(z_ptr + i))
    elif part < SLICES - 1:
        store_sums(partials_ptr, tl.load(z_ptr + i))
    else:
        here = i < V - part * SLICE
        store_sums(partials_ptr, tl.load(z_ptr + i, mask=here, other=-float("inf")))


@triton.jit(
    do_not_specialize=["first", "params_stride"],
    do_not_specialize_on_alignment=[
        "rows_ptr",
        "adaptive_ptr",
        "n_ptr",
        "threshold_ptr",
        "ratio_ptr",
    ],
)
def collect_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    first,
    partials_ptr,
    adaptive_ptr,
    n_ptr,
    threshold_ptr,
    ratio_ptr,
    params_stride,
    head_ptr,
    where_ptr,
    counts_ptr,
    moments_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
    PADDED: tl.constexpr,
):
    """The likeliest tokens of one slice, and the moments of the rest."""
    row, part = tl.program_id(0), tl.program_id(1)
    top, log_total, entropy = combine(partials_ptr + row * SLICES * 3, SLICES, PADDED)
    at = (first + row) * params_stride
    adaptive, n = tl.load(adaptive_ptr + at), tl.load(n_ptr + at)
    threshold, ratio = tl.load(threshold_ptr + at), tl.load(ratio_ptr + at)
    if not is_active(entropy, adaptive, n, threshold, ratio):
        tl.store(counts_ptr + row * SLICES + part, INACTIVE)
        return
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride
    z_ptr += part * SLICE
    room = V - part * SLICE
    edge = head_edge(log_total, entropy, V)
    lift = SCALE - log_total * LOG2_E

    lane = tl.arange(0, COLLECTED)
    heads = tl.zeros([COLLECTED], tl.int32)  # Bit k: whether the lane's kth is one.
    count = tl.zeros([COLLECTED], tl.int32)
    # The tail in three segments, 2, 3 and more nats deep: sums of p * y**j.
    a0 = tl.zeros([COLLECTED], tl.float32)
    a1 = tl.zeros([COLLECTED], tl.float32)
    a2 = tl.zeros([COLLECTED], tl.float32)
    a3 = tl.zeros([COLLECTED], tl.float32)
    b0 = tl.zeros([COLLECTED], tl.float32)
    b1 = tl.zeros([COLLECTED], tl.float32)
    b2 = tl.zeros([COLLECTED], tl.float32)
    b3 = tl.zeros([COLLECTED], tl.float32)
    c0 = tl.zeros([COLLECTED], tl.float32)
    c1 = tl.zeros([COLLECTED], tl.float32)
    c2 = tl.zeros([COLLECTED], tl.float32)
    c3 = tl.zeros([COLLECTED], tl.float32)
    for k in range(SLICE // COLLECTED):
        i = k * COLLECTED + lane
        x = tl.load(z_ptr + i, mask=i < room, other=-float("inf")) - top
        is_head = x > edge
        heads = tl.where(is_head, heads | (1 << k), heads)
        count = tl.where(is_head, count + 1, count)
        t = tl.maximum(x * LOG2_E + lift, SMALLEST_EXP2)
        p = tl.where(is_head, 0.0, tl.exp2(t))
        y = tl.maximum(x - edge, -1e3) * (1.0 / 6.0) + 1.0
        a = tl.where(x > edge - 2.0, p, 0.0)
        c = tl.where(x <= edge - 5.0, p, 0.0)
        b = p - a - c
        y2 = y * y
        y3 = y2 * y
        a0 += a
        a1 += a * y
        a2 += a * y2
        a3 += a * y3
        b0 += b
        b1 += b * y
        b2 += b * y2
        b3 += b * y3
        c0 += c
        c1 += c * y
        c2 += c * y2
        c3 += c * y3
    moments_ptr += (row * SLICES + part) * 12
    tl.store(moments_ptr, tl.sum(a0, axis=0))
    tl.store(moments_ptr + 1, tl.sum(a1, axis=0))
    tl.store(moments_ptr + 2, tl.sum(a2, axis=0))
    tl.store(moments_ptr + 3, tl.sum(a3, axis=0))
    tl.store(moments_ptr + 4, tl.sum(b0, axis=0))
    tl.store(moments_ptr + 5, tl.sum(b1, axis=0))
    tl.store(moments_ptr + 6, tl.sum(b2, axis=0))
    tl.store(moments_ptr + 7, tl.sum(b3, axis=0))
    tl.store(moments_ptr + 8, tl.sum(c0, axis=0))
    tl.store(moments_ptr + 9, tl.sum(c1, axis=0))
    tl.store(moments_ptr + 10, tl.sum(c2, axis=0))
    tl.store(moments_ptr + 11, tl.sum(c3, axis=0))
    tl.store(counts_ptr + row * SLICES + part, tl.sum(count, axis=0))

    # Side by side in an order that is always the same: by lane, then by k.
    place = tl.cumsum(count, axis=0) - count
    head_ptr += (row * SLICES + part) * CAPACITY
    where_ptr += (row * SLICES + part) * CAPACITY
    for _ in range(tl.max(count, axis=0)):
        lowest = heads & -heads
        # The exponent of a power of two is the place of its bit.
        turn = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        i = turn * COLLECTED + lane
        kept = (heads != 0) & (place < CAPACITY)
        x = tl.load(z_ptr + i, mask=kept, other=0.0) - top
        tl.store(head_ptr + place, x, mask=kept)
        tl.store(where_ptr + place, part * SLICE + i, mask=kept)
        heads ^= lowest
        place += 1


@triton.jit
def write_nodes(
    nodes_ptr, moments_ptr, edge, log_total, SLICES: tl.constexpr, PADDED: tl.constexpr
):
    """Two points for each segment of the tail that weigh and bend like it.

    Writes 8 logits (less the row's maximum), then 8 weights: how many tokens of that
    logit each stands for. Gauss quadrature from moments (Golub and Welsch, 1969).
    """
    part, segment = tl.arange(0, PADDED), tl.arange(0, 4)
    here = (part[:, None] < SLICES) & (segment[None, :] < 3)
    at = moments_ptr + part[:, None] * 12 + segment[None, :] * 4
    mass = tl.sum(tl.load(at, mask=here, other=0.0), axis=0).to(tl.float64)
    first = tl.sum(tl.load(at + 1, mask=here, other=0.0), axis=0).to(tl.float64)
    second = tl.sum(tl.load(at + 2, mask=here, other=0.0), axis=0).to(tl.float64)
    third = tl.sum(tl.load(at + 3, mask=here, other=0.0), axis=0).to(tl.float64)
    some = mass > 1e-30
    safe = tl.where(some, mass, 1.0)
    mean = first / safe
    variance = second / safe - mean * mean
    two = some & (variance > 1e-6)
    spread2 = tl.where(two, variance, 1.0)
    bend = third / safe - 3.0 * mean * second / safe + 2.0 * mean * mean * mean
    skew = tl.where(two, bend / spread2, 0.0)
    spread = tl.sqrt(skew * skew + 4.0 * spread2)
    right, left = (skew + spread) / 2.0, (skew - spread) / 2.0
    far, near = tl.where(two, mean + right, mean), mean + left
    far_mass = tl.where(two, mass * -left / spread, mass)
    near_mass = tl.where(two, mass * right / spread, 0.0)
    far_x = tl.where(some, (far * 6.0 + (edge - 6.0)).to(tl.float32), edge)
    near_x = tl.where(two, (near * 6.0 + (edge - 6.0)).to(tl.float32), edge)
    # From mass to a count of tokens of that probability.
    far_log = tl.minimum((log_total - far_x) * LOG2_E - SCALE, 126.0)
    near_log = tl.minimum((log_total - near_x) * LOG2_E - SCALE, 126.0)
    tl.store(nodes_ptr + segment, far_x)
    tl.store(nodes_ptr + 4 + segment, near_x)
    far_weight = tl.where(some, far_mass.to(tl.float32) * tl.exp2(far_log), 0.0)
    near_weight = tl.where(two, near_mass.to(tl.float32) * tl.exp2(near_log), 0.0)
    tl.store(nodes_ptr + 8 + segment, far_weight)
    tl.store(nodes_ptr + 12 + segment, near_weight)
