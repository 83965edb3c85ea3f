import pytest

from em_inf.evaluation.graders import GraderError, grader
from tests.evaluation.graders.problems import problem


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 12.", "12"),
        ("the answer is: $1,234.50. Is it?", "2469/2"),
        ("So **Answer:** 7", "7"),
        ("3 + 4 = 7\n#### 7", "7"),
        (r"Thus \boxed{\frac{3}{4}} of 9", "3/4"),
        (r"\boxed{1{,}234}", "1234"),
        (r"\boxed{12\,345}", "12345"),
        ("10-5=5", "5"),
        ("it is -3", "-3"),
        ("it is \N{MINUS SIGN} 3", "-3"),
        ("between 2024-05", "5"),
        ("half: 1/2", "1/2"),
        ("1 3/4 cups", "7/4"),
        ("1.5e3 metres", "1500"),
        ("first 1, then 2, then 3", "3"),
        ("The answer is 0.50", "1/2"),
        ("The answer is 3 apples out of 5.", "3"),
        ("The answer is 7 + 5 = 12 apples.", "12"),
        ("<think>The answer is 4.</think> It is 6.", "6"),
    ],
)
def test_number_is_read_as_an_exact_fraction(text: str, found: str) -> None:
    assert grader("numeric").extract(text, problem(1)) == found


@pytest.mark.parametrize(
    "text",
    ["", "no number", "Of 3 candidates none. The answer is unknown.", "<think>12", "x2y"],
)
def test_text_without_a_number_is_not_extracted(text: str) -> None:
    assert grader("numeric").grade(text, problem(3)).grade == "not_extracted"


def test_number_that_is_not_announced_counts_only_where_none_need_be() -> None:
    text = "So it comes to 12"
    assert grader("numeric").grade(text, problem(12)).grade == "right"
    assert (
        grader("numeric").grade(text, problem(12, announced=True)).grade
        == "not_extracted"
    )


@pytest.mark.parametrize(
    "text",
    ["1e999999999", "9" * 100_000, "1/0", "1e-999999999999999999999", "1" + ",111" * 50],
)
def test_number_of_a_size_that_would_hang_python_is_no_number(text: str) -> None:
    assert grader("numeric").extract(f"The answer is {text}", problem(1)) is None


@pytest.mark.parametrize(
    ("answer", "text", "grade"),
    [
        (25, "25%", "right"),
        (0.25, "25%", "right"),
        (0.25, "0.25", "right"),
        (1, "1%", "right"),
        ("25%", "25", "right"),
        ("25%", "25%", "right"),
        (0.25, "25", "wrong"),
    ],
)
def test_percent_sign_counts_only_beside_an_answer_below_one(
    answer: object, text: str, grade: str
) -> None:
    assert grader("numeric").grade(text, problem(answer)).grade == grade


@pytest.mark.parametrize(
    ("name", "text", "grade"),
    [
        ("numeric", "3.1415", "wrong"),
        ("numeric", "3.14159265", "right"),
        ("numeric:0.01", "3.15", "right"),
        ("numeric:0.01", "3.16", "wrong"),
        ("numeric:1%", "3.17", "right"),
        ("numeric:1%", "3.18", "wrong"),
        ("numeric:0", "3.14159265358", "wrong"),
    ],
)
def test_tolerance_is_absolute_as_a_number_and_relative_as_a_percentage(
    name: str, text: str, grade: str
) -> None:
    assert grader(name).name == name
    assert grader(name).grade(text, problem("3.141592653589")).grade == grade


def test_tolerance_of_a_problem_goes_before_the_graders() -> None:
    assert grader("numeric:10").grade("5", problem(3, tolerance=1)).grade == "wrong"
    assert grader("numeric").grade("5", problem(3, tolerance="100%")).grade == "right"


@pytest.mark.parametrize("tolerance", ["", "-1", "wide", "1 2", "1/3"])
def test_tolerance_that_is_none_is_refused_with_what_is_allowed(tolerance: str) -> None:
    with pytest.raises(
        GraderError, match=r"tolerance: .* is not allowed; allowed: a number"
    ):
        grader(f"numeric:{tolerance}")


def test_problem_whose_answer_is_no_number_is_refused_by_its_id() -> None:
    with pytest.raises(GraderError, match="answer of problem p1: 'blue' holds no number"):
        grader("numeric").grade("3", problem("blue"))


def test_same_number_written_twice_gives_one_vote() -> None:
    texts = ["The answer is 0.75.", r"\boxed{\frac{3}{4}}", "3/4", "so .75"]
    assert {grader("numeric").extract(text, problem(1)) for text in texts} == {"3/4"}
