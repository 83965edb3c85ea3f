"""The tables of a run, the same in Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from em_inf.evaluation.costs import Costs
from em_inf.evaluation.statistics import Accuracy, Difference
from em_inf.evaluation.summary import DecoderSummary, Summary, gap_text, p_text, points


@dataclass(frozen=True)
class Table:
    """Cells as texts.

    Attributes:
        title: of the table.
        note: what the columns mean.
        columns: heading, and whether it holds numbers, which stand right.
        rows: the first cell names the row.
    """

    title: str
    note: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(summary: Summary) -> tuple[Table, ...]:
    """Accuracy with differences, grades, costs, and the paper's figures, if any."""
    tables = (
        _accuracy(summary),
        _controls(summary),
        _grades(summary),
        _costs(summary),
        _method(summary),
        _paper(summary),
    )
    return tuple(table for table in tables if table.rows)


def _accuracy(summary: Summary) -> Table:
    def row(line: DecoderSummary) -> tuple[str, ...]:
        found = line.difference
        return (
            line.record.name,
            "-" if line.accuracy is None else accuracy_text(line.accuracy),
            "-" if found is None else gap_text(found),
            "-" if found is None else p_text(found.p),
            p_text(line.holm_p),
            "-" if found is None else f"{found.better} / {found.worse}",
            "-" if found is None else _detectable(found),
            "-" if found is None else str(found.questions),
            line.verdict,
        )

    methods = sorted({line.accuracy.interval.method for line in summary.decoders
                      if line.accuracy})  # fmt: skip
    tests = sorted({f"{line.difference.test} for p, {line.difference.interval.method} "
                    "for the interval" for line in summary.decoders
                    if line.difference})  # fmt: skip
    note = f"95 % intervals in brackets. Accuracy: {' and '.join(methods)}. "
    if tests:
        note += (
            f"Difference from {summary.baseline}, paired over the questions that both "
            f"answered: {'; '.join(tests)}. Better / worse counts the questions on which "
            "the decoder does better or worse. Detectable: the smallest true difference "
            "found with power 0.8 at the level of 5 %, uncorrected. Holm p is corrected "
            "for the number of decoders, the intervals are not; the verdict goes by Holm "
            "p at 0.05."
        )
    return Table(
        "Accuracy",
        note.strip(),
        (
            ("Decoder", False),
            ("Accuracy, %", True),
            (f"Difference from {summary.baseline}, points", True),
            ("p", True),
            ("Holm p", True),
            ("Better / worse", True),
            ("Detectable, points", True),
            ("Questions", True),
            ("Verdict", False),
        ),
        tuple(map(row, summary.decoders)),
    )


def _detectable(found: Difference) -> str:
    return points(found.detectable) if math.isfinite(found.detectable) else "none"


def accuracy_text(found: Accuracy) -> str:
    """A share in percent, with its interval."""
    low, high = found.interval.low, found.interval.high
    return f"{points(found.value)} [{points(low)}, {points(high)}]"


def _controls(summary: Summary) -> Table:
    return Table(
        "Beside plain temperature of the same entropy",
        "The control that the paper lacks: what lowering entropy in this way does that "
        "a lower temperature would not. Paired as above; Holm p over these rows.",
        (
            ("Decoder", False),
            ("Difference from its control, points", True),
            ("p", True),
            ("Holm p", True),
            ("Better / worse", True),
            ("Detectable, points", True),
        ),
        tuple(
            (
                of.decoder,
                gap_text(of.difference),
                p_text(of.difference.p),
                p_text(of.holm_p),
                f"{of.difference.better} / {of.difference.worse}",
                _detectable(of.difference),
            )
            for of in summary.controls
        ),
    )


def _grades(summary: Summary) -> Table:
    return Table(
        "Grades",
        "Answers. Not extracted: the grader found no answer in the text. Not graded: the "
        "grader itself gave up. Neither counts as right. Unanswered: questions.",
        (
            ("Decoder", False),
            ("Right", True),
            ("Wrong", True),
            ("Not extracted", True),
            ("Not graded", True),
            ("Unanswered", True),
        ),
        tuple(
            (line.record.name, *map(str, line.grades.values()), str(line.unanswered))
            for line in summary.decoders
        ),
    )


_Column = tuple[str, Callable[[Costs], str]]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else points(value)


_COSTS: tuple[_Column, ...] = (
    ("Output tokens per answer", lambda of: _number(of.tokens, 1)),
    ("Requests per answer", lambda of: _number(of.calls, 2)),
    ("Seconds in requests per answer", lambda of: _number(of.seconds, 2)),
    ("Wall seconds per answer", lambda of: _number(of.wall_seconds, 3)),
    ("Answers per minute", lambda of: _number(of.answers_per_minute, 1)),
    ("Tokens per second", lambda of: _number(of.tokens_per_second, 0)),
    ("Retries", lambda of: str(of.retries)),
)
_METHOD: tuple[_Column, ...] = (
    ("Touched tokens, %", lambda of: _percent(of.touched)),
    ("Gradient steps per token", lambda of: _number(of.grad_steps, 2)),
    ("Entropy before, nats", lambda of: _number(of.entropy_before, 3)),
    ("Entropy after, nats", lambda of: _number(of.entropy_after, 3)),
    ("Tokens per text", lambda of: _number(of.length, 1)),
    ("Cut off at the limit, %", lambda of: _percent(of.cut)),
    ("Repeated 4-grams, %", lambda of: _percent(of.repetition)),
)


def _of_costs(
    title: str, note: str, columns: Iterable[_Column], summary: Summary
) -> Table:
    columns = tuple(columns)
    return Table(
        title,
        note,
        (("Decoder", False), *((heading, True) for heading, _ in columns)),
        tuple(
            (line.record.name, *(cell(line.costs) for _, cell in columns))
            for line in summary.decoders
        ),
    )


def _costs(summary: Summary) -> Table:
    return _of_costs(
        "Costs",
        "An output token is one forward pass of the model. Seconds in requests add up "
        "an answer's requests, also those that ran at once; wall seconds, answers per "
        "minute and tokens per second are at the run's concurrency.",
        _COSTS,
        summary,
    )


def _method(summary: Summary) -> Table:
    return _of_costs(
        "Tokens and texts",
        "Entropies are means over output tokens, before method and temperature, and "
        "after the method, before temperature. Touched: those whose logits were changed. "
        "Repeated 4-grams: share of a text's runs of four words that stood in it before.",
        _METHOD,
        summary,
    )


def _paper(summary: Summary) -> Table:
    return Table(
        "Beside the paper",
        "The paper's figures are single runs without intervals.",
        (("Decoder", False), ("Here, %", True), ("Paper, %", True), ("Where", False)),
        tuple(
            (
                line.record.name,
                "-" if line.accuracy is None else accuracy_text(line.accuracy),
                f"{line.record.paper[0]:.1f}",
                line.record.paper[1],
            )
            for line in summary.decoders
            if line.record.paper
        ),
    )
