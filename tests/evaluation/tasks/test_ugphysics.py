import json
from pathlib import Path
from typing import Any

import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.tasks.ugphysics import prompt

ROW: dict[str, Any] = {
    "index": 0,
    "domain": "Modern Physics",
    "subject": "Semiconductor Physics",
    "topic": "Transport Properties",
    "problem": "Calculate the carrier concentration.",
    "solution": "It is so.",
    "answers": "\\boxed{4.88 \\times 10^{23}}",
    "answer_type": "NV",
    "unit": "\\text{m}^{-3}",
    "is_multiple_answer": False,
    "language": "EN",
    "level": "Laws Application",
}


def folder(tmp_path: Path, count: int = 186) -> Path:
    own = tmp_path / "SemiconductorPhysics"
    own.mkdir()
    for split in ("en", "zh"):
        rows = [{**ROW, "index": i, "language": split.upper()} for i in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (own / f"{split}.jsonl").write_text(lines)
    other = tmp_path / "WaveOptics"
    other.mkdir()
    (other / "en.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


def test_subset_is_read_in_both_languages(tmp_path: Path) -> None:
    task = tasks.load("ugphysics", folder(tmp_path))
    assert len(task.problems) == 372
    assert [task.problems[i].id for i in (0, 185, 186)] == ["en-0", "en-185", "zh-0"]
    assert task.problems[0].answer == "4.88 \\times 10^{23}"


def test_one_language_can_be_chosen(tmp_path: Path) -> None:
    task = tasks.load("ugphysics", folder(tmp_path), split="zh")
    assert {problem.id[:2] for problem in task.problems} == {"zh"}


def test_wrong_number_of_problems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskError, match="has 370 problems, and 372 are expected"):
        tasks.load("ugphysics", folder(tmp_path, 185))


def test_prompt_says_what_kind_of_answer_is_wanted() -> None:
    several = {**ROW, "is_multiple_answer": True, "answer_type": "EX, NV"}
    assert (
        "answers in order being an expression, a numerical value without units. "
        in prompt(several, "here")
    )
    assert "each of them should be an expression" in prompt(
        {**several, "answer_type": "EX, EX"}, "here"
    )
    assert "\\boxed{答案}(单位)" in prompt({**ROW, "language": "ZH"}, "here")


def test_unknown_kind_of_answer_is_refused() -> None:
    with pytest.raises(tasks.TaskError, match="here: answer_type 'XX' is unknown"):
        prompt({**ROW, "answer_type": "XX"}, "here")
