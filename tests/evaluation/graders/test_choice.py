import pytest

from em_inf.evaluation.graders import GraderError, grader
from tests.evaluation.graders.problems import problem

CHOICES = ["London", "Paris", "Rome", "Oslo"]


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "b.",
        "The answer is (B).",
        "The correct answer is **B**.",
        "The answer is B) Paris, since it is.",
        "Answer: B. Paris",
        r"\boxed{B}",
        r"\boxed{\text{(B)}}",
        "So it must be\n\nB. Paris",
        "The answer is Paris.",
        r"\boxed{\text{Paris}}".replace(r"\text{Paris}", "Paris"),
        "I choose (B) here and am sure of it.",
        "<think>The answer is (C).</think>The answer is (B).",
    ],
)
def test_chosen_letter_is_read(text: str) -> None:
    read = grader("choice")
    assert read.grade(text, problem("B", choices=CHOICES)).grade == "right"
    assert read.extract(text, problem("A", choices=CHOICES)) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A city is not easy to choose.",
        "The answer is unclear.",
        "The answer is E.",
        "Either (A) or (B) can be said.",
        "But I would not know.",
    ],
)
def test_text_that_chooses_none_is_not_extracted(text: str) -> None:
    verdict = grader("choice").grade(text, problem("B", choices=CHOICES))
    assert verdict.grade == "not_extracted"


def test_answer_may_be_an_index_or_a_letter_in_brackets() -> None:
    read = grader("choice")
    assert read.grade("C", problem(2, choices=CHOICES)).grade == "right"
    assert read.grade("C", problem("(c)", choices=CHOICES)).grade == "right"
    assert read.grade("D", problem("C")).grade == "wrong"


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        ("E", CHOICES, r"answer of problem p1: 'E' is none of .* letter from A to D"),
        (4, CHOICES, "answer of problem p1: 4 is none of its choices"),
        (True, CHOICES, "answer of problem p1: True is none"),
        ("A", ["only"], "choices of problem p1: .* a list of 2 to 26 texts"),
        ("A", "AB", "choices of problem p1: 'AB' is not allowed"),
    ],
)
def test_problem_whose_answer_is_no_choice_is_refused(
    answer: object, choices: object, message: str
) -> None:
    with pytest.raises(GraderError, match=message):
        grader("choice").grade("A", problem(answer, choices=choices))
