from concurrent.futures import ThreadPoolExecutor

import pytest

from em_inf.evaluation.graders import GraderError, about, grader
from em_inf.evaluation.graders.mathematics import Mathematics
from em_inf.evaluation.records import Grader
from tests.evaluation.graders.problems import problem


@pytest.fixture(scope="module")
def math() -> Grader:
    return grader("math")


@pytest.mark.parametrize(
    ("answer", "text", "grade"),
    [
        (r"\frac{1}{2}", r"So \boxed{0.5}", "right"),
        (r"\frac{1}{2}", r"So \boxed{\dfrac12}.", "right"),
        ("$(x+1)^2$", r"\boxed{x^2+2x+1}", "right"),
        (r"11\sqrt2", r"The answer is $11\sqrt{2}$.", "right"),
        ("(1, 2]", r"\boxed{(1,2]}", "right"),
        (r"\{1,2,3\}", r"\boxed{3, 2, 1}", "right"),
        ("5", r"\boxed{x = 5}", "right"),
        (r"\text{east}", r"\boxed{east}", "right"),
        ("90^\\circ", r"\boxed{90}", "right"),
        ("12", r"\boxed{13}", "wrong"),
        ("12", "I cannot say.", "not_extracted"),
        ("12", r"\boxed{}", "not_extracted"),
        ("12", r"12 \boxed{13} then \boxed{12}", "right"),
        ("7", "after all it is 7", "right"),
    ],
)
def test_equal_answers_are_right(
    math: Grader, answer: str, text: str, grade: str
) -> None:
    assert math.grade(text, problem(answer)).grade == grade


def test_answer_that_is_not_announced_counts_only_where_it_need_not_be(
    math: Grader,
) -> None:
    assert math.grade("it is 7", problem("7", announced=True)).grade == "not_extracted"


def test_equal_answers_are_one_vote(math: Grader) -> None:
    texts = [
        r"\boxed{\frac{2}{4}}",
        r"\boxed{0.5}",
        "The answer is 1/2.",
        r"\boxed{\dfrac12}",
    ]
    assert len({math.extract(text, problem("1")) for text in texts}) == 1
    squares = [r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}"]
    assert len({math.extract(text, problem("1")) for text in squares}) == 1


@pytest.fixture(scope="module")
def hurried() -> Grader:
    """One process, one second: what hangs it is soon ended."""
    return Mathematics(cpu_seconds=1.0, processes=1)


@pytest.mark.parametrize(
    "expression",
    ["10^{10^{10}}", r"\binom{10^{9}}{5 \cdot 10^{8}}", "{" * 900 + "1" + "}" * 900],
)
def test_expression_made_to_hang_it_is_never_right_and_the_grader_goes_on(
    hurried: Grader, expression: str
) -> None:
    verdict = hurried.grade(rf"\boxed{{{expression}}}", problem("7"))
    assert verdict.grade in ("wrong", "not_graded", "not_extracted")
    assert hurried.grade(r"\boxed{7.0}", problem("7")).grade == "right"


def test_comparison_over_its_time_is_not_graded_and_says_so() -> None:
    math = Mathematics(cpu_seconds=0.001, processes=1)
    verdict = math.grade(r"\boxed{(x+1)^2}", problem("x^2+2x+1"))
    assert verdict.grade == "not_graded"
    assert "limit was reached" in verdict.reason


def test_versions_are_told(math: Grader) -> None:
    assert set(about(math)) == {"math-verify", "sympy"}
    assert about(grader("exact")) == {}


def test_threads_share_the_processes(math: Grader) -> None:
    with ThreadPoolExecutor(8) as pool:
        verdicts = pool.map(
            lambda i: math.grade(rf"\boxed{{{i}+0}}", problem(str(i))).grade, range(24)
        )
        assert set(verdicts) == {"right"}


def test_answer_that_is_empty_is_refused_by_its_id(math: Grader) -> None:
    with pytest.raises(GraderError, match="answer of problem p1 is empty"):
        math.grade("1", problem(" "))


def test_process_ends_with_the_grader() -> None:
    math = Mathematics(processes=1)
    assert math.grade(r"\boxed{1+1}", problem("2")).grade == "right"
    worker = math._idle.get()
    assert worker is not None
    process = worker._process
    worker.end()
    assert process.poll() is not None
