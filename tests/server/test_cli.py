"""The command line: what it puts in place, and what it refuses to start."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from em_inf.logits_processors.settings import SettingsError
from em_inf.server import cli


def arguments(**changed: Any) -> Namespace:
    usual = {
        "grpc": False,
        "runner": "auto",
        "worker_extension_cls": "",
        "speculative_config": None,
    }
    return Namespace(**{**usual, **changed})


def flags(*argv: str) -> Namespace:
    parser = ArgumentParser()
    cli.add_flags(parser)
    return parser.parse_args(argv)


def test_plain_start_is_allowed() -> None:
    cli.check_args(arguments(), {})


@pytest.mark.parametrize(
    ("changed", "environ", "reason"),
    [
        ({}, {"VLLM_USE_RUST_FRONTEND": "1"}, "VLLM_USE_RUST_FRONTEND"),
        ({"grpc": True}, {}, "--grpc"),
        ({"runner": "pooling"}, {}, "pooling"),
        ({"worker_extension_cls": "mine.Extension"}, {}, "mine.Extension"),
        (
            {"speculative_config": {"method": "ngram"}},
            {"VLLM_USE_V2_MODEL_RUNNER": "0"},
            "V1 model runner",
        ),
    ],
    ids=["rust", "grpc", "pooling", "worker extension", "speculation on V1"],
)
def test_start_that_could_not_work_is_refused_with_its_reason(
    changed: dict[str, Any], environ: dict[str, str], reason: str
) -> None:
    with pytest.raises(cli.RefusedStartError, match=reason):
        cli.check_args(arguments(**changed), environ)


def test_speculation_on_v2_is_allowed() -> None:
    speculating = arguments(speculative_config={"method": "ngram"})
    cli.check_args(speculating, {"VLLM_USE_V2_MODEL_RUNNER": "1"})


@pytest.mark.parametrize(
    ("installed", "reason"),
    [(None, "not installed"), ("0.31.2", "0.31.2"), ("0.34.0", "0.34.0"), ("1.0", "1.0")],
)
def test_vllm_that_nobody_tested_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, reason: str
) -> None:
    def version(_: str) -> str:
        if installed is None:
            raise cli.PackageNotFoundError
        return installed

    monkeypatch.setattr(cli, "version", version)
    with pytest.raises(cli.RefusedStartError, match=reason):
        cli.check_vllm()


@pytest.mark.parametrize("installed", ["0.32.0", "0.33.0", "0.33.1", "0.33.0+cpu"])
def test_vllm_of_a_tested_version_is_taken(
    monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    monkeypatch.setattr(cli, "version", lambda _: installed)
    cli.check_vllm()


def test_other_plugins_stay_allowed_beside_ours() -> None:
    assert cli.allowed_plugins({"VLLM_PLUGINS": "mine, yours"}) == [
        "mine",
        "yours",
        "em_inf",
    ]
    assert cli.allowed_plugins({"VLLM_PLUGINS": "em_inf"}) == ["em_inf"]
    everything = cli.allowed_plugins({})
    general = [e.name for e in entry_points(group="vllm.general_plugins")]
    assert general
    assert set(general) < set(everything)


def test_settings_are_read_from_flags_and_file(tmp_path: Path) -> None:
    presets = tmp_path / "presets.json"
    presets.write_text(json.dumps({"mild": {"n_grad_steps": 1}}))
    settings = cli.read_settings(
        flags(
            "--em-inf-default", "mild",
            "--em-inf-presets", str(presets),
            "--em-inf-max-grad-steps", "20",
        )
    )  # fmt: skip
    assert settings.enabled_by_default
    assert settings.default.n_grad_steps == 1
    assert settings.max_grad_steps == 20


def test_playground_is_served_unless_the_operator_says_otherwise() -> None:
    assert cli.read_settings(flags()).playground
    assert not cli.read_settings(flags("--em-inf-no-playground")).playground


def test_default_can_be_json_on_or_off() -> None:
    assert not cli.read_settings(flags()).enabled_by_default
    assert cli.read_settings(flags("--em-inf-default", "on")).enabled_by_default
    settings = cli.read_settings(flags("--em-inf-default", '{"n_grad_steps": 7}'))
    assert settings.default.n_grad_steps == 7
    asked = cli.read_settings(
        flags("--em-inf-default", '{"enabled": false, "n_grad_steps": 9}')
    )
    assert not asked.enabled_by_default
    assert asked.default.n_grad_steps == 9


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--em-inf-default", "nope"], "nope"),
        (["--em-inf-default", "{nope"], "not JSON"),
        (["--em-inf-default", '{"n_grad_steps": 65}'], "at most 64"),
        (["--em-inf-presets", "/nowhere.json"], "cannot be read"),
        (["--em-inf-max-grad-steps", "0"], "--em-inf-max-grad-steps"),
    ],
)
def test_wrong_flag_is_refused_by_name(argv: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        cli.read_settings(flags(*argv))


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "server", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        timeout=300,
    )


def test_help_shows_our_flags_beside_vllms() -> None:
    text = run("serve", "--help=all").stdout
    assert "--em-inf-default" in text
    assert "--max-num-seqs" in text


def test_refusal_is_one_sentence_and_no_traceback() -> None:
    refused = run("serve", "--em-inf-default", "nope")
    assert refused.returncode == 1
    assert "em-inf serve: --em-inf-default: 'nope' is no preset" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unknown_command_fails_with_the_usage() -> None:
    failed = run("bake")
    assert failed.returncode == 2
    assert "usage: em-inf serve" in failed.stderr


@pytest.mark.parametrize(
    ("changed", "cpu", "expected"),
    [
        ({}, True, cli.IN_PROCESS),
        ({}, False, None),
        ({"tensor_parallel_size": 2}, True, None),
        ({"pipeline_parallel_size": 2}, True, None),
        ({"data_parallel_size": 2}, True, None),
        ({"distributed_executor_backend": "mp"}, True, "mp"),
    ],
    ids=["CPU", "GPU", "tensor parallel", "pipeline", "data parallel", "asked for"],
)
def test_demo_model_runs_in_the_engine_s_process_where_one_worker_on_a_cpu_runs_it(
    changed: dict[str, Any],
    cpu: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "on_cpu", lambda: cpu)
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.setenv(name, "7")  # So that it is put back afterwards.
        monkeypatch.delenv(name)
    args = Namespace(
        served_model_name=None,
        dtype="auto",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        distributed_executor_backend=None,
    )
    vars(args).update(changed)
    cli.use_demo_model(args)
    assert args.distributed_executor_backend == expected
    assert os.environ.get("OMP_NUM_THREADS") == (
        "1" if expected == cli.IN_PROCESS else None
    )


def test_prompts_stay_whole_on_a_cpu_whatever_the_model() -> None:
    # Unset is also what vLLM's parser makes of `enable-chunked-prefill: false` in a file.
    for asked in (None, False):
        args = Namespace(enable_chunked_prefill=asked)
        cli.keep_prompts_whole(args)
        assert args.enable_chunked_prefill is False


def test_chunked_prefill_on_a_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(cli.RefusedStartError, match="dies, for everybody") as refused:
        cli.keep_prompts_whole(Namespace(enable_chunked_prefill=True))
    assert "--enable-chunked-prefill is set" in str(refused.value)
