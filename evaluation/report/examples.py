"""Example questions for the report, drawn by the run's seed and by nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from em_inf.evaluation.records import Answer, Problem, Run, TracedAnswer
from em_inf.evaluation.summary import uses_em_inf

COUNT = 10


@dataclass(frozen=True)
class Example:
    """A question on which the decoders disagree.

    Attributes:
        problem: the question.
        shown: two answers of different grade to show whole, the baseline's first.
        all: every decoder's first answer to it, in the run's order.
    """

    problem: Problem
    shown: tuple[Answer, Answer]
    all: tuple[Answer, ...]


def examples(run: Run, count: int = COUNT) -> list[Example]:
    """Questions that one decoder gets right and another does not.

    Only first samples count. Of all such questions the seed draws, so that nobody can
    choose the ones that look well. Beside the baseline stands the first decoder, those
    with EM-INF before others, that is right where the baseline is not, or the other way
    round. Questions on which the baseline agrees with all others are not eligible.

    Args:
        run: with its answers.
        count: at most so many.
    """
    order = {record.name: place for place, record in enumerate(run.decoders)}
    em_inf = {record.name for record in run.decoders if uses_em_inf(record)}
    first: dict[str, list[Answer]] = {}
    for answer in run.answers:
        if answer.sample == 0:
            first.setdefault(answer.problem, []).append(answer)
    found = []
    for problem in run.problems:
        answers = sorted(first.get(problem.id, ()), key=lambda of: order[of.decoder])
        base = next((of for of in answers if of.decoder == run.baseline), None)
        others = [of for of in answers if base and _right(of) != _right(base)]
        if base and others:
            other = min(others, key=lambda of: of.decoder not in em_inf)
            found.append(Example(problem, (base, other), tuple(answers)))
    return sorted(found, key=lambda example: _draw(run.seed, example.problem.id))[:count]


def eligible(run: Run) -> int:
    """From how many questions `examples` draws."""
    return len(examples(run, len(run.problems)))


def trace_of(run: Run, answer: Answer) -> TracedAnswer | None:
    """The trace of an answer, None where there is none."""
    key = (answer.decoder, answer.problem, answer.sample)
    for trace in run.traces:
        if (trace.decoder, trace.problem, trace.sample) == key:
            return trace
    return None


def _right(answer: Answer) -> bool:
    return answer.verdict.grade == "right"


def _draw(seed: int, problem: str) -> str:
    return hashlib.sha256(f"{seed} {problem}".encode()).hexdigest()
