"""Problems from a JSONL file, one object a line, every field checked.

A line has `prompt` (a text) or `messages` (a list of {"role", "content"}), `answer`, and
if it likes `id`. Every other field is kept for the grader: `choices`, `tests` and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_inf.evaluation.errors import DataError
from em_inf.evaluation.records import Problem

ROLES = ("system", "developer", "user", "assistant")
_NAMED = ("id", "prompt", "messages", "answer")


def read(path: Path, grader: str) -> tuple[Problem, ...]:
    """The problems of a file, in its order.

    Empty lines are skipped. A line without `id` gets its number as its id.

    Args:
        path: of the JSONL, UTF-8.
        grader: name of the grader that is going to read the answers; `choice`,
            `numeric` and `code` want fields of their own.

    Raises:
        DataError: anything is wrong; one sentence with file, line and field.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    problems: dict[str, Problem] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        problem = _problem(_object(line, f"{path}, line {number}"), path, number, grader)
        if problem.id in problems:
            raise DataError(
                f"{path}, line {number}, field id: {problem.id!r} is line "
                f"{lines[problem.id]}'s too; every problem needs an id of its own"
            )
        problems[problem.id] = problem
        lines[problem.id] = number
    if not problems:
        raise DataError(f"{path}: holds no problem; it wants one JSON object a line")
    return tuple(problems.values())


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is not UTF-8, byte {error.start + 1} of the line"
        ) from None
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: is not JSON: {error.msg}, column {error.colno}"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {_kind(value)}, and must be an object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name} is no number of JSON's")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"field {name}: stands there twice")
        found[name] = value
    return found


def _problem(value: Mapping[str, Any], path: Path, number: int, grader: str) -> Problem:
    def wrong(field: str, reason: str) -> DataError:
        return DataError(f"{path}, line {number}, field {field}: {reason}")

    name = value.get("id", str(number))
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name:
        raise wrong("id", f"is {_kind(name)}, and must be a text or an integer")
    if "prompt" in value and "messages" in value:
        raise wrong("messages", "stands beside prompt; give one of the two")
    if "prompt" not in value and "messages" not in value:
        raise wrong("prompt", "is missing, and so is messages; one of the two is needed")
    messages = _messages(value, wrong)
    if value.get("answer") is None:
        raise wrong("answer", "is missing" if "answer" not in value else "is null")
    more = {field: value[field] for field in value if field not in _NAMED}
    for text in (name, json.dumps([messages, value["answer"], more], ensure_ascii=False)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise wrong("id, prompt or answer", "holds half a surrogate pair") from None
    _check_answer(value["answer"], more, grader.partition(":")[0], wrong)
    return Problem(name, messages, value["answer"], more)


def _messages(value: Mapping[str, Any], wrong: Any) -> tuple[dict[str, str], ...]:
    if "prompt" in value:
        prompt = value["prompt"]
        if not isinstance(prompt, str):
            raise wrong("prompt", f"is {_kind(prompt)}, and must be a text")
        if not prompt.strip():
            raise wrong("prompt", "is empty")
        return ({"role": "user", "content": prompt},)
    listed = value["messages"]
    if not isinstance(listed, list) or not listed:
        raise wrong("messages", f"is {_kind(listed)}, and must be a list of messages")
    for place, message in enumerate(listed):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise wrong(where, f"is {_kind(message)}, and must be an object")
        if message.get("role") not in ROLES:
            raise wrong(
                f"{where}.role", f"{message.get('role')!r} is none of {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise wrong(
                f"{where}.content",
                f"is {_kind(message.get('content'))}, and must be a text",
            )
        if extra := set(message) - {"role", "content"}:
            raise wrong(f"{where}.{min(extra)}", "is unknown; there are role and content")
    if listed[-1]["role"] != "user":
        raise wrong(
            f"messages[{len(listed) - 1}].role", "the last message must be user's"
        )
    return tuple(listed)


def _check_answer(answer: Any, more: Mapping[str, Any], grader: str, wrong: Any) -> None:
    """Refuse what the grader could not compare with."""
    if grader == "code" or grader.endswith(".py"):
        return  # Any form of its own.
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise wrong("answer", f"is {_kind(answer)}, and must be a text or a number")
    if isinstance(answer, str) and not answer.strip():
        raise wrong("answer", "is empty")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise wrong("answer", f"{answer} is no finite number")
    choices = more.get("choices")
    if grader != "choice" or choices is None:
        return
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) for choice in choices)
    ):
        raise wrong("choices", f"is {_kind(choices)}, and must be a list of texts")


def _kind(value: Any) -> str:
    """What a value is, in words and short."""
    if value is None:
        return "null or missing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r:.20}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return (
        f"an object of {len(value)}"
        if isinstance(value, dict)
        else (f"a list of {len(value)}")
    )
