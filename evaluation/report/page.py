"""What the templates show: the run's facts, sentences, tables, pictures, examples."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from em_inf.evaluation.records import Answer, Run, TracedToken
from em_inf.evaluation.report.examples import Example, eligible, examples, trace_of
from em_inf.evaluation.report.pictures import accuracy_against, forest
from em_inf.evaluation.report.tables import tables_of
from em_inf.evaluation.summary import Summary

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Nats from which a token is shaded, darker at each."""
_TOP_TOKENS = 5
_SHOWN_CHARACTERS = 4000
"""Of an answer without a trace, and of a question."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        svg: the drawing.
        title: what it shows.
        alt: the same for who cannot see it, and where the figures stand.
    """

    svg: str
    title: str
    alt: str


def html(run: Run, summary: Summary) -> str:
    """The page, with everything it needs inside."""
    return _environment(autoescape=True).get_template("page.html.jinja").render(
        **_content(run, summary), pictures=_pictures(summary), style=_style()
    )  # fmt: skip


def markdown(run: Run, summary: Summary) -> str:
    """The same without pictures, for a repository or an issue."""
    made = _environment(autoescape=False).get_template("page.md.jinja")
    return made.render(**_content(run, summary))


def _content(run: Run, summary: Summary) -> dict[str, Any]:
    return {
        "run": run,
        "summary": summary,
        "facts": _facts(run),
        "tables": tables_of(summary),
        "examples": [_example(run, example) for example in examples(run)],
        "eligible": eligible(run),
        "levels": LEVELS,
    }


def _environment(autoescape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,  # noqa: S701 - Markdown has escapes of its own.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    made.filters["cell"] = _cell
    made.filters["fenced"] = _fenced
    return made


def _style() -> str:
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was asked of whom, and how anyone can repeat it."""
    told = run.server
    server = ", ".join(
        f"{name} {value}" for name, value in told.items() if isinstance(value, str | int)
    )
    return [
        ("Task", f"{run.task}, {len(run.problems)} questions, grader {run.grader}"),
        ("Answers", f"{run.samples} by each decoder to each question"),
        ("Baseline", run.baseline),
        ("Model", run.model),
        ("Server", f"{run.url} ({server or 'says nothing of EM-INF'})"),
        ("Sampling", json.dumps(dict(run.sampling), ensure_ascii=False)),
        ("Seed", str(run.seed)),
        ("Requests at once", str(run.concurrency)),
        ("From, to", f"{run.started}, {run.ended}"),
        ("Versions", ", ".join(f"{name} {of}" for name, of in run.versions.items())),
    ]


def _pictures(summary: Summary) -> list[Picture]:
    rows = "the table of accuracy has every figure"
    numbers = (
        "The numbers are those of the decoders in the tables; diamonds use EM-INF, "
        "circles do not; lines are 95 % intervals of accuracy."
    )
    pictures = []
    if any(line.difference for line in summary.decoders):
        title = (
            f"Difference in accuracy from {summary.baseline}, with 95 % intervals. "
            "Filled markers are distinguishable from it after Holm's correction; "
            "diamonds use EM-INF, circles do not."
        )
        pictures.append(Picture(forest(summary, "forest"), title, f"{title} {rows}"))
    wall = all(line.costs.wall_seconds for line in summary.decoders if line.accuracy)
    seconds = "Wall seconds" if wall else "Seconds in requests"
    for label, name, cost in (
        ("Output tokens per answer", "tokens", lambda of: of.tokens),
        (
            f"{seconds} per answer",
            "seconds",
            (lambda of: of.wall_seconds) if wall else (lambda of: of.seconds),
        ),
    ):
        svg = accuracy_against(summary, cost, label, name)
        if svg is not None:
            title = f"Accuracy against {label[0].lower()}{label[1:]}. {numbers}"
            pictures.append(Picture(svg, title, f"{title} {rows} and that of costs."))
    return pictures


def _example(run: Run, example: Example) -> dict[str, Any]:
    return {
        "problem": example.problem,
        "question": "\n\n".join(
            message["content"] for message in example.problem.messages
        )[:_SHOWN_CHARACTERS],
        "answer": json.dumps(example.problem.answer, ensure_ascii=False)
        if not isinstance(example.problem.answer, str)
        else example.problem.answer,
        "shown": [_shown(run, answer) for answer in example.shown],
        "all": example.all,
    }


def _shown(run: Run, answer: Answer) -> dict[str, Any]:
    trace = trace_of(run, answer)
    tokens = trace.tokens if trace else ()
    known = [token for token in tokens if token.entropy_before is not None]
    top = sorted(known, key=lambda token: -(token.entropy_before or 0.0))[:_TOP_TOKENS]
    return {
        "answer": answer,
        "text": answer.text[:_SHOWN_CHARACTERS],
        "cut": len(answer.text) > _SHOWN_CHARACTERS,
        "trace": trace,
        "tokens": [(token, _level(token), _title(token)) for token in tokens],
        "top": _top(top),
    }


def _level(token: TracedToken) -> int:
    """How dark, from 0 to 4."""
    entropy = token.entropy_before or 0.0
    return sum(entropy >= level for level in LEVELS)


def _title(token: TracedToken) -> str:
    before, after = token.entropy_before, token.entropy_after
    if before is None:
        return "entropy not known"
    return f"{before:.2f} nats" + ("" if after is None else f", after {after:.2f}")


def _top(tokens: Sequence[TracedToken]) -> str:
    return ", ".join(
        f"{json.dumps(token.text, ensure_ascii=False)} {_title(token)}"
        for token in tokens
    )


def _cell(text: str) -> str:
    """A text for a cell of a Markdown table, with nothing that would be markup."""
    plain = re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", text)
    return " ".join(plain.split())


def _fenced(text: str) -> str:
    """A text in a fence longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
