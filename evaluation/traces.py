"""Entropies behind the report's example answers, asked for after the run.

A run asks for no traces, which cost the server work and would be timed with the answers.
So the last request of each example answer is sent once more, with its seed, and a trace.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import openai

from em_inf.clients.errors import NoReportError
from em_inf.clients.tokens import Token
from em_inf.evaluation.decoder_texts import parse
from em_inf.evaluation.decoding import Decoder, Messages, Plain
from em_inf.evaluation.errors import DecoderError
from em_inf.evaluation.plan import Plan, Silent
from em_inf.evaluation.records import (
    Answer,
    Call,
    DecoderRecord,
    Grader,
    Problem,
    Run,
    TracedAnswer,
    TracedToken,
)
from em_inf.evaluation.report.examples import examples
from em_inf.evaluation.requests import Connection

FILE = "traces.json"
"""Beside the run's journal."""


def with_traces(plan: Plan, run: Run) -> Run:
    """The run with a trace of each answer that its report shows whole.

    Answers whose trace cannot be had stay without one: the server has no EM-INF or does
    not answer, or the decoder cannot be made again. Keeps the traces in the plan's
    folder, and asks for none that is there.

    Args:
        plan: that the run came from.
        run: with its answers.
    """
    run = with_kept_traces(run, plan.folder)
    have = {(trace.decoder, trace.problem, trace.sample) for trace in run.traces}
    wanted = [
        (example.problem, answer)
        for example in examples(run)
        for answer in example.shown
        if (answer.decoder, answer.problem, answer.sample) not in have
    ]
    if not wanted or not run.server:
        return run
    traces = (*run.traces, *asyncio.run(_asked(plan, run, wanted)))
    text = json.dumps([asdict(trace) for trace in traces], ensure_ascii=False)
    (plan.folder / FILE).write_text(text + "\n", encoding="utf-8")
    return replace(run, traces=traces)


def with_kept_traces(run: Run, folder: Path) -> Run:
    """The run with the traces that an earlier session kept in its folder."""
    if not (folder / FILE).exists():
        return run
    kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    traces = tuple(
        TracedAnswer(**{**of, "tokens": tuple(TracedToken(**t) for t in of["tokens"])})
        for of in kept
    )
    return replace(run, traces=traces)


@dataclass
class _Recalled:
    """Makes an answer again from its own calls, and remembers what was sent.

    Attributes:
        sent: messages and fields of each part.
    """

    calls: Mapping[int, Call]
    grader: Grader
    problem: Problem
    sent: dict[int, tuple[Messages, Mapping[str, Any]]] = field(default_factory=dict)

    async def call(
        self, part: int, messages: Messages, fields: Mapping[str, Any]
    ) -> Call:
        self.sent[part] = messages, fields
        return self.calls[part]

    def extract(self, text: str) -> str | None:
        return self.grader.extract(text, self.problem)


async def _asked(
    plan: Plan, run: Run, wanted: Sequence[tuple[Problem, Answer]]
) -> list[TracedAnswer]:
    from em_inf.evaluation.graders import grader

    chosen = grader(run.grader)
    records = {record.name: record for record in run.decoders}
    connection = Connection(plan, Silent())
    found = []
    try:
        await connection.look()
        for problem, answer in wanted:
            decoder = _decoder(records[answer.decoder])
            trace = await _one(connection, decoder, problem, answer, chosen)
            found += [trace] if trace else []
    except openai.APIError:
        pass  # The server has gone; the report does without.
    finally:
        await connection.client.close()
    return found


def _decoder(record: DecoderRecord) -> Decoder:
    """The decoder as it ran; a matched one with the temperature that was found."""
    if record.kind != "matched":
        return parse(record.name)
    fields = {name: of for name, of in record.request.items() if name != "em_inf"}
    return Plain(name=record.name, kind=record.kind, fields=fields)


async def _one(
    connection: Connection,
    decoder: Decoder,
    problem: Problem,
    answer: Answer,
    chosen: Grader,
) -> TracedAnswer | None:
    recalled = _Recalled({call.part: call for call in answer.calls}, chosen, problem)
    try:
        text = await decoder.answer(recalled, problem.messages)
    except DecoderError:
        return None  # A matched temperature within another decoder.
    last = max(call.part for call in answer.calls if call.text == text)
    messages, fields = recalled.sent[last]
    try:
        said, tokens = await connection.trace(messages, fields, recalled.calls[last].seed)
    except NoReportError:
        return None
    return TracedAnswer(
        answer.decoder,
        answer.problem,
        answer.sample,
        tuple(map(_token, tokens)),
        same_text=said == text,
    )


def _token(token: Token) -> TracedToken:
    return TracedToken(token.text, token.entropy_before, token.entropy_after)
