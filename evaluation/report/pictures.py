"""The report's pictures as inline SVG, the same bytes for the same run."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from em_inf.clients.commands.terminal import safe
from em_inf.evaluation.costs import Costs
from em_inf.evaluation.summary import (
    DecoderSummary,
    Summary,
    is_distinguishable,
    uses_em_inf,
)

INK = "#010203"
"""Stands for the page's text colour, light or dark."""
EM_INF, OTHER = "#D55E00", "#0072B2"
"""Okabe and Ito's vermilion and blue; the markers' shapes differ too."""
_LOG_FROM = 5.0
"""Ratio of largest to smallest cost from which the axis is logarithmic."""
_NAME_WIDTH = 38
"""Characters of a decoder's name on one line."""
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "em-inf",
}


def forest(summary: Summary, name: str) -> str:
    """Each decoder's difference from the baseline with its interval, as SVG.

    Args:
        summary: of a run.
        name: begins every id in the SVG, so that a page may hold several.
    """
    lines = [line for line in summary.decoders if line.difference]
    names = [
        textwrap.fill(safe(line.record.name), _NAME_WIDTH, break_on_hyphens=False)
        for line in lines
    ]
    rows = sum(0.2 + 0.17 * (name.count("\n") + 1) for name in names)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 1.1 + rows), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, line in enumerate(lines):
            assert line.difference is not None
            low, high = line.difference.interval.low, line.difference.interval.high
            axes.plot([100 * low, 100 * high], [place, place], color=_colour(line))
            axes.plot(
                [100 * line.difference.value], [place], marker=_marker(line),
                color=_colour(line), markersize=7,
                fillstyle="full" if is_distinguishable(line) else "none",
            )  # fmt: skip
        axes.set_yticks(range(len(lines)), names)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"Difference from {summary.baseline}, percentage points")
        axes.xaxis.grid(visible=True, color=INK, alpha=0.15)
        return _inline(figure, name)


def accuracy_against(
    summary: Summary, cost: Callable[[Costs], float | None], label: str, name: str
) -> str | None:
    """Accuracy over a cost, each decoder a marker with its number, as SVG.

    Args:
        summary: of a run.
        cost: reads the cost; a decoder without it is left out.
        label: of the axis, with its unit.
        name: begins every id in the SVG.

    Returns:
        None where no decoder has the cost.
    """
    placed = [
        (number, line, spent)
        for number, line in enumerate(summary.decoders, 1)
        if line.accuracy and (spent := cost(line.costs))
    ]
    if not placed:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        costs = [spent for _, _, spent in placed]
        if max(costs) > _LOG_FROM * min(costs):
            axes.set_xscale("log")
            label += ", logarithmic"
        for _, line, spent in placed:
            assert line.accuracy is not None
            ends = line.accuracy.interval.low, line.accuracy.interval.high
            axes.plot(
                [spent, spent], [100 * end for end in ends],
                color=_colour(line), alpha=0.45, linewidth=1.2,
            )  # fmt: skip
            axes.plot(
                [spent], [100 * line.accuracy.value],
                marker=_marker(line), color=_colour(line), markersize=7,
            )  # fmt: skip
        axes.margins(0.08)
        axes.set_xlabel(label)
        axes.set_ylabel("Accuracy, %")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.grid(visible=True, color=INK, alpha=0.15)
        _number(axes, figure, [
            (number, spent, 100 * line.accuracy.value)
            for number, line, spent in placed if line.accuracy
        ])  # fmt: skip
        return _inline(figure, name)


def _number(
    axes: Axes, figure: Figure, points: Sequence[tuple[int, float, float]]
) -> None:
    """Write each marker's number beside it, where no other number or marker stands."""
    figure.draw_without_rendering()
    at = [axes.transData.transform((x, y)) for _, x, y in points]
    scale = figure.dpi / 72
    taken = [(float(x), float(y)) for x, y in at]
    for (number, x, y), (pixel_x, pixel_y) in zip(points, at, strict=True):
        angles = (0, 180, 45, 135, 225, 315, 22, 158, 202, 338)
        tries = [(r, angle) for r in (12, 20, 28, 36) for angle in angles]
        offsets = [
            (r * math.cos(math.radians(angle)), r * math.sin(math.radians(angle)))
            for r, angle in tries
        ]
        offset = max(
            offsets,
            key=lambda of: min(
                [12.0]
                + [
                    math.dist((pixel_x + scale * of[0], pixel_y + scale * of[1]), place)
                    / scale
                    for place in taken
                ]
            ),
        )
        taken.append((pixel_x + scale * offset[0], pixel_y + scale * offset[1]))
        axes.annotate(
            str(number), (x, y), offset, textcoords="offset points",
            ha="center", va="center", fontsize=10, color=INK,
        )  # fmt: skip


def _colour(line: DecoderSummary) -> str:
    return EM_INF if uses_em_inf(line.record) else OTHER


def _marker(line: DecoderSummary) -> str:
    return "D" if uses_em_inf(line.record) else "o"


def _inline(figure: Figure, name: str) -> str:
    """The figure as an element of a page, hidden from screen readers."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text, and the reader's browser has fonts for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A style in an inline SVG would hold for the whole page; the page has it, scoped.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'="#', f'="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()
