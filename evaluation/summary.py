"""What a run found: accuracy, difference from the baseline, verdict and cost of each; and
what may be said of it in sentences.

A verdict goes by Holm's p alone; the intervals beside it are not corrected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from em_inf.evaluation.costs import Costs, costs_of
from em_inf.evaluation.records import Answer, DecoderRecord, Grade, Run
from em_inf.evaluation.statistics import (
    ALPHA,
    Accuracy,
    Difference,
    accuracy,
    difference,
    holm,
)


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


def verdict(line: DecoderSummary, baseline: str) -> str:
    """What may be said of one decoder; Holm's p decides.

    Args:
        line: with its corrected p.
        baseline: name of what it is compared with.
    """
    found = line.difference
    if line.record.name == baseline:
        return "the baseline"
    if found is None:
        return f"not compared: no question that {baseline} answered too"
    if not is_distinguishable(line):
        return f"not distinguishable from {baseline} on this data"
    low, high = found.interval.low, found.interval.high
    if found.value > 0:
        return f"better by {points(found.value)} [{points(low)}, {points(high)}] points"
    return f"worse by {points(-found.value)} [{points(-high)}, {points(-low)}] points"


def headlines(
    lines: Sequence[DecoderSummary], controls: Sequence[Control], run: Run
) -> Iterator[str]:
    """What to read first.

    Args:
        lines: all decoders, judged.
        controls: beside temperatures of the same entropy.
        run: they are of.
    """
    base = run.baseline
    compared = [line for line in lines if line.difference]
    family = [line for line in compared if uses_em_inf(line.record)]
    if family:
        yield _of_em_inf(family, base)
    yield from map(_of_control, controls)
    told_apart = [line for line in compared if is_distinguishable(line)]
    if compared and not told_apart:
        yield f"No decoder is distinguishable from {base} on this data."
    for way, sign in (("better", 1), ("worse", -1)):
        those = [_named(line) for line in told_apart if sign * _gap(line) > 0]
        if those:
            yield f"Reliably {way} than {base}, in points: {'; '.join(those)}."
    if any(line.accuracy for line in lines):
        yield _of_the_best(lines, base)
    if compared:
        yield _of_power(compared, base)
    yield from _of_what_is_missing(lines, run)


def is_distinguishable(line: DecoderSummary) -> bool:
    """Whether the difference from the baseline outlasts Holm's correction."""
    return line.holm_p is not None and line.holm_p <= ALPHA


def uses_em_inf(record: DecoderRecord) -> bool:
    """Whether a decoder's requests take gradient steps on the logits."""
    sent = record.request.get("em_inf")
    if not isinstance(sent, Mapping):
        return sent is True or (isinstance(sent, str) and sent != "adaptive")
    return (
        sent.get("enabled") is not False
        and sent.get("method", "gradient") == "gradient"
        and sent.get("preset") != "adaptive"
        and sent.get("n_grad_steps") != 0
    )


def points(share: float, signed: bool = False) -> str:
    """A share in percent, with one decimal."""
    rounded = round(100 * share, 1) + 0.0  # No minus before a zero.
    return f"{rounded:+.1f}" if signed else f"{rounded:.1f}"


def gap_text(found: Difference) -> str:
    """A difference in percentage points, with its interval."""
    low, high = found.interval.low, found.interval.high
    return f"{points(found.value, True)} [{points(low, True)}, {points(high, True)}]"


def p_text(value: float | None) -> str:
    """A p-value for people."""
    if value is None:
        return "-"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _gap(line: DecoderSummary) -> float:
    return line.difference.value if line.difference else -math.inf


def _named(line: DecoderSummary) -> str:
    assert line.difference is not None
    return f"{line.record.name} {gap_text(line.difference)}"


def _of_em_inf(family: Sequence[DecoderSummary], base: str) -> str:
    best = max(family, key=_gap)
    figures = f"{_named(best)} points, Holm p {p_text(best.holm_p)}"
    wins = sum(is_distinguishable(line) and _gap(line) > 0 for line in family)
    says = f"EM-INF {'beats' if wins else 'does not beat'} {base} here"
    if len(family) == 1:
        return f"{says}: {figures}."
    count = f"{wins or 'none'} of the {len(family)} decoders with it"
    return f"{says}: {count} reliably better, the best of them {figures}."


def _of_control(control: Control) -> str:
    found = control.difference
    what = f"{control.decoder} and plain temperature of the same entropy"
    figures = f"({gap_text(found)} points, Holm p {p_text(control.holm_p)})"
    if control.holm_p > ALPHA:
        return f"{what} are not distinguishable on this data {figures}."
    way = "the former is better" if found.value > 0 else "the latter is better"
    return f"{what} are not alike: {way} {figures}."


def _of_the_best(lines: Sequence[DecoderSummary], base: str) -> str:
    best = max(lines, key=lambda line: line.accuracy.value if line.accuracy else -1.0)
    assert best.accuracy is not None
    low, high = best.accuracy.interval.low, best.accuracy.interval.high
    text = (
        f"The highest accuracy is that of {best.record.name}, "
        f"{points(best.accuracy.value)} % [{points(low)}, {points(high)}]"
    )
    tokens = next(line.costs.tokens for line in lines if line.record.name == base)
    if best.record.name != base and tokens and best.costs.tokens:
        text += f", at {best.costs.tokens / tokens:.2f} times the output tokens of {base}"
    return text + "; the best of many is flattered by chance."


def _of_power(compared: Sequence[DecoderSummary], base: str) -> str:
    sizes = sorted(line.difference.detectable for line in compared if line.difference)
    low, high = sizes[0], sizes[-1]
    if math.isinf(low):
        return f"There are too few questions to tell any decoder from {base}."
    size = points(low)
    if points(high) != size:
        size += " to " + ("over 100" if math.isinf(high) else points(high))
    return (
        f"A true difference from {base} has to be {size} points, depending on how often "
        "the decoder's answers differ, for data like this to show it four times out of "
        "five (level 5 %, one comparison). Of smaller ones this data says little."
    )


def _of_what_is_missing(lines: Sequence[DecoderSummary], run: Run) -> Iterator[str]:
    not_extracted = sum(line.grades["not_extracted"] for line in lines)
    not_graded = sum(line.grades["not_graded"] for line in lines)
    if not_extracted or not_graded:
        yield (
            f"Of {len(run.answers)} answers, {not_extracted} held nothing that the "
            f"grader could read as an answer, and {not_graded} could not be graded; they "
            "count as not right."
        )
    missing = sum(line.unanswered for line in lines)
    if missing:
        yield (
            f"Unfinished: {missing} of {len(lines) * len(run.problems)} pairs of decoder "
            "and question have no answer. A difference is over the questions that both "
            "decoders answered."
        )
