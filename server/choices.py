"""Several choices of one request, each sampled by an engine request of its own.

vLLM would do the same inside its engine client, with nothing that tells the choices apart
in the worker. Here each has its own key, and no seed that the client did not send.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncGenerator, Sequence

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.utils.async_utils import merge_async_iterators


def params_of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Sampling parameters of one choice of several.

    Args:
        params: the request's, with n choices.
        index: which choice; its seed is the request's plus this, as vLLM has it, and
            none where the request has none.
    """
    child = copy.copy(params)
    child.n = 1
    if params.seed is not None:
        child.seed = params.seed + index
    return child


async def merge_choices(
    streams: Sequence[AsyncGenerator[RequestOutput, None]], final_only: bool
) -> AsyncGenerator[RequestOutput, None]:
    """One request's outputs from those of its choices, in vLLM's own form.

    Args:
        streams: outputs of each choice, in order. All are closed, and so aborted, where
            one fails or the caller leaves.
        final_only: whether one output with every choice is wanted, and not each as it
            comes; only the last output of all is `finished`.
    """
    running = len(streams)
    whole: list[RequestOutput | None] = [None] * running
    async with contextlib.aclosing(merge_async_iterators(*streams)) as merged:
        async for index, output in merged:
            running -= output.finished
            for choice in output.outputs:
                choice.index = index
            if not final_only:
                output.finished = running == 0
                yield output
            elif output.finished:
                whole[index] = output
    if final_only:
        first, *others = (output for output in whole if output is not None)
        first.outputs = [*first.outputs, *(o for other in others for o in other.outputs)]
        yield first
