"""Servers to measure, each a process of its own here, and what they use while idle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

EM_INF = (sys.executable, "-m", "server", "serve")
STOCK = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
"""What `vllm serve` runs; that command itself does not start from the CPU build."""

START_SECONDS = 400.0
FLAGS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024",
    "--max-num-seqs", "64", "--no-enable-prefix-caching", "--generation-config", "vllm",
    "--no-enable-chunked-prefill",
)  # fmt: skip
"""Of every server measured. No prefix caching: a prompt costs the same in every round. No
chunked prefill: vLLM 0.32's CPU build dies of a seeded request whose prompt is split."""

ENVIRON = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class ServerFailedError(Exception):
    """A server did not start; the text holds the end of its log."""


@dataclass(frozen=True)
class Serving:
    """A running server.

    Attributes:
        url: without a path.
        process: the process that was started, an ancestor of all of the server's.
        log: what it prints, while it runs.
    """

    url: str
    process: psutil.Process
    log: Path | None = None

    def cpu_seconds(self) -> float:
        """Processor time that all its processes used so far."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stand_still(self) -> None:
        """Stop all its processes until `go_on`, so that they take nothing of a core."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let all its processes run."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def answers(self, path: str) -> int:
        """The status of a GET."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(self.url + path, timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def counted(self, *names: str) -> dict[str, float]:
        """What its metrics of these names say, summed over their labels."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        totals = dict.fromkeys(names, 0.0)
        for line in lines:
            labelled, _, value = line.rpartition(" ")
            name = labelled.partition("{")[0]
            if name in totals:
                totals[name] += float(value)
        return totals


ERRORS = ("em_inf_fetch_errors_total", "em_inf_processor_errors_total")
"""Metrics of our server that stay 0 where all goes well."""


@contextlib.contextmanager
def serving(
    command: Sequence[str], model: Path | None, name: str, *more: str
) -> Iterator[Serving]:
    """Run a server with `FLAGS`, and stop it in the end.

    Args:
        command: `EM_INF` or `STOCK`.
        model: folder of the model; None for the bundled one, as our server runs it when
            it is not told any.
        name: of the model, in requests; the bundled one keeps its own.
        more: further flags.

    Raises:
        ServerFailedError: it stopped, or did not answer within `START_SECONDS`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    which = [str(model), "--served-model-name", name] if model else []
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(  # noqa: S603
            [*command, *which, *where, *FLAGS, *more],
            env={**os.environ, **ENVIRON},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        found = Serving(
            f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(log.name)
        )
        try:
            if not _comes_up(process, found):
                end = Path(log.name).read_text()[-4000:]
                raise ServerFailedError(f"the server did not start:\n{end}")
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                found.go_on()
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                os.killpg(process.pid, signal.SIGKILL)


def _comes_up(process: subprocess.Popen[bytes], server: Serving) -> bool:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            if server.answers("/health") == 200:
                return True
        time.sleep(0.5)
    return False


def leave_no_server_behind() -> None:
    """Have SIGTERM unwind this process as Ctrl-C does, so that `serving` cleans up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))


def idle_cpu_shares(servers: Sequence[Serving], seconds: float) -> list[float]:
    """How much of one core each server takes while nobody asks.

    Args:
        servers: running, and not stopped.
        seconds: to watch them all.
    """
    before = [server.cpu_seconds() for server in servers]
    time.sleep(seconds)
    return [
        round((server.cpu_seconds() - first) / seconds, 4)
        for server, first in zip(servers, before, strict=True)
    ]
