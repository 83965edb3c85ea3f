"""Write Grafana's dashboard, `python deploy/grafana/dashboard.py [FILE]`.

Built with Grafana's own SDK, whose types come from Grafana 11.6's schemas, so that a
field that Grafana does not know cannot get in. FILE is dashboards/em-inf.json beside this
file; a test holds that it is what this script writes, and asks a real Prometheus every
expression.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).parent / "dashboards" / "em-inf.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'job="em-inf", instance=~"$instance"'
RATE = "[$__rate_interval]"


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """The summed rate of a counter on the chosen servers."""
    chosen = f"{CHOSEN}, {labels}" if labels else CHOSEN
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{chosen}}}{RATE}))"


def ratio(above: str, below: str) -> str:
    """One summed rate over another."""
    return f"{rate(above)} / {rate(below)}"


def quantiles(metric: str) -> dict[str, str]:
    """Legend to expression: the quantiles of a histogram one looks at."""
    buckets = rate(f"{metric}_bucket", "le")
    return {
        f"p{100 * q:g}": f"histogram_quantile({q}, {buckets})" for q in (0.5, 0.9, 0.99)
    }


def lines(title: str, what: str, unit: str, expressions: dict[str, str]) -> Any:
    """A chart of lines, one for each expression by its legend."""
    legend = common.VizLegendOptions()
    legend.show_legend(True).display_mode(LegendDisplayMode.LIST)
    panel = timeseries.Panel().title(title).description(what).datasource(SOURCE)
    panel.unit(unit).min(0).legend(legend.placement(LegendPlacement.BOTTOM))
    for (text, expression), letter in zip(expressions.items(), "ABCDEF", strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(text)
        panel.with_target(query.ref_id(letter).range())
    return panel.span(8).height(8)


def heat(title: str, what: str, metric: str) -> Any:
    """A heat map of a histogram over time."""
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    query = prometheus.Dataquery().expr(rate(f"{metric}_bucket", "le"))
    query.format(PromQueryFormat.HEATMAP).legend_format("{{le}}").ref_id("A").range()
    panel = heatmap.Panel().title(title).description(what).datasource(SOURCE)
    panel.calculate(False).color(color.steps(64)).y_axis(
        heatmap.YAxisConfig().unit("none")
    )
    return panel.with_target(query).span(12).height(9)


def number(title: str, what: str, unit: str, expression: str) -> Any:
    """One figure."""
    query = prometheus.Dataquery().expr(expression).ref_id("A").instant()
    panel = stat.Panel().title(title).description(what).datasource(SOURCE)
    return panel.unit(unit).with_target(query).span(4).height(4)


VLLM_TIMES = {
    "Time to first token": "vllm:time_to_first_token_seconds",
    "Gap between tokens": "vllm:inter_token_latency_seconds",
    "Whole request": "vllm:e2e_request_latency_seconds",
}
ROWS: dict[str, list[Any]] = {
    "Now": [
        number("Servers", "That Prometheus can reach.", "short", f"sum(up{{{CHOSEN}}})"),
        number(
            "Requests per second",
            "Answered by the engine, with EM-INF and without.",
            "reqps",
            rate("vllm:request_success_total"),
        ),
        number(
            "Share of requests with EM-INF",
            "Of the HTTP requests that sample tokens.",
            "percentunit",
            f"{rate('em_inf_requests_total')} / {rate('vllm:request_success_total')}",
        ),
        number(
            "Touched tokens",
            "Share of the tokens under EM-INF whose logits it changed.",
            "percentunit",
            ratio("em_inf_tokens_minimized_total", "em_inf_tokens_total"),
        ),
        number(
            "EM-INF's share of time",
            "Seconds that a worker spends in EM-INF in each second.",
            "percentunit",
            f"{rate('em_inf_processor_seconds_total')} / count(up{{{CHOSEN}}} == 1)",
        ),
        number(
            "Errors",
            "Inside the processor or in fetching its figures, in the last hour.",
            "short",
            f"sum(increase(em_inf_processor_errors_total{{{CHOSEN}}}[1h]))"
            f" + sum(increase(em_inf_fetch_errors_total{{{CHOSEN}}}[1h]))",
        ),
    ],
    "Traffic": [
        lines(
            "Requests with EM-INF",
            "By preset; custom is an object of settings, default the server's own.",
            "reqps",
            {"{{preset}}, {{method}}": rate("em_inf_requests_total", "preset, method")},
        ),
        lines(
            "Tokens per second",
            "All that the engine made, and those under EM-INF.",
            "short",
            {
                "all": rate("vllm:generation_tokens_total"),
                "EM-INF": rate("em_inf_tokens_total"),
                "touched": rate("em_inf_tokens_minimized_total"),
            },
        ),
        lines(
            "Queue",
            "Requests that run, and that wait.",
            "short",
            {
                "running": f"sum(vllm:num_requests_running{{{CHOSEN}}})",
                "waiting": f"sum(vllm:num_requests_waiting{{{CHOSEN}}})",
            },
        ),
        *(
            lines(title, "Quantiles over all requests.", "s", quantiles(metric))
            for title, metric in VLLM_TIMES.items()
        ),
    ],
    "Entropy": [
        heat(
            "Entropy before EM-INF",
            "Nats of each token's distribution, as the model made it.",
            "em_inf_entropy_before_nats",
        ),
        heat(
            "Entropy after EM-INF",
            "Nats of the same tokens, before temperature.",
            "em_inf_entropy_after_nats",
        ),
        lines(
            "Mean entropy",
            "Nats, over all tokens under EM-INF.",
            "short",
            {
                when: ratio(
                    f"em_inf_entropy_{when}_nats_sum", f"em_inf_entropy_{when}_nats_count"
                )
                for when in ("before", "after")
            },
        ),
        lines(
            "Share of touched tokens",
            "Of those under EM-INF; the others were below the threshold.",
            "percentunit",
            {"touched": ratio("em_inf_tokens_minimized_total", "em_inf_tokens_total")},
        ),
        lines(
            "Gradient steps",
            "For each touched token.",
            "short",
            {"steps": ratio("em_inf_grad_steps_total", "em_inf_tokens_minimized_total")},
        ),
    ],
    "Overhead": [
        lines(
            "Share of time in EM-INF",
            "Seconds in each second, by server; on GPUs the device's.",
            "percentunit",
            {"{{instance}}": rate("em_inf_processor_seconds_total", "instance")},
        ),
        lines(
            "One call of the processor",
            "Mean; a decoding step is one call, several under speculative decoding.",
            "s",
            {
                "mean": ratio(
                    "em_inf_processor_seconds_total", "em_inf_processor_calls_total"
                )
            },
        ),
        lines(
            "Fetching a request's statistics",
            "What it adds to the request, at its end.",
            "s",
            quantiles("em_inf_fetch_seconds"),
        ),
    ],
    "Errors": [
        lines(
            "Refused requests",
            "By the field of em_inf that was wrong.",
            "reqps",
            {"{{field}}": rate("em_inf_requests_refused_total", "field")},
        ),
        lines(
            "HTTP errors",
            "By status.",
            "reqps",
            {"{{status}}": rate("http_requests_total", "status", 'status!="2xx"')},
        ),
        lines(
            "Errors of EM-INF",
            "Rows that met one were sampled from their unchanged logits.",
            "short",
            {
                "{{kind}}": f"sum by (kind) (increase("
                f"em_inf_processor_errors_total{{{CHOSEN}}}{RATE}))",
                "statistics lost": f"sum(increase("
                f"em_inf_fetch_errors_total{{{CHOSEN}}}{RATE}))",
            },
        ),
    ],
}


def dashboard() -> str:
    """The dashboard as JSON."""
    made = Dashboard("EM-INF").uid("em-inf").tags(["em-inf", "vllm"]).readonly()
    made.tooltip(DashboardCursorSync.CROSSHAIR).refresh("30s").time("now-1h", "now")
    made.with_variable(
        DatasourceVariable("datasource").label("Source").type("prometheus")
    )
    servers = QueryVariable("instance").label("Server").datasource(SOURCE)
    servers.query('label_values(up{job="em-inf"}, instance)').multi(True).include_all(
        True
    )
    made.with_variable(servers.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))
    for title, panels in ROWS.items():
        made.with_row(Row(title))
        for panel in panels:
            made.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else FILE).write_text(dashboard())
