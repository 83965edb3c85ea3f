"""What may be said of a run, in sentences; they come before all tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from clients.evaluation.records import DecoderRecord, Run
from clients.evaluation.statistics import ALPHA, Difference

if TYPE_CHECKING:
    from clients.evaluation.summary import Control, DecoderSummary


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
