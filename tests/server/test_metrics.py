"""Observing many values at once."""

import math
import random

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from em_inf.server.metrics import _ENTROPY_BUCKETS, observe_all

VALUES = [
    [],
    [math.nan],
    [0.0, 0.01, math.nextafter(0.01, 1), 11.9, 12.0, 12.1, 1e9],
    [random.Random(0).expovariate(0.5) for _ in range(3000)] + [math.nan] * 5,
]


@pytest.mark.parametrize("values", VALUES, ids=["none", "NaN", "bounds", "many"])
def test_many_values_at_once_count_as_one_by_one(values: list[float]) -> None:
    found = []
    for together in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("nats", "", buckets=_ENTROPY_BUCKETS, registry=registry)
        if together:
            observe_all(histogram, np.array(values))
        else:
            for value in values:
                if not math.isnan(value):
                    histogram.observe(value)
        (metric,) = registry.collect()
        found.append({
            (s.name, s.labels.get("le")): s.value
            for s in metric.samples
            if not s.name.endswith("_created")
        })  # fmt: skip
    assert found[0] == pytest.approx(found[1])
