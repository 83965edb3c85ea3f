"""The public operation: what it refuses, and the layouts and modes it works in."""

from typing import Any

import pytest
import torch
from torch import Tensor

from em_inf.logits_processors.minimize import minimize_entropy_, pick_backend, prepare
from em_inf.logits_processors.reference import RowFigures, RowParams, Workspace
from em_inf.logits_processors.settings import Settings
from tests.logits_processors.rows import (
    CPU,
    TRITON,
    bits,
    llm_like_rows,
    minimized,
    moved,
    params_of,
)

SETTINGS = Settings(threshold=0.0)
PARAMS = params_of([SETTINGS] * 2)
META = torch.device("meta")
ON_GPU: dict[str, Any] = {
    "rows": torch.tensor([2, 0], device=TRITON),
    "params": moved(PARAMS, TRITON),
    "backend": "gpu",
}
"""Arguments of `call` for the GPU's kernels, where they run on this machine."""


def call(logits: Tensor, **changes: Any) -> RowFigures:
    """Run on rows 2 and 0 of `logits`, with some arguments replaced."""
    arguments: dict[str, Any] = {
        "rows": torch.tensor([2, 0]),
        "params": PARAMS,
        "workspace": Workspace(logits.shape[-1], 2, CPU),
        "max_grad_steps": 5,
        **changes,
    }
    return minimize_entropy_(logits, **arguments)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (torch.zeros(8), r"logits must be \[R, V\] float32, not \[8\]"),
        (torch.zeros(3, 2, 8), r"logits must be .* not \[3, 2, 8\]"),
        (torch.zeros(3, 8, dtype=torch.float64), "logits must be .* torch.float64"),
        (torch.zeros(3, 8, dtype=torch.bfloat16), "logits must be .* torch.bfloat16"),
        (torch.zeros(3, 8, dtype=torch.int32), "logits must be .* torch.int32"),
        (torch.zeros(8, 3).T, "last dimension of logits must be contiguous"),
        (torch.zeros(3, 16)[:, ::2], "last dimension of logits must be contiguous"),
    ],
)
def test_logits_of_a_wrong_kind_are_refused(logits: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(logits)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([2, 0], dtype=torch.int32),
        torch.tensor([2.0, 0.0]),
        torch.tensor([True, False, True]),
        torch.tensor([[2, 0]]),
        torch.tensor(2),
        torch.tensor([2, 0], device=META),
    ],
    ids=["int32", "float32", "bool", "matrix", "scalar", "other device"],
)
def test_rows_of_a_wrong_kind_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="rows must be"):
        call(torch.zeros(3, 8), rows=rows)


@pytest.mark.parametrize(
    "table",
    [
        torch.zeros(3, 6),
        torch.zeros(2, 5),
        torch.zeros(6, 2),
        torch.zeros(12),
        torch.zeros(2, 6, dtype=torch.float64),
        torch.zeros(2, 6, dtype=torch.int64),
        torch.zeros(2, 6, device=META),
    ],
    ids=["too long", "narrow", "turned", "flat", "float64", "int64", "other device"],
)
def test_params_of_a_wrong_kind_are_refused(table: Tensor) -> None:
    with pytest.raises(ValueError, match=r"params\.table must be \[2, 6\] float32"):
        call(torch.zeros(3, 8), params=RowParams(table))


def test_workspace_for_narrower_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="workspace is for rows of 7, not 8"):
        call(torch.zeros(3, 8), workspace=Workspace(7, 2, CPU), backend="reference")


def test_workspace_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="workspace must be on cpu, not meta"):
        call(torch.zeros(3, 8), workspace=Workspace(8, 2, META), backend="reference")


def test_steps_beyond_what_was_prepared_are_refused() -> None:
    from em_inf.logits_processors.kernels import gpu

    scratch = gpu.Scratch(8, 2, TRITON, max_grad_steps=4)
    with pytest.raises(ValueError, match="workspace is for 4 steps, not 5"):
        call(torch.zeros(3, 8, device=TRITON), workspace=scratch, **ON_GPU)


def test_backend_gpu_refuses_the_workspace_of_another() -> None:
    with pytest.raises(ValueError, match="'gpu' needs the workspace that it prepared"):
        call(
            torch.zeros(3, 8, device=TRITON),
            workspace=Workspace(8, 2, TRITON),
            **ON_GPU,
        )


def test_backend_gpu_is_prepared_with_room_for_its_launches() -> None:
    room = prepare(500, 3, TRITON, "gpu", max_grad_steps=7)
    assert room is not None
    assert not isinstance(room, Workspace)
    assert room.max_grad_steps == 7
    stats = call(torch.zeros(3, 500, device=TRITON), workspace=room, **ON_GPU)
    assert stats.grad_steps[0] == 5


def test_backend_gpu_is_there_on_gpus_and_under_the_interpreter_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pick_backend("auto", torch.device("cuda")) == "gpu"
    assert pick_backend("auto", CPU) == "cpu"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert pick_backend("gpu", torch.device("cuda")) == "gpu"
    with pytest.raises(ValueError, match="'gpu' is not 'auto' or one of reference, cpu"):
        pick_backend("gpu", CPU)


def test_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'fastest'"):
        call(torch.zeros(3, 8), backend="fastest")


def test_unknown_backend_cannot_be_picked() -> None:
    with pytest.raises(ValueError, match="'fastest'"):
        pick_backend("fastest", CPU)  # type: ignore[arg-type]


def test_refused_call_leaves_logits_alone() -> None:
    logits = llm_like_rows(8, 3, seed=1)
    before = logits.clone()
    with pytest.raises(ValueError, match="backend"):
        call(logits, backend="fastest")
    assert torch.equal(bits(logits), bits(before))


def test_rows_of_a_wider_tensor_come_out_as_they_do_alone() -> None:
    wide = llm_like_rows(200, 3, seed=2)
    expected, _ = minimized(wide[:, :128], SETTINGS, rows=[2, 0])
    call(wide[:, :128])
    assert torch.equal(wide[:, :128], expected)


def test_columns_beyond_a_view_stay_bit_identical() -> None:
    wide = llm_like_rows(200, 3, seed=2)
    before = wide.clone()
    call(wide[:, :128])
    assert torch.equal(bits(wide[:, 128:]), bits(before[:, 128:]))


def test_every_other_row_of_a_tensor_comes_out_as_it_does_alone() -> None:
    tall = llm_like_rows(128, 6, seed=3)
    expected, _ = minimized(tall[::2], SETTINGS, rows=[2, 0])
    call(tall[::2])
    assert torch.equal(tall[::2], expected)


def test_rows_between_those_of_a_view_stay_bit_identical() -> None:
    tall = llm_like_rows(128, 6, seed=3)
    before = tall.clone()
    call(tall[::2])
    assert torch.equal(bits(tall[1::2]), bits(before[1::2]))


def test_statistics_come_in_the_order_of_the_chosen_rows() -> None:
    logits = llm_like_rows(128, 3, seed=4)
    first = call(logits.clone())
    second = call(logits.clone(), rows=torch.tensor([0, 2]))
    assert first.entropy_before[0] != first.entropy_before[1]
    assert torch.equal(first.entropy_before, second.entropy_before.flip(0))


def test_default_backend_agrees_with_the_reference() -> None:
    logits = llm_like_rows(1000, 8, seed=5)
    rows, stats = minimized(logits, SETTINGS, backend="auto")
    expected, expected_stats = minimized(logits, SETTINGS, backend="reference")
    difference = torch.softmax(rows, dim=1) - torch.softmax(expected, dim=1)
    assert difference.abs().max() <= 5e-5
    assert torch.equal(stats.grad_steps, expected_stats.grad_steps)


def test_inference_tensors_come_out_as_ordinary_ones() -> None:
    logits = llm_like_rows(128, 3, seed=6)
    expected, _ = minimized(logits, SETTINGS, rows=[2, 0])
    with torch.inference_mode():
        inference = logits.clone()
        call(inference)
    assert torch.equal(inference, expected)


def test_no_autograd_graph_is_recorded() -> None:
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    logits = llm_like_rows(128, 3, seed=7)
    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        stats = call(logits)
    assert not saved
    assert not logits.requires_grad
    assert not stats.table.requires_grad


def test_sparing_the_adaptive_method_changes_nothing_for_gradient_rows() -> None:
    logits = llm_like_rows(128, 3, seed=8)
    spared = logits.clone()
    stats = call(logits, any_adaptive=True)
    spared_stats = call(spared, any_adaptive=False)
    assert torch.equal(bits(logits), bits(spared))
    assert torch.equal(stats.table, spared_stats.table)


def test_more_steps_allowed_than_any_row_asks_for_change_nothing() -> None:
    logits = llm_like_rows(128, 3, seed=9)
    generous = logits.clone()
    call(logits, max_grad_steps=5)
    call(generous, max_grad_steps=50)
    assert torch.equal(bits(logits), bits(generous))
