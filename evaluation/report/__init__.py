"""The report of a run: one HTML file that needs no other, Markdown, and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em_inf.evaluation.records import Run, as_json
from em_inf.evaluation.report.page import html, markdown
from em_inf.evaluation.summary import summarize


def write(run: Run, folder: Path) -> list[Path]:
    """Write report.html, report.md and report.json; the same run gives the same bytes.

    report.json holds the whole run (`records.run_from_json(value["run"])` reads it back)
    and the summary, in which a value that is not finite is null.

    Args:
        run: at least one decoder; may be unfinished.
        folder: is made if it is not there.

    Returns:
        The three paths.

    Raises:
        OSError: a file cannot be written.
        ValueError: the baseline is none of the run's decoders.
    """
    summary = summarize(run)
    value = {"run": as_json(run), "summary": asdict(summary)}
    written = {
        "report.html": html(run, summary),
        "report.md": markdown(run, summary),
        "report.json": json.dumps(
            _finite(value), ensure_ascii=False, allow_nan=False, indent=1
        )
        + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(of) for of in value]
    return value
