"""A real Prometheus that scrapes servers under test, under the rules of deploy/."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

CONFIG = Path(__file__).parent.parent.parent / "deploy" / "prometheus"
RULES = CONFIG / "rules.yml"
WAIT_SECONDS = 180


def needs(program: str) -> str:
    """The program's path; the test is skipped where there is none."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(
            f"no {program}; as root: apt-get install --no-install-recommends prometheus"
        )
    return found


def rules() -> list[dict[str, Any]]:
    """Every rule, recording or alerting."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, without their ranges."""
    return set(re.findall(r"[a-zA-Z_][\w:]*(?:\{[^}]*\})", expression))


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path, *targets: str) -> Iterator[Prometheus]:
        """Scrape `host:port` targets every second."""
        program = needs("prometheus")
        config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    program,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield cls(f"http://{address}")
        finally:
            process.terminate()
            process.wait(60)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The answer to an instant query; empty also while Prometheus is coming up."""
        query = urlencode({"query": expression})
        try:
            with urlopen(f"{self.url}/api/v1/query?{query}", timeout=60) as answer:
                return json.load(answer)["data"]["result"]
        except HTTPError as error:
            if error.code == 503:
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        except OSError:
            return []

    def value(self, expression: str) -> float:
        """The answer's first value; NaN where there is none."""
        answer = self.ask(expression)
        return float(answer[0]["value"][1]) if answer else float("nan")

    def wait_for(self, expressions: list[str]) -> set[str]:
        """Ask until each has an answer that is a number; returns those without."""
        until = time.monotonic() + WAIT_SECONDS
        missing = set(expressions)
        while missing and time.monotonic() < until:
            answered = {e for e in missing if any(self._numbers(e))}
            missing -= answered
            if missing:
                time.sleep(0.5)
        return missing

    def _numbers(self, expression: str) -> list[bool]:
        return [row["value"][1] != "NaN" for row in self.ask(expression)]
