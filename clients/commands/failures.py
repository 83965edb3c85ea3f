"""What a command says, and with which code it ends, where it cannot do its work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import openai

from em_inf.clients.errors import NoReportError, SettingsError, setting_errors

FAILED = 1
USAGE = 2
UNREACHABLE = 3
NO_EM_INF = 4
INTERRUPTED = 130


class Failure(Exception):  # noqa: N818 - it is no error of the program's.
    """A command cannot do its work.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; a failure becomes a sentence on stderr and an exit code."""
    try:
        with setting_errors():
            return run(args)
    except (Failure, SettingsError, NoReportError, openai.APIError) as error:
        failure = explained(error, args.url)
        print(f"em-inf: {failure}", file=sys.stderr)
        return failure.code


def explained(error: Exception, url: str) -> Failure:
    """Any error of the SDK's or ours as a sentence with what to do, and a code."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, SettingsError):
        return Failure(USAGE, str(error))
    if isinstance(error, NoReportError):
        return Failure(NO_EM_INF, str(error))
    if isinstance(error, openai.APITimeoutError):
        return Failure(FAILED, f"{url} did not answer in time; see --timeout")
    if isinstance(error, openai.APIConnectionError):
        return Failure(
            UNREACHABLE,
            f"no server answers at {url} ({error.__cause__ or error}). Start one with "
            "`em-inf serve`, or say where it is with --url or EM_INF_URL",
        )
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return Failure(
            FAILED, f"{url} wants an API key, or another one: --api-key or EM_INF_API_KEY"
        )
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return Failure(FAILED, f"{url} refused: {text or error}")
