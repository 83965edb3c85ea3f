"""Known tasks by name: the bundled one, and those of the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from em_inf.evaluation.tasks import arithmetic, leetcode, mathematics, scicode, ugphysics
from em_inf.evaluation.tasks.task import Task, TaskError

__all__ = ["Task", "TaskError", "load", "names"]


def names() -> tuple[str, ...]:
    """What `load` takes, the bundled task first."""
    return ("arithmetic", *mathematics.SOURCES, "leetcode", "ugphysics", "scicode")


def load(
    name: str,
    path: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Task:
    """A task with its problems.

    Args:
        name: one of `names()`.
        path: a local copy of its data, a file or a folder; the bundled task has none.
        split: of the data; the one that the paper uses if None.
        limit: so many problems, the first of the data; all if None.

    Raises:
        TaskError: an unknown name, split or limit, data that are not there or not as
            they should be.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"limit: {limit} is not allowed; allowed: 1 or more")
    if name not in names():
        raise TaskError(f"task: {name!r} is unknown; allowed: {', '.join(names())}")
    task = _load(name, path, split)
    return replace(task, problems=task.problems[:limit])


def _load(name: str, path: Path | None, split: str | None) -> Task:
    if name == "arithmetic":
        if path is not None:
            raise TaskError(f"path: {name} is bundled and reads no {path}")
        return arithmetic.load(split)
    if name == "leetcode":
        return leetcode.load(path, split)
    if name == "scicode":
        return scicode.load(path, split)
    if name == "ugphysics":
        return ugphysics.load(path, split)
    return mathematics.load(name, path, split)
