"""Equal numbers, within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from em_inf.evaluation.graders.announced import announced, spoken
from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.records import Problem, Verdict

_LONGEST_NUMBER = 60  # digits of a part; exact arithmetic on more has no use
_LARGEST_EXPONENT = 308
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+])?\s?[$€£]?\s?"
    rf"(?:\\[dt]?frac\{{(?P<over>\d+)\}}\{{(?P<under>\d+)\}}"
    rf"|(?P<mixed>\d+)\s+(?P<mixed_over>\d+)/(?P<mixed_under>\d+)"
    rf"|(?P<whole>{_DIGITS})?(?P<decimals>\.\d+)?(?<=\d)"
    r"(?:[eE](?P<exponent>[-+]?\d+)|\s*/\s*(?P<divisor>\d+(?:\.\d+)?))?"
    r")\s*(?P<percent>\\?%)?"
)
_SPACING = re.compile(r"\\[,!;: ]|\{,\}")


@dataclass(frozen=True)
class Number:
    """A number as a text writes it.

    Attributes:
        value: exact, a percent sign not counted.
        percent: whether a percent sign follows it.
    """

    value: Fraction
    percent: bool


def numbers(text: str) -> list[Number]:
    r"""Every number in a text, in order.

    Read are signs, thousands separators (1,234 and LaTeX's 1{,}234), decimals, exponents,
    fractions (3/4, 1 3/4, \frac{3}{4}), dollars and percent signs. A division by zero,
    an exponent beyond 308 and more than 60 digits are no numbers.
    """
    clean = _SPACING.sub(lambda gap: "," if "," in gap[0] and "{" in gap[0] else "", text)
    clean = clean.replace("\N{MINUS SIGN}", "-").replace("\\$", "$")
    found = (_number(match) for match in _NUMBER.finditer(clean))
    return [number for number in found if number is not None]


def _number(match: re.Match[str]) -> Number | None:
    part = match.groupdict()
    if any(len(digits or "") > _LONGEST_NUMBER for digits in part.values()):
        return None
    exponent = int(part["exponent"] or 0)
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    try:
        if part["over"]:
            value = Fraction(int(part["over"]), int(part["under"]))
        elif part["mixed"]:
            value = int(part["mixed"]) + Fraction(
                int(part["mixed_over"]), int(part["mixed_under"])
            )
        else:
            whole = (part["whole"] or "0").replace(",", "")
            value = Fraction(whole + (part["decimals"] or ""))
            value = value * Fraction(10) ** exponent / Fraction(part["divisor"] or 1)
    except ZeroDivisionError:
        return None
    if part["sign"] == "-":
        value = -value
    return Number(value, part["percent"] is not None)


@dataclass(frozen=True)
class Tolerance:
    """How far from the answer is still right.

    Attributes:
        amount: the largest distance that is right.
        relative: whether as a share of the answer's size.
    """

    amount: Fraction = Fraction(1, 10**6)
    relative: bool = True

    @classmethod
    def parse(cls, text: object) -> Tolerance:
        """`0.5` is an absolute tolerance, `1%` a relative one.

        Raises:
            GraderError: it is neither.
        """
        found = numbers(str(text))
        written = str(text).strip()
        if len(found) != 1 or not re.fullmatch(r"[\d.]+([eE][-+]?\d+)?%?", written):
            raise GraderError(
                f"tolerance: {text!r} is not allowed; allowed: a number >= 0 such as 0.5 "
                "(absolute), or a percentage such as 1% (relative)"
            )
        number = found[0]
        return cls(number.value / (100 if number.percent else 1), number.percent)

    def __str__(self) -> str:
        """As `parse` reads it."""
        amount = float(self.amount * (100 if self.relative else 1))
        return f"{amount:g}%" if self.relative else f"{amount:g}"

    def allows(self, found: Fraction, answer: Fraction) -> bool:
        """Whether `found` is near enough."""
        limit = self.amount * abs(answer) if self.relative else self.amount
        return abs(found - answer) <= limit


class Numeric:
    """Right where the answer's number is near enough to the problem's.

    The number is the first one of what the text announces ("The answer is 12.", a box,
    "####"), after its last equals sign; where nothing is announced, the last of the whole
    text, unless `more["announced"]` is true, which wants an announcement.
    `more["tolerance"]` of a problem goes before the grader's; without either 1e-6 of the
    answer is allowed.

    Percent signs do not count (25% is 25), except where the problem's answer is written
    without one and lies strictly between -1 and 1: there 25% is 0.25.
    """

    def __init__(self, tolerance: Tolerance | None = None) -> None:
        self.name = "numeric" if tolerance is None else f"numeric:{tolerance}"
        self._tolerance = Tolerance() if tolerance is None else tolerance

    def extract(self, text: str, problem: Problem) -> str | None:
        """The number as an exact fraction, "12" or "3/4"."""
        said = spoken(text)
        place = announced(said)
        if place is not None:
            read = numbers(place.rpartition("=")[2])[:1]
        else:
            read = [] if problem.more.get("announced") else numbers(said)[-1:]
        if not read:
            return None
        number, answer = read[0], _answer(problem)
        share = number.percent and not answer.percent and abs(answer.value) < 1
        return str(number.value / 100 if share else number.value)

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Compare it with `problem.answer`, a number or a text with one number.

        Raises:
            GraderError: the problem's answer or tolerance is no number.
        """
        answer = _answer(problem)
        own: Any = problem.more.get("tolerance")
        tolerance = self._tolerance if own is None else Tolerance.parse(own)
        found = self.extract(text, problem)
        if found is None:
            return Verdict("not_extracted")
        right = tolerance.allows(Fraction(found), answer.value)
        return Verdict("right" if right else "wrong", found)


def _answer(problem: Problem) -> Number:
    found = numbers(str(problem.answer))
    if not found:
        raise GraderError(
            f"answer of problem {problem.id}: {problem.answer!r} holds no number, which "
            "the grader numeric needs"
        )
    return found[-1]
