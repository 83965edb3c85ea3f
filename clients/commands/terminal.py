"""How output looks: colour on a terminal only, plain text in a pipe."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from em_inf.clients.tokens import Token

_PIPE_WIDTH = 10_000
"""Columns; a line in a pipe is never cut or wrapped."""

SHADES = (
    (0.1, ""),
    (0.5, "black on #fff7bc"),
    (1.0, "black on #fec44f"),
    (2.0, "black on #fe9929"),
    (float("inf"), "white on #993404"),
)
"""Entropy in nats up to which a style holds; lightness alone tells them apart."""


class _Console(Console):
    """Leaves a reader that has gone to the command line, which has a code for it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(args: argparse.Namespace, stream: TextIO | None = None) -> Console:
    """A console on stdout, or on the given stream, that decorates on a terminal only."""
    file = stream or sys.stdout
    terminal = file.isatty()
    return _Console(
        file=file,
        force_terminal=terminal,
        no_color=bool(args.no_color or os.environ.get("NO_COLOR")) or None,
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def has_color(out: Console) -> bool:
    """Whether shading would show."""
    return out.is_terminal and not out.no_color and out.color_system is not None


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> Table:
    """A table without a frame.

    Args:
        columns: heading, and whether it holds numbers, which stand right.
        rows: cells, as they are.
    """
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, is_number in columns:
        made.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def visible(text: str) -> str:
    """A token's text on one line, with no control characters and its spaces visible."""
    shown = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return shown.replace(" ", "\u2423")


def safe(text: str) -> str:
    """A model's text without the control characters that could steer a terminal."""
    return "".join(
        char if char in "\n\t" or char.isprintable() or ord(char) > 0x9F else "\ufffd"
        for char in text
    )


def shaded(tokens: Sequence[Token], out: Console) -> Text:
    """An answer, its tokens shaded by their entropy before EM-INF.

    Without colour, a token of 0.1 nats or more stands in brackets with its entropy.
    """
    text = Text()
    for token in tokens:
        entropy = token.entropy_before or 0.0
        style = next(style for limit, style in SHADES if entropy < limit)
        if style and not has_color(out):
            text.append(f"[{safe(token.text)}|{entropy:.2f}]")
        else:
            text.append(safe(token.text), style)
    return text


def legend(out: Console) -> Text:
    """What the shades mean."""
    if not has_color(out):
        return Text("in brackets: tokens of 0.1 nats or more, with their entropy")
    text = Text("entropy before, nats:  ")
    low = SHADES[0][0]
    for limit, style in SHADES[1:]:
        name = f"above {low:g}" if limit == float("inf") else f"{low:g} to {limit:g}"
        text.append(f" {name} ", style)
        low = limit
    return text
