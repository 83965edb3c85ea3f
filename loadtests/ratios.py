"""Ratios of paired measurements, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
SEED = 20250521


@dataclass(frozen=True)
class Ratio:
    """A ratio measured over rounds.

    Attributes:
        median: of the rounds' ratios.
        low: lower end of the 95 % interval of that median.
        high: upper end.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_json(self) -> dict[str, Any]:
        """Rounded to four decimals."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Ratio:
    """Median over rounds of values / base, each pair from one round.

    The interval is the percentile bootstrap's: rounds drawn again with replacement, with
    a fixed seed.

    Args:
        values: one figure a round, above zero.
        base: as many.

    Raises:
        ValueError: lengths differ, no round, or a figure that is not above zero.
    """
    if len(values) != len(base) or not values:
        raise ValueError(f"{len(values)} values beside {len(base)} are no pairs")
    if not all(x > 0 for x in [*values, *base]):
        raise ValueError("a ratio needs figures above zero")
    ratios = np.asarray(values, dtype=float) / np.asarray(base, dtype=float)
    drawn = np.random.default_rng(SEED).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, to four significant figures."""
    names = ("first_quartile", "median", "third_quartile")
    found = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return {name: float(f"{value:.4g}") for name, value in zip(names, found, strict=True)}
