"""`EMInfLogitsProcessor`: vLLM's V1 and V2 processor interfaces in one class.

Bookkeeping only: which rows of a step belong to requests with EM-INF on, and where their
statistics go. Loaded by name (`--logits-processors`), in the API server too, where only
`validate_params` is called.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vllm.v1.sample.logits_processor.interface import (
    LogitsProcessor as V1LogitsProcessor,
)
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as V2LogitsProcessor,
)

from logits_processors.settings import (
    EXTRA_ARGS_KEY,
    from_extra_args,
    server_settings,
)

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

logger = logging.getLogger("vllm.em_inf")

T = TypeVar("T")


def _guarded(
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
        def guarded(self: EMInfLogitsProcessor, *args: Any) -> T:
            try:
                return method(self, *args)
            except Exception:  # noqa: BLE001  Whatever it is, the engine must go on.
                self.count_error(kind)
                return fallback(self, *args)

        return guarded

    return decorate


class EMInfLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Lowers the entropy of the rows whose request asks for it, before temperature.

    vLLM constructs it with `(vllm_config, device, is_pin_memory)` under its V1 runner and
    with `(vllm_config, req_states)` under V2. V1 calls it before penalties, V2 after.
    """

    def __init__(self, vllm_config: VllmConfig, *runner_args: Any) -> None:
        import torch

        from logits_processors.minimize import minimize_entropy_, pick_backend, prepare
        from logits_processors.recorder import RECORDER
        from logits_processors.slots import Slots

        self._is_v2 = len(runner_args) == 1
        self._req_states: Any = runner_args[0] if self._is_v2 else None
        device = torch.device(
            self._req_states.device if self._req_states else runner_args[0]
        )
        scheduler = vllm_config.scheduler_config
        self._num_slots = (
            self._req_states.max_num_reqs if self._req_states else scheduler.max_num_seqs
        )
        self._speculative = vllm_config.speculative_config is not None
        vocab_size = vllm_config.model_config.get_vocab_size()
        drafts = vllm_config.num_speculative_tokens if self._speculative else 0

        self._recorder = RECORDER
        self._minimize_entropy_ = minimize_entropy_
        self._slots = Slots(self._num_slots, device)
        self._samples = _is_last_pipeline_rank()
        self._logged: set[str] = set()
        # V1: the live list of output tokens of each slot; its length is the position.
        self._outputs: list[list[int] | None] = [None] * self._num_slots
        if self._samples:
            self._rows_per_request = 1 + drafts
            max_rows = self._num_slots * self._rows_per_request
            most_steps = server_settings().max_grad_steps
            self._workspace = prepare(
                vocab_size, max_rows, device, max_grad_steps=most_steps
            )
        RECORDER.status = {
            "runner": "V2" if self._is_v2 else "V1",
            "backend": pick_backend("auto", device),
            "device": device.type,
        }

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse settings that did not come through our request models.

        Raises:
            SettingsError: `extra_args["em_inf"]` is not what `to_extra_args` writes.
        """
        value = (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY)
        if value is not None:
            from_extra_args(value)

    def count_error(self, kind: str) -> None:
        """Count an error in flight, and log the first of its kind."""
        self._recorder.errors[kind] += 1
        if kind not in self._logged:
            self._logged.add(kind)
            logger.exception(
                "EM-INF failed (%s); logits not yet done go on unchanged. Further errors "
                "of this kind are only counted, in em_inf_processor_errors_total.",
                kind,
            )

    # V1 ------------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """False, so that V1 calls us before temperature and for greedy requests too."""
        return False

    @_guarded("update_state", lambda self, *_: self._slots.clear_all())
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests into, out of and through the batch (V1)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._slots.clear(row)
        for row, sampling_params, _, output_token_ids in batch_update.added:
            self._outputs[row] = output_token_ids
            self.add_request(row, sampling_params)
        for source, target, direction in batch_update.moved:
            swap = direction == MoveDirectionality.SWAP
            self._slots.move(source, target, swap)
            outputs = self._outputs
            outputs[source], outputs[target] = outputs[target], outputs[source]

    # V2 ------------------------------------------------------------------------------

    @_guarded("apply_staged_writes", lambda _: None)
    def apply_staged_writes(self) -> None:
        """Bring settings to the device and figures back, waiting for neither (V2)."""
        self._slots.upload()
        self._recorder.settle()

    # Both ----------------------------------------------------------------------------

    @_guarded("add_request", lambda self, slot, _: bool(self._slots.clear(slot)))
    def add_request(self, slot: int, sampling_params: SamplingParams) -> bool:
        """Take up a request's settings (V2's hook; V1 comes here from `update_state`).

        Returns:
            Whether EM-INF is on for it.
        """
        value = (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY)
        if value is None or not self._samples:
            self._slots.clear(slot)
            return False
        settings, key, base_seed = from_extra_args(value)
        choice = 0
        if base_seed is not None and sampling_params.seed is not None:
            choice = sampling_params.seed - base_seed
        record = None
        if settings.report != "none":
            record = self._recorder.open(key, choice)
        self._slots.set(slot, settings, record)
        return True

    def apply(
        self, logits: torch.Tensor, ctx: LogitsContext | None = None
    ) -> torch.Tensor:
        """Minimise the entropy of the rows that asked for it, in place.

        Args:
            logits: [R, V] float32.
            ctx: the step's layout under V2, None under V1.
        """
        if not self._slots.num_active:
            return logits
        return self._apply(logits, ctx)

    @_guarded("apply", lambda _, logits, *__: logits)
    def _apply(self, logits: torch.Tensor, ctx: LogitsContext | None) -> torch.Tensor:
        if ctx is not None and not self._slots.active[ctx.idx_mapping_np].any():
            return logits
        with self._recorder.stopwatch.running(logits.device):
            if ctx is None:
                return self._apply_v1(logits)
            if self._speculative:
                return self._apply_v2_drafts(logits, ctx)
            return self._apply_v2(logits, ctx)

    def _apply_v1(self, logits: torch.Tensor) -> torch.Tensor:
        slots = self._slots.active[: logits.shape[0]].nonzero()[0]
        if slots.size:
            self._slots.upload()
            positions = [len(self._outputs[slot] or ()) for slot in slots]
            self._run(logits, slots, slots, positions)
        return logits

    def _apply_v2(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """One row a request, all known to the host."""
        slots = ctx.idx_mapping_np
        length = ctx.seq_lens_upper_bound_np[: slots.size]
        # A prompt that is not yet read to its end samples a token that is thrown away.
        sampled = length >= self._req_states.prefill_len.np[slots]
        rows = (self._slots.active[slots] & sampled).nonzero()[0]
        if rows.size:
            positions = length[rows] - self._req_states.prompt_len.np[slots[rows]]
            self._run(logits, rows, slots[rows], positions.tolist())
        return logits

    def _run(
        self, logits: torch.Tensor, rows: Any, slots: Any, positions: list[int]
    ) -> None:
        """Run on rows that the host knows.

        Args:
            logits: [R, V] float32.
            rows: [N] integers, the chosen rows.
            slots: [N] integers, the slot of each.
            positions: N output positions.
        """
        index = _to_device(rows, logits.device)
        slot_index = index if slots is rows else _to_device(slots, logits.device)
        stats = self._minimize_entropy_(
            logits,
            index,
            self._slots.params(slot_index),
            workspace=self._workspace,
            max_grad_steps=self._slots.max_grad_steps,
            any_adaptive=self._slots.any_adaptive,
        )
        records = [self._slots.records[slot] for slot in slots]
        self._record(self._recorder.add, stats, records, positions)

    @_guarded("record", lambda *_: None)
    def _record(self, add: Callable[..., None], *figures: Any) -> None:
        """Hand figures to the recorder; an error there is no reason to lose the row."""
        add(*figures)

    def _apply_v2_drafts(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Several rows a request (speculative decoding); only the device knows whose.

        The host knows how many rows there can be at most. So many are taken, those of
        requests with EM-INF on first; any other among them has step count 0 and stays.
        """
        import torch

        num_active = int(self._slots.active[ctx.idx_mapping_np].sum())
        most = min(logits.shape[0], num_active * self._rows_per_request)
        slots = ctx.expanded_idx_mapping.long()
        on = self._slots.is_on(slots)
        rows = torch.argsort(on, descending=True, stable=True)[:most]
        slots = slots[rows]
        stats = self._minimize_entropy_(
            logits,
            rows,
            self._slots.params(slots),
            workspace=self._workspace,
            max_grad_steps=self._slots.max_grad_steps,
            any_adaptive=self._slots.any_adaptive,
        )
        length = ctx.pos[rows] + 1
        position = length - self._req_states.prompt_len.gpu[slots]
        sampled = length >= self._req_states.prefill_len.gpu[slots]
        position = torch.where(sampled, position, -1)
        records = self._slots.records
        self._record(self._recorder.add_by_slot, stats, records, slots, position)
        return logits


def _to_device(index: Any, device: torch.device) -> torch.Tensor:
    """A small host array of indices as int64 on the device, without waiting for it."""
    import torch

    tensor = torch.as_tensor(index, dtype=torch.int64)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _is_last_pipeline_rank() -> bool:
    """Whether this worker samples; with one pipeline stage every worker does."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return True
    return bool(parallel_state.get_pp_group().is_last_rank)
