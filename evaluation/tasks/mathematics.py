"""The paper's five mathematical tasks, and GSM8K.

System prompt, splits and lengths are those of the authors' scripts (`shivamag125/EM_PT`
at 91cda30: `eval/system_prompt.md`, `eval/Math/*/evaluate_*.py`,
`eval/Math/Qwen25-Math`).
Each problem is one user message; the system prompt asks for a box. The authors grade with
string and sympy rules of their own; here math-verify does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_inf.evaluation.graders.announced import boxed
from em_inf.evaluation.records import Problem
from em_inf.evaluation.tasks.hub import Dataset, Row, column, rows
from em_inf.evaluation.tasks.task import Task, TaskError

PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
# The authors' own file, which MATH-500, AMC and AIME read, has the backslash twice.
TWICE = PROMPT.replace("\\", "\\\\")
_STOP = ["\n###\nProblem: ", "<|eot_id|>"]


@dataclass(frozen=True)
class Source:
    """One task.

    Attributes:
        dataset: on the hub.
        answer: of a row, as LaTeX.
        sentence: see `Task`.
        grader: see `Task`.
        paper_size: problems that the authors' own copy has, where it differs.
        system: the system prompt.
    """

    dataset: Dataset
    answer: Callable[[Row, str], Any]
    sentence: str
    grader: str = "math"
    paper_size: int | None = None
    system: str = PROMPT


def _plain(row: Row, where: str) -> Any:
    return column(row, where, "answer", "expected_answer")


def _whole(row: Row, where: str) -> str:
    """AMC's and AIME's answers, numbers without a fraction."""
    number = float(_plain(row, where))
    return str(int(number)) if number.is_integer() else str(number)


def _boxed(row: Row, where: str) -> str:
    """The answer's column, or the box that ends the solution."""
    answer = row.get("answer") or boxed(str(column(row, where, "solution")))
    if not answer:
        raise TaskError(f"{where} has neither an answer nor a boxed one in its solution")
    return str(answer)


def _final(row: Row, where: str) -> str:
    """OlympiadBench's answers, a list of one text or a text."""
    answer = column(row, where, "final_answer", "answer")
    return str(answer[0] if isinstance(answer, list) else answer)


def _after_marks(row: Row, where: str) -> str:
    answer = str(_plain(row, where))
    if "####" not in answer:
        raise TaskError(f"{where}: answer has no ####")
    return answer.rpartition("####")[2].strip()


SOURCES = {
    "gsm8k": Source(
        Dataset("openai/gsm8k", "main", ("test",), 1319),
        _after_marks,
        "GSM8K's test split. The paper has no row for it.",
        grader="numeric",
    ),
    "math-500": Source(
        Dataset("HuggingFaceH4/MATH-500", None, ("test",), 500),
        _plain,
        "500 problems of MATH's test split.",
        system=TWICE,
    ),
    "amc": Source(
        Dataset("AI-MO/aimo-validation-amc", None, ("train",), 83),
        _whole,
        "AMC 12 of 2022 and 2023; one problem is 1.2 points.",
        system=TWICE,
    ),
    "aime": Source(
        Dataset("AI-MO/aimo-validation-aime", None, ("train",), 90),
        _whole,
        "AIME of 2022 to 2024; one problem is 1.1 points.",
        system=TWICE,
    ),
    "minerva": Source(
        Dataset("math-ai/minervamath", None, ("test",), 272),
        _boxed,
        "Minerva's undergraduate problems (MIT OpenCourseWare). The authors read the "
        "copy of Qwen2.5-Math's harness, and allow a relative error of 1e-4, which "
        "math-verify does not.",
    ),
    "olympiadbench": Source(
        Dataset("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", ("train",), 674),
        _final,
        "OlympiadBench, open-ended English text problems of mathematics. The authors "
        "read the copy of Qwen2.5-Math's harness, with 675 problems.",
        paper_size=675,
    ),
}


def load(name: str, path: Path | None, split: str | None) -> Task:
    """A task of `SOURCES`.

    Raises:
        TaskError: another split than the paper's, or see `hub.rows`.
    """
    source = SOURCES[name]
    splits = "+".join(source.dataset.splits)
    if split not in (None, splits):
        raise TaskError(f"split: {split!r} is unknown; {name} has {splits}")
    size = source.dataset.size
    if path is not None and source.paper_size is not None:
        size = _paper_size(path, source)
    found, where = rows(name, source.dataset, path, size)
    problems = tuple(
        _problem(name, source, row, index, f"{name}, problem {index} ({where})")
        for index, row in enumerate(found)
    )
    return Task(
        name=name,
        problems=problems,
        grader=source.grader,
        sampling={"max_tokens": 4096, "stop": _STOP},
        source=where,
        sentence=source.sentence,
    )


def _paper_size(path: Path, source: Source) -> int:
    """Which of two sizes a local copy has: the authors' or the hub's."""
    own = source.paper_size
    assert own is not None
    count = sum(1 for line in path.open("rb") if line.strip()) if path.is_file() else 0
    return own if path.suffix == ".jsonl" and count == own else source.dataset.size


def _problem(name: str, source: Source, row: Row, index: int, where: str) -> Problem:
    question = str(column(row, where, "problem", "question"))
    return Problem(
        id=f"{name}-{index:04}",
        messages=(
            {"role": "system", "content": source.system},
            {"role": "user", "content": question},
        ),
        answer=source.answer(row, where),
        more={"announced": True},
    )
