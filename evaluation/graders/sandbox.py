"""Runs a stranger's Python program with its tests, shut in.

The child process has no environment, no inherited file but its pipes, a session and an
empty folder of its own, limits of CPU time, memory and file size, and the isolation of
`isolation.py`. Nothing that it writes is read but one short, bounded result.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "EM_INF_SANDBOX"
LEVELS = ("auto", "seccomp", "none")
_HERE = Path(__file__).parent
_RESULT_BYTES = 65_536


@dataclass(frozen=True)
class Job:
    """A program and its tests.

    Attributes:
        code: run first, as a module called "solution".
        tests: pieces of code, run one after another in the same names. A
            `unittest.TestCase` in them is run too.
        entry_point: of the code; given to the tests' function `check`, where there is
            one.
        imports: modules that the tests use, imported before the code runs.
        cpu_seconds: CPU time in all, beside what starting Python takes.
        wall_seconds: from start to end.
        memory_bytes: of address space.
    """

    code: str
    tests: Sequence[str]
    entry_point: str | None = None
    imports: Sequence[str] = ()
    cpu_seconds: int = 10
    wall_seconds: float = 120.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        passed: every test ran to its end, and the token came back.
        reason: why not, as a sentence; "" where it passed.
        in_force: the isolation that held: "namespaces+seccomp", "namespaces", "seccomp",
            "none", or "" where the process ended before it could say.
        out_of_time: the wall-clock limit ended it.
        isolated: False where the isolation itself failed and nothing was run.
    """

    passed: bool
    reason: str = ""
    in_force: str = ""
    out_of_time: bool = False
    isolated: bool = True


def run(job: Job, level: str = "auto") -> Outcome:
    """Run a job to its end or its limit; every process that it started is gone then.

    Args:
        job: what to run.
        level: "auto", all that the kernel lets; "seccomp", without namespaces; "none".
    """
    token = secrets.token_hex(32)
    token_read, token_write = os.pipe()
    result_read, result_write = os.pipe()
    os.write(token_write, token.encode())
    os.close(token_write)
    message = {
        "code": job.code,
        "tests": list(job.tests),
        "entry_point": job.entry_point,
        "imports": list(job.imports),
        "cpu_seconds": job.cpu_seconds,
        "memory_bytes": job.memory_bytes,
        "isolation": level,
        "isolation_file": str(_HERE / "isolation.py"),
        "pipes": [token_read, result_write],
    }
    with tempfile.TemporaryDirectory(prefix="em-inf-") as folder:
        process = subprocess.Popen(  # noqa: S603 Our own file.
            [sys.executable, "-I", "-B", str(_HERE / "harness.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            pass_fds=(token_read, result_write),
            start_new_session=True,
        )
        os.close(token_read)
        os.close(result_write)
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(message).encode())
                process.stdin.close()
            except BrokenPipeError:
                pass  # Killed while it read; the exit code tells.
            result, in_time = _read(result_read, job.wall_seconds)
        finally:
            os.close(result_read)
            if process.poll() is None:
                _kill(process)
    return _outcome(result, in_time, token, process.returncode)


def _read(pipe: int, seconds: float) -> tuple[bytes, bool]:
    """What the child sends until it closes the pipe, and whether it did so in time."""
    found, end = b"", time.monotonic() + seconds
    while len(found) < _RESULT_BYTES:
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return found, False
        piece = os.read(pipe, _RESULT_BYTES)
        if not piece:
            break
        found += piece
    return found, True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child's session; its namespace ends with it."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.2)  # It has sent its result and is about to end.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(result: bytes, in_time: bool, token: str, code: int) -> Outcome:
    """What the child's lines say; only the token makes it a pass."""
    lines = result.decode(errors="replace").splitlines()
    first, _, in_force = lines[0].partition(" ") if lines else ("", "", "")
    if first == "refused":
        return Outcome(False, f"isolation: {in_force}", isolated=False)
    if not in_time:
        reason = "the wall-clock limit was reached"
        return Outcome(False, reason, in_force, out_of_time=True)
    last, _, rest = lines[-1].partition(" ") if len(lines) > 1 else ("", "", "")
    if last == "passed" and secrets.compare_digest(rest.encode(), token.encode()):
        return Outcome(True, "", in_force)
    if last == "failed":
        return Outcome(False, rest, in_force)
    return Outcome(False, _ended(code), in_force)


def _ended(code: int) -> str:
    """Why a process ended that sent nothing."""
    names = {-int(s): s.name for s in signal.Signals}
    # In namespaces the parent ends with the number of the signal that ended the child.
    if code in (-signal.SIGXCPU, signal.SIGXCPU, -signal.SIGKILL, signal.SIGKILL):
        return "the CPU time limit was reached, or the process was killed"
    name = names.get(code, f"code {code}")
    return f"the process ended before its tests did ({name})"
