"""One engine step's work on the rows of requests with EM-INF on, for either model runner.

What the runners' adapters share: settings by slot, the call of the kernels, the figures.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from em_inf.logits_processors import minimize, recorder
from em_inf.logits_processors.extra_args import (
    EXTRA_ARGS_KEY,
    from_extra_args,
    max_grad_steps,
)
from em_inf.logits_processors.slots import Slots

if TYPE_CHECKING:
    from vllm import SamplingParams

logger = logging.getLogger("vllm.em_inf")

T = TypeVar("T")


class CountsErrors(Protocol):
    """Who can say that an error was caught."""

    def count_error(self, kind: str) -> None:
        """Count an error in flight, by its kind."""


def guarded(
    kind: str, fallback: Callable[..., T]
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Keep an error of ours from taking the engine, and everybody's requests, down.

    It is counted every time and logged with its traceback the first time.

    Args:
        kind: label of the error's metric.
        fallback: called with the same arguments instead.
    """

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def caught(self: CountsErrors, *args: Any) -> T:
            try:
                return method(self, *args)
            except Exception:  # noqa: BLE001  Whatever it is, the engine must go on.
                self.count_error(kind)
                return fallback(self, *args)

        return caught

    return decorate


class Step:
    """The running requests' settings, and EM-INF on their rows.

    Args:
        runner: "V1" or "V2", for the status.
        num_slots: how many requests can run at a time.
        rows_per_request: how many rows of a step one of them can have.
        vocab_size: V.
        device: where the logits live.
        samples: whether this worker samples; the first pipeline stages do not.

    Attributes:
        slots: settings and record of each running request.
        recorder: where the figures go.
    """

    def __init__(
        self,
        runner: str,
        num_slots: int,
        rows_per_request: int,
        vocab_size: int,
        device: torch.device,
        samples: bool,
    ) -> None:
        self.slots = Slots(num_slots, device)
        self.recorder = recorder.RECORDER
        self._samples = samples
        self._minimize_entropy_ = minimize.minimize_entropy_
        self._logged: set[str] = set()
        if samples:
            max_rows = num_slots * rows_per_request
            self._workspace = minimize.prepare(
                vocab_size, max_rows, device, max_grad_steps=max_grad_steps()
            )
        self.recorder.status = {
            "runner": runner,
            "backend": minimize.pick_backend("auto", device),
            "device": device.type,
        }

    def count_error(self, kind: str) -> None:
        """Count an error in flight, and log the first of its kind."""
        self.recorder.errors[kind] += 1
        if kind not in self._logged:
            self._logged.add(kind)
            logger.exception(
                "EM-INF failed (%s); logits not yet done go on unchanged. Further errors "
                "of this kind are only counted, in em_inf_processor_errors_total.",
                kind,
            )

    def take_up(self, slot: int, sampling_params: SamplingParams) -> bool:
        """Give a slot to a request.

        Returns:
            Whether EM-INF is on for it.
        """
        value = (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY)
        if value is None or not self._samples:
            self.slots.clear(slot)
            return False
        settings, key = from_extra_args(value)
        asked = settings.report != "none"
        record = self.recorder.open(key) if asked else recorder.NO_RECORD
        self.slots.set(slot, settings, record)
        return True

    def run(
        self, logits: Tensor, rows: NDArray[Any], slots: NDArray[Any], positions: Any
    ) -> None:
        """Minimise the entropy of rows that the host knows, in place.

        Args:
            logits: `[R, V]` float32.
            rows: `[N]` integers, the chosen rows.
            slots: `[N]` integers, the slot of each.
            positions: `[N]` int64, the output position of each.
        """
        index = _to_device(rows, logits.device)
        slot_index = index if slots is rows else _to_device(slots, logits.device)
        figures = self._minimize(logits, index, slot_index)
        self._record(self.recorder.add, figures, self.slots.records[slots], positions)

    def run_by_slot(
        self, logits: Tensor, rows: Tensor, slots: Tensor, positions: Tensor
    ) -> None:
        """Minimise the entropy of rows that only the device knows, in place.

        Args:
            logits: `[R, V]` float32.
            rows: `[N]` int64, the chosen rows.
            slots: `[N]` int64, the slot of each.
            positions: `[N]`, the output position of each; below 0 where it counts not.
        """
        figures = self._minimize(logits, rows, slots)
        records = self.slots.records
        self._record(self.recorder.add_by_slot, figures, records, slots, positions)

    def _minimize(self, logits: Tensor, rows: Tensor, slots: Tensor) -> Any:
        return self._minimize_entropy_(
            logits,
            rows,
            self.slots.params(slots),
            workspace=self._workspace,
            max_grad_steps=self.slots.max_grad_steps,
            any_adaptive=self.slots.any_adaptive,
        )

    @guarded("record", lambda *_: None)
    def _record(self, add: Callable[..., None], *figures: Any) -> None:
        """Hand figures to the recorder; an error there is no reason to lose the row."""
        add(*figures)


def _to_device(index: Any, device: torch.device) -> Tensor:
    """A small host array of indices as int64 on the device, without waiting for it."""
    tensor = torch.as_tensor(index, dtype=torch.int64)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
