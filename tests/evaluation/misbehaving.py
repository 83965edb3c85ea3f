"""A server that speaks OpenAI's protocol, and fails in the ways that real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

Trouble = Callable[[dict[str, Any], int], web.StreamResponse | None]
"""Given a request's body and its number from 0: what to answer in place of an answer."""

ABOUT = {
    "version": "0", "vllm_version": "0", "runner": "none", "backend": "none",
    "device": "none", "enabled_by_default": False, "default_settings": {},
    "logprobs": {"mode": "raw_logprobs", "max": 20},
}  # fmt: skip


class Misbehaving:
    """What it was asked, and what goes wrong.

    Attributes:
        bodies: of all requests, in order; those that failed among them.
        answered: of those that it answered.
        trouble: asked before each answer.
        em_inf: whether it says that it has EM-INF.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.trouble: Trouble = lambda body, number: None
        self.em_inf = False
        self.url = ""

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Answered requests without the probes."""
        return [body for body in self.answered if body["max_tokens"] != 1]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        instead = self.trouble(body, len(self.bodies) - 1)
        if instead is not None:
            if instead.status == 200:
                await instead.prepare(request)  # And then says no more.
                await instead.write(b'{"choices": [')
                assert request.transport is not None
                request.transport.close()
            return instead
        self.answered.append(body)
        message = {"role": "assistant", "content": f"The answer is {body['seed'] % 7}."}
        answer: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
        }  # fmt: skip
        return web.json_response(answer)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": "someone"}]})

    async def about(self, request: web.Request) -> web.Response:
        return web.json_response(ABOUT) if self.em_inf else web.Response(status=404)


def refused(status: int, message: str = "no", **headers: str) -> web.Response:
    error = {"error": {"message": message, "type": "x", "code": status}}
    return web.json_response(error, status=status, headers=headers)


@contextlib.contextmanager
def misbehaving() -> Iterator[Misbehaving]:
    """Run it in a thread of its own."""
    server = Misbehaving()
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/v1/em_inf", server.about)
    runner = web.AppRunner(app, access_log=None)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
