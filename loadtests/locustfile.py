"""Locust's users: how HTTP clients behave, and misbehave, towards the server.

`loadtests/load.py` starts Locust on this file; it says by the environment what to ask.
Every answer goes through the checker; each outcome becomes a line of JSON in EM_INF_OUT,
with the times that Locust does not keep.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import gevent
from locust import HttpUser, between, constant_pacing, events, task
from locust.env import Environment

from em_inf.loadtests.checker import Asked, load, mixed_settings
from em_inf.loadtests.client import RequestFailedError, read_stream

KNOWN = load(Path(os.environ["EM_INF_KNOWN"]))
OUT = Path(os.environ["EM_INF_OUT"])
KEY = os.environ["EM_INF_KEY"]
MODEL = os.environ["EM_INF_MODEL"]
ON = os.environ["EM_INF_ON"] == "1"
WANTED = int(os.environ["EM_INF_REQUESTS"])

_numbers = itertools.count()
_outcomes: list[dict[str, Any]] = []
_good = itertools.count(1)


@events.test_stop.add_listener
def write_outcomes(environment: Environment, **_: Any) -> None:  # noqa: ARG001
    """Keep what happened when Locust ends."""
    OUT.write_text("".join(json.dumps(outcome) + "\n" for outcome in _outcomes))


class Client(HttpUser):
    """What the users have in common.

    Attributes:
        read_pause: seconds that it takes over each line of a stream.
    """

    abstract = True
    read_pause = 0.0

    def next_request(self) -> Asked:
        """A request unlike every other."""
        number = next(_numbers)
        em_inf = mixed_settings(number) if ON else None
        return Asked(uuid.uuid4().hex, KNOWN[number % len(KNOWN)], em_inf)

    def headers(self, nonce: str, key: str = KEY) -> dict[str, str]:
        """Of a request by its nonce."""
        return {
            "Authorization": f"Bearer {key}",
            "X-Request-Id": nonce,
            "Content-Type": "application/json",
        }

    def good(self, kind: str, asked: Asked, path: str, body: dict[str, Any]) -> None:
        """Send what must succeed, check what comes back, and count it."""
        began_at, began = time.time(), time.perf_counter()
        outcome: dict[str, Any] = {"kind": kind, "good": True, "at": began_at}
        with self.client.post(
            path,
            data=json.dumps(body),
            headers=self.headers(asked.nonce),
            stream="stream" in body,
            catch_response=True,
            name=kind,
        ) as response:
            try:
                if response.status_code != 200:
                    reason = f"{response.status_code}: {response.text[:300]}"
                    raise RequestFailedError(reason)
                if "stream" in body:
                    wrong = self._read(response, asked, began, outcome)
                else:
                    wrong = _check(response.json(), asked, outcome)
                if wrong:
                    outcome["mixed_up"] = wrong
                    response.failure(wrong)
            except Exception as error:  # noqa: BLE001
                # Whatever the client library raises, the request was not answered.
                outcome["error"] = f"{type(error).__name__}: {error}"[:400]
                response.failure(outcome["error"])
        outcome.setdefault("e2e_seconds", time.perf_counter() - began)
        _outcomes.append(outcome)
        if next(_good) >= WANTED and self.environment.runner is not None:
            self.environment.runner.quit()

    def _read(
        self, response: Any, asked: Asked, began: float, outcome: dict[str, Any]
    ) -> str | None:
        lines: list[tuple[float, bytes]] = []
        for line in response.iter_lines(chunk_size=None):
            lines.append((time.perf_counter(), line))
            if self.read_pause:
                gevent.sleep(self.read_pause)
        answer = read_stream(began, lines)
        ids = {json.loads(line[6:])["id"] for _, line in lines if line[6:7] == b"{"}
        outcome["ttft_seconds"] = answer.ttft_seconds
        outcome["itl_seconds"] = [round(x, 6) for x in answer.itl_seconds]
        outcome["tpot_seconds"] = answer.tpot_seconds
        outcome["tokens"] = answer.output_tokens
        return asked.wrong(
            " ".join(sorted(ids)), answer.text, answer.output_tokens, answer.em_inf
        )

    def refused(self, kind: str, status: int, words: str, **sent: Any) -> None:
        """Send what must be refused, with this status and these words."""
        outcome: dict[str, Any] = {"kind": kind, "good": False, "at": time.time()}
        with self.client.post(
            "/v1/chat/completions", catch_response=True, name=kind, **sent
        ) as response:
            if response.status_code == status and words in (response.text or ""):
                response.success()
            else:
                outcome["error"] = f"{response.status_code}: {response.text}"[:400]
                response.failure(outcome["error"])
        _outcomes.append(outcome)


def _check(answer: dict[str, Any], asked: Asked, outcome: dict[str, Any]) -> str | None:
    tokens = answer["usage"]["completion_tokens"]
    outcome["tokens"] = tokens
    if len(answer["choices"]) > 1:
        return asked.wrong_sampled(answer)
    (choice,) = answer["choices"]
    report = answer.get("em_inf")
    if "message" in choice:
        return asked.wrong(answer["id"], choice["message"]["content"], tokens, report)
    return asked.wrong_echo(answer["id"], choice["text"], tokens, report)


class Ordinary(Client):
    """Chats, streamed and not, and completions."""

    weight = 12
    wait_time = between(0.0, 0.1)

    @task(4)
    def stream(self) -> None:
        """A streamed chat."""
        asked = self.next_request()
        body = {**asked.body(MODEL), "stream": True}
        body["stream_options"] = {"include_usage": True}
        self.good("stream", asked, "/v1/chat/completions", body)

    @task(3)
    def whole(self) -> None:
        """A chat in one piece."""
        asked = self.next_request()
        self.good("whole", asked, "/v1/chat/completions", asked.body(MODEL))

    @task(1)
    def echo(self) -> None:
        """A completion that repeats its prompt."""
        asked = self.next_request()
        self.good("echo", asked, "/v1/completions", asked.echo_body(MODEL))

    @task(2)
    def sampled(self) -> None:
        """A chat with a seed and several choices."""
        asked = self.next_request()
        body = asked.sampled_body(MODEL)
        self.good("sampled", asked, "/v1/chat/completions", body)


class Slow(Client):
    """Reads a stream more slowly than it comes."""

    weight = 2
    wait_time = between(0.0, 0.5)
    read_pause = 0.02

    @task
    def stream(self) -> None:
        """A streamed chat, read at leisure."""
        asked = self.next_request()
        body = {**asked.body(MODEL), "stream": True}
        body["stream_options"] = {"include_usage": True}
        self.good("slow reader", asked, "/v1/chat/completions", body)


class Bursting(Client):
    """Sends sixteen requests at once, then waits."""

    fixed_count = 1
    wait_time = constant_pacing(3)

    @task
    def burst(self) -> None:
        """Sixteen chats at the same moment."""
        all_asked = [self.next_request() for _ in range(16)]
        jobs = [
            gevent.spawn(
                self.good, "burst", asked, "/v1/chat/completions", asked.body(MODEL)
            )
            for asked in all_asked
        ]
        gevent.joinall(jobs)


class Leaving(Client):
    """Goes away in the middle of a stream."""

    weight = 1
    wait_time = between(0.1, 0.5)

    @task
    def leave(self) -> None:
        """A long stream, of which a few lines are read."""
        asked = self.next_request()
        body = {**asked.body(MODEL), "stream": True, "max_tokens": 400}
        body["ignore_eos"] = True
        outcome: dict[str, Any] = {"kind": "leaver", "good": False, "at": time.time()}
        with self.client.post(
            "/v1/chat/completions",
            data=json.dumps(body),
            headers=self.headers(asked.nonce),
            stream=True,
            catch_response=True,
            name="leaver",
        ) as response:
            lines = response.iter_lines(chunk_size=None)
            read = list(itertools.islice(lines, 6)) if response.ok else []
            if not any(line.startswith(b"data: {") for line in read):
                outcome["error"] = f"{response.status_code}: {read[:2]}"
                response.failure(outcome["error"])
            response.close()
        _outcomes.append(outcome)


class Wrong(Client):
    """Sends what the server has to refuse."""

    weight = 1
    wait_time = between(0.1, 0.4)

    @task
    def settings(self) -> None:
        """A setting out of range."""
        asked = self.next_request()
        body = {**asked.body(MODEL), "em_inf": {"n_grad_steps": -1}, "stream": True}
        sent = {"data": json.dumps(body), "headers": self.headers(asked.nonce)}
        self.refused("bad setting", 400, "em_inf.n_grad_steps", **sent)

    @task
    def text(self) -> None:
        """A body that is not JSON."""
        sent = {"data": "{", "headers": self.headers(uuid.uuid4().hex)}
        self.refused("bad JSON", 400, "JSON decode error", **sent)

    @task
    def model(self) -> None:
        """A model that is not there."""
        asked = self.next_request()
        sent = {"data": json.dumps(asked.body("nobody"))}
        self.refused(
            "unknown model", 404, "nobody", **sent, headers=self.headers(asked.nonce)
        )

    @task
    def key(self) -> None:
        """A key that is not the server's."""
        asked = self.next_request()
        sent = {"data": json.dumps(asked.body(MODEL))}
        headers = self.headers(asked.nonce, "wrong")
        self.refused("wrong key", 401, "Unauthorized", **sent, headers=headers)
