"""LaTeX of an answer, without what is only for show."""

from __future__ import annotations

import re

_SHOW = (
    (
        re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"),
        r"\1",
    ),
    (re.compile(r"\\(?:left|right|displaystyle|,|;|:|!|quad|qquad)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\^\s*\{?\\circ\}?"), ""),
    (re.compile(r"\{,\}"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"[\s$~]|\\\$|\\\(|\\\)|\\\[|\\\]|\\(?= )"), ""),
)
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")


def plain_latex(text: str) -> str:
    """The same for two writings that differ only in spaces, sizes and text commands.

    A degree sign, a dollar and thousands separators go too, and one final full stop.
    """
    for pattern, replacement in _SHOW:
        text = pattern.sub(replacement, text)
    return text.strip().removesuffix(".")


def last_formula(text: str) -> str | None:
    """The last formula of a text, or its last number if that comes later; else None."""
    formulas, numbers = list(_FORMULA.finditer(text)), list(_NUMBER.finditer(text))
    if numbers and (not formulas or numbers[-1].start() >= formulas[-1].end()):
        return numbers[-1][0]
    return (
        next((part for part in formulas[-1].groups() if part), None) if formulas else None
    )
