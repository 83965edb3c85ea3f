"""What every test relies on: fixed seeds, and no help from uninitialised memory.

And real servers on the bundled model, started once for all tests over HTTP. What those
need is imported where they start: the kernels' tests run without it (deploy/gpu-check).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from tests.e2e.receiver import Receiver
    from tests.e2e.serving import Server

PRESETS = '{"mild": {"n_grad_steps": 1, "threshold": 0.5}}'

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which nobody has done so far.
    os.environ["TRITON_INTERPRET"] = "1"

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill `torch.empty` with NaN, so that reading it before writing shows."""
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """`em-inf serve` without flags, but for a context in which an answer never ends."""
    from tests.e2e.serving import LONG_CONTEXT, Server

    with Server.start(*LONG_CONTEXT) as running:
        yield running


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Where the traces of `operated` go."""
    from tests.e2e.receiver import Receiver

    with Receiver.listen() as listening:
        yield listening


@pytest.fixture(scope="session")
def operated(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Server]:
    """Every flag of ours in use, two API servers, a key, and traces."""
    from tests.e2e.serving import Server

    presets: Path = tmp_path_factory.mktemp("presets") / "presets.json"
    presets.write_text(PRESETS)
    flags = ["--em-inf-default", "mild", "--em-inf-presets", str(presets)]
    flags += ["--em-inf-max-grad-steps", "20", "--api-server-count", "2"]
    flags += ["--otlp-traces-endpoint", receiver.endpoint]
    with Server.start(*flags, "--api-key", "secret", key="secret") as running:
        yield running


@pytest.fixture(scope="session")
def stock() -> Iterator[Server]:
    """Stock vLLM on the same model as `server`, without anything of ours."""
    from tests.e2e.serving import LONG_CONTEXT, Server

    with Server.start_stock(*LONG_CONTEXT, "--no-enable-chunked-prefill") as running:
        yield running
