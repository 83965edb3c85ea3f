"""The form in which a request's settings travel to the worker.

They go in `SamplingParams.extra_args["em_inf"]`, written once by the engine client and
checked once, by vLLM's call of `validate_params` where it admits a request.
"""

from __future__ import annotations

import os
from typing import Any

from em_inf.logits_processors.settings import (
    Settings,
    SettingsError,
    merged,
    settings_of_method,
    shown,
)

EXTRA_ARGS_KEY = "em_inf"
MAX_GRAD_STEPS_VARIABLE = "EM_INF_MAX_GRAD_STEPS"
"""Environment variable that tells every process the operator's largest `n_grad_steps`."""
DEFAULT_MAX_GRAD_STEPS = 64


def max_grad_steps() -> int:
    """The largest `n_grad_steps` that the operator allows, in any process of a server."""
    return int(os.environ.get(MAX_GRAD_STEPS_VARIABLE, DEFAULT_MAX_GRAD_STEPS))


def to_extra_args(settings: Settings, key: str) -> dict[str, Any]:
    """What `extra_args["em_inf"]` holds.

    Args:
        settings: what the request asks for.
        key: names the figures of this answer; never seen by a user.
    """
    return {**settings_of_method(settings), "report": settings.report, "key": key}


def check_extra_args(value: Any) -> None:
    """Refuse what `to_extra_args` did not write.

    Raises:
        SettingsError: names the field, the value and what is allowed.
    """
    if not isinstance(value, dict):
        raise SettingsError(
            "extra_args.em_inf",
            f"{shown(value)} is not allowed; use the request field em_inf",
        )
    fields = dict(value)
    key = fields.pop("key", None)
    if not isinstance(key, str) or not 0 < len(key) <= 128:
        raise SettingsError(
            "extra_args.em_inf.key", f"{shown(key)} is not 1 to 128 characters"
        )
    merged(Settings(), fields, "extra_args.em_inf", max_grad_steps())


def from_extra_args(value: dict[str, Any]) -> tuple[Settings, str]:
    """Read back what `to_extra_args` wrote and `check_extra_args` let pass.

    Returns:
        Settings and key.
    """
    fields = dict(value)
    key = fields.pop("key")
    return Settings.model_construct(**fields), key
