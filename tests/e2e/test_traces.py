"""What a collector of OpenTelemetry traces is told of a request with EM-INF."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.receiver import Receiver, attributes
from tests.e2e.serving import QUESTION, Server


def ask(
    server: Server,
    em_inf: Any,
    sampled: bool = True,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> Any:
    """Ask as a client that traces; its trace's id, its span's id, and the answer."""
    trace, span = secrets.token_bytes(16), secrets.token_bytes(8)
    body = {
        "model": DEMO_MODEL_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 30,
        "em_inf": em_inf,
        **fields,
    }
    header = f"00-{trace.hex()}-{span.hex()}-0{int(sampled)}"
    headers = {**(headers or {}), "traceparent": header}
    answer = server.post("/v1/chat/completions", body, headers)
    assert answer.status == 200, answer.body
    return trace, span, answer


def test_figures_of_the_answer_stand_on_a_span_of_the_clients_trace(
    operated: Server, receiver: Receiver
) -> None:
    trace, client_span, answer = ask(operated, {"n_grad_steps": 15}, seed=3)
    (theirs,) = receiver.of_trace(trace, "llm_request")
    (ours,) = receiver.of_trace(trace, "em_inf")
    assert ours.parent_span_id == client_span
    assert theirs.parent_span_id == ours.span_id
    assert ours.start_time_unix_nano <= ours.end_time_unix_nano
    found = attributes(ours)
    assert found.pop("gen_ai.request.id") == attributes(theirs)["gen_ai.request.id"]
    report = answer.json["em_inf"]
    choice = {k: v for k, v in report["choices"][0].items() if k != "index"}
    assert choice["tokens_minimized"] > 0
    assert found == {
        **{f"em_inf.{name}": value for name, value in report["settings"].items()},
        **{f"em_inf.{name}": value for name, value in choice.items()},
        "em_inf.preset": "custom",
        "em_inf.choices": 1,
    }


def test_streamed_answer_of_the_other_method_has_its_temperature_on_the_span(
    operated: Server, receiver: Receiver
) -> None:
    trace, _, answer = ask(operated, "adaptive", stream=True, seed=3)
    (ours,) = receiver.of_trace(trace, "em_inf")
    choice = answer.events[-1]["em_inf"]["choices"][0]
    found = attributes(ours)
    assert found["em_inf.mean_temperature"] == choice["mean_temperature"] < 1
    assert found["em_inf.preset"] == "adaptive"
    assert "em_inf.grad_steps" not in found


def test_choices_of_a_request_share_a_span_above_each_of_theirs(
    operated: Server, receiver: Receiver
) -> None:
    trace, _, answer = ask(operated, {"n_grad_steps": 15}, n=3)
    theirs = receiver.of_trace(trace, "llm_request", 3)
    (ours,) = receiver.of_trace(trace, "em_inf")
    assert {span.parent_span_id for span in theirs} == {ours.span_id}
    choices = answer.json["em_inf"]["choices"]
    found = attributes(ours)
    for name in ("tokens", "tokens_minimized", "grad_steps"):
        assert found[f"em_inf.{name}"] == sum(choice[name] for choice in choices)
    mean = sum(c["tokens"] * c["mean_entropy_before"] for c in choices)
    assert found["em_inf.mean_entropy_before"] == pytest.approx(
        mean / found["em_inf.tokens"], abs=1e-6
    )


def test_two_requests_of_one_id_have_each_their_own_figures_in_their_own_trace(
    operated: Server, receiver: Receiver
) -> None:
    def twin(n_grad_steps: int) -> Any:
        em_inf = {"n_grad_steps": n_grad_steps, "threshold": 0}
        headers = {"X-Request-Id": "twin"}
        return n_grad_steps, *ask(operated, em_inf, headers=headers, seed=3)

    with ThreadPoolExecutor() as pool:
        for n_grad_steps, trace, _, answer in pool.map(twin, range(1, 9)):
            (ours,) = receiver.of_trace(trace, "em_inf")
            found = attributes(ours)
            assert found["em_inf.n_grad_steps"] == n_grad_steps
            (choice,) = answer.json["em_inf"]["choices"]
            assert found["em_inf.grad_steps"] == choice["grad_steps"]


def test_requests_off_or_not_sampled_have_no_span_of_ours(
    operated: Server, receiver: Receiver
) -> None:
    off, _, _ = ask(operated, False)
    unsampled, _, _ = ask(operated, True, sampled=False)
    assert receiver.of_trace(off, "llm_request")
    # Each API server sends its spans in the order in which they ended: once later
    # requests' are here, from both, nothing of the earlier ones can still come.
    for later, _, _ in [ask(operated, True) for _ in range(8)]:
        assert receiver.of_trace(later, "em_inf")
    names = {(span.trace_id, span.name) for span in receiver.spans}
    assert (off, "em_inf") not in names
    assert not any(trace == unsampled for trace, _ in names)
