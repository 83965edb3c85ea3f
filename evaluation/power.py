"""The smallest difference that a paired comparison could have shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

POWER = 0.8


def detectable_of_pairs(discordance: float, total: int, alpha: float) -> float:
    """The smallest true difference that exact McNemar finds with power 0.8.

    Args:
        discordance: share of pairs of which one is right and the other is not. Where
            even a difference as large as that stays hidden, the discordance is taken to
            be as large as the difference, all of it in one direction.
        total: pairs.
        alpha: level of the test.

    Returns:
        A share; infinity where no difference at all would be found.
    """
    if mcnemar_power(discordance, discordance, total, alpha) >= POWER:
        return _smallest(
            lambda gap: mcnemar_power(gap, discordance, total, alpha), 0.0, discordance
        )
    if mcnemar_power(1.0, 1.0, total, alpha) < POWER:
        return float("inf")
    return _smallest(lambda gap: mcnemar_power(gap, gap, total, alpha), discordance, 1.0)


def mcnemar_power(gap: float, discordance: float, total: int, alpha: float) -> float:
    """Chance that exact McNemar's p is at most alpha; its size where the gap is 0.

    Summed over every number of discordant pairs that can come up, without
    approximation.

    Args:
        gap: true difference, at most the discordance.
        discordance: true share of discordant pairs.
        total: pairs.
        alpha: level of the test.
    """
    discordant = np.arange(total + 1)
    # The largest count of the rarer kind with which the test still rejects.
    limit = stats.binom.ppf(alpha / 2, discordant, 0.5)
    limit = np.where(
        stats.binom.cdf(limit, discordant, 0.5) <= alpha / 2, limit, limit - 1
    )
    share = 0.5 if discordance == 0 else min(1.0, (discordance + gap) / (2 * discordance))
    rejects = stats.binom.cdf(limit, discordant, share)
    rejects = rejects + stats.binom.cdf(limit, discordant, 1 - share)
    rejects = np.where(limit < 0, 0.0, rejects)
    return float(stats.binom.pmf(discordant, total, discordance) @ rejects)


def detectable_of_clusters(deviation: float, total: int, alpha: float) -> float:
    """The same for a mean of paired differences, by the normal approximation.

    Args:
        deviation: standard deviation of the questions' differences.
        total: questions.
        alpha: level of the test.
    """
    quantiles = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)
    return float(quantiles * deviation / np.sqrt(total))


def _smallest(power: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
