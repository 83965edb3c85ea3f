"""The numba kernel where it differs in kind from the reference: accuracy and threads."""

import os
import subprocess
import sys

import numba
import pytest
import torch
from torch import Tensor

from em_inf.logits_processors.kernels import cpu
from em_inf.logits_processors.minimize import prepare
from em_inf.logits_processors.settings import Settings
from tests.logits_processors.autograd_oracle import em_inf, softmax_of
from tests.logits_processors.rows import bits, llm_like_rows, minimized

V = 151_936


def served_rows() -> Tensor:
    """[8, V]: a bulk far below a Zipf head, entropies from 0.4 to 4 nats."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(8, V, generator=generator) * 2.6
    rank = torch.arange(1, 4001).float()
    for i, row in enumerate(rows):
        where = torch.randperm(V, generator=generator)[:4000]
        jitter = 0.6 * torch.randn(4000, generator=generator)
        row[where] = torch.maximum(row[where], 22 - (1.6 + 0.3 * i) * rank.log() + jitter)
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(n_grad_steps=15),
        Settings(n_grad_steps=3, kl_weight=0.05),
        Settings(n_grad_steps=40, threshold=0.05),
    ],
    ids=["default", "strong", "paper", "long"],
)
def test_served_rows_agree_with_float64(settings: Settings) -> None:
    logits = served_rows()
    rows, stats = minimized(logits, settings)
    for i, row in enumerate(logits):
        oracle = em_inf(
            row.double(),
            settings.n_grad_steps,
            settings.learning_rate,
            settings.threshold,
            settings.kl_weight,
        )
        if all(abs(h - settings.threshold) > 1e-5 for h in oracle.entropies):
            assert stats.grad_steps[i] == oracle.steps
        distance = (softmax_of(rows[i]) - softmax_of(oracle.logits)).abs().sum() / 2
        assert distance <= 2e-6
        assert stats.entropy_after[i] == pytest.approx(oracle.entropies[-1], abs=3e-5)


def test_flat_row_runs_densely_and_agrees_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(2, 20_000, generator=generator) * 0.5
    settings = Settings(n_grad_steps=5)
    rows, _ = minimized(logits, settings)
    expected, _ = minimized(logits, settings, backend="reference")
    distance = (softmax_of(rows) - softmax_of(expected)).abs().sum(dim=1) / 2
    assert distance.max() <= 2e-6


@pytest.mark.parametrize("method", ["gradient", "adaptive_temperature"])
def test_number_of_threads_changes_nothing(method: str) -> None:
    settings = Settings(method=method)  # type: ignore[arg-type]
    logits = llm_like_rows(10_000, 9, seed=3)
    try:
        numba.set_num_threads(1)
        one, _ = minimized(logits, settings)
        numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
        two, _ = minimized(logits, settings)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert torch.equal(bits(one), bits(two))


def test_first_logit_far_above_the_rest_does_not_overflow_the_sums() -> None:
    logits = torch.full((1, 10_000), -300.0)
    logits[0, 9_000:9_003] = torch.tensor([200.0, 199.5, 199.0])
    _, stats = minimized(logits, Settings(n_grad_steps=0))
    expected = torch.distributions.Categorical(logits=logits[0, 9_000:9_003]).entropy()
    assert stats.entropy_before.item() == pytest.approx(expected.item(), abs=1e-5)


def test_preparing_compiles_all_that_requests_need_and_no_workspace() -> None:
    assert prepare(512, 8, torch.device("cpu")) is None
    compiled = list(cpu._run_rows.signatures)
    assert compiled
    for num_rows in (1, 3, 8):
        minimized(torch.zeros(num_rows, 512), Settings())
        minimized(torch.zeros(9, 600)[:, :512], Settings(), rows=range(num_rows))
    assert cpu._run_rows.signatures == compiled, "a request had to wait for the compiler"


BESIDE_TORCH = """
import os, sys, torch
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])  # As vLLM binds a worker.
torch.set_num_threads(int(sys.argv[1]))
if sys.argv[2] == "numba first":
    import numba
from em_inf.logits_processors.kernels import cpu
from em_inf.logits_processors.minimize import prepare
from em_inf.logits_processors.settings import Settings
from tests.logits_processors.rows import CPU, minimized

prepare(10_000, 8, CPU)
minimized(torch.randn(4, 10_000), Settings())
print(cpu.warm_up(10_000), torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("torch_threads", "imported_first", "expected"),
    [(1, "torch first", 1), (3, "torch first", 3), (3, "numba first", 1)],
)
def test_torch_keeps_its_threads_and_numba_has_as_many_as_it_can(
    torch_threads: int, imported_first: str, expected: int
) -> None:
    # In processes of their own: numba starts its threads once.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_NUM")}
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_TORCH, str(torch_threads), imported_first],
        capture_output=True,
        text=True,
        env=environ,
    )
    assert done.stdout.split() == [str(expected), str(torch_threads)], done.stderr
