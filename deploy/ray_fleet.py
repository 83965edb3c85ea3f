"""em-inf servers as replicas of one Ray Serve application, on the nodes of a Ray cluster.

    ray start --head                                    # on one node
    ray start --address HEAD:6379                       # on every other
    serve run --app-dir deploy ray_fleet:fleet replicas=2 gpus=1 \
        flags="Qwen/Qwen2.5-7B-Instruct --max-model-len 8192"

Each replica runs `em-inf serve` as a process of its own and passes HTTP on to it, both
ways, byte by byte: every route, stream, status and field is that server's. Ray places,
watches and restarts the replicas, and its proxies share the requests out among them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator

import aiohttp
import ray
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

START_SECONDS = 1800.0
"""How long a replica may take: it may have to load a large model."""

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"]
HOP_BY_HOP = frozenset({
    "connection", "content-length", "host", "keep-alive", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers that concern one connection, not the message."""

app = FastAPI(openapi_url=None)


class Fleet(BaseModel):
    """What to run; Ray Serve fills it in from the command line or a config file.

    Attributes:
        flags: what follows `em-inf serve`, as in a shell.
        replicas: how many servers.
        gpus: of each server: tensor parallel size times pipeline parallel size.
        cpus: of each server, as Ray counts them.
        port: of each server on its node, for Prometheus to scrape; 0 is a free one on
            the loopback interface. A fixed one allows one replica a node.
    """

    model_config = ConfigDict(extra="forbid")

    flags: str = ""
    replicas: int = 2
    gpus: float = 0
    cpus: float = 1
    port: int = 0


async def _body(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The bytes as they come; a client that goes away closes the server's connection."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    finally:
        answer.close()


@serve.deployment(max_ongoing_requests=1024)
@serve.ingress(app)
class Replica:
    """One server process, and a pass-through to it.

    Args:
        flags: what follows `em-inf serve`.
        port: as in `Fleet`.
    """

    def __init__(self, flags: str, port: int) -> None:
        host = "0.0.0.0" if port else "127.0.0.1"  # noqa: S104
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._node = ray.get_runtime_context().get_node_id()
        command = [sys.executable, "-m", "server", "serve", *shlex.split(flags)]
        self._server = subprocess.Popen(  # noqa: S603
            [*command, "--host", host, "--port", str(port)], start_new_session=True
        )
        self._session: aiohttp.ClientSession | None = None
        self._wait()

    def _wait(self) -> None:
        """Wait for the server's first answer; until then Ray sends no requests here."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._server.poll() is None:
            with contextlib.suppress(OSError):
                direct.open(f"{self._url}/health", timeout=60).close()
                return
            time.sleep(0.5)
        raise RuntimeError(
            f"em-inf serve did not answer in {START_SECONDS:.0f} s"
            if self._server.poll() is None
            else f"em-inf serve ended with {self._server.returncode}"
        )

    def _client(self) -> aiohttp.ClientSession:
        """A session made on the loop that uses it; no limit but the engine's own."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        return self._session

    async def check_health(self) -> None:
        """Ray's question every few seconds; an error has it replace the replica."""
        if self._server.poll() is not None:
            raise RuntimeError(f"em-inf serve ended with {self._server.returncode}")
        async with self._client().get(f"{self._url}/health") as answer:
            if answer.status != 200:
                raise RuntimeError(f"/health answers {answer.status}")

    @app.api_route("/{path:path}", methods=METHODS)
    async def pass_on(self, request: Request) -> StreamingResponse:
        """Hand a request to the server, and its answer back as it comes."""
        url = self._url + request.url.path
        sent = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP}
        answer = await self._client().request(
            request.method,
            f"{url}?{request.url.query}" if request.url.query else url,
            headers=sent,
            data=await request.body(),
        )
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        headers["X-Ray-Node"] = self._node
        return StreamingResponse(_body(answer), answer.status, headers)

    def __del__(self) -> None:
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)


def fleet(args: Fleet) -> Application:
    """The application that `serve run` and `serve deploy` start."""
    return Replica.options(
        num_replicas=args.replicas,
        max_replicas_per_node=1 if args.port else None,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
    ).bind(args.flags, args.port)
