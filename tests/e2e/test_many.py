"""Many requests at once, and clients that go away."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from em_inf.server.demo_model.problems import problems
from tests.e2e.serving import ENDLESS, Server

GRADIENT = [
    (0, 0.1, 0.3, 0.0), (1, 0.1, 0.3, 0.001), (2, 0.05, 0.2, 0.05), (3, 0.1, 0.3, 0.05),
    (4, 0.2, 0.1, 0.5), (5, 0.1, 0.3, 0.001), (6, 0.3, 0.05, 0.01), (7, 0.01, 0.5, 0.0),
    (8, 0.1, 0.0, 0.001), (9, 0.15, 0.4, 1.0), (10, 0.1, 0.01, 0.0), (11, 0.5, 0.3, 2.0),
    (12, 0.1, 0.6, 0.1), (13, 0.02, 0.02, 0.02), (14, 0.1, 1.0, 0.3), (15, 0.1, 0.3, 0.0),
    (20, 0.1, 0.3, 0.0), (25, 0.05, 0.1, 0.0), (30, 0.2, 0.2, 0.2), (64, 0.1, 0.1, 0.001),
]  # fmt: skip
METHODS: list[dict[str, Any]] = [
    {"n_grad_steps": n, "learning_rate": rate, "threshold": threshold, "kl_weight": kl}
    for n, rate, threshold, kl in GRADIENT
]
METHODS += [
    {"method": "adaptive_temperature", "target_ratio": ratio, "threshold": threshold}
    for ratio in (0.1, 0.3, 0.5, 0.8)
    for threshold in (0.0, 0.1, 0.4)
]


def ask(server: Server, i: int, em_inf: Any) -> Any:
    """The i-th held-out problem, greedily, so that the same words come every time."""
    stream = problems("held_out", 1000 + i)
    body = {
        "model": DEMO_MODEL_NAME,
        "messages": [{"role": "user", "content": next(stream).question}],
        "temperature": 0,
        "max_tokens": 60,
        "return_token_ids": True,
        "em_inf": em_inf,
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    return answer.json


def test_many_long_seeded_prompts_at_once_are_all_answered(server: Server) -> None:
    # Together far longer than what one step of the engine takes in.
    words = "Tom has 3 apples. " * 50

    def one(seed: int) -> int:
        body = {
            "model": DEMO_MODEL_NAME,
            "messages": [{"role": "user", "content": f"{words}{seed}"}],
            "max_tokens": 2,
            "seed": seed,
        }
        return server.post("/v1/chat/completions", body).status

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(one, range(24))) == {200}


def test_seeded_choices_are_the_same_alone_and_among_others_with_and_without_report(
    server: Server,
) -> None:
    def texts(i: int, report: str) -> list[str]:
        question = next(problems("held_out", 2000 + i)).question
        body = {
            "model": DEMO_MODEL_NAME,
            "messages": [{"role": "user", "content": question}],
            "temperature": 1.0,
            "seed": 40 + i,
            "n": 4,
            "max_tokens": 60,
            "em_inf": {"n_grad_steps": 5, "threshold": 0.2, "report": report},
        }
        answer = server.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.body
        return [choice["message"]["content"] for choice in answer.json["choices"]]

    alone = texts(0, "summary")
    assert len(set(alone)) > 1
    assert texts(0, "none") == alone
    for report in ("summary", "none"):
        with ThreadPoolExecutor(32) as pool:
            first, *_ = pool.map(texts, range(32), [report] * 32)
        assert first == alone


def test_32_requests_with_32_settings_do_not_mix(server: Server) -> None:
    settings = [{**fields, "report": "trace"} for fields in METHODS]
    assert len(settings) == 32
    alone = [ask(server, i, em_inf) for i, em_inf in enumerate(settings)]
    mixed: list[tuple[int, Any]] = list(enumerate(settings))
    # Requests without EM-INF in between must change nothing.
    plain: list[tuple[int, Any]] = [(i, False) for i in range(16)]
    with ThreadPoolExecutor(48) as pool:
        together = list(pool.map(lambda pair: ask(server, *pair), mixed + plain))
    for (_, asked), one, many in zip(mixed, alone, together, strict=False):
        report = many["em_inf"]
        assert (
            report["settings"].items()
            >= {k: v for k, v in asked.items() if k != "report"}.items()
        )
        assert many["choices"][0]["token_ids"] == one["choices"][0]["token_ids"]
        trace, expected = (r["em_inf"]["choices"][0]["trace"] for r in (many, one))
        for name, column in expected.items():
            if name == "grad_steps":
                assert trace[name] == column
            else:
                assert trace[name] == pytest.approx(column, abs=1e-3)
    assert all("em_inf" not in answer for answer in together[32:])


def test_client_that_goes_away_leaves_nothing_behind(server: Server) -> None:
    body = json.dumps(
        {
            "model": DEMO_MODEL_NAME,
            "messages": [{"role": "user", "content": "Tom has 5 apples."}],
            "em_inf": {"report": "trace"},
            "ignore_eos": True,
            "max_tokens": ENDLESS,
            "stream": True,
        }
    )
    for stream in (True, False):
        connections = []
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            sent = body if stream else body.replace('"stream": true', '"stream": false')
            connection.request(
                "POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"}
            )
            connections.append(connection)
        if stream:
            for connection in connections:
                assert connection.getresponse().read(200)
        else:
            wait_until(lambda: open_records(server) == 4)
        for connection in connections:
            assert connection.sock is None or connection.sock.close() is None
            connection.close()
        wait_until(lambda: open_records(server) == 0 and running(server) == 0)
    assert open_records(server) == 0


def test_idle_connection_stays_open(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.connect()
    before = connection.sock
    for _ in range(2):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b""
        time.sleep(7)  # vLLM's own limit is 5 s.
    assert connection.sock is before
    connection.close()


def open_records(server: Server) -> int:
    return int(server.workers("em_inf_status")[0]["open_records"])


def running(server: Server) -> float:
    name = 'vllm:num_requests_running{engine="0",model_name="%s"}'
    return server.metrics()[name % DEMO_MODEL_NAME]


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_finished_requests_leave_nothing_behind(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ask(server, i, {"report": "trace"}), range(8)))
    wait_until(lambda: open_records(server) == 0)
