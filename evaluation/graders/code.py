"""Unit tests of code, run in a sandbox."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from em_inf.evaluation.graders import sandbox
from em_inf.evaluation.graders.announced import spoken
from em_inf.evaluation.graders.errors import GraderError
from em_inf.evaluation.graders.targets import source as target_source
from em_inf.evaluation.records import Problem, Verdict

_BLOCK = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_DEFINITION = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)
_LIMITS = {
    "cpu_seconds": (1, 3600),
    "wall_seconds": (1, 86_400),
    "memory_mb": (64, 65_536),
}


def code_in(text: str) -> str | None:
    """The program that a text gives; None where it gives none.

    The last fenced block, marked as Python or unmarked, that defines something; else the
    last such block; without any block the whole text, where that is a Python program
    that defines something.
    """
    said = spoken(text)
    blocks = [
        body
        for language, body in _BLOCK.findall(said)
        if language.lower() in ("", "python", "py", "python3")
    ]
    defining = [body for body in blocks if _DEFINITION.search(body)]
    if defining or blocks:
        return (defining or blocks)[-1].strip("\n") or None
    if "```" in said or not _DEFINITION.search(said):
        return None
    try:
        ast.parse(said)
    except SyntaxError:
        return None
    return said.strip("\n")


class Code:
    """Right where the tests of the problem run to their end on the text's program.

    The problem's answer is a piece of test code, or a list of such; `more["entry_point"]`
    the name that their function `check`, where they have one, is given; `more["setup"]`
    code that goes before the program; `more["cpu_seconds"]` (10), `more["wall_seconds"]`
    (60 and 12 times that of CPU time) and `more["memory_mb"]` (2048) its limits;
    `more["targets"]` what SciCode's tests compare with. Votes
    are counted on the program's syntax tree: white space and comments do not count.

    A program over its CPU or memory limit is wrong. One that is still there at the
    wall-clock limit is not graded: it slept, or this machine is very busy.

    Attributes:
        isolation: what is in force here, "namespaces+seccomp" for example; the report
            says it.
    """

    name = "code"

    def __init__(self) -> None:
        """Find out what isolation this machine has.

        Raises:
            GraderError: none, and EM_INF_SANDBOX does not say "none" either.
        """
        wanted = os.environ.get(sandbox.VARIABLE, "auto")
        if wanted not in sandbox.LEVELS:
            raise GraderError(
                f"{sandbox.VARIABLE}: {wanted!r} is not allowed; allowed: "
                f"{', '.join(sandbox.LEVELS)}"
            )
        self._level, self.isolation = _probe(wanted)
        self.facts = {"sandbox of the grader code": self.isolation}

    def extract(self, text: str, problem: Problem) -> str | None:
        """The program, as its syntax tree would be written; as it is, if it has none."""
        del problem
        program = code_in(text)
        if program is None:
            return None
        try:
            return ast.unparse(ast.parse(program))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return program

    def grade(self, text: str, problem: Problem) -> Verdict:
        """Run the tests.

        Raises:
            GraderError: the problem has no tests, or a limit that is none.
        """
        job = _job(problem)
        program = code_in(text)
        if program is None:
            return Verdict("not_extracted")
        found = self.extract(text, problem)
        outcome = sandbox.run(job(program), self._level)
        if outcome.passed and outcome.in_force == self.isolation:
            return Verdict("right", found)
        if outcome.out_of_time or not outcome.isolated:
            return Verdict("not_graded", found, outcome.reason)
        if outcome.in_force not in ("", self.isolation):
            reason = f"isolation was {outcome.in_force}, not {self.isolation}"
            return Verdict("not_graded", found, reason)
        return Verdict("wrong", found, outcome.reason)


def _probe(wanted: str) -> tuple[str, str]:
    """The level to run at, and what is then in force."""
    for level in (wanted, "seccomp") if wanted == "auto" else (wanted,):
        outcome = sandbox.run(sandbox.Job("", ["pass"]), level)
        if outcome.passed and (outcome.in_force != "none" or level == "none"):
            return level, outcome.in_force
    raise GraderError(
        "grader: code runs strangers' programs, and this machine isolates none of them "
        f"({outcome.reason or 'neither namespaces nor seccomp'}); run it on Linux, or "
        f"set {sandbox.VARIABLE}=none to run them with your own rights"
    )


def _job(problem: Problem) -> Any:
    answer = problem.answer
    tests = [answer] if isinstance(answer, str) else answer
    if (
        not isinstance(tests, list | tuple)
        or not tests
        or not all(isinstance(test, str) and test.strip() for test in tests)
    ):
        raise GraderError(
            f"answer of problem {problem.id}: {answer!r} is not allowed; allowed: a text "
            "of test code, or a list of such texts"
        )
    cpu_seconds = problem.more.get("cpu_seconds", 10)
    limits = {"cpu_seconds": 10, "wall_seconds": 60, "memory_mb": 2048}
    if isinstance(cpu_seconds, int):
        limits["wall_seconds"] += 12 * cpu_seconds
    for key, (low, high) in _LIMITS.items():
        value = problem.more.get(key, limits[key])
        if not isinstance(value, int) or not low <= value <= high:
            raise GraderError(
                f"{key} of problem {problem.id}: {value!r} is not allowed; allowed: a "
                f"whole number from {low} to {high}"
            )
        limits[key] = value
    setup = str(problem.more.get("setup", ""))
    imports = sorted(
        {name for test in (setup, *tests) for name in _imports(test, problem)}
    )

    targets: Any = problem.more.get("targets")
    if targets is not None:
        tests = [
            target_source(Path(targets["file"]), step, count) + test
            for step, count, test in zip(
                targets["steps"], targets["counts"], tests, strict=True
            )
        ]
        imports += ["base64", "numpy", "scipy.sparse"]

    def job(program: str) -> sandbox.Job:
        return sandbox.Job(
            code=f"{setup}\n{program}" if setup else program,
            tests=tests,
            entry_point=problem.more.get("entry_point"),
            imports=imports,
            cpu_seconds=limits["cpu_seconds"],
            wall_seconds=limits["wall_seconds"],
            memory_bytes=limits["memory_mb"] << 20,
        )

    return job


def _imports(source: str, problem: Problem) -> set[str]:
    """Modules that a piece of test code imports."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise GraderError(
            f"answer of problem {problem.id}: its tests are no Python: {error}"
        ) from error
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found
