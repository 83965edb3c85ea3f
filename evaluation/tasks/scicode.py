"""SciCode with background: 65 main problems, each of several steps, graded by its tests.

The problems are on the hub; the targets of their tests are not: `test_data.h5` comes with
the benchmark (`scicode-bench/SciCode`, whose README says where it is), and is given by
path. Some tests compare with functions of its package `scicode`.

The benchmark asks step by step, each prompt with the model's own code of the steps
before; here one prompt asks for all steps of a main problem, and an answer is right where
the tests of all its steps pass. That is the benchmark's count of main problems; its count
of subproblems has no counterpart here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_inf.evaluation.records import Problem
from em_inf.evaluation.tasks.hub import Dataset, Row, column, rows
from em_inf.evaluation.tasks.task import Task, TaskError

DATASETS = {
    "test": Dataset("SciCode1/SciCode", None, ("test",), 65),
    "validation": Dataset("SciCode1/SciCode", None, ("validation",), 15),
}
TARGETS = "test_data.h5"
# The benchmark gives these steps' code and does not test it.
GIVEN = ("13.6", "62.1", "76.3")
_OPENING = (
    "Solve the scientific problem below in Python. It has several steps, each with its "
    "background and the header of a function. Write the functions of all steps, with the "
    "headers unchanged, as one complete program in a single block in the format of "
    "```python```. Later steps may call the functions of earlier ones. Write neither "
    "example usage nor test code."
)


def load(path: Path | None, split: str | None) -> Task:
    """The task; problems from the hub, or from the folder that the path names.

    Args:
        path: `test_data.h5`, or a folder that holds it and perhaps the problems too.
        split: `test` unless `validation` is asked for.

    Raises:
        TaskError: no targets, no package `scicode` where a test needs it, no h5py, or see
            `hub.rows`.
    """
    split = split or "test"
    if split not in DATASETS:
        raise TaskError(f"split: {split!r} is unknown; scicode has {', '.join(DATASETS)}")
    targets, folder = _targets(path)
    dataset = DATASETS[split]
    found, source = rows("scicode", dataset, folder, dataset.size)
    problems = tuple(
        _problem(row, f"scicode, problem {index} ({source})", targets)
        for index, row in enumerate(found)
    )
    return Task(
        name="scicode",
        problems=problems,
        grader="code",
        sampling={"max_tokens": 4096},
        source=f"{source}, targets of {targets}",
        sentence=(
            "SciCode with background, main problems. One prompt asks for all steps; the "
            "benchmark asks step by step, so the paper's numbers are of another task."
        ),
    )


def _targets(path: Path | None) -> tuple[Path, Path | None]:
    """The targets' file, and the folder of the problems where it has some."""
    if path is None:
        raise TaskError(
            f"scicode: the targets of its tests, {TARGETS}, are not on the hub; get the "
            "file that the README of github.com/scicode-bench/SciCode names, and give it "
            "or its folder with --path"
        )
    file = path / TARGETS if path.is_dir() else path
    if file.suffix != ".h5" or not file.is_file():
        raise TaskError(f"scicode: {path} is, or holds, no {TARGETS}")
    if importlib.util.find_spec("h5py") is None:
        raise TaskError(
            "scicode needs h5py; install em-inf[eval] (deploy/install cpu eval)"
        )
    beside = [
        one for one in file.parent.rglob("*") if one.suffix in (".jsonl", ".parquet")
    ]
    return file.resolve(), file.parent if path.is_dir() and beside else None


def _problem(row: Row, where: str, targets: Path) -> Problem:
    steps: list[Mapping[str, Any]] = [
        step
        for step in column(row, where, "sub_steps")
        if str(column(dict(step), where, "step_number")) not in GIVEN
    ]
    tests = [list(column(dict(step), where, "test_cases")) for step in steps]
    if any("scicode" in test for cases in tests for test in cases) and (
        importlib.util.find_spec("scicode") is None
    ):
        raise TaskError(
            f"{where}: its tests import the package scicode, which is not installed; "
            "install it from github.com/scicode-bench/SciCode"
        )
    dependencies = str(column(row, where, "required_dependencies"))
    return Problem(
        id=str(column(row, where, "problem_id")),
        messages=({"role": "user", "content": _prompt(row, where, dependencies)},),
        answer=[_code(cases) for cases in tests],
        more={
            "setup": dependencies,
            "targets": {
                "file": str(targets),
                "steps": [str(step["step_number"]) for step in steps],
                "counts": [len(cases) for cases in tests],
            },
            "cpu_seconds": 1800,
            "memory_mb": 16_384,
        },
    )


def _code(cases: list[str]) -> str:
    return "\n".join(f"target = targets[{i}]\n{case}" for i, case in enumerate(cases))


def _prompt(row: Row, where: str, dependencies: str) -> str:
    parts = [
        _OPENING,
        f"PROBLEM\n{column(row, where, 'problem_description_main')}",
        "DEPENDENCIES\nUse only these; do not import them at the beginning of your "
        f"code.\n{dependencies}",
    ]
    for number, step in enumerate(column(row, where, "sub_steps"), 1):
        given = dict(step)
        texts = [
            f"STEP {number}\n{column(given, where, 'step_description_prompt')}",
            str(given.get("step_background") or ""),
            str(column(given, where, "function_header")),
            str(given.get("return_line") or ""),
        ]
        parts.append("\n\n".join(text for text in texts if text))
    return "\n\n".join(parts)
