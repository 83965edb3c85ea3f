"""The command line as a process, in a pipe or under a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

COMMAND = [sys.executable, "-m", "em_inf.clients.cli"]
SECONDS = 180


def environ(**changed: str) -> dict[str, str]:
    """The environment without what would decide about colour."""
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**plain, "TERM": "xterm-256color", "COLUMNS": "100", **changed}


def piped(
    *args: str, stdin: str = "", **changed: str
) -> subprocess.CompletedProcess[str]:
    """Run `em-inf` with pipes for all three streams."""
    return subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        capture_output=True,
        text=True,
        env=environ(**changed),
        timeout=SECONDS,
    )


class Terminal:
    """A process under a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.seen = ""
        self._master = master
        self._from = 0

    def expect(self, pattern: str) -> str:
        """Wait until the pattern shows after what was expected last; return up to it."""
        until = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen[self._from :])):
            assert time.monotonic() < until, f"no {pattern!r} in {self.seen!r}"
            assert self._read(), f"ended without {pattern!r}: {self.seen!r}"
        text = self.seen[self._from : self._from + found.end()]
        self._from += found.end()
        return text

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def code(self) -> int:
        """Read to the end, and return the exit code."""
        while self._read():
            pass
        return self.process.wait(SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], SECONDS)
        assert ready, f"silent: {self.seen!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says so when the last process has closed its end.
            data = b""
        self.seen += data.decode(errors="replace")
        return bool(data)


@contextlib.contextmanager
def terminal(*args: str, **changed: str) -> Iterator[Terminal]:
    """Run `em-inf` under a pseudo-terminal of its own."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environ(**changed),
        # Ctrl-C goes to whoever controls the terminal.
        preexec_fn=_own_terminal,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
