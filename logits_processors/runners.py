"""How vLLM's two model runners say which rows of a step belong to which request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from em_inf.logits_processors.step import Step

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext


class Runner(Protocol):
    """What says which rows of a step belong to which request."""

    def apply(self, logits: Tensor, ctx: Any) -> None:
        """Run on the rows with EM-INF on, in place; `logits` is `[R, V]` float32."""


class V1Runner:
    """V1: a request's slot is its row, and requests move between rows.

    Args:
        step: what is done with the rows.
        num_slots: how many requests can run at a time.
    """

    def __init__(self, step: Step, num_slots: int) -> None:
        self._step = step
        # The live list of output tokens of each slot; its length is the position.
        self._outputs: list[list[int] | None] = [None] * num_slots

    def follow(self, batch_update: BatchUpdate) -> list[tuple[int, SamplingParams]]:
        """Follow requests out of the batch; returns those that came in, by slot."""
        for row in batch_update.removed:
            self._step.slots.clear(row)
        for row, _, _, output_token_ids in batch_update.added:
            self._outputs[row] = output_token_ids
        return [(row, params) for row, params, _, _ in batch_update.added]

    def follow_moves(self, batch_update: BatchUpdate) -> None:
        """Follow requests through the batch."""
        outputs = self._outputs
        for source, target, direction in batch_update.moved:
            swap = direction == MoveDirectionality.SWAP
            self._step.slots.move(source, target, swap)
            outputs[source], outputs[target] = outputs[target], outputs[source]

    def apply(self, logits: Tensor, _: None) -> None:
        """Run on the rows with EM-INF on, in place."""
        slots = self._step.slots.active[: logits.shape[0]].nonzero()[0]
        if slots.size:
            self._step.slots.upload()
            lengths = [len(self._outputs[slot] or ()) for slot in slots]
            positions = np.array(lengths, dtype=np.int64)
            self._step.run(logits, slots, slots, positions)


class V2Runner:
    """V2: a request keeps its slot, and each step says the slot of each row.

    Args:
        step: what is done with the rows.
        req_states: vLLM's tables of the running requests.
        rows_per_request: how many rows of a step one request can have, 1 without drafts.
    """

    def __init__(self, step: Step, req_states: Any, rows_per_request: int) -> None:
        self._step = step
        self._req_states = req_states
        self._rows_per_request = rows_per_request

    def apply(self, logits: Tensor, ctx: LogitsContext) -> None:
        """Run on the rows with EM-INF on, in place."""
        if self._rows_per_request > 1:
            self._apply_to_drafts(logits, ctx)
            return
        slots = ctx.idx_mapping_np
        length = ctx.seq_lens_upper_bound_np[: slots.size]
        # A prompt that is not yet read to its end samples a token that is thrown away.
        sampled = length >= self._req_states.prefill_len.np[slots]
        rows = (self._step.slots.active[slots] & sampled).nonzero()[0]
        if rows.size:
            positions = length[rows] - self._req_states.prompt_len.np[slots[rows]]
            self._step.run(logits, rows, slots[rows], positions.astype(np.int64))

    def _apply_to_drafts(self, logits: Tensor, ctx: LogitsContext) -> None:
        """Several rows a request (speculative decoding); only the device knows whose.

        The host knows how many rows there can be at most. So many are taken, those of
        requests with EM-INF on first; any other among them has step count 0 and stays.
        """
        num_active = int(self._step.slots.active[ctx.idx_mapping_np].sum())
        most = min(logits.shape[0], num_active * self._rows_per_request)
        slots = ctx.expanded_idx_mapping.long()
        on = self._step.slots.is_on(slots)
        rows = torch.argsort(on, descending=True, stable=True)[:most]
        slots = slots[rows]
        length = ctx.pos[rows] + 1
        position = length - self._req_states.prompt_len.gpu[slots]
        sampled = length >= self._req_states.prefill_len.gpu[slots]
        self._step.run_by_slot(logits, rows, slots, torch.where(sampled, position, -1))
