"""What has to give way in Triton and vLLM before the V2 runner can run interpreted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

_POSITION_OF_MASK = {"create_masked_load": 1, "create_masked_store": 2}


def repair() -> None:
    """Make both repairs; vLLM calls this in each of its processes, perhaps twice."""
    from triton.runtime.interpreter import InterpreterBuilder
    from vllm.v1.sample.ops import topk_topp_sampler

    for name, position in _POSITION_OF_MASK.items():
        method = getattr(InterpreterBuilder, name)
        if not hasattr(method, "__wrapped__"):
            repaired = _with_boolean_mask(method, position)
            setattr(InterpreterBuilder, name, repaired)
    # The interpreter cannot run this kernel ('int' object has no attribute 'to'); vLLM
    # has the same in plain PyTorch.
    topk_topp_sampler.HAS_TRITON = False


def _with_boolean_mask(method: Callable[..., Any], position: int) -> Callable[..., Any]:
    """Cast the mask, which vLLM's kernels pass as integers, to what NumPy indexes by.

    Args:
        method: a method of the interpreter that reads or writes memory.
        position: where its mask stands among the arguments after `self`.
    """

    @functools.wraps(method)
    def repaired(self: Any, *arguments: Any) -> Any:
        mask = arguments[position]
        mask.data = mask.data.astype(np.bool_, copy=False)
        return method(self, *arguments)

    return repaired
