"""What a real Prometheus sees of a real server, and whether deploy/ reads it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.prometheus import RULES, Prometheus, needs, rules, selectors
from tests.e2e.serving import Server

GRAFANA = Path(__file__).parent.parent.parent / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "em-inf.json"


def panels() -> list[dict]:
    return [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


def expressions() -> list[str]:
    """Every panel's, as Grafana would send them with all servers chosen."""
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]


def ask_all_sorts(server: Server) -> None:
    assert server.chat(True, temperature=1.0).status == 200
    assert server.chat("strong", stream=True).status == 200
    assert server.chat({"method": "adaptive_temperature"}).status == 200
    assert server.chat(None).status == 200
    assert server.chat({"threshold": -1}).status == 400
    assert server.post("/v1/chat/completions", b"{").status == 400


@pytest.fixture(scope="module")
def prometheus(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Scrapes the server, which is asked before and after the first scrape."""
    ask_all_sorts(server)
    folder = tmp_path_factory.mktemp("prometheus")
    with Prometheus.start(folder, f"127.0.0.1:{server.port}") as running:
        assert not running.wait_for(['em_inf_tokens_total{job="em-inf"} > 0'])
        ask_all_sorts(server)
        yield running


def test_every_panel_is_answered_with_data(prometheus: Prometheus) -> None:
    assert prometheus.wait_for(expressions()) == set()


def test_every_rule_reads_series_that_exist(prometheus: Prometheus) -> None:
    read = {s for rule in rules() for s in selectors(rule["expr"])}
    assert len(read) > 15
    assert prometheus.wait_for(sorted(read)) == set()
    recorded = [rule["expr"] for rule in rules() if "record" in rule]
    assert prometheus.wait_for(recorded) == set()


def test_alerts_of_a_dead_server_and_of_lost_figures_would_fire(
    prometheus: Prometheus,
) -> None:
    # promtool's tests hold the times and limits; here that the series have those labels.
    by_name = {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}
    for name, above, below in (
        ("EmInfServerDown", "== 0", "== 1"),
        ("EmInfProcessorErrors", "> 0", ">= 0"),
        ("EmInfStatisticsLost", "> 0", ">= 0"),
    ):
        assert above in by_name[name]
        assert not prometheus.ask(by_name[name])
        assert not prometheus.wait_for([by_name[name].replace(above, below)])


def test_figures_are_the_servers(server: Server, prometheus: Prometheus) -> None:
    counted = server.metrics()["em_inf_tokens_total"]
    # A scrape at or after that reading has it.
    assert not prometheus.wait_for([f'em_inf_tokens_total{{job="em-inf"}} == {counted}'])
    per_token = prometheus.value(
        "em_inf_entropy_after_nats_sum / em_inf_entropy_before_nats_sum"
    )
    assert 0 < per_token < 1


def test_rules_and_their_tests_satisfy_promtool() -> None:
    promtool = needs("promtool")
    for command in (
        ["check", "rules", RULES],
        ["check", "config", RULES.parent / "prometheus.yml"],
        ["test", "rules", RULES.parent / "rules_test.yml"],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    text = (RULES.parent / "rules_test.yml").read_text()
    for rule in rules():
        if "alert" in rule:
            uses = text.split(f"alertname: {rule['alert']}\n")[1:]
            fires = [use.lstrip().startswith("exp_alerts") for use in uses]
            assert True in fires, rule["alert"]
            assert False in fires, rule["alert"]


def test_dashboard_is_what_its_script_writes(tmp_path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    again = tmp_path / "again.json"
    command = [sys.executable, GRAFANA / "dashboard.py", again]
    subprocess.run(command, check=True)
    assert again.read_text() == DASHBOARD.read_text()


def test_dashboard_reads_back_into_grafanas_types_unchanged() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = json.loads(DASHBOARD.read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert full(read) == full(written)


def full(value: Any) -> Any:
    """Without empty objects, of which Grafana's reader adds some."""
    if isinstance(value, list):
        return [full(item) for item in value]
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items() if item != {}}
    return value


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in panels()]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
