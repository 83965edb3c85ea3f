"""The same characters."""

from __future__ import annotations

from em_inf.evaluation.graders.announced import answer_in, plain
from em_inf.evaluation.records import Problem, Verdict


class Exact:
    """Right where the announced answer has the same characters as the problem's.

    The answer is read as `announced.answer_in` says. Only the white space, asterisks and
    one full stop around either of the two do not count.
    """

    name = "exact"

    def extract(self, text: str, problem: Problem) -> str | None:
        """The answer as the text writes it."""
        del problem
        return answer_in(text)

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Compare it with `problem.answer`, written as a string."""
        found = self.extract(text, problem)
        if found is None:
            return Verdict("not_extracted")
        right = found == plain(str(problem.answer))
        return Verdict("right" if right else "wrong", found)
