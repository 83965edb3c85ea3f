"""EM-INF inside the real engine, under both of vLLM's runners.

The requests stand in `scenarios.py`; here stands what must have come out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from em_inf.logits_processors.settings import Settings
from tests.engine.conftest import MODEL
from tests.logits_processors import autograd_oracle

SAME = 1e-4
"""Nats, between two runs of the engine."""
AGREES = 1e-3
"""Nats, between the engine and the oracle."""

CHECKED_BY_ORACLE = [
    "greedy",
    "mixed",
    "slots",
    "crowd",
    "chunked prompts",
    "choices",
]
REPORTED_BY_BOTH_RUNNERS = [
    "greedy",
    "mixed",
    "slots",
    "crowd",
    "chunked prompts",
    "unspeculated",
    "constrained",
]

Results = dict[str, Any]
Answer = dict[str, Any]


class Figures:
    """The four columns of an answer, cut to the tokens that the client got."""

    def __init__(self, answer: Answer) -> None:
        recorded = answer["figures"]
        self.num_recorded = len(recorded[0])
        self.num_tokens = len(answer["choices"][0]["token_ids"])
        columns = [column[: self.num_tokens] for column in recorded]
        self.before, self.after, self.grad_steps, self.temperatures = columns

    @property
    def columns(self) -> list[list[float]]:
        return [self.before, self.after, self.grad_steps, self.temperatures]


def tokens(answer: Answer) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


def settings_of(answer: Answer) -> Settings | None:
    return answer["settings"] and Settings(**answer["settings"])


def reported(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer["figures"] is not None]


def assert_same_answers(left: list[Answer], right: list[Answer]) -> None:
    assert len(left) == len(right)
    assert reported(left)
    for one, other in zip(left, right, strict=True):
        assert one["settings"] == other["settings"]
        assert tokens(one) == tokens(other)
        assert (one["figures"] is None) == (other["figures"] is None)
        for i, choice in enumerate(one["choices"]):
            logprobs = other["choices"][i]["logprobs"]
            assert choice["logprobs"] == pytest.approx(logprobs, abs=SAME)
            if one["figures"] is not None:
                figures, wanted = Figures(one).columns, Figures(other).columns
                for column, expected in zip(figures, wanted, strict=True):
                    assert column == pytest.approx(expected, abs=SAME)


@pytest.fixture(scope="module")
def transformer() -> Iterator[Any]:
    # Rows of this size gain nothing from threads, and lose where cores are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def logits_of(transformer: Any, answer: Answer) -> Tensor:
    """[T, V]: what a plain transformers forward gives for each output token."""
    output = answer["choices"][0]["token_ids"]
    ids = torch.tensor([answer["prompt"] + output])
    with torch.inference_mode():
        logits: Tensor = transformer(ids).logits[0]
    return logits[len(answer["prompt"]) - 1 : -1].clone()


def minimized(row: Tensor, settings: Settings | None) -> Tensor:
    """[V]: the row as it should reach the sampler."""
    if settings is None:
        return row
    before = float(autograd_oracle.entropy_of(row))
    if settings.method == "gradient":
        return autograd_oracle.em_inf(
            row,
            settings.n_grad_steps,
            settings.learning_rate,
            settings.threshold,
            settings.kl_weight,
        ).logits
    target = max(settings.target_ratio * before, settings.threshold)
    if target >= before:
        return row
    return row / autograd_oracle.temperature_for(row, target)


def test_the_runner_that_was_asked_for_runs(results: Results, runner: str) -> None:
    assert results["status"]["runner"] == runner


def test_default_settings_leave_greedy_tokens_as_they_are(results: Results) -> None:
    on, off = results["greedy"]["answers"], results["greedy without"]["answers"]
    assert sum(sum(Figures(answer).grad_steps) for answer in on) > 0
    assert [tokens(answer) for answer in on] == [tokens(answer) for answer in off]


@pytest.mark.parametrize("scenario", REPORTED_BY_BOTH_RUNNERS)
def test_both_runners_report_the_same(v1: Results, v2: Results, scenario: str) -> None:
    of_v1, of_v2 = v1[scenario]["answers"], v2[scenario]["answers"]
    if scenario == "mixed":
        # The last request has a seed, of which the runners make different numbers.
        of_v1, of_v2 = of_v1[:-1], of_v2[:-1]
    assert_same_answers(of_v1, of_v2)


@pytest.mark.parametrize("scenario", CHECKED_BY_ORACLE)
def test_entropies_agree_with_transformers_and_autograd(
    results: Results, transformer: Any, scenario: str
) -> None:
    answers = reported(results[scenario]["answers"])
    assert answers
    for answer in answers:
        settings = settings_of(answer)
        rows = logits_of(transformer, answer)
        before = autograd_oracle.entropy_of(rows).tolist()
        expected = torch.stack([minimized(row, settings) for row in rows])
        after = autograd_oracle.entropy_of(expected).tolist()
        figures = Figures(answer)
        assert figures.before == pytest.approx(before, abs=AGREES)
        # Adaptive temperature ends up to a thousandth of its target below it.
        assert figures.after == pytest.approx(after, abs=AGREES, rel=AGREES)


def test_the_sampler_gets_the_logits_that_each_request_asked_for(
    results: Results, transformer: Any
) -> None:
    changed = 0
    for answer in results["mixed"]["answers"]:
        settings = settings_of(answer)
        rows = logits_of(transformer, answer)
        (choice,) = answer["choices"]
        for row, token, logprob in zip(
            rows, choice["token_ids"], choice["logprobs"], strict=True
        ):
            expected = torch.log_softmax(minimized(row, settings), dim=0)[token]
            assert logprob == pytest.approx(float(expected), abs=AGREES)
            changed += abs(logprob - torch.log_softmax(row, dim=0)[token]) > 10 * AGREES
    assert changed > 20


def test_a_batch_of_many_settings_gives_what_each_request_gives_alone(
    results: Results,
) -> None:
    together, alone = results["mixed"]["answers"], results["mixed alone"]["answers"]
    assert len({json.dumps(answer["settings"]) for answer in together}) > 8
    assert_same_answers(together, alone)


def test_requests_without_em_inf_get_the_tokens_they_would_get_without_the_processor(
    results: Results,
) -> None:
    together, without = results["mixed"]["answers"], results["mixed without"]["answers"]
    bystanders = [i for i, answer in enumerate(together) if answer["settings"] is None]
    assert len(bystanders) == 2
    for i in bystanders:
        assert together[i]["figures"] is None
        assert together[i]["choices"] == without[i]["choices"]


def test_a_request_that_wants_no_report_leaves_no_record(results: Results) -> None:
    for answer in results["mixed"]["answers"]:
        settings = settings_of(answer)
        wanted = settings is not None and settings.report != "none"
        assert (answer["figures"] is not None) == wanted


def test_requests_in_reused_slots_keep_their_own_settings(
    results: Results, v1: Results
) -> None:
    answers = results["slots"]["answers"]
    assert len(answers) == 24
    assert_same_answers(answers, v1["slots alone"]["answers"])
    for answer in reported(answers):
        settings, figures = settings_of(answer), Figures(answer)
        assert settings is not None
        gradient = settings.method == "gradient"
        assert max(figures.grad_steps) <= (settings.n_grad_steps if gradient else 0)


def test_preempted_requests_report_every_position_once(results: Results) -> None:
    (preemptions,) = results["crowd"]["counters"].values()
    (preemptions_with_room,) = results["roomy crowd"]["counters"].values()
    assert preemptions > 0
    assert preemptions_with_room == 0
    crowd = results["crowd"]["answers"]
    assert_same_answers(crowd, results["roomy crowd"]["answers"])
    for answer in crowd:
        assert Figures(answer).num_recorded == Figures(answer).num_tokens


def test_a_prompt_in_chunks_reports_what_a_whole_one_does(results: Results) -> None:
    chunked = results["chunked prompts"]["answers"]
    assert_same_answers(chunked, results["whole prompts"]["answers"])
    for answer in chunked:
        assert len(answer["prompt"]) >= 2 * results["token budget"]
        assert Figures(answer).num_recorded == Figures(answer).num_tokens


def test_choices_of_one_request_have_figures_of_their_own(results: Results) -> None:
    answers = results["choices"]["answers"]
    assert len({tuple(tokens(answer)[0]) for answer in answers}) == 3
    for answer in answers:
        assert Figures(answer).num_recorded == Figures(answer).num_tokens


def test_constrained_output_obeys_its_grammar(results: Results) -> None:
    by_regex, by_schema = results["constrained"]["answers"]
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", by_regex["choices"][0]["text"])
    value = json.loads(by_schema["choices"][0]["text"])
    assert set(value) == {"a", "b"}
    assert isinstance(value["a"], bool)
    assert value["b"] in ("x", "yy")


def test_constrained_rows_have_finite_figures_even_with_one_token_left(
    results: Results,
) -> None:
    all_before, all_after = [], []
    for answer in results["constrained"]["answers"]:
        figures = Figures(answer)
        assert figures.num_recorded == figures.num_tokens
        all_before += figures.before
        all_after += figures.after
    assert all(map(math.isfinite, all_before + all_after))
    assert min(all_before) == pytest.approx(0, abs=1e-6), "no row had one token left"
    assert any(a < b - 0.01 for b, a in zip(all_before, all_after, strict=True))


def test_every_sampling_parameter_at_once_keeps_its_promise(results: Results) -> None:
    (answer,) = results["everything"]["answers"]
    (choice,) = answer["choices"]
    end = results["end-of-text token"]
    assert results["banned token"] not in choice["token_ids"]
    # The bias makes the end certain as soon as min_tokens allows it.
    assert choice["token_ids"].index(end) == results["min tokens"]
    assert choice["finish_reason"] == "stop"


def test_every_sampling_parameter_at_once_leaves_the_figures_complete(
    results: Results,
) -> None:
    (answer,) = results["everything"]["answers"]
    figures = Figures(answer)
    assert figures.num_recorded == figures.num_tokens
    assert all(map(math.isfinite, figures.before + figures.after))
    assert any(a < b - 0.01 for b, a in zip(figures.before, figures.after, strict=True))


def test_speculation_changes_neither_tokens_nor_figures(v2: Results) -> None:
    counters = v2["speculated"]["counters"]
    drafted = counters["vllm:spec_decode_num_draft_tokens"]
    accepted = counters["vllm:spec_decode_num_accepted_tokens"]
    assert 0 < accepted < drafted
    assert_same_answers(v2["speculated"]["answers"], v2["unspeculated"]["answers"])


def test_speculation_reports_at_least_every_returned_token(v2: Results) -> None:
    for answer in reported(v2["speculated"]["answers"]):
        assert Figures(answer).num_recorded >= Figures(answer).num_tokens


def test_v1_refuses_to_start_with_speculation(v1: Results) -> None:
    refusal = v1["speculation refused"]
    assert refusal is not None
    assert "logits processors are not supported" in refusal


def test_unchecked_settings_are_refused_at_admission(results: Results) -> None:
    refused = results["refused request"]["refused"]
    assert "n_grad_steps" in refused
    assert "-1" in refused
    (answer,) = results["refused request"]["answers"]
    assert tokens(answer) == tokens(results["greedy"]["answers"][0])


def test_an_error_in_one_step_is_counted_and_costs_that_step_only(
    results: Results,
) -> None:
    failing, whole = results["failing step"], results["greedy"]
    at = results["failing position"]
    assert failing["errors"] == {"apply": 1}
    for answer, expected in zip(failing["answers"], whole["answers"], strict=True):
        assert tokens(answer) == tokens(expected)
        columns = zip(Figures(answer).columns, Figures(expected).columns, strict=True)
        for column, expected_column in columns:
            assert math.isnan(column.pop(at))
            expected_column.pop(at)
            assert column == pytest.approx(expected_column, abs=SAME)


def test_logits_of_a_failing_step_go_on_unchanged(results: Results) -> None:
    failing, off = results["failing step"], results["greedy without"]
    at = results["failing position"]
    for answer, expected in zip(failing["answers"], off["answers"], strict=True):
        logprobs = answer["choices"][0]["logprobs"]
        expected_logprobs = expected["choices"][0]["logprobs"]
        assert logprobs[at] == pytest.approx(expected_logprobs[at], abs=SAME)
        assert logprobs != pytest.approx(expected_logprobs, abs=SAME)


def test_the_engine_goes_on_as_before_after_an_error(results: Results) -> None:
    after, before = results["after failure"], results["greedy"]
    assert_same_answers(after["answers"], before["answers"])


def test_nothing_but_the_provoked_error_is_counted(results: Results) -> None:
    errors = {
        name: value["errors"]
        for name, value in results.items()
        if isinstance(value, dict) and value.get("errors")
    }
    assert errors == {"failing step": {"apply": 1}}


def test_fetched_records_are_forgotten(results: Results) -> None:
    assert results["last status"]["open_records"] == 0
