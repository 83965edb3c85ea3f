"""The request's side: what one request asks of EM-INF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from em_inf.logits_processors.settings import (
    MAX_GRAD_STEPS,
    METHOD_FIELDS,
    Method,
    ReportKind,
    Settings,
    SettingsError,
    merged,
)


@dataclass(frozen=True, kw_only=True)
class EMInf(Mapping[str, Any]):
    """Settings of one request: the mapping `{"em_inf": {...}}`, ready for `extra_body`.

        client.chat.completions.create(..., extra_body=EMInf(n_grad_steps=15))
        client.chat.completions.create(..., extra_body={**EMInf(), "top_k": 20})

    A setting that is None is not sent: it comes from `preset`, or else from the server's
    default settings. `EMInf()` turns EM-INF on, `EMInf(enabled=False)` off. The names,
    units and defaults are those of `em_inf.logits_processors.settings.Settings`.

    Attributes:
        preset: a preset of the server ("paper", "balanced", "strong", "adaptive", or one
            of its operator's) as the base of the settings that are not given.
        method: "gradient" (EM-INF proper) or "adaptive_temperature".
        n_grad_steps: at most so many Adam steps for each token; a server allows 64
            unless its operator changed that.
        learning_rate: logits per step, 0.000001 to 1.
        threshold: nats, at least 0; a token of lower entropy is left alone.
        kl_weight: weight of KL(p0 || p), 0 to 100.
        target_ratio: of adaptive temperature, 0.000001 to 1.
        report: what comes back: "none", "summary" or "trace" (a figure for each token).
        enabled: False turns EM-INF off.

    Raises:
        SettingsError: no server could accept a setting. Limits that servers differ in
            (presets, the largest n_grad_steps) are the server's to refuse; see
            `em_inf.setting_errors`.
    """

    preset: str | None = None
    method: Method | None = None
    n_grad_steps: int | None = None
    learning_rate: float | None = None
    threshold: float | None = None
    kl_weight: float | None = None
    target_ratio: float | None = None
    report: ReportKind | None = None
    enabled: bool | None = None

    def __post_init__(self) -> None:
        _check(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are given: the value of the request's field `em_inf`."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key != "em_inf":
            raise KeyError(key)
        return self.settings

    def __iter__(self) -> Iterator[str]:
        return iter(("em_inf",))

    def __len__(self) -> int:
        return 1


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what every server would refuse.

    Raises:
        SettingsError: names the field, the value and what is allowed.
    """
    own = dict(given)
    preset, enabled = own.pop("preset", None), own.pop("enabled", None)
    if preset is not None and not isinstance(preset, str):
        raise SettingsError(
            "em_inf.preset", f"{preset!r} is not allowed; it must be a string"
        )
    if enabled is not None and not isinstance(enabled, bool):
        raise SettingsError(
            "em_inf.enabled", f"{enabled!r} is not allowed; true or false"
        )
    if "method" in own:
        merged(Settings(), own, "em_inf", MAX_GRAD_STEPS)
        return
    # The method is the preset's or the server's, so either method's fields may be right.
    for name, value in own.items():
        readers = [method for method, names in METHOD_FIELDS.items() if name in names]
        method = {"method": readers[0]} if readers else {}
        merged(Settings(), {name: value, **method}, "em_inf", MAX_GRAD_STEPS)
