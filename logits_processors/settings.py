"""What a request may ask of EM-INF: every setting's name, default, range and unit.

Loads neither torch nor vLLM. Names of settings are those of the authors' code
(arXiv 2505.15134).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Method = Literal["gradient", "adaptive_temperature"]
ReportKind = Literal["none", "summary", "trace"]

MAX_GRAD_STEPS = 1000
"""No operator can allow more `n_grad_steps` than this."""

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
    # Above 2, and where a step vanishes beside the logits, float32 decides where steps
    # end, and not the method.
    learning_rate: Annotated[float, Field(ge=1e-6, le=1)] = Field(
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
    target_ratio: Annotated[float, Field(ge=1e-6, le=1)] = Field(
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
    # Changes no logit, and reports the entropies.
    "measure": {"n_grad_steps": 0},
}


def merged(
    base: Settings, fields: Mapping[str, Any], where: str, max_grad_steps: int
) -> Settings:
    """`base` with a request's fields laid over it, everything checked.

    Args:
        base: the settings of what is not given.
        fields: parsed JSON; null is absent.
        where: what the fields are part of, "em_inf" for example.
        max_grad_steps: the largest `n_grad_steps` allowed.

    Raises:
        SettingsError: a field is unknown, of a wrong type, out of range, or belongs to
            the method that was not chosen.
    """
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
        first = error.errors(include_url=False)[0]
        raise _not_allowed(
            where, str(first["loc"][0]), first["input"], max_grad_steps
        ) from None
    other = next(m for m in METHOD_FIELDS if m != settings.method)
    for name in METHOD_FIELDS[other]:
        if name in given and name not in METHOD_FIELDS[settings.method]:
            raise SettingsError(
                f"{where}.{name}",
                f"{shown(given[name])} is not allowed, since {name} belongs to the "
                f"method {other!r} and this request's method is {settings.method!r}",
            )
    if settings.n_grad_steps > max_grad_steps:
        raise _not_allowed(where, "n_grad_steps", settings.n_grad_steps, max_grad_steps)
    return settings


def _not_allowed(where: str, name: str, value: Any, max_grad_steps: int) -> SettingsError:
    words = allowed_in_words(name, max_grad_steps)
    return SettingsError(f"{where}.{name}", f"{shown(value)} is not allowed; {words}")


def allowed_values(max_grad_steps: int) -> dict[str, dict[str, Any]]:
    """JSON Schema of each setting.

    Args:
        max_grad_steps: the largest `n_grad_steps` allowed.
    """
    properties: dict[str, dict[str, Any]] = {}
    for name, schema in Settings.model_json_schema()["properties"].items():
        properties[name] = {k: v for k, v in schema.items() if k != "title"}
    properties["n_grad_steps"]["maximum"] = max_grad_steps
    return properties


def allowed_in_words(name: str, max_grad_steps: int) -> str:
    """The range of a setting as an error's text says it.

    Args:
        name: the setting's.
        max_grad_steps: the largest `n_grad_steps` allowed.
    """
    schema = allowed_values(max_grad_steps)[name]
    if "enum" in schema:
        return "it must be one of " + ", ".join(map(repr, schema["enum"]))
    kind = "an integer" if schema["type"] == "integer" else "a finite number"
    words = f"it must be {kind} of at least {schema['minimum']:g}"
    return words + (f" and at most {schema['maximum']:g}" if "maximum" in schema else "")


def check_preset_name(name: str, where: str) -> None:
    """Refuse a name that a preset of an operator's cannot have.

    Args:
        name: the preset's.
        where: what an error names as at fault.

    Raises:
        SettingsError: it is not of the allowed characters, or has a meaning already.
    """
    if not _PRESET_NAME.fullmatch(name) or name in ("on", "off"):
        raise SettingsError(
            where,
            "a name is 1 to 64 of a-z, 0-9, '_', '.', '-', starts with a letter or "
            "digit, and is neither on nor off",
        )
    if name in BUILT_IN_PRESETS:
        raise SettingsError(where, "is built in and cannot be changed")


def settings_of_method(settings: Settings) -> dict[str, Any]:
    """The settings that the chosen method reads, as the response shows them."""
    names = ("method", *METHOD_FIELDS[settings.method])
    return {name: getattr(settings, name) for name in names}


def shown(value: Any) -> str:
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
