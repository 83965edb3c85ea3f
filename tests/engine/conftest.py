"""Starts both of vLLM's runners, once each, on the scenarios of `scenarios.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL

RUNNERS = ("V1", "V2")
MODEL = Path(os.environ.get("EM_INF_TEST_MODEL", DEMO_MODEL))
HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
START_TO_END_SECONDS = 800


def environment_of(runner: str) -> dict[str, str]:
    """The environment in which vLLM picks this runner, in process and on one thread."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "TRITON_", "EM_INF_"))
    }
    path = [os.environ.get("PYTHONPATH"), str(REPOSITORY)]
    chosen = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    if runner == "V2":
        path.append(str(HERE / "triton_cpu_backend"))
        chosen |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
    chosen["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return inherited | chosen


class Running:
    """A process that runs every scenario in one runner."""

    def __init__(self, runner: str, folder: Path) -> None:
        self._runner = runner
        self._output = folder / f"{runner}.json"
        self._log = folder / f"{runner}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, HERE / "scenarios.py", MODEL, self._output],
                env=environment_of(runner),
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def results(self) -> dict[str, Any]:
        """What the process wrote down, once it has ended."""
        code = self._process.wait(timeout=START_TO_END_SECONDS)
        if code != 0:
            end = self._log.read_text(errors="replace")[-6000:]
            pytest.fail(f"the scenarios in {self._runner} ended with {code}:\n{end}")
        results: dict[str, Any] = json.loads(self._output.read_text())
        return results

    def stop(self) -> None:
        """End the process if nobody waited for it."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """Both processes, side by side."""
    folder = tmp_path_factory.mktemp("engine")
    processes = {runner: Running(runner, folder) for runner in RUNNERS}
    yield processes
    for process in processes.values():
        process.stop()


@pytest.fixture(scope="session")
def v1(running: dict[str, Running]) -> dict[str, Any]:
    """The scenarios' results under vLLM's V1 runner."""
    return running["V1"].results()


@pytest.fixture(scope="session")
def v2(running: dict[str, Running]) -> dict[str, Any]:
    """The scenarios' results under vLLM's V2 runner."""
    return running["V2"].results()


@pytest.fixture(scope="session", params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> str:
    """Each runner in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def results(runner: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The scenarios' results under each runner in turn."""
    of_runner: dict[str, Any] = request.getfixturevalue(runner.lower())
    return of_runner
