"""One report of a load test: EM-INF off beside on, as one HTML file with its pictures."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODES = ("off", "on")
PERCENTILES = (50, 90, 95, 99)
TIMES = ("ttft", "itl", "tpot", "e2e")
COLORS = {"off": "#8a8f98", "on": "#2f6fde"}

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0 1.6em}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ccc}
th:first-child,td:first-child{text-align:left}
.bad{color:#b00020;font-weight:600}.well{color:#17692e;font-weight:600}
img{max-width:100%}pre{white-space:pre-wrap;background:#f4f4f4;padding:.8em}
"""


def http_summary(
    outcomes: Sequence[dict[str, Any]], limits: tuple[float, float]
) -> dict[str, Any]:
    """Figures of Locust's requests.

    Args:
        outcomes: as `loadtests/locustfile.py` writes them.
        limits: largest TTFT and largest mean gap between tokens, in seconds, of a
            streamed request that counts as goodput.
    """
    good = [one for one in outcomes if one["good"]]
    at = [one["at"] for one in good]
    ends = [one["at"] + one["e2e_seconds"] for one in good]
    seconds = max(ends) - min(at) if good else 0.0
    streams = [
        one for one in good if "ttft_seconds" in one and one["kind"] != "slow reader"
    ]
    within = [
        one
        for one in streams
        if one["ttft_seconds"] <= limits[0] and (one["tpot_seconds"] or 0) <= limits[1]
    ]
    times = {
        "ttft": [one["ttft_seconds"] for one in streams],
        "itl": [gap for one in streams for gap in one["itl_seconds"]],
        "tpot": [one["tpot_seconds"] for one in streams if one["tpot_seconds"]],
        "e2e": [one["e2e_seconds"] for one in good if one["kind"] != "slow reader"],
    }
    return {
        "good": len(good),
        "by_kind": dict(Counter(one["kind"] for one in outcomes)),
        "good_failed": [one["error"] for one in good if "error" in one],
        "mixed_up": [one["mixed_up"] for one in good if "mixed_up" in one],
        "bad_answered_otherwise": [
            f"{one['kind']}: {one['error']}"
            for one in outcomes
            if not one["good"] and "error" in one
        ],
        "seconds": seconds,
        "requests_per_second": len(good) / seconds if seconds else 0.0,
        "output_tokens_per_second": sum(one.get("tokens", 0) for one in good) / seconds
        if seconds
        else 0.0,
        "streams": len(streams),
        "goodput_share": len(within) / len(streams) if streams else None,
        "ms": {name: _percentiles(values) for name, values in times.items()},
        "ttft_ms": [round(1000 * x, 2) for x in times["ttft"]],
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = np.percentile(seconds, PERCENTILES) * 1000
    return {f"p{p}": round(float(x), 2) for p, x in zip(PERCENTILES, values, strict=True)}


def failures(result: dict[str, Any], wanted: int) -> list[str]:
    """Why the load test failed, one sentence each; empty if it passed.

    Args:
        result: all that `loadtests/load.py` measured.
        wanted: how many good requests Locust was to send.
    """
    found: list[str] = []
    for tool in ("bench", "guidellm"):
        for mode in MODES:
            for one in result[tool][mode]:
                name = one.get("profile") or one.get("strategy")
                if one["failed"]:
                    why = ", ".join(f"{n} x {text}" for text, n in one["reasons"].items())
                    found.append(
                        f"{tool} {name}, {mode}: {one['failed']} requests failed: "
                        f"{why or 'no reason is known'}"
                    )
                if not one["completed"]:
                    found.append(f"{tool} {name}, {mode}: no request was answered")
    for mode, http in result["http"].items():
        for key in ("good_failed", "mixed_up", "bad_answered_otherwise"):
            if http[key]:
                words = key.replace("_", " ")
                found.append(f"http {mode}: {len(http[key])} {words}: {http[key][0]}")
    good = sum(http["good"] for http in result["http"].values())
    if good < wanted:
        found.append(f"http: {good} good requests were sent, not {wanted}")
    for name, count in result["server_errors"].items():
        if count:
            found.append(f"the server counts {count:g} of {name}")
    if not result["healthy_after"]:
        found.append("the server is not healthy afterwards")
    return found


def write_html(result: dict[str, Any], path: Path) -> None:
    """Write the report, which needs no other file."""
    where, limits = result["where"], result["limits_ms"]
    parts = [_verdict(result), _http(result["http"])]
    parts.append(f"""<h2>vllm bench serve</h2><p>Goodput counts requests of a TTFT below
    {limits["ttft"]:g} ms and a TPOT below {limits["tpot"]:g} ms. Times in ms.</p>""")
    parts.append(_bench(result["bench"]))
    if any(result["guidellm"].values()):
        parts.append("<h2>GuideLLM, sweep</h2>" + _guidellm(result["guidellm"]))
    parts.append("<h2>Pictures</h2>" + _pictures(result))
    facts = "\n".join(f"{key}: {value}" for key, value in where.items())
    parts.append(f"<h2>Where</h2><pre>{html.escape(facts)}</pre>")
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>em-inf under load"
        f"</title><style>{STYLE}</style><h1>em-inf under load</h1>{''.join(parts)}\n"
    )


def _verdict(result: dict[str, Any]) -> str:
    http = result["http"].values()
    good = sum(one["good"] for one in http)
    failed, mixed = (
        sum(len(one[k]) for one in http) for k in ("good_failed", "mixed_up")
    )
    items = "".join(f"<li>{html.escape(line)}" for line in result["failures"])
    kind = "bad" if items else "well"
    return (
        f"<p class={kind}>{good:,} checked good requests: {failed} failed, {mixed} "
        f"answered with another's answer.</p><ul class=bad>{items}</ul>"
    )


def _http(by_mode: dict[str, Any]) -> str:
    lines: list[tuple[str, list[Any]]] = [
        ("good requests", [http["good"] for http in by_mode.values()]),
        ("requests/s", [http["requests_per_second"] for http in by_mode.values()]),
        ("tokens/s", [http["output_tokens_per_second"] for http in by_mode.values()]),
        ("goodput, share", [http["goodput_share"] for http in by_mode.values()]),
    ]
    for name in TIMES:
        for p in PERCENTILES:
            found = [(http["ms"][name] or {}).get(f"p{p}") for http in by_mode.values()]
            lines.append((f"{name.upper()} p{p}, ms", found))
    for key in ("good_failed", "mixed_up", "bad_answered_otherwise"):
        values = [len(http[key]) for http in by_mode.values()]
        lines.append((key.replace("_", " "), values))
    kinds = sorted({kind for http in by_mode.values() for kind in http["by_kind"]})
    sent = [[http["by_kind"].get(kind, 0) for http in by_mode.values()] for kind in kinds]
    return (
        "<h2>HTTP under stress (Locust)</h2><p>Locust shares the cores with the server "
        "and reads what has gathered meanwhile in one go: its ITL is a busy client's."
        + _table(["", *by_mode], lines)
        + "<p>Requests by kind; the last of them are wrong on purpose:</p>"
        + _table(["", *by_mode], list(zip(kinds, sent, strict=True)))
    )


def _bench(by_mode: dict[str, list[dict[str, Any]]]) -> str:
    columns = {
        "completed": "completed", "failed": "failed", "requests/s": "request_throughput",
        "goodput/s": "request_goodput", "tokens/s": "output_throughput",
        "TTFT p50": "p50_ttft_ms", "p95": "p95_ttft_ms", "p99": "p99_ttft_ms",
        "ITL p50": "p50_itl_ms", "p95 ": "p95_itl_ms", "TPOT p50": "p50_tpot_ms",
        "p95  ": "p95_tpot_ms", "E2E p50": "p50_e2el_ms", "p95   ": "p95_e2el_ms",
    }  # fmt: skip
    rows = [
        (f"{one['profile']}, {mode}", [one.get(key) for key in columns.values()])
        for pair in zip(*by_mode.values(), strict=True)
        for mode, one in zip(by_mode, pair, strict=True)
    ]
    return _table(["", *columns], rows)


def _guidellm(by_mode: dict[str, list[dict[str, Any]]]) -> str:
    columns = {
        "completed": "completed", "failed": "failed", "requests/s": "request_throughput",
        "tokens/s": "output_throughput", "TTFT": "ttft_ms", "p95": "p95_ttft_ms",
        "ITL": "itl_ms", "p95 ": "p95_itl_ms", "TPOT": "tpot_ms", "p95  ": "p95_tpot_ms",
    }  # fmt: skip
    rows = [
        (f"{one['strategy']}, {mode}", [one.get(key) for key in columns.values()])
        for mode, found in by_mode.items()
        for one in found
    ]
    return _table(["", *columns], rows)


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}" for name in head)
    body = "".join(
        f"<tr><td>{html.escape(name)}" + "".join(f"<td>{_shown(x)}" for x in values)
        for name, values in rows
    )
    return f"<table><tr>{cells}{body}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _pictures(result: dict[str, Any]) -> str:
    from matplotlib.figure import Figure

    def image(figure: Figure, words: str) -> str:
        raw = io.BytesIO()
        figure.savefig(raw, format="png", dpi=110)
        data = base64.b64encode(raw.getvalue()).decode()
        return f'<p><img alt="{words}" src="data:image/png;base64,{data}"></p>'

    first = Figure(figsize=(9, 3.4), layout="constrained")
    spread, rates = first.subplots(1, 2)
    for mode, http in result["http"].items():
        values = np.sort(http["ttft_ms"])
        share = np.arange(1, len(values) + 1) / max(len(values), 1)
        spread.plot(values, share, color=COLORS[mode], label=mode)
    spread.set(xlabel="TTFT under Locust, ms", ylabel="share of streams", xscale="log")
    spread.legend(title="EM-INF")
    names = [one["profile"] for one in result["bench"]["off"]]
    for i, mode in enumerate(MODES):
        heights = [one["output_throughput"] for one in result["bench"][mode]]
        places = np.arange(len(names)) + 0.4 * i
        rates.bar(places, heights, 0.38, color=COLORS[mode], label=mode)
    rates.set_xticks(np.arange(len(names)) + 0.2, names)
    rates.set_ylabel("output tokens per second")
    words = "TTFT of streams under Locust, and tokens per second of vllm bench serve"
    shown = image(first, words)
    second = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(second.subplots(1, len(TIMES)), TIMES, strict=True):
        for i, (mode, http) in enumerate(result["http"].items()):
            found = http["ms"][name] or {}
            heights = [found.get(f"p{p}", 0) for p in PERCENTILES]
            places = np.arange(len(PERCENTILES)) + 0.4 * i
            axes.bar(places, heights, 0.38, color=COLORS[mode], label=mode)
        axes.set_xticks(np.arange(len(PERCENTILES)) + 0.2, [f"p{p}" for p in PERCENTILES])
        axes.set_title(f"{name.upper()}, ms")
    return shown + image(second, "Percentiles of TTFT, ITL, TPOT and end-to-end times")
