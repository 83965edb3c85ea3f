"""How a request's settings travel to the worker, and what is refused on the way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_inf.logits_processors import extra_args as module
from em_inf.logits_processors.extra_args import (
    MAX_GRAD_STEPS_VARIABLE,
    check_extra_args,
    from_extra_args,
    to_extra_args,
)
from em_inf.logits_processors.settings import Settings, SettingsError

NAN = float("nan")

gradient_settings = st.builds(
    Settings,
    n_grad_steps=st.integers(0, 64),
    learning_rate=st.floats(1e-6, 1),
    threshold=st.floats(0, 1e300),
    kl_weight=st.floats(0, 100),
    report=st.sampled_from(["none", "summary", "trace"]),
)
adaptive_settings = st.builds(
    Settings,
    method=st.just("adaptive_temperature"),
    target_ratio=st.floats(1e-6, 1),
    threshold=st.floats(0, 1e300),
    report=st.sampled_from(["none", "summary", "trace"]),
)


@given(
    settings=gradient_settings | adaptive_settings,
    key=st.text(min_size=1, max_size=128),
)
def test_settings_and_key_survive_the_way_to_the_worker(
    settings: Settings, key: str
) -> None:
    sent = json.loads(json.dumps(to_extra_args(settings, key)))
    check_extra_args(sent)
    assert from_extra_args(sent) == (settings, key)


def test_as_many_steps_are_admitted_as_the_operator_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = to_extra_args(Settings(n_grad_steps=200), "key")
    with pytest.raises(SettingsError, match="at most 64"):
        check_extra_args(asked)
    monkeypatch.setenv(MAX_GRAD_STEPS_VARIABLE, "200")
    check_extra_args(asked)


@pytest.mark.parametrize("value", [None, True, "paper", 3, [], [("key", "k")]])
def test_foreign_extra_args_that_are_no_object_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="use the request field em_inf"):
        check_extra_args(value)


@pytest.mark.parametrize("key", [None, "", "x" * 129, 7, b"key", ["key"]])
def test_foreign_extra_args_without_a_proper_key_are_refused(key: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        check_extra_args({**to_extra_args(Settings(), "key"), "key": key})
    assert caught.value.field == "extra_args.em_inf.key"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n_grad_steps": 65}, "n_grad_steps"),
        ({"n_grad_steps": "5"}, "n_grad_steps"),
        ({"learning_rate": NAN}, "learning_rate"),
        ({"threshold": True}, "threshold"),
        ({"target_ratio": 0.5}, "target_ratio"),
        ({"preset": "paper"}, "preset"),
        ({"enabled": True}, "enabled"),
        ({"lr": 0.1}, "lr"),
        ({7: 0.1}, "7"),
    ],
)
def test_foreign_extra_args_with_a_wrong_field_are_refused(
    fields: dict[Any, Any], field: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check_extra_args({**to_extra_args(Settings(), "key"), **fields})
    assert caught.value.field == f"extra_args.em_inf.{field}"


def test_refused_extra_args_are_not_changed() -> None:
    value = {**to_extra_args(Settings(), "key"), "lr": 1}
    before = dict(value)
    with pytest.raises(SettingsError):
        check_extra_args(value)
    assert value == before


@pytest.mark.parametrize("name", ["torch", "vllm", "numpy"])
def test_reading_settings_does_not_load(name: str) -> None:
    script = f"import sys, {module.__name__}; sys.exit({name!r} in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(module.__file__).parents[1], check=False)
    assert done.returncode == 0
