"""Every EM-INF setting, once: its name, default, range, unit, and the presets.

The one parser of the wire field `em_inf` and the one form in which settings travel to the
worker. Loads neither torch nor vLLM. Names of settings are those of the authors' code
(arXiv 2505.15134).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Method = Literal["gradient", "adaptive_temperature"]
ReportKind = Literal["none", "summary", "trace"]

SERVER_SETTINGS_VARIABLE = "EM_INF_SERVER_SETTINGS"
EXTRA_ARGS_KEY = "em_inf"

_PRESET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SHOWN_VALUE_CHARACTERS = 80


class SettingsError(ValueError):
    """A setting that cannot be accepted.

    Attributes:
        field: dotted name of the offending field, "em_inf.n_grad_steps" for example.
        reason: what was given and what would be allowed, as a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Settings(BaseModel):
    """What one request asks of EM-INF. Immutable and always complete."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )

    method: Method = Field(
        "gradient",
        description="gradient: EM-INF, Adam steps on the entropy of the logits. "
        "adaptive_temperature: the temperature that reaches a target entropy.",
    )
    n_grad_steps: Annotated[int, Field(ge=0)] = Field(
        5, description="At most so many Adam steps for each token; 0 takes none."
    )
    # Above 2 float32 decides where steps of this size end, and not the method.
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Adam's learning rate, in logits per step."
    )
    threshold: Annotated[float, Field(ge=0)] = Field(
        0.3,
        description="Nats. A token whose entropy is below it is left alone; steps stop "
        "there; adaptive temperature never aims lower.",
    )
    kl_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        0.001, description="Weight of KL(p0 || p), which holds on to the first softmax."
    )
    target_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="Adaptive temperature aims at max(target_ratio * H0, threshold).",
    )
    report: ReportKind = Field(
        "summary",
        description="What comes back in the response: nothing, totals and means for each "
        "choice, or those and a figure for each token.",
    )


METHOD_FIELDS: Mapping[str, tuple[str, ...]] = {
    "gradient": ("n_grad_steps", "learning_rate", "threshold", "kl_weight"),
    "adaptive_temperature": ("target_ratio", "threshold"),
}
"""The settings that each method reads. One of the other method alone is an error."""

BUILT_IN_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The authors' launch script; they ran it at temperature 0.1.
    "paper": {"n_grad_steps": 3, "threshold": 0.3, "kl_weight": 0.05},
    "balanced": {"n_grad_steps": 5},
    "strong": {"n_grad_steps": 15},
    "adaptive": {"method": "adaptive_temperature"},
}


class ServerSettings(BaseModel):
    """What the operator decides, fixed when the server starts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_grad_steps: Annotated[int, Field(ge=1, le=1000)] = 64
    presets: dict[str, Settings] = Field(default_factory=dict)
    enabled_by_default: bool = False
    default: Settings = Field(default_factory=Settings)
    default_preset: str | None = None
    playground: bool = True

    @classmethod
    def build(
        cls,
        default: str = "off",
        presets: Mapping[str, Any] | None = None,
        max_grad_steps: int = 64,
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
        if not Settings().n_grad_steps <= max_grad_steps <= 1000:
            raise SettingsError(
                "--em-inf-max-grad-steps",
                f"{max_grad_steps} is not from {Settings().n_grad_steps} (the default of "
                "n_grad_steps) to 1000",
            )
        server = cls(max_grad_steps=max_grad_steps)
        known = {
            name: server._merge(server.default, fields, f"preset {name!r}")
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
        where = f"preset {_shown(name)}"
        if not _PRESET_NAME.fullmatch(name) or name in ("on", "off"):
            raise SettingsError(
                where,
                "a name is 1 to 64 of a-z, 0-9, '_', '.', '-', starts with a letter or "
                "digit, and is neither on nor off",
            )
        if name in BUILT_IN_PRESETS:
            raise SettingsError(where, "is built in and cannot be changed")
        if not isinstance(fields, Mapping):
            raise SettingsError(where, f"{_shown(fields)} is not an object of settings")
        return self._merge(self.default, fields, where)

    def allowed_values(self) -> dict[str, dict[str, Any]]:
        """JSON Schema of each setting, with this server's limits and defaults."""
        properties: dict[str, dict[str, Any]] = {}
        for name, schema in Settings.model_json_schema()["properties"].items():
            shown = {k: v for k, v in schema.items() if k != "title"}
            shown["default"] = getattr(self.default, name)
            if name == "n_grad_steps":
                shown["maximum"] = self.max_grad_steps
            properties[name] = shown
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
                f"{_shown(value)} is not allowed; it must be true, false, null, the name "
                "of a preset or an object of settings",
            )
        fields = dict(value)
        enabled = fields.pop("enabled", None)
        if enabled is not None and not isinstance(enabled, bool):
            raise SettingsError(
                f"{where}.enabled", f"{_shown(enabled)} is not allowed; true or false"
            )
        name = fields.pop("preset", None)
        if name is not None and not isinstance(name, str):
            raise SettingsError(
                f"{where}.preset", f"{_shown(name)} is not allowed; {self._presets()}"
            )
        base = self.default if name is None else self._preset(name, f"{where}.preset")
        settings = self._merge(base, fields, where)
        overridden = bool(set(fields) - {"report"})
        return (None if enabled is False else settings), (None if overridden else name)

    def _presets(self) -> str:
        return "it must be one of " + ", ".join(map(repr, self.presets))

    def _preset(self, name: str, where: str) -> Settings:
        if name not in self.presets:
            raise SettingsError(where, f"{_shown(name)} is no preset; {self._presets()}")
        return self.presets[name]

    def _merge(self, base: Settings, fields: Mapping[str, Any], where: str) -> Settings:
        """`base` with `fields` laid over it, everything checked; null is absent."""
        for name in fields:
            if name not in Settings.model_fields:
                raise SettingsError(
                    f"{where}.{_shown_name(str(name))}",
                    "is unknown; allowed are enabled, preset, "
                    + ", ".join(Settings.model_fields),
                )
        given = {k: v for k, v in fields.items() if v is not None}
        try:
            settings = Settings(**{**base.model_dump(), **given})
        except ValidationError as error:
            raise self._explain(error, where) from None
        other = next(m for m in METHOD_FIELDS if m != settings.method)
        for name in METHOD_FIELDS[other]:
            if name in given and name not in METHOD_FIELDS[settings.method]:
                raise SettingsError(
                    f"{where}.{name}",
                    f"{_shown(given[name])} is not allowed, since {name} belongs to the "
                    f"method {other!r} and this request's method is {settings.method!r}",
                )
        if settings.n_grad_steps > self.max_grad_steps:
            raise SettingsError(
                f"{where}.n_grad_steps",
                f"{_shown(settings.n_grad_steps)} is not allowed; "
                + self._allowed("n_grad_steps"),
            )
        return settings

    def _explain(self, error: ValidationError, where: str) -> SettingsError:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        return SettingsError(
            f"{where}.{name}",
            f"{_shown(first['input'])} is not allowed; {self._allowed(name)}",
        )

    def _allowed(self, name: str) -> str:
        """The range of a setting in words."""
        schema = self.allowed_values()[name]
        if "enum" in schema:
            return "it must be one of " + ", ".join(map(repr, schema["enum"]))
        kind = "an integer" if schema["type"] == "integer" else "a finite number"
        words = f"it must be {kind}"
        if "exclusiveMinimum" in schema:
            words += f" above {schema['exclusiveMinimum']:g}"
        if "minimum" in schema:
            words += f" of at least {schema['minimum']:g}"
        if "maximum" in schema:
            words += f" and at most {schema['maximum']:g}"
        return words


def settings_of_method(settings: Settings) -> dict[str, Any]:
    """The settings that the chosen method reads, as the response shows them."""
    names = ("method", *METHOD_FIELDS[settings.method])
    return {name: getattr(settings, name) for name in names}


def to_extra_args(
    settings: Settings, key: str, base_seed: int | None = None
) -> dict[str, Any]:
    """The form in which settings travel in `SamplingParams.extra_args["em_inf"]`.

    Args:
        settings: what the request asks for.
        key: names the statistics of this engine request; never seen by a user.
        base_seed: the seed of choice 0 where n > 1, so that the worker can tell the
            choices apart by their seeds.
    """
    return {
        **settings_of_method(settings),
        "report": settings.report,
        "key": key,
        "base_seed": base_seed,
    }


def from_extra_args(value: Any) -> tuple[Settings, str, int | None]:
    """Read back what `to_extra_args` wrote.

    Returns:
        Settings, key and base seed.

    Raises:
        SettingsError: somebody else wrote it, and wrongly.
    """
    if not isinstance(value, dict):
        raise SettingsError(
            "extra_args.em_inf",
            f"{_shown(value)} is not allowed; use the request field em_inf",
        )
    fields = dict(value)
    key, base_seed = fields.pop("key", None), fields.pop("base_seed", None)
    if not isinstance(key, str) or not 0 < len(key) <= 128:
        raise SettingsError(
            "extra_args.em_inf.key", f"{_shown(key)} is not 1 to 128 characters"
        )
    if base_seed is not None and (type(base_seed) is not int):
        raise SettingsError(
            "extra_args.em_inf.base_seed", f"{_shown(base_seed)} is not an integer"
        )
    server = server_settings()
    return server._merge(Settings(), fields, "extra_args.em_inf"), key, base_seed


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


def _shown(value: Any) -> str:
    """A value as an error message shows it: JSON where possible, never long."""
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "an array"
        return f"{kind} of {len(value)} items"
    text = repr(value[:_SHOWN_VALUE_CHARACTERS]) if isinstance(value, str) else ""
    if isinstance(value, str):
        return text + (" ..." if len(value) > _SHOWN_VALUE_CHARACTERS else "")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _shown_name(name: str) -> str:
    return name if len(name) <= _SHOWN_VALUE_CHARACTERS else name[:77] + "..."
