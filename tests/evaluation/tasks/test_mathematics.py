import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.graders import grader
from em_inf.evaluation.records import Grader
from em_inf.evaluation.tasks import mathematics

# One row of each data set, in the columns that it has on the hub, and its answer.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": (
        {
            "question": "What is 700 + 34?",
            "answer": "700 + 34 = <<700+34=734>>734\n#### 734",
        },
        "734",
    ),
    "math-500": (
        {
            "problem": "What is $1/2$?",
            "solution": r"$\boxed{\frac12}$",
            "answer": r"\frac{1}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        r"\frac{1}{2}",
    ),
    "amc": (
        {"id": 0, "problem": "What is $m+n$?", "answer": 142.0, "url": "https://x"},
        "142",
    ),
    "aime": (
        {
            "id": 60,
            "problem": "Find it.",
            "solution": "So 116.",
            "answer": "116",
            "url": "https://x",
        },
        "116",
    ),
    "minerva": ({"question": "How many cm?", "answer": "1.6"}, "1.6"),
    "olympiadbench": (
        {
            "id": 1606,
            "question": "How many moves?",
            "solution": ["Two."],
            "final_answer": ["2"],
            "context": None,
            "is_multiple_answer": False,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        },
        "2",
    ),
}


@cache
def graders(name: str) -> Grader:
    """One for all tests: sympy takes a while to start."""
    return grader(name)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_task_is_read_from_a_local_file_in_its_hub_columns(
    tmp_path: Path, name: str, suffix: str
) -> None:
    row, answer = ROWS[name]
    size = mathematics.SOURCES[name].dataset.size
    task = tasks.load(name, write(tmp_path / f"data{suffix}", [row] * size))
    assert len(task.problems) == size
    first = task.problems[0]
    assert first.answer == answer
    assert first.messages[1]["content"] == row.get("problem", row.get("question"))
    assert task.source == f"local: {tmp_path / f'data{suffix}'}"
    assert len({problem.id for problem in task.problems}) == size


@pytest.mark.parametrize("name", ROWS)
def test_boxed_answer_is_right_and_one_without_a_box_is_not_extracted(
    tmp_path: Path, name: str
) -> None:
    row, answer = ROWS[name]
    size = mathematics.SOURCES[name].dataset.size
    task = tasks.load(name, write(tmp_path / "data.jsonl", [row] * size), limit=1)
    grade = graders(task.grader).grade
    assert grade(rf"So \boxed{{{answer}}}.", task.problems[0]).grade == "right"
    assert grade(f"So it is {answer}", task.problems[0]).grade == "not_extracted"


def test_folder_in_the_hubs_layout_gives_the_split_alone(tmp_path: Path) -> None:
    row, _ = ROWS["gsm8k"]
    other = {**row, "question": "of the train split"}
    write(tmp_path / "main/test-00000-of-00001.parquet", [row] * 1319)
    write(tmp_path / "main/train-00000-of-00001.parquet", [other] * 7)
    write(tmp_path / "socratic/test-00000-of-00001.parquet", [other] * 1319)
    task = tasks.load("gsm8k", tmp_path)
    assert len(task.problems) == 1319
    assert {p.messages[1]["content"] for p in task.problems} == {row["question"]}


def test_authors_copies_are_read_too(tmp_path: Path) -> None:
    minerva = {"problem": "How many?", "solution": r"So \boxed{1.6} cm.", "idx": 0}
    task = tasks.load("minerva", write(tmp_path / "test.jsonl", [minerva] * 272))
    assert task.problems[0].answer == "1.6"
    olympiad = ROWS["olympiadbench"][0]
    task = tasks.load("olympiadbench", write(tmp_path / "o.jsonl", [olympiad] * 675))
    assert len(task.problems) == 675
    math = ROWS["math-500"][0]
    columns = {
        "problem": {str(i): math["problem"] for i in range(500)},
        "expected_answer": {str(i): math["answer"] for i in range(500)},
    }
    (tmp_path / "m.json").write_text(json.dumps(columns))
    assert (
        tasks.load("math-500", tmp_path / "m.json").problems[499].answer == math["answer"]
    )


def test_wrong_number_of_problems_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [ROWS["aime"][0]] * 89)
    with pytest.raises(tasks.TaskError, match="has 89 problems, and 90 are expected"):
        tasks.load("aime", path)


def test_missing_column_is_named_with_the_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"problem": "?", "url": "x"}] * 90)
    with pytest.raises(
        tasks.TaskError,
        match=r"aime, problem 0 .* has no column answer .* it has problem",
    ):
        tasks.load("aime", path)


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "?"}\n{"problem"')
    with pytest.raises(tasks.TaskError, match=r"data\.jsonl cannot be read: line 2"):
        tasks.load("aime", path)


def test_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "?"}\n[1]\n')
    with pytest.raises(tasks.TaskError, match=r"cannot be read: line 2 is no object"):
        tasks.load("aime", path)


def test_path_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskError, match="missing does not exist"):
        tasks.load("aime", tmp_path / "missing")
    with pytest.raises(tasks.TaskError, match=r"holds no file that ends in \.jsonl"):
        tasks.load("aime", tmp_path)


def test_missing_network_is_a_sentence_that_says_how_to_use_a_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def unreachable(*args: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "dataset_info", unreachable)
    with pytest.raises(
        tasks.TaskError,
        match=r"openai/gsm8k cannot be loaded .*Name or service not known.* --path FILE",
    ):
        tasks.load("gsm8k")


def test_resolved_revision_of_the_hub_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import huggingface_hub

    asked = []

    class Info:
        sha = "0123abcd"

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        return [ROWS["gsm8k"][0]] * 1319

    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda name: Info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = tasks.load("gsm8k")
    assert task.source == "openai/gsm8k main test at revision 0123abcd"
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test", "revision": "0123abcd"})
    ]


def test_prompt_of_the_authors_own_scripts_has_two_backslashes(tmp_path: Path) -> None:
    task = tasks.load("aime", write(tmp_path / "a.jsonl", [ROWS["aime"][0]] * 90))
    assert task.problems[0].messages[0] == {
        "role": "system",
        "content": "Please reason step by step, and put your final answer within "
        r"\\boxed{}.",
    }


def test_another_split_is_refused() -> None:
    with pytest.raises(
        tasks.TaskError, match="split: 'train' is unknown; gsm8k has test"
    ):
        tasks.load("gsm8k", split="train")
