r"""Where a text announces its answer: `\boxed{...}`, "The answer is ...", "#### ..."."""

from __future__ import annotations

import re

_MARKERS = re.compile(
    r"(?:####"
    r"|\b(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\b\s*:?|\s*:)"
    r")[ \t*]*",
    re.IGNORECASE,
)
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
_LONGEST = 20_000  # characters read from a text's end: an answer stands last


def spoken(text: str) -> str:
    """What a model says after its thoughts, at most its last 20,000 characters.

    Text up to the last `</think>` is a reasoning model's draft. Where a draft began and
    never ended nothing was said.
    """
    before, ended, after = text.rpartition("</think>")
    if ended:
        return after[-_LONGEST:]
    return "" if "<think>" in before + after else text[-_LONGEST:]


def boxed(text: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}` or `\fbox{...}`; braces may nest."""
    found, begun = None, -1
    open_braces: list[int | None] = []  # Where a box's content begins; None for others.
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > begun:
                found, begun = text[start : token.start()].strip(), start
        elif token[0] == "{":
            open_braces.append(None)
        elif token["box"]:
            open_braces.append(token.end())
    return found


def announced(text: str) -> str | None:
    """The answer that a text announces, without a final full stop; None if it does not.

    The last box wins; else what follows the last "The answer is", "Answer:" or "####",
    up to the end of its sentence or line. Numbers keep their decimal points.
    """
    inside = boxed(text)
    if inside is not None:
        return inside or None
    markers = list(_MARKERS.finditer(text))
    if not markers:
        return None
    rest = text[markers[-1].end() :]
    return plain(_SENTENCE_END.split(rest, maxsplit=1)[0]) or None


def plain(text: str) -> str:
    """A text without the space, asterisks and full stop around it."""
    return text.strip().strip("*").strip().removesuffix(".").strip()


def answer_in(text: str) -> str | None:
    """The announced answer; else the whole text, where that is a single line."""
    said = spoken(text)
    found = announced(said)
    if found is None and "\n" not in said.strip():
        found = plain(said) or None
    return found
