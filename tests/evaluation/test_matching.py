"""Entropies at a temperature from top logprobs, and the search for a temperature."""

import asyncio
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from em_inf.evaluation.calibration import Tempered, match, tempered
from em_inf.evaluation.decoding import UnmatchedError


def exact(logits: torch.Tensor, tau: float) -> float:
    return torch.distributions.Categorical(logits=logits / tau).entropy().item()


def from_top(logits: torch.Tensor, k: int, tau: float) -> Tempered:
    top = torch.log_softmax(logits, 0).topk(k).values
    return tempered(top.tolist(), exact(logits, 1.0), tau)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 400),
    scale=st.floats(0.0, 8.0),
    tau=st.floats(0.05, 1.0),
    share=st.floats(0.01, 1.0),
)
def test_bounds_hold_for_any_distribution(
    seed: int, size: int, scale: float, tau: float, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(size, generator=generator, dtype=torch.float64)
    found = from_top(logits, max(1, int(size * share)), tau)
    true = exact(logits, tau)
    assert found.low - 1e-6 <= true <= found.high + 1e-6
    assert found.low <= found.entropy <= found.high


def test_whole_vocabulary_leaves_no_doubt() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64)
    found = from_top(logits, 5, 0.5)
    assert found.entropy == pytest.approx(exact(logits, 0.5))
    assert found.high - found.low < 1e-6


def test_entropy_at_temperature_one_is_the_servers() -> None:
    logits = torch.linspace(3.0, -3.0, 200, dtype=torch.float64)
    assert from_top(logits, 20, 1.0).entropy == pytest.approx(exact(logits, 1.0))


def test_tiny_temperature_neither_overflows_nor_underflows() -> None:
    logits = torch.linspace(300.0, -300.0, 50, dtype=torch.float64)
    found = from_top(logits, 5, 0.02)
    assert 0 <= found.low <= found.high < 1e-6
    flat = from_top(torch.zeros(1000, dtype=torch.float64), 20, 0.02)
    assert flat.entropy == pytest.approx(math.log(1000))


def searched(logits: torch.Tensor, wanted: float, problems: int = 4) -> float:
    async def measure(tau: float) -> Sequence[Tempered]:
        one = from_top(logits, len(logits), tau)
        return [Tempered(1, one.entropy, one.low, one.high)] * problems

    return asyncio.run(match([(wanted, 1)] * problems, measure)).temperature


@pytest.mark.parametrize("tau", [0.95, 0.6, 0.3, 0.1])
def test_temperature_is_found_again(tau: float) -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0], dtype=torch.float64)
    wanted = exact(logits, tau)
    found = searched(logits, wanted)
    assert exact(logits, found) == pytest.approx(wanted, rel=0.01)


def test_what_cannot_be_matched_is_said() -> None:
    logits = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(UnmatchedError, match=r"leaves 0\.6900 nats; the nearest"):
        searched(logits, 0.69)
    with pytest.raises(UnmatchedError, match="only greedy decoding"):
        searched(logits, 0.0)
    ties = torch.zeros(8, dtype=torch.float64)
    with pytest.raises(UnmatchedError, match="at temperature"):
        searched(ties, 0.5)
