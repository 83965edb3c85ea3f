"""What EM-INF did for one request: its figures, and their form in the response."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

from logits_processors.settings import Settings, settings_of_method

Columns = list[list[float]]
"""Entropies before, after, grad steps, temperatures; one entry an output token."""

EMPTY_COLUMNS: Columns = [[], [], [], []]


@dataclass(eq=False)
class Call:
    """One engine request of a user's request, and what became of it.

    Attributes:
        key: names it among all calls.
        num_choices: how many choices it samples (n).
        num_tokens: choice index to output tokens that the client got.
        columns: choice index to figures; None until, or unless, they could be fetched.
    """

    key: str
    num_choices: int
    num_tokens: dict[int, int] = field(default_factory=dict)
    columns: dict[int, Columns] | None = None

    @property
    def keys(self) -> list[str]:
        """Names of the statistics of each choice in the worker."""
        return [f"{self.key}-{index}" for index in range(self.num_choices)]


class Report:
    """What EM-INF did for one user's request; gathers its engine requests in order.

    Attributes:
        settings: the complete settings that it ran with.
        preset: their name, for the metrics.
        key: finds this report from within `SamplingParams.extra_args`.
        calls: engine requests in the order of their prompts, or of a tool loop's turns.
    """

    def __init__(self, settings: Settings, preset: str) -> None:
        self.settings = settings
        self.preset = preset
        self.key = uuid.uuid4().hex
        self.calls: list[Call] = []
        REPORTS[self.key] = self

    def new_call(self, num_choices: int) -> Call:
        """Add an engine request."""
        call = Call(f"{self.key}-{len(self.calls)}", num_choices)
        self.calls.append(call)
        return call


REPORTS: WeakValueDictionary[str, Report] = WeakValueDictionary()
"""Live reports by key. A report goes when its HTTP request does, however that ends."""


def report_body(report: Report, one_choice: bool) -> dict[str, Any]:
    """The field `em_inf` of a response.

    Args:
        report: a finished request's report.
        one_choice: the engine requests are the turns of one choice (/v1/responses), not
            prompts with choices of their own.
    """
    settings = report.settings
    per_choice: list[Columns | None] = [
        None if call.columns is None else call.columns.get(index, EMPTY_COLUMNS)
        for call in report.calls
        for index in range(call.num_choices)
    ]
    if one_choice:
        turns = [columns for columns in per_choice if columns is not None]
        whole = len(turns) == len(per_choice)
        columns = [list(chain(*parts)) for parts in zip(*turns, strict=True)]
        per_choice = [columns if whole else None]
    return {
        "settings": settings_of_method(settings),
        "choices": [
            _choice_body(index, columns, settings)
            for index, columns in enumerate(per_choice)
        ],
    }


def _choice_body(
    index: int, columns: Columns | None, settings: Settings
) -> dict[str, Any]:
    if columns is None:
        return {"index": index, "error": "the statistics could not be fetched"}
    before, after, steps, temperatures = columns
    body: dict[str, Any] = {"index": index, **figures(columns, settings)}
    if settings.report == "trace":
        body["trace"] = {
            "entropy_before": [_number(x) for x in before],
            "entropy_after": [_number(x) for x in after],
        }
        if settings.method == "gradient":
            body["trace"]["grad_steps"] = [int(n) if n == n else None for n in steps]
        else:
            body["trace"]["temperature"] = [_number(x) for x in temperatures]
    return body


def figures(columns: Columns, settings: Settings) -> dict[str, Any]:
    """Counts and means over the tokens; entropies in nats, None where none is known."""
    before, after, steps, temperatures = columns
    recorded = [n for n in steps if n == n]
    found: dict[str, Any] = {
        "tokens": len(before),
        "tokens_minimized": num_minimized(steps, temperatures),
    }
    gradient = settings.method == "gradient"
    if gradient:
        found["grad_steps"] = int(sum(recorded))
    found["mean_entropy_before"] = _mean(before)
    found["mean_entropy_after"] = _mean(after)
    if not gradient:
        found["mean_temperature"] = _mean(temperatures)
    if len(recorded) < len(before):
        found["tokens_not_recorded"] = len(before) - len(recorded)
    return found


def figures_of_all(call: Call, settings: Settings) -> dict[str, Any]:
    """The figures over all choices of an engine request; empty if not fetched."""
    if call.columns is None:
        return {}
    choices = call.columns.values()
    joined = [list(chain(*parts)) for parts in zip(*choices, strict=True)]
    return figures(joined or EMPTY_COLUMNS, settings)


def _mean(values: list[float]) -> float | None:
    known = [x for x in values if x == x]
    return _number(math.fsum(known) / len(known)) if known else None


def _number(value: float) -> float | None:
    """A figure as JSON shows it: seven decimals, null where it was not recorded."""
    return round(value, 7) + 0.0 if math.isfinite(value) else None


def num_minimized(grad_steps: list[float], temperatures: list[float]) -> int:
    """How many tokens had their logits changed; NaN stands for not recorded.

    Args:
        grad_steps: Adam steps of each token.
        temperatures: adaptive temperature of each token, 1 where untouched.
    """
    pairs = zip(grad_steps, temperatures, strict=True)
    return sum(n > 0 or t < 1 for n, t in pairs)
