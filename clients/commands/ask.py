"""One prompt, one setting, one answer, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import openai

from em_inf.clients.commands.options import Setting
from em_inf.clients.report import ChoiceReport, Report
from em_inf.clients.streams import Delta, follow
from em_inf.clients.tokens import Token


@dataclass(frozen=True)
class Question:
    """What to ask, and how to sample.

    Attributes:
        model: its name on the server.
        messages: the conversation; the one text of a completion.
        completion: use /v1/completions.
        sampling: the request's other fields: temperature, seed, max_tokens and so on.
    """

    model: str
    messages: Sequence[Any]
    completion: bool
    sampling: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """An answer and what EM-INF did to it.

    Attributes:
        finish_reason: "stop" or "length", as the server says.
        seconds: from the request to the end of the answer, seen from here.
        first_token_seconds: from the request to the first text.
    """

    setting: Setting
    text: str
    finish_reason: str | None
    seconds: float
    first_token_seconds: float
    report: Report
    tokens: list[Token]

    @property
    def choice(self) -> ChoiceReport:
        """The figures of the one choice."""
        return self.report.choices[0]

    def as_json(self, with_tokens: bool = False) -> dict[str, Any]:
        """For `--json`; entropies in nats."""
        figures = self.choice.model_dump(exclude={"index", "trace"}, exclude_none=True)
        body = {
            "setting": self.setting.name,
            **dict(self.setting.sampling),
            "em_inf": self.report.settings.model_dump(exclude_none=True),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "seconds": round(self.seconds, 4),
            "first_token_seconds": round(self.first_token_seconds, 4),
            **figures,
        }
        if with_tokens:
            # The list takes the place of the number of tokens, which is its length.
            body["tokens"] = [
                {k: v for k, v in asdict(token).items() if v is not None}
                for token in self.tokens
            ]
        return body


def warm_up(client: openai.OpenAI, question: Question, setting: Setting) -> None:
    """Ask for one token, so that what comes next is not timed with what comes once.

    Connections, the SDK's own loading and the prompt's cache would else be counted for
    whichever answer comes first.
    """
    once = {**question.sampling, "max_tokens": 1}
    ask(client, replace(question, sampling=once), setting)


def ask(
    client: openai.OpenAI,
    question: Question,
    setting: Setting,
    seen: Callable[[Delta], None] = lambda _: None,
) -> Outcome:
    """Stream an answer with its trace, and wait for its end.

    Args:
        client: of the server.
        question: what to ask.
        setting: how to decode; its sampling goes before the question's.
        seen: called with each piece as it comes.
    """
    sampling = {**question.sampling, **setting.sampling}
    body: dict[str, Any] = {"model": question.model, "stream": True, **sampling}
    body["extra_body"] = setting.request("trace")
    started = time.monotonic()
    if question.completion:
        prompt = question.messages[-1]["content"]
        chunks = client.completions.create(prompt=prompt, logprobs=0, **body)
    else:
        chunks = client.chat.completions.create(
            messages=question.messages, logprobs=True, **body
        )
    texts: list[str] = []
    reason = None
    first = 0.0
    with follow(chunks) as stream:
        for piece in stream:
            first = first or time.monotonic() - started
            texts.append(piece.text)
            reason = piece.chunk.choices[0].finish_reason or reason
            seen(piece)
    seconds = time.monotonic() - started
    report, tokens = stream.report, stream.tokens()
    return Outcome(setting, "".join(texts), reason, seconds, first, report, tokens)
