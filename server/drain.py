"""Stopping without loss: what is under way ends first, and nothing new is taken.

vLLM's own drain (`--shutdown-timeout`) also lets requests end, but its engine answers no
more calls from its first moment on, so their EM-INF statistics would be lost with it.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from starlette.datastructures import State
from vllm.exceptions import GracefulHTTPError

_LOOK_EVERY_SECONDS = 0.1


class Drain:
    """Whether the server is stopping, and the wait for what is under way.

    Args:
        engine_client: vLLM's, which counts requests in the engine.
        state: the application's, where vLLM puts its HTTP server.

    Attributes:
        began: whether the server was told to stop.
    """

    def __init__(self, engine_client: Any, state: State) -> None:
        self._engine_client = engine_client
        self._state = state
        self.began = False

    def refuse_if_begun(self) -> None:
        """Turn a new request away while the server is stopping.

        Raises:
            GracefulHTTPError: a 503, upon which clients and routers try elsewhere.
        """
        if self.began:
            raise GracefulHTTPError(
                "The server is shutting down. Please try again on another instance.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            )

    def wait(self, seconds: float) -> float:
        """Return when nothing is under way any more, or the time is over. Blocks.

        Args:
            seconds: at most so long.

        Returns:
            The seconds that are left, at least 0.
        """
        self.began = True
        until = time.monotonic() + seconds
        while self._is_busy() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_SECONDS)
        return max(until - time.monotonic(), 0.0)

    def _is_busy(self) -> bool:
        """Whether a response is being written, or the engine has a request."""
        server = getattr(self._state, "server", None)
        responses = len(server.server_state.tasks) if server else 0
        return bool(responses or self._engine_client.get_num_unfinished_requests())
