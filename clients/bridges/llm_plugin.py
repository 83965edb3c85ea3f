"""The `llm` command line: a model `em-inf` whose options are EM-INF's settings.

    llm -m em-inf -o preset strong -o temperature 0.8 "PROMPT"

EM_INF_URL says where the server is, EM_INF_MODEL which of its models to ask (the first
one, if not set), EM_INF_API_KEY its key.
"""

from __future__ import annotations

import os
from typing import Any

import llm
from llm.default_plugins.openai_models import AsyncChat, Chat, SharedOptions, not_nulls
from pydantic import Field, create_model

from em_inf.clients.settings import EMInf
from em_inf.logits_processors.settings import Settings


def _optional(kind: Any) -> Any:
    return kind | None


_FIELDS: dict[str, Any] = {
    name: (_optional(field.annotation), Field(None, description=field.description))
    for name, field in Settings.model_fields.items()
    if name != "report"
} | {
    "preset": (str | None, Field(None, description="A preset of the server's.")),
    "enabled": (bool | None, Field(None, description="false: without EM-INF.")),
}
Options = create_model("Options", __base__=SharedOptions, **_FIELDS)


class _EMInfMixin:
    """Moves EM-INF's options to where the server reads them."""

    Options = Options
    needs_key = None
    model_name: str | None

    def __init__(self, model_id: str) -> None:
        url = os.environ.get("EM_INF_URL", "http://localhost:8000").rstrip("/")
        key = os.environ.get("EM_INF_API_KEY")
        super().__init__(  # type: ignore[call-arg]
            model_id,
            model_name=os.environ.get("EM_INF_MODEL"),
            api_base=f"{url}/v1",
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )

    def __str__(self) -> str:
        return f"EM-INF: {self.model_id}"  # type: ignore[attr-defined]

    def build_kwargs(self, prompt: Any, stream: bool) -> dict[str, Any]:
        kwargs: dict[str, Any] = super().build_kwargs(prompt, stream)  # type: ignore[misc]
        given = {
            name: kwargs.pop(name)
            for name in not_nulls(prompt.options)
            if name in _FIELDS
        }
        kwargs["extra_body"] = dict(EMInf(**given))
        if not self.model_name:
            client = self.get_client(None)  # type: ignore[attr-defined]
            self.model_name = client.models.list().data[0].id
        return kwargs


class EMInfChat(_EMInfMixin, Chat):
    """The model, synchronous."""


class EMInfAsyncChat(_EMInfMixin, AsyncChat):
    """The model, asynchronous."""


@llm.hookimpl
def register_models(register: Any) -> None:
    """Offer the model to `llm`."""
    register(EMInfChat("em-inf"), EMInfAsyncChat("em-inf"))
