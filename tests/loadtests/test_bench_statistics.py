"""The benchmark of the figures: what it writes, and that it refuses wrong figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from em_inf.loadtests import bench_statistics
from em_inf.loadtests.bench_statistics import BARS, WrongFiguresError
from em_inf.logits_processors.recorder import Recorder


def test_it_keeps_a_figure_for_every_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    small = ["--rows", "3", "--tokens", "70", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["bench_statistics", *small])
    bench_statistics.main()
    kept: dict[str, Any] = json.loads(out.read_text())
    assert kept["command"].startswith(
        "python -m em_inf.loadtests.bench_statistics --rows"
    )
    for bar in BARS:
        results = kept["results"].items()
        found = [value for name, value in results if name.startswith(bar)]
        assert found
        for value in found:
            assert min(value if isinstance(value, list) else [value]) > 0


def test_it_refuses_to_report_figures_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Recorder.add

    def late(self: Recorder, figures: Any, handles: Any, positions: Any) -> None:
        right(self, figures, handles, positions + 1)

    monkeypatch.setattr(Recorder, "add", late)
    with pytest.raises(WrongFiguresError):
        bench_statistics.worker(rows=2, tokens=40, rounds=1)
