"""The search for matched temperatures, with a server or from a journal.

It reads entropies only, never whether an answer is right, so that the problems on which
it looks may be those of the run. Every look is journaled: a run that goes on finds what
it would have found.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from em_inf.evaluation.decoding import Match, Matched, Matching, UnmatchedError, together
from em_inf.evaluation.gather import Session
from em_inf.evaluation.journal import Journal
from em_inf.evaluation.plan import Plan, Progress, seed_of
from em_inf.evaluation.records import Problem
from em_inf.evaluation.requests import Reply

LOWEST = 0.02
"""Temperatures below it are as good as greedy, and not looked at."""
ROUNDS = 10
TOLERANCE = 0.02
"""Of the wanted entropy, beyond which a temperature does not count as matched."""
_CLOSE = 0.005
"""Of the wanted entropy; nearer than this, or than a quarter of the standard error, is
near enough."""


@dataclass(frozen=True)
class Tempered:
    """Entropies of one answer's tokens, summed, nats.

    Attributes:
        tokens: how many.
        entropy: with the tail as equally likely tokens of its own mean surprisal.
        low, high: what it can be at least and at most, whatever the tail looks like.
    """

    tokens: int
    entropy: float
    low: float
    high: float

    def __add__(self, other: Tempered) -> Tempered:
        return Tempered(
            self.tokens + other.tokens,
            self.entropy + other.entropy,
            self.low + other.low,
            self.high + other.high,
        )


NOTHING = Tempered(0, 0.0, 0.0, 0.0)


def tempered(logprobs: Sequence[float], entropy: float, tau: float) -> Tempered:
    """The entropy of one token's distribution at a temperature of at most 1.

    With a = 1 / tau, each known token weighs w = p^a. The tail beyond them is known by
    its mass r = 1 - sum p and, since the entropy at tau = 1 is known exactly, by its mean
    surprisal s. As no token of it is likelier than the last known one, of surprisal c,
    its weight W = sum p^a is at least r e^(-(a-1)s) (Jensen) and at most r e^(-(a-1)c),
    and its share of -sum w ln w at most a s r e^(-(a-1)c). H = ln Z + A / Z, where Z sums
    the weights and A their -w ln w, is least without a tail, and at most the larger of
    its values at the two ends of W with the largest A.

    Args:
        logprobs: of the likeliest tokens, at tau = 1, nats.
        entropy: of the whole distribution at tau = 1, nats.
        tau: above 0, at most 1.
    """
    a = 1 / tau
    best = max(logprobs)
    # Weights relative to the likeliest, so that nothing underflows to a sum of 0.
    surprisals = [a * (best - logprob) for logprob in logprobs]
    weights = [math.exp(-x) for x in surprisals]
    known = sum(weights)
    spread = sum(w * x for w, x in zip(weights, surprisals, strict=True))
    low = math.log(known) + spread / known
    rest = max(0.0, 1 - math.fsum(math.exp(logprob) for logprob in logprobs))
    their = entropy - math.fsum(-p * math.exp(p) for p in logprobs)
    least = -min(logprobs)
    if rest <= 1e-9 or their <= 0:
        return Tempered(1, low, low, low)
    mean = max(their / rest, least)

    def at(weight: float, share: float) -> float:
        total = known + weight
        return math.log(total) + (spread + share) / total

    # In the scale of the weights above, a token of surprisal x weighs e^(-a (x + best)).
    scale = math.exp(-a * best)
    light = rest * math.exp(-(a - 1) * mean) * scale
    heavy = rest * math.exp(-(a - 1) * least) * scale
    likely = at(light, light * a * (mean + best))
    most = heavy * a * (mean + best)
    high = max(at(0.0, most), at(heavy, most))
    return Tempered(1, min(max(likely, low), high), low, high)


async def match(
    wanted: Sequence[tuple[float, int]],
    measure: Callable[[float], Awaitable[Sequence[Tempered]]],
) -> Match:
    """Search for the temperature, on policy: every look samples anew, with equal seeds.

    Args:
        wanted: for each problem, the sum of its answer's entropies after EM-INF, nats,
            and its number of tokens.
        measure: what comes of sampling the same problems at a temperature.

    Raises:
        UnmatchedError: no temperature from `LOWEST` to 1 has that entropy.
    """
    tokens = sum(count for _, count in wanted)
    target = sum(total for total, _ in wanted) / tokens if tokens else 0.0
    if target < 1e-6:
        raise UnmatchedError(
            "not matched: EM-INF leaves no entropy here, which only greedy decoding has"
        )
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    best: Match | None = None
    tau = 1.0
    for rounds in range(1, ROUNDS + 1):
        per_problem = await measure(tau)
        found = _compared(tau, target, wanted, per_problem, rounds)
        if best is None or _gap(found) < _gap(best):
            best = found
        if _gap(best) <= max(_CLOSE * target, best.error / 4):
            break
        if found.achieved < target:
            low = tau, found.achieved
        else:
            high = tau, found.achieved
        if high is None:
            break  # Even at 1 there is less entropy than wanted.
        tau = _next(low, high, target)
        if tau < LOWEST or (low is not None and high[0] - low[0] < 1e-3):
            break
    assert best is not None
    if _gap(best) > max(TOLERANCE * target, best.error, best.bound):
        raise UnmatchedError(
            f"not matched: EM-INF leaves {target:.4f} nats; the nearest that plain "
            f"sampling came in {best.rounds} rounds was {best.achieved:.4f}, at "
            f"temperature {best.temperature:.4f}"
        )
    return best


def _gap(match: Match) -> float:
    return abs(match.achieved - match.wanted)


def _next(
    low: tuple[float, float] | None, high: tuple[float, float], target: float
) -> float:
    """Where to look next: the secant, kept within the middle four fifths of the bracket.

    Without a lower end, the entropy is taken to grow with the square of temperature.
    """
    if low is None:
        return high[0] * min(0.9, max(0.3, math.sqrt(target / high[1])))
    (x0, y0), (x1, y1) = low, high
    share = (target - y0) / (y1 - y0) if y1 > y0 else 0.5
    return x0 + (x1 - x0) * min(0.9, max(0.1, share))


def _compared(
    tau: float,
    target: float,
    wanted: Sequence[tuple[float, int]],
    found: Sequence[Tempered],
    rounds: int,
) -> Match:
    total = sum(found, NOTHING)
    tokens = max(total.tokens, 1)
    mean = total.entropy / tokens
    all_wanted = max(sum(count for _, count in wanted), 1)
    # Of a difference of two ratios, its problems drawn together.
    parts = [
        (mine.entropy - mean * mine.tokens) / tokens
        - (theirs - target * count) / all_wanted
        for mine, (theirs, count) in zip(found, wanted, strict=True)
    ]
    correction = len(parts) / max(len(parts) - 1, 1)
    return Match(
        temperature=tau,
        wanted=target,
        achieved=mean,
        bound=max(total.high - total.entropy, total.entropy - total.low) / tokens,
        error=math.sqrt(correction * sum(part * part for part in parts)),
        problems=len(parts),
        tokens=total.tokens,
        rounds=rounds,
    )


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
    """The mean entropy that EM-INF left, in nats."""
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
