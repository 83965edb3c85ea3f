"""Multiple choice: the letter of an option."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from em_inf.evaluation.graders.announced import announced, boxed, plain, spoken
from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.graders.normalized import normalize
from em_inf.evaluation.records import Problem, Verdict

# (B), **B**, $B$, [B], \text{B}, "option B", "B. Paris", "B) Paris", "B: Paris"
_LETTER = re.compile(
    r"^(?:option\s+|choice\s+)?[\s$*(\[{\"'`]*(?:\\(?:text|textbf|mathrm|mathbf)\{\(?)?"
    r"(?P<letter>[A-Za-z])(?P<after>[)\]}*\"'`$.,:;]|\s*$)",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


class Choice:
    """Right where the text chooses the problem's letter.

    Read are, in this order: the last box; "The answer is (B)" and its like, with or
    without brackets and the option's text; a text or last line that is a letter alone or
    with its option ("B", "(B)", "B. Paris"); the wording of an option where one of these
    places holds just that; the only letter that stands in brackets anywhere. A letter
    that is none of the options is not extracted.

    The options are `more["choices"]`, a list of texts; without it, four: A to D. The
    problem's answer is a letter, or its index from 0.
    """

    name = "choice"

    def extract(self, text: str, problem: Problem) -> str | None:
        """The letter, upper case."""
        options = _options(problem)
        letters = string.ascii_uppercase[: len(options)]
        said = spoken(text)
        lines = [line for line in said.splitlines() if line.strip()]
        places = (boxed(said), announced(said), lines[-1] if lines else None)
        for place in places:
            if place is None:
                continue
            letter = _letter(place, options, letters)
            if letter:
                return letter
            if place is not places[2]:
                return None  # It announces something that is no option.
        bracketed = {letter for letter in _IN_BRACKETS.findall(said) if letter in letters}
        return bracketed.pop() if len(bracketed) == 1 else None

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Compare the letter with `problem.answer`.

        Raises:
            GraderError: the problem's answer is none of its choices.
        """
        answer = _answer(problem)
        found = self.extract(text, problem)
        if found is None:
            return Verdict("not_extracted")
        return Verdict("right" if found == answer else "wrong", found)


def _letter(place: str, options: Sequence[str], letters: str) -> str | None:
    wording = normalize(place)
    same = [
        i for i, option in enumerate(options) if option and normalize(option) == wording
    ]
    if len(same) == 1:
        return letters[same[0]]
    match = _LETTER.match(plain(place))
    if match is None:
        return None
    letter = match["letter"].upper()
    return letter if letter in letters else None


def _options(problem: Problem) -> Sequence[str]:
    choices: Any = problem.more.get("choices", [""] * 4)
    if (
        not isinstance(choices, list | tuple)
        or not 2 <= len(choices) <= 26
        or not all(isinstance(choice, str) for choice in choices)
    ):
        raise GraderError(
            f"choices of problem {problem.id}: {choices!r} is not allowed; allowed: a "
            "list of 2 to 26 texts"
        )
    return choices


def _answer(problem: Problem) -> str:
    letters = string.ascii_uppercase[: len(_options(problem))]
    answer = problem.answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(letters):
            return letters[answer]
    elif isinstance(answer, str):
        letter = answer.strip().strip("()").upper()
        if len(letter) == 1 and letter in letters:
            return letter
    raise GraderError(
        f"answer of problem {problem.id}: {answer!r} is none of its choices; allowed: a "
        f"letter from A to {letters[-1]}, or an index from 0 to {len(letters) - 1}"
    )
