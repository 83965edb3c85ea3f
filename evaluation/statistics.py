"""What graded answers can prove: intervals, paired differences, corrected p-values.

Questions are what is drawn at random; several answers to one question are a cluster. All
values are shares from 0 to 1, all intervals two-sided of 95 %.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from em_inf.evaluation.power import detectable_of_clusters, detectable_of_pairs

Scores = Mapping[str, Sequence[float]]
"""Question to the score of each of its answers: 1 for a right one, else 0."""

ALPHA = 0.05
RESAMPLES = 9999
"""Of a bootstrap, and sign flips of a permutation test: p-values down to 0.0002."""
_BATCH_ELEMENTS = 4_000_000

IntervalMethod = Literal[
    "Wilson", "cluster bootstrap", "Tango", "paired cluster bootstrap"
]
TestMethod = Literal["exact McNemar", "sign-flip permutation"]


@dataclass(frozen=True)
class Interval:
    """Where a value may lie.

    Attributes:
        low, high: ends.
        method: how they were found.
    """

    low: float
    high: float
    method: IntervalMethod


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers.

    Attributes:
        value: mean over the questions of each question's own share.
        interval: of that mean.
        questions: answered at least once.
        answers: in all.
    """

    value: float
    interval: Interval
    questions: int
    answers: int


@dataclass(frozen=True)
class Difference:
    """One decoder's accuracy less the baseline's, over the questions that both answered.

    Attributes:
        value: mean of the paired differences.
        interval: of it; not corrected for the number of decoders.
        p: two-sided, that the two decoders are alike; not corrected.
        test: that gave it.
        questions: that both answered.
        left_out: questions that only one of the two answered.
        better, worse: questions whose score is above, below the baseline's.
        detectable: the smallest true difference that a comparison of this size and
            discordance finds with power 0.8 at the level of 5 %, without correction.
    """

    value: float
    interval: Interval
    p: float
    test: TestMethod
    questions: int
    left_out: int
    better: int
    worse: int
    detectable: float


def accuracy(
    scores: Scores, seed: int = 0, resamples: int = RESAMPLES
) -> Accuracy | None:
    """Share of right answers with its interval; None where there is no answer.

    Wilson's interval for one answer to each question. With several, a bootstrap (BCa)
    over questions, which keeps a question's answers together; where all questions have
    the same score, which a bootstrap takes for certainty, Wilson's over the questions.

    Args:
        scores: of each question.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    if not scores:
        return None
    answers = sum(map(len, scores.values()))
    shares = np.array([_share(of) for of in scores.values()])
    value = float(shares.mean())
    if answers == len(scores) or np.ptp(shares) == 0:
        interval = wilson(value * len(shares), len(shares))
    else:
        interval = Interval(*_bootstrap(shares, seed, resamples), "cluster bootstrap")
    return Accuracy(value, interval, len(scores), answers)


def difference(
    baseline: Scores, other: Scores, seed: int = 0, resamples: int = RESAMPLES
) -> Difference | None:
    """What separates a decoder from the baseline, question by question.

    With one answer of both to each question: exact McNemar, and Tango's interval. With
    several: a sign-flip permutation test of the questions' differences, and a bootstrap
    (BCa) over questions. The tests' hypothesis is that the two could change places in
    every question. None where the two answered no question both.

    Args:
        baseline: scores of what it is compared with.
        other: scores of the decoder.
        seed: of bootstrap and permutations.
        resamples: of either.
    """
    both = [question for question in baseline if question in other]
    if not both:
        return None
    single = all(len(scores[question]) == 1 for question in both
                 for scores in (baseline, other))  # fmt: skip
    gaps = np.array([_share(other[q]) - _share(baseline[q]) for q in both])
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    total = len(both)
    if single:
        interval = tango(better, worse, total)
        p = exact_mcnemar(better, worse)
        detectable = detectable_of_pairs((better + worse) / total, total, ALPHA)
    elif np.ptp(gaps) == 0:
        # All differences are the same: a bootstrap would call it certain.
        interval, p = tango(better, worse, total), sign_flip_p(gaps, seed, resamples)
        detectable = detectable_of_pairs((better + worse) / total, total, ALPHA)
    else:
        interval = Interval(
            *_bootstrap(gaps, seed, resamples), "paired cluster bootstrap"
        )
        p = sign_flip_p(gaps, seed, resamples)
        detectable = detectable_of_clusters(float(gaps.std(ddof=1)), total, ALPHA)
    return Difference(
        value=float(gaps.mean()),
        interval=interval,
        p=p,
        test="exact McNemar" if single else "sign-flip permutation",
        questions=total,
        left_out=len(set(baseline) ^ set(other)),
        better=better,
        worse=worse,
        detectable=detectable,
    )


def wilson(right: float, total: int) -> Interval:
    """Wilson's score interval of a share, by statsmodels."""
    low, high = proportion_confint(right, total, ALPHA, method="wilson")
    return Interval(float(low), float(high), "Wilson")


def exact_mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test, by statsmodels.

    Args:
        better: pairs of which only the decoder is right.
        worse: pairs of which only the baseline is right.
    """
    return float(mcnemar([[0, worse], [better, 0]], exact=True).pvalue)


def tango(better: int, worse: int, total: int, level: float = 1 - ALPHA) -> Interval:
    """Score interval of a paired difference of shares.

    It holds its level in small samples, and is never empty or of no width, unlike
    Wald's. It is not the exact test's inverse: at the border one may exclude 0 where the
    other does not, so verdicts go by the test.

    Args:
        better: pairs of which only the decoder is right.
        worse: pairs of which only the baseline is right.
        total: pairs.
        level: of confidence.
    Source: Tango (1998), Statistics in Medicine 17, 891-908.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    seen = (better - worse) / total

    def end(side: float) -> float:
        inner, outer = seen, side
        for _ in range(200):
            middle = (inner + outer) / 2
            if abs(_tango_score(better, worse, total, middle)) < z:
                inner = middle
            else:
                outer = middle
        return inner

    return Interval(end(-1.0), end(1.0), "Tango")


def _tango_score(better: int, worse: int, total: int, gap: float) -> float:
    """How many standard errors, if `gap` were true, the data are away from it."""
    distance = better - worse - total * gap
    linear = (2 * total - better + worse) * gap - better - worse
    constant = -worse * gap * (1 - gap)
    root = math.sqrt(max(linear * linear - 8 * total * constant, 0.0))
    share_worse = max((root - linear) / (4 * total), 0.0)
    variance = total * max(2 * share_worse + gap * (1 - gap), 0.0)
    if variance == 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def sign_flip_p(gaps: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p of a mean of paired differences: how often random signs give as much.

    Exact where all signs can be tried; else from random ones, the observed ones counted
    among them, so that the test keeps its level. It is scipy's `permutation_test` of
    "samples", which takes 20 times as long.

    Args:
        gaps: [questions] differences.
        seed: of the random signs.
        resamples: how many of them.
    """
    apart = gaps[gaps != 0]  # A zero keeps its value under either sign.
    limit = abs(apart.sum()) - 1e-12 * abs(apart).sum()  # Rounding makes no difference.
    if 2 ** len(apart) <= resamples:
        every = np.array(list(itertools.product((-1.0, 1.0), repeat=len(apart))))
        return float(np.mean(abs(every @ apart) >= limit))
    random = np.random.default_rng(seed)
    batch, as_far, left = max(1, _BATCH_ELEMENTS // len(apart)), 0, resamples
    while left:
        signs = random.integers(0, 2, (min(batch, left), len(apart)), np.int8)
        # Not by @, whose threads would wait for each other on a busy machine.
        flipped = np.where(signs, apart, -apart).sum(axis=1)
        as_far += int((abs(flipped) >= limit).sum())
        left -= len(signs)
    return (as_far + 1) / (resamples + 1)


def holm(values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction, by statsmodels."""
    if not values:
        return []
    return [float(p) for p in multipletests(values, ALPHA, method="holm")[1]]


def _bootstrap(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    found = stats.bootstrap(
        (values,),
        _mean,
        confidence_level=1 - ALPHA,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // len(values)),
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _share(scores: Sequence[float]) -> float:
    return float(sum(scores)) / len(scores)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(values.mean(axis=axis))
