"""The response's side: what EM-INF did, typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from em_inf.clients.errors import NoReportError


class _Part(BaseModel):
    # A newer server may report more; it stays readable in `model_extra`.
    model_config = ConfigDict(frozen=True, extra="allow")


class AppliedSettings(_Part):
    """The complete settings that the request ran with; those of its method are set."""

    method: str
    threshold: float
    n_grad_steps: int | None = None
    learning_rate: float | None = None
    kl_weight: float | None = None
    target_ratio: float | None = None


class Trace(_Part):
    """One figure for each output token, in order; None where it was lost.

    Attributes:
        entropy_before: nats, of the model's distribution, before temperature.
        entropy_after: nats, of the distribution that EM-INF left, before temperature.
        grad_steps: Adam steps; None as a whole under adaptive temperature.
        temperature: under adaptive temperature, 1 where the token was left alone.
    """

    entropy_before: tuple[float | None, ...]
    entropy_after: tuple[float | None, ...]
    grad_steps: tuple[int | None, ...] | None = None
    temperature: tuple[float | None, ...] | None = None


class ChoiceReport(_Part):
    """What EM-INF did to one choice.

    Attributes:
        index: the choice's.
        tokens: output tokens, as `usage` counts them.
        tokens_minimized: those whose logits were changed.
        grad_steps: Adam steps in all; None under adaptive temperature.
        mean_entropy_before: nats, over all tokens; None where there is none.
        mean_entropy_after: nats, over all tokens; None where there is none.
        mean_temperature: under adaptive temperature.
        tokens_not_recorded: tokens whose figures were lost.
        trace: a figure for each token, if "trace" was asked for.
    """

    index: int
    tokens: int
    tokens_minimized: int
    grad_steps: int | None = None
    mean_entropy_before: float | None
    mean_entropy_after: float | None
    mean_temperature: float | None = None
    tokens_not_recorded: int = 0
    trace: Trace | None = None


class Report(_Part):
    """What EM-INF did for one request.

    Attributes:
        settings: what it ran with.
        choices: one for each choice, in order of their index.
    """

    settings: AppliedSettings
    choices: tuple[ChoiceReport, ...]


def report_of(response: object) -> Report:
    """The report in a response of OpenAI's SDK.

    Args:
        response: a ChatCompletion, Completion or Response; the last chunk or event of a
            stream; what `with_raw_response` returns; or a mapping of the body. From
            `AsyncOpenAI().with_streaming_response` pass `await raw.parse()`.

    Raises:
        NoReportError: the server did not apply EM-INF, it was off, `report="none"` was
            asked for, or the server lost the figures.
    """
    value = _field(response)
    if value is None:
        raise NoReportError(
            "the response has no em_inf: the server did not apply EM-INF. Either the "
            "request asked for report='none' or enabled=False, or the server runs "
            "without EM-INF (stock vLLM ignores the field); start it with `em-inf "
            "serve`, and see `em-inf doctor`"
        )
    choices = value.get("choices") if isinstance(value, Mapping) else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and "error" in choice:
            raise NoReportError(f"choice {choice.get('index')}: {choice['error']}")
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        raise NoReportError(f"em_inf in the response cannot be read: {error}") from error


def _field(response: object) -> Any:
    """The value of `em_inf` in whatever carries it, None where it is absent."""
    if isinstance(response, Mapping):
        return response.get("em_inf")
    if isinstance(response, BaseModel):
        value = (response.model_extra or {}).get("em_inf")
        inner = getattr(response, "response", None)  # The last event of a stream.
        return _field(inner) if value is None and inner is not None else value
    parse = getattr(response, "parse", None)
    if parse is None:
        raise TypeError(f"{type(response).__name__} is no response of OpenAI's SDK")
    parsed = parse()
    if not isinstance(parsed, BaseModel):
        raise TypeError(
            f"a raw response of {type(parsed).__name__} holds no report yet; follow the "
            "stream, or await parse() first"
        )
    return _field(parsed)
