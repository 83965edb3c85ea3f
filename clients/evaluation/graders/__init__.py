"""Graders by name: each reads an answer out of a text and compares it.

A grader's libraries are imported when it is made, so that a comparison of strings does
not wait for sympy.
"""

from __future__ import annotations

from clients.evaluation.graders.errors import GraderError
from clients.evaluation.records import Grader

__all__ = ["NAMES", "GraderError", "grader"]

NAMES = ("exact", "normalized", "choice", "numeric", "numeric:TOL")
"""What `grader` takes, beside `path/to/file.py:function`."""


def grader(name: str) -> Grader:
    """The grader of that name.

    Args:
        name: one of `NAMES`, or `path/to/file.py:function` for a function of one's own.
            TOL is a number, an absolute tolerance, or a percentage, a relative one.

    Raises:
        GraderError: no such grader, a tolerance that is none, or a function that cannot
            be loaded.
    """
    kind, colon, rest = name.partition(":")
    if kind == "numeric":
        from clients.evaluation.graders.numeric import Numeric, Tolerance

        return Numeric(Tolerance.parse(rest)) if colon else Numeric()
    if kind.endswith(".py"):
        from clients.evaluation.graders.own import load

        return load(name)
    if name == "exact":
        from clients.evaluation.graders.exact import Exact

        return Exact()
    if name == "normalized":
        from clients.evaluation.graders.normalized import Normalized

        return Normalized()
    if name == "choice":
        from clients.evaluation.graders.choice import Choice

        return Choice()
    allowed = ", ".join(NAMES)
    raise GraderError(
        f"grader: {name!r} is unknown; allowed: {allowed}, or path/to/file.py:function"
    )
