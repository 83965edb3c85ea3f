import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.graders import GraderError, grader


def row(number: int) -> dict[str, Any]:
    return {
        "problem_name": "double_and_sum",
        "problem_id": str(number),
        "problem_description_main": "Double numbers, then add them up.",
        "problem_background_main": "",
        "problem_io": '"""x: array"""',
        "required_dependencies": "import numpy as np",
        "sub_steps": [
            {
                "step_number": f"{number}.1",
                "step_description_prompt": "Double every number.",
                "step_background": "Background: twice is two times.",
                "ground_truth_code": None,
                "function_header": "def double(x):\n    '''Doubles.'''",
                "test_cases": [
                    "assert np.allclose(double(np.ones(2)), target)",
                    "y, name = target\n"
                    "assert np.allclose(double(y), y * 2) and name == 'a'",
                ],
                "return_line": "    return y",
            },
            {
                "step_number": f"{number}.2",
                "step_description_prompt": "Add them up.",
                "step_background": "",
                "ground_truth_code": None,
                "function_header": "def total(x):\n    '''Adds.'''",
                "test_cases": ["assert total(np.arange(4.0)) == target"],
                "return_line": "    return s",
            },
        ],
        "general_tests": [],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("scicode")
    numbers = range(1, 66)
    lines = "".join(json.dumps(row(number)) + "\n" for number in numbers)
    (found / "test.jsonl").write_text(lines)
    with h5py.File(found / "test_data.h5", "w") as data:
        for number in numbers:
            data[f"{number}.1/test1/var1"] = np.full(2, 2.0)
            data[f"{number}.1/test2/var1"] = np.arange(3.0)
            data[f"{number}.1/test2/var2"] = "a"
            data[f"{number}.2/test1/var1"] = 12.0
    return found


@pytest.mark.parametrize(
    ("factor", "expected", "reason"),
    [(2, "right", ""), (3, "wrong", "AssertionError")],
)
def test_program_is_right_where_the_tests_of_all_steps_pass(
    folder: Path, factor: int, expected: str, reason: str
) -> None:
    task = tasks.load("scicode", folder, limit=1)
    text = (
        f"```python\ndef double(x):\n    return x * {factor}\n"
        "def total(x):\n    return double(x).sum()\n```"
    )
    verdict = grader(task.grader).grade(text, task.problems[0])
    assert verdict.grade == expected, verdict
    assert reason in verdict.reason


def test_every_kind_of_target_reaches_the_test(tmp_path: Path) -> None:
    from em_inf.evaluation.graders.targets import source

    with h5py.File(tmp_path / "t.h5", "w") as data:
        data["1.1/test1/var1/list/var1"] = np.arange(2)
        data["1.1/test1/var1/list/var2"] = np.arange(3)
        for name, value in {
            "data": [5.0], "indices": [1], "indptr": [0, 1, 1], "shape": [2, 2],
        }.items():  # fmt: skip
            data[f"1.1/test2/var1/sparse_matrix/{name}"] = value
        data["1.1/test3/var1/0.5"] = 7
        data["1.1/test3/var1/name"] = "x"
        data["1.1/test4/var1"] = np.bool_(True)
        data["1.1/test5/var1"] = np.array([1 + 2j])
    names: dict[str, Any] = {}
    exec(source(tmp_path / "t.h5", "1.1", 5), names)
    lists, sparse, table, truth, complex_ = names["targets"]
    assert [list(one) for one in lists] == [[0, 1], [0, 1, 2]]
    assert sparse.toarray().tolist() == [[0.0, 5.0], [0.0, 0.0]]
    assert table == {0.5: 7, "name": "x"}
    assert truth == np.True_
    assert complex_.tolist() == [1 + 2j]


def test_prompt_holds_every_step_with_its_background(folder: Path) -> None:
    prompt = tasks.load("scicode", folder).problems[0].messages[0]["content"]
    for part in (
        "STEP 1",
        "twice is two times",
        "def double(x)",
        "STEP 2",
        "def total(x)",
    ):
        assert part in prompt


def test_steps_that_the_benchmark_gives_are_not_tested(folder: Path) -> None:
    task = tasks.load("scicode", folder)
    assert task.problems[61].more["targets"]["steps"] == ["62.2"]
    assert task.problems[60].more["targets"]["steps"] == ["61.1", "61.2"]


def test_without_targets_the_error_names_the_file() -> None:
    with pytest.raises(tasks.TaskError, match=r"test_data\.h5, are not on the hub"):
        tasks.load("scicode")


def test_folder_without_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskError, match=r"is, or holds, no test_data\.h5"):
        tasks.load("scicode", tmp_path)


def test_step_that_the_targets_lack_is_named(folder: Path, tmp_path: Path) -> None:
    h5py.File(tmp_path / "test_data.h5", "w").close()
    (tmp_path / "test.jsonl").write_text((folder / "test.jsonl").read_text())
    task = tasks.load("scicode", tmp_path, limit=1)
    with pytest.raises(GraderError, match=r"has no targets of step 1\.1"):
        grader("code").grade("```python\ndef f(): pass\n```", task.problems[0])


def test_missing_package_that_a_test_imports_is_an_error(tmp_path: Path) -> None:
    rows = [row(number) for number in range(1, 66)]
    rows[0]["sub_steps"][0]["test_cases"] = ["from scicode.compare.cmp import x"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    h5py.File(tmp_path / "test_data.h5", "w").close()
    with pytest.raises(tasks.TaskError, match="package scicode, which is not installed"):
        tasks.load("scicode", tmp_path)
