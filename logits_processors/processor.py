"""`EMInfLogitsProcessor`: vLLM's V1 and V2 processor interfaces in one class.

Loaded by name (`--logits-processors`), in the API server too, where only
`validate_params` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed import parallel_state
from vllm.v1.sample.logits_processor.interface import (
    LogitsProcessor as V1LogitsProcessor,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as V2LogitsProcessor,
)

from em_inf.logits_processors.extra_args import EXTRA_ARGS_KEY, check_extra_args
from em_inf.logits_processors.runners import Runner, V1Runner, V2Runner
from em_inf.logits_processors.step import Step, guarded

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext


class EMInfLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Lowers the entropy of the rows whose request asks for it, before temperature.

    vLLM constructs it with `(vllm_config, device, is_pin_memory)` under its V1 runner and
    with `(vllm_config, req_states)` under V2. V1 calls it before penalties, V2 after.
    """

    def __init__(self, vllm_config: VllmConfig, *runner_args: Any) -> None:
        req_states = runner_args[0] if len(runner_args) == 1 else None
        drafts = 0
        if vllm_config.speculative_config is not None:
            drafts = vllm_config.num_speculative_tokens
        num_slots = vllm_config.scheduler_config.max_num_seqs
        self._step = Step(
            runner="V2" if req_states else "V1",
            num_slots=req_states.max_num_reqs if req_states else num_slots,
            rows_per_request=1 + drafts,
            vocab_size=vllm_config.model_config.get_vocab_size(),
            device=torch.device(req_states.device if req_states else runner_args[0]),
            samples=_is_last_pipeline_rank(),
        )
        self._v1 = V1Runner(self._step, num_slots)
        self._runner: Runner = (
            V2Runner(self._step, req_states, 1 + drafts) if req_states else self._v1
        )

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse settings that did not come from our engine client.

        Raises:
            SettingsError: `extra_args["em_inf"]` is not what `to_extra_args` writes.
        """
        value = (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY)
        if value is not None:
            check_extra_args(value)

    def count_error(self, kind: str) -> None:
        """Count an error in flight, and log the first of its kind."""
        self._step.count_error(kind)

    def is_argmax_invariant(self) -> bool:
        """False, so that V1 calls us before temperature and for greedy requests too."""
        return False

    @guarded("update_state", lambda self, *_: self._step.slots.clear_all())
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests into, out of and through the batch (V1)."""
        if batch_update is None:
            return
        for row, sampling_params in self._v1.follow(batch_update):
            self.add_request(row, sampling_params)
        self._v1.follow_moves(batch_update)

    @guarded("apply_staged_writes", lambda _: None)
    def apply_staged_writes(self) -> None:
        """Bring settings to the device and figures back, waiting for neither (V2)."""
        self._step.slots.upload()
        self._step.recorder.settle()

    @guarded("add_request", lambda self, slot, _: bool(self._step.slots.clear(slot)))
    def add_request(self, slot: int, sampling_params: SamplingParams) -> bool:
        """Take up a request's settings (V2's hook; V1 comes here from `update_state`).

        Returns:
            Whether EM-INF is on for it.
        """
        return self._step.take_up(slot, sampling_params)

    def apply(
        self, logits: torch.Tensor, ctx: LogitsContext | None = None
    ) -> torch.Tensor:
        """Minimise the entropy of the rows that asked for it, in place.

        Args:
            logits: [R, V] float32.
            ctx: the step's layout under V2, None under V1.
        """
        if self._step.slots.num_active:
            self._apply(logits, ctx)
        return logits

    @guarded("apply", lambda *_: None)
    def _apply(self, logits: torch.Tensor, ctx: LogitsContext | None) -> None:
        if ctx is None or self._step.slots.active[ctx.idx_mapping_np].any():
            with self._step.recorder.stopwatch.running(logits.device):
                self._runner.apply(logits, ctx)


def _is_last_pipeline_rank() -> bool:
    """Whether this worker samples; with one pipeline stage every worker does."""
    if not parallel_state.model_parallel_is_initialized():
        return True
    return bool(parallel_state.get_pp_group().is_last_rank)
