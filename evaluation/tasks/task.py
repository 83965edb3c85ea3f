"""What a known task is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from em_inf.evaluation.records import Problem


class TaskError(ValueError):
    """A task cannot be loaded; the message says what is missing, and what helps."""


@dataclass(frozen=True)
class Task:
    """A known task, loaded.

    Attributes:
        name: by which it is asked for.
        problems: what to ask, in the data's order.
        grader: name of the grader that its answers want.
        sampling: fields of the request that belong to the task, `max_tokens` and `stop`.
        source: where the problems came from: repository, revision and split, or a path.
        sentence: what the task is, and in what it differs from the paper's.
    """

    name: str
    problems: tuple[Problem, ...]
    grader: str
    sampling: Mapping[str, Any]
    source: str
    sentence: str
