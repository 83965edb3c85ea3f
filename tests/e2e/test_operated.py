"""A server with a default, presets, a limit, a key, and two API servers."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import QUESTION, Server

MESSAGES = [{"role": "user", "content": QUESTION}]


def total(metrics: dict[str, float], name: str) -> float:
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


def test_request_without_the_field_gets_the_operators_default(operated: Server) -> None:
    report = operated.chat().json["em_inf"]
    assert report["settings"]["n_grad_steps"] == 1
    assert report["settings"]["threshold"] == 0.5


def test_request_can_turn_the_default_off(operated: Server) -> None:
    assert "em_inf" not in operated.chat(False).json
    assert "em_inf" not in operated.chat({"enabled": False}).json


def test_operators_limit_holds(operated: Server) -> None:
    refused = operated.chat({"n_grad_steps": 21})
    assert refused.status == 400
    assert "at most 20" in refused.json["error"]["message"]
    assert operated.chat({"n_grad_steps": 20}).status == 200


def test_server_describes_the_operators_settings(operated: Server) -> None:
    about = operated.get("/v1/em_inf").json
    assert about["enabled_by_default"] is True
    assert about["presets"]["mild"]["n_grad_steps"] == 1
    assert about["fields"]["n_grad_steps"]["maximum"] == 20


def test_wrong_key_is_kept_out_of_our_route_too(operated: Server) -> None:
    assert operated.get("/v1/em_inf", key="wrong").status == 401


def test_beam_search_under_a_default_is_refused_with_the_way_out(
    operated: Server,
) -> None:
    refused = operated.chat(None, use_beam_search=True, n=2)
    assert refused.status == 400
    assert "em_inf: false" in refused.json["error"]["message"]


def test_beam_search_without_em_inf_runs_without_it(operated: Server) -> None:
    def requests_with_em_inf() -> float:
        found = operated.metrics().items()
        return sum(n for name, n in found if name.startswith("em_inf_requests_total"))

    before = requests_with_em_inf()
    answer = operated.chat(False, use_beam_search=True, n=2, max_tokens=8)
    assert answer.status == 200
    assert len(answer.json["choices"]) == 2
    assert requests_with_em_inf() == before


def test_settings_within_sampling_parameters_are_refused(operated: Server) -> None:
    nested = {"extra_args": {"em_inf": "off"}, "max_tokens": 4}
    body = {"token_ids": [5, 6], "sampling_params": nested}
    refused = operated.post("/inference/v1/generate", body)
    assert refused.status == 400
    assert refused.json["error"]["param"] == "sampling_params.extra_args.em_inf"


def test_other_routes_take_the_default_and_are_counted(operated: Server) -> None:
    before = operated.metrics()
    chat: dict[str, Any] = {"model": DEMO_MODEL_NAME, "max_tokens": 20, "temperature": 0}
    batch = {**chat, "messages": [MESSAGES, MESSAGES]}
    single = {**chat, "messages": MESSAGES}
    answers = [
        operated.post("/v1/messages", single),
        operated.post("/v1/chat/completions/batch", batch),
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert all("em_inf" not in answer.json for answer in answers)
    after = operated.metrics()
    name = 'em_inf_requests_total{method="gradient",preset="mild"}'
    assert after[name] == before.get(name, 0) + 3
    counted = total(after, "em_inf_tokens_total") - total(before, "em_inf_tokens_total")
    assert counted == 60


def test_metrics_add_up_over_both_api_servers(operated: Server) -> None:
    before = operated.metrics()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda i: operated.chat("strong", temperature=1.0, seed=i).json, range(24)
            )
        )
    after = operated.metrics()
    choices = [answer["em_inf"]["choices"][0] for answer in answers]
    sums = {
        "em_inf_requests_total": 24,
        "em_inf_tokens_total": sum(c["tokens"] for c in choices),
        "em_inf_tokens_minimized_total": sum(c["tokens_minimized"] for c in choices),
        "em_inf_grad_steps_total": sum(c["grad_steps"] for c in choices),
        "em_inf_entropy_before_nats_count": sum(c["tokens"] for c in choices),
        "em_inf_entropy_after_nats_count": sum(c["tokens"] for c in choices),
        "em_inf_fetch_seconds_count": 24,
    }
    for name, expected in sums.items():
        assert total(after, name) - total(before, name) == expected, name
    assert total(after, "em_inf_processor_errors_total") == 0
    assert total(after, "em_inf_info") == 1
    # vLLM gives each API server its connections; both must have had some.
    log = operated.log.read_text()
    assert "ApiServer_0" in log
    assert "ApiServer_1" in log


def test_no_metric_has_a_label_of_unbounded_range(operated: Server) -> None:
    allowed = {
        "method", "preset", "field", "kind", "le", "version", "vllm_version", "runner",
        "backend", "device",
    }  # fmt: skip
    for sample in operated.metrics():
        if sample.startswith("em_inf_") and "{" in sample:
            labels = sample[sample.index("{") + 1 : -1]
            assert {part.split("=")[0] for part in labels.split(",")} <= allowed
