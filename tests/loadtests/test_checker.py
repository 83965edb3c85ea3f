"""The checker of load tests: what is swapped, lost or damaged must not pass."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from em_inf.loadtests import checker
from em_inf.loadtests.checker import Asked, Known, mixed_settings
from em_inf.loadtests.load import read_guidellm, reasons
from em_inf.loadtests.load_report import failures, http_summary, write_html

REASONS = {"ReadTimeout": 2, "500: no": 1}
TOM = Known("How many apples has Tom?", "Tom starts with 34.", 7, (0.8, 0.6, *[0.07] * 5))
ANNA = Known(
    "How many books has Anna?", "Anna starts with 27.", 7, (0.9, 0.9, 0.37, *[0.0] * 4)
)


def asked(known: Known, nonce: str, number: int | None) -> Asked:
    return Asked(nonce, known, None if number is None else mixed_settings(number))


def answer(to: Asked) -> list[Any]:
    """What a right server says: id, text, tokens, report."""
    report = None
    if to.em_inf is not None:
        touched = sum(nats > 0.35 for nats in to.known.entropies)
        choice = {
            "tokens": to.known.tokens,
            "tokens_minimized": touched,
            "mean_entropy_before": to.known.entropy,
            "mean_entropy_after": to.known.entropy - 0.05,
        }
        if "n_grad_steps" in to.em_inf:
            choice["grad_steps"] = touched * to.em_inf["n_grad_steps"]
        settings = {"method": "gradient", "kl_weight": 0.001, **to.em_inf}
        report = {"settings": settings, "choices": [choice]}
    return [f"chatcmpl-{to.nonce}", to.known.text, to.known.tokens, report]


@pytest.mark.parametrize("number", [None, 1, 3])
def test_right_answer_passes(number: int | None) -> None:
    one = asked(TOM, "a", number)
    assert one.wrong(*answer(one)) is None


def test_answer_swapped_with_another_request_fails() -> None:
    one, other = asked(TOM, "a", 1), asked(ANNA, "b", 2)
    assert one.wrong(*answer(other))
    assert other.wrong(*answer(one))


@pytest.mark.parametrize("part", range(4))
def test_any_part_of_another_answer_fails(part: int) -> None:
    one, other = asked(TOM, "a", 1), asked(replace(ANNA, tokens=8), "b", 2)
    mixed = answer(one)
    mixed[part] = answer(other)[part]
    assert one.wrong(*mixed)


def test_another_requests_entropies_under_the_right_settings_fail() -> None:
    one = asked(TOM, "a", 1)
    mixed = copy.deepcopy(answer(one))
    mixed[3]["choices"][0]["mean_entropy_before"] = ANNA.entropy
    assert "entropy" in str(one.wrong(*mixed))


@pytest.mark.parametrize("number", [2, 3])
def test_server_on_which_em_inf_does_nothing_fails(number: int) -> None:
    one = asked(TOM, "a", number)
    idle = copy.deepcopy(answer(one))
    (choice,) = idle[3]["choices"]
    choice |= {"tokens_minimized": 0, "mean_entropy_after": choice["mean_entropy_before"]}
    if number == 2:
        choice["grad_steps"] = 0
    assert "0 tokens minimized" in str(one.wrong(*idle))


@pytest.mark.parametrize(
    "done",
    [
        {"tokens_minimized": 3},
        {"tokens_minimized": 1},
        {"grad_steps": 30},
        {"grad_steps": 1},
        {"mean_entropy_after": TOM.entropy},
    ],
    ids=["lower threshold", "higher threshold", "more steps", "too few", "no effect"],
)
def test_work_done_with_another_requests_settings_fails(done: dict[str, Any]) -> None:
    one = asked(TOM, "a", 1)
    assert one.em_inf["n_grad_steps"] == 5
    other = copy.deepcopy(answer(one))
    other[3]["choices"][0] |= done
    assert one.wrong(*other)


def test_lost_figures_and_missing_or_unasked_reports_fail() -> None:
    on, off = asked(TOM, "a", 1), asked(TOM, "a", None)
    lossy = copy.deepcopy(answer(on))
    lossy[3]["choices"][0]["tokens_not_recorded"] = 1
    assert on.wrong(*lossy)
    assert on.wrong(*answer(off))
    assert off.wrong(*answer(on))


def test_echo_of_another_prompt_fails() -> None:
    one, other = asked(TOM, "a", None), asked(TOM, "b", None)
    text = one.echo_body("m")["prompt"] + " and more"
    assert one.wrong_echo("cmpl-a", text, 4, None) is None
    assert other.wrong_echo("cmpl-b", text, 4, None)
    assert other.wrong_echo("cmpl-a", text, 4, None)


def sampled_answer(nonce: str, em_inf: bool, **changes: Any) -> dict[str, Any]:
    """What a right server says to a request that samples, with one choice changed."""
    figures = {"tokens": 7, "grad_steps": 9, "mean_entropy_after": 0.2, **changes}
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{nonce}",
        "usage": {"completion_tokens": 21},
        "choices": [
            {"index": i, "message": {"content": f"Tom {i} {em_inf}"}} for i in range(3)
        ],
    }
    if em_inf:
        answer["em_inf"] = {"choices": [{**figures, "index": i} for i in range(3)]}
    return answer


@pytest.mark.parametrize("em_inf", [False, True])
def test_sampled_choices_must_be_those_of_the_same_request_alone(em_inf: bool) -> None:
    sampled = {
        "on": checker.answers_of(sampled_answer("", True)),
        "off": checker.answers_of(sampled_answer("", False)),
    }
    one = asked(replace(TOM, sampled=sampled), "a", 1 if em_inf else None)
    right = sampled_answer("a", em_inf)
    assert one.wrong_sampled(right) is None
    assert one.wrong_sampled({**right, "id": "chatcmpl-b"})
    assert one.wrong_sampled(sampled_answer("a", not em_inf))
    assert one.wrong_sampled({**right, "usage": {"completion_tokens": 20}})
    swapped = copy.deepcopy(right)
    swapped["choices"][0]["message"], swapped["choices"][1]["message"] = (
        right["choices"][1]["message"],
        right["choices"][0]["message"],
    )
    assert one.wrong_sampled(swapped)
    if em_inf:
        idle = sampled_answer("a", True, grad_steps=0)
        assert "figures" in str(one.wrong_sampled(idle))
        higher = sampled_answer("a", True, mean_entropy_after=0.3)
        assert "figures" in str(one.wrong_sampled(higher))
        lost = copy.deepcopy(right)
        lost["em_inf"]["choices"][2] = {"index": 2, "error": "not fetched"}
        assert "figures" in str(one.wrong_sampled(lost))


def test_no_two_requests_have_the_same_settings() -> None:
    seen = [mixed_settings(number)["threshold"] for number in range(20_000)]
    assert len(set(seen)) == len(seen)
    assert len({tuple(sorted(mixed_settings(number))) for number in range(4)}) == 2


def alone(gap: float) -> dict[str, Any]:
    """An answer of one token, whose likeliest two are so many nats apart."""
    top = [{"logprob": -0.1}, {"logprob": -0.1 - gap}]
    return {
        "choices": [
            {
                "message": {"content": "34"},
                "logprobs": {"content": [{"top_logprobs": top}]},
            }
        ],
        "usage": {"completion_tokens": 1},
        "em_inf": {"choices": [{"trace": {"entropy_before": [0.5]}}]},
    }


def test_answer_with_a_near_tie_is_not_relied_on() -> None:
    assert checker.read_known("q", alone(0.05)) is None
    assert checker.read_known("q", alone(0.5)) == Known("q", "34", 1, (0.5,))


def outcome(**more: Any) -> dict[str, Any]:
    times = {"ttft_seconds": 0.1, "tpot_seconds": 0.01, "itl_seconds": [0.01, 0.02]}
    return {
        "kind": "stream", "good": True, "at": 1.0, "e2e_seconds": 0.5, "tokens": 3,
        **times, **more,
    }  # fmt: skip


def result(outcomes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    bench = {
        "profile": "poisson", "completed": 5, "failed": 0, "ttft_ms": [],
        "output_throughput": 100.0,
    }  # fmt: skip
    http = http_summary(outcomes, (1.0, 0.2))
    return {
        "where": {"cpu": "a <small> one"},
        "limits_ms": {"ttft": 1000.0, "tpot": 200.0},
        "bench": {"off": [bench], "on": [bench]},
        "guidellm": {"off": [], "on": []},
        "http": {"off": http, "on": http},
        "server_errors": {"em_inf_fetch_errors_total": 0.0},
        "healthy_after": True,
        **more,
    }


def test_load_test_passes_only_when_all_went_well() -> None:
    well = [outcome(), outcome(kind="wrong key", good=False)]
    assert failures(result(well), 2) == []
    assert failures(result(well), 3)
    for bad in (
        outcome(mixed_up="id b for a"),
        outcome(error="500: no"),
        outcome(kind="wrong key", good=False, error="200: come in"),
    ):
        assert len(failures(result([*well, bad]), 2)) == 2
    assert failures(result(well, healthy_after=False), 2)
    assert failures(result(well, server_errors={"em_inf_fetch_errors_total": 1.0}), 2)
    broken = {"profile": "poisson", "completed": 4, "failed": 3, "reasons": REASONS}
    assert failures(result(well, bench={"off": [broken], "on": []}), 2) == [
        "bench poisson, off: 3 requests failed: 2 x ReadTimeout, 1 x 500: no"
    ]


def test_reasons_of_failed_requests_are_kept_by_how_often_they_came() -> None:
    traceback = "Traceback (most recent call last):\n  File x\nReadTimeout\n"
    assert reasons(["500: no", "", traceback, None, "ReadTimeout"]) == REASONS


def test_guidellm_s_failed_requests_keep_their_reasons() -> None:
    values = {"successful": {"mean": 1.0, "percentiles": {"p95": 2.0}}}
    names = ("requests_per_second", "output_tokens_per_second", "time_to_first_token_ms",
             "inter_token_latency_ms", "time_per_output_token_ms")  # fmt: skip
    benchmark = {
        "config": {"strategy": {"type_": "constant"}},
        "metrics": {
            "request_totals": {"successful": 4, "errored": 1},
            **dict.fromkeys(names, values),
        },
        "requests": {"successful": [], "errored": [{"info": {"error": "ReadTimeout"}}]},
    }
    found = read_guidellm(benchmark)
    assert (found["completed"], found["failed"]) == (4, 1)
    assert found["reasons"] == {"ReadTimeout": 1}


def test_summary_counts_goodput_by_the_limits() -> None:
    slow = outcome(ttft_seconds=1.5)
    lagging = outcome(tpot_seconds=0.3)
    found = http_summary([outcome(), outcome(), slow, lagging], (1.0, 0.2))
    assert found["goodput_share"] == 0.5
    assert found["requests_per_second"] == 8.0
    assert found["output_tokens_per_second"] == 24.0
    assert found["ms"]["ttft"]["p50"] == 100.0
    assert found["ms"]["itl"]["p50"] == 15.0


def test_report_is_one_file_with_its_pictures(tmp_path: Path) -> None:
    found = result([outcome(), outcome(mixed_up="<b>")])
    found["failures"] = failures(found, 4)
    write_html(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert "4 checked good requests: 0 failed, 2 answered" in page.replace("\n", " ")
    assert "&lt;b&gt;" in page
    assert "http://" not in page
    assert "a &lt;small&gt; one" in page
