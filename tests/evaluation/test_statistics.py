"""Figures against scipy, published tables, enumeration and 2,000 experiments."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from scipy import optimize, stats

from em_inf.evaluation.power import (
    detectable_of_clusters,
    detectable_of_pairs,
    mcnemar_power,
)
from em_inf.evaluation.statistics import (
    ALPHA,
    accuracy,
    difference,
    exact_mcnemar,
    holm,
    sign_flip_p,
    tango,
    wilson,
)

EXPERIMENTS = 2000
RESAMPLES = 399
"""Enough for a test at 5 %, whose level does not depend on their number."""


def monte_carlo_error(share: float) -> float:
    """Within this of the true share, 999 of 1,000 simulations of ours come out."""
    return 3.3 * math.sqrt(share * (1 - share) / EXPERIMENTS)


def pairs(better: int, worse: int, total: int):
    """Scores of two decoders with so many questions apart."""
    baseline = {str(q): (float(better <= q < better + worse),) for q in range(total)}
    return baseline, {str(q): (float(q < better),) for q in range(total)}


class TestAgainstOthers:
    @pytest.mark.parametrize(("right", "total"), [(0, 1), (3, 3), (7, 30), (412, 500)])
    def test_wilson_is_scipys(self, right: int, total: int) -> None:
        ours = wilson(right, total)
        theirs = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert [ours.low, ours.high] == pytest.approx(list(theirs), abs=1e-12)

    def test_mcnemar_is_scipys_binomial_test(self) -> None:
        for better, worse in itertools.product(range(15), range(15)):
            if better + worse:
                theirs = stats.binomtest(better, better + worse).pvalue
                assert exact_mcnemar(better, worse) == pytest.approx(theirs, abs=1e-12)

    def test_mcnemar_without_a_disagreement_is_1(self) -> None:
        assert exact_mcnemar(0, 0) == 1.0

    def test_holm_is_the_textbooks(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []

    def test_tango_is_the_published_interval(self) -> None:
        # Airway hyper-responsiveness, in Fagerland, Lydersen and Laake (2014),
        # Statistics in Medicine 33, 2850-2875: -0.517 to -0.026.
        found = tango(1, 7, 21)
        assert [found.low, found.high] == pytest.approx([-0.517, -0.026], abs=5e-4)

    @pytest.mark.parametrize(
        ("better", "worse", "total"), [(9, 2, 44), (0, 0, 50), (40, 20, 160), (1, 0, 7)]
    )
    def test_tangos_ends_are_where_the_restricted_likelihood_says(
        self, better: int, worse: int, total: int
    ) -> None:
        found = tango(better, worse, total)
        for end in (found.low, found.high):

            def loss(share_worse: float, gap: float = end) -> float:
                share_better = share_worse + gap
                rest = 1 - share_better - share_worse
                counts = (better, worse, total - better - worse)
                shares = (share_better, share_worse, rest)
                return -sum(
                    count * math.log(max(share, 1e-300))
                    for count, share in zip(counts, shares, strict=True)
                    if count
                )

            low, high = max(0.0, -end), (1 - end) / 2
            fit = optimize.minimize_scalar(
                loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
            )
            variance = (2 * fit.x + end * (1 - end)) / total
            score = ((better - worse) / total - end) / math.sqrt(variance)
            assert abs(score) == pytest.approx(stats.norm.ppf(0.975), rel=1e-4)

    def test_random_signs_agree_with_scipys(self) -> None:
        gaps = np.random.default_rng(3).integers(-3, 5, 80) / 4
        theirs = stats.permutation_test(
            (gaps,), np.mean, permutation_type="samples", n_resamples=9999, rng=4
        ).pvalue
        error = 4 * math.sqrt(2 * theirs * (1 - theirs) / 9999)
        assert sign_flip_p(gaps, seed=5) == pytest.approx(theirs, abs=error)

    def test_sign_flips_are_all_tried_where_there_are_few(self) -> None:
        gaps = np.array([0.5, 0.25, 0.0, -0.25, 0.75, 0.5])
        flips = itertools.product((1, -1), repeat=len(gaps))
        means = [abs(np.mean(gaps * signs)) for signs in flips]
        expected = np.mean([mean >= abs(gaps.mean()) - 1e-12 for mean in means])
        assert sign_flip_p(gaps) == pytest.approx(expected, abs=1e-12)
        theirs = stats.permutation_test((gaps,), np.mean, permutation_type="samples")
        assert sign_flip_p(gaps) == pytest.approx(theirs.pvalue, abs=1e-12)


class TestWhichMethod:
    def test_one_answer_to_a_question_is_tested_exactly(self) -> None:
        found = difference(*pairs(9, 2, 44))
        assert found is not None
        assert found.test == "exact McNemar"
        assert found.interval == tango(9, 2, 44)
        assert found.p == exact_mcnemar(9, 2)
        assert found.value == pytest.approx(7 / 44, abs=1e-15)
        assert (found.better, found.worse) == (9, 2)

    def test_several_answers_are_a_cluster(self) -> None:
        random = np.random.default_rng(1)
        one, two = (
            {str(q): tuple(random.integers(0, 2, 3).astype(float)) for q in range(40)}
            for _ in range(2)
        )
        found = difference(one, two)
        assert found is not None
        assert found.test == "sign-flip permutation"
        assert found.interval.method == "paired cluster bootstrap"
        share = accuracy(one)
        assert share is not None
        assert share.interval.method == "cluster bootstrap"
        assert (share.questions, share.answers) == (40, 120)

    def test_the_same_seed_gives_the_same_interval(self) -> None:
        random = np.random.default_rng(1)
        one = {str(q): tuple(random.integers(0, 2, 3).astype(float)) for q in range(40)}
        assert accuracy(one, seed=5) == accuracy(one, seed=5)
        assert accuracy(one, seed=5) != accuracy(one, seed=6)

    @pytest.mark.parametrize("score", [0.0, 1.0])
    def test_questions_all_alike_are_no_certainty(self, score: float) -> None:
        found = accuracy({str(q): (score, score) for q in range(20)})
        assert found is not None
        assert found.interval == wilson(20 * score, 20)

    def test_answers_that_never_differ_are_no_certainty(self) -> None:
        same = {str(q): (1.0, 0.0) for q in range(20)}
        found = difference(same, same)
        assert found is not None
        assert found.p == 1.0
        assert found.interval.low < 0 < found.interval.high

    def test_only_questions_of_both_count_and_the_others_are_stated(self) -> None:
        baseline = {"a": (1.0,), "b": (1.0,), "c": (0.0,)}
        found = difference(baseline, {"b": (0.0,), "c": (0.0,), "d": (1.0,), "e": (1.0,)})
        assert found is not None
        assert (found.questions, found.left_out) == (2, 3)
        assert found.value == -0.5
        assert difference(baseline, {"z": (1.0,)}) is None
        assert accuracy({}) is None

    def test_a_question_with_more_answers_weighs_no_more(self) -> None:
        found = accuracy({"a": (1.0,), "b": (0.0, 0.0, 0.0)})
        assert found is not None
        assert found.value == 0.5


class TestSimulated:
    """The level that is promised is the level that comes out."""

    def test_wilson_covers(self) -> None:
        total, share = 300, 0.62
        covers = np.array([
            wilson(right, total).low <= share <= wilson(right, total).high
            for right in range(total + 1)
        ])  # fmt: skip
        chances = stats.binom.pmf(np.arange(total + 1), total, share)
        theory = float(chances @ covers)
        drawn = np.random.default_rng(11).binomial(total, share, EXPERIMENTS)
        assert covers[drawn].mean() == pytest.approx(
            theory, abs=monte_carlo_error(theory)
        )
        assert theory == pytest.approx(0.95, abs=0.01)

    def test_tango_covers(self) -> None:
        total, shares = 150, (0.14, 0.09, 0.77)
        drawn = np.random.default_rng(12).multinomial(total, shares, EXPERIMENTS)
        interval = cache(tango)
        covered = [
            interval(int(b), int(c), total).low
            <= shares[0] - shares[1]
            <= interval(int(b), int(c), total).high
            for b, c, _ in drawn
        ]
        assert np.mean(covered) == pytest.approx(0.95, abs=monte_carlo_error(0.95))

    def test_mcnemar_errs_as_often_as_its_exact_size_and_not_above_its_level(
        self,
    ) -> None:
        total, discordance = 120, 0.2
        size = mcnemar_power(0.0, discordance, total, ALPHA)
        drawn = np.random.default_rng(13).multinomial(
            total, (discordance / 2, discordance / 2, 1 - discordance), EXPERIMENTS
        )
        false = np.mean([exact_mcnemar(int(b), int(c)) <= ALPHA for b, c, _ in drawn])
        assert size <= ALPHA
        assert false == pytest.approx(size, abs=monte_carlo_error(size))

    def test_holm_keeps_the_level_over_all_decoders(self) -> None:
        random = np.random.default_rng(14)
        right = random.random((EXPERIMENTS, 6, 120)) < 0.6
        base, others = right[:, :1], right[:, 1:]
        better = (others & ~base).sum(axis=2).tolist()
        worse = (base & ~others).sum(axis=2).tolist()
        p_of = cache(exact_mcnemar)
        # Any rejection begins with the smallest p; see test_holm_is_the_textbooks.
        false = [
            5 * min(map(p_of, *counts)) <= ALPHA
            for counts in zip(better, worse, strict=True)
        ]
        assert np.mean(false) <= ALPHA + monte_carlo_error(ALPHA)

    def test_clusters_of_answers_are_covered_and_tested_at_their_level(self) -> None:
        questions, samples = 100, 4
        random = np.random.default_rng(15)
        # Some questions are hard and some easy: answers to one are alike.
        ease = random.beta(0.7, 0.5, (EXPERIMENTS, 1, questions, 1))
        right = random.random((EXPERIMENTS, 2, questions, samples)) < ease
        names = [str(q) for q in range(questions)]
        covered, gap_covered, false, naive = [], [], [], []
        for one, two in right.astype(float):
            base = dict(zip(names, one, strict=True))
            share = accuracy(base, resamples=RESAMPLES)
            found = difference(
                base, dict(zip(names, two, strict=True)), resamples=RESAMPLES
            )
            assert share is not None
            assert found is not None
            true = 0.7 / 1.2
            covered.append(share.interval.low <= true <= share.interval.high)
            gap_covered.append(found.interval.low <= 0 <= found.interval.high)
            false.append(found.p <= ALPHA)
            alone = wilson(one.sum(), one.size)
            naive.append(alone.low <= true <= alone.high)
        assert np.mean(covered) == pytest.approx(0.95, abs=monte_carlo_error(0.95))
        assert np.mean(gap_covered) == pytest.approx(0.95, abs=monte_carlo_error(0.95))
        assert np.mean(false) == pytest.approx(ALPHA, abs=monte_carlo_error(ALPHA))
        # Answers taken for independent would promise far too much.
        assert np.mean(naive) < 0.85


class TestDetectable:
    def test_pairs_at_the_detectable_difference_are_told_apart_4_times_in_5(self) -> None:
        total, discordance = 200, 0.15
        gap = detectable_of_pairs(discordance, total, ALPHA)
        shares = ((discordance + gap) / 2, (discordance - gap) / 2, 1 - discordance)
        drawn = np.random.default_rng(16).multinomial(total, shares, EXPERIMENTS)
        power = np.mean([exact_mcnemar(int(b), int(c)) <= ALPHA for b, c, _ in drawn])
        assert power == pytest.approx(0.8, abs=monte_carlo_error(0.8))

    def test_clusters_at_the_detectable_difference_are_told_apart_4_times_in_5(
        self,
    ) -> None:
        questions, deviation = 100, 0.3
        gap = detectable_of_clusters(deviation, questions, ALPHA)
        gaps = np.random.default_rng(17).normal(gap, deviation, (EXPERIMENTS, questions))
        power = np.mean([sign_flip_p(of, resamples=RESAMPLES) <= ALPHA for of in gaps])
        # The few resamples cost a point of power.
        assert power == pytest.approx(0.79, abs=monte_carlo_error(0.8))

    def test_no_disagreement_seen_still_has_a_detectable_difference(self) -> None:
        gap = detectable_of_pairs(0.0, 500, ALPHA)
        assert mcnemar_power(gap, gap, 500, ALPHA) == pytest.approx(0.8, abs=1e-3)
        assert mcnemar_power(0.9 * gap, 0.9 * gap, 500, ALPHA) < 0.8

    def test_too_few_questions_can_show_nothing(self) -> None:
        assert detectable_of_pairs(0.4, 5, ALPHA) == math.inf

    def test_more_questions_show_smaller_differences(self) -> None:
        sizes = [detectable_of_pairs(0.2, n, ALPHA) for n in (50, 200, 800)]
        assert sizes == sorted(sizes, reverse=True)
