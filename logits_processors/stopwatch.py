"""Time spent in EM-INF, taken where the work is done and without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

_Events: TypeAlias = "tuple[torch.cuda.Event, torch.cuda.Event]"


class Stopwatch:
    """Adds up the time of calls: of the host on CPUs, of the stream's work on GPUs.

    On a GPU two events on the stream enclose a call, and are read once they have passed;
    a pause of the stream in between, while it waits for the host, counts too.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._calls = 0
        self._pending: deque[_Events] = deque()
        self._free: list[_Events] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Time what is done inside.

        Args:
            device: where the work is done; its current stream, if it is a GPU.
        """
        if device.type != "cuda":
            began = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - began
                self._calls += 1
            return
        start, end = self._free.pop() if self._free else _events()
        start.record()
        try:
            yield
        finally:
            end.record()
            self._pending.append((start, end))
            self._settle()

    def pop(self) -> tuple[float, int]:
        """Seconds and calls since the last time; what still runs comes next time."""
        self._settle()
        taken = self._seconds, self._calls
        self._seconds, self._calls = 0.0, 0
        return taken

    def _settle(self) -> None:
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._seconds += start.elapsed_time(end) / 1000
            self._calls += 1
            self._free.append((start, end))


def _events() -> _Events:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    return start, end
