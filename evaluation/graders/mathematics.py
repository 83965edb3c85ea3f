"""Mathematical answers, compared by math-verify in processes that can be ended."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

from em_inf.evaluation.graders.announced import announced, spoken
from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.graders.latex import last_formula, plain_latex
from em_inf.evaluation.records import Problem, Verdict

_LONGEST = 2_000  # characters; no answer to compare is longer
_START_SECONDS = 300.0
_WALL_TO_CPU = 20  # a busy machine gives a process a part of its time


class _GaveUpError(Exception):
    """A worker ended, or did not answer in time."""


class _Worker:
    """One process of `math_worker.py`, used by one thread at a time."""

    def __init__(self) -> None:
        # By its path and with -P: its folder holds a code.py, which sympy would import.
        self._process = subprocess.Popen(  # noqa: S603 Our own file.
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.end = weakref.finalize(self, _end, self._process)
        self._rest = b""
        self._answer(_START_SECONDS)

    def ask(self, request: dict[str, Any], cpu_seconds: float) -> Any:
        """The result.

        Raises:
            _GaveUpError: it took too much time, or sympy failed; after the former the
                worker is ended.
        """
        assert self._process.stdin is not None
        line = json.dumps({**request, "cpu_seconds": cpu_seconds}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
            answer = self._answer(cpu_seconds * _WALL_TO_CPU)
        except OSError as error:
            raise self._gave_up(f"its process ended ({error})") from error
        if "error" in answer:
            raise _GaveUpError(answer["error"])
        return answer["result"]

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise self._gave_up("the time limit was reached")
            piece = os.read(pipe, 65_536)
            if not piece:
                raise self._gave_up("the CPU time or memory limit was reached")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gave_up(self, reason: str) -> _GaveUpError:
        self.end()
        return _GaveUpError(reason)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # What was to be written has no reader any more.
    process.wait()


class Mathematics:
    """Right where math-verify finds the text's answer equal to the problem's.

    The answer is the text's last box; else what it announces ("The answer is ...");
    else, unless `more["announced"]` is true, the last formula or number of the text. The
    problem's answer is LaTeX or plain, with or without dollar signs.

    Votes are counted on sympy's writing of the expanded answer; where sympy cannot, on
    its LaTeX without what is only for show. An answer that takes more than `cpu_seconds`
    of CPU time, or too much memory, to compare is not graded, and its process is ended.

    Args:
        cpu_seconds: for one comparison.
        processes: at most so many at once; each takes about 100 MB.
    """

    name = "math"

    def __init__(self, cpu_seconds: float = 5.0, processes: int | None = None) -> None:
        try:
            import math_verify  # noqa: F401
        except ImportError as error:
            raise GraderError(
                f"grader: math needs {error.name}, which is not installed; install "
                "em-inf[eval] (deploy/install cpu eval)"
            ) from error
        self.facts = {name: version(name) for name in ("math-verify", "sympy")}
        self._cpu_seconds = cpu_seconds
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes or min(4, os.cpu_count() or 1)):
            self._idle.put(None)  # Started when it is needed.
        self._canonical: dict[str, str] = {}

    def extract(self, text: str, problem: Problem) -> str | None:
        """The answer in a writing that equal answers share."""
        place = _place(text, problem)
        if place is None:
            return None
        latex = plain_latex(place)
        if latex not in self._canonical:
            self._canonical[latex] = self._write(place) or latex
        return self._canonical[latex] or None

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Compare with `problem.answer`.

        Raises:
            GraderError: the problem's answer is empty.
        """
        answer = str(problem.answer).strip()
        if not answer:
            raise GraderError(f"answer of problem {problem.id} is empty")
        place = _place(text, problem)
        found = None if place is None else self.extract(text, problem)
        if place is None or found is None:
            return Verdict("not_extracted")
        if plain_latex(place) == plain_latex(answer):
            return Verdict("right", found)
        request = {"do": "compare", "answer": _dollars(answer), "text": _dollars(place)}
        try:
            equal = self._ask(request, self._cpu_seconds)
        except _GaveUpError as error:
            return Verdict("not_graded", found, f"math-verify: {error}")
        if equal is None:
            reason = f"math-verify cannot read the problem's answer, {answer!r}"
            return Verdict("not_graded", found, reason)
        return Verdict("right" if equal else "wrong", found)

    def _write(self, place: str) -> str | None:
        seconds = min(2.0, self._cpu_seconds)
        try:
            return self._ask({"do": "canonical", "text": _dollars(place)}, seconds)
        except _GaveUpError:
            return None

    def _ask(self, request: dict[str, Any], cpu_seconds: float) -> Any:
        worker = self._idle.get()
        try:
            if worker is None or not worker.end.alive:
                worker = None
                worker = _Worker()
            return worker.ask(request, cpu_seconds)
        finally:
            self._idle.put(worker)


def _place(text: str, problem: Problem) -> str | None:
    """The part of a text that holds its answer; None where there is none."""
    said = spoken(text)
    place = announced(said)
    if place is None and not problem.more.get("announced"):
        place = last_formula(said)
    return None if place is None else place[:_LONGEST]


def _dollars(latex: str) -> str:
    """LaTeX between dollar signs, of which it has none inside."""
    return f"${latex.replace('$', '').strip()}$"
