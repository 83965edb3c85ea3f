"""The graders `exact` and `normalized`."""

import pytest

from em_inf.evaluation.graders import GraderError, grader
from tests.evaluation.graders.problems import problem


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Paris", "right"),
        ("The answer is Paris.", "right"),
        (r"Because of that: \boxed{Paris}", "right"),
        ("paris", "wrong"),
        ("The answer is the Paris", "wrong"),
        ("I thought.\nIt may be Paris or not.", "not_extracted"),
        ("", "not_extracted"),
    ],
)
def test_exact_answer_has_the_same_characters(text: str, grade: str) -> None:
    assert grader("exact").grade(text, problem("Paris")).grade == grade


def test_exact_answer_that_ends_in_a_full_stop_can_be_given() -> None:
    assert grader("exact").grade("The answer is U.S.", problem("U.S.")).grade == "right"


@pytest.mark.parametrize(
    "text", ["The answer is the Eiffel Tower!", "eiffel  tower", "An EIFFEL tower."]
)
def test_normalized_answer_ignores_case_punctuation_articles_and_space(text: str) -> None:
    verdict = grader("normalized").grade(text, problem("Eiffel Tower"))
    assert verdict.grade == "right"
    assert verdict.extracted == "eiffel tower"


def test_normalized_answer_may_be_one_of_several() -> None:
    several = problem(["Holland", "the Netherlands"])
    assert grader("normalized").grade("Netherlands", several).grade == "right"
    assert grader("normalized").grade("Belgium", several).grade == "wrong"


def test_answer_of_which_nothing_is_left_is_not_extracted() -> None:
    assert grader("normalized").grade("The ...", problem("x")).grade == "not_extracted"


def test_unknown_grader_is_refused_with_the_names() -> None:
    with pytest.raises(
        GraderError, match=r"'vibes' is unknown; allowed: exact, .*, code, or path/to"
    ):
        grader("vibes")
