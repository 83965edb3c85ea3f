"""Many workers, engines, API servers and machines: every figure once, and the right one.

Real processes on the bundled model, one topology at a time. They want both cores for
minutes, so `make topologies` runs them, and `make test` does not. deploy/topologies.md
says of each what it is for.
"""

import contextlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from em_inf.server.demo_model.problems import problems
from tests.e2e.serving import Answer, Server

pytestmark = pytest.mark.topologies

NUM_REQUESTS = 48
COUNTED = (
    "em_inf_requests_total", "em_inf_tokens_total", "em_inf_tokens_minimized_total",
    "em_inf_grad_steps_total", "em_inf_entropy_before_nats_count",
    "em_inf_entropy_after_nats_count", "em_inf_fetch_seconds_count",
)  # fmt: skip
NEVER = ("em_inf_fetch_errors_total", "em_inf_processor_errors_total")
HERE = Path(__file__).parent


def threshold(i: int) -> float:
    """In nats, unlike every other request's."""
    return round(0.2 + i / 1000, 3)


def body(i: int, **fields: Any) -> dict[str, Any]:
    """The i-th request: a problem, a seed and a threshold of its own."""
    return {
        "model": DEMO_MODEL_NAME,
        "messages": [
            {"role": "user", "content": next(problems("held_out", 500 + i)).question}
        ],
        "max_tokens": 60,
        "seed": i,
        "em_inf": {"n_grad_steps": 15, "threshold": threshold(i)},
        **fields,
    }


def report_of(i: int, answer: Answer) -> tuple[dict[str, Any], int]:
    """The report of the i-th answer, streamed if i is odd, and its tokens by `usage`."""
    assert answer.status == 200, answer.body
    if i % 2 == 0:
        return answer.json["em_inf"], answer.json["usage"]["completion_tokens"]
    assert b"data: [DONE]" in answer.body
    *_, last = answer.events
    return last["em_inf"], last["usage"]["completion_tokens"]


def ask(entry: Server, i: int) -> Answer:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return entry.post("/v1/chat/completions", body(i, **(usage if i % 2 else {})))


def counted(servers: list[Server]) -> Counter[str]:
    """Our counters' values, over labels and servers."""
    totals: Counter[str] = Counter()
    for server in servers:
        for sample, value in server.metrics().items():
            totals[sample.partition("{")[0]] += int(value) if "em_inf" in sample else 0
    return totals


def check_figures(entry: Server, replicas: list[Server]) -> list[dict[str, Any]]:
    """Ask many at once: reports fit their requests, and metrics their sum.

    Args:
        entry: where the requests go.
        replicas: whose /metrics must add up to them.
    """
    before = counted(replicas)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: ask(entry, i), range(NUM_REQUESTS)))
    reports = []
    for i, answer in enumerate(answers):
        report, tokens = report_of(i, answer)
        assert report["settings"]["threshold"] == threshold(i)
        (choice,) = report["choices"]
        assert choice["tokens"] == tokens
        assert "tokens_not_recorded" not in choice
        assert "error" not in choice
        reports.append(choice)
    tokens, minimized, steps = (
        sum(choice[name] for choice in reports)
        for name in ("tokens", "tokens_minimized", "grad_steps")
    )
    assert minimized > 0
    expected = [NUM_REQUESTS, tokens, minimized, steps, tokens, tokens, NUM_REQUESTS]
    # Every scrape may land on another API server, and must show the sum over all.
    for _ in range(8):
        after = counted(replicas)
        found = [after[name] - before[name] for name in COUNTED]
        assert found == expected
        assert [after[name] for name in NEVER] == [0, 0]
        assert after["em_inf_info"] == len(replicas)
    print(
        f"{NUM_REQUESTS} requests, {tokens} tokens, {minimized} minimized, {steps} steps"
    )
    return reports


def check_pass_through(entry: Server) -> None:
    """What is beside the answers comes through too."""
    refused = entry.post("/v1/chat/completions", body(0, em_inf={"n_grad_steps": -1}))
    assert refused.status == 400
    assert "em_inf.n_grad_steps" in refused.json["error"]["message"]
    assert entry.get("/v1/em_inf").json["backend"] == "cpu"
    choices = entry.post("/v1/chat/completions", body(0, n=2)).json["em_inf"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]


@pytest.fixture
def one_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM's CPU build bind its first worker to one core, its second to another."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")


def test_ranks_of_tensor_parallel_count_once(one_core_each: None) -> None:
    with Server.start("--tensor-parallel-size", "2") as server:
        reports = check_figures(server, [server])
        check_pass_through(server)
        statuses = server.workers("em_inf_status")
        assert [status["open_records"] for status in statuses] == [0, 0]
    with Server.start() as alone:
        assert [again["tokens"] for again in check_figures(alone, [alone])] == [
            choice["tokens"] for choice in reports
        ]


def test_engines_of_data_parallel_add_up_over_two_api_servers(
    one_core_each: None,
) -> None:
    with Server.start("--data-parallel-size", "2") as server:
        check_figures(server, [server])
        check_pass_through(server)
        name = 'vllm:generation_tokens_total{engine="%d",model_name="em-inf-demo"}'
        metrics = server.metrics()
        assert all(metrics[name % engine] > 0 for engine in (0, 1))
        log = server.log.read_text()
        assert "ApiServer_0" in log
        assert "ApiServer_1" in log


def test_api_servers_of_one_engine_add_up() -> None:
    with Server.start("--api-server-count", "2") as server:
        check_figures(server, [server])
        check_pass_through(server)


def test_replicas_behind_vllm_router_answer_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = Path(sys.executable).with_name("vllm-router")
    if not router.exists():
        pytest.skip("vllm-router is not installed; run make topologies")
    with contextlib.ExitStack() as stack:
        replicas = []
        for core in "01":
            # By itself each would bind its worker to the first core.
            monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", core)
            replicas.append(stack.enter_context(Server.start()))
        one, two = replicas
        command = [str(router), "--policy", "round_robin"]
        command += ["--worker-urls", one.url, two.url]
        with Server.start_command(command) as entry:
            check_figures(entry, [one, two])
            check_pass_through(entry)
            assert all(counted([server])["em_inf_tokens_total"] for server in (one, two))


def test_replicas_on_two_ray_nodes_answer_as_one() -> None:
    pytest.importorskip("ray", reason="ray is not installed; run make topologies")
    command = [sys.executable, str(HERE / "two_nodes.py")]
    with Server.start_command(command) as entry:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda i: ask(entry, i), range(NUM_REQUESTS)))
        nodes = Counter(answer.headers["X-Ray-Node"] for answer in answers)
        assert len(nodes) == 2
        for i, answer in enumerate(answers):
            report, tokens = report_of(i, answer)
            assert report["settings"]["threshold"] == threshold(i)
            assert report["choices"][0]["tokens"] == tokens
        check_pass_through(entry)
        print(f"answers by node: {sorted(nodes.values())}")
