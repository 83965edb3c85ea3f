"""What `bench_server` sets against each other: servers, settings, and a run of each."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from em_inf.loadtests.client import Answer, ask_all
from em_inf.loadtests.serving import (
    Serving,
)
from em_inf.server.demo_model.problems import problems

MODEL_NAME = "measured"
THROUGHPUT = "output_tokens_per_second"
OFF, OFF_AGAIN, STOCK_VLLM = "off", "off again", "stock vLLM"
ON, NO_REPORT, TRACE = "on", "on, no report", "on, trace"
ADAPTIVE = "adaptive temperature"
CONTENDERS: dict[str, dict[str, Any] | None] = {
    STOCK_VLLM: None,
    OFF: None,
    OFF_AGAIN: None,
    ON: {"n_grad_steps": 5},
    NO_REPORT: {"n_grad_steps": 5, "report": "none"},
    TRACE: {"n_grad_steps": 5, "report": "trace"},
    ADAPTIVE: {"method": "adaptive_temperature"},
}
"""The field `em_inf` of every request of a contender; None leaves it out."""


class CheckFailedError(Exception):
    """What was measured is not what was asked for; there is nothing to report."""


@dataclass(frozen=True)
class Asked:
    """What every request of a run asks for.

    Attributes:
        concurrency: requests at a time.
        requests: of a run.
        tokens: output tokens of each.
    """

    concurrency: int
    requests: int
    tokens: int


@dataclass(frozen=True)
class Run:
    """One contender's answers to one round's requests.

    Attributes:
        answers: in the order of the requests.
        seconds: from the first request to the last answer.
        cpu_seconds: processor time of all the server's processes meanwhile.
        em_inf_seconds: time in EM-INF meanwhile, as the worker counts it.
    """

    answers: list[Answer]
    seconds: float
    cpu_seconds: float
    em_inf_seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Every metric of this run; of latencies the median over its requests."""
        answers = self.answers
        tpot = [x.tpot_seconds for x in answers if x.tpot_seconds is not None]
        gaps = [gap for x in answers for gap in x.itl_seconds]
        tokens = sum(x.output_tokens for x in answers)
        return {
            THROUGHPUT: tokens / self.seconds,
            "server_cpu_seconds_per_token": self.cpu_seconds / tokens,
            "ttft_seconds": statistics.median(x.ttft_seconds for x in answers),
            "itl_seconds": statistics.median(gaps),
            "itl_p95_seconds": float(np.quantile(gaps, 0.95)),
            "tpot_seconds": statistics.median(tpot),
            "e2e_seconds": statistics.median(x.e2e_seconds for x in answers),
        }


class Bench:
    """Two servers, and what is asked of them.

    Args:
        ours: our server.
        stock: stock vLLM.
        model: its name on both.
    """

    def __init__(self, ours: Serving, stock: Serving, model: str = MODEL_NAME) -> None:
        self._model = model
        self._ours, self._stock = ours, stock
        self._questions = [
            p.question for p in itertools.islice(problems("held_out", 7), 256)
        ]

    def run(self, name: str, asked: Asked, first_seed: int) -> Run:
        """Send one round's requests to one contender.

        Args:
            name: the contender.
            asked: how many, how long.
            first_seed: of the round's first request; it picks the prompt, too.

        Raises:
            CheckFailedError: an answer is not what was asked for.
            RequestFailedError: a request failed.
        """
        field = CONTENDERS[name]
        bodies = []
        for seed in range(first_seed, first_seed + asked.requests):
            question = self._questions[seed % len(self._questions)]
            body = {
                "model": self._model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": asked.tokens,
                "ignore_eos": True,
                "temperature": 1.0,
                "seed": seed,
            }
            bodies.append(body if field is None else {**body, "em_inf": field})
        server = self._wake(name)
        asyncio.run(ask_all(server.url, [{**bodies[0], "max_tokens": 2}], 1))
        em_inf = self._em_inf_seconds() if field else 0.0
        used = server.cpu_seconds()
        answers, seconds = asyncio.run(ask_all(server.url, bodies, asked.concurrency))
        used = server.cpu_seconds() - used
        em_inf = self._em_inf_seconds() - em_inf if field else 0.0
        check_run(name, answers, asked.tokens)
        return Run(answers, seconds, used, em_inf)

    def _em_inf_seconds(self) -> float:
        """What our server spent in EM-INF so far, which its metrics learn by a report."""
        short = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._questions[0]}],
            "max_tokens": 1,
            "em_inf": {"report": "summary"},
        }
        asyncio.run(ask_all(self._ours.url, [short], 1))
        (seconds,) = self._ours.counted("em_inf_processor_seconds_total").values()
        return seconds

    def _wake(self, name: str) -> Serving:
        """The contender's server, running alone."""
        pair = [self._ours, self._stock]
        working, resting = pair[::-1] if name == STOCK_VLLM else pair
        resting.stand_still()
        working.go_on()
        return working


def check_run(name: str, answers: list[Answer], tokens: int) -> None:
    """Every answer is as long as asked, and its report says what it should.

    Raises:
        CheckFailedError: with what is wrong.
    """
    lengths = {answer.output_tokens for answer in answers}
    if lengths != {tokens}:
        raise CheckFailedError(f"{name}: {tokens} tokens asked for, {lengths} came")
    field = CONTENDERS[name]
    reported = field is not None and field.get("report") != "none"
    choices = []
    for answer in answers:
        if (answer.em_inf is not None) != reported:
            raise CheckFailedError(f"{name}: em_inf in the answer is {answer.em_inf}")
        if answer.em_inf is not None:
            choices += answer.em_inf["choices"]
    if not reported:
        return
    if any(choice.get("tokens") != tokens for choice in choices):
        raise CheckFailedError(f"{name}: a report does not count {tokens} tokens")
    if not sum(choice["tokens_minimized"] for choice in choices):
        raise CheckFailedError(
            f"{name}: no token was minimized in {len(choices)} answers"
        )
    if name == TRACE:
        traced = {len(column) for c in choices for column in c["trace"].values()}
        if traced != {tokens}:
            raise CheckFailedError(f"{name}: traces have {traced} entries, not {tokens}")
