"""Statistics on their way from the rows back to the API server.

The processor adds a step's figures without waiting for the device; they settle in
records, one for each choice of a request, by output position, so that a position computed
twice (preemption, chunked prefill, rejected drafts) counts once. `EMInfWorkerExtension`,
which vLLM mixes into its worker, hands finished records out and forgets them.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from logits_processors.reference import RowStats
from logits_processors.stopwatch import Stopwatch

FORGET_AFTER_SECONDS = 900.0
MAX_KEYS = 65_536

Figures = tuple[float, float, float, float]


class Record:
    """Figures of one choice, by output position.

    Attributes:
        figures: position to entropy before, entropy after (nats), grad steps and
            temperature.
        touched: when it was last written to, by the monotonic clock.
    """

    __slots__ = ("figures", "touched")

    def __init__(self) -> None:
        self.figures: dict[int, Figures] = {}
        self.touched = time.monotonic()

    def columns(self) -> list[list[float]]:
        """Entropies before, after, grad steps and temperatures from position 0 on.

        A position that was never recorded holds NaN.
        """
        length = max(self.figures, default=-1) + 1
        missing = (float("nan"),) * 4
        rows = [self.figures.get(position, missing) for position in range(length)]
        return [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]


class _Pending:
    """One step's figures, perhaps still being copied from the device."""

    __slots__ = ("event", "figures", "positions", "records", "slots")

    def __init__(
        self,
        figures: Tensor,
        records: Sequence[Record | None],
        positions: Sequence[int] | None,
    ) -> None:
        self.event = None
        if figures.device.type != "cpu":
            host = torch.empty_like(figures, device="cpu", pin_memory=True)
            host.copy_(figures, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
            figures = host
        self.figures = figures
        self.records = records
        self.positions = positions

    def settle(self) -> int:
        """Write the figures into their records; returns the rows that were not finite."""
        rows = self.figures.T.tolist()
        now = time.monotonic()
        not_finite = 0
        for i, row in enumerate(rows):
            figures: Figures = (row[0], row[1], row[2], row[3])
            if self.positions is None:
                slot, position = int(row[4]), int(row[5])
                record = self.records[slot]
            else:
                position, record = self.positions[i], self.records[i]
            if record is None or position < 0:
                continue
            not_finite += row[0] != row[0]
            record.figures[position] = figures
            record.touched = now
        return not_finite


class Recorder:
    """The statistics of one worker process.

    Attributes:
        status: what the processor says of itself; empty while none is loaded.
        errors: kind of error to count, since they were last handed out.
        stopwatch: the time that the processor took.
    """

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self.errors: Counter[str] = Counter()
        self.stopwatch = Stopwatch()
        self._choices: OrderedDict[str, dict[int, Record]] = OrderedDict()
        self._pending: deque[_Pending] = deque()

    def open(self, key: str, choice: int) -> Record:
        """The record of one choice, the same one again after a preemption."""
        if key not in self._choices:
            self._forget_old()
        choices = self._choices.setdefault(key, {})
        return choices.setdefault(choice, Record())

    def add(
        self,
        stats: RowStats,
        records: Sequence[Record | None],
        positions: Sequence[int],
    ) -> None:
        """Take a step's figures whose requests and positions the host knows.

        Args:
            stats: figures of N rows.
            records: where each row's figures go, None for nowhere.
            positions: output position of each row.
        """
        if all(record is None for record in records):
            return
        self._pending.append(_Pending(stats.table, records, positions))
        self.settle()

    def add_by_slot(
        self,
        stats: RowStats,
        records: Sequence[Record | None],
        slots: Tensor,
        positions: Tensor,
    ) -> None:
        """Take a step's figures of which only the device knows whose they are.

        Args:
            stats: figures of N rows.
            records: the record of every slot as of this step.
            slots: [N], slot of each row.
            positions: [N], output position of each row; below 0 where it counts not.
        """
        figures = torch.stack([*stats.table, slots.float(), positions.float()])
        self._pending.append(_Pending(figures, list(records), None))
        self.settle()

    def settle(self) -> None:
        """Move what has arrived from the device into the records; waits for nothing."""
        while self._pending:
            event = self._pending[0].event
            if event is not None and not event.query():
                return
            not_finite = self._pending.popleft().settle()
            if not_finite:
                self.errors["row_not_finite"] += not_finite

    def pop(self, keys: Sequence[str]) -> dict[str, dict[int, list[list[float]]]]:
        """Hand out the records of finished requests and forget them.

        A step's figures are copied from the device before its sampled tokens are, so a
        request whose last token has been seen has all of its figures here.
        """
        self.settle()
        popped = {}
        for key in keys:
            choices = self._choices.pop(key, None)
            if choices is not None:
                popped[key] = {i: record.columns() for i, record in choices.items()}
        return popped

    def pop_errors(self) -> dict[str, int]:
        """Hand out the errors counted since the last call."""
        errors = dict(self.errors)
        self.errors.clear()
        return errors

    @property
    def num_keys(self) -> int:
        """How many requests have records here."""
        return len(self._choices)

    def _forget_old(self) -> None:
        """Drop what no API server came back for, looking at the oldest key only."""
        if not self._choices:
            return
        key, choices = next(iter(self._choices.items()))
        touched = max(record.touched for record in choices.values())
        stale = touched < time.monotonic() - FORGET_AFTER_SECONDS
        if stale or len(self._choices) >= MAX_KEYS:
            del self._choices[key]
        else:
            self._choices.move_to_end(key)


RECORDER = Recorder()
"""This worker process's recorder: the processor and the extension share it."""


class EMInfWorkerExtension:
    """What vLLM's worker learns from us; called over `collective_rpc`."""

    def em_inf_pop(self, keys: list[str]) -> dict[str, Any]:
        """Statistics of finished requests; errors, seconds and calls since the last time.

        Args:
            keys: as in `extra_args["em_inf"]["key"]`; unknown ones are passed over.
        """
        seconds, calls = RECORDER.stopwatch.pop()
        return {
            "records": RECORDER.pop(keys),
            "errors": RECORDER.pop_errors(),
            "seconds": seconds,
            "calls": calls,
        }

    def em_inf_status(self) -> dict[str, Any]:
        """Runner, backend, device and the number of open records; empty if not loaded."""
        if not RECORDER.status:
            return {}
        return {**RECORDER.status, "open_records": RECORDER.num_keys}
