"""What we add to vLLM's request and response bodies: the field `em_inf`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Self

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from vllm import SamplingParams
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from logits_processors.settings import (
    EXTRA_ARGS_KEY,
    SettingsError,
    server_settings,
    to_extra_args,
)
from server import metrics
from server.report import Report, report_body


class _WireSchema:
    """Shows the field in the OpenAPI document with the ranges of this server."""

    def __get_pydantic_json_schema__(
        self, _core_schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return server_settings().wire_schema()


class EMInfRequestError(VLLMValidationError):
    """What vLLM answers with 400 and an OpenAI-style body that names the field."""

    def __str__(self) -> str:
        # vLLM's own adds the parameter in brackets, which stands in the text already.
        return str(self.args[0])


def _refuse(field: str, reason: str) -> EMInfRequestError:
    metrics.count_refused(field)
    return EMInfRequestError(f"{field}: {reason}", parameter=field)


class EMInfRequestMixin(BaseModel):
    """A request body with `em_inf`, resolved to complete settings while it is parsed.

    Everything that can be wrong is found here, before the first byte of a stream.
    """

    em_inf: Annotated[Any, _WireSchema()] = Field(default=None)
    _em_inf_report: Report | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _resolve_em_inf(self) -> Self:
        try:
            settings, preset = server_settings().resolve(self.em_inf)
        except SettingsError as error:
            raise _refuse(error.field, error.reason) from None
        if EXTRA_ARGS_KEY in (getattr(self, "vllm_xargs", None) or {}):
            raise _refuse("vllm_xargs.em_inf", "is not allowed; em_inf is its own field")
        if settings is None:
            return self
        if getattr(self, "use_beam_search", False):
            raise _refuse(
                "use_beam_search",
                "true is not allowed together with EM-INF, which works on sampled "
                "tokens; send em_inf: false or use_beam_search: false",
            )
        if getattr(self, "background", False):
            asked = self.em_inf.get("report") if isinstance(self.em_inf, dict) else None
            if asked not in (None, "none"):
                raise _refuse(
                    "em_inf.report",
                    f"{asked!r} is not allowed with background: true, whose response is "
                    "made before there is anything to report; it must be 'none'",
                )
            settings = settings.model_copy(update={"report": "none"})
        self._em_inf_report = Report(settings, preset)
        return self

    @property
    def em_inf_report(self) -> Report | None:
        """Where this request's statistics gather; None where EM-INF is off."""
        return self._em_inf_report

    @property
    def em_inf_declined(self) -> bool:
        """Whether EM-INF is off for this request, by its own word or the default."""
        return self._em_inf_report is None

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """vLLM's sampling parameters, with the worker's settings in `extra_args`."""
        params: SamplingParams = super().to_sampling_params(  # type: ignore[misc]
            *args, **kwargs
        )
        report = self._em_inf_report
        if report is None:
            return params
        value = to_extra_args(report.settings, report.key)
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARGS_KEY: value}
        return params


def refuse_field_of(body: Any) -> None:
    """Refuse a body that has the field, on a route where it would mean nothing.

    Raises:
        EMInfRequestError: it has it.
    """
    if not isinstance(body, dict):
        return
    params = body.get("sampling_params")
    extra_args = params.get("extra_args") if isinstance(params, dict) else None
    if isinstance(extra_args, dict) and EXTRA_ARGS_KEY in extra_args:
        raise _refuse(
            f"sampling_params.extra_args.{EXTRA_ARGS_KEY}",
            "is not allowed; it is the server's own way to the worker. Use em_inf on "
            "/v1/chat/completions, /v1/completions or /v1/responses",
        )
    if body.get("em_inf") is not None:
        raise _refuse(
            "em_inf",
            "is not allowed on this route, where the server's default applies; use "
            "/v1/chat/completions, /v1/completions or /v1/responses",
        )


class NoEMInfFieldMixin(BaseModel):
    """A request body of a route that takes the server's default, and says so."""

    em_inf: None = Field(
        default=None,
        description="Not available on this route: the server's default applies.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_em_inf(cls, data: Any) -> Any:
        refuse_field_of(data)
        return data


async def refuse_em_inf(raw_request: Request) -> None:
    """Refuse the field on a route that reads its body itself.

    Raises:
        EMInfRequestError: the body has it.
    """
    try:
        body = await raw_request.json()
    except ValueError:
        return  # The route's own error is better.
    refuse_field_of(body)


class EMInfChatCompletionRequest(EMInfRequestMixin, ChatCompletionRequest):
    """Body of /v1/chat/completions."""


class EMInfCompletionRequest(EMInfRequestMixin, CompletionRequest):
    """Body of /v1/completions."""


class EMInfResponsesRequest(EMInfRequestMixin, ResponsesRequest):
    """Body of /v1/responses."""


class PlainBatchRequest(NoEMInfFieldMixin, BatchChatCompletionRequest):
    """Body of /v1/chat/completions/batch."""


class PlainMessagesRequest(NoEMInfFieldMixin, AnthropicMessagesRequest):
    """Body of /v1/messages."""


REQUEST_MODELS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": EMInfChatCompletionRequest,
    "/v1/completions": EMInfCompletionRequest,
    "/v1/responses": EMInfResponsesRequest,
    "/v1/chat/completions/batch": PlainBatchRequest,
    "/v1/messages": PlainMessagesRequest,
}


def add_to_json(response: JSONResponse, report: Report, one_choice: bool) -> None:
    """Put `em_inf` into a finished response's body, in place."""
    rendered = _dump(report_body(report, one_choice)).encode()
    response.body = _spliced(bytes(response.body), rendered)
    response.headers["content-length"] = str(len(response.body))


async def add_to_stream(
    chunks: AsyncIterator[str | bytes], report: Report
) -> AsyncIterator[str | bytes]:
    """Put `em_inf` into the last chunk of a stream that carries data.

    Only a chunk that may be the last one (a finish reason or the usage) waits for its
    successor; every other passes at once.
    """
    held: str | bytes | None = None
    async for chunk in chunks:
        if held is not None:
            if _is_event(chunk, "[DONE]"):
                held = _patched(held, report)
            elif not _is_event(chunk, "{"):
                yield chunk  # A keep-alive comment.
                continue
            yield held
            held = None
        if _may_be_last(chunk):
            held = chunk
        else:
            yield chunk
    if held is not None:
        yield _patched(held, report)


def _text(chunk: str | bytes) -> str:
    return chunk if isinstance(chunk, str) else chunk.decode()


def _is_event(chunk: str | bytes, start: str) -> bool:
    return _text(chunk).startswith(f"data: {start}")


def _may_be_last(chunk: str | bytes) -> bool:
    # Inside a JSON string the quotes would be escaped: the marks cannot be user's text.
    text = _text(chunk)
    return _is_event(chunk, "{") and (
        '"finish_reason":"' in text or '"choices":[]' in text
    )


def _patched(chunk: str | bytes, report: Report) -> str:
    data = _text(chunk).removeprefix("data: ").encode()
    rendered = _dump(report_body(report, one_choice=False)).encode()
    return f"data: {_spliced(data, rendered).decode()}\n\n"


def _spliced(body: bytes, rendered: bytes) -> bytes:
    """A JSON object with `em_inf` as its last member, without parsing or rendering it.

    Args:
        body: the object, with members of vLLM's.
        rendered: the value of `em_inf`, as JSON.
    """
    before, brace, after = body.rpartition(b"}")
    assert brace, "a body of vLLM's is one JSON object"
    assert not after.strip(), "nothing follows it"
    return before + b',"em_inf":' + rendered + b"}"


async def add_to_event_stream(
    events: AsyncIterator[str | bytes], report: Report
) -> AsyncIterator[str | bytes]:
    """Put `em_inf` into `response` of the event that ends a /v1/responses stream."""
    ends = ("event: response.completed\n", "event: response.incomplete\n")
    async for event in events:
        text = _text(event)
        if not text.startswith(ends):
            yield event
            continue
        head, _, data = text.partition("\ndata: ")
        body = json.loads(data)
        body["response"]["em_inf"] = report_body(report, one_choice=True)
        yield f"{head}\ndata: {_dump(body)}\n\n"


def _dump(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
