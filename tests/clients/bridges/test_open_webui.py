"""The Open WebUI filter: what it makes of a body is what the server reads."""

from typing import Any

import pytest

from em_inf.clients.bridges.open_webui import Filter
from tests.e2e.serving import QUESTION, Server

BODY: dict[str, Any] = {
    "model": "em-inf-demo",
    "messages": [{"role": "user", "content": QUESTION}],
    "seed": 1,
}


def user(**valves: Any) -> dict[str, Any]:
    return {"id": "1", "valves": Filter.UserValves(**valves)}


@pytest.mark.parametrize(
    ("valves", "sent"),
    [
        ({}, {"enabled": True, "preset": "balanced"}),
        (
            {"preset": "", "method": "gradient", "n_grad_steps": 9},
            {"enabled": True, "method": "gradient", "n_grad_steps": 9},
        ),
        ({"enabled": False}, False),
    ],
)
def test_users_settings_go_into_the_body_and_the_server_takes_them(
    server: Server, valves: dict[str, Any], sent: Any
) -> None:
    body = Filter().inlet(BODY, user(**valves))
    assert body == {**BODY, "em_inf": sent}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200
    assert ("em_inf" in answer.json) == bool(sent)


def test_models_that_are_not_named_are_left_alone() -> None:
    chosen = Filter()
    chosen.valves.models = "other, em-inf-demo"
    assert "em_inf" in chosen.inlet(BODY)
    chosen.valves.models = "other"
    assert chosen.inlet(BODY) == BODY
