"""The Triton kernels: compiled for a GPU here, held against their exact form, grouped.

That they agree with the oracles is in `test_backends.py`, under Triton's interpreter;
there and here they run on a GPU instead where there is one.
"""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em_inf.logits_processors.reference import RowFigures
from em_inf.logits_processors.settings import Settings
from tests.logits_processors.autograd_oracle import softmax_of
from tests.logits_processors.rows import (
    CPU,
    INF,
    TRITON,
    bits,
    llm_like_rows,
    minimized,
    moved,
    params_of,
)

SLICE = 8192
WHOLE_SLICES = 18 * SLICE
QWEN = 151_936


# Compiled for sm_90 -------------------------------------------------------------------


@cache
def compiled(vocab_size: int) -> dict[str, Any]:
    """What `sm90.py` finds, in a process without the interpreter."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.logits_processors.kernels.sm90", str(vocab_size)],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("vocab_size", [512, WHOLE_SLICES, QWEN])
def test_kernels_compile_for_hopper_and_spill_nothing(vocab_size: int) -> None:
    for name, kernel in compiled(vocab_size).items():
        assert kernel["spills"] == kernel["stack_bytes"] == 0, name


@pytest.mark.parametrize("vocab_size", [512, 2 * SLICE, WHOLE_SLICES, QWEN, 32 * SLICE])
def test_all_threads_of_a_program_get_the_same_bits(vocab_size: int) -> None:
    # They branch on entropies, around barriers.
    for name, kernel in compiled(vocab_size).items():
        assert kernel["fused_shuffles"] == 0, name


def per_element(kernel: dict[str, Any], elements: int) -> float:
    return float(kernel["instructions"] * kernel["warps"] * 32 / elements)


def test_statistics_take_at_most_ten_issue_slots_for_each_logit() -> None:
    # Straight code, one slice a program.
    kernel = compiled(WHOLE_SLICES)["statistics"]
    assert kernel["loops"] == [] or max(x["instructions"] for x in kernel["loops"]) == 1
    assert per_element(kernel, SLICE) <= 10


def test_map_takes_at_most_twenty_issue_slots_for_each_logit_and_step() -> None:
    # The innermost loop is over the steps, with 2048 logits in the registers.
    kernel = compiled(WHOLE_SLICES)["map"]
    inner = min(
        (x for x in kernel["loops"] if x["special"]), key=lambda x: x["instructions"]
    )
    lanes = 2048 / (kernel["warps"] * 32)
    assert inner["instructions"] / lanes <= 20
    assert inner["special"] / lanes == 3


def test_looking_a_row_up_takes_at_most_twenty_five_issue_slots_for_each_logit() -> None:
    # All of the kernel but the loops of the other ways, which such a row does not enter.
    kernel = compiled(WHOLE_SLICES)["map"]
    others = max(x["instructions"] for x in kernel["loops"])
    slots = {**kernel, "instructions": kernel["instructions"] - others}
    assert per_element(slots, SLICE) <= 25


# Beside their exact form --------------------------------------------------------------


def exactly(logits: Tensor, settings: list[Settings]) -> tuple[Tensor, RowFigures]:
    from tests.logits_processors.kernels import gpu_exact

    logits = logits.clone().to(TRITON)
    stats = RowFigures.empty(len(settings), TRITON)
    with np.errstate(all="ignore"):
        gpu_exact.minimize_rows_exactly_(
            logits,
            torch.arange(len(settings), device=TRITON),
            params_of(settings, TRITON),
            stats,
            max(s.n_grad_steps for s in settings),
        )
    return logits.cpu(), moved(stats, CPU)


@pytest.mark.parametrize("vocab_size", [7, 1000, 20_000])
def test_four_launches_agree_with_one_for_each_step(vocab_size: int) -> None:
    logits = llm_like_rows(vocab_size, 8, seed=31)
    logits[1, 2:5] = -INF
    logits[2, 3] = float("nan")
    settings = [
        Settings(),
        Settings(n_grad_steps=3, threshold=0.1, kl_weight=0.05),
        Settings(),
        Settings(n_grad_steps=0),
        Settings(threshold=100.0),
        Settings(n_grad_steps=1, threshold=0.0),
        Settings(n_grad_steps=7, learning_rate=0.3, kl_weight=1.0, threshold=0.0),
        Settings(n_grad_steps=4),
    ]
    rows, stats = minimized(logits, settings, backend="gpu")
    expected, expected_stats = exactly(logits, settings)
    assert torch.equal(stats.grad_steps, expected_stats.grad_steps)
    untouched = expected_stats.grad_steps == 0
    assert torch.equal(bits(rows[untouched]), bits(expected[untouched]))
    assert torch.equal(bits(expected[untouched]), bits(logits[untouched]))
    finite = torch.arange(8) != 2
    distance = (softmax_of(rows) - softmax_of(expected)).abs().sum(dim=1) / 2
    assert distance[finite].max() <= 1e-6
    for name in ("entropy_before", "entropy_after"):
        ours, theirs = getattr(stats, name), getattr(expected_stats, name)
        assert torch.allclose(ours, theirs, atol=2e-6, rtol=1e-5, equal_nan=True)


# Rows by kind -------------------------------------------------------------------------


def rows_of_every_kind() -> Tensor:
    """[4, 20000]: a small head, a head of thousands, a flat row, two allowed tokens."""
    generator = torch.Generator().manual_seed(32)
    noise = torch.randn(4, 20_000, generator=generator)
    noise[0, :30] += 12
    noise[0] *= 1.5
    noise[1] = noise[1] * 2 - 12
    noise[1, ::8] += 12
    noise[2] *= 0.5
    noise[3, 2:] = -INF
    return noise


@pytest.mark.parametrize("method", ["gradient", "adaptive_temperature"])
def test_rows_of_every_kind_agree_with_the_reference(method: str) -> None:
    logits = rows_of_every_kind()
    settings = Settings.model_validate({"method": method, "threshold": 0.05})
    rows, stats = minimized(logits, settings, backend="gpu")
    expected, expected_stats = minimized(logits, settings, backend="reference")
    distance = (softmax_of(rows) - softmax_of(expected)).abs().sum(dim=1) / 2
    assert distance.max() <= 2e-6
    assert torch.equal(stats.grad_steps, expected_stats.grad_steps)


def test_size_of_a_group_changes_no_bit() -> None:
    from em_inf.logits_processors.kernels import gpu

    logits = rows_of_every_kind().to(TRITON)
    settings = [Settings(), Settings(n_grad_steps=3), Settings(), Settings()]
    params, chosen = params_of(settings, TRITON), torch.arange(4, device=TRITON)
    found = []
    for group_rows in (1, 3, 4):
        copy, stats = logits.clone(), RowFigures.empty(4, TRITON)
        scratch = gpu.Scratch(20_000, 4, TRITON, group_rows=group_rows)
        with np.errstate(all="ignore"):
            gpu.minimize_rows_(copy, chosen, params, stats, scratch)
        found.append((copy, stats.entropy_after))
    for rows, entropies in found[1:]:
        assert torch.equal(bits(rows), bits(found[0][0]))
        assert torch.equal(entropies, found[0][1])


def test_number_of_launches_depends_on_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from em_inf.logits_processors.kernels import gpu

    launched: list[str] = []
    for name in ("statistics", "collect", "descend", "map"):
        kernel = getattr(gpu, f"{name}_kernel")

        class Counted:
            def __init__(self, name: str, kernel: Any) -> None:
                self.name, self.kernel = name, kernel

            def __getitem__(self, grid: Any) -> Any:
                launched.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(gpu, f"{name}_kernel", Counted(name, kernel))
    for settings in (Settings(threshold=100.0), Settings(n_grad_steps=15)):
        launched.clear()
        minimized(llm_like_rows(300, 6, seed=33), settings, backend="gpu")
        assert launched == ["statistics", "collect", "descend", "map"]
