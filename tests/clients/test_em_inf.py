"""Settings on their way into a request."""

import json
import subprocess
import sys
from typing import Any

import openai
import pytest

from em_inf import EMInf, SettingsError


def test_is_the_body_that_the_server_reads() -> None:
    asked = EMInf(preset="strong", threshold=0.5, report="trace")
    wanted = {"em_inf": {"preset": "strong", "threshold": 0.5, "report": "trace"}}
    assert json.loads(json.dumps(dict(asked))) == wanted
    assert {**EMInf(), "top_k": 20} == {"em_inf": {}, "top_k": 20}
    assert dict(EMInf(enabled=False)) == {"em_inf": {"enabled": False}}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"n_grad_steps": -1}, "n_grad_steps"),
        ({"n_grad_steps": 5.0}, "n_grad_steps"),
        ({"n_grad_steps": 1001}, "n_grad_steps"),
        ({"n_grad_steps": True}, "n_grad_steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": "0.3"}, "threshold"),
        ({"kl_weight": 100.5}, "kl_weight"),
        ({"target_ratio": 1.5}, "target_ratio"),
        ({"method": "newton"}, "method"),
        ({"method": "gradient", "target_ratio": 0.5}, "target_ratio"),
        ({"method": "adaptive_temperature", "n_grad_steps": 5}, "n_grad_steps"),
        ({"preset": 3}, "preset"),
        ({"report": "all"}, "report"),
        ({"enabled": 1}, "enabled"),
    ],
)
def test_what_no_server_accepts_is_refused_before_the_request(
    given: dict[str, Any], field: str
) -> None:
    with pytest.raises(SettingsError, match="allowed") as caught:
        EMInf(**given)
    assert caught.value.field == f"em_inf.{field}"


def test_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="n_gradsteps"):
        EMInf(n_gradsteps=5)  # type: ignore[call-arg]


def test_what_depends_on_the_server_is_left_to_it() -> None:
    EMInf(preset="adaptive", target_ratio=0.4)
    EMInf(target_ratio=0.4)  # Right where the server's default method is the adaptive.
    EMInf(preset="of-the-operator", n_grad_steps=200)


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(AttributeError):
        EMInf().n_grad_steps = 3  # type: ignore[misc]


def test_client_loads_neither_torch_nor_vllm_nor_the_server() -> None:
    code = (
        "import sys, clients, em_inf.clients.streams, em_inf.clients.settings;"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'vllm', 'server', 'numba')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_sdk_sends_it_as_it_is() -> None:
    sent: list[Any] = []

    class Stop(Exception):
        pass

    client = openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="x", max_retries=0)
    build = client._build_request

    def watched(options: Any, **kwargs: Any) -> Any:
        request = build(options, **kwargs)
        sent.append(json.loads(request.content))
        raise Stop

    client._build_request = watched  # type: ignore[method-assign]
    with pytest.raises(Stop):
        client.chat.completions.create(
            model="m", messages=[], extra_body=EMInf(n_grad_steps=3)
        )
    assert sent == [{"model": "m", "messages": [], "em_inf": {"n_grad_steps": 3}}]
