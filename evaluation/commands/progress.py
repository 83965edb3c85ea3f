"""How far a long run is: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from em_inf.clients.commands.terminal import safe

_LINE_SECONDS = 15.0
"""Between two lines in a pipe."""


class RunProgress:
    """Shows a run's answers as they come.

    Attributes:
        total: answers that are wanted; 0 before it is known.
        done: answers that are there.
    """

    def __init__(self, out: Console) -> None:
        self.total = 0
        self.done = 0
        self._out = out
        self._line_at = 0.0
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, total: int, done: int) -> None:
        """So many answers are wanted, and so many are there already."""
        self.total, self.done = total, done
        if done:
            self.say(f"{done} of {total} answers are in the journal already")
        self._task = self._bar.add_task("answers", total=total, completed=done)
        self._line_at = time.monotonic()

    def answered(self, decoder: str) -> None:
        """One more answer is there."""
        self.done += 1
        if self._task is not None:
            self._bar.update(self._task, completed=self.done, description=decoder)
        overdue = time.monotonic() - self._line_at > _LINE_SECONDS
        if not self._out.is_terminal and (overdue or self.done == self.total):
            self._line_at = time.monotonic()
            self._out.print(f"{self.done} of {self.total} answers")

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self._out.print(safe(sentence))
