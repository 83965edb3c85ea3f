from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import State
from vllm.exceptions import GracefulHTTPError

from em_inf.server.engine_client import EMInfEngineClient


class Inner:
    """What of vLLM's engine client a shutdown touches."""

    def __init__(self, unfinished: list[int]) -> None:
        self.unfinished = unfinished
        self.timeouts: list[float | None] = []
        self.admitted = 0

    def get_num_unfinished_requests(self) -> int:
        return self.unfinished.pop(0) if len(self.unfinished) > 1 else self.unfinished[0]

    def shutdown(self, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)

    def check_admission(self, n: int, request_id: str | None) -> None:
        self.admitted += n


def stopping(unfinished: list[int], *, tasks: Any = ()) -> tuple[Inner, Any]:
    inner = Inner(unfinished)
    state = State()
    state.server = SimpleNamespace(server_state=SimpleNamespace(tasks=set(tasks)))
    return inner, (EMInfEngineClient(inner, state), state)


def test_shutdown_waits_for_the_engines_requests() -> None:
    inner, (client, _) = stopping([2, 1, 1, 0])
    client.shutdown(timeout=1000.0)
    assert inner.unfinished == [0]
    assert inner.timeouts[0] is not None
    assert 0 < inner.timeouts[0] <= 1000


def test_shutdown_waits_for_responses_that_are_still_being_written() -> None:
    inner, (client, state) = stopping([0], tasks=["a response"])
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(client.shutdown, timeout=1000.0)
        while not client.is_stopping:
            pass
        assert not inner.timeouts
        state.server.server_state.tasks.clear()
        done.result()
    assert len(inner.timeouts) == 1


def test_requests_that_outlast_the_time_leave_vllm_none() -> None:
    inner, (client, _) = stopping([1])
    client.shutdown(timeout=0.01)
    assert inner.timeouts == [0.0]


@pytest.mark.parametrize("timeout", [0, None])
def test_without_a_time_requests_end_at_once(timeout: float | None) -> None:
    inner, (client, _) = stopping([1])
    client.shutdown(timeout=timeout)
    assert inner.timeouts == [timeout]


def test_new_requests_are_refused_with_503_while_stopping() -> None:
    inner, (client, _) = stopping([0])
    client.check_admission(2)
    assert inner.admitted == 2
    client.shutdown(timeout=1.0)
    with pytest.raises(GracefulHTTPError, match="shutting down") as refused:
        client.check_admission(1)
    assert refused.value.http_status == 503
    assert inner.admitted == 2
