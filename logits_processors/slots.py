"""Settings of the running requests, by slot, on the host and on the device.

A slot is a request's place in the worker: the batch row under vLLM's V1 runner, where
requests move between rows, and a fixed index under V2.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from em_inf.logits_processors.recorder import NO_RECORD
from em_inf.logits_processors.reference import RowParams
from em_inf.logits_processors.settings import Settings

_COLUMNS = len(RowParams.COLUMNS)


class Slots:
    """A table of settings with one line a slot; a line of zeros leaves its rows alone.

    Args:
        num_slots: how many requests can run at a time.
        device: where the logits live.

    Attributes:
        active: [num_slots] bool, the slots whose request has EM-INF on.
        num_active: how many they are.
        max_grad_steps: the largest step count in the table as of the last `upload`.
        any_adaptive: whether adaptive temperature was in the table then.
        records: `[num_slots]` int64, the recorder's handle of where the figures of each
            slot go, `NO_RECORD` where nobody asked.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.active: NDArray[np.bool_] = np.zeros(num_slots, dtype=bool)
        self.num_active = 0
        self.max_grad_steps = 0
        self.any_adaptive = False
        self.records = np.full(num_slots, NO_RECORD, dtype=np.int64)
        self._host = np.zeros((num_slots, _COLUMNS), dtype=np.float32)
        self._on_host = device.type == "cpu"
        host = torch.from_numpy(self._host)
        self._device_table = host if self._on_host else host.to(device)
        self._stale = False

    def set(self, slot: int, settings: Settings, record: int) -> None:
        """Give a slot to a request with EM-INF on, whoever had it before."""
        gradient = settings.method == "gradient"
        line = {
            "adaptive": not gradient,
            "n_grad_steps": settings.n_grad_steps if gradient else 0,
            "learning_rate": settings.learning_rate,
            "threshold": settings.threshold,
            "kl_weight": settings.kl_weight,
            "target_ratio": settings.target_ratio,
        }
        # A threshold beyond float32 is infinite here: above every entropy, as it was.
        with np.errstate(over="ignore"):
            self._host[slot] = [line[name] for name in RowParams.COLUMNS]
        self.num_active += not self.active[slot]
        self.active[slot] = True
        self.records[slot] = record
        self._stale = True

    def clear(self, slot: int) -> None:
        """Leave a slot to a request without EM-INF, or to nobody."""
        if self.active[slot]:
            self._host[slot] = 0
            self.active[slot] = False
            self.num_active -= 1
            self.records[slot] = NO_RECORD
            self._stale = True

    def clear_all(self) -> None:
        """Turn EM-INF off for every running request."""
        for slot in np.flatnonzero(self.active):
            self.clear(int(slot))

    def move(self, source: int, target: int, swap: bool) -> None:
        """Carry a slot's request over to another slot; the source is empty afterwards.

        Args:
            source: slot that the request leaves.
            target: slot that it takes.
            swap: the target's request takes the source instead of being dropped.
        """
        pair = [source, target]
        for table in (self._host, self.active, self.records):
            table[pair] = table[pair[::-1]]
        self._stale = True
        if not swap:
            self.clear(source)

    def upload(self) -> None:
        """Bring the device's copy up to date, without waiting for the device."""
        if not self._stale:
            return
        self._stale = False
        self.max_grad_steps = int(self._host[:, 1].max())
        self.any_adaptive = bool(self._host[:, 0].any())
        if not self._on_host:
            staged = torch.from_numpy(self._host).pin_memory()
            self._device_table.copy_(staged, non_blocking=True)

    def params(self, slots: Tensor) -> RowParams:
        """Settings of the given slots, `[N]` int64 on the device."""
        return RowParams(self._device_table.index_select(0, slots))

    def is_on(self, slots: Tensor) -> Tensor:
        """Which of the given slots, `[N]` int64 on the device, have EM-INF on."""
        return self.params(slots).learning_rate > 0
