"""The guide and the deployments, held against the code and against each other."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.deploy.prometheus import rules

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DEPLOY / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_flags_and_metrics_are_those_of_the_code() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert text == reference().filled(text), "run: python deploy/reference.py"


def test_every_alert_is_explained() -> None:
    text = (DEPLOY / "README.md").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"| `{rule['alert']}` |" in text


def test_every_file_that_the_guide_names_exists() -> None:
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"(?:deploy/[\w./-]+)", text))
    assert len(named) > 3
    assert not {name for name in named if not (ROOT / name).exists()}


def values() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())


def volumes_of_the_image() -> set[str]:
    text = (ROOT / "Dockerfile").read_text()
    return set(re.findall(r'"(/\w+)"', text.partition("VOLUME [")[2].partition("]")[0]))


def test_kubernetes_mounts_what_the_image_writes_to() -> None:
    spec = values()["servingEngineSpec"]
    assert spec["containerSecurityContext"]["readOnlyRootFilesystem"]
    model = spec["modelSpec"][0]
    mounted = {mount["mountPath"] for mount in model["extraVolumeMounts"]}
    assert volumes_of_the_image() == {"/cache", "/tmp"}
    assert volumes_of_the_image() <= mounted
    names = {volume["name"] for volume in model["extraVolumes"]}
    assert {mount["name"] for mount in model["extraVolumeMounts"]} == names


def seconds(flags: list[str]) -> int:
    return int(flags[flags.index("--shutdown-timeout") + 1])


def test_running_requests_have_less_time_than_the_container() -> None:
    model = values()["servingEngineSpec"]["modelSpec"][0]
    assert seconds(model["vllmConfig"]["extraArgs"]) < 30
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text())
    service = compose["services"]["em-inf"]
    assert seconds(service["command"]) < int(service["stop_grace_period"].rstrip("s"))


def test_compose_mounts_files_that_exist_and_scrapes_its_own_server() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), source
            else:
                assert source in compose["volumes"]
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert [target.split(":")[0] for target in targets] == ["em-inf"]
    assert "em-inf" in compose["services"]
