"""What the operator decides: presets, default, limits; fixed when the server starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from em_inf.logits_processors.extra_args import DEFAULT_MAX_GRAD_STEPS
from em_inf.logits_processors.settings import (
    BUILT_IN_PRESETS,
    MAX_GRAD_STEPS,
    Settings,
    SettingsError,
    allowed_values,
    check_preset_name,
    merged,
    shown,
)

SERVER_SETTINGS_VARIABLE = "EM_INF_SERVER_SETTINGS"
MAX_FETCH_SECONDS = 30.0


class ServerSettings(BaseModel):
    """What the operator decides, fixed when the server starts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_grad_steps: Annotated[int, Field(ge=1, le=MAX_GRAD_STEPS)] = (
        DEFAULT_MAX_GRAD_STEPS
    )
    presets: dict[str, Settings] = Field(default_factory=dict)
    enabled_by_default: bool = False
    default: Settings = Field(default_factory=Settings)
    default_preset: str | None = None
    playground: bool = True
    fetch_seconds: Annotated[float, Field(gt=0, le=MAX_FETCH_SECONDS)] | None = None

    @classmethod
    def build(
        cls,
        default: str = "off",
        presets: Mapping[str, Any] | None = None,
        max_grad_steps: int = DEFAULT_MAX_GRAD_STEPS,
    ) -> ServerSettings:
        """Read what the operator wrote on the command line.

        Args:
            default: "off", "on", the name of a preset, or a JSON object of settings.
            presets: name to object of settings; the built-in presets are always there.
            max_grad_steps: the largest `n_grad_steps` that a request may ask for; a
                built-in preset that asks for more is not offered.

        Raises:
            SettingsError: anything in it is not allowed.
        """
        if not Settings().n_grad_steps <= max_grad_steps <= MAX_GRAD_STEPS:
            raise SettingsError(
                "--em-inf-max-grad-steps",
                f"{max_grad_steps} is not from {Settings().n_grad_steps} (the default of "
                f"n_grad_steps) to {MAX_GRAD_STEPS}",
            )
        server = cls(max_grad_steps=max_grad_steps)
        known = {
            name: merged(server.default, fields, f"preset {name!r}", max_grad_steps)
            for name, fields in BUILT_IN_PRESETS.items()
            if fields.get("n_grad_steps", 0) <= max_grad_steps
        }
        for name, fields in (presets or {}).items():
            known[name] = server._operator_preset(name, fields)
        server = cls(max_grad_steps=max_grad_steps, presets=known)
        text = default.strip()
        if text == "off":
            return server
        value: Any = True if text == "on" else text
        if text.startswith("{"):
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise SettingsError("--em-inf-default", f"not JSON: {error}") from None
        enabled = True
        if isinstance(value, dict) and value.get("enabled") is False:
            # Off unless asked for; then, these settings.
            enabled, value = False, {**value, "enabled": True}
        settings, preset = server._resolve(value, "--em-inf-default")
        return cls(
            max_grad_steps=max_grad_steps,
            presets=known,
            enabled_by_default=enabled,
            default=settings or Settings(),
            default_preset=preset,
        )

    def _operator_preset(self, name: str, fields: Any) -> Settings:
        where = f"preset {shown(name)}"
        check_preset_name(name, where)
        if not isinstance(fields, Mapping):
            raise SettingsError(where, f"{shown(fields)} is not an object of settings")
        return merged(self.default, fields, where, self.max_grad_steps)

    def allowed_values(self) -> dict[str, dict[str, Any]]:
        """JSON Schema of each setting, with this server's limits and defaults."""
        properties = allowed_values(self.max_grad_steps)
        for name, schema in properties.items():
            schema["default"] = getattr(self.default, name)
        return properties

    def wire_schema(self) -> dict[str, Any]:
        """JSON Schema of the request field `em_inf`, for the OpenAPI document."""
        fields = {
            name: {k: v for k, v in schema.items() if k != "default"}
            for name, schema in self.allowed_values().items()
        }
        return {
            "title": "EM-INF",
            "description": "Entropy minimisation at inference time. Absent or null: the "
            "server's default; true or false; the name of a preset; or an object.",
            "default": None,
            "anyOf": [
                {"type": "null"},
                {"type": "boolean"},
                {"type": "string", "enum": list(self.presets)},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "enabled": {
                            "type": "boolean",
                            "default": True,
                            "description": "false turns EM-INF off for this request.",
                        },
                        "preset": {
                            "type": "string",
                            "enum": list(self.presets),
                            "description": "Base for the fields that are not given.",
                        },
                        **fields,
                    },
                },
            ],
        }

    def resolve(self, value: Any) -> tuple[Settings | None, str]:
        """Turn the wire value of `em_inf` into complete settings.

        Args:
            value: parsed JSON of the request's field, None where it is absent.

        Returns:
            The settings, None where EM-INF is off; and the name of the preset that they
            come from, "default" or "custom", fit to label a metric.

        Raises:
            SettingsError: the value, or a field of it, is not allowed.
        """
        if value is None:
            settings = self.default if self.enabled_by_default else None
            return settings, self.default_preset or "default"
        settings, preset = self._resolve(value, "em_inf")
        return settings, preset or ("custom" if isinstance(value, dict) else "default")

    def _resolve(self, value: Any, where: str) -> tuple[Settings | None, str | None]:
        if isinstance(value, bool):
            return (self.default if value else None), self.default_preset
        if isinstance(value, str):
            return self._preset(value, where), value
        if not isinstance(value, dict):
            raise SettingsError(
                where,
                f"{shown(value)} is not allowed; it must be true, false, null, the name "
                "of a preset or an object of settings",
            )
        fields = dict(value)
        enabled = fields.pop("enabled", None)
        if enabled is not None and not isinstance(enabled, bool):
            raise SettingsError(
                f"{where}.enabled", f"{shown(enabled)} is not allowed; true or false"
            )
        name = fields.pop("preset", None)
        if name is not None and not isinstance(name, str):
            raise SettingsError(
                f"{where}.preset", f"{shown(name)} is not allowed; {self._presets()}"
            )
        base = self.default if name is None else self._preset(name, f"{where}.preset")
        settings = merged(base, fields, where, self.max_grad_steps)
        overridden = bool(set(fields) - {"report"})
        return (None if enabled is False else settings), (None if overridden else name)

    def _presets(self) -> str:
        return "it must be one of " + ", ".join(map(repr, self.presets))

    def _preset(self, name: str, where: str) -> Settings:
        if name not in self.presets:
            raise SettingsError(where, f"{shown(name)} is no preset; {self._presets()}")
        return self.presets[name]


def load_presets(text: str) -> dict[str, Any]:
    """Parse a file of presets: a JSON object of name to object of settings.

    Raises:
        SettingsError: not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError("--em-inf-presets", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError("--em-inf-presets", "must hold one JSON object")
    return value


@cache
def server_settings() -> ServerSettings:
    """This process's server settings, read once from the environment.

    The command line writes them there, since API servers, engine and workers are
    processes of their own that share nothing else before the first request.
    """
    text = os.environ.get(SERVER_SETTINGS_VARIABLE)
    return ServerSettings.model_validate_json(text) if text else ServerSettings.build()
