"""One prompt with EM-INF off and on, over every route, streaming and not."""

import json
import re
from typing import Any

import openai
import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import QUESTION, Server

TRACE = {"n_grad_steps": 15, "report": "trace"}


def only_choice(answer: Any) -> Any:
    (choice,) = answer["em_inf"]["choices"]
    return choice


def test_off_by_default_and_nothing_is_added(server: Server) -> None:
    answer = server.chat().json
    assert "em_inf" not in answer
    assert server.chat(False).json.keys() == answer.keys()


def test_entropy_is_lower_after_than_before(server: Server) -> None:
    choice = only_choice(server.chat(TRACE, temperature=1.0, seed=1).json)
    assert choice["tokens_minimized"] > 0
    assert choice["mean_entropy_after"] < choice["mean_entropy_before"]


def test_summary_is_the_sum_of_the_trace(server: Server) -> None:
    answer = server.chat(TRACE, temperature=1.0, seed=2).json
    choice = only_choice(answer)
    trace = choice["trace"]
    tokens = answer["usage"]["completion_tokens"]
    assert choice["tokens"] == tokens
    assert {len(column) for column in trace.values()} == {tokens}
    assert choice["grad_steps"] == sum(trace["grad_steps"])
    assert choice["tokens_minimized"] == sum(n > 0 for n in trace["grad_steps"])
    mean = sum(trace["entropy_before"]) / tokens
    assert choice["mean_entropy_before"] == pytest.approx(mean, abs=1e-6)


def test_settings_are_echoed_complete(server: Server) -> None:
    answer = server.chat({"preset": "paper", "threshold": 0.2}).json
    assert answer["em_inf"]["settings"] == {
        "method": "gradient",
        "n_grad_steps": 3,
        "learning_rate": 0.1,
        "threshold": 0.2,
        "kl_weight": 0.05,
    }


def test_adaptive_temperature_reports_temperatures(server: Server) -> None:
    settings = {"method": "adaptive_temperature", "target_ratio": 0.4, "report": "trace"}
    choice = only_choice(server.chat(settings, temperature=1.0, seed=3).json)
    trace = choice["trace"]
    assert "grad_steps" not in trace
    for before, after, temperature in zip(*trace.values(), strict=True):
        if before <= 0.3:
            assert (after, temperature) == (before, 1.0)
        else:
            assert after == pytest.approx(max(0.4 * before, 0.3), rel=2e-3)
            assert temperature < 1


def test_no_report_means_no_field(server: Server) -> None:
    assert "em_inf" not in server.chat({"report": "none"}).json


def test_greedy_answer_is_the_same_with_em_inf_on(server: Server) -> None:
    fields: dict[str, Any] = {"temperature": 0, "return_token_ids": True}
    off = server.chat(**fields).json["choices"][0]
    on = server.chat(True, **fields).json["choices"][0]
    assert on["token_ids"] == off["token_ids"]


def test_steps_stop_below_the_threshold(server: Server) -> None:
    trace = only_choice(server.chat(TRACE, temperature=1.0, seed=4).json)["trace"]
    for before, after, steps in zip(*trace.values(), strict=True):
        assert (steps == 0) == (before < 0.3)
        assert steps == 15 or after < 0.3


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_stream_carries_the_report_in_its_last_chunk_only(
    server: Server, n: int, include_usage: bool
) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 5, "n": n}
    options = {"include_usage": include_usage}
    stream = server.chat(TRACE, stream=True, stream_options=options, **fields)
    *others, last = stream.events
    assert all("em_inf" not in event for event in others)
    assert last["em_inf"] == server.chat(TRACE, **fields).json["em_inf"]
    assert stream.body.decode().endswith("data: [DONE]\n\n")


def test_stream_says_the_same_words_as_the_whole_answer(server: Server) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 6}
    stream = server.chat(TRACE, stream=True, **fields)
    deltas = [c["delta"].get("content") for e in stream.events for c in e["choices"]]
    whole = server.chat(TRACE, **fields).json["choices"][0]["message"]["content"]
    assert "".join(filter(None, deltas)) == whole


def test_choices_have_statistics_of_their_own(server: Server) -> None:
    answer = server.chat(TRACE, temperature=1.5, n=4, return_token_ids=True).json
    lengths = [len(choice["token_ids"]) for choice in answer["choices"]]
    reported = answer["em_inf"]["choices"]
    assert [choice["index"] for choice in reported] == [0, 1, 2, 3]
    assert [choice["tokens"] for choice in reported] == lengths
    texts = {choice["message"]["content"] for choice in answer["choices"]}
    assert len(texts) > 1, "the choices must not share a seed"


def test_completions_number_choices_as_prompts_times_n(server: Server) -> None:
    body = {
        "model": DEMO_MODEL_NAME,
        "prompt": ["Tom has 3", "Anna has 4 books. She", "The answer"],
        "n": 2,
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 7,
        "em_inf": TRACE,
        "return_token_ids": True,
    }
    answer = server.post("/v1/completions", body).json
    lengths = [len(choice["token_ids"]) for choice in answer["choices"]]
    reported = answer["em_inf"]["choices"]
    assert [choice["index"] for choice in reported] == list(range(6))
    assert [choice["tokens"] for choice in reported] == lengths
    first = [choice["trace"]["entropy_before"][0] for choice in reported]
    # Two choices of one prompt see the same first distribution, other prompts another.
    assert first[0::2] == pytest.approx(first[1::2], abs=1e-5)
    assert len({round(entropy, 4) for entropy in first}) == 3
    stream = server.post("/v1/completions", {**body, "stream": True})
    streamed = stream.events[-1]["em_inf"]["choices"]
    assert [c["tokens"] for c in streamed] == lengths


@pytest.mark.parametrize("max_output_tokens", [100, 8])
def test_responses_carry_the_report(server: Server, max_output_tokens: int) -> None:
    body = {
        "model": DEMO_MODEL_NAME,
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": max_output_tokens,
        "em_inf": TRACE,
    }
    answer = server.post("/v1/responses", body).json
    assert only_choice(answer)["tokens"] == answer["usage"]["output_tokens"]
    stream = server.post("/v1/responses", {**body, "stream": True})
    *others, last = stream.events
    assert last["response"]["em_inf"] == answer["em_inf"]
    assert all("em_inf" not in event.get("response", {}) for event in others)


def test_background_response_takes_settings_without_a_report(server: Server) -> None:
    body = {"model": DEMO_MODEL_NAME, "input": QUESTION, "background": True}
    refused = server.post("/v1/responses", {**body, "em_inf": TRACE})
    assert refused.status == 400
    assert refused.json["error"]["param"] == "em_inf.report"


def test_openai_sdk_sends_settings_and_reads_the_report(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(
        model=DEMO_MODEL_NAME, messages=messages, extra_body={"em_inf": "strong"}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["em_inf"]["settings"]["n_grad_steps"] == 15
    stream = client.chat.completions.create(
        model=DEMO_MODEL_NAME, messages=messages, stream=True, extra_body={"em_inf": True}
    )
    *_, last = stream
    assert last.model_extra is not None
    assert last.model_extra["em_inf"]["choices"][0]["tokens"] > 0


def test_structured_output_obeys_its_grammar_and_reports_no_nan(server: Server) -> None:
    answer = server.chat(
        TRACE,
        temperature=1.0,
        seed=8,
        structured_outputs={"regex": "[0-9]{3} (apples|books)"},
    ).json
    assert re.fullmatch(
        "[0-9]{3} (apples|books)", answer["choices"][0]["message"]["content"]
    )
    assert None not in only_choice(answer)["trace"]["entropy_before"]


def test_plain_answers_are_byte_for_byte_those_of_stock_vllm(
    server: Server, stock: Server
) -> None:
    def normal(body: bytes) -> bytes:
        return re.sub(rb'"(created|created_at)":[0-9.]+', b'"created":0', body)

    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "n": 2}),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 3}),
        ("/v1/chat/completions", {**chat, "max_tokens": -1}),
        ("/v1/chat/completions", {**chat, "temperature": "warm"}),
        ("/v1/completions", {"prompt": ["Tom has", "Anna"], "max_tokens": 9}),
        ("/v1/responses", {"input": QUESTION, "temperature": 0}),
        ("/v1/messages", chat),
    ]
    for path, fields in requests:
        body = {"model": DEMO_MODEL_NAME, "seed": 11, **fields}
        if path in ("/v1/messages", "/v1/responses"):
            del body["seed"]
            body["temperature"] = 0
        headers = {"X-Request-Id": "same"}
        ours, theirs = (s.post(path, body, headers) for s in (server, stock))
        assert ours.status == theirs.status
        if path == "/v1/responses":
            # Its ids are random and cannot be given by the caller.
            drop = re.compile(rb'"(id|item_id)":"(resp|msg)_[0-9a-f]+"')
            ours.body, theirs.body = drop.sub(b"", ours.body), drop.sub(b"", theirs.body)
        assert normal(ours.body) == normal(theirs.body), path


def test_plain_streams_are_those_of_stock_vllm(server: Server, stock: Server) -> None:
    def shape(event: Any) -> tuple[Any, ...]:
        return (*event, *(key for choice in event["choices"] for key in choice))

    body = {
        "model": DEMO_MODEL_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "seed": 12,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    streams = [s.post("/v1/chat/completions", body).events for s in (server, stock)]
    # How many tokens share a chunk is a matter of timing; all else is not.
    ours, theirs = (
        "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        for events in streams
    )
    assert ours == theirs
    assert {shape(e) for e in streams[0]} == {shape(e) for e in streams[1]}
    assert streams[0][-1]["usage"] == streams[1][-1]["usage"]


def test_openapi_document_shows_the_field_with_its_ranges(server: Server) -> None:
    document = server.get("/openapi.json").json
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        field = document["components"]["schemas"][name]["properties"]["em_inf"]
        *_, as_object = field["anyOf"]
        settings = as_object["properties"]
        assert (
            settings["n_grad_steps"]["minimum"],
            settings["n_grad_steps"]["maximum"],
        ) == (
            0,
            64,
        )
        assert settings["learning_rate"]["minimum"] == 1e-6
        assert settings["report"]["enum"] == ["none", "summary", "trace"]


def test_server_describes_itself(server: Server) -> None:
    about = server.get("/v1/em_inf").json
    assert about["runner"] == "V1"
    assert about["backend"]
    assert about["default_settings"]["n_grad_steps"] == 5
    assert about["limits"] == {"max_grad_steps": 64}
    assert {"paper", "balanced", "strong", "adaptive"} <= about["presets"].keys()
    assert about["fields"]["target_ratio"]["maximum"] == 1
    assert about["methods"]["adaptive_temperature"] == ["target_ratio", "threshold"]
    assert about["logprobs"] == {"mode": "raw_logprobs", "max": 20}
    assert json.dumps(about)
