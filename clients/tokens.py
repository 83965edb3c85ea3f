"""The text of each token beside its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_inf.clients.errors import NoReportError
from em_inf.clients.report import ChoiceReport, Report, report_of


@dataclass(frozen=True)
class TokenText:
    """A token as logprobs show it.

    Attributes:
        text: of this token alone; part of a character may show as a replacement mark.
        logprob: natural logarithm of the probability that the model gave it, before
            EM-INF and temperature, unless the server says otherwise.
    """

    text: str
    logprob: float | None


@dataclass(frozen=True)
class Token:
    """One output token, and what EM-INF did to it.

    Attributes:
        position: from 0.
        text: of this token alone; "" for an end token that the route does not show.
        logprob: as in `TokenText`; None where the route does not show the token.
        entropy_before: nats, before EM-INF and temperature; None where it was lost.
        entropy_after: nats, after EM-INF, before temperature; None where it was lost.
        grad_steps: Adam steps; None under adaptive temperature.
        temperature: under adaptive temperature, 1 where the token was left alone.
    """

    position: int
    text: str
    logprob: float | None
    entropy_before: float | None
    entropy_after: float | None
    grad_steps: int | None
    temperature: float | None

    @property
    def probability(self) -> float | None:
        """The probability that `logprob` is the logarithm of."""
        return None if self.logprob is None else math.exp(self.logprob)

    @property
    def minimized(self) -> bool:
        """Whether its logits were changed."""
        return bool(self.grad_steps) or (self.temperature or 1.0) < 1.0


def tokens_of(response: Any, index: int = 0) -> list[Token]:
    """The tokens of one choice of a whole response, each with its entropies.

    The request must ask for `EMInf(report="trace")` and for logprobs, which give the
    tokens their texts: `logprobs=True` in a chat, `logprobs=0` in a completion,
    `include=["message.output_text.logprobs"]` in a Responses call.

    Raises:
        NoReportError: one of the two is missing, or there is no report at all.
    """
    return align(report_of(response), texts_of(response, index), index)


def texts_of(response: Any, index: int) -> list[TokenText]:
    """The token texts of one choice of a whole response, from its logprobs."""
    choices = getattr(response, "choices", None)
    if choices is not None:
        return next(
            (texts_in(choice.logprobs) for choice in choices if choice.index == index), []
        )
    parts = [
        part
        for item in getattr(response, "output", ())
        if item.type == "message"
        for part in item.content
    ]
    return [text for part in parts for text in texts_in(getattr(part, "logprobs", None))]


def texts_in(logprobs: Any) -> list[TokenText]:
    """Token texts from any of the three forms in which the SDK has logprobs."""
    if logprobs is None:
        return []
    if isinstance(logprobs, Sequence):  # Responses: a list of entries.
        return [TokenText(entry.token, entry.logprob) for entry in logprobs]
    if hasattr(logprobs, "tokens"):  # Completions: columns.
        pairs = zip(logprobs.tokens or (), logprobs.token_logprobs or (), strict=True)
        return [TokenText(text, logprob) for text, logprob in pairs]
    return texts_in(logprobs.content or [])


def align(report: Report, texts: Sequence[TokenText], index: int) -> list[Token]:
    """Lay a choice's texts beside the figures of its trace.

    Raises:
        NoReportError: there is no trace, no such choice, or no text for each token.
    """
    choice = _choice(report, index)
    trace = choice.trace
    if trace is None:
        raise NoReportError(
            "the report has no trace; ask for it with EMInf(report='trace')"
        )
    if len(texts) != choice.tokens:
        raise NoReportError(
            f"choice {index} has {choice.tokens} tokens and logprobs for {len(texts)}; "
            "ask for logprobs (logprobs=True in a chat, logprobs=0 in a completion)"
        )
    nothing: tuple[None, ...] = (None,) * choice.tokens
    rows = zip(
        texts,
        trace.entropy_before,
        trace.entropy_after,
        trace.grad_steps or nothing,
        trace.temperature or nothing,
        strict=True,
    )
    return [
        Token(position, text.text, text.logprob, before, after, steps, temperature)
        for position, (text, before, after, steps, temperature) in enumerate(rows)
    ]


def _choice(report: Report, index: int) -> ChoiceReport:
    for choice in report.choices:
        if choice.index == index:
            return choice
    raise NoReportError(f"the report has no choice {index}")
