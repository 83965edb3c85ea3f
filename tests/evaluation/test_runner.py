"""A run against a server that fails: tried again, stopped cleanly, and gone on with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from em_inf.evaluation.decoder_texts import several
from em_inf.evaluation.errors import (
    DecoderError,
    JournalError,
    NoEMInfError,
    PlanError,
    StoppedError,
)
from em_inf.evaluation.journal import Journal
from em_inf.evaluation.plan import JOURNAL, Plan, seed_of
from em_inf.evaluation.records import Problem
from em_inf.evaluation.runner import evaluate, load
from tests.evaluation.misbehaving import Misbehaving, misbehaving, refused

PROBLEMS = tuple(
    Problem(f"q{number}", ({"role": "user", "content": f"{number}?"},), number % 7)
    for number in range(6)
)


@pytest.fixture
def fake() -> Iterator[Misbehaving]:
    with misbehaving() as server:
        yield server


def plan(fake: Misbehaving, folder: Path, *decoders: str, **changed: Any) -> Plan:
    made = several(decoders or ["greedy", "temperature(1.0)"])
    fields: dict[str, Any] = {
        "task": "t",
        "problems": PROBLEMS,
        "grader": "numeric",
        "decoders": made,
        "baseline": made[0].name,
        "url": fake.url,
        "folder": folder,
        "concurrency": 2,
        "retries": 2,
    }
    return Plan(**{**fields, **changed})


def test_every_answer_is_asked_once_with_seeds_that_decoders_share(
    fake: Misbehaving, tmp_path: Path
) -> None:
    run = evaluate(plan(fake, tmp_path, samples=2, seed=5))
    assert len(run.answers) == 2 * 2 * len(PROBLEMS)
    assert len(fake.asked) == len(run.answers)
    seeds = {(a.decoder, a.problem, a.sample): a.calls[0].seed for a in run.answers}
    for (decoder, problem, sample), seed in seeds.items():
        assert seed == seed_of(5, problem, sample, 0)
        assert seed == seeds["greedy", problem, sample], decoder
    assert len(set(seeds.values())) == 2 * len(PROBLEMS)
    right = [a for a in run.answers if a.verdict.grade == "right"]
    for answer in right:
        assert answer.calls[0].seed % 7 == int(answer.problem[1:]) % 7
    assert {record.seconds > 0 for record in run.decoders} == {True}


def test_decoders_take_turns_in_blocks_of_problems(
    fake: Misbehaving, tmp_path: Path
) -> None:
    evaluate(plan(fake, tmp_path))
    turns = [body["temperature"] for body in fake.asked]
    assert turns == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    told = [body["messages"][0]["content"] for body in fake.asked]
    assert set(told[:4]) == {"0?", "1?"}


def test_temperature_that_cannot_be_matched_is_left_out_and_noted(
    fake: Misbehaving, tmp_path: Path
) -> None:
    fake.em_inf = True  # But its answers have no report.
    matched = "matched(of=em_inf(n_grad_steps=3))"
    run = evaluate(plan(fake, tmp_path, "greedy", matched))
    assert {answer.decoder for answer in run.answers} == {"greedy"}
    assert run.decoders[1].notes == (
        "not matched: the server lost an answer's entropies",
    )
    again = evaluate(plan(fake, tmp_path, "greedy", matched))
    assert again.decoders == run.decoders
    with pytest.raises(PlanError, match="the baseline: not matched"):
        evaluate(plan(fake, tmp_path / "other", matched))


def test_server_without_em_inf_gets_plain_requests_only(
    fake: Misbehaving, tmp_path: Path
) -> None:
    run = evaluate(plan(fake, tmp_path))
    assert set(fake.asked[0]) == {
        "model", "messages", "seed", "temperature", "top_p", "max_tokens",
    }  # fmt: skip
    assert run.server == {}
    assert {answer.calls[0].entropy_before for answer in run.answers} == {None}
    with pytest.raises(NoEMInfError, match=r"which em_inf\(n_grad_steps=3\) needs"):
        evaluate(plan(fake, tmp_path / "em", "greedy", "em_inf(n_grad_steps=3)"))


def test_off_is_sent_as_no_step_and_no_parameter_is_left_to_the_server(
    fake: Misbehaving, tmp_path: Path
) -> None:
    fake.em_inf = True
    evaluate(plan(fake, tmp_path, "greedy", "em_inf(n_grad_steps=3)"))
    sent = {body["temperature"]: body for body in fake.asked}
    assert sent[0.0]["em_inf"] == {"preset": "measure", "report": "summary"}
    on = {"method": "gradient", "n_grad_steps": 3, "report": "summary"}
    assert sent[1.0]["em_inf"] == on
    for body in sent.values():
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0, 1)


def test_busy_and_broken_answers_are_tried_again(
    fake: Misbehaving, tmp_path: Path
) -> None:
    hit: set[int] = set()

    def trouble(body: dict[str, Any], number: int) -> web.StreamResponse | None:
        if body["max_tokens"] == 1 or body["seed"] in hit:
            return None
        hit.add(body["seed"])
        broken = web.StreamResponse(headers={"Content-Length": "1000"})
        kinds = [refused(429, **{"Retry-After": "1"}), refused(503), broken]
        return kinds[len(hit) % 3]

    fake.trouble = trouble
    run = evaluate(plan(fake, tmp_path, "temperature(1.0)"))
    assert len(run.answers) == len(PROBLEMS) == len(fake.asked)
    assert {answer.calls[0].tries for answer in run.answers} == {2}


@pytest.mark.parametrize("status", [429, 503, 0])
def test_server_that_stays_away_stops_the_run_which_goes_on_later(
    fake: Misbehaving, tmp_path: Path, status: int
) -> None:
    def trouble(body: dict[str, Any], number: int) -> web.StreamResponse | None:
        if len(fake.asked) < 5:
            return None
        return refused(status) if status else web.StreamResponse()

    fake.trouble = trouble
    asked = plan(fake, tmp_path, retries=1)
    with pytest.raises(StoppedError) as stopped:
        evaluate(asked)
    expected = openai.APIStatusError if status else openai.APIConnectionError
    assert isinstance(stopped.value.cause, expected)
    kept = Journal.read(tmp_path / JOURNAL).calls
    assert len(kept) == 5
    assert len(load(tmp_path).answers) == 5
    fake.trouble = lambda body, number: None
    run = evaluate(asked)
    assert len(run.answers) == 2 * len(PROBLEMS) == len(fake.asked)
    again = {call.key: call for answer in run.answers for call in answer.calls}
    assert {key: again[key] for key in kept} == kept


def test_refused_settings_are_told_before_anything_else_is_asked(
    fake: Misbehaving, tmp_path: Path
) -> None:
    def trouble(body: dict[str, Any], number: int) -> web.StreamResponse | None:
        return refused(400, "top_p: no") if body["top_p"] == 0.5 else None

    fake.trouble = trouble
    with pytest.raises(
        DecoderError, match=r"^top_p\(0.5\): the server refuses: top_p: no"
    ):
        evaluate(plan(fake, tmp_path, "greedy", "top_p(0.5)"))
    assert {body["max_tokens"] for body in fake.bodies} == {1}


def test_one_refused_problem_is_an_answer_without_text_and_is_noted(
    fake: Misbehaving, tmp_path: Path
) -> None:
    def trouble(body: dict[str, Any], number: int) -> web.StreamResponse | None:
        long = body["messages"][0]["content"] == "3?"
        return refused(400, "too long") if long else None

    fake.trouble = trouble
    run = evaluate(plan(fake, tmp_path, "greedy"))
    (answer,) = [answer for answer in run.answers if answer.problem == "q3"]
    assert (answer.text, answer.verdict.grade) == ("", "not_extracted")
    assert answer.calls[0].finish_reason == "refused"
    assert "refused 1 requests" in run.decoders[0].notes[-1]
    assert "too long" in run.decoders[0].notes[-1]


def test_decoder_that_is_always_refused_stops_the_run(
    fake: Misbehaving, tmp_path: Path
) -> None:
    def trouble(body: dict[str, Any], number: int) -> web.StreamResponse | None:
        return refused(400, "too many tokens") if body["max_tokens"] > 1 else None

    fake.trouble = trouble
    with pytest.raises(StoppedError, match=r"greedy: .*too many tokens"):
        evaluate(plan(fake, tmp_path, "greedy"))


def test_journal_of_another_plan_is_refused_before_anything_is_asked(
    fake: Misbehaving, tmp_path: Path
) -> None:
    evaluate(plan(fake, tmp_path))
    before = len(fake.bodies)
    with pytest.raises(JournalError, match="its samples is 1, and now it would be 2"):
        evaluate(plan(fake, tmp_path, samples=2))
    with pytest.raises(JournalError, match="data"):
        evaluate(plan(fake, tmp_path, problems=PROBLEMS[:3]))
    assert len(fake.bodies) == before


def test_finished_run_asks_nothing_and_can_be_graded_anew(
    fake: Misbehaving, tmp_path: Path
) -> None:
    first = evaluate(plan(fake, tmp_path))
    before = len(fake.bodies)
    again = evaluate(plan(fake, tmp_path, concurrency=4))
    assert again.answers == first.answers
    assert len(fake.bodies) == before
    (tmp_path / "harsh.py").write_text("def harsh(text, problem): return False")
    other = load(tmp_path, grader=f"{tmp_path}/harsh.py:harsh")
    assert other.grader.endswith(":harsh")
    assert [a.text for a in other.answers] == [a.text for a in first.answers]
    assert {a.verdict.grade for a in other.answers} == {"wrong"}
