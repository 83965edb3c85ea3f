"""LangChain: `ChatOpenAI` that keeps the report which LangChain's own would drop."""

from __future__ import annotations

from typing import Any

from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI


class EMInfChatOpenAI(ChatOpenAI):
    """`ChatOpenAI` whose messages have `response_metadata["em_inf"]`.

        model = EMInfChatOpenAI(
            base_url="http://localhost:8000/v1", api_key="none", model="em-inf-demo",
            extra_body=dict(EMInf(preset="strong")),
        )
        report_of(model.invoke("...").response_metadata)

    Settings need no more than `extra_body`, which LangChain's class has too; so do those
    of one call: `model.invoke("...", extra_body=dict(EMInf(enabled=False)))`.
    """

    def _create_chat_result(
        self, response: Any, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        body = response if isinstance(response, dict) else response.model_extra or {}
        if "em_inf" in body:
            for generation in result.generations:
                generation.message.response_metadata["em_inf"] = body["em_inf"]
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], *args: Any, **kwargs: Any
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, *args, **kwargs)
        if made is not None and "em_inf" in chunk:
            made.message.response_metadata["em_inf"] = chunk["em_inf"]
        return made
