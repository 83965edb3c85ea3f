"""The same words, whatever their case, punctuation and articles."""

from __future__ import annotations

import re
import string
import unicodedata

from em_inf.evaluation.graders.announced import answer_in
from em_inf.evaluation.records import Problem, Verdict

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; "" may be left.

    Source: `normalize_answer` of SQuAD's evaluation script (Rajpurkar et al., 2016),
    after Unicode's NFKC, which SQuAD has not.
    """
    lower = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lower).split())


class Normalized:
    """Right where the announced answer and the problem's normalise to the same words.

    A problem's answer may be a list: any of them is right. An answer of which nothing
    is left ("The.") counts as not extracted.
    """

    name = "normalized"

    def extract(self, text: str, problem: Problem) -> str | None:
        """The announced answer, normalised."""
        del problem
        found = answer_in(text)
        return None if found is None else normalize(found) or None

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Compare it with `problem.answer`."""
        found = self.extract(text, problem)
        if found is None:
            return Verdict("not_extracted")
        answer = problem.answer
        accepted = answer if isinstance(answer, list | tuple) else [answer]
        right = found in {normalize(str(one)) for one in accepted}
        return Verdict("right" if right else "wrong", found)
