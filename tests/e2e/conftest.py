"""Real servers on the bundled model, started once for all end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving import Server

PRESETS = '{"mild": {"n_grad_steps": 1, "threshold": 0.5}}'


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """`em-inf serve` with no flags but the port."""
    with Server.start() as running:
        yield running


@pytest.fixture(scope="session")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose operator used every flag of ours, with two API servers and a key."""
    presets: Path = tmp_path_factory.mktemp("presets") / "presets.json"
    presets.write_text(PRESETS)
    flags = ["--em-inf-default", "mild", "--em-inf-presets", str(presets)]
    flags += ["--em-inf-max-grad-steps", "20", "--api-server-count", "2"]
    with Server.start(*flags, "--api-key", "secret", key="secret") as running:
        yield running


@pytest.fixture(scope="session")
def stock() -> Iterator[Server]:
    """Stock vLLM on the same model, without anything of ours."""
    with Server.start_stock() as running:
        yield running
