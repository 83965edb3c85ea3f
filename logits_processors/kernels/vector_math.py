"""What numba lacks for loops over float32 that vectorise."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = np.float32

# Sums may be reordered and fused, so that loops vectorise; NaN and infinity stay what
# they are, so that a row that holds them is found out.
FAST = {"reassoc", "contract", "nsz"}
jit: Any = njit(fastmath=FAST, error_model="numpy", cache=True, nogil=True)
inline: Any = njit(fastmath=FAST, error_model="numpy", cache=True, inline="always")


@intrinsic
def larger(_: Any, a: Any, b: Any) -> Any:
    """The larger of two float32, b where either is NaN: one vector instruction."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        is_larger = builder.fcmp_ordered(">", args[0], args[1])
        return builder.select(is_larger, args[0], args[1])

    return types.float32(types.float32, types.float32), code


@intrinsic
def largest(_: Any, a: Any, b: Any) -> Any:
    """The larger of two float32, for reductions: any value where one is NaN.

    Only where NaN cannot matter does a loop over it vectorise.
    """

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        flags = ("nnan", "nsz")
        is_larger = builder.fcmp_ordered(">", args[0], args[1], flags=flags)
        return builder.select(is_larger, args[0], args[1], flags=flags)

    return types.float32(types.float32, types.float32), code


def _unary(name: str) -> Any:
    """An LLVM operation on one float32, which the compiler turns into one instruction."""

    @intrinsic
    def operation(_: Any, x: Any) -> Any:
        def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, kind, name
            )
            return builder.call(function, args)

        return types.float32(types.float32), code

    return operation


floor = _unary("llvm.floor.f32")
square_root = _unary("llvm.sqrt.f32")


_MAGIC = ir.Constant(ir.FloatType(), 1.5 * 2**23)
# Changes nothing in a sum with the above, and keeps numba from giving it other flags,
# under which the compiler could take the number out again.
_AS_WRITTEN = ("nsz",)


@intrinsic
def _round(_: Any, t: Any) -> Any:
    """A float32 below 2**22 rounded to a whole number."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        shifted = builder.fadd(args[0], _MAGIC, flags=_AS_WRITTEN)
        return builder.fsub(shifted, _MAGIC, flags=_AS_WRITTEN)

    return types.float32(types.float32), code


@intrinsic
def _times_power_of_two(_: Any, p: Any, t: Any) -> Any:
    """`p` times 2 to the power of `t` rounded, added to the exponent's bits."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        shifted = builder.fadd(args[1], _MAGIC, flags=_AS_WRITTEN)
        # Rounding has left the whole number in the lowest bits.
        exponent = builder.shl(builder.bitcast(shifted, word), ir.Constant(word, 23))
        bits = builder.add(builder.bitcast(args[0], word), exponent)
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32, types.float32), code


@intrinsic
def index_of(_: Any, x: Any) -> Any:
    """A float32 that is not negative, cut to an index."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.fptosi(args[0], ir.IntType(32))

    return types.uint32(types.float32), code


def _half(shift: int) -> Any:
    """A float32 out of a word of 64 bits that holds two."""

    @intrinsic
    def half(_: Any, pair: Any) -> Any:
        def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            word = builder.lshr(args[0], ir.Constant(ir.IntType(64), shift))
            return builder.bitcast(builder.trunc(word, ir.IntType(32)), ir.FloatType())

        return types.float32(types.int64), code

    return half


first_half, second_half = _half(0), _half(32)
"""The two float32 of a pair that was loaded as one int64: one gather in place of two."""


@inline
def exp2(t: Any) -> Any:
    """2**t in float32, to 2e-7 relative, for t from -126 to 127; anything for NaN."""
    f = t - _round(t)
    p = F(1.326472708e-3) * f + F(9.671512862e-3)
    p = p * f + F(5.550733746e-2)
    p = p * f + F(2.402224208e-1)
    p = p * f + F(6.931469776e-1)
    return _times_power_of_two(p * f + F(1.0), t)
