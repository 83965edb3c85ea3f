"""The journal: nothing finished is lost, whatever happens to its last line."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from em_inf.evaluation.errors import JournalError
from em_inf.evaluation.journal import FORMAT, Journal
from em_inf.evaluation.records import Call

CALL = Call("greedy", "q1", 0, 0, 7, "is 4 \u2028", "stop", 9, 3, 0, 0, 0.5, 0.5, 0.1)


def manifest(**identity: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "started": "2026-01-01T00:00:00+00:00",
        "identity": {"task": "t", "seed": 0, "decoders": {"greedy": 1}, **identity},
    }


def opened(path: Path, **identity: Any) -> Journal:
    journal = Journal.open(path, manifest(**identity))
    journal.start_session(4)
    return journal


def with_calls(path: Path, count: int) -> None:
    journal = opened(path)
    for number in range(count):
        journal.add_call(replace(CALL, part=number), 0, number + 0.5, None)
    journal.close()


def test_calls_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with_calls(path, 2)
    journal = opened(path)
    assert journal.calls == {
        CALL.key: CALL,
        ("greedy", "q1", 0, 1): replace(CALL, part=1),
    }
    journal.close()


def test_every_way_to_tear_the_last_line_loses_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with_calls(path, 3)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (start, start + 1, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:end])
        journal = opened(path)
        assert [key[3] for key in journal.calls] == [0, 1]
        journal.add_call(replace(CALL, part=2), 0, 1.0, None)
        journal.close()
        assert len(Journal.read(path).calls) == 3


def test_torn_first_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"manifest": {"for')
    with pytest.raises(JournalError, match="holds no run yet"):
        Journal.read(path)
    opened(path, seed=5).close()
    assert Journal.read(path).manifest["identity"]["seed"] == 5


@pytest.mark.parametrize(
    "line", [b"{}", b"nonsense", b'{"call": {"decoder": "x"}}', b"\0"]
)
def test_damage_before_the_last_line_is_told_and_not_repaired(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "journal.jsonl"
    with_calls(path, 2)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 3: is no"):
        Journal.open(path, manifest())


def test_another_plan_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with_calls(path, 1)
    with pytest.raises(JournalError, match="its seed is 0, and now it would be 1"):
        opened(path, seed=1)
    with pytest.raises(JournalError, match=r'decoders is \{"greedy": 1\}.*"em_inf": 2'):
        opened(path, decoders={"em_inf": 2})
    assert len(Journal.read(path).calls) == 1


def test_two_runs_cannot_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = opened(path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply(refusal, (path,))
    assert "another run is writing it" in said
    journal.close()
    opened(path).close()


def refusal(path: Path) -> str:
    try:
        Journal.open(path, manifest())
    except JournalError as error:
        return str(error)
    return ""


def test_seconds_are_the_last_answers_of_each_block_and_session(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for session in range(2):
        journal = opened(path)
        for block in range(2):
            for part, elapsed in ((0, 1.0), (1, 3.0), (2, 2.0)):
                call = replace(CALL, sample=session, problem=f"q{block}", part=part)
                journal.add_call(call, block, elapsed, None)
        journal.close()
    journal = Journal.read(path)
    assert journal.seconds("greedy") == 12.0
    assert journal.seconds("another") == 0.0
    assert journal.sessions == 2


def test_refusals_looks_and_matches_come_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = opened(path)
    journal.add_call(CALL, 0, 1.0, "too long")
    journal.add_look({"decoder": "m", "what": "wanted", "problem": "q1", "tokens": 3})
    journal.add_match("m", "not matched: no")
    journal.close()
    again = Journal.read(path)
    assert again.refusals == {CALL.key: "too long"}
    assert again.looks["m", "wanted", "q1"]["tokens"] == 3
    assert again.matches == {"m": "not matched: no"}
