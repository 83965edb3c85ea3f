"""The search for matched temperatures, with a server or from a journal.

It reads entropies only, never whether an answer is right, so that the problems on which
it looks may be those of the run. Every look is journaled: a run that goes on finds what
it would have found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from clients.evaluation.asking import Session
from clients.evaluation.connection import Reply
from clients.evaluation.decoding import Match, Matched, Matching, UnmatchedError, together
from clients.evaluation.journal import Journal
from clients.evaluation.matching import NOTHING, Tempered, match, tempered
from clients.evaluation.plan import Plan, Progress, seed_of
from clients.evaluation.records import Problem


def from_journal(journal: Journal) -> Matching:
    """What earlier searches found."""

    async def found(matched: Matched) -> Match:
        known = journal.matches.get(matched.name)
        if known is None:
            raise UnmatchedError("not matched: the run stopped before")
        if isinstance(known, str):
            raise UnmatchedError(known)
        return Match(**known)

    return found


def searching(plan: Plan, session: Session, progress: Progress) -> Matching:
    """The journal's finding, else a search on the server."""
    journal = session.journal
    count = min(plan.calibration, len(plan.problems))
    chosen = random.Random(plan.seed).sample(range(len(plan.problems)), count)  # noqa: S311
    problems = [plan.problems[index] for index in sorted(chosen)]

    async def found(matched: Matched) -> Match:
        if matched.name not in journal.matches:
            progress.say(f"looking for the temperature of {matched.name}")
            search = _Search(plan, session, matched, problems)
            try:
                journal.add_match(matched.name, await search.run())
            except UnmatchedError as error:
                journal.add_match(matched.name, str(error))
        return await from_journal(journal)(matched)

    return found


class _Search:
    """One search: what is wanted, and what temperatures give."""

    def __init__(
        self, plan: Plan, session: Session, matched: Matched, problems: Sequence[Problem]
    ) -> None:
        self.plan = plan
        self.session = session
        self.matched = matched
        self.problems = problems

    async def run(self) -> Match:
        """The temperature, or an UnmatchedError."""
        said = self.session.connection.served.em_inf.get("logprobs", {})
        if said.get("mode", "raw_logprobs") != "raw_logprobs":
            raise UnmatchedError(
                f"not matched: the server's logprobs are {said['mode']}, and the model's "
                "own are needed (--logprobs-mode raw_logprobs)"
            )
        top = self.plan.max_logprobs
        if said.get("max", -1) >= 0:
            top = min(top, said["max"])
        if top < 1:
            raise UnmatchedError("not matched: the server gives no top logprobs")
        fields = {**self.matched.of.fields, "em_inf": self.matched.of.em_inf}
        wanted = await self._all("wanted", fields, 0, 1.0)

        async def measure(tau: float) -> Sequence[Tempered]:
            asked = {**self.matched.at(tau), "em_inf": None}
            return await self._all(f"temperature {tau!r}", asked, top, tau)

        return await match([(one.entropy, one.tokens) for one in wanted], measure)

    async def _all(
        self, what: str, fields: dict[str, Any], top: int, tau: float
    ) -> list[Tempered]:
        asked = (self._one(what, each, fields, top, tau) for each in self.problems)
        return await together(list(asked))

    async def _one(
        self, what: str, problem: Problem, fields: dict[str, Any], top: int, tau: float
    ) -> Tempered:
        name = self.matched.name
        look = self.session.journal.looks.get((name, what, problem.id))
        if look is None:
            seed = seed_of(self.plan.seed, problem.id, 0, 0)
            async with self.session.gate:
                reply = await self.session.connection.ask(
                    problem.messages, fields, seed, trace=top
                )
            if reply.refused:
                raise UnmatchedError(f"not matched: the server refused: {reply.refused}")
            total = _tempered(reply, tau) if top else _after(reply)
            look = {
                "decoder": name, "what": what, "problem": problem.id, "seed": seed,
                "tokens": total.tokens, "entropy": total.entropy,
                "low": total.low, "high": total.high,
            }  # fmt: skip
            self.session.journal.add_look(look)
        return Tempered(look["tokens"], look["entropy"], look["low"], look["high"])


def _after(reply: Reply) -> Tempered:
    """What EM-INF left."""
    if reply.entropy_after is None:
        raise UnmatchedError("not matched: the server lost an answer's entropies")
    total = reply.entropy_after * reply.tokens
    return Tempered(reply.tokens, total, total, total)


def _tempered(reply: Reply, tau: float) -> Tempered:
    """At a temperature; tokens whose figures were lost are left out.

    Raises:
        UnmatchedError: all of them were.
    """
    if len(reply.entropies) != len(reply.top):
        raise UnmatchedError("not matched: the server lost an answer's entropies")
    pairs = zip(reply.top, reply.entropies, strict=True)
    known = [(top, entropy) for top, entropy in pairs if entropy is not None and top]
    return sum((tempered(top, entropy, tau) for top, entropy in known), NOTHING)
