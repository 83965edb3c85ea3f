"""How an answer is made of requests: sampling once, voting, refining, and matching.

A decoder asks through an `Asking`, which either sends the request or finds its answer in
a journal. The same code therefore makes an answer, and makes it again without a server.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from em_inf.evaluation.errors import DecoderError
from em_inf.evaluation.records import Call, DecoderRecord

_T = TypeVar("_T")
Messages = Sequence[Mapping[str, str]]
REFINE = (
    "Look at your answer again and check every step of it. If you find a mistake, "
    "correct it; if there is none, keep the answer. Then write the whole solution once "
    "more, and give the final answer in the same form as before."
)
"""What a round of refinement says after the answer of the round before."""


class Asking(Protocol):
    """One answer in the making: of one decoder, to one problem, in one sample."""

    async def call(
        self, part: int, messages: Messages, fields: Mapping[str, Any]
    ) -> Call:
        """The answer to one request, sent with the seed of its part.

        Args:
            part: which request of this answer, from 0; unique in it.
            messages: the conversation.
            fields: of the request: sampling parameters, and `em_inf`, None where off.
        """

    def extract(self, text: str) -> str | None:
        """The normalised answer in a text, for votes."""


@dataclass(frozen=True)
class Match:
    """A temperature that was found for `matched`.

    Attributes:
        temperature: tau, relative to the model's own distribution.
        wanted: mean entropy after EM-INF, nats, of the calibration's answers.
        achieved: mean entropy of softmax(z / tau) over the tokens sampled with tau.
        bound: half the width of the interval in which `achieved` lies for certain; it
            comes from the tokens beyond the server's top logprobs.
        error: standard error of achieved - wanted over the calibration's problems.
        problems, tokens, rounds: how much was asked for it.
    """

    temperature: float
    wanted: float
    achieved: float
    bound: float
    error: float
    problems: int
    tokens: int
    rounds: int

    @property
    def sentence(self) -> str:
        """What the report says of it."""
        return (
            f"temperature {self.temperature:.4f} gives a mean entropy of "
            f"{self.achieved:.4f} nats (sure to {self.bound:.2g}), wanted were "
            f"{self.wanted:.4f}; the standard error of the difference is "
            f"{self.error:.2g}; found in {self.rounds} rounds on {self.problems} "
            f"problems ({self.tokens} tokens), whose requests are in no answer's costs"
        )


Matching = Callable[["Matched"], Awaitable[Match]]


class UnmatchedError(RuntimeError):
    """No temperature has the wanted entropy; the text says why."""


async def together(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Results in order. The first that fails cancels the others, and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """A way to answer.

    Attributes:
        name: its text, which `decoders.parse` reads; unique in a run.
        kind: of its entry in the registry.
        notes: sentences for the report.
    """

    name: str = ""
    kind: str = ""
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def calls(self) -> int:
        """Requests that one answer takes."""

    @property
    @abstractmethod
    def first(self) -> Plain:
        """The sampling of its first request, for a probe."""

    @abstractmethod
    async def answer(self, asking: Asking, messages: Messages, part: int = 0) -> str:
        """The final answer's text.

        Args:
            asking: for the requests, whose parts are `part` and the next `calls - 1`.
            messages: the conversation to answer.
            part: of its first request.
        """

    async def resolved(self, matching: Matching) -> Decoder:
        """The decoder with every temperature found.

        Raises:
            UnmatchedError: a temperature cannot be found.
        """
        del matching
        return self

    @property
    def needs_em_inf(self) -> bool:
        """Whether it makes no sense on a server without EM-INF."""
        return self.first.em_inf is not None

    def record(self) -> DecoderRecord:
        """As the run's report shows it."""
        first = self.first
        request = {**first.fields, "em_inf": first.em_inf}
        return DecoderRecord(self.name, self.kind, request, self.calls, notes=self.notes)


@dataclass(frozen=True, kw_only=True)
class Plain(Decoder):
    """One request for one answer.

    Attributes:
        fields: sampling parameters of the request.
        em_inf: settings of EM-INF; None where it is off.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    em_inf: Mapping[str, Any] | None = None

    @property
    def calls(self) -> int:
        """How many requests an answer takes."""
        return 1

    @property
    def first(self) -> Plain:
        """The decoder that samples, which this one is."""
        return self

    async def answer(self, asking: Asking, messages: Messages, part: int = 0) -> str:
        """The text of the one request's answer."""
        fields = {**self.fields, "em_inf": self.em_inf}
        return (await asking.call(part, messages, fields)).text


@dataclass(frozen=True, kw_only=True)
class _Of(Decoder):
    """Several answers of another decoder.

    Attributes:
        of: the other decoder.
        n: how many of its answers.
    """

    of: Decoder
    n: int

    @property
    def calls(self) -> int:
        """Those of the inner answers together."""
        return self.n * self.of.calls

    @property
    def first(self) -> Plain:
        """The decoder that samples, innermost of all."""
        return self.of.first

    @property
    def needs_em_inf(self) -> bool:
        """As the inner decoder does."""
        return self.of.needs_em_inf

    async def resolved(self, matching: Matching) -> Decoder:
        """With the inner decoder resolved."""
        inner = await self.of.resolved(matching)
        return replace(self, of=inner, notes=(*self.notes, *inner.notes))


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(_Of):
    """The majority of n answers, each sampled with a seed of its own, at once.

    Votes are counted on the extracted answers; a text without one has no vote. Of several
    answers with the most votes, the one that reached that number first wins, in the order
    of the samples. The text is the first that holds the winner. Without any vote it is
    the first sample's.
    """

    async def answer(self, asking: Asking, messages: Messages, part: int = 0) -> str:
        """Ask n times at once, and count."""
        step = self.of.calls
        texts = await together(
            [self.of.answer(asking, messages, part + i * step) for i in range(self.n)]
        )
        return majority(texts, [asking.extract(text) for text in texts])


def majority(texts: Sequence[str], votes: Sequence[str | None]) -> str:
    """The first text whose vote wins; see `SelfConsistency`."""
    counted: Counter[str] = Counter()
    winner = None
    for vote in votes:
        if vote is None:
            continue
        counted[vote] += 1
        if winner is None or counted[vote] > counted[winner]:
            winner = vote
    return texts[0] if winner is None else texts[votes.index(winner)]


@dataclass(frozen=True, kw_only=True)
class Refinement(_Of):
    """An answer and n - 1 revisions of it, one after another; the last one counts.

    Each revision sees the question, the answer of the round before, and `REFINE`; older
    answers are left out, so that the prompt does not grow from round to round.
    """

    async def answer(self, asking: Asking, messages: Messages, part: int = 0) -> str:
        """Ask, and have the answer revised n - 1 times, each time without its past."""
        step = self.of.calls
        text = await self.of.answer(asking, messages, part)
        for i in range(1, self.n):
            revised = [
                *messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": REFINE},
            ]
            text = await self.of.answer(asking, revised, part + i * step)
        return text


@dataclass(frozen=True, kw_only=True)
class Matched(Decoder):
    """Plain sampling with the mean entropy that a decoder with EM-INF leaves.

    The temperature tau is the one at which softmax(z / tau), averaged over the tokens
    that it samples itself, has the mean entropy that EM-INF leaves on its own tokens.
    Both are taken before the sampling temperature T of the EM-INF decoder, which then
    multiplies: it samples at tau * T, with that decoder's other sampling parameters.
    """

    of: Plain

    @property
    def calls(self) -> int:
        """How many requests an answer takes."""
        return 1

    @property
    def first(self) -> Plain:
        """The EM-INF decoder's, from which it is made."""
        return self.of

    async def answer(self, asking: Asking, messages: Messages, part: int = 0) -> str:
        """Cannot: its temperature is not known yet.

        Raises:
            DecoderError: always.
        """
        del asking, messages, part
        raise DecoderError(f"{self.name}: its temperature has not been found yet")

    async def resolved(self, matching: Matching) -> Decoder:
        """Plain sampling at the temperature that `matching` finds."""
        match = await matching(self)
        return Plain(
            name=self.name,
            kind=self.kind,
            fields=self.at(match.temperature),
            notes=(*self.notes, match.sentence),
        )

    def at(self, tau: float) -> dict[str, Any]:
        """Fields of a request that samples at tau."""
        return {**self.of.fields, "temperature": tau * self.of.fields["temperature"]}
