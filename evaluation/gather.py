"""Answers in the making: asked of the server, or made again from a journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from em_inf.evaluation.decoding import Decoder, Messages
from em_inf.evaluation.errors import StoppedError
from em_inf.evaluation.journal import Journal
from em_inf.evaluation.plan import seed_of
from em_inf.evaluation.records import Call, Grader, Problem
from em_inf.evaluation.requests import Connection

REFUSALS = 3
"""So many refused requests of a decoder, and none answered, are its settings' fault."""


class MissingError(LookupError):
    """The journal does not hold every request of an answer."""


@dataclass(frozen=True)
class Replayed:
    """An answer that is made again from the journal.

    Attributes:
        calls: that were looked up, by part.
    """

    journal: Journal
    grader: Grader
    decoder: str
    problem: Problem
    sample: int
    calls: dict[int, Call] = field(default_factory=dict)

    async def call(
        self, part: int, messages: Messages, fields: Mapping[str, Any]
    ) -> Call:
        """The journal's.

        Raises:
            MissingError: it is not there.
        """
        del messages, fields
        key = self.decoder, self.problem.id, self.sample, part
        if key not in self.journal.calls:
            raise MissingError(str(key))
        self.calls[part] = self.journal.calls[key]
        return self.calls[part]

    def extract(self, text: str) -> str | None:
        """The answer in a text as the run's grader reads it; None where there is none."""
        return self.grader.extract(text, self.problem)


@dataclass
class Session:
    """What all requests of one session share.

    Attributes:
        gate: lets so many requests be in flight at once.
        seed: the run's.
        block: of requests that are asked together, counted from 0.
        began: when that block began, on the monotonic clock.
        refused: requests of each decoder that were refused before any was answered.
    """

    connection: Connection
    journal: Journal
    grader: Grader
    gate: asyncio.Semaphore
    seed: int
    block: int = -1
    began: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)

    def next_block(self) -> None:
        """The clock of a block starts."""
        self.block += 1
        self.began = time.monotonic()


@dataclass(frozen=True)
class Asked:
    """An answer whose requests go to the server, unless the journal has them."""

    session: Session
    decoder: Decoder
    problem: Problem
    sample: int

    async def call(
        self, part: int, messages: Messages, fields: Mapping[str, Any]
    ) -> Call:
        """The journal's answer, else the server's, which is then in the journal.

        Raises:
            StoppedError: the server does not answer, or refuses whatever this decoder
                asks.
        """
        session, name = self.session, self.decoder.name
        known = session.journal.calls.get((name, self.problem.id, self.sample, part))
        if known:
            return known
        seed = seed_of(session.seed, self.problem.id, self.sample, part)
        async with session.gate:
            reply = await session.connection.ask(messages, fields, seed)
        if reply.refused is None:
            session.refused[name] = -1
        elif session.refused.get(name, 0) >= 0:
            session.refused[name] = session.refused.get(name, 0) + 1
            if session.refused[name] >= REFUSALS:
                raise StoppedError(
                    f"{name}: the server refuses its requests, the last one of problem "
                    f"{self.problem.id}: {reply.refused}",
                    ValueError(reply.refused),
                )
        call = Call(
            decoder=name,
            problem=self.problem.id,
            sample=self.sample,
            part=part,
            seed=seed,
            text=reply.text,
            finish_reason="refused" if reply.refused else reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            tokens=reply.tokens,
            tokens_minimized=reply.tokens_minimized,
            grad_steps=reply.grad_steps,
            entropy_before=reply.entropy_before,
            entropy_after=reply.entropy_after,
            seconds=reply.seconds,
            tries=reply.tries,
        )
        elapsed = time.monotonic() - session.began
        session.journal.add_call(call, session.block, elapsed, reply.refused)
        return call

    def extract(self, text: str) -> str | None:
        """The answer in a text as the run's grader reads it; None where there is none."""
        return self.session.grader.extract(text, self.problem)
