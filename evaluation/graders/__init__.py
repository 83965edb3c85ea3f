"""Graders by name: each reads an answer out of a text and compares it.

A grader's libraries are imported when it is made, so that a comparison of strings does
not wait for sympy.
"""

from __future__ import annotations

from collections.abc import Mapping

from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.records import Grader

__all__ = ["NAMES", "GraderError", "about", "grader"]

NAMES = ("exact", "normalized", "choice", "numeric", "numeric:TOL", "math", "code")
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
        from em_inf.evaluation.graders.numeric import Numeric, Tolerance

        return Numeric(Tolerance.parse(rest)) if colon else Numeric()
    if kind.endswith(".py"):
        from em_inf.evaluation.graders.own import load

        return load(name)
    if name == "exact":
        from em_inf.evaluation.graders.exact import Exact

        return Exact()
    if name == "normalized":
        from em_inf.evaluation.graders.normalized import Normalized

        return Normalized()
    if name == "choice":
        from em_inf.evaluation.graders.choice import Choice

        return Choice()
    if name == "math":
        from em_inf.evaluation.graders.mathematics import Mathematics

        return Mathematics()
    if name == "code":
        from em_inf.evaluation.graders.code import Code

        return Code()
    allowed = ", ".join(NAMES)
    raise GraderError(
        f"grader: {name!r} is unknown; allowed: {allowed}, or path/to/file.py:function"
    )


def about(grader: Grader) -> Mapping[str, str]:
    """What a report says of a grader: versions that it compares with, its isolation."""
    facts: Mapping[str, str] = getattr(grader, "facts", {})
    return facts
