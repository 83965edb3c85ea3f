"""The journal of a run: one JSON line for each request that was answered.

    {"manifest": {...}}       first: everything that decides about the answers
    {"session": {...}}        the run was started, or started again
    {"call": {...}, ...}      an answer, and when in its block of requests it came
    {"look": {...}}           an answer of the search for a temperature
    {"match": {...}}          what that search found, or why it found nothing

A line is on the disk before its answer counts. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from em_inf.evaluation.errors import JournalError
from em_inf.evaluation.records import Call, as_json, call_from_json

FORMAT = 1
CallKey = tuple[str, str, int, int]
LookKey = tuple[str, str, str]
"""Decoder, what was measured, and the problem's id."""


class Journal:
    """Everything that a run has learnt so far.

    Attributes:
        path: of the file.
        manifest: its first line.
        calls: answers by their key.
        looks: answers of searches for a temperature.
        matches: what those searches found, by decoder; a text where they found nothing.
        refusals: sentences of the server's for calls that it refused.
        ended: when its last answer came, ISO 8601, UTC.
        sessions: how often it was started.
        concurrency: requests in flight at once, of all sessions.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.calls: dict[CallKey, Call] = {}
        self.looks: dict[LookKey, dict[str, Any]] = {}
        self.matches: dict[str, dict[str, Any] | str] = {}
        self.refusals: dict[CallKey, str] = {}
        self.ended = str(manifest.get("started", ""))
        self.sessions = 0
        self.concurrency: set[int] = set()
        self._file: BinaryIO | None = None
        # Decoder to the latest answer of each session and block, seconds from its start.
        self._elapsed: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """A journal as it stands, which another run may be writing.

        Raises:
            JournalError: there is none, or it is damaged.
        """
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
        journal = cls._parsed(path, raw)
        if journal is None:
            raise JournalError(f"{path}: holds no run yet")
        return journal

    @classmethod
    def open(cls, path: Path, manifest: Mapping[str, Any]) -> Journal:
        """Start a journal, or go on with one, for this process alone.

        A last line without an end, which a killed process leaves, is cut off.

        Args:
            path: of the file; its folder is made.
            manifest: what is going to be run; `identity` must be that of the journal.

        Raises:
            JournalError: another process writes it, it is another run's or damaged.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise JournalError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JournalError(
                    f"{path}: another run is writing it; wait for its end, or choose "
                    "another folder"
                ) from None
            file.seek(0)
            raw = file.read()
            journal = cls._parsed(path, raw)
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                file.truncate(whole)
            if journal is None:
                journal = cls(path, manifest)
            else:
                _check_same(path, journal.manifest["identity"], manifest["identity"])
        except BaseException:
            file.close()
            raise
        journal._file = file
        if whole == 0:
            journal._write({"manifest": manifest})
            _sync_folder(path.parent)
        return journal

    def start_session(self, concurrency: int) -> None:
        """From now on, so many requests are in flight at once."""
        line = {"session": {"started": now(), "concurrency": concurrency}}
        self._write(line)
        self._take(line)

    @classmethod
    def _parsed(cls, path: Path, raw: bytes) -> Journal | None:
        lines = raw.split(b"\n")[:-1]  # What follows the last line break is torn.
        journal: Journal | None = None
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if journal is None:
                    if value["manifest"]["format"] != FORMAT:
                        raise ValueError("written by another version")
                    journal = cls(path, value["manifest"])
                else:
                    journal._take(value)
            except (ValueError, KeyError, TypeError) as error:
                raise JournalError(
                    f"{path}, line {number}: is no line of a run's journal ({error!r}); "
                    "the file was changed or damaged, choose another folder"
                ) from None
        return journal

    def _take(self, line: Mapping[str, Any]) -> None:
        if "call" in line:
            call = call_from_json(line["call"])
            self.calls[call.key] = call
            place = int(line["session"]), int(line["block"])
            blocks = self._elapsed[call.decoder]
            blocks[place] = max(blocks.get(place, 0.0), float(line["elapsed"]))
            if line.get("refused"):
                self.refusals[call.key] = line["refused"]
            self.ended = line["at"]
        elif "look" in line:
            look = line["look"]
            self.looks[look["decoder"], look["what"], look["problem"]] = look
        elif "match" in line:
            self.matches[line["match"]["decoder"]] = line["match"]["found"]
        elif "session" in line:
            self.sessions += 1
            self.concurrency.add(int(line["session"]["concurrency"]))
        else:
            raise KeyError("call")

    def add_call(
        self, call: Call, block: int, elapsed: float, refused: str | None
    ) -> None:
        """Keep an answer.

        Args:
            call: the answer.
            block: of requests that were asked together, in this session.
            elapsed: from the start of the block, in seconds.
            refused: the server's sentence where it refused this request.
        """
        line = {
            "call": as_json(call), "session": self.sessions, "block": block,
            "elapsed": round(elapsed, 6), "at": now(), "refused": refused,
        }  # fmt: skip
        self._write(line)
        self._take(line)

    def add_look(self, look: Mapping[str, Any]) -> None:
        """Keep an answer of a search: `decoder`, `what`, `problem`, and its figures."""
        self._write({"look": look})
        self._take({"look": look})

    def add_match(self, decoder: str, found: Any) -> None:
        """Keep what a search found: a record, or a sentence where it found nothing."""
        value = found if isinstance(found, str) else asdict(found)
        line = {"match": {"decoder": decoder, "found": value}}
        self._write(line)
        self._take(line)

    def seconds(self, decoder: str) -> float:
        """Wall time in which a decoder's problems were asked, in all sessions.

        Problems are asked in blocks, each decoder's turn by turn, and nobody else's at
        the same time. A block lasts from its first request to its last answer; one that
        was broken off, to the last answer that was kept.
        """
        return sum(self._elapsed[decoder].values())

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def now() -> str:
    """The time, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises: JournalError where two plans differ, with what differs."""
    # Through JSON, where a tuple is a list.
    new = json.loads(json.dumps(new))
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            before, after = _difference(old.get(name), new.get(name))
            raise JournalError(
                f"{path}: is the journal of another run: its {name} is {before}, and "
                f"now it would be {after}; choose another folder, or ask as before"
            )


def _difference(old: Any, new: Any) -> tuple[str, str]:
    """Two unequal values, where they differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        old = {key: old[key] for key in keys if key in old}
        new = {key: new[key] for key in keys if key in new}
    shown = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    return _short(shown[0]), _short(shown[1])


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
