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


@intrinsic
def _power_of_two(_: Any, n: Any) -> Any:
    """2**n of a whole float32 n from -126 to 127, written into the exponent's bits."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        whole = builder.fptosi(args[0], word)
        biased = builder.add(whole, ir.Constant(word, 127))
        bits = builder.shl(biased, ir.Constant(word, 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), code


@intrinsic
def index_of(_: Any, x: Any) -> Any:
    """A float32 that is not negative, cut to an index."""

    def code(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        whole = builder.fptosi(args[0], ir.IntType(32))
        return builder.zext(whole, ir.IntType(64))

    return types.uint64(types.float32), code


@inline
def exp2(t: Any) -> Any:
    """2**t in float32, to 2e-7 relative; t is at least -126. NaN stays NaN."""
    n = floor(t)
    f = t - n
    p = F(2.18941762e-4) * f + F(1.23871094e-3)
    p = p * f + F(9.68494987e-3)
    p = p * f + F(5.54796605e-2)
    p = p * f + F(2.40230343e-1)
    p = p * f + F(6.93147156e-1)
    return (p * f + F(1.0)) * _power_of_two(n)
