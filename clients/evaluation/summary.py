"""What a run found: accuracy, difference from the baseline, verdict and cost of each.

A verdict goes by Holm's p alone; the intervals beside it are not corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from clients.evaluation.costs import Costs, costs_of
from clients.evaluation.records import Answer, DecoderRecord, Grade, Run
from clients.evaluation.sentences import headlines, verdict
from clients.evaluation.statistics import Accuracy, Difference, accuracy, difference, holm


@dataclass(frozen=True)
class DecoderSummary:
    """One line of the tables.

    Attributes:
        record: the decoder, as it ran.
        accuracy: None where it answered nothing.
        difference: from the baseline; None for the baseline itself, and where the two
            answered no question both.
        holm_p: the difference's p after Holm's correction over all decoders.
        verdict: what may be said of it.
        grades: answers of each grade; only "right" counts as right.
        unanswered: questions of the run that it has no answer to.
        costs: see there.
    """

    record: DecoderRecord
    accuracy: Accuracy | None
    difference: Difference | None
    holm_p: float | None
    verdict: str
    grades: Mapping[Grade, int]
    unanswered: int
    costs: Costs


@dataclass(frozen=True)
class Control:
    """A decoder beside plain temperature that has the entropy which it leaves.

    Attributes:
        decoder: its name.
        matched: name of the plain temperature.
        difference: of the decoder from the plain temperature.
        holm_p: corrected over the run's controls.
    """

    decoder: str
    matched: str
    difference: Difference
    holm_p: float


@dataclass(frozen=True)
class Summary:
    """A run in figures.

    Attributes:
        baseline: name of the decoder that the others are compared with.
        decoders: in the run's order.
        controls: one for each decoder of which the run has the entropy-matched one too.
        headlines: what to read first, each a sentence or two.
    """

    baseline: str
    decoders: tuple[DecoderSummary, ...]
    controls: tuple[Control, ...]
    headlines: tuple[str, ...]

    def of(self, name: str) -> DecoderSummary:
        """The line of a decoder.

        Raises:
            KeyError: there is none of that name.
        """
        for decoder in self.decoders:
            if decoder.record.name == name:
                return decoder
        raise KeyError(name)


def summarize(run: Run) -> Summary:
    """All figures of a run. The same run gives the same summary, bit for bit.

    Raises:
        ValueError: the baseline is none of the run's decoders.
    """
    if run.baseline not in {record.name for record in run.decoders}:
        raise ValueError(
            f"baseline: {run.baseline!r} is no decoder of this run; there are "
            + ", ".join(repr(record.name) for record in run.decoders)
        )
    answers: dict[str, list[Answer]] = {record.name: [] for record in run.decoders}
    for answer in run.answers:
        answers[answer.decoder].append(answer)
    scores = {name: scores_of(given) for name, given in answers.items()}
    lines = [_line(record, answers[record.name], scores, run) for record in run.decoders]
    compared = [line for line in lines if line.difference is not None]
    corrected = holm([line.difference.p for line in compared if line.difference])
    p_of = {line.record.name: p for line, p in zip(compared, corrected, strict=True)}
    lines = [replace(line, holm_p=p_of.get(line.record.name)) for line in lines]
    judged = tuple(replace(line, verdict=verdict(line, run.baseline)) for line in lines)
    controls = _controls(run, scores)
    sentences = tuple(headlines(judged, controls, run))
    return Summary(run.baseline, judged, controls, sentences)


def scores_of(answers: Iterable[Answer]) -> dict[str, list[float]]:
    """Each question's scores, in order of the sample; 1 for a right answer."""
    ordered = sorted(answers, key=lambda answer: answer.sample)
    scores: dict[str, list[float]] = {}
    for answer in ordered:
        right = float(answer.verdict.grade == "right")
        scores.setdefault(answer.problem, []).append(right)
    return scores


def _controls(
    run: Run, scores: Mapping[str, Mapping[str, list[float]]]
) -> tuple[Control, ...]:
    """`matched(of=NAME)` is the control of NAME, if both are there."""
    found = []
    for record in run.decoders:
        of = record.name.removeprefix("matched(of=").removesuffix(")")
        if record.kind == "matched" and of in scores:
            gap = difference(scores[record.name], scores[of], run.seed)
            if gap is not None:
                found.append((of, record.name, gap))
    corrected = holm([gap.p for _, _, gap in found])
    return tuple(Control(*of, p) for of, p in zip(found, corrected, strict=True))


def _line(
    record: DecoderRecord,
    answers: list[Answer],
    scores: Mapping[str, Mapping[str, list[float]]],
    run: Run,
) -> DecoderSummary:
    own = scores[record.name]
    found = None
    if record.name != run.baseline:
        found = difference(scores[run.baseline], own, run.seed)
    counted = Counter(answer.verdict.grade for answer in answers)
    grades: tuple[Grade, ...] = ("right", "wrong", "not_extracted", "not_graded")
    return DecoderSummary(
        record=record,
        accuracy=accuracy(own, run.seed),
        difference=found,
        holm_p=None,
        verdict="",
        grades={grade: counted[grade] for grade in grades},
        unanswered=len(run.problems) - len(own),
        costs=costs_of(answers, record.seconds),
    )
