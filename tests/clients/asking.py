"""What the clients' tests ask, and how they look at the server afterwards."""

import time
from typing import Any

import openai

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import ENDLESS, QUESTION, Server

CHAT: dict[str, Any] = {
    "model": DEMO_MODEL_NAME,
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 1.0,
    "seed": 1,
}
COMPLETION: dict[str, Any] = {
    "model": DEMO_MODEL_NAME,
    "prompt": QUESTION,
    "max_tokens": 60,
    "temperature": 1.0,
    "seed": 1,
}
RESPONSE: dict[str, Any] = {"model": DEMO_MODEL_NAME, "input": QUESTION}
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": ENDLESS}
"""Extra fields with which an answer goes on until it is stopped."""


def async_client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's samples whose labels are as given; 0 where there is none."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        value
        for sample, value in server.metrics().items()
        if sample.split("{")[0] == name and all(pair in sample for pair in wanted)
    )


def assert_stopped_early(server: Server, generated_before: float) -> None:
    """Wait until nothing runs, and hold that an endless answer was cut short."""
    until = time.monotonic() + 120
    while metric(server, "vllm:num_requests_running") > 0:
        assert time.monotonic() < until, "the server still samples"
        time.sleep(0.1)
    assert 0 < generated(server) - generated_before < ENDLESS


def generated(server: Server) -> float:
    """Tokens that the server sampled so far."""
    return metric(server, "vllm:generation_tokens_total")
