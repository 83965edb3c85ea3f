"""Statistics of a row on a CPU, and EM-INF on all tokens of a short or flat row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from em_inf.logits_processors.kernels.vector_math import (
    F,
    exp2,
    inline,
    jit,
    larger,
    largest,
    square_root,
)
from em_inf.logits_processors.reference import (
    BETA1,
    BETA2,
    EPSILON,
)

LOG2_E, LN_2 = F(1.4426950408889634), 0.6931471805599453
BLOCK = 4096  # Elements; 16 KB, so that a second look finds it in the first-level cache.
_HEADROOM = 40.0  # Nats above its base that a float32 sum of exponentials can take.


@inline
def _block_statistics(block: Any, base: Any) -> tuple[Any, Any, Any]:
    """Sum of exp(z - base), of exp(z - base) * (z - base) / ln 2, and the maximum.

    Of a masked token too little remains (2**-126) to count beside any other. NaN reaches
    the second sum.
    """
    highest, s, w = F(-np.inf), F(0), F(0)
    for i in range(block.size):
        highest = largest(block[i], highest)
        t = larger(F(-126), (block[i] - base) * LOG2_E)
        p = exp2(t)
        s += p
        w += p * t
    return s, w, highest


@jit
def statistics(z: Any) -> tuple[float, float, float]:
    """Maximum M of a row, log of the sum of exp(z - M), and the entropy; one read.

    All NaN where the row holds NaN or +inf, or nothing finite.
    """
    top, base, total, weighted = -np.inf, F(0), 0.0, 0.0
    for begin in range(0, z.size, BLOCK):
        block = z[begin : begin + BLOCK]
        s, w, highest = _block_statistics(block, base)
        if highest > base + F(_HEADROOM) or (top == -np.inf and highest > -np.inf):
            # The sums would overflow, or have no base yet: take this block's maximum.
            shift = np.float64(base) - np.float64(highest)
            grown = math.exp(min(shift, 0.0)) if top > -np.inf else 0.0
            weighted = (weighted + shift * total) * grown
            total *= grown
            base = highest
            s, w, _ = _block_statistics(block, base)
        top = max(top, np.float64(highest))
        total += s
        weighted += w * LN_2
    if top == -np.inf:
        total = np.nan
    if abs(weighted) < 1e-20 * total:
        weighted = 0.0  # What is left of masked tokens.
    log_total = math.log(total)
    return top, log_total + (np.float64(base) - top), log_total - weighted / total


@jit
def adam_step(
    start: Any,
    moved: Any,
    m: Any,
    v: Any,
    p0: Any,
    weight: Any,
    step: int,
    log_total: float,
    entropy: float,
    rate: float,
    kl: float,
) -> tuple[float, float, float]:
    """One Adam step on some tokens, and their part in the softmax after it.

    Args:
        start: first logits of the tokens, less the row's maximum.
        moved: how far each has moved so far.
        m: Adam's first moment of each.
        v: Adam's second moment of each.
        p0: first probability of each; written in step 1.
        weight: how many tokens each stands for.
        step: from 1 on.
        log_total: log of the sum of exp over the row before this step.
        entropy: the row's entropy before this step, in nats.
        rate: learning rate.
        kl: weight of KL(p0 || p).

    Returns:
        The highest logit after the step (less the row's maximum before the first), and
        the sums of weight * exp(x) and weight * exp(x) * x over the tokens, x being the
        logit less that highest one.
    """
    bias1, bias2 = 1 - BETA1**step, 1 - BETA2**step
    step_size, bias2 = F(rate / bias1), F(1 / bias2)
    b1, c1, b2, c2 = F(BETA1), F(1 - BETA1), F(BETA2), F(1 - BETA2)
    lse, h, pull, eps = F(log_total), F(entropy), F(kl), F(EPSILON)
    highest, s, w = F(-np.inf), F(0), F(0)
    if step == 1:
        for i in range(start.size):
            p0[i] = exp2(larger(F(-126), (start[i] - lse) * LOG2_E))
    for i in range(start.size):
        log_p = start[i] + moved[i] - lse
        p = exp2(larger(F(-126), log_p * LOG2_E))
        g = pull * (p - p0[i]) - p * (log_p + h)
        m1 = b1 * m[i] + c1 * g
        v1 = b2 * v[i] + c2 * g * g
        d = moved[i] - step_size * m1 / (square_root(v1 * bias2) + eps)
        m[i], v[i], moved[i] = m1, v1, d
        highest = largest(start[i] + d, highest)
    for i in range(start.size):
        x = larger(F(-126), (start[i] + moved[i] - highest) * LOG2_E)
        q = weight[i] * exp2(x)
        s += q
        w += q * x
    return highest, s, w * LN_2


@jit
def descend_dense(
    z: Any,
    top: float,
    log_total: float,
    entropy: float,
    n: int,
    rate: float,
    threshold: float,
    kl: float,
) -> tuple[int, float]:
    """EM-INF on every token of a row; returns steps taken and the last entropy."""
    start = z - F(top)
    for i in range(start.size):
        # Where -inf is taken for a finite depth at which nothing moves.
        start[i] = larger(F(-1e4), start[i])
    moved, m, v = np.zeros_like(z), np.zeros_like(z), np.zeros_like(z)
    p0, weight = np.empty_like(z), np.ones_like(z)
    steps = 0
    while steps < n and F(entropy) >= threshold:
        steps += 1
        highest, s, w = -1e9, 0.0, 0.0  # Below any logit here.
        for b in range(0, z.size, BLOCK):
            part = slice(b, b + BLOCK)
            part_highest, part_s, part_w = adam_step(
                start[part],
                moved[part],
                m[part],
                v[part],
                p0[part],
                weight[part],
                steps,
                log_total,
                entropy,
                rate,
                kl,
            )
            new = max(highest, np.float64(part_highest))
            drop, shrunk = highest - new, math.exp(highest - new)
            s, w = s * shrunk, (w + drop * s) * shrunk
            drop, shrunk = part_highest - new, math.exp(part_highest - new)
            s, w = s + part_s * shrunk, w + (part_w + drop * part_s) * shrunk
            highest = new
        entropy = math.log(s) - w / s
        log_total = math.log(s) + highest
    for i in range(z.size):
        z[i] += moved[i]
    return steps, entropy
