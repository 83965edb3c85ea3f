"""A server process under test, and plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from em_inf.server.cli import DEMO_MODEL, DEMO_MODEL_NAME

QUESTION = (
    "Tom has 34 apples. He buys 3 boxes of 12 apples. He gives away 15. "
    "How many apples does Tom have now?"
)
START_SECONDS = 600
CONTEXT = 16_384
LONG_CONTEXT = ("--hf-overrides", f'{{"max_position_embeddings": {CONTEXT}}}')
ENDLESS = 16_000
"""Output tokens that take longer than any test needs to stop them, also where it shares
the machine with other tests: an answer that is to be stopped asks for so many."""


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    body: bytes
    headers: Message = field(default_factory=Message)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of a server-sent event stream, [DONE] left out."""
        found = re.findall(r"^data: (\{.*)$", self.body.decode(), re.MULTILINE)
        return [json.loads(data) for data in found]


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    key: str | None = None

    @classmethod
    @contextlib.contextmanager
    def start(cls, *flags: str, key: str | None = None) -> Iterator[Server]:
        """Run `em-inf serve` with the given flags."""
        with cls._run([sys.executable, "-m", "server", "serve", *flags], key) as running:
            yield running

    @classmethod
    @contextlib.contextmanager
    def start_command(cls, command: list[str]) -> Iterator[Server]:
        """Run what takes `--host` and `--port`, and answers /health when it is ready."""
        with cls._run(command, None) as running:
            yield running

    @classmethod
    @contextlib.contextmanager
    def start_stock(cls, *flags: str) -> Iterator[Server]:
        """Run vLLM's own entry point on the bundled model."""
        command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
        command += ["--model", str(DEMO_MODEL), "--served-model-name", DEMO_MODEL_NAME]
        with cls._run(
            [*command, "--dtype", "float32", "--enforce-eager", *flags], None
        ) as running:
            yield running

    @classmethod
    @contextlib.contextmanager
    def _run(cls, command: list[str], key: str | None) -> Iterator[Server]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
        environ = {
            **inherited,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # POST /collective_rpc, to look inside.
            "VLLM_NO_USAGE_STATS": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # Milliseconds that a span may wait.
        }
        with tempfile.NamedTemporaryFile(suffix=".log") as log:
            process = subprocess.Popen(
                [*command, "--port", str(port), "--host", "127.0.0.1"],
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running = cls(port, process, Path(log.name), key)
            try:
                running._wait()
                yield running
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if self.get("/health").status == 200:
                    return
            time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, key: str | None = None) -> Answer:
        return self._request("GET", path, None, key)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Send a body: bytes as they are, anything else as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._request("POST", path, raw, None, headers)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        key: str | None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key or self.key:
            sent["Authorization"] = f"Bearer {key or self.key}"
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), response.headers)

    def chat(self, em_inf: Any = None, **fields: Any) -> Answer:
        """Ask the arithmetic question; `em_inf` is sent unless it is None."""
        body = {
            "model": DEMO_MODEL_NAME,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 100,
            **fields,
        }
        if em_inf is not None:
            body["em_inf"] = em_inf
        return self.post("/v1/chat/completions", body)

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name and labels, as they are written there."""
        lines = self.get("/metrics").body.decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def workers(self, method: str) -> Any:
        """Call a method of the worker through vLLM's development route."""
        return self.post("/collective_rpc", {"method": method}).json["results"]
