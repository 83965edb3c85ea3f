"""Data from files: what is read, and the sentence for what is broken."""

import json
from pathlib import Path

import pytest

from em_inf.evaluation.data import read
from em_inf.evaluation.errors import DataError

GOOD = '{"prompt": "1 + 1?", "answer": 2}'


def written(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "data.jsonl"
    raw = (line if isinstance(line, bytes) else line.encode() for line in lines)
    path.write_bytes(b"\n".join(raw))
    return path


def test_prompts_messages_and_further_fields_are_read(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "B or C?"},
    ]
    last = {"id": "q", "messages": messages, "answer": "B", "choices": ["x", "y"]}
    path = written(tmp_path, GOOD, "", json.dumps({**last, "tests": ["t"]}), "")
    first, second = read(path, "choice")
    assert (first.id, first.answer, first.more) == ("1", 2, {})
    assert first.messages == ({"role": "user", "content": "1 + 1?"},)
    assert (second.id, second.messages) == ("q", tuple(messages))
    assert second.more == {"choices": ["x", "y"], "tests": ["t"]}


def test_byte_order_mark_and_windows_line_ends_are_no_error(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r", GOOD + "\r")
    assert [problem.id for problem in read(path, "exact")] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "where", "reason"),
    [
        ('{"prompt": "x", ', "line 17", "is not JSON"),
        ("[1]", "line 17", "must be an object"),
        ('{"prompt": "x", "answer": NaN}', "line 17", "NaN is no number"),
        (b'{"prompt": "\xff", "answer": 1}', "line 17", "is not UTF-8, byte 13"),
        ('{"prompt": "x"}', "line 17, field answer", "is missing"),
        ('{"prompt": "x", "answer": null}', "line 17, field answer", "is null"),
        ('{"prompt": "x", "answer": [1]}', "line 17, field answer", "a text or a number"),
        ('{"prompt": "x", "answer": " "}', "line 17, field answer", "is empty"),
        ('{"prompt": "x", "answer": true}', "line 17, field answer", "is true"),
        ('{"prompt": "x", "answer": 1e999}', "line 17, field answer", "no finite"),
        ('{"prompt": 5, "answer": 1}', "line 17, field prompt", "must be a text"),
        ('{"prompt": " ", "answer": 1}', "line 17, field prompt", "is empty"),
        ('{"question": "x", "answer": 1}', "line 17, field prompt", "is missing"),
        (
            '{"prompt": "x", "prompt": "y", "answer": 1}',
            "line 17",
            "prompt: stands there",
        ),
        (
            '{"prompt": "x", "messages": [], "answer": 1}',
            "line 17, field messages",
            "one of the two",
        ),
        (
            '{"messages": [], "answer": 1}',
            "line 17, field messages",
            "a list of messages",
        ),
        (
            '{"messages": [{"role": "robot", "content": "x"}], "answer": 1}',
            "line 17, field messages[0].role",
            "'robot' is none of",
        ),
        (
            '{"messages": [{"role": "user", "content": null}], "answer": 1}',
            "line 17, field messages[0].content",
            "must be a text",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "answer": 1}',
            "line 17, field messages[0].role",
            "must be user's",
        ),
        ('{"id": "3", "prompt": "x", "answer": 1}', "line 17, field id", "line 3's too"),
        ('{"id": [], "prompt": "x", "answer": 1}', "line 17, field id", "an integer"),
        ('{"prompt": "\\ud800", "answer": 1}', "line 17, field id, prompt", "surrogate"),
        (
            '{"prompt": "x", "answer": "A", "choices": "AB"}',
            "line 17, field choices",
            "a list of texts",
        ),
    ],
)
def test_broken_line_is_named_with_file_line_and_field(
    tmp_path: Path, line: str | bytes, where: str, reason: str
) -> None:
    path = written(tmp_path, *[GOOD] * 16, line, GOOD)
    with pytest.raises(DataError) as error:
        read(path, "choice")
    said = str(error.value)
    assert said.startswith(f"{path}, {where}")
    assert reason in said
    assert "\n" not in said


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_is_told(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DataError, match="holds no problem"):
        read(written(tmp_path, text), "exact")


def test_missing_file_and_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read(path, "exact")


def test_code_answers_may_have_any_form(tmp_path: Path) -> None:
    line = '{"prompt": "x", "answer": {"tests": ["assert f(1) == 2"]}}'
    (problem,) = read(written(tmp_path, line), "code")
    assert problem.answer == {"tests": ["assert f(1) == 2"]}
