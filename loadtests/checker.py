"""Whether an answer belongs to its request: load tests trust nothing else.

The right text of every question is asked for beforehand, greedily and alone. Under load,
each request carries a nonce of its own as request id (or in a prompt that is echoed) and
a threshold of its own, and its answer must bring back all three: the id, the settings and
the words, with the entropies of just those words. Which words EM-INF has to touch at
that threshold follows from their entropies; a worker that does nothing, or that runs one
request with the settings of another, touches others. Some requests sample: a seed, and
several choices, whose words and figures must be those of the same request sent alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from em_inf.loadtests.client import ask_plainly, connection
from em_inf.server.demo_model.problems import problems

MAX_TOKENS = 24
NEAR_TIE_NATS = 0.1
"""A greedy choice closer than this could fall otherwise beside other rows of a batch."""

ENTROPY_NATS = 2e-3
"""How far an answer's mean entropy may be from the one asked for alone."""

CHOICES = 3
"""Of a request that samples."""

SAMPLED = {"n_grad_steps": 5, "threshold": 0.25}
"""The settings of a request that samples, with EM-INF on."""

TOUCHED_NATS = 0.35
"""An entropy that every threshold of `mixed_settings` is below."""


@dataclass(frozen=True)
class Known:
    """A question and its right answer.

    Attributes:
        question: what to ask.
        text: the greedy answer, of at most `MAX_TOKENS` tokens.
        tokens: how many it has.
        entropies: of each token before EM-INF, in nats.
        sampled: "on" and "off" to `answers_of` the request that samples.
    """

    question: str
    text: str
    tokens: int
    entropies: tuple[float, ...]
    sampled: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def entropy(self) -> float:
        """Mean over the tokens, in nats."""
        return sum(self.entropies) / len(self.entropies)


@dataclass(frozen=True)
class Asked:
    """One request under load.

    Attributes:
        nonce: its id, unlike any other's.
        known: what it asks, and what must come back.
        em_inf: the settings that it sends; None for a request with EM-INF off.
    """

    nonce: str
    known: Known
    em_inf: dict[str, Any] | None

    def body(self, model: str) -> dict[str, Any]:
        """Of a chat completion."""
        messages = [{"role": "user", "content": self.known.question}]
        return {**self._common(model), "messages": messages, "max_tokens": MAX_TOKENS}

    def echo_body(self, model: str) -> dict[str, Any]:
        """Of a completion whose prompt holds the nonce, and comes back."""
        prompt = f"{self.nonce}: {self.known.question}"
        return {**self._common(model), "prompt": prompt, "echo": True, "max_tokens": 4}

    def sampled_body(self, model: str) -> dict[str, Any]:
        """Of a chat completion with a seed and several choices."""
        body = self.body(model)
        sampling = {"temperature": 1, "seed": len(self.known.question), "n": CHOICES}
        return {**body, **sampling, "em_inf": SAMPLED if self.em_inf else False}

    def wrong_sampled(self, answer: dict[str, Any]) -> str | None:
        """As `wrong`, for a whole answer to `sampled_body`."""
        if answer["id"] != f"chatcmpl-{self.nonce}":
            return f"id {answer['id']} for {self.nonce}"
        found = answers_of(answer)
        expected = self.known.sampled["on" if self.em_inf else "off"]
        for name in ("texts", "tokens"):
            if found[name] != expected[name]:
                return f"{name} {found[name]!r} for {expected[name]!r}"
        if len(found["figures"]) != len(expected["figures"]):
            return f"figures {found['figures']} for {expected['figures']}"
        for one, other in zip(found["figures"], expected["figures"], strict=True):
            if one.keys() != other.keys() or any(
                abs(one[name] - other[name]) > ENTROPY_NATS for name in one
            ):
                return f"figures {one} for {other}"
        return None

    def _common(self, model: str) -> dict[str, Any]:
        em_inf = False if self.em_inf is None else self.em_inf
        return {"model": model, "temperature": 0, "em_inf": em_inf}

    def wrong(
        self, answer_id: str, text: str, tokens: int, em_inf: dict[str, Any] | None
    ) -> str | None:
        """What shows that a chat's answer is another's, or damaged; None if nothing.

        Args:
            answer_id: the field `id` of the answer.
            text: of the answer.
            tokens: as `usage` counts them.
            em_inf: its report.
        """
        if answer_id != f"chatcmpl-{self.nonce}":
            return f"id {answer_id} for {self.nonce}"
        if text != self.known.text:
            return f"text {text!r} for {self.known.text!r}"
        if tokens != self.known.tokens:
            return f"{tokens} tokens for {self.known.tokens}"
        return self._wrong_report(em_inf, self.known.tokens, self.known.entropies)

    def wrong_echo(
        self, answer_id: str, text: str, tokens: int, em_inf: dict[str, Any] | None
    ) -> str | None:
        """As `wrong`, for an echoed completion."""
        if answer_id != f"cmpl-{self.nonce}":
            return f"id {answer_id} for {self.nonce}"
        if not text.startswith(f"{self.nonce}: {self.known.question}"):
            return f"prompt {text[:60]!r} for {self.nonce}"
        return self._wrong_report(em_inf, tokens, None)

    def _wrong_report(
        self,
        em_inf: dict[str, Any] | None,
        tokens: int,
        entropies: Sequence[float] | None,
    ) -> str | None:
        if self.em_inf is None or em_inf is None:
            same = em_inf is None and self.em_inf is None
            return None if same else f"report {em_inf} for settings {self.em_inf}"
        if not self.em_inf.items() <= em_inf["settings"].items():
            return f"settings {em_inf['settings']} for {self.em_inf}"
        (choice,) = em_inf["choices"]
        if choice.get("tokens") != tokens or "tokens_not_recorded" in choice:
            return f"report {choice} for {tokens} tokens"
        if entropies is None:
            return None
        found = choice["mean_entropy_before"]
        if abs(found - self.known.entropy) > ENTROPY_NATS:
            return f"mean entropy {found} for {self.known.entropy}"
        return _wrong_work(choice, self.em_inf, entropies)


def answers_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The words, the tokens and the figures of an answer with several choices."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    report = answer.get("em_inf") or {"choices": []}
    return {
        "texts": [choice["message"]["content"] for choice in choices],
        "tokens": answer["usage"]["completion_tokens"],
        "figures": report["choices"],
    }


def _wrong_work(
    choice: dict[str, Any], settings: dict[str, Any], entropies: Sequence[float]
) -> str | None:
    """What shows that EM-INF did not do what these settings ask; None if nothing.

    Args:
        choice: figures of the answer's only choice.
        settings: a threshold, and a step count for the method that has one.
        entropies: of each token before EM-INF, as asked for alone, in nats.
    """
    threshold = settings["threshold"]
    touched = choice["tokens_minimized"]
    least, most = (
        sum(nats >= threshold + slack for nats in entropies)
        for slack in (ENTROPY_NATS, -ENTROPY_NATS)
    )
    if not least <= touched <= most:
        return f"{touched} tokens minimized at {threshold}, not {least} to {most}"
    if "n_grad_steps" in settings:
        steps = choice["grad_steps"]
        if not touched <= steps <= touched * settings["n_grad_steps"]:
            return f"{steps} steps on {touched} tokens for {settings}"
    before, after = choice["mean_entropy_before"], choice["mean_entropy_after"]
    if touched and not after < before - ENTROPY_NATS / len(entropies):
        return f"mean entropy {after} after, {before} before, {touched} minimized"
    if not touched and abs(after - before) > 1e-6:
        return f"mean entropy {after} after, {before} before, none minimized"
    return None


def mixed_settings(number: int) -> dict[str, Any]:
    """Settings of the so-manieth request: both methods, and a threshold of its own."""
    threshold = round(0.2 + number % 100_000 * 1e-6, 6)
    if number % 4 == 3:
        return {"method": "adaptive_temperature", "threshold": threshold}
    return {"n_grad_steps": (1, 5, 15)[number % 4], "threshold": threshold}


def questions(url: str, key: str, model: str, count: int) -> list[Known]:
    """Ask alone, one after another, until so many answers can be relied on.

    Left out are answers with a near tie, those that another question has too, and those
    in which no setting of ours has anything to do.
    """
    found: dict[str, Known] = {}

    async def look() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with connection(1, headers) as session:
            for problem in islice(problems("held_out", 77), 40 * count):
                body = {
                    **Asked("", Known(problem.question, "", 0, ()), {}).body(model),
                    "logprobs": True,
                    "top_logprobs": 2,
                    "em_inf": {"preset": "measure", "report": "trace"},
                }
                known = read_known(
                    problem.question, await ask_plainly(session, url, body)
                )
                if known is None or max(known.entropies) <= TOUCHED_NATS:
                    continue
                if known.text not in found:
                    for name, em_inf in (("on", SAMPLED), ("off", None)):
                        body = Asked("", known, em_inf).sampled_body(model)
                        answer = await ask_plainly(session, url, body)
                        known.sampled[name] = answers_of(answer)
                    found[known.text] = known
                if len(found) == count:
                    return
            raise ValueError(f"only {len(found)} of {count} answers can be relied on")

    asyncio.run(look())
    return list(found.values())


def read_known(question: str, answer: dict[str, Any]) -> Known | None:
    """The answer to a question asked alone; None where it has a near tie."""
    (choice,) = answer["choices"]
    for token in choice["logprobs"]["content"]:
        first, second = (entry["logprob"] for entry in token["top_logprobs"][:2])
        if first - second < NEAR_TIE_NATS:
            return None
    return Known(
        question,
        choice["message"]["content"],
        answer["usage"]["completion_tokens"],
        tuple(answer["em_inf"]["choices"][0]["trace"]["entropy_before"]),
    )


def save(known: Sequence[Known], path: Path) -> None:
    """Write what is known, for the processes that make the load."""
    path.write_text(json.dumps([asdict(one) for one in known]))


def load(path: Path) -> list[Known]:
    """Read what `save` wrote."""
    found = json.loads(path.read_text())
    return [Known(**{**one, "entropies": tuple(one["entropies"])}) for one in found]
