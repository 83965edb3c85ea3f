"""Both methods for GPUs: four Triton launches for any number of rows and of steps.

Each row is cut into slices of 8192 logits, a fixed cut, so that a row's sums, and with
them its result, are the same whatever runs beside it and on every rank.

1. `_statistics_kernel`, a program a slice: maximum, sum of exponentials, entropy.
2. `_collect_kernel`, a program a slice: gathers the likeliest tokens (the head) and the
   moments of the rest (the tail). Rows below their threshold leave at once.
3. `_descend_kernel`, a program a row: all steps on the head and on six weighted points
   that stand for the tail; or the search for the temperature. Leaves a plan for step 4.
4. `_map_kernel`, a program a slice: the only one that writes logits.

What makes this possible is told in `kernels/cpu.py`: a token's end depends on its first
log-probability alone, given two scalars a step. Nothing here waits for the device or
depends on what it holds, so the launches can be captured in a CUDA graph.

Source: arXiv 2505.15134, section 4 and Algorithm 1.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from logits_processors import reference
from logits_processors.kernels.gpu_math import (
    BETA1,
    BETA2,
    LN_2,
    LOG2_E,
    NOTHING,
    SMALLEST_EXP2,
    after,
    combine,
    factors,
    store_scalars,
    store_sums,
    update,
)
from logits_processors.reference import RowFigures, RowParams

_LOG_MIN_TEMPERATURE: tl.constexpr = tl.constexpr(math.log(reference.MIN_TEMPERATURE))
_TEMPERATURE_ITERATIONS: tl.constexpr = tl.constexpr(reference.TEMPERATURE_ITERATIONS)
_TOLERANCE: tl.constexpr = tl.constexpr(reference.TARGET_TOLERANCE)
_LARGEST: tl.constexpr = tl.constexpr(3.4e38)  # Of float32, about.

_SLICE: tl.constexpr = tl.constexpr(8192)
_SUBSLICE: tl.constexpr = tl.constexpr(2048)  # Where a token's state is in registers.
_COLLECTED: tl.constexpr = tl.constexpr(512)  # Tokens looked at side by side.
_LANES: tl.constexpr = tl.constexpr(1024)  # Tokens that one program steps side by side.
# Tokens of a flat row, or of a large head, that one program looks at side by side. Under
# the interpreter an operation costs about the same for any number.
_TILE: tl.constexpr = tl.constexpr(32_768 if triton.knobs.runtime.interpret else 1024)
_NODES: tl.constexpr = tl.constexpr(8)  # Lanes of which 6 stand for the tail.
_CAPACITY: tl.constexpr = tl.constexpr(1024)  # Head tokens that a slice can hand on.
_KNOTS: tl.constexpr = tl.constexpr(1024)  # Of the table that maps the tail.
_TAIL_DEPTH: tl.constexpr = tl.constexpr(25.0)  # Nats below the head, of the table.
_SCALE: tl.constexpr = tl.constexpr(40.0)  # Tail weights are carried times 2**40.
_MAGIC: tl.constexpr = tl.constexpr(8388608.0)  # 2**23: adding it rounds to an integer.

_INACTIVE: tl.constexpr = tl.constexpr(-1)  # In the place of a count of head tokens.

# What `_map_kernel` is to do with a row.
_LEAVE: tl.constexpr = tl.constexpr(0.0)
_LOOK_UP: tl.constexpr = tl.constexpr(1.0)  # Head from the lanes, tail by the table.
_STEP: tl.constexpr = tl.constexpr(2.0)  # Every token by the row's scalars.
_DIVIDE: tl.constexpr = tl.constexpr(3.0)

_WARPS = {"statistics": 4, "collect": 4, "descend": 8, "map": 8}
_FUSED = {"enable_fp_fusion": True}  # What Triton does by itself depends on its version.
_MIN_GROUP = 16


@triton.jit
def _is_active(entropy, adaptive, n, threshold, ratio):
    """Whether a row is to be changed; False where its entropy is NaN."""
    cool = (entropy > threshold) & (tl.maximum(ratio * entropy, threshold) < entropy)
    descend = (entropy >= threshold) & (n >= 1.0)
    return tl.where(adaptive > 0.0, cool, descend)


@triton.jit
def _edge(log_total, entropy, V: tl.constexpr):
    """The lowest logit of the head, less the row's maximum."""
    if V <= _LANES - _NODES:
        edge = log_total + 0.5 * NOTHING  # A short row is all head.
    else:
        edge = log_total - tl.maximum(11.5, entropy + 6.0)
    return edge


# Kernels ------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["first"], do_not_specialize_on_alignment=["rows_ptr"])
def _statistics_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    first,
    partials_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride + part * _SLICE
    partials_ptr += (row * SLICES + part) * 3
    i = tl.arange(0, _SLICE)
    # The first condition is known when compiling and leaves the rest out.
    if SLICES * _SLICE == V:  # noqa: SIM114
        store_sums(partials_ptr, tl.load(z_ptr + i))
    elif part < SLICES - 1:
        store_sums(partials_ptr, tl.load(z_ptr + i))
    else:
        here = i < V - part * _SLICE
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
def _collect_kernel(
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
    row, part = tl.program_id(0), tl.program_id(1)
    top, log_total, entropy = combine(partials_ptr + row * SLICES * 3, SLICES, PADDED)
    at = (first + row) * params_stride
    adaptive, n = tl.load(adaptive_ptr + at), tl.load(n_ptr + at)
    threshold, ratio = tl.load(threshold_ptr + at), tl.load(ratio_ptr + at)
    if not _is_active(entropy, adaptive, n, threshold, ratio):
        tl.store(counts_ptr + row * SLICES + part, _INACTIVE)
        return
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride
    z_ptr += part * _SLICE
    room = V - part * _SLICE
    edge = _edge(log_total, entropy, V)
    lift = _SCALE - log_total * LOG2_E

    lane = tl.arange(0, _COLLECTED)
    heads = tl.zeros([_COLLECTED], tl.int32)  # Bit k: whether the lane's kth is one.
    count = tl.zeros([_COLLECTED], tl.int32)
    # The tail in three segments, 2, 3 and more nats deep: sums of p * y**j.
    a0 = tl.zeros([_COLLECTED], tl.float32)
    a1 = tl.zeros([_COLLECTED], tl.float32)
    a2 = tl.zeros([_COLLECTED], tl.float32)
    a3 = tl.zeros([_COLLECTED], tl.float32)
    b0 = tl.zeros([_COLLECTED], tl.float32)
    b1 = tl.zeros([_COLLECTED], tl.float32)
    b2 = tl.zeros([_COLLECTED], tl.float32)
    b3 = tl.zeros([_COLLECTED], tl.float32)
    c0 = tl.zeros([_COLLECTED], tl.float32)
    c1 = tl.zeros([_COLLECTED], tl.float32)
    c2 = tl.zeros([_COLLECTED], tl.float32)
    c3 = tl.zeros([_COLLECTED], tl.float32)
    for k in range(_SLICE // _COLLECTED):
        i = k * _COLLECTED + lane
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
    head_ptr += (row * SLICES + part) * _CAPACITY
    where_ptr += (row * SLICES + part) * _CAPACITY
    for _ in range(tl.max(count, axis=0)):
        lowest = heads & -heads
        # The exponent of a power of two is the place of its bit.
        turn = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        i = turn * _COLLECTED + lane
        kept = (heads != 0) & (place < _CAPACITY)
        x = tl.load(z_ptr + i, mask=kept, other=0.0) - top
        tl.store(head_ptr + place, x, mask=kept)
        tl.store(where_ptr + place, part * _SLICE + i, mask=kept)
        heads ^= lowest
        place += 1


@triton.jit
def _write_nodes(
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
    far_log = tl.minimum((log_total - far_x) * LOG2_E - _SCALE, 126.0)
    near_log = tl.minimum((log_total - near_x) * LOG2_E - _SCALE, 126.0)
    tl.store(nodes_ptr + segment, far_x)
    tl.store(nodes_ptr + 4 + segment, near_x)
    far_weight = tl.where(some, far_mass.to(tl.float32) * tl.exp2(far_log), 0.0)
    near_weight = tl.where(two, near_mass.to(tl.float32) * tl.exp2(near_log), 0.0)
    tl.store(nodes_ptr + 8 + segment, far_weight)
    tl.store(nodes_ptr + 12 + segment, near_weight)


@triton.jit
def _load_tile(
    tile,
    is_flat,
    z_ptr,
    top,
    head_ptr,
    counts_ptr,
    nodes_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Logits of some tokens, less the row's maximum, and the weights of their lanes.

    Of a flat row, those of its tokens; of any other, a slice's head, or after the last
    slice the points that stand for the tail. Other lanes have no probability.
    """
    lane = tl.arange(0, _TILE)
    weight = tl.full([_TILE], 1.0, tl.float32)
    if is_flat:
        i = tile * _TILE + lane
        x = tl.load(z_ptr + i, mask=i < V, other=-float("inf")) - top
    elif tile < SLICES:
        is_head = lane < tl.load(counts_ptr + tile)
        x = tl.load(head_ptr + tile * _CAPACITY + lane, mask=is_head, other=NOTHING)
    else:
        x = tl.load(nodes_ptr + lane, mask=lane < _NODES, other=NOTHING)
        weight = tl.load(nodes_ptr + _NODES + lane, mask=lane < _NODES, other=0.0)
    return tl.maximum(x, NOTHING), weight


@triton.jit(
    do_not_specialize=["first", "params_stride", "max_steps"],
    do_not_specialize_on_alignment=[
        "rows_ptr",
        "adaptive_ptr",
        "n_ptr",
        "rate_ptr",
        "threshold_ptr",
        "kl_ptr",
        "ratio_ptr",
        "before_ptr",
        "after_ptr",
        "steps_ptr",
        "temperature_ptr",
    ],
)
def _descend_kernel(
    logits_ptr,
    row_stride,
    rows_ptr,
    first,
    partials_ptr,
    adaptive_ptr,
    n_ptr,
    rate_ptr,
    threshold_ptr,
    kl_ptr,
    ratio_ptr,
    params_stride,
    head_ptr,
    counts_ptr,
    moments_ptr,
    nodes_ptr,
    scalars_ptr,
    max_steps,
    table_ptr,
    plan_ptr,
    before_ptr,
    after_ptr,
    steps_ptr,
    temperature_ptr,
    V: tl.constexpr,
    SLICES: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    top, log_total, entropy = combine(partials_ptr + row * SLICES * 3, SLICES, PADDED)
    tl.store(before_ptr + first + row, entropy)
    tl.store(after_ptr + first + row, entropy)
    tl.store(steps_ptr + first + row, 0.0)
    tl.store(temperature_ptr + first + row, 1.0)
    plan_ptr += row * 4
    tl.store(plan_ptr, _LEAVE)
    at = (first + row) * params_stride
    adaptive, n = tl.load(adaptive_ptr + at), tl.load(n_ptr + at)
    threshold, ratio = tl.load(threshold_ptr + at), tl.load(ratio_ptr + at)
    counts_ptr += row * SLICES
    if tl.load(counts_ptr) == _INACTIVE:
        return
    edge = _edge(log_total, entropy, V)
    tl.store(plan_ptr + 1, top)
    tl.store(plan_ptr + 2, edge)

    # The slices' head tokens side by side, one a lane, if there are enough lanes;
    # otherwise in turns, tile by tile.
    lane = tl.arange(0, _LANES)
    place = tl.zeros([_LANES], tl.int32)
    total, most = 0, 0
    for part in tl.static_range(SLICES):
        count = tl.load(counts_ptr + part)
        place = tl.where(lane >= total, part * _CAPACITY + lane - total, place)
        total += count
        most = tl.maximum(most, count)
    is_flat = most > _CAPACITY
    in_lanes = (total <= _LANES - _NODES) & (is_flat == 0)
    tiles = tl.where(is_flat, (V + _TILE - 1) // _TILE, SLICES + 1)
    head_ptr += row * SLICES * _CAPACITY
    nodes_ptr += row * 2 * _NODES
    moments_ptr += row * SLICES * 12
    _write_nodes(nodes_ptr, moments_ptr, edge, log_total, SLICES, PADDED)
    tl.debug_barrier()
    node = lane - (_LANES - _NODES)
    is_head = lane < tl.where(in_lanes, total, 0)
    x = tl.load(head_ptr + place, mask=is_head, other=NOTHING)
    x = tl.where(node >= 0, tl.load(nodes_ptr + node, mask=node >= 0, other=0.0), x)
    weight = tl.load(nodes_ptr + _NODES + node, mask=node >= 0, other=1.0)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride

    if adaptive > 0.0:
        target = tl.maximum(ratio * entropy, threshold)
        low = tl.full([], _LOG_MIN_TEMPERATURE, tl.float32)
        high = tl.full([], 0.0, tl.float32)
        log_t = tl.full([], 0.0, tl.float32)
        rounds = tl.full([], 0, tl.int32)
        searching = rounds == 0
        while searching:
            scale = tl.exp(-log_t) * LOG2_E
            if in_lanes:
                t = x * scale
                q = weight * tl.exp2(t)
                s, s1, s2 = tl.sum(q, 0), tl.sum(q * t, 0), tl.sum(q * t * t, 0)
            else:
                a0 = tl.zeros([_TILE], tl.float32)
                a1 = tl.zeros([_TILE], tl.float32)
                a2 = tl.zeros([_TILE], tl.float32)
                for tile in range(tiles):
                    y, w = _load_tile(
                        tile, is_flat, z_ptr, top, head_ptr, counts_ptr, nodes_ptr,
                        V, SLICES,
                    )  # fmt: skip
                    t = y * scale
                    q = w * tl.exp2(t)
                    a0 += q
                    a1 += q * t
                    a2 += q * t * t
                s, s1, s2 = tl.sum(a0, 0), tl.sum(a1, 0), tl.sum(a2, 0)
            mean = s1 / s * LN_2
            entropy = tl.log(s) - mean
            reached = (entropy <= target) & (entropy >= target * (1.0 - _TOLERANCE))
            searching = (reached == 0) & (rounds < _TEMPERATURE_ITERATIONS)
            if searching:
                rounds += 1
                slope = s2 / s * (LN_2 * LN_2) - mean * mean
                high = tl.where(entropy > target, tl.minimum(high, log_t), high)
                low = tl.where(entropy > target, low, tl.maximum(low, log_t))
                newton = log_t + (target * (1.0 - _TOLERANCE / 2) - entropy) / slope
                inside = (newton > low) & (newton < high)
                log_t = tl.where(inside, newton, (low + high) / 2.0)
                log_t = tl.where(rounds < _TEMPERATURE_ITERATIONS, log_t, low)
        temperature = tl.exp(log_t)
        # Logits near float32's limit would overflow; such a row is left alone.
        if top <= _LARGEST * temperature:
            tl.store(after_ptr + first + row, entropy)
            tl.store(temperature_ptr + first + row, temperature)
            tl.store(plan_ptr, _DIVIDE)
            tl.store(plan_ptr + 3, temperature)
        return

    rate, kl = tl.load(rate_ptr + at), tl.load(kl_ptr + at)
    scalars_ptr += row * max_steps * 4
    table_ptr += row * _KNOTS * 2
    p0 = tl.exp2(x * LOG2_E - log_total * LOG2_E)
    moved = tl.zeros_like(x)
    m = tl.zeros_like(x)
    v = tl.zeros_like(x)
    bias1, bias2 = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
    steps = tl.full([], 0, tl.int32)
    going = steps == 0
    while going:
        # Without the cancellation of 1 - beta ** step.
        bias1 = bias1 * BETA1 + (1.0 - BETA1)
        bias2 = bias2 * BETA2 + (1.0 - BETA2)
        step_size, eps = factors(rate, bias1, bias2)
        store_scalars(scalars_ptr, steps, log_total, entropy, step_size, eps)
        steps += 1
        if in_lanes:
            moved, m, v = update(
                x, moved, m, v, p0, log_total, entropy, step_size, eps, kl
            )
            highest = tl.max(tl.where(weight > 0.0, x + moved, NOTHING * 2), axis=0)
            t = tl.minimum((x + moved - highest) * LOG2_E, 0.0)
            q = weight * tl.exp2(t)
            s, mean = tl.sum(q, axis=0), tl.sum(q * t, axis=0)
        else:
            tl.debug_barrier()
            tops = tl.full([_TILE], NOTHING * 2, tl.float32)
            a0 = tl.zeros([_TILE], tl.float32)
            a1 = tl.zeros([_TILE], tl.float32)
            for tile in range(tiles):
                y, w = _load_tile(
                    tile, is_flat, z_ptr, top, head_ptr, counts_ptr, nodes_ptr, V, SLICES
                )
                y += after(y, steps, scalars_ptr, kl)
                new = tl.where(w > 0.0, tl.maximum(tops, y), tops)
                drop = (tops - new) * LOG2_E
                a1 = (a1 + a0 * drop) * tl.exp2(drop)
                a0 = a0 * tl.exp2(drop)
                t = tl.where(w > 0.0, (y - new) * LOG2_E, 0.0)
                a0 += w * tl.exp2(t)
                a1 += w * tl.exp2(t) * t
                tops = new
            highest = tl.max(tops, axis=0)
            drop = (tops - highest) * LOG2_E
            s = tl.sum(a0 * tl.exp2(drop), axis=0)
            mean = tl.sum((a1 + a0 * drop) * tl.exp2(drop), axis=0)
        entropy = tl.log(s) - mean / s * LN_2
        log_total = tl.log(s) + highest
        going = (steps < n) & (entropy >= threshold)
    tl.store(after_ptr + first + row, entropy)
    tl.store(steps_ptr + first + row, steps.to(tl.float32))
    tl.store(plan_ptr, tl.where(is_flat, _STEP, _LOOK_UP))
    tl.store(plan_ptr + 3, steps.to(tl.float32))
    tl.debug_barrier()
    if in_lanes:
        tl.store(head_ptr + place, x + moved, mask=is_head)
    elif is_flat == 0:
        for tile in range(SLICES):
            is_head = lane < tl.load(counts_ptr + tile)
            head = head_ptr + tile * _CAPACITY + lane
            y = tl.load(head, mask=is_head, other=NOTHING)
            tl.store(head, y + after(y, steps, scalars_ptr, kl), mask=is_head)
    # Each knot's move, and the rise to the next one's.
    knot = edge - _TAIL_DEPTH + lane * (_TAIL_DEPTH / (_KNOTS - 1))
    value = after(knot, steps, scalars_ptr, kl)
    following = after(knot + _TAIL_DEPTH / (_KNOTS - 1), steps, scalars_ptr, kl)
    tl.store(table_ptr + lane * 2, value)
    tl.store(table_ptr + lane * 2 + 1, following - value)


@triton.jit
def _look_up(z, top, edge, table_ptr):
    """Logits of the tail after all steps, from the moves of the two knots around each."""
    per_knot = (_KNOTS - 1) / _TAIL_DEPTH
    at = (z - top) * per_knot + (_TAIL_DEPTH - edge) * per_knot
    at = tl.minimum(tl.maximum(at, 1.0), _KNOTS - 1.001)
    # Adding half less than 2**23 rounds down, and leaves the knot in the lowest bits.
    rounded = at + (_MAGIC - 0.5)
    knot = rounded.to(tl.int32, bitcast=True) & (_KNOTS - 1)
    both = tl.load(table_ptr.to(tl.pointer_type(tl.int64)) + knot)
    value = both.to(tl.int32).to(tl.float32, bitcast=True)
    rise = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return z + (value + (at - (rounded - _MAGIC)) * rise)


@triton.jit(
    do_not_specialize=["first", "params_stride", "max_steps"],
    do_not_specialize_on_alignment=["rows_ptr", "kl_ptr"],
)
def _map_kernel(
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
    row, part = tl.program_id(0), tl.program_id(1)
    plan = tl.load(plan_ptr + row * 4)
    if plan == _LEAVE:
        return
    top = tl.load(plan_ptr + row * 4 + 1)
    edge = tl.load(plan_ptr + row * 4 + 2)
    figure = tl.load(plan_ptr + row * 4 + 3)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride
    begin = part * _SLICE
    if plan == _LOOK_UP:
        i = begin + tl.arange(0, _SLICE)
        table_ptr += row * _KNOTS * 2
        if SLICES * _SLICE == V:  # noqa: SIM114  See above.
            tl.store(z_ptr + i, _look_up(tl.load(z_ptr + i), top, edge, table_ptr))
        elif part < SLICES - 1:
            tl.store(z_ptr + i, _look_up(tl.load(z_ptr + i), top, edge, table_ptr))
        else:
            z = tl.load(z_ptr + i, mask=i < V, other=0.0)
            tl.store(z_ptr + i, _look_up(z, top, edge, table_ptr), mask=i < V)
        # The head's tokens have been moved as if of the tail; they are overwritten here.
        tl.debug_barrier()
        lane = tl.arange(0, _CAPACITY)
        head = (row * SLICES + part) * _CAPACITY + lane
        is_head = lane < tl.load(counts_ptr + row * SLICES + part)
        y = tl.load(head_ptr + head, mask=is_head, other=0.0)
        where = tl.load(where_ptr + head, mask=is_head, other=0)
        tl.store(z_ptr + where, y + top, mask=is_head)
    else:
        kl = tl.load(kl_ptr + (first + row) * params_stride)
        for offset in range(0, _SLICE, _SUBSLICE):
            i = begin + offset + tl.arange(0, _SUBSLICE)
            z = tl.load(z_ptr + i, mask=i < V, other=-float("inf"))
            if plan == _DIVIDE:
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
        slices = triton.cdiv(vocab_size, _SLICE.value)
        self.vocab_size = vocab_size
        self.max_grad_steps = max(1, max_grad_steps)

        def floats(*shape: int) -> Tensor:
            return torch.empty(rows, *shape, device=device)

        self.partials = floats(slices, 3)
        self.counts = torch.empty(rows, slices, dtype=torch.int32, device=device)
        self.head = floats(slices, _CAPACITY.value)
        self.where = torch.empty_like(self.head, dtype=torch.int32)
        self.moments = floats(slices, 12)
        self.nodes = floats(16)
        self.scalars = floats(self.max_grad_steps, 4)
        self.table = floats(_KNOTS.value, 2)
        self.plan = floats(4)
        self.device = self.plan.device


def _rows_in_cache(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits fill half of the device's second-level cache, but some."""
    if device.type != "cuda":
        return _MIN_GROUP
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(_MIN_GROUP, cache // 2 // (4 * vocab_size))


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
    slices = triton.cdiv(vocab_size, _SLICE.value)
    padded = triton.next_power_of_2(slices)
    logits_of = (logits, logits.stride(0), rows)
    columns = dict(zip(params.COLUMNS, params.table.unbind(dim=1), strict=True))
    stride = params.table.stride(0)
    heads = (scratch.head, scratch.where, scratch.counts)
    steps = (scratch.scalars, scratch.max_grad_steps, scratch.table, scratch.plan)
    for first in range(0, rows.numel(), scratch.group_rows):
        group = min(scratch.group_rows, rows.numel() - first)
        _statistics_kernel[(group, slices)](
            *logits_of,
            first,
            scratch.partials,
            vocab_size,
            slices,
            num_warps=_WARPS["statistics"],
            **_FUSED,
        )
        _collect_kernel[(group, slices)](
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
            num_warps=_WARPS["collect"],
            **_FUSED,
        )
        _descend_kernel[(group,)](
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
            num_warps=_WARPS["descend"],
            **_FUSED,
        )
        _map_kernel[(group, slices)](
            *logits_of,
            first,
            columns["kl_weight"],
            stride,
            *heads,
            *steps,
            vocab_size,
            slices,
            num_warps=_WARPS["map"],
            **_FUSED,
        )
