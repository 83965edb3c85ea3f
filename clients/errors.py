"""What can go wrong with EM-INF in a request, as exceptions that name the field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import openai

from em_inf.logits_processors.settings import SettingsError

__all__ = ["NoReportError", "SettingRefusedError", "SettingsError", "setting_errors"]


class SettingRefusedError(openai.BadRequestError, SettingsError):
    """The server refused a setting of EM-INF.

    Caught as `openai.BadRequestError`, of which it keeps every attribute, or as
    `SettingsError`, which `EMInf(...)` raises for what no server accepts.

    Attributes:
        field: dotted name of the offending field, "em_inf.n_grad_steps" for example.
        reason: the value and what this server allows, as a sentence.
    """

    def __init__(self, error: openai.BadRequestError) -> None:
        self.field = str(error.param)
        body = error.body if isinstance(error.body, dict) else {}
        text = str(body.get("message") or error.message)
        self.reason = text.removeprefix(f"{self.field}: ")
        Exception.__init__(self, f"{self.field}: {self.reason}")
        for name, value in vars(error).items():
            setattr(self, name, value)


class NoReportError(RuntimeError):
    """A response has no report of EM-INF, or not what was asked of it."""


@contextmanager
def setting_errors() -> Iterator[None]:
    """Raise the SDK's error 400 about EM-INF as `SettingRefusedError`.

        with setting_errors():
            answer = client.chat.completions.create(..., extra_body=EMInf(preset="mild"))

    Works round `await` and as a decorator too. Every other error passes unchanged.

    Raises:
        SettingRefusedError: the server refused a setting.
    """
    try:
        yield
    except openai.BadRequestError as error:
        if isinstance(error, SettingRefusedError) or not is_about_em_inf(error):
            raise
        raise SettingRefusedError(error) from error


def is_about_em_inf(error: openai.BadRequestError) -> bool:
    """Whether the server refused EM-INF's field, and not another part of the request."""
    return str(error.param or "").split(".")[0] == "em_inf"
