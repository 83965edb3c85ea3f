"""What we add to vLLM's request bodies: `em_inf`, checked while it is parsed."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import Request
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from em_inf.logits_processors.extra_args import EXTRA_ARGS_KEY
from em_inf.logits_processors.settings import SettingsError
from em_inf.server import metrics
from em_inf.server.operator_settings import server_settings
from em_inf.server.report import Report


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
