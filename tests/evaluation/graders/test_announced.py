import pytest

from em_inf.evaluation.graders.announced import announced, boxed, spoken


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} then \boxed{\frac{a}{b}}", r"\frac{a}{b}"),
        (r"\boxed {\text{a}}", r"\text{a}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} and \boxed{2", "1"),
        ("none", None),
    ],
)
def test_last_closed_box_is_read(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is Paris.", "Paris"),
        ("So, the final answer is: **Paris**.", "Paris"),
        ("Answer: 3.5\nBye.", "3.5"),
        ("The answer is 1. No, the answer is 2. Done.", "2"),
        ("x\n#### 42", "42"),
        (r"The answer is 3. \boxed{4}", "4"),
        ("The answer is", None),
        (r"\boxed{}", None),
        ("That is an answerable question.", None),
    ],
)
def test_announced_answer_is_read(text: str, found: str | None) -> None:
    assert announced(text) == found


def test_thoughts_are_no_answer() -> None:
    assert spoken("<think>The answer is 1.</think>It is 2.") == "It is 2."
    assert spoken("<think>The answer is 1.") == ""


def test_text_of_any_length_is_read_in_time_that_grows_with_it_no_faster() -> None:
    assert announced(spoken(r"\boxed{" * 1_000_000)) is None
    assert announced(spoken("the answer is " * 200_000 + "5")) == "5"
