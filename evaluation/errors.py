"""What can be wrong with an evaluation before, or in the middle of, its requests."""

from __future__ import annotations


class PlanError(ValueError):
    """An evaluation cannot be done as it is asked for; the text says what to change."""


class DataError(PlanError):
    """The data are broken: names file, line and field."""


class DecoderError(PlanError):
    """A decoder cannot be read or made: names the part of its text."""


class JournalError(PlanError):
    """A journal is another run's, in use, or damaged."""


class StoppedError(RuntimeError):
    """A run stopped before its end; what was answered is in its journal.

    Attributes:
        cause: the error of the SDK's, or of the server's answer.
    """

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        self.cause = cause


class NoEMInfError(PlanError):
    """The server runs without EM-INF, and a decoder needs it."""
