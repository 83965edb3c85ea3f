"""Every backend against golden figures and oracles, on every hard row."""

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from em_inf.logits_processors.reference import MIN_TEMPERATURE, RowFigures, Workspace
from em_inf.logits_processors.settings import Settings
from tests.logits_processors import rows as shared_rows
from tests.logits_processors.autograd_oracle import (
    em_inf,
    entropy_of,
    softmax_of,
    temperature_for,
)
from tests.logits_processors.rows import (
    CPU,
    HARD_ROWS,
    INF,
    UNUSABLE_ROWS,
    bits,
    llm_like_rows,
    minimized,
)

GRADIENT = Settings()
STRONG = Settings(n_grad_steps=15, threshold=0.001, kl_weight=0.05)
ADAPTIVE = Settings(method="adaptive_temperature", threshold=0.05)
MIXED = [
    GRADIENT,
    Settings(n_grad_steps=15, learning_rate=0.5, threshold=0.0, kl_weight=1.0),
    ADAPTIVE,
    Settings(n_grad_steps=0),
    Settings(method="adaptive_temperature", target_ratio=0.9, threshold=0.0),
    Settings(n_grad_steps=3, learning_rate=0.01, threshold=2.0),
    Settings(n_grad_steps=1, threshold=100.0),
    Settings(n_grad_steps=20, threshold=0.1),
]

hard_rows = pytest.mark.parametrize("name", HARD_ROWS)
each_method = pytest.mark.parametrize(
    "settings", [GRADIENT, STRONG, ADAPTIVE], ids=["gradient", "strong", "adaptive"]
)


@pytest.fixture(scope="module", autouse=True, params=shared_rows.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that `minimized` runs.

    Some tests give "gpu" fewer rows: Triton's interpreter takes a second for a wide one.
    """
    hard_row_minimized.cache_clear()
    llm_like_minimized.cache_clear()
    shared_rows.current_backend[0] = request.param
    yield request.param
    shared_rows.current_backend[0] = "cpu"


@cache
def hard_row_minimized(name: str, settings: Settings) -> tuple[Tensor, RowFigures]:
    """A hard row, [1, V], after a run that several tests look at."""
    return minimized(HARD_ROWS[name][None], settings)


@cache
def llm_like_minimized(
    vocab_size: int, num_rows: int, seed: int, settings: Settings
) -> tuple[Tensor, Tensor, RowFigures]:
    """Rows before and after, and their statistics, that several tests look at."""
    logits = llm_like_rows(vocab_size, num_rows, seed)
    return logits, *minimized(logits, settings)


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    return (softmax_of(a) - softmax_of(b)).abs().sum(dim=-1) / 2


def agree(row: Tensor, grad_steps: float, before: Tensor, settings: Settings) -> None:
    """Hold a row against the authors' algorithm run on `before` in its dtype."""
    expected = em_inf(
        before,
        settings.n_grad_steps,
        settings.learning_rate,
        settings.threshold,
        settings.kl_weight,
    )
    if grad_steps != expected.steps:
        # A row within rounding of the threshold may stop one step apart.
        assert abs(grad_steps - expected.steps) == 1
        assert min(abs(h - settings.threshold) for h in expected.entropies) < 1e-5
        return
    p, expected_p = softmax_of(row), softmax_of(expected.logits)
    assert (p - expected_p).abs().max() <= 5e-5
    assert (p - expected_p).abs().sum() / 2 <= 1e-4


# EM-INF against what is known ---------------------------------------------------------

FIVE = [2.0, 1.0, 0.0, -1.0, -3.0]
GOLDEN = [
    # z0, threshold, KL weight, n, steps, entropy before and after, z
    (FIVE, 0.3, 0.05, 1, 1, 0.971274, 0.901384, [2.1, 0.9, -0.1, -1.1, -3.1]),
    (
        FIVE,
        *(0.3, 0.05, 3, 3, 0.971274, 0.753749),
        [2.30033, 0.69979, -0.29985, -1.29926, -3.29872],
    ),
    (
        FIVE,
        *(0.3, 0.001, 15, 11, 0.971274, 0.279440),
        [3.08833, -0.10481, -1.07140, -2.05174, -4.03343],
    ),
    (
        FIVE,
        *(0.3, 1.0, 15, 13, 0.971274, 0.298186),
        [3.06094, 0.03232, -1.09380, -2.11763, -4.13267],
    ),
    (FIVE, 1.0, 0.05, 15, 0, 0.971274, 0.971274, FIVE),
    (
        [6.0, 1.0, 0.0, -1.0, -3.0],
        *(0.3, 0.05, 3, 0, 0.065687, 0.065687),
        [6.0, 1.0, 0.0, -1.0, -3.0],
    ),
    (
        [3.0, 3.0, 0.0, -2.0, -20.0],
        *(0.3, 0.05, 5, 5, 0.810028, 0.747944),
        [3.49035, 3.49035, -0.49074, -2.48847, -20.04672],
    ),
    (
        [4.0, 3.5, 1.0, -12.0, -16.0, -20.0],
        *(0.3, 0.05, 5, 5, 0.777871, 0.545042),
        [4.50191, 3.00192, 0.50461, -12.48663, -16.34190, -20.02479],
    ),
    (
        [3.0, 2.9, -2.0, -2.0, -2.0],
        *(0.3, 0.05, 5, 5, 0.754458, 0.613571),
        [3.49044, 2.46118, -2.49407, -2.49407, -2.49407],
    ),
]


@pytest.mark.parametrize(
    ("z0", "threshold", "kl_weight", "n", "steps", "before", "after", "z"), GOLDEN
)
def test_golden_rows_come_out_as_measured_from_the_authors_loss(
    z0: list[float],
    threshold: float,
    kl_weight: float,
    n: int,
    steps: int,
    before: float,
    after: float,
    z: list[float],
) -> None:
    settings = Settings(n_grad_steps=n, threshold=threshold, kl_weight=kl_weight)
    row, stats = minimized(torch.tensor([z0]), settings)
    assert stats.grad_steps.item() == steps
    assert stats.entropy_before.item() == pytest.approx(before, abs=2e-6)
    assert stats.entropy_after.item() == pytest.approx(after, abs=2e-6)
    # The figures are rounded to 5 decimals.
    assert row[0].tolist() == pytest.approx(z, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(n_grad_steps=3, kl_weight=0.05),
        Settings(),
        Settings(n_grad_steps=15, threshold=0.5),
        Settings(n_grad_steps=15, threshold=0.1, kl_weight=1.0),
        Settings(n_grad_steps=5, learning_rate=0.5, threshold=0.0, kl_weight=0.0),
    ],
    ids=["paper", "default", "high threshold", "strong pull", "long steps"],
)
def test_llm_like_rows_agree_with_autograd_and_torch_adam(
    settings: Settings, dtype: torch.dtype
) -> None:
    logits, rows, stats = llm_like_minimized(1000, 24, 1, settings)
    for i in range(len(rows)):
        agree(rows[i], stats.grad_steps[i].item(), logits[i].to(dtype), settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_llm_like_rows_agree_with_autograd_and_torch_adam(
    dtype: torch.dtype,
) -> None:
    logits, rows, stats = llm_like_minimized(151936, 8, 2, GRADIENT)
    for i in range(0, len(rows), 2):
        agree(rows[i], stats.grad_steps[i].item(), logits[i].to(dtype), GRADIENT)


@pytest.mark.parametrize("settings", [GRADIENT, STRONG], ids=["default", "strong"])
@hard_rows
def test_hard_row_agrees_with_autograd_in_float64(name: str, settings: Settings) -> None:
    before = HARD_ROWS[name]
    rows, stats = hard_row_minimized(name, settings)
    agree(rows[0], stats.grad_steps.item(), before.double(), settings)


@pytest.mark.parametrize("kl_weight", [1.0, 100.0])
@pytest.mark.parametrize("vocab_size", [64, 20_000])
def test_many_long_steps_under_a_strong_pull_agree_with_float64(
    vocab_size: int, kl_weight: float, backend: str
) -> None:
    # The top rises by far less than 64 times the learning rate.
    n = 5 if backend == "gpu" else 64
    logits = llm_like_rows(vocab_size, 8, seed=5)
    settings = Settings(
        n_grad_steps=n, learning_rate=1.0, threshold=0.0, kl_weight=kl_weight
    )
    rows, stats = minimized(logits, settings)
    for i in range(len(rows)):
        agree(rows[i], stats.grad_steps[i].item(), logits[i].double(), settings)


@pytest.mark.parametrize("learning_rate", [0.01, 0.1, 0.5])
def test_argmax_is_kept_for_moderate_settings(learning_rate: float, backend: str) -> None:
    logits = llm_like_rows(300, 16 if backend == "gpu" else 400, seed=3)
    settings = Settings(n_grad_steps=15, learning_rate=learning_rate, threshold=0.0)
    rows, _ = minimized(logits, settings)
    assert torch.equal(rows.argmax(dim=1), logits.argmax(dim=1))


def test_tied_tokens_stay_tied() -> None:
    rows, _ = minimized(HARD_ROWS["three-way tie on top"][None], STRONG)
    assert rows[0, 0] == rows[0, 2] == rows[0, 4] == rows[0].max()


def test_masked_row_comes_out_as_the_row_without_its_masked_tokens() -> None:
    row = llm_like_rows(100, 8, seed=4)[6]
    masked = torch.full((300,), -INF)
    masked[::3] = row
    rows, stats = minimized(masked[None], STRONG)
    alone, alone_stats = minimized(row[None], STRONG)
    assert stats.grad_steps.item() == alone_stats.grad_steps.item()
    assert total_variation(rows[0, ::3], alone[0]) <= 1e-5


def test_logits_move_by_the_learning_rate_in_the_first_step() -> None:
    rows, _ = minimized(torch.tensor([FIVE]), Settings(n_grad_steps=1, learning_rate=1.0))
    assert rows[0].tolist() == pytest.approx([3.0, 0.0, -1.0, -2.0, -4.0], abs=1e-5)


def test_strong_pull_to_the_first_softmax_holds_the_entropy_up(backend: str) -> None:
    logits = llm_like_rows(1000, 8 if backend == "gpu" else 24, seed=5)
    settings = Settings(n_grad_steps=30, threshold=0.0, kl_weight=0.0)
    _, free = minimized(logits, settings)
    _, held = minimized(logits, settings.model_copy(update={"kl_weight": 10.0}))
    assert (held.entropy_after > free.entropy_after).all()


# Which rows are left alone ------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "adaptive_temperature"])
def test_threshold_above_entropy_leaves_row_bit_identical(method: str) -> None:
    logits = llm_like_rows(1000, 24, seed=6)
    logits[:, 0] = -0.0  # Subtracting nothing from it may turn its sign.
    threshold = entropy_of(logits).sort().values[11:13].mean().item()
    rows, stats = minimized(
        logits, Settings.model_validate({"method": method, "threshold": threshold})
    )
    below = stats.entropy_before < threshold
    assert below.sum() == 12
    assert torch.equal(bits(rows[below]), bits(logits[below]))
    assert (rows[~below] != logits[~below]).any(dim=1).all()


def test_rows_below_their_threshold_report_no_step_and_unchanged_entropy() -> None:
    logits = llm_like_rows(1000, 24, seed=6)
    _, stats = minimized(logits, Settings(threshold=20.0))
    assert (stats.grad_steps == 0).all()
    assert (stats.temperature == 1).all()
    assert torch.equal(stats.entropy_after, stats.entropy_before)


def test_entropy_equal_to_the_threshold_still_takes_a_step() -> None:
    row = torch.zeros(1, 2)
    _, stats = minimized(row, Settings(n_grad_steps=1, threshold=0.0))
    ln_2 = stats.entropy_before.item()
    _, stats = minimized(row, Settings(n_grad_steps=1, threshold=ln_2))
    assert stats.grad_steps.item() == 1


@pytest.mark.parametrize("value", [1e-320, 1e-46, 1e-40])
def test_numbers_below_float32_act_as_zero(value: float) -> None:
    logits = llm_like_rows(1000, 8, seed=8)
    for name in ("threshold", "kl_weight"):
        tiny, _ = minimized(logits, Settings(n_grad_steps=7, **{name: value}))
        zero, _ = minimized(logits, Settings(n_grad_steps=7, **{name: 0.0}))
        assert torch.allclose(tiny, zero, rtol=0, atol=1e-5), name
        assert not torch.equal(tiny, logits)


def test_step_count_zero_leaves_rows_bit_identical() -> None:
    logits = llm_like_rows(1000, 8, seed=7)
    rows, stats = minimized(logits, Settings(n_grad_steps=0, threshold=0.0))
    assert torch.equal(bits(rows), bits(logits))
    assert (stats.grad_steps == 0).all()


@each_method
def test_rows_that_are_not_chosen_stay_bit_identical(settings: Settings) -> None:
    logits = torch.cat([llm_like_rows(128, 6, seed=8), torch.full((1, 128), math.nan)])
    rows, _ = minimized(logits, settings, rows=[4, 1])
    others = [0, 2, 3, 5, 6]
    assert torch.equal(bits(rows[others]), bits(logits[others]))


@each_method
def test_choosing_no_row_changes_nothing(settings: Settings) -> None:
    logits = llm_like_rows(128, 3, seed=8)
    rows, stats = minimized(logits, settings, rows=[])
    assert torch.equal(bits(rows), bits(logits))
    assert stats.entropy_before.shape == (0,)


@each_method
@pytest.mark.parametrize(
    "name", ["V=1", "all but one masked", "all but one masked, V=151936"]
)
def test_row_with_one_allowed_token_stays_bit_identical(
    name: str, settings: Settings
) -> None:
    before = HARD_ROWS[name][None]
    rows, stats = hard_row_minimized(name, settings)
    assert torch.equal(bits(rows), bits(before))
    assert stats.entropy_before.item() == stats.entropy_after.item() == 0


@each_method
@pytest.mark.parametrize("name", UNUSABLE_ROWS)
def test_row_without_a_softmax_stays_bit_identical(name: str, settings: Settings) -> None:
    before = UNUSABLE_ROWS[name][None]
    rows, _ = minimized(before, settings)
    assert torch.equal(bits(rows), bits(before))


@each_method
@pytest.mark.parametrize("name", UNUSABLE_ROWS)
def test_row_without_a_softmax_reports_nan_entropies_and_no_change(
    name: str, settings: Settings
) -> None:
    _, stats = minimized(UNUSABLE_ROWS[name][None], settings)
    assert stats.entropy_before.isnan().item()
    assert stats.entropy_after.isnan().item()
    assert stats.grad_steps.item() == 0
    assert stats.temperature.item() == 1


@each_method
def test_row_without_a_softmax_stays_bit_identical_beside_running_rows(
    settings: Settings,
) -> None:
    unusable = [row for row in UNUSABLE_ROWS.values() if len(row) == 4]
    logits = torch.stack([torch.tensor([1.0, 0.5, 0.0, -1.0]), *unusable])
    rows, stats = minimized(logits, settings)
    assert (rows[0] != logits[0]).any()
    assert torch.equal(bits(rows[1:]), bits(logits[1:]))
    assert stats.entropy_after[1:].isnan().all()


@each_method
def test_row_without_a_softmax_does_not_reach_its_neighbours(settings: Settings) -> None:
    usable = llm_like_rows(128, 8, seed=9)
    spoilt = usable.clone()
    spoilt[1, 5], spoilt[3, 7], spoilt[6] = math.nan, INF, -INF
    rows, _ = minimized(spoilt, settings)
    expected, _ = minimized(usable, settings)
    untouched = [0, 2, 4, 5, 7]
    assert torch.equal(rows[untouched], expected[untouched])


# What every row keeps -----------------------------------------------------------------


@each_method
@hard_rows
def test_masked_tokens_of_hard_row_stay_masked(name: str, settings: Settings) -> None:
    before = HARD_ROWS[name][None]
    rows, _ = hard_row_minimized(name, settings)
    assert (rows[before == -INF] == -INF).all()


@each_method
@hard_rows
def test_hard_row_keeps_a_softmax(name: str, settings: Settings) -> None:
    rows, _ = hard_row_minimized(name, settings)
    assert not rows.isnan().any()
    assert rows.max() < INF


@each_method
@hard_rows
def test_hard_row_reports_its_entropies(name: str, settings: Settings) -> None:
    before = HARD_ROWS[name][None]
    rows, stats = hard_row_minimized(name, settings)
    assert stats.entropy_before.item() == pytest.approx(
        entropy_of(before).item(), rel=1e-5, abs=1e-5
    )
    assert stats.entropy_after.item() == pytest.approx(
        entropy_of(rows).item(), rel=1e-5, abs=1e-5
    )


# A row depends on itself alone --------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [128, 32001, 151936])
def test_row_in_a_mixed_batch_comes_out_as_it_does_alone(
    vocab_size: int, backend: str
) -> None:
    mixed = MIXED[::3] if backend == "gpu" and vocab_size > 100_000 else MIXED
    logits = llm_like_rows(vocab_size, len(mixed), seed=10)
    together, stats = minimized(logits, mixed)
    for i, settings in enumerate(mixed):
        alone, alone_stats = minimized(logits[i : i + 1], settings)
        assert torch.equal(together[i], alone[0]), settings
        assert torch.equal(stats.table[:, i], alone_stats.table[:, 0])


@pytest.mark.usefixtures("two_threads")
def test_long_row_shared_by_threads_comes_out_as_it_does_in_a_batch() -> None:
    # torch splits a sum from 32 768 terms on, but only where it is the only sum.
    logits = llm_like_rows(33_000, 8, seed=22)[[2, 6]]
    settings = Settings(n_grad_steps=2, threshold=0.0)
    together, _ = minimized(logits, settings)
    for i in range(len(logits)):
        alone, _ = minimized(logits[i : i + 1], settings)
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("vocab_size", [128, 32001])
def test_permuting_rows_permutes_results(vocab_size: int) -> None:
    logits = llm_like_rows(vocab_size, len(MIXED), seed=11)
    expected, expected_stats = minimized(logits, MIXED)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    rows, stats = minimized(logits[order], [MIXED[i] for i in order])
    assert torch.equal(rows, expected[order])
    assert torch.equal(stats.entropy_after, expected_stats.entropy_after[order])


def test_order_in_which_rows_are_chosen_plays_no_part() -> None:
    logits = llm_like_rows(128, len(MIXED), seed=11)
    expected, _ = minimized(logits, MIXED)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    rows, _ = minimized(logits, [MIXED[i] for i in order], rows=order)
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("vocab_size", [128, 33000])
@pytest.mark.parametrize(
    ("max_rows", "max_bytes"), [(100, 1), (3, 2**30)], ids=["by bytes", "by rows"]
)
def test_splitting_rows_into_chunks_changes_nothing(
    vocab_size: int, max_rows: int, max_bytes: int
) -> None:
    logits = llm_like_rows(vocab_size, len(MIXED), seed=12)
    expected, expected_stats = minimized(logits, MIXED)
    workspace = Workspace(vocab_size, max_rows, CPU, max_bytes)
    assert workspace.chunk_rows < len(MIXED)
    rows, stats = minimized(logits, MIXED, workspace=workspace)
    assert torch.equal(rows, expected)
    assert torch.equal(stats.grad_steps, expected_stats.grad_steps)
    assert torch.equal(stats.entropy_after, expected_stats.entropy_after)


def test_workspace_for_wider_rows_changes_nothing() -> None:
    logits = llm_like_rows(1000, len(MIXED), seed=13)
    expected, _ = minimized(logits, MIXED)
    rows, _ = minimized(logits, MIXED, workspace=Workspace(1777, 20, CPU))
    assert torch.equal(rows, expected)


def test_workspace_carries_nothing_from_one_call_to_the_next() -> None:
    logits = llm_like_rows(128, len(MIXED), seed=14)
    workspace = Workspace(128, 20, CPU)
    expected, _ = minimized(logits, MIXED, workspace=workspace)
    minimized(torch.full((20, 128), math.nan), STRONG, workspace=workspace)
    rows, _ = minimized(logits, MIXED, workspace=workspace)
    assert torch.equal(rows, expected)


def test_workspace_stays_within_its_bytes() -> None:
    workspace = Workspace(1000, 10_000, CPU, max_bytes=2**20)
    assert workspace.buffer.nbytes <= 2**20


@each_method
def test_adding_a_constant_to_a_row_changes_nothing_else(settings: Settings) -> None:
    # Multiples of 1/64, so that the sum is exact.
    logits = (llm_like_rows(1000, 16, seed=15) * 64).round() / 64
    expected, expected_stats = minimized(logits, settings)
    rows, stats = minimized(logits + 32.0, settings)
    assert torch.equal(stats.grad_steps, expected_stats.grad_steps)
    # Quotients by a low temperature are large, and rounded to 24 bits, as logits are.
    rounding = 2.0**-23 * rows.abs().amax(dim=1).double()
    assert (total_variation(rows, expected) <= rounding.clamp(min=1e-5)).all()


# Adaptive temperature -----------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [16, 1000, 32001])
@pytest.mark.parametrize(
    ("target_ratio", "threshold"), [(0.05, 0.01), (0.5, 0.3), (0.9, 0.0), (0.2, 1.0)]
)
def test_adaptive_temperature_reaches_its_target_entropy_and_stays_under_it(
    vocab_size: int, target_ratio: float, threshold: float
) -> None:
    logits = llm_like_rows(vocab_size, 16, seed=16)
    settings = Settings(
        method="adaptive_temperature", target_ratio=target_ratio, threshold=threshold
    )
    rows, _ = minimized(logits, settings)
    target = (target_ratio * entropy_of(logits)).clamp(min=threshold)
    aimed = (entropy_of(logits) > threshold) & (target >= 1e-3)
    aimed &= entropy_of(logits / MIN_TEMPERATURE) < target
    assert aimed.sum() >= 3
    missed = entropy_of(rows)[aimed] / target[aimed] - 1
    assert missed.max() <= 1e-5
    assert missed.min() >= -1e-3 - 1e-5


@pytest.mark.parametrize("target_ratio", [0.2, 0.5, 0.85])
def test_adaptive_temperature_agrees_with_bisection_in_float64(
    target_ratio: float,
) -> None:
    logits = llm_like_rows(1000, 16, seed=17)
    settings = Settings(
        method="adaptive_temperature", target_ratio=target_ratio, threshold=0.05
    )
    _, stats = minimized(logits, settings)
    for row, temperature in zip(logits, stats.temperature.tolist(), strict=True):
        before = entropy_of(row).item()
        if before <= 0.05:
            assert temperature == 1
            continue
        target = max(target_ratio * before, 0.05)
        assert temperature_for(row, target * (1 - 2e-3)) <= temperature + 1e-6
        assert temperature <= temperature_for(row, target) + 1e-4


@hard_rows
def test_adaptive_temperature_of_hard_row_agrees_with_bisection(name: str) -> None:
    row = HARD_ROWS[name]
    _, stats = hard_row_minimized(name, ADAPTIVE)
    before = entropy_of(row).item()
    target = max(0.5 * before, 0.05)
    expected = 1.0 if before <= 0.05 else temperature_for(row, target)
    reached = entropy_of(row / expected).item()
    assert entropy_of(row / stats.temperature.item()).item() == pytest.approx(
        reached, rel=1.1e-3, abs=1e-5
    )


def test_adaptive_temperature_divides_the_logits_by_what_it_reports() -> None:
    logits = llm_like_rows(1000, 8, seed=18)
    rows, stats = minimized(logits, ADAPTIVE)
    assert torch.equal(rows, logits / stats.temperature[:, None])


def test_adaptive_temperature_never_exceeds_one_nor_falls_below_its_least() -> None:
    _, stats = minimized(llm_like_rows(1000, 40, seed=19), ADAPTIVE)
    assert (stats.temperature <= 1).all()
    assert (stats.temperature >= MIN_TEMPERATURE * 0.9999).all()


def test_adaptive_temperature_counts_no_grad_steps() -> None:
    _, stats = minimized(llm_like_rows(1000, 8, seed=18), ADAPTIVE)
    assert (stats.grad_steps == 0).all()


@pytest.mark.parametrize(
    "name", ["tie on top", "three-way tie on top", "flat, V=128", "flat, V=151936"]
)
def test_ties_that_hold_the_entropy_up_end_at_the_least_temperature(name: str) -> None:
    _, stats = hard_row_minimized(name, ADAPTIVE)
    assert stats.temperature.item() == pytest.approx(MIN_TEMPERATURE, rel=1e-5)


def test_target_ratio_one_leaves_rows_bit_identical() -> None:
    logits = llm_like_rows(1000, 8, seed=20)
    settings = Settings(method="adaptive_temperature", target_ratio=1.0, threshold=0.0)
    rows, stats = minimized(logits, settings)
    assert torch.equal(bits(rows), bits(logits))
    assert (stats.temperature == 1).all()


def test_row_that_a_low_temperature_would_overflow_stays_bit_identical() -> None:
    before = torch.tensor([[3e38, 3e38, 1e38]])
    rows, stats = minimized(before, ADAPTIVE)
    assert torch.equal(rows, before)
    assert stats.temperature.item() == 1


def test_adaptive_temperature_keeps_the_order_of_tokens() -> None:
    logits = llm_like_rows(1000, 16, seed=21)
    rows, _ = minimized(logits, ADAPTIVE)
    order = logits.argsort(dim=1, stable=True)
    assert (rows.gather(1, order).diff(dim=1) >= 0).all()


# Any row, any settings ----------------------------------------------------------------

any_logit = st.one_of(
    st.floats(-30, 30, width=32), st.just(-INF), st.sampled_from([0.0, 1.0, -120.0])
)
any_row = st.lists(any_logit, min_size=1, max_size=12).filter(lambda r: max(r) > -INF)
gradient_settings = st.builds(
    Settings,
    n_grad_steps=st.integers(0, 20),
    learning_rate=st.sampled_from([0.01, 0.1, 0.5]),
    threshold=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    kl_weight=st.sampled_from([0.0, 0.001, 0.05, 1.0, 100.0]),
)
adaptive_settings = st.builds(
    Settings,
    method=st.just("adaptive_temperature"),
    target_ratio=st.floats(0.05, 1),
    threshold=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
)
quick = hypothesis_settings(max_examples=50)


@quick
@given(row=any_row, settings=st.one_of(gradient_settings, adaptive_settings))
def test_any_row_keeps_its_mask_and_its_finite_logits(
    row: list[float], settings: Settings
) -> None:
    before = torch.tensor([row])
    rows, _ = minimized(before, settings)
    assert torch.equal(rows.isfinite(), before.isfinite())
    assert torch.equal(rows == -INF, before == -INF)


@quick
@given(row=any_row, settings=gradient_settings)
def test_any_row_runs_until_it_is_below_the_threshold_or_out_of_steps(
    row: list[float], settings: Settings
) -> None:
    _, stats = minimized(torch.tensor([row]), settings)
    steps = stats.grad_steps.item()
    assert 0 <= steps <= settings.n_grad_steps
    stopped_early = steps < settings.n_grad_steps
    assert not stopped_early or stats.entropy_after.item() < settings.threshold


@quick
@given(row=any_row, settings=st.one_of(gradient_settings, adaptive_settings))
def test_any_row_reports_the_entropies_of_what_it_was_and_what_it_became(
    row: list[float], settings: Settings
) -> None:
    before = torch.tensor([row])
    rows, stats = minimized(before, settings)
    assert stats.entropy_before.item() == pytest.approx(
        entropy_of(before).item(), abs=2e-5
    )
    assert stats.entropy_after.item() == pytest.approx(entropy_of(rows).item(), abs=1e-4)


@quick
@given(row=any_row, settings=st.one_of(gradient_settings, adaptive_settings))
def test_any_row_that_reports_no_change_is_bit_identical(
    row: list[float], settings: Settings
) -> None:
    before = torch.tensor([row])
    rows, stats = minimized(before, settings)
    reported = stats.grad_steps.item() > 0 or stats.temperature.item() != 1
    assert reported or torch.equal(bits(rows), bits(before))


@quick
@given(row=any_row, settings=adaptive_settings)
def test_adaptive_temperature_never_raises_the_entropy_of_any_row(
    row: list[float], settings: Settings
) -> None:
    before = torch.tensor([row])
    rows, _ = minimized(before, settings)
    assert entropy_of(rows).item() <= entropy_of(before).item() + 1e-6


@quick
@given(
    batch=st.lists(
        st.tuples(
            st.lists(any_logit, min_size=5, max_size=5),
            st.one_of(gradient_settings, adaptive_settings),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_any_row_comes_out_as_it_does_alone(
    batch: list[tuple[list[float], Settings]],
) -> None:
    logits = torch.tensor([row for row, _ in batch])
    together, _ = minimized(logits, [settings for _, settings in batch])
    for i, (_, settings) in enumerate(batch):
        alone, _ = minimized(logits[i : i + 1], settings)
        assert torch.equal(together[i], alone[0])
