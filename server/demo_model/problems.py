"""Arithmetic word problems with worked solutions, which the demo model learns.

Standard library only, so that an evaluation can import it without torch. A problem is
a start quantity and one to three events, each of which changes the running total; the
solution says each step as an equation and ends in "The answer is N.".

The two splits are disjoint by arithmetic, not by wording: a problem belongs to the
held-out split when a hash of its operations and numbers says so, so no held-out chain
of calculations was ever seen in training, under any name or object.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 10  # one in so many operation-and-number combinations is held out
MAX_TOTAL = 500

NAMES = {
    "Tom": "He", "Ben": "He", "Omar": "He", "Luis": "He",
    "Jack": "He", "Ravi": "He", "Anna": "She", "Mia": "She",
    "Sara": "She", "Lucy": "She", "Nina": "She", "Zoe": "She",
}  # fmt: skip
ITEMS = (
    "apples", "books", "coins", "cards", "shells", "stamps",
    "pencils", "eggs", "marbles", "stones", "cakes", "toys",
)  # fmt: skip
ANSWER = re.compile(r"The answer is (-?\d+)\.(?!\d)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem.

    Attributes:
        question: the text that a user sends.
        solution: a worked solution, ending in "The answer is N.".
        answer: N.
        arithmetic: operations and numbers in order; decides the split.
    """

    question: str
    solution: str
    answer: int
    arithmetic: str

    @property
    def split(self) -> Split:
        """Which side the arithmetic falls on; wording plays no part."""
        digest = hashlib.sha256(self.arithmetic.encode()).digest()
        return "held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"


@dataclass(slots=True)
class _Story:
    """A problem in the making."""

    rng: random.Random
    name: str
    item: str
    total: int
    said: list[str]
    worked: list[str]
    arithmetic: list[str]

    def pick(self, *phrases: str) -> str:
        """One of several wordings, the first the most usual."""
        weights = [4.0 / (1 + 2 * i) for i in range(len(phrases))]
        return self.rng.choices(phrases, weights)[0]

    def equation(self, operator: str, operand: int, result: int) -> None:
        """Write one step of the solution and move the total on."""
        step = f"{self.total} {operator} {operand} = {result}"
        self.worked.append(
            self.pick(f"{step}.", f"Then {step}.", f"So there are {step} {self.item}.")
        )
        self.arithmetic.append(f"{operator}{operand}")
        self.total = result


def _gain(story: _Story) -> None:
    amount = story.rng.randint(3, 99)
    pronoun = NAMES[story.name]
    story.said.append(
        story.pick(
            f"{pronoun} buys {amount} more.",
            f"{pronoun} finds {amount} {story.item}.",
            f"A friend brings {amount} more {story.item}.",
        )
    )
    story.equation("+", amount, story.total + amount)


def _loss(story: _Story) -> None:
    if story.total < 2:
        _gain(story)
        return
    amount = story.rng.randint(1, min(99, story.total - 1))
    pronoun = NAMES[story.name]
    story.said.append(
        story.pick(
            f"{pronoun} gives away {amount}.",
            f"{pronoun} loses {amount} {story.item}.",
            f"{pronoun} sells {amount} of them.",
        )
    )
    story.equation("-", amount, story.total - amount)


def _boxes(story: _Story) -> None:
    boxes, each = story.rng.randint(2, 9), story.rng.randint(2, 19)
    story.said.append(
        story.pick(
            f"{NAMES[story.name]} buys {boxes} boxes of {each} {story.item}.",
            f"{NAMES[story.name]} gets {boxes} bags with {each} {story.item} each.",
        )
    )
    product = boxes * each
    story.worked.append(
        story.pick(
            f"{boxes} * {each} = {product}.",
            f"The new {story.item} are {boxes} * {each} = {product}.",
        )
    )
    story.arithmetic.append(f"{boxes}*{each}")
    story.equation("+", product, story.total + product)


def _double(story: _Story) -> None:
    story.said.append(
        story.pick(
            "Then the number doubles.",
            f"Then {NAMES[story.name].lower()} gets as many again.",
        )
    )
    story.equation("*", 2, story.total * 2)


def _share(story: _Story) -> None:
    divisors = [k for k in range(2, 10) if story.total % k == 0]
    if not divisors:
        _loss(story)
        return
    friends = story.rng.choice(divisors)
    story.said.append(
        story.pick(
            f"{NAMES[story.name]} puts them in {friends} equal piles and keeps one.",
            f"{NAMES[story.name]} shares them among {friends} people and keeps a part.",
        )
    )
    story.equation("/", friends, story.total // friends)


_EVENTS: tuple[Callable[[_Story], None], ...] = (_gain, _loss, _boxes, _double, _share)


def make_problem(rng: random.Random) -> Problem:
    """One random problem, of either split.

    Args:
        rng: source of every choice; the same state gives the same problem.
    """
    while True:
        start = rng.randint(5, 99)
        name, item = rng.choice(list(NAMES)), rng.choice(ITEMS)
        story = _Story(rng, name, item, start, [], [], [str(start)])
        story.said.append(
            story.pick(
                f"{name} has {start} {item}.", f"{name} starts with {start} {item}."
            )
        )
        for event in rng.choices(_EVENTS, (3, 3, 3, 1, 1), k=rng.choice((1, 2, 2, 3, 3))):
            event(story)
        if not 1 <= story.total <= MAX_TOTAL:
            continue
        story.said.append(
            story.pick(
                f"How many {item} does {name} have now?",
                f"How many {item} are there at the end?",
            )
        )
        opening = story.pick(
            f"{name} starts with {start}.", f"At first there are {start}."
        )
        return Problem(
            question=" ".join(story.said),
            solution=" ".join([opening, *story.worked, f"The answer is {story.total}."]),
            answer=story.total,
            arithmetic=" ".join(story.arithmetic),
        )


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of problems of one split.

    Args:
        split: "train" or "held_out".
        seed: the same seed gives the same stream.
    """
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng)
        if problem.split == split:
            yield problem


def extract_answer(text: str) -> int | None:
    """The number in the last "The answer is N." of a text, None where there is none."""
    found = ANSWER.findall(text)
    return int(found[-1]) if found else None
