"""The figure of one trace: entropies over the answer's tokens, for paper or screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from em_inf.clients.commands.terminal import visible
from em_inf.clients.report import AppliedSettings
from em_inf.clients.tokens import Token

BEFORE, AFTER, EDGE = "#E69F00", "#0072B2", "#333333"
"""Okabe and Ito's orange and blue, which all kinds of colour vision tell apart."""

_LABELLED_TOKENS = 80
"""Up to so many tokens, each has its text under the axis."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.parse_math": False,  # A dollar sign in a token is a dollar sign.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # Fonts as fonts, which publishers ask for.
    "svg.fonttype": "none",
    "svg.hashsalt": "em-inf",  # The same trace gives the same file.
}


def draw(tokens: Sequence[Token], settings: AppliedSettings, path: Path) -> None:
    """Write a figure of a trace.

    Args:
        tokens: of one answer.
        settings: what they were made with.
        path: its ending says the format.

    Raises:
        OSError: it cannot be written.
    """
    adaptive = settings.method == "adaptive_temperature"
    positions = range(len(tokens))
    before = [_height(token.entropy_before) for token in tokens]
    after = [_height(token.entropy_after) for token in tokens]
    labelled = len(tokens) <= _LABELLED_TOKENS
    with mpl.rc_context(_STYLE):
        width = min(14.0, max(7.0, 0.13 * len(tokens)))
        figure = Figure(figsize=(width, 3.6 if labelled else 3.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.bar(positions, before, 0.8, color=BEFORE, label="before")
        upper.bar(positions, after, 0.4, color=AFTER, label="after")
        upper.axhline(
            settings.threshold, color=EDGE, linewidth=0.8, linestyle="--",
            label=f"threshold, {settings.threshold:g} nats",
        )  # fmt: skip
        upper.set_ylabel("Entropy (nats)")
        upper.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        if adaptive:
            heights = [_height(token.temperature) for token in tokens]
            lower.set_ylabel("Temperature")
            lower.set_ylim(0, 1.05)
        else:
            heights = [_height(token.grad_steps) for token in tokens]
            lower.set_ylabel("Gradient\nsteps")
            lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.bar(positions, heights, 0.8, color=EDGE)
        lower.set_xlim(-0.8, len(tokens) - 0.2)
        if labelled:
            lower.set_xticks(
                positions, [_label(token.text) for token in tokens],
                rotation=90, fontsize=6,
            )  # fmt: skip
            lower.set_xlabel("Output token")
        else:
            lower.set_xlabel("Output token (position in the answer)")
        date = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=300, metadata=date)


def _height(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _label(text: str) -> str:
    """A token's text, with a box for each character that the font cannot draw."""
    return "".join(c if ord(c) in _drawable() else "\u25a1" for c in visible(text)[:16])


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(findfont("DejaVu Sans")).get_charmap())
