"""What the GPU's kernels compute with: statistics of a slice, Adam's step, its replay.

Exponentials are powers of two and 1 / x is a reciprocal square root of x * x: single
instructions on a GPU, where `exp` and `/` bring code for ranges that cannot be.

Source: arXiv 2505.15134, section 4; Adam as in Kingma and Ba.
"""

from __future__ import annotations

import triton
import triton.language as tl

from em_inf.logits_processors import reference

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
NOTHING: tl.constexpr = tl.constexpr(-1e4)  # A logit so low that it has no probability.
SMALLEST_EXP2: tl.constexpr = tl.constexpr(-200.0)  # 0 in float32, unlike its product.
BETA1: tl.constexpr = tl.constexpr(reference.BETA1)
BETA2: tl.constexpr = tl.constexpr(reference.BETA2)
_EPSILON: tl.constexpr = tl.constexpr(reference.EPSILON)


@triton.jit
def store_sums(partials_ptr, z):
    """Maximum, sum of exp(z - maximum) and of that times log2 of itself, of a slice.

    All NaN where one is NaN or +inf; (-inf, 0, 0) where nothing is finite.
    """
    top = tl.max(z, axis=0)
    base = tl.where(top == -float("inf"), 0.0, top)
    t = (z - base) * LOG2_E
    t = tl.maximum(t, SMALLEST_EXP2, propagate_nan=tl.PropagateNan.ALL)
    p = tl.exp2(t)
    tl.store(partials_ptr, top)
    tl.store(partials_ptr + 1, tl.sum(p, axis=0))
    tl.store(partials_ptr + 2, tl.sum(p * t, axis=0))


@triton.jit
def combine(partials_ptr, SLICES: tl.constexpr, PADDED: tl.constexpr):
    """Maximum M of a row, log of the sum of exp(z - M), and the entropy in nats.

    The entropy is NaN where the row holds NaN or +inf, or nothing finite. All threads get
    the same bits, so that they can branch on them.
    """
    i = tl.arange(0, PADDED)
    here = i < SLICES
    tops = tl.load(partials_ptr + i * 3, mask=here, other=-float("inf"))
    totals = tl.load(partials_ptr + i * 3 + 1, mask=here, other=0.0)
    weighted = tl.load(partials_ptr + i * 3 + 2, mask=here, other=0.0)
    top = tl.max(tops, axis=0)
    t = tl.maximum((tops - top) * LOG2_E, SMALLEST_EXP2)
    scale = tl.exp2(t)
    # Without the selections the compiler fuses each product into the first sum of a
    # shuffle: every lane then adds its own, unrounded, and two halves of a warp differ.
    some = totals != 0.0
    total = tl.sum(tl.where(some, totals * scale, 0.0), axis=0)
    moment = tl.where(some, (weighted + totals * t) * scale, 0.0)
    mean = tl.sum(moment, axis=0) / total * LN_2
    return top, tl.log(total), tl.log(total) - mean


@triton.jit
def update(start, moved, m, v, p0, log_total, entropy, step_size, eps, kl):
    """One Adam step of some tokens.

    Args:
        start: first logits, less the row's maximum, all finite.
        moved: how far each has moved so far.
        m: Adam's first moment over 1 - beta1.
        v: Adam's second moment over 1 - beta2.
        p0: first probabilities.
        log_total: log of the sum of exp over the row before this step.
        entropy: of the row before this step, nats.
        step_size: learning rate, with all of Adam's constant factors in it.
        eps: Adam's epsilon over the factors of the second moment.
        kl: weight of KL(p0 || p).
    """
    t = (start + moved) * LOG2_E - log_total * LOG2_E
    p = tl.exp2(t)
    g = kl * (p - p0) - p * (t * LN_2 + entropy)
    m = m * BETA1 + g
    v = v * BETA2 + g * g
    below = tl.sqrt(v) + eps
    # 1 / below: a division would bring code for ranges that cannot be.
    moved = moved - step_size * (m * tl.rsqrt(below * below))
    return moved, m, v


@triton.jit
def replay(start, p0, steps, scalars_ptr, kl):
    """How far some tokens have moved after `steps` steps, and Adam's moments then."""
    moved = tl.zeros_like(start)
    m = tl.zeros_like(start)
    v = tl.zeros_like(start)
    for i in range(steps):
        log_total = tl.load(scalars_ptr + i * 4)
        entropy = tl.load(scalars_ptr + i * 4 + 1)
        step_size = tl.load(scalars_ptr + i * 4 + 2)
        eps = tl.load(scalars_ptr + i * 4 + 3)
        moved, m, v = update(
            start, moved, m, v, p0, log_total, entropy, step_size, eps, kl
        )
    return moved, m, v


@triton.jit
def after(start, steps, scalars_ptr, kl):
    """How far some tokens move in `steps` steps, by the row's scalars of each step."""
    p0 = tl.exp2(start * LOG2_E - tl.load(scalars_ptr) * LOG2_E)
    moved, _, _ = replay(start, p0, steps, scalars_ptr, kl)
    return moved


@triton.jit
def factors(rate, bias1, bias2):
    """Step size and epsilon of a step, for `update`; biases are 1 - beta ** step."""
    grown = tl.sqrt(bias2 / (1.0 - BETA2))
    return rate * (1.0 - BETA1) / bias1 * grown, grown * _EPSILON


@triton.jit
def store_scalars(scalars_ptr, step, log_total, entropy, step_size, eps):
    """Keep what `after` wants of the step from `step` to `step` + 1."""
    tl.store(scalars_ptr + step * 4, log_total)
    tl.store(scalars_ptr + step * 4 + 1, entropy)
    tl.store(scalars_ptr + step * 4 + 2, step_size)
    tl.store(scalars_ptr + step * 4 + 3, eps)
