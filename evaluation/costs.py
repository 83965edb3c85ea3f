"""What answers cost, and what their texts are like."""

from __future__ import annotations

from dataclasses import dataclass

from em_inf.evaluation.records import Answer, Call

GRAM = 4
"""Words of the runs whose repetition is counted."""


@dataclass(frozen=True)
class Costs:
    """What a decoder took and did; None where nothing was measured.

    Attributes:
        tokens: output tokens of an answer, all its calls together: as many forward
            passes of the model.
        seconds: of an answer's requests, summed, seen from the client.
        wall_seconds: of an answer, at the run's concurrency: the decoder's wall time
            over its answers.
        tokens_per_second: output tokens over the decoder's wall time.
        answers_per_minute: answers over the decoder's wall time.
        calls: requests of an answer.
        touched: share of output tokens whose logits the method changed.
        grad_steps: Adam steps of an output token.
        entropy_before: mean over output tokens, nats, before method and temperature.
        entropy_after: the same after the method, before temperature.
        length: output tokens of a call.
        cut: share of calls that the limit on tokens ended.
        repetition: share of a text's runs of four words that stood in it before, mean
            over the calls of at least four words.
        retries: requests that were refused or broken off, and sent again.
    """

    tokens: float | None
    seconds: float | None
    wall_seconds: float | None
    tokens_per_second: float | None
    answers_per_minute: float | None
    calls: float | None
    touched: float | None
    grad_steps: float | None
    entropy_before: float | None
    entropy_after: float | None
    length: float | None
    cut: float | None
    repetition: float | None
    retries: int


def costs_of(answers: list[Answer], wall_seconds: float) -> Costs:
    """What answers took.

    Args:
        answers: of one decoder.
        wall_seconds: in which they were asked; 0 where that is not known.
    """
    calls = [call for answer in answers for call in answer.calls]
    tokens = sum(call.tokens for call in calls)
    steps = [call for call in calls if call.grad_steps is not None]
    repeated = [share for call in calls if (share := repetition(call.text)) is not None]
    return Costs(
        tokens=_ratio(tokens, len(answers)),
        seconds=_ratio(sum(call.seconds for call in calls), len(answers)),
        wall_seconds=_ratio(wall_seconds, len(answers)) if wall_seconds else None,
        tokens_per_second=_ratio(tokens, wall_seconds),
        answers_per_minute=_ratio(60 * len(answers), wall_seconds),
        calls=_ratio(len(calls), len(answers)),
        touched=_ratio(sum(call.tokens_minimized for call in calls), tokens),
        grad_steps=_ratio(
            sum(call.grad_steps or 0 for call in steps),
            sum(call.tokens for call in steps),
        ),
        entropy_before=_mean_entropy(calls, "entropy_before"),
        entropy_after=_mean_entropy(calls, "entropy_after"),
        length=_ratio(tokens, len(calls)),
        cut=_ratio(sum(call.finish_reason == "length" for call in calls), len(calls)),
        repetition=_ratio(sum(repeated), len(repeated)),
        retries=sum(call.tries - 1 for call in calls),
    )


def repetition(text: str) -> float | None:
    """Share of runs of four words that stood in the text before; None if too short."""
    words = text.split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def _mean_entropy(calls: list[Call], name: str) -> float | None:
    """Mean over the tokens of the calls that measured it, nats."""
    measured = [(getattr(call, name), call.tokens) for call in calls]
    known = [(value, tokens) for value, tokens in measured if value is not None]
    return _ratio(
        sum(value * tokens for value, tokens in known), sum(tokens for _, tokens in known)
    )


def _ratio(value: float, of: float) -> float | None:
    return value / of if of else None
