"""SIGTERM to a server whose requests are under way."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import Server

TOKENS = 600


def test_running_streams_end_whole_and_with_their_statistics() -> None:
    with Server.start("--shutdown-timeout", "120") as server:
        started = threading.Semaphore(0)

        def stream(seed: int) -> list[Any]:
            body = {
                "model": DEMO_MODEL_NAME,
                "prompt": "Tom has 3",
                "max_tokens": TOKENS,
                "ignore_eos": True,
                "stream": True,
                "seed": seed,
                "em_inf": True,
            }
            connection = HTTPConnection("127.0.0.1", server.port, timeout=300)
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps(body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            lines = [response.readline()]
            started.release()
            lines += response.readlines()
            return [line[6:] for line in lines if line.startswith(b"data: ")]

        with ThreadPoolExecutor(4) as pool:
            streams = [pool.submit(stream, seed) for seed in range(4)]
            for _ in streams:
                started.acquire()
            server.process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in streams]
        assert server.process.wait(120) == 0
    for chunks in answers:
        assert chunks[-1].strip() == b"[DONE]"
        last = json.loads(chunks[-2])
        assert last["em_inf"]["choices"][0]["tokens"] == TOKENS
        assert last["em_inf"]["choices"][0]["mean_entropy_before"] > 0
