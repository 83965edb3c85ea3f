"""The Dockerfile, without building it; tests/container builds and runs it."""

import subprocess
import sys
from pathlib import Path

from em_inf.server.cli import VLLM_VERSIONS

ROOT = Path(__file__).parent.parent.parent


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_base_image_has_the_locked_vllm() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lock = (ROOT / "deploy" / "locks" / "cuda.txt").read_text()
    version = text.partition("ARG GPU_BASE=vllm/vllm-openai:v")[2].split("\n")[0]
    assert f"\nvllm=={version}\n" in lock
    assert f'base.name="vllm/vllm-openai:v{version}"' in text
    assert tuple(int(part) for part in version.split(".")[:2]) in VLLM_VERSIONS


def test_both_targets_run_alike() -> None:
    """They have no common base to write these into."""
    text = (ROOT / "Dockerfile").read_text()
    cpu, _, gpu = text.partition("AS cpu\n")[2].partition("FROM ${GPU_BASE}")
    for line in (
        "VOLUME",
        "WORKDIR",
        "USER 10001",
        "EXPOSE",
        "ENTRYPOINT",
        "HEALTHCHECK",
    ):
        start = cpu.index(f"\n{line}")
        assert cpu[start : cpu.index("\n", start + 1)] in gpu
    # Asks no token of the model: a server that is busy must not be killed for being slow.
    assert text.count('CMD ["em-inf-health", "--ready"]') == 2
    caches = [line for line in cpu.splitlines() if "=/cache" in line]
    assert len(caches) > 4
    assert all(line.rstrip(" \\") in gpu for line in caches)
