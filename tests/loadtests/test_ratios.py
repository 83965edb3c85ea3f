import pytest

from em_inf.loadtests.ratios import paired_ratio, spread


def test_ratio_of_a_figure_to_itself_is_one_without_width() -> None:
    ratio = paired_ratio([3.0, 70.0, 11.0], [3.0, 70.0, 11.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (1.0, 1.0, 1.0, 3)


def test_drift_that_both_sides_share_leaves_the_ratio_alone() -> None:
    base = [100.0, 50.0, 10.0, 400.0]
    ratio = paired_ratio([0.9 * x for x in base], base)
    assert ratio.low == pytest.approx(0.9)
    assert ratio.high == pytest.approx(0.9)


def test_interval_holds_the_median_and_one_outlier_does_not_move_it() -> None:
    values = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 30.0]
    ratio = paired_ratio(values, [1.0] * 9)
    assert 0.98 <= ratio.low <= ratio.median <= ratio.high <= 1.02
    assert ratio.low < ratio.high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    import numpy as np

    random = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        values = np.exp(random.normal(0.1, 0.2, 25)).tolist()
        ratio = paired_ratio(values, [1.0] * 25)
        covered += ratio.low <= np.exp(0.1) <= ratio.high
    assert 86 <= covered <= 100


@pytest.mark.parametrize(
    ("values", "base"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])]
)
def test_what_cannot_be_paired_is_refused(values: list[float], base: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs|above zero"):
        paired_ratio(values, base)


def test_spread_gives_median_and_quartiles() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == {"first_quartile": 2.0, "median": 3.0, "third_quartile": 4.0}
