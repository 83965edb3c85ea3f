from pathlib import Path

import pytest

from em_inf.evaluation.graders import GraderError, grader
from em_inf.evaluation.records import Verdict
from tests.evaluation.graders.problems import problem

FILE = """
from em_inf.evaluation.records import Verdict

def longer(text, problem):
    return len(text) > problem.answer

def named(text, problem):
    return "not_extracted"

def whole(text, problem):
    return Verdict("right", "42", "because")

def broken(text, problem):
    return text / 0

def odd(text, problem):
    return "perhaps"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_own_function_says_true_or_false(file: Path) -> None:
    own = grader(f"{file}:longer")
    assert own.name == f"{file}:longer"
    assert own.grade("four", problem(3)) == Verdict("right", "four")
    assert own.grade("four", problem(5)) == Verdict("wrong", "four")


def test_own_function_may_name_a_grade_or_give_a_whole_verdict(file: Path) -> None:
    assert grader(f"{file}:named").grade("x", problem(1)).grade == "not_extracted"
    verdict = grader(f"{file}:whole").grade("x", problem(1))
    assert verdict == Verdict("right", "42", "because")


def test_error_in_an_own_function_is_not_graded_and_says_why(file: Path) -> None:
    verdict = grader(f"{file}:broken").grade("x", problem(1))
    assert verdict.grade == "not_graded"
    assert verdict.reason.startswith("TypeError: ")


def test_extract_of_the_file_finds_the_votes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE + "\ndef extract(text, problem):\n    return text[:1]\n")
    assert grader(f"{path}:longer").extract("abc", problem(1)) == "a"
    path.write_text(FILE + "\ndef extract(text, problem):\n    return 1\n")
    with pytest.raises(GraderError, match="extract returned 1; allowed: a text, or None"):
        grader(f"{path}:longer").extract("abc", problem(1))


def test_other_results_are_refused(file: Path) -> None:
    with pytest.raises(GraderError, match="returned 'perhaps' for problem p1; allowed"):
        grader(f"{file}:odd").grade("x", problem(1))


def test_missing_file_or_function_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(GraderError, match=r"none\.py does not exist"):
        grader(f"{tmp_path / 'none.py'}:f")
    with pytest.raises(GraderError, match="has no function 'absent'"):
        grader(f"{file}:absent")
    with pytest.raises(
        GraderError, match=r"names no function; allowed: FILE\.py:FUNCTION"
    ):
        grader(str(file))
    (tmp_path / "bad.py").write_text("import absent_module\n")
    with pytest.raises(GraderError, match=r"bad\.py cannot be imported: ModuleNotFound"):
        grader(f"{tmp_path / 'bad.py'}:f")
