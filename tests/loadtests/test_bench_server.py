from typing import Any

import pytest

from em_inf.loadtests.bench_server import verdict
from em_inf.loadtests.client import Answer
from em_inf.loadtests.contenders import (
    ADAPTIVE,
    NO_REPORT,
    OFF,
    ON,
    TRACE,
    CheckFailedError,
    Run,
    check_run,
)
from em_inf.loadtests.ratios import paired_ratio

TOKENS = 4


def answer(tokens: int = TOKENS, em_inf: Any = None) -> Answer:
    return Answer("words", tokens, em_inf, 0.5, [0.1, 0.2, 0.3], 0.2, 1.1)


def report(tokens: int = TOKENS, minimized: int = 2, trace: int | None = None) -> Any:
    choice: dict[str, Any] = {"tokens": tokens, "tokens_minimized": minimized}
    if trace is not None:
        choice["trace"] = {"entropy_before": [0.1] * trace}
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("name", "em_inf"),
    [
        (OFF, None),
        (NO_REPORT, None),
        (ON, report()),
        (ADAPTIVE, report()),
        (TRACE, report(trace=TOKENS)),
    ],
)
def test_answers_as_asked_pass(name: str, em_inf: Any) -> None:
    check_run(name, [answer(em_inf=em_inf)], TOKENS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (OFF, answer(tokens=3)),
        (OFF, answer(em_inf=report())),
        (ON, answer()),
        (ON, answer(em_inf=report(tokens=3))),
        (ON, answer(em_inf=report(minimized=0))),
        (ON, answer(em_inf={"choices": [{"index": 0, "error": "lost"}]})),
        (NO_REPORT, answer(em_inf=report())),
        (TRACE, answer(em_inf=report(trace=3))),
    ],
)
def test_answers_that_are_not_as_asked_are_refused(name: str, found: Answer) -> None:
    with pytest.raises(CheckFailedError, match=name):
        check_run(name, [found], TOKENS)


def test_throughput_counts_all_tokens_over_the_whole_run() -> None:
    figures = Run([answer(), answer(tokens=6)], seconds=2.0, cpu_seconds=3.0).figures()
    assert figures["output_tokens_per_second"] == 5.0
    assert figures["server_cpu_seconds_per_token"] == 0.3
    assert figures["itl_seconds"] == pytest.approx(0.2)
    assert figures["tpot_seconds"] == 0.2


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (0.99, "at least 0.95: met; aim 0.98: reached"),
        (0.96, "at least 0.95: met; aim 0.98: not reached"),
        (0.9, "at least 0.95: MISSED; aim 0.98: not reached"),
    ],
)
def test_verdict_holds_the_median_against_the_bar(measured: float, words: str) -> None:
    assert verdict(paired_ratio([measured], [1.0]), 0.95, 0.98) == words
