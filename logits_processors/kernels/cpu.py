"""Both methods for CPUs, row-parallel and in place, compiled by numba.

A row below its threshold costs one read. Any other costs three reads and one write,
whatever the number of steps, for two facts (see `_descend`). Where a token ends depends
on its first log-probability alone, given two scalars a step. And those scalars come, to
six digits, from the few hundred likeliest tokens and six weighted points that stand for
the rest. Rows too flat for that, and short ones, run densely.

Source: arXiv 2505.15134, section 4 and Algorithm 1; Gauss quadrature from moments as in
Golub and Welsch, Math. Comp. 23 (1969).
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np
import torch

if "numba" not in sys.modules:
    # When it is imported, numba counts the cores that the importing thread may use, and
    # later it cannot be told otherwise. vLLM binds each thread of a worker to one core.
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))

import numba
from numba import njit, prange
from torch import Tensor

from em_inf.logits_processors.kernels.cpu_dense import (
    BLOCK,
    LN_2,
    LOG2_E,
    adam_step,
    descend_dense,
    statistics,
)
from em_inf.logits_processors.kernels.vector_math import (
    FAST,
    F,
    exp2,
    first_half,
    floor,
    index_of,
    jit,
    larger,
    largest,
    second_half,
)
from em_inf.logits_processors.reference import (
    MIN_TEMPERATURE,
    TARGET_TOLERANCE,
    TEMPERATURE_ITERATIONS,
    RowFigures,
    RowParams,
)

_DENSE_BELOW = 8192  # Shorter rows run densely.
_LARGEST = 3.4e38  # Of float32, about.
_HEAD_BLOCK = 64
_HEAD_CAPACITY = 8192  # A row with a larger head is flat and runs densely.
_MAP_BLOCK = 512
_KNOTS = 1024  # Of the table that maps the tail.
_NODES = 6  # Two for each segment of the tail.
_TAIL_DEPTH = 25.0  # Nats below the head, where Adam's epsilon leaves nothing to move.
_SCALE = 40  # Tail weights are carried times 2**40, clear of float32's denormals.


@jit
def _add_nodes(
    moments: Any, nodes: Any, weights: Any, k: int, centre: float, scale: float
) -> int:
    """Two points that weigh and bend like a segment of the tail, or one, or none.

    Args:
        moments: sums of p * y**j, j from 0 to 3, where y = (x - centre) * scale.
        nodes: the points' x, written from k on.
        weights: how many tokens each stands for, written from k on.
        k: points so far.
        centre: see above.
        scale: see above.

    Returns:
        Points by now.
    """
    mass = moments[0]
    if not mass > 1e-30:
        return k
    mean = moments[1] / mass
    variance = moments[2] / mass - mean * mean
    if not variance > 1e-6:
        nodes[k], weights[k] = mean / scale + centre, mass
        return k + 1
    third = moments[3] / mass - 3 * mean * moments[2] / mass + 2 * mean**3
    skew = third / variance
    spread = math.sqrt(skew * skew + 4 * variance)
    right, left = (skew + spread) / 2, (skew - spread) / 2
    nodes[k], weights[k] = (mean + right) / scale + centre, mass * -left / spread
    nodes[k + 1], weights[k + 1] = (mean + left) / scale + centre, mass * right / spread
    return k + 2


@jit
def _descend(
    z: Any,
    top: float,
    log_total: float,
    entropy: float,
    n: int,
    rate: float,
    threshold: float,
    kl: float,
) -> tuple[int, float]:
    """EM-INF on the likeliest tokens, on points that stand for the rest, and on a table.

    The table gives how far a token of the tail moves by its first log-probability; its
    knots ride along with weight 0.

    Returns:
        Steps taken and the last entropy; -1 steps where the row is too flat.
    """
    depth = max(11.5, entropy + 6.0)
    edge = F(log_total - depth)  # Of the head, as z - top.
    room = _HEAD_CAPACITY + _NODES + _KNOTS + 1
    start, weight = np.empty(room, F), np.empty(room, F)
    where = np.empty(_HEAD_CAPACITY, np.int32)
    edge1, edge2 = F(edge - 2), F(edge - 5)
    centre, scale = F(edge - 6), F(1 / 6)
    lift = F(_SCALE - log_total * 1.4426950408889634)
    base = F(top)
    moments = np.zeros((3, 4))
    head = 0
    for begin in range(0, z.size, BLOCK):
        block = z[begin : begin + BLOCK]
        for first in range(0, block.size, _HEAD_BLOCK):
            small = block[first : first + _HEAD_BLOCK]
            highest = F(-np.inf)
            for i in range(small.size):
                highest = largest(small[i], highest)
            if highest - base > edge:
                if head + small.size > _HEAD_CAPACITY:
                    return -1, entropy
                for i in range(small.size):
                    x = small[i] - base
                    if x > edge:
                        start[head] = x
                        where[head] = begin + first + i
                        head += 1
        a0, a1, a2, a3 = F(0), F(0), F(0), F(0)
        b0, b1, b2, b3 = F(0), F(0), F(0), F(0)
        c0, c1, c2, c3 = F(0), F(0), F(0), F(0)
        for i in range(block.size):
            x = block[i] - base
            t = x * LOG2_E + lift
            p = exp2(larger(F(-126), t)) if x <= edge else F(0)
            y = (larger(F(-1e3), x) - centre) * scale
            c = p if x <= edge2 else F(0)
            a = F(0) if x <= edge1 else p
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
        for j, x in enumerate((a0, a1, a2, a3)):
            moments[0, j] += x
        for j, x in enumerate((b0, b1, b2, b3)):
            moments[1, j] += x
        for j, x in enumerate((c0, c1, c2, c3)):
            moments[2, j] += x

    nodes, node_weights = np.zeros(_NODES), np.zeros(_NODES)
    k = 0
    for segment in range(3):
        k = _add_nodes(moments[segment], nodes, node_weights, k, centre, scale)
    weight[:head] = F(1)
    for i in range(k):
        start[head + i] = nodes[i]
        # From mass to a count of tokens of that probability, as float32 rounds it.
        rounded = np.float64(start[head + i])
        weight[head + i] = node_weights[i] * 2.0**-_SCALE / math.exp(rounded - log_total)
    knots = head + k
    size = knots + _KNOTS + 1
    lowest = float(edge) - _TAIL_DEPTH
    spacing = _TAIL_DEPTH / _KNOTS
    for i in range(_KNOTS + 1):
        start[knots + i] = lowest + i * spacing
    weight[knots:size] = F(0)

    start, weight = start[:size], weight[:size]
    moved, m, v = np.zeros(size, F), np.zeros(size, F), np.zeros(size, F)
    p0 = np.empty(size, F)
    steps = 0
    while steps < n and F(entropy) >= threshold:
        steps += 1
        highest, s, w = adam_step(
            start, moved, m, v, p0, weight, steps, log_total, entropy, rate, kl
        )
        entropy = math.log(s) - w / s
        log_total = math.log(s) + highest

    # Each knot's move and the rise to the next one's, side by side.
    halves = np.empty(2 * _KNOTS, F)
    table = moved[knots:size]
    for i in range(_KNOTS):
        halves[2 * i] = table[i]
        halves[2 * i + 1] = table[i + 1] - table[i]
    pairs = halves.view(np.int64)
    per_knot, offset = F(1 / spacing), F(-lowest / spacing)
    last = F(_KNOTS) - F(1e-3)
    index, share = np.empty(_MAP_BLOCK, np.uint32), np.empty(_MAP_BLOCK, F)
    found = np.empty(_MAP_BLOCK, np.int64)
    for begin in range(0, z.size, _MAP_BLOCK):
        # Three loops, so that the first and the last vectorise.
        small = z[begin : begin + _MAP_BLOCK]
        for i in range(small.size):
            # Tokens of the head read the table's end here and are overwritten below.
            at = (small[i] - base) * per_knot + offset
            at = larger(F(0), at if at < last else last)
            index[i] = index_of(at)
            share[i] = at - floor(at)
        for i in range(small.size):
            found[i] = pairs[index[i]]
        for i in range(small.size):
            small[i] += first_half(found[i]) + share[i] * second_half(found[i])
    for i in range(head):
        z[where[i]] = start[i] + moved[i] + base
    return steps, entropy


@jit
def _cool(z: Any, top: float, entropy: float, target: float) -> tuple[float, float]:
    """Divide a row by the temperature at which its entropy is the target.

    As `reference._adaptive_temperature_`, one row.

    Returns:
        Temperature and entropy.
    """
    low, high, log_t, before = math.log(MIN_TEMPERATURE), 0.0, 0.0, entropy
    base = F(top)
    for _ in range(TEMPERATURE_ITERATIONS):
        scale = F(math.exp(-log_t)) * LOG2_E
        total, first, second = 0.0, 0.0, 0.0
        for begin in range(0, z.size, BLOCK):
            block = z[begin : begin + BLOCK]
            s, s1, s2 = F(0), F(0), F(0)
            for i in range(block.size):
                t = larger(F(-126), (block[i] - base) * scale)
                p = exp2(t)
                s += p
                s1 += p * t
                s2 += p * t * t
            total += s
            first += s1
            second += s2
        mean = first / total * LN_2
        entropy = math.log(total) - mean
        if target * (1 - TARGET_TOLERANCE) <= entropy <= target:
            break
        slope = second / total * LN_2 * LN_2 - mean * mean
        if entropy > target:
            high = min(high, log_t)
        else:
            low = max(low, log_t)
        newton = log_t + (target * (1 - TARGET_TOLERANCE / 2) - entropy) / slope
        log_t = newton if low < newton < high else (low + high) / 2
    else:
        log_t = low
    temperature = math.exp(log_t)
    if top / temperature > _LARGEST:
        return 1.0, before
    for i in range(z.size):
        z[i] /= F(temperature)
    _, _, entropy = statistics(z)
    return temperature, entropy


@jit
def _run_row(z: Any, params: Any, out: Any) -> None:
    """Both methods on one row. Places are those of `RowParams` and `RowFigures`."""
    adaptive, n, rate, threshold, kl, ratio = params
    top, log_total, entropy = statistics(z)
    out[0], out[1], out[2], out[3] = entropy, entropy, 0, 1
    if not F(entropy) >= threshold:
        return
    if adaptive > 0:
        target = max(ratio * entropy, threshold)
        if entropy > threshold and target < entropy:
            out[3], out[1] = _cool(z, top, entropy, target)
        return
    if n < 1:
        return
    steps = -1
    if z.size >= _DENSE_BELOW:
        steps, last = _descend(z, top, log_total, entropy, int(n), rate, threshold, kl)
    if steps < 0:
        steps, last = descend_dense(
            z, top, log_total, entropy, int(n), rate, threshold, kl
        )
    out[2], out[1] = steps, last


@njit(fastmath=FAST, error_model="numpy", cache=True, parallel=True)
def _run_rows(storage: Any, offsets: Any, vocab_size: int, params: Any, out: Any) -> None:
    for r in prange(offsets.size):
        begin = offsets[r]
        _run_row(storage[begin : begin + vocab_size], params[r], out[:, r])


def warm_up(vocab_size: int) -> int:
    """Compile for this machine, or load what was compiled before, and pick the threads.

    Args:
        vocab_size: V; decides which of the two forms will run.

    Returns:
        Threads that rows will be spread over: as many as torch has here, or as numba
        could start where it was imported earlier.
    """
    torch_threads = torch.get_num_threads()
    threads = min(torch_threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    # Starting numba's OpenMP threads sets the number that torch and vLLM's kernels share
    # with it to the cores that this thread may use: one, where vLLM has bound it.
    torch.set_num_threads(torch_threads)
    logits = torch.zeros(2, vocab_size)
    logits[:, 0] = 3.0
    rows = torch.arange(2)
    for adaptive in (0.0, 1.0):
        params = RowParams(torch.tensor([[adaptive, 1.0, 0.1, 0.0, 0.0, 0.5]] * 2))
        stats = RowFigures.empty(2, logits.device)
        minimize_rows_(logits.clone(), rows, params, stats)
    return threads


def minimize_rows_(
    logits: Tensor, rows: Tensor, params: RowParams, stats: RowFigures
) -> None:
    """Lower the entropy of the chosen rows in place, each on one thread.

    Arguments are as in `minimize.minimize_entropy_`, which checks them.
    """
    num_rows, vocab_size = logits.shape
    stride = logits.stride(0)
    if num_rows == 0 or rows.numel() == 0:
        return
    # One flat view, so that each row is a contiguous slice for the compiler.
    storage = logits.as_strided(((num_rows - 1) * stride + vocab_size,), (1,)).numpy()
    offsets = rows.numpy() * stride
    settings = params.table.contiguous().numpy()
    _run_rows(storage, offsets, vocab_size, settings, stats.table.numpy())
