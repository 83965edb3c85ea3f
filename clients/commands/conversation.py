"""The state of `em-inf chat`: messages, settings, and the commands that change them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import openai

from em_inf.clients.commands.failures import USAGE, Failure
from em_inf.clients.commands.options import (
    SAMPLING,
    Setting,
    known_field,
    parse_value,
    sampling_value,
)
from em_inf.clients.report import Report
from em_inf.clients.settings import EMInf
from em_inf.clients.streams import EMInfStream, follow
from em_inf.clients.tokens import Token


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: all of it, or what came before it was stopped.
        stopped: by Ctrl-C.
        seconds: until its end, seen from here.
        report: None where EM-INF is off, or the answer was stopped.
        tokens: with their entropies, if they are to be shaded.
    """

    text: str
    stopped: bool
    seconds: float
    report: Report | None
    tokens: list[Token]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "text": self.text,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 4),
            "em_inf": self.report and self.report.model_dump(exclude_none=True),
        }


class Conversation:
    """A conversation with one model, whose settings may change between answers."""

    def __init__(
        self,
        client: openai.OpenAI,
        model: str,
        em_inf: Mapping[str, Any] | None,
        sampling: Mapping[str, Any],
        shade: bool,
    ) -> None:
        self.model = model
        self.messages: list[Any] = []
        self._client = client
        self._on = em_inf is not None
        self._em_inf = dict(em_inf or {})
        self._sampling = dict(sampling)
        self._shade = shade

    def described(self) -> str:
        """What the next answer gets, in words."""
        pairs = {**(self._em_inf if self._on else {}), **self._sampling}
        given = ", ".join(f"{name} {value}" for name, value in pairs.items())
        state = "EM-INF on" if self._on else "EM-INF off"
        return f"{state}; {given or 'the default settings'}" + (
            "; shaded" if self._shade else ""
        )

    def command(self, line: str) -> str:
        """Obey a line that starts with a slash.

        Returns:
            What to tell the user.

        Raises:
            Failure: no such command, or it is used wrongly.
            SettingsError: a value that no server accepts; nothing has changed then.
        """
        name, *words = line.split()
        match name, words:
            case "/set", [field, value]:
                self._set(field, value)
            case "/unset", [field]:
                self._unset(field)
            case "/preset", [preset]:
                EMInf(preset=preset)
                self._on, self._em_inf = True, {"preset": preset}
            case (("/on" | "/off"), []):
                self._on = name == "/on"
            case (("/temperature" | "/top_p"), [value]):
                self._set(name[1:], value)
            case "/shade", ["on" | "off" as state]:
                self._shade = state == "on"
            case "/settings", []:
                pass
            case "/reset", []:
                self.messages = [m for m in self.messages if m["role"] == "system"]
                return "the conversation is forgotten"
            case _:
                raise Failure(
                    USAGE, f"{line.strip()!r} is no command, or lacks a word; see /help"
                )
        return self.described()

    def _set(self, name: str, text: str) -> None:
        if name in SAMPLING:
            self._sampling[name] = sampling_value(name, text)
            return
        changed = {**self._em_inf, known_field(name): parse_value(text)}
        EMInf(**changed)
        self._on, self._em_inf = True, changed

    def _unset(self, name: str) -> None:
        given = self._sampling if name in SAMPLING else self._em_inf
        if name in SAMPLING or known_field(name) in given:
            given.pop(name.replace("-", "_"), None)

    def ask(self, text: str, show: Callable[[str], None]) -> Reply:
        """Send a message and stream the answer; Ctrl-C stops it.

        What was answered stays in the conversation; a message without an answer does not.

        Args:
            text: of the user.
            show: called with each piece of the answer.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        started = time.monotonic()
        asked: dict[str, Any] = {**self._sampling, "logprobs": self._shade}
        texts: list[str] = []
        stream: EMInfStream | None = None
        try:
            chunks = self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                stream=True,
                extra_body=self._field(),
                **asked,
            )
            with follow(chunks) as stream:
                for piece in stream:
                    texts.append(piece.text)
                    show(piece.text)
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        answer = "".join(texts)
        if answer:
            self.messages = [*messages, {"role": "assistant", "content": answer}]
        seconds = time.monotonic() - started
        if stopped or stream is None or not (self._on or self._shade):
            return Reply(answer, stopped, seconds, None, [])
        tokens = stream.tokens() if self._shade else []
        return Reply(answer, stopped, seconds, stream.report, tokens)

    def _field(self) -> EMInf:
        if self._shade:
            # Off is no gradient step then, so that entropies are measured.
            em_inf = self._em_inf if self._on else None
            return Setting("", em_inf, {}).request("trace")
        return EMInf(**self._em_inf) if self._on else EMInf(enabled=False)
