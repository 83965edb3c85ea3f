"""The third launch: all steps of a row, or the search for its temperature."""

from __future__ import annotations

import triton
import triton.language as tl

from em_inf.logits_processors.kernels.gpu_collect import (
    write_nodes,
)
from em_inf.logits_processors.kernels.gpu_layout import (
    CAPACITY,
    DIVIDE,
    INACTIVE,
    KNOTS,
    LANES,
    LARGEST,
    LEAVE,
    LOG_MIN_TEMPERATURE,
    LOOK_UP,
    NODES,
    STEP,
    TAIL_DEPTH,
    TEMPERATURE_ITERATIONS,
    TILE,
    TOLERANCE,
    head_edge,
)
from em_inf.logits_processors.kernels.gpu_math import (
    BETA1,
    BETA2,
    LN_2,
    LOG2_E,
    NOTHING,
    after,
    combine,
    factors,
    store_scalars,
    update,
)


@triton.jit
def load_tile(
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
    lane = tl.arange(0, TILE)
    weight = tl.full([TILE], 1.0, tl.float32)
    if is_flat:
        i = tile * TILE + lane
        x = tl.load(z_ptr + i, mask=i < V, other=-float("inf")) - top
    elif tile < SLICES:
        is_head = lane < tl.load(counts_ptr + tile)
        x = tl.load(head_ptr + tile * CAPACITY + lane, mask=is_head, other=NOTHING)
    else:
        x = tl.load(nodes_ptr + lane, mask=lane < NODES, other=NOTHING)
        weight = tl.load(nodes_ptr + NODES + lane, mask=lane < NODES, other=0.0)
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
def descend_kernel(
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
    """All steps of one row, or the search for its temperature; leaves a plan."""
    row = tl.program_id(0)
    top, log_total, entropy = combine(partials_ptr + row * SLICES * 3, SLICES, PADDED)
    tl.store(before_ptr + first + row, entropy)
    tl.store(after_ptr + first + row, entropy)
    tl.store(steps_ptr + first + row, 0.0)
    tl.store(temperature_ptr + first + row, 1.0)
    plan_ptr += row * 4
    tl.store(plan_ptr, LEAVE)
    at = (first + row) * params_stride
    adaptive, n = tl.load(adaptive_ptr + at), tl.load(n_ptr + at)
    threshold, ratio = tl.load(threshold_ptr + at), tl.load(ratio_ptr + at)
    counts_ptr += row * SLICES
    if tl.load(counts_ptr) == INACTIVE:
        return
    edge = head_edge(log_total, entropy, V)
    tl.store(plan_ptr + 1, top)
    tl.store(plan_ptr + 2, edge)

    # The slices' head tokens side by side, one a lane, if there are enough lanes;
    # otherwise in turns, tile by tile.
    lane = tl.arange(0, LANES)
    place = tl.zeros([LANES], tl.int32)
    total, most = 0, 0
    for part in tl.static_range(SLICES):
        count = tl.load(counts_ptr + part)
        place = tl.where(lane >= total, part * CAPACITY + lane - total, place)
        total += count
        most = tl.maximum(most, count)
    is_flat = most > CAPACITY
    in_lanes = (total <= LANES - NODES) & (is_flat == 0)
    tiles = tl.where(is_flat, (V + TILE - 1) // TILE, SLICES + 1)
    head_ptr += row * SLICES * CAPACITY
    nodes_ptr += row * 2 * NODES
    moments_ptr += row * SLICES * 12
    write_nodes(nodes_ptr, moments_ptr, edge, log_total, SLICES, PADDED)
    tl.debug_barrier()
    node = lane - (LANES - NODES)
    is_head = lane < tl.where(in_lanes, total, 0)
    x = tl.load(head_ptr + place, mask=is_head, other=NOTHING)
    x = tl.where(node >= 0, tl.load(nodes_ptr + node, mask=node >= 0, other=0.0), x)
    weight = tl.load(nodes_ptr + NODES + node, mask=node >= 0, other=1.0)
    z_ptr = logits_ptr + tl.load(rows_ptr + first + row) * row_stride

    if adaptive > 0.0:
        target = tl.maximum(ratio * entropy, threshold)
        low = tl.full([], LOG_MIN_TEMPERATURE, tl.float32)
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
                a0 = tl.zeros([TILE], tl.float32)
                a1 = tl.zeros([TILE], tl.float32)
                a2 = tl.zeros([TILE], tl.float32)
                for tile in range(tiles):
                    y, w = load_tile(
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
            reached = (entropy <= target) & (entropy >= target * (1.0 - TOLERANCE))
            searching = (reached == 0) & (rounds < TEMPERATURE_ITERATIONS)
            if searching:
                rounds += 1
                slope = s2 / s * (LN_2 * LN_2) - mean * mean
                high = tl.where(entropy > target, tl.minimum(high, log_t), high)
                low = tl.where(entropy > target, low, tl.maximum(low, log_t))
                newton = log_t + (target * (1.0 - TOLERANCE / 2) - entropy) / slope
                inside = (newton > low) & (newton < high)
                log_t = tl.where(inside, newton, (low + high) / 2.0)
                log_t = tl.where(rounds < TEMPERATURE_ITERATIONS, log_t, low)
        temperature = tl.exp(log_t)
        # Logits near float32's limit would overflow; such a row is left alone.
        if top <= LARGEST * temperature:
            tl.store(after_ptr + first + row, entropy)
            tl.store(temperature_ptr + first + row, temperature)
            tl.store(plan_ptr, DIVIDE)
            tl.store(plan_ptr + 3, temperature)
        return

    rate, kl = tl.load(rate_ptr + at), tl.load(kl_ptr + at)
    scalars_ptr += row * max_steps * 4
    table_ptr += row * KNOTS * 2
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
            tops = tl.full([TILE], NOTHING * 2, tl.float32)
            a0 = tl.zeros([TILE], tl.float32)
            a1 = tl.zeros([TILE], tl.float32)
            for tile in range(tiles):
                y, w = load_tile(
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
    tl.store(plan_ptr, tl.where(is_flat, STEP, LOOK_UP))
    tl.store(plan_ptr + 3, steps.to(tl.float32))
    tl.debug_barrier()
    if in_lanes:
        tl.store(head_ptr + place, x + moved, mask=is_head)
    elif is_flat == 0:
        for tile in range(SLICES):
            is_head = lane < tl.load(counts_ptr + tile)
            head = head_ptr + tile * CAPACITY + lane
            y = tl.load(head, mask=is_head, other=NOTHING)
            tl.store(head, y + after(y, steps, scalars_ptr, kl), mask=is_head)
    # Each knot's move, and the rise to the next one's.
    knot = edge - TAIL_DEPTH + lane * (TAIL_DEPTH / (KNOTS - 1))
    value = after(knot, steps, scalars_ptr, kl)
    following = after(knot + TAIL_DEPTH / (KNOTS - 1), steps, scalars_ptr, kl)
    tl.store(table_ptr + lane * 2, value)
    tl.store(table_ptr + lane * 2 + 1, following - value)
