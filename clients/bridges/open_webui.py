"""
title: EM-INF
description: Asks an em-inf server for entropy minimisation at inference time.
version: 0.1.0
license: Apache-2.0
"""  # noqa: D212, D400, D415 - Open WebUI reads this header.

from typing import Any, Literal

from pydantic import BaseModel, Field


class Filter:
    """A filter function of Open WebUI: paste this file into Admin, Functions."""

    class Valves(BaseModel):
        """What the administrator sets."""

        priority: int = Field(0, description="Order among filters.")
        models: str = Field(
            "", description="Models to ask for EM-INF, by comma; empty means all."
        )

    class UserValves(BaseModel):
        """What each user sets; an empty field is the preset's or the server's."""

        enabled: bool = Field(True, description="EM-INF on.")
        preset: str = Field("balanced", description="A preset of the server's.")
        method: Literal["", "gradient", "adaptive_temperature"] = ""
        n_grad_steps: int | None = Field(None, description="At most so many steps.")
        threshold: float | None = Field(None, description="Nats.")

    def __init__(self) -> None:
        self.valves = self.Valves()

    def inlet(
        self, body: dict[str, Any], __user__: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Put the user's settings into the request's body."""
        models = [name.strip() for name in self.valves.models.split(",") if name.strip()]
        if models and body.get("model") not in models:
            return body
        valves = (__user__ or {}).get("valves") or self.UserValves()
        given = valves if isinstance(valves, dict) else valves.model_dump()
        kept = {k: v for k, v in given.items() if v is not None and v != ""}
        return {**body, "em_inf": kept if kept.get("enabled", True) else False}
