import json
from pathlib import Path

import pytest

from em_inf.evaluation import tasks
from em_inf.evaluation.graders import grader

ROW = {
    "url": "https://leetcode.com/problems/x",
    "title": "x",
    "meta": {"questionId": "1", "difficulty": "Easy"},
    "prompt": '"""\nAdd one.\n"""\nclass Solution:\n    def addOne(self, n):\n',
    "prompt_sft": "Add one.\n```python\nclass Solution:\n    def addOne(self, n):\n```",
    "test": '\nmy_solution = Solution()\n\ntest_input = { "n": 1 }\n'
    "assert my_solution.addOne(**test_input) == 2\n",
    "start_time": 1705804200,
}


def load(tmp_path: Path, count: int = 180) -> tasks.Task:
    path = tmp_path / "leetcode-test.json"
    rows = [{"task_id": f"weekly-{i}", **ROW} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.load("leetcode", path)


@pytest.mark.parametrize(("step", "expected"), [("1", "right"), ("2", "wrong")])
def test_solution_is_graded_by_the_problems_tests(
    tmp_path: Path, step: str, expected: str
) -> None:
    task = load(tmp_path)
    text = (
        "```python\nclass Solution:\n"
        f"    def addOne(self, n: int) -> List[int]:\n        return n + {step}\n```"
    )
    assert grader(task.grader).grade(text, task.problems[0]).grade == expected


def test_prompt_holds_the_problem_and_the_authors_request(tmp_path: Path) -> None:
    content = load(tmp_path).problems[0].messages[1]["content"]
    assert content.startswith("Add one.")
    assert content.endswith("```python\nYour code\n```\nat the end.")


def test_wrong_number_of_problems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskError, match="has 3 problems, and 180 are expected"):
        load(tmp_path, 3)


def test_without_a_path_the_error_names_the_files() -> None:
    with pytest.raises(
        tasks.TaskError, match=r"--path leetcode-test\.json .*20240121-Jul"
    ):
        tasks.load("leetcode")
