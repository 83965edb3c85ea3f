"""How the kernels for GPUs cut rows up, and what they tell each other: see `gpu.py`."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from em_inf.logits_processors import reference
from em_inf.logits_processors.kernels.gpu_math import NOTHING

LOG_MIN_TEMPERATURE: tl.constexpr = tl.constexpr(math.log(reference.MIN_TEMPERATURE))
TEMPERATURE_ITERATIONS: tl.constexpr = tl.constexpr(reference.TEMPERATURE_ITERATIONS)
TOLERANCE: tl.constexpr = tl.constexpr(reference.TARGET_TOLERANCE)
LARGEST: tl.constexpr = tl.constexpr(3.4e38)  # Of float32, about.

SLICE: tl.constexpr = tl.constexpr(8192)
SUBSLICE: tl.constexpr = tl.constexpr(2048)  # Where a token's state is in registers.
COLLECTED: tl.constexpr = tl.constexpr(512)  # Tokens looked at side by side.
LANES: tl.constexpr = tl.constexpr(1024)  # Tokens that one program steps side by side.
# Tokens of a flat row, or of a large head, that one program looks at side by side. Under
# the interpreter an operation costs about the same for any number.
TILE: tl.constexpr = tl.constexpr(32_768 if triton.knobs.runtime.interpret else 1024)
NODES: tl.constexpr = tl.constexpr(8)  # Lanes of which 6 stand for the tail.
CAPACITY: tl.constexpr = tl.constexpr(1024)  # Head tokens that a slice can hand on.
KNOTS: tl.constexpr = tl.constexpr(1024)  # Of the table that maps the tail.
TAIL_DEPTH: tl.constexpr = tl.constexpr(25.0)  # Nats below the head, of the table.
SCALE: tl.constexpr = tl.constexpr(40.0)  # Tail weights are carried times 2**40.
MAGIC: tl.constexpr = tl.constexpr(8388608.0)  # 2**23: adding it rounds to an integer.

INACTIVE: tl.constexpr = tl.constexpr(-1)  # In the place of a count of head tokens.

# What `map_kernel` is to do with a row.
LEAVE: tl.constexpr = tl.constexpr(0.0)
LOOK_UP: tl.constexpr = tl.constexpr(1.0)  # Head from the lanes, tail by the table.
STEP: tl.constexpr = tl.constexpr(2.0)  # Every token by the row's scalars.
DIVIDE: tl.constexpr = tl.constexpr(3.0)

WARPS = {"statistics": 4, "collect": 4, "descend": 8, "map": 8}
FUSED = {"enable_fp_fusion": True}  # What Triton does by itself depends on its version.
MIN_GROUP = 16


@triton.jit
def is_active(entropy, adaptive, n, threshold, ratio):
    """Whether a row is to be changed; False where its entropy is NaN."""
    cool = (entropy > threshold) & (tl.maximum(ratio * entropy, threshold) < entropy)
    descend = (entropy >= threshold) & (n >= 1.0)
    return tl.where(adaptive > 0.0, cool, descend)


@triton.jit
def head_edge(log_total, entropy, V: tl.constexpr):
    """The lowest logit of the head, less the row's maximum."""
    if V <= LANES - NODES:
        edge = log_total + 0.5 * NOTHING  # A short row is all head.
    else:
        edge = log_total - tl.maximum(11.5, entropy + 6.0)
    return edge


# Kernels ------------------------------------------------------------------------------
