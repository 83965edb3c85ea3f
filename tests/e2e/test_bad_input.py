"""Every field wrong in every way is a 400 that names it, before anything runs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import QUESTION, Server

CHAT = {"model": DEMO_MODEL_NAME, "messages": [{"role": "user", "content": QUESTION}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": DEMO_MODEL_NAME, "prompt": QUESTION},
    "/v1/responses": {"model": DEMO_MODEL_NAME, "input": QUESTION},
}
NUMBERS = ["n_grad_steps", "learning_rate", "threshold", "kl_weight"]


def wrong() -> Iterator[tuple[str, str]]:
    """(JSON text of em_inf, field that the error must name)."""
    for value in (
        "5",
        "0.5",
        "[]",
        '["paper"]',
        '"no such preset"',
        '""',
        "NaN",
        "1e309",
    ):
        yield value, "em_inf"
    for name in NUMBERS:
        for value in (
            '"5"',
            "true",
            "[]",
            "{}",
            "-1",
            "NaN",
            "Infinity",
            "1e309",
            "1e30",
        ):
            if (name, value) != ("threshold", "1e30"):
                yield f'{{"{name}": {value}}}', f"em_inf.{name}"
        yield (
            (
                f'{{"method": "adaptive_temperature", "{name}": 1}}'
                if name != "threshold"
                else '{"method": "adaptive_temperature", "threshold": -0.1}'
            ),
            f"em_inf.{name}",
        )
    yield '{"n_grad_steps": 5.0}', "em_inf.n_grad_steps"
    yield '{"n_grad_steps": 65}', "em_inf.n_grad_steps"
    yield '{"n_grad_steps": 1' + "0" * 400 + "}", "em_inf.n_grad_steps"
    yield '{"learning_rate": 0}', "em_inf.learning_rate"
    yield '{"learning_rate": 1.001}', "em_inf.learning_rate"
    yield '{"kl_weight": 100.1}', "em_inf.kl_weight"
    yield '{"target_ratio": 0.5}', "em_inf.target_ratio"
    for value in ("0", "1.01", '"half"', "NaN"):
        text = f'{{"method": "adaptive_temperature", "target_ratio": {value}}}'
        yield text, "em_inf.target_ratio"
    for value in ('"newton"', "1", "[]", "true"):
        yield f'{{"method": {value}}}', "em_inf.method"
    for value in ('"all"', "true", "{}"):
        yield f'{{"report": {value}}}', "em_inf.report"
    for value in ('"yes"', "1", "[]"):
        yield f'{{"enabled": {value}}}', "em_inf.enabled"
    for value in ('"nope"', "3", "{}"):
        yield f'{{"preset": {value}}}', "em_inf.preset"
    yield '{"n_gradsteps": 5}', "em_inf.n_gradsteps"
    yield '{"key": "x", "report": "none"}', "em_inf.key"
    yield '{"nothing": null}', "em_inf.nothing"
    yield '{"a": ' * 400 + "1" + "}" * 400, "em_inf.a"


def body_with(em_inf: str, stream: bool, path: str = "/v1/chat/completions") -> bytes:
    body = json.dumps({**BODIES[path], "stream": stream})
    return f'{body[:-1]}, "em_inf": {em_inf}}}'.encode()


def assert_refused(answer: Any, field: str) -> None:
    assert answer.status == 400, answer.body[:300]
    assert len(answer.body) < 2000
    error = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == field
    assert error["code"] == 400
    assert error["message"].startswith(field)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("em_inf", "field"), wrong(), ids=lambda text: text[:60])
def test_wrong_setting_is_refused_by_name(
    server: Server, em_inf: str, field: str, stream: bool
) -> None:
    answer = server.post("/v1/chat/completions", body_with(em_inf, stream))
    assert_refused(answer, field)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", BODIES)
def test_every_route_refuses(server: Server, path: str, stream: bool) -> None:
    answer = server.post(path, body_with('{"threshold": -1}', stream, path))
    assert_refused(answer, "em_inf.threshold")


def test_message_says_value_and_what_is_allowed(server: Server) -> None:
    message = server.chat({"n_grad_steps": 65}).json["error"]["message"]
    assert message == (
        "em_inf.n_grad_steps: 65 is not allowed; it must be an integer of at least 0 and "
        "at most 64"
    )


def test_ten_megabytes_are_refused_in_a_short_answer(server: Server) -> None:
    long = "x" * 10_000_000
    assert_refused(
        server.post("/v1/chat/completions", body_with(f'"{long}"', False)), "em_inf"
    )
    many = json.dumps({f"field {i}": i for i in range(500_000)})
    assert_refused(
        server.post("/v1/chat/completions", body_with(many, True)), "em_inf.field 0"
    )


@pytest.mark.parametrize("depth", [2_000, 1_000_000])
def test_nesting_too_deep_to_read_is_refused_as_the_body(
    server: Server, depth: int
) -> None:
    em_inf = '{"a": ' * depth + "1" + "}" * depth
    answer = server.post("/v1/chat/completions", body_with(em_inf, False))
    assert_refused(answer, "body")


def test_nothing_refused_reaches_the_engine_and_a_good_request_still_works(
    server: Server,
) -> None:
    name = 'vllm:request_success_total{engine="0",finished_reason="%s",model_name="%s"}'
    names = [name % (reason, DEMO_MODEL_NAME) for reason in ("stop", "length", "abort")]
    before = [server.metrics().get(name) for name in names]
    for em_inf, _ in wrong():
        server.post("/v1/chat/completions", body_with(em_inf, True))
    assert [server.metrics().get(name) for name in names] == before
    good = server.chat(True)
    assert good.status == 200
    assert good.json["em_inf"]["choices"][0]["tokens"] > 0


def test_refusals_are_counted_by_field(server: Server) -> None:
    name = 'em_inf_requests_refused_total{field="%s"}'
    before = server.metrics()
    server.chat({"threshold": -1})
    server.chat({"made up by the caller": 1})
    after = server.metrics()
    for field in ("threshold", "unknown"):
        assert after[name % field] == before.get(name % field, 0) + 1
    assert not any("made up" in sample for sample in after)


def test_beam_search_with_em_inf_is_refused(server: Server) -> None:
    for path, body in list(BODIES.items())[:2]:
        asked = {**body, "use_beam_search": True, "n": 2, "max_tokens": 5}
        refused = server.post(path, {**asked, "em_inf": True})
        assert_refused(refused, "use_beam_search")
        assert server.post(path, {**asked, "em_inf": False}).status == 200


def test_settings_smuggled_past_the_field_are_refused(server: Server) -> None:
    answer = server.chat(None, vllm_xargs={"em_inf": "strong"})
    assert_refused(answer, "vllm_xargs.em_inf")


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/chat/completions/batch", "/invocations"]
)
def test_route_without_the_field_says_so(server: Server, path: str) -> None:
    body: dict[str, Any] = {**CHAT, "max_tokens": 5, "em_inf": True}
    if path.endswith("batch"):
        body["messages"] = [CHAT["messages"]]
    assert_refused(server.post(path, body), "em_inf")
