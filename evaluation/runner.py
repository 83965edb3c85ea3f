"""A run from its plan to graded answers, resumable after whatever happens.

Problems are asked in blocks. In each block every decoder gets its turn, in an order that
moves on from block to block, and nobody else's requests are under way during it. So a
slow minute of the machine hits all decoders alike, and the wall time of its turns is the
time that a decoder took.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from em_inf.evaluation.calibration import from_journal, searching
from em_inf.evaluation.decoding import Decoder, UnmatchedError, together
from em_inf.evaluation.errors import DecoderError, NoEMInfError, PlanError
from em_inf.evaluation.gather import Asked, Session
from em_inf.evaluation.journal import FORMAT, Journal, now
from em_inf.evaluation.plan import JOURNAL, Plan, Progress, Silent, seed_of
from em_inf.evaluation.records import Grader, Problem, Run, as_json
from em_inf.evaluation.replay import assembled, load, replayed
from em_inf.evaluation.requests import Connection, Served

__all__ = ["evaluate", "load"]

BLOCK = 4
"""Answers of a block for each request in flight, at most. The fewer, the larger the share
of time in which a block waits for its last answers; it is never less than one."""
BLOCKS = 8
"""Turns that a decoder should get at least, where there are problems enough."""
_LIBRARIES = (
    "em-inf", "openai", "math-verify", "sympy", "numpy", "scipy", "statsmodels",
)  # fmt: skip
_SERVER = ("version", "vllm_version", "runner", "backend", "device", "default_settings")


def evaluate(plan: Plan, progress: Progress | None = None) -> Run:
    """Ask what its journal does not hold yet, grade everything, and return the run.

    A decoder whose temperature cannot be matched has no answers, and a note says why.
    Not to be called within a running event loop.

    Raises:
        PlanError: the plan cannot be carried out.
        GraderError: there is no such grader.
        openai.APIError: no server answers at the start.
        StoppedError: the server stopped answering; what it answered is in the journal,
            and the same plan goes on from there.
        KeyboardInterrupt: the user stopped it; the same holds.
    """
    from em_inf.evaluation.graders import grader

    with contextlib.ExitStack() as stack:
        chosen = grader(plan.grader)
        journal = asyncio.run(_asked(plan, chosen, progress or Silent(), stack))
        return assembled(journal, plan.decoders)


async def _asked(
    plan: Plan, grader: Grader, progress: Progress, stack: contextlib.ExitStack
) -> Journal:
    connection = Connection(plan, progress)
    async with connection.client:
        served = await connection.look()
        _check_em_inf(plan, served)
        journal = Journal.open(plan.folder / JOURNAL, _manifest(plan, served))
        # Requests that are broken off may still end while the event loop closes.
        stack.callback(journal.close)
        journal.start_session(plan.concurrency)
        gate = asyncio.Semaphore(plan.concurrency)
        session = Session(connection, journal, grader, gate, plan.seed)
        await _run(plan, session, progress)
        return journal


async def _run(plan: Plan, session: Session, progress: Progress) -> None:
    wanted = {(p.id, sample) for p in plan.problems for sample in range(plan.samples)}
    decoders: list[Decoder] = []
    missing: dict[str, set[tuple[str, int]]] = {}
    probed = False
    for decoder in plan.decoders:
        there = await _there(plan, session, decoder)
        if len(there) == len(wanted):
            decoders.append(decoder)
            missing[decoder.name] = set()
            continue
        if not probed:
            await _probe(plan, session)
            probed = True
        try:
            resolved = await decoder.resolved(searching(plan, session, progress))
        except UnmatchedError as error:
            if decoder.name == plan.baseline:
                raise PlanError(f"{decoder.name}, the baseline: {error}") from None
            progress.say(f"{decoder.name}: {error}")
            continue
        decoders.append(resolved)
        missing[decoder.name] = wanted - await _there(plan, session, resolved)
    left = sum(map(len, missing.values()))
    progress.begin(len(decoders) * len(wanted), len(decoders) * len(wanted) - left)
    answers = min(BLOCK * plan.concurrency, len(wanted) // BLOCKS)
    size = max(1, max(plan.concurrency, answers) // plan.samples)
    starts = range(0, len(plan.problems), size)
    for turn, start in enumerate(starts):
        block = plan.problems[start : start + size]
        for place in range(len(decoders)):
            decoder = decoders[(turn + place) % len(decoders)]
            await _block(session, decoder, block, missing[decoder.name], progress)


async def _block(
    session: Session,
    decoder: Decoder,
    problems: Sequence[Problem],
    missing: set[tuple[str, int]],
    progress: Progress,
) -> None:
    by_id = {problem.id: problem for problem in problems}
    order = {problem.id: place for place, problem in enumerate(problems)}
    todo = sorted(
        (key for key in missing if key[0] in by_id), key=lambda k: (order[k[0]], k[1])
    )
    if not todo:
        return

    async def one(problem: Problem, sample: int) -> None:
        asked = Asked(session, decoder, problem, sample)
        await decoder.answer(asked, problem.messages)
        progress.answered(decoder.name)

    session.next_block()
    await together([one(by_id[name], sample) for name, sample in todo])


async def _there(plan: Plan, session: Session, decoder: Decoder) -> set[tuple[str, int]]:
    """Problem and sample of each answer that the journal holds in whole."""
    try:
        from_journal_only = await decoder.resolved(from_journal(session.journal))
    except UnmatchedError:
        return set()
    found = await replayed(
        session.journal, from_journal_only, plan.problems, plan.samples, session.grader
    )
    return {(problem.id, sample) for problem, sample, _, _ in found}


async def _probe(plan: Plan, session: Session) -> None:
    """One token of each decoder, so that a setting that the server refuses is told.

    Raises:
        DecoderError: it refuses one; the server's sentence.
    """
    problem = plan.problems[0]
    for decoder in plan.decoders:
        first = decoder.first
        fields = {**first.fields, "em_inf": first.em_inf, "max_tokens": 1}
        seed = seed_of(plan.seed, problem.id, 0, 0)
        reply = await session.connection.ask(problem.messages, fields, seed)
        if reply.refused:
            raise DecoderError(f"{decoder.name}: the server refuses: {reply.refused}")


def _check_em_inf(plan: Plan, served: Served) -> None:
    needing = [decoder.name for decoder in plan.decoders if decoder.needs_em_inf]
    if needing and not served.em_inf:
        raise NoEMInfError(
            f"{plan.url} runs without EM-INF, which {needing[0]} needs; start it with "
            "`em-inf serve`, or compare only what needs none with --decoder plain"
        )


def _manifest(plan: Plan, served: Served) -> dict[str, Any]:
    """The journal's first line."""
    about = {name: served.em_inf[name] for name in _SERVER if name in served.em_inf}
    records = [
        replace(decoder.record(), paper=plan.paper.get(decoder.name))
        for decoder in plan.decoders
    ]
    parts = urlsplit(plan.url)
    return {
        "format": FORMAT,
        "started": now(),
        "identity": {**plan.identity, "model": served.model, "server": about},
        "run": {
            "task": plan.task,
            "command": plan.command,
            "url": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
            "model": served.model,
            "server": dict(served.em_inf),
            "versions": _versions(),
            "seed": plan.seed,
            "samples": plan.samples,
            "baseline": plan.baseline,
        },
        "decoders": [as_json(record) for record in records],
        "problems": [as_json(problem) for problem in plan.problems],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
