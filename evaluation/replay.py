"""A run from its journal: answers made again and graded, without a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from em_inf.evaluation.calibration import from_journal
from em_inf.evaluation.decoder_texts import parse
from em_inf.evaluation.decoding import Decoder, UnmatchedError
from em_inf.evaluation.gather import MissingError, Replayed
from em_inf.evaluation.journal import Journal
from em_inf.evaluation.plan import JOURNAL
from em_inf.evaluation.records import (
    Answer,
    Call,
    DecoderRecord,
    Grader,
    Problem,
    Run,
    Verdict,
    decoder_from_json,
    problem_from_json,
)


def load(folder: Path, grader: str | None = None) -> Run:
    """A run from its folder; answers that are not whole yet are left out.

    Args:
        folder: that holds the journal.
        grader: another one than the run's.

    Raises:
        PlanError: there is no journal, or it cannot be read.
    """
    journal = Journal.read(folder / JOURNAL)
    names = [value["name"] for value in journal.manifest["decoders"]]
    return assembled(journal, [parse(name) for name in names], grader)


def assembled(
    journal: Journal, decoders: Sequence[Decoder], grader: str | None = None
) -> Run:
    """The run that a journal holds, graded.

    Args:
        journal: of the run.
        decoders: the plan's, in its order.
        grader: another one than the run's.
    """
    from em_inf.evaluation.graders import grader as grader_of

    manifest = journal.manifest
    name = grader or str(manifest["identity"]["grader"])
    chosen = grader_of(name)
    problems = tuple(problem_from_json(value) for value in manifest["problems"])
    records = [decoder_from_json(value) for value in manifest["decoders"]]
    samples = int(manifest["run"]["samples"])
    answers: list[Answer] = []
    shown: list[DecoderRecord] = []
    for record, decoder in zip(records, decoders, strict=True):
        resolved, reason = asyncio.run(_resolved(decoder, journal))
        if resolved is not None:
            found = asyncio.run(replayed(journal, resolved, problems, samples, chosen))
            answers.extend(graded(found, chosen))
        shown.append(_shown(record, resolved, reason, journal))
    return Run(
        **{**manifest["run"], "concurrency": max(journal.concurrency)},
        grader=name,
        started=str(manifest["started"]),
        ended=journal.ended,
        decoders=tuple(shown),
        problems=problems,
        answers=tuple(answers),
        sampling=dict(manifest["identity"]["sampling"]),
    )


async def _resolved(decoder: Decoder, journal: Journal) -> tuple[Decoder | None, str]:
    try:
        return await decoder.resolved(from_journal(journal)), ""
    except UnmatchedError as error:
        return None, str(error)


async def replayed(
    journal: Journal,
    decoder: Decoder,
    problems: Sequence[Problem],
    samples: int,
    grader: Grader,
) -> list[tuple[Problem, int, str, tuple[Call, ...]]]:
    """Every whole answer of a decoder: its problem, sample, final text and calls."""
    found = []
    for problem in problems:
        for sample in range(samples):
            asking = Replayed(journal, grader, decoder.name, problem, sample)
            try:
                text = await decoder.answer(asking, problem.messages)
            except MissingError:
                continue
            calls = tuple(asking.calls[part] for part in sorted(asking.calls))
            found.append((problem, sample, text, calls))
    return found


def graded(
    found: Sequence[tuple[Problem, int, str, tuple[Call, ...]]], grader: Grader
) -> list[Answer]:
    """Answers with verdicts, graded in threads; a problem's equal texts only once."""
    texts = {(problem.id, text): problem for problem, _, text, _ in found}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts: dict[tuple[str, str], Verdict] = dict(
            zip(
                texts,
                pool.map(lambda key: grader.grade(key[1], texts[key]), texts),
                strict=True,
            )
        )
    return [
        Answer(
            calls[0].decoder, problem.id, sample, text,
            verdicts[problem.id, text], calls,
        )
        for problem, sample, text, calls in found
    ]  # fmt: skip


def _shown(
    record: DecoderRecord, resolved: Decoder | None, reason: str, journal: Journal
) -> DecoderRecord:
    """The record with what the run found out about the decoder."""
    request, notes = record.request, list(record.notes)
    if resolved is None:
        notes.append(reason)
    else:
        own = resolved.record()
        request = own.request
        notes += [note for note in own.notes if note not in notes]
    refused = [text for key, text in journal.refusals.items() if key[0] == record.name]
    if refused:
        notes.append(
            f"the server refused {len(refused)} requests, which count as answers without "
            f"text: {refused[0]}"
        )
    if len(journal.concurrency) > 1:
        numbers = ", ".join(map(str, sorted(journal.concurrency)))
        notes.append(f"in its sessions {numbers} requests were in flight at once")
    seconds = round(journal.seconds(record.name), 3)
    return replace(record, request=request, notes=tuple(notes), seconds=seconds)
