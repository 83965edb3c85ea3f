"""The examples for JavaScript, run by Node against the server."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.serving import QUESTION, Server

EXAMPLES = Path(__file__).parents[3] / "clients" / "node"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples with their packages, exactly as locked, in a folder of their own."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; with Node 20 or later this runs")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "openai.js", "ai-sdk.js"):
        shutil.copy(EXAMPLES / name, folder)
    installed = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if installed.returncode:
        pytest.skip(f"npm ci cannot run here: {installed.stderr[-300:]}")
    return folder


@pytest.mark.parametrize("name", ["openai.js", "ai-sdk.js"])
def test_example_sends_settings_and_gets_the_report(
    examples: Path, server: Server, name: str
) -> None:
    ended = subprocess.run(
        ["node", name, QUESTION],
        cwd=examples,
        capture_output=True,
        text=True,
        env={**os.environ, "EM_INF_URL": server.url},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    body = json.loads(ended.stdout)
    asked = {"preset": "strong", "report": "trace"}
    expected = server.chat(asked, seed=1, max_tokens=None).json
    for part in ("whole", "stream"):
        text = expected["choices"][0]["message"]["content"]
        assert body[part] == {"text": text, "report": expected["em_inf"]}
    assert body["refused"] == {"status": 400, "field": "em_inf.threshold"}
