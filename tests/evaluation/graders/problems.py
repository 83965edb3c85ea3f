"""A problem for a grader."""

from typing import Any

from em_inf.evaluation.records import Problem


def problem(answer: Any, **more: Any) -> Problem:
    return Problem("p1", ({"role": "user", "content": "?"},), answer, more)
