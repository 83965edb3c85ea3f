"""Figures on their way from the rows back to the API server.

The processor adds a step's figures without waiting for the device; they settle in pages,
some of each answer's, by output position, so that a position computed twice (preemption,
chunked prefill, rejected drafts) counts once. `EMInfWorkerExtension`, which vLLM mixes
into its worker, hands the figures of finished answers out and forgets them.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from em_inf.logits_processors.figures import COLUMNS, Figures, last_recorded
from em_inf.logits_processors.reference import RowFigures
from em_inf.logits_processors.stopwatch import Stopwatch

FORGET_AFTER_SECONDS = 900.0
MAX_KEYS = 65_536
NO_RECORD = -1
"""The handle of a row whose figures nobody asked for."""
PAGE_TOKENS = 32
_GROW_PAGES = 512
_NO_PAGE = -1
_CLOSED = -2
_INDEX_BITS = 20
_INDEX = (1 << _INDEX_BITS) - 1

Handles = NDArray[np.int64]


class _Pages:
    """Figures of many answers, in pages of `PAGE_TOKENS` that any of them may have.

    Attributes:
        rows: `[pages * PAGE_TOKENS, columns]` float32.
    """

    def __init__(self) -> None:
        self.rows = np.empty((0, len(COLUMNS)), np.float32)
        self._free: list[int] = []

    def take(self) -> int:
        """The first row of a page of one's own, which holds NaN."""
        if not self._free:
            first = self.rows.shape[0]
            size = first + _GROW_PAGES * PAGE_TOKENS
            # Grows in place where the system can move memory by remapping it.
            self.rows.resize((size, len(COLUMNS)), refcheck=False)
            self._free.extend(range(size - PAGE_TOKENS, first - 1, -PAGE_TOKENS))
        page = self._free.pop()
        self.rows[page : page + PAGE_TOKENS] = np.nan
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """Let other answers have pages again."""
        self._free.extend(page for page in pages if page != _NO_PAGE)


class _Pending:
    """One step's figures, perhaps still being copied from the device."""

    __slots__ = ("event", "handles", "positions", "table")

    def __init__(
        self, table: Tensor, handles: Handles, positions: NDArray[np.int64] | None
    ) -> None:
        self.event = None
        if table.device.type != "cpu":
            host = torch.empty_like(table, device="cpu", pin_memory=True)
            host.copy_(table, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
            table = host
        self.table = table
        self.handles = handles
        self.positions = positions


class Recorder:
    """The figures of one worker process.

    Attributes:
        status: what the processor says of itself; empty while none is loaded.
        errors: kind of error to count, since they were last handed out.
        stopwatch: the time that the processor took.
    """

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self.errors: Counter[str] = Counter()
        self.stopwatch = Stopwatch()
        self._by_key: OrderedDict[str, int] = OrderedDict()
        self._pending: deque[_Pending] = deque()
        self._data = _Pages()
        self._serial = 0
        # Of each open record, by the lower bits of its handle.
        self._pages: list[list[int]] = []
        self._free: list[int] = []
        self._handle: Handles = np.empty(0, np.int64)
        self._touched = np.empty(0, np.float64)
        # The page that was written to last: its first row, and its first position.
        self._row = np.empty(0, np.int64)
        self._position = np.empty(0, np.int64)
        self._grow()

    def open(self, key: str) -> int:
        """The handle of an answer's record, the same one again after a preemption."""
        known = self._by_key.get(key)
        if known is not None:
            return known
        self._forget_old()
        if not self._free:
            self._grow()
        index = self._free.pop()
        handle = self._serial << _INDEX_BITS | index
        self._serial += 1
        self._by_key[key] = handle
        self._handle[index] = handle
        self._touched[index] = time.monotonic()
        return handle

    def add(
        self, figures: RowFigures, handles: Handles, positions: NDArray[np.int64]
    ) -> None:
        """Take a step's figures whose requests and positions the host knows.

        Args:
            figures: those of N rows.
            handles: `[N]`, from `open`; `NO_RECORD` where a row's figures go nowhere.
            positions: `[N]`, output position of each row.
        """
        if (handles == NO_RECORD).all():
            return
        self._pending.append(_Pending(figures.table, handles, positions))
        self.settle()

    def add_by_slot(
        self, figures: RowFigures, handles: Handles, slots: Tensor, positions: Tensor
    ) -> None:
        """Take a step's figures of which only the device knows whose they are.

        Args:
            figures: those of N rows.
            handles: `[slots]`, the record of every slot as of this step.
            slots: `[N]`, slot of each row.
            positions: `[N]`, output position of each row; below 0 where it counts not.
        """
        table = torch.stack([*figures.table, slots.float(), positions.float()])
        self._pending.append(_Pending(table, handles.copy(), None))
        self.settle()

    def settle(self) -> None:
        """Move what has arrived from the device into the records; waits for nothing."""
        while self._pending:
            event = self._pending[0].event
            if event is not None and not event.query():
                return
            step = self._pending.popleft()
            rows, handles, positions = step.table.numpy().T, step.handles, step.positions
            if positions is None:
                handles = handles[rows[:, -2].astype(np.int64)]
                positions = rows[:, -1].astype(np.int64)
                rows = rows[:, : len(COLUMNS)]
            self._write(rows, handles, positions)

    def _write(
        self, rows: NDArray[np.float32], handles: Handles, positions: NDArray[np.int64]
    ) -> None:
        """Write rows `[N, columns]` to their records, where these are still open."""
        index = handles & _INDEX
        index[handles == NO_RECORD] = 0
        is_open = (self._handle[index] == handles) & (positions >= 0)
        if not is_open.all():
            index, rows, positions = index[is_open], rows[is_open], positions[is_open]
        on_page = positions - self._position[index]
        target = self._row[index] + on_page
        # One row in PAGE_TOKENS, where an answer goes on to its next page.
        for i in np.flatnonzero((on_page < 0) | (on_page >= PAGE_TOKENS)).tolist():
            record, position = int(index[i]), int(positions[i])
            self._turn_to(record, position)
            target[i] = self._row[record] + position - self._position[record]
        self._data.rows[target] = rows
        self._touched[index] = time.monotonic()
        not_finite = int(np.count_nonzero(np.isnan(rows[:, 0])))
        if not_finite:
            self.errors["row_not_finite"] += not_finite

    def _turn_to(self, index: int, position: int) -> None:
        """Make the page of a position the one that a record is written on."""
        number = position // PAGE_TOKENS
        pages = self._pages[index]
        pages.extend([_NO_PAGE] * (number + 1 - len(pages)))
        if pages[number] == _NO_PAGE:
            pages[number] = self._data.take()
        self._row[index] = pages[number]
        self._position[index] = number * PAGE_TOKENS

    def pop(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Hand out the figures of finished answers, as bytes, and forget them.

        A step's figures are copied from the device before its sampled tokens are, so an
        answer whose last token has been seen has all of its figures here.
        """
        self.settle()
        popped = {}
        for key in keys:
            handle = self._by_key.pop(key, None)
            if handle is not None:
                popped[key] = self._close(handle).to_bytes()
        return popped

    def _close(self, handle: int) -> Figures:
        index = handle & _INDEX
        pages = self._pages[index]
        rows = np.full((len(pages), PAGE_TOKENS, len(COLUMNS)), np.nan, np.float32)
        for number, page in enumerate(pages):
            if page != _NO_PAGE:
                rows[number] = self._data.rows[page : page + PAGE_TOKENS]
        self._data.give_back(pages)
        self._clear(index)
        self._free.append(index)
        flat = rows.reshape(-1, len(COLUMNS))
        return Figures(np.ascontiguousarray(flat[: last_recorded(flat)].T))

    def pop_errors(self) -> dict[str, int]:
        """Hand out the errors counted since the last call."""
        errors = dict(self.errors)
        self.errors.clear()
        return errors

    @property
    def num_keys(self) -> int:
        """How many answers have records here."""
        return len(self._by_key)

    @property
    def num_bytes(self) -> int:
        """Memory of the pages, taken or free."""
        return self._data.rows.nbytes

    def _grow(self) -> None:
        """Room for twice as many records."""
        had = len(self._pages)
        size = max(64, 2 * had)
        for column in (self._handle, self._touched, self._row, self._position):
            column.resize(size, refcheck=False)
        self._pages.extend([] for _ in range(size - had))
        for index in range(size - 1, had - 1, -1):
            self._clear(index)
            self._free.append(index)

    def _clear(self, index: int) -> None:
        self._pages[index] = []
        self._handle[index] = _CLOSED
        self._row[index] = 0
        self._position[index] = -PAGE_TOKENS  # No position is on this page.

    def _forget_old(self) -> None:
        """Drop what no API server came back for, looking at the oldest key only."""
        if not self._by_key:
            return
        key, handle = next(iter(self._by_key.items()))
        touched = self._touched[handle & _INDEX]
        stale = touched < time.monotonic() - FORGET_AFTER_SECONDS
        if stale or len(self._by_key) >= MAX_KEYS:
            self._close(self._by_key.pop(key))
        else:
            self._by_key.move_to_end(key)


RECORDER = Recorder()
"""This worker process's recorder: the processor and the extension share it."""


class EMInfWorkerExtension:
    """What vLLM's worker learns from us; called over `collective_rpc`."""

    def em_inf_pop(self, keys: list[str]) -> dict[str, Any]:
        """Figures of finished answers; errors, seconds and calls since the last time.

        Args:
            keys: as in `extra_args["em_inf"]["key"]`; unknown ones are passed over.
        """
        seconds, calls = RECORDER.stopwatch.pop()
        return {
            "figures": RECORDER.pop(keys),
            "errors": RECORDER.pop_errors(),
            "seconds": seconds,
            "calls": calls,
        }

    def em_inf_status(self) -> dict[str, Any]:
        """Runner, backend, device and the number of open records; empty if not loaded."""
        if not RECORDER.status:
            return {}
        return {**RECORDER.status, "open_records": RECORDER.num_keys}
