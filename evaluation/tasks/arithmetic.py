"""The bundled task: arithmetic word problems that the demo model never learnt from."""

from __future__ import annotations

import json
from importlib.resources import files

from em_inf.evaluation.records import Problem
from em_inf.evaluation.tasks.task import Task, TaskError

SIZES = {"held_out": 1000, "tune": 500}
_SENTENCE = (
    "Arithmetic word problems made for the bundled model; it never saw their chains of "
    "calculations. The split tune shares none of them with held_out. An answer without "
    "“The answer is N.” is not extracted."
)


def load(split: str | None) -> Task:
    """The task; `held_out` unless `tune` is asked for.

    Raises:
        TaskError: no such split.
    """
    split = split or "held_out"
    if split not in SIZES:
        raise TaskError(f"split: {split!r} is unknown; arithmetic has {', '.join(SIZES)}")
    lines = files(__package__).joinpath("data/arithmetic.jsonl").read_text("utf-8")
    rows = (json.loads(line) for line in lines.splitlines())
    problems = tuple(
        Problem(
            id=row["id"],
            messages=({"role": "user", "content": row["question"]},),
            answer=row["answer"],
            more={"announced": True},
        )
        for row in rows
        if row["split"] == split
    )
    return Task(
        name="arithmetic",
        problems=problems,
        grader="numeric",
        sampling={"max_tokens": 256},
        source=f"bundled with em-inf, split {split}",
        sentence=_SENTENCE,
    )
