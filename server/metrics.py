"""Every Prometheus metric of ours: name, help, unit, buckets.

They live in the API server's process, on vLLM's own registry, and appear on its /metrics
beside vLLM's. No label is of unbounded range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from em_inf.logits_processors.figures import Figures

_ENTROPY_BUCKETS = (
    0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0,
)  # fmt: skip
_FETCH_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
)  # fmt: skip

REQUESTS = Counter(
    "em_inf_requests_total",
    "Requests sent to the engine with EM-INF on, by method and preset.",
    ["method", "preset"],
)
REFUSED = Counter(
    "em_inf_requests_refused_total",
    "Requests refused for their em_inf settings, by the field at fault.",
    ["field"],
)
TOKENS = Counter(
    "em_inf_tokens_total", "Output tokens sampled with EM-INF on, touched or not."
)
TOKENS_MINIMIZED = Counter(
    "em_inf_tokens_minimized_total", "Output tokens whose logits EM-INF changed."
)
GRAD_STEPS = Counter("em_inf_grad_steps_total", "Adam steps taken on output tokens.")
ENTROPY_BEFORE = Histogram(
    "em_inf_entropy_before_nats",
    "Entropy of each token's distribution before EM-INF.",
    buckets=_ENTROPY_BUCKETS,
)
ENTROPY_AFTER = Histogram(
    "em_inf_entropy_after_nats",
    "Entropy of each token's distribution after EM-INF, before temperature.",
    buckets=_ENTROPY_BUCKETS,
)
FETCH_SECONDS = Histogram(
    "em_inf_fetch_seconds",
    "Time that fetching a finished request's statistics adds to it.",
    buckets=_FETCH_BUCKETS,
)
FETCH_ERRORS = Counter(
    "em_inf_fetch_errors_total", "Statistics that could not be fetched from the worker."
)
PROCESSOR_ERRORS = Counter(
    "em_inf_processor_errors_total",
    "Errors caught inside the logits processor, by kind. Counted per worker.",
    ["kind"],
)
PROCESSOR_SECONDS = Counter(
    "em_inf_processor_seconds_total",
    "Time workers spent in EM-INF, by each engine's slowest rank; on GPUs the device's.",
)
PROCESSOR_CALLS = Counter(
    "em_inf_processor_calls_total",
    "Calls of the logits processor, of each engine, while some request had EM-INF on.",
)
INFO = Gauge(
    "em_inf_info",
    "Always 1; the labels say what runs.",
    ["version", "vllm_version", "runner", "backend", "device"],
    multiprocess_mode="livemax",
)

_FIELDS = frozenset(
    {
        "em_inf", "enabled", "preset", "method", "n_grad_steps", "learning_rate",
        "threshold", "kl_weight", "target_ratio", "report", "use_beam_search",
        "vllm_xargs.em_inf", "sampling_params.extra_args.em_inf",
    }
)  # fmt: skip
PROCESSOR_ERROR_KINDS = (
    "add_request", "apply", "apply_staged_writes", "record", "row_not_finite",
    "update_state",
)  # fmt: skip

# A series that begins at 1 has no increase that Prometheus could see.
for _kind in PROCESSOR_ERROR_KINDS:
    PROCESSOR_ERRORS.labels(_kind)
for _field in (*_FIELDS, "unknown"):
    REFUSED.labels(_field)


def count_refused(field: str) -> None:
    """Count a refusal under the name of its field, "unknown" for a name of the caller's.

    Args:
        field: "em_inf.threshold", for example.
    """
    name = field.removeprefix("em_inf.")
    REFUSED.labels(name if name in _FIELDS else "unknown").inc()


def observe(figures: Figures) -> None:
    """Feed the metrics with the figures of an answer that is done."""
    observe_all(ENTROPY_BEFORE, figures.entropy_before)
    observe_all(ENTROPY_AFTER, figures.entropy_after)
    TOKENS.inc(len(figures))
    TOKENS_MINIMIZED.inc(figures.num_minimized)
    GRAD_STEPS.inc(figures.num_grad_steps)


def observe_all(histogram: Histogram, values: NDArray[Any]) -> None:
    """Observe every value that is not NaN, with one write a bucket.

    `Histogram.observe` takes microseconds a value, which of a long answer hold up the
    event loop, and with it every stream, for a tenth of a second and more.

    Args:
        histogram: one without labels.
        values: `[tokens]`, such as the entropies of an answer's tokens, in nats.
    """
    known = values[~np.isnan(values)]
    # A value on a bound belongs to the bucket below it, as in `observe`.
    buckets = np.searchsorted(histogram._upper_bounds, known, side="left")
    counts = np.bincount(buckets, minlength=len(histogram._buckets))
    for bucket, count in zip(histogram._buckets, counts.tolist(), strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(float(known.sum(dtype=np.float64)))
