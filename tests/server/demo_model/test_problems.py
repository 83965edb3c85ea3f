"""The demo model's word problems: true arithmetic, and splits that share none of it."""

import random
import re
from itertools import islice

import pytest

from em_inf.server.demo_model.problems import (
    MAX_TOTAL,
    Problem,
    Split,
    extract_answer,
    make_problem,
    problems,
)

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (-?\d+)")
SAMPLE = 3000


def some(split: Split, seed: int = 1, count: int = SAMPLE) -> list[Problem]:
    return list(islice(problems(split, seed), count))


@pytest.fixture(scope="module")
def mixed() -> list[Problem]:
    """Problems of both splits as they are made."""
    rng = random.Random(5)
    return [make_problem(rng) for _ in range(SAMPLE)]


def equations(problem: Problem) -> list[tuple[int, str, int, int]]:
    return [
        (int(a), operator, int(b), int(result))
        for a, operator, b, result in EQUATION.findall(problem.solution)
    ]


def test_every_equation_of_a_solution_is_true(mixed: list[Problem]) -> None:
    for problem in mixed:
        for a, operator, b, result in equations(problem):
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
            assert value == result, problem.solution


def test_every_solution_starts_from_the_start_quantity(mixed: list[Problem]) -> None:
    for problem in mixed:
        start = problem.arithmetic.split()[0]
        opening = problem.solution.split(".")[0]
        assert re.findall(r"\d+", opening) == [start], problem.solution


def test_every_step_goes_on_from_the_total_before_it(mixed: list[Problem]) -> None:
    for problem in mixed:
        start, *operations = problem.arithmetic.split()
        total = int(start)
        steps = zip(operations, equations(problem), strict=True)
        for operation, (a, operator, b, result) in steps:
            if operation[0].isdigit():  # The contents of new boxes, added next.
                assert f"{a}{operator}{b}" == operation, problem.solution
                continue
            assert f"{total} {operation}" == f"{a} {operator}{b}", problem.solution
            total = result


def test_answer_is_the_result_of_the_last_equation(mixed: list[Problem]) -> None:
    for problem in mixed:
        assert equations(problem)[-1][3] == problem.answer


def test_solution_ends_in_the_answer(mixed: list[Problem]) -> None:
    for problem in mixed:
        assert problem.solution.endswith(f" The answer is {problem.answer}.")
        assert extract_answer(problem.solution) == problem.answer


def test_answer_follows_from_the_arithmetic_alone(mixed: list[Problem]) -> None:
    for problem in mixed:
        start, *operations = problem.arithmetic.split()
        total = int(start)
        for operation in operations:
            if operation[0].isdigit():
                continue  # The contents of new boxes, added by the next operation.
            operand = int(operation[1:])
            match operation[0]:
                case "+":
                    total += operand
                case "-":
                    total -= operand
                case "*":
                    total *= operand
                case "/":
                    total //= operand
        assert total == problem.answer, problem.arithmetic


def test_every_number_of_the_solution_follows_from_the_question(
    mixed: list[Problem],
) -> None:
    for problem in mixed:
        known = {int(n) for n in re.findall(r"\d+", problem.question)} | {2}
        for a, _, b, result in equations(problem):
            assert {a, b} <= known, (problem.question, problem.solution)
            known.add(result)


def test_answers_stay_in_their_range(mixed: list[Problem]) -> None:
    assert all(1 <= problem.answer <= MAX_TOTAL for problem in mixed)


def test_question_does_not_give_the_answer_away(mixed: list[Problem]) -> None:
    assert all(extract_answer(problem.question) is None for problem in mixed)
    assert all(problem.question.endswith("?") for problem in mixed)


def test_splits_share_no_arithmetic() -> None:
    train = {problem.arithmetic for problem in some("train")}
    held_out = {problem.arithmetic for problem in some("held_out")}
    assert not train & held_out


def test_splits_share_no_question() -> None:
    train = {problem.question for problem in some("train")}
    held_out = {problem.question for problem in some("held_out")}
    assert not train & held_out


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_stream_holds_only_its_own_split(split: Split) -> None:
    assert {problem.split for problem in some(split, count=500)} == {split}


def test_about_one_problem_in_ten_is_held_out(mixed: list[Problem]) -> None:
    held_out = sum(problem.split == "held_out" for problem in mixed)
    assert 0.08 < held_out / len(mixed) < 0.13


def test_wording_plays_no_part_in_the_split() -> None:
    first = Problem("Tom has 5 eggs.", "", 8, "5 +3")
    second = Problem("Mia starts with 5 toys.", "", 8, "5 +3")
    assert first.split == second.split


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_same_seed_gives_the_same_stream(split: Split) -> None:
    assert some(split, seed=3, count=50) == some(split, seed=3, count=50)


def test_other_seeds_give_other_streams() -> None:
    assert some("train", seed=3, count=50) != some("train", seed=4, count=50)


def test_stream_takes_nothing_from_the_global_random_state() -> None:
    random.seed(1)
    first = some("train", count=20)
    random.seed(2)
    assert some("train", count=20) == first


def test_problems_vary(mixed: list[Problem]) -> None:
    assert len({problem.question for problem in mixed}) > 0.99 * len(mixed)
    assert {len(problem.arithmetic.split()) for problem in mixed} >= {2, 3, 4}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 7.", 7),
        ("At first there are 3. Then 3 + 4 = 7. The answer is 7.", 7),
        ("The answer is -12.", -12),
        ("The answer is 1. No: the sum is 2. The answer is 2.", 2),
        ("The answer is 7. Tom has 9 more", 7),
        ("The answer is 007.", 7),
    ],
)
def test_last_stated_answer_is_extracted(text: str, answer: int) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "The answer is",
        "The answer is 7",
        "The answer is 7.5",
        "The answer is 7.5.",
        "the answer is 7.",
        "The answer is seven.",
        "The answer is 7 apples.",
    ],
)
def test_text_without_a_stated_answer_gives_none(text: str) -> None:
    assert extract_answer(text) is None
