"""`make load`: the server under load, EM-INF off and on, token by token and as HTTP.

    python -m em_inf.loadtests.load --requests 5200 --out loadtests/results/load-cpu-demo

On a server of its own with the bundled model: `vllm bench serve` at a constant rate, at a
Poisson rate and at saturation; GuideLLM's sweep, where it is installed; then Locust's
well and badly behaved users, whose every answer is checked. Writes OUT.json and
OUT.html. Exits with 1 where a good request failed, an answer belonged to another
request, a bad request was answered otherwise than it should be, or the server counted an
error of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from em_inf.loadtests import checker
from em_inf.loadtests.environment import where_it_ran
from em_inf.loadtests.load_report import failures, http_summary, write_html
from em_inf.loadtests.serving import (
    EM_INF,
    ERRORS,
    Serving,
    leave_no_server_behind,
    serving,
)
from em_inf.server.cli import DEMO_MODEL, DEMO_MODEL_NAME

ON = {"n_grad_steps": 15}
KNOWN_QUESTIONS = 60
OUTPUT_TOKENS = 24
MOST_AT_ONCE = 64
TIMEOUT_SECONDS = 1800

BENCH = (
    "from vllm.benchmarks.serve import add_cli_args, main\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = FlexibleArgumentParser()\n"
    "add_cli_args(parser)\n"
    "main(parser.parse_args())\n"
)
"""What `vllm bench serve` runs; that command itself does not start from the CPU build."""

MEASURES = ("ttft", "tpot", "itl", "e2el")


class LoadTool:
    """The tools that make load, aimed at one server.

    Args:
        server: to load.
        key: its API key.
        folder: for what they write.
        args: the command line's.
    """

    def __init__(
        self, server: Serving, key: str, folder: Path, args: argparse.Namespace
    ) -> None:
        self._server = server
        self._key = key
        self._folder = folder
        self._args = args
        self._environ = {**os.environ, "OPENAI_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}

    def bench(self, name: str, em_inf: Any, rate: float, burstiness: float) -> Any:
        """One profile of `vllm bench serve`.

        Args:
            name: of the profile.
            em_inf: the settings to send.
            rate: requests per second; infinite for saturation.
            burstiness: 1 for Poisson; the larger, the more even.
        """
        saturated = rate == float("inf")
        count = self._args.saturating if saturated else int(rate * self._args.seconds)
        file = self._folder / f"{name}-{em_inf is not False}.json"
        slo = [f"ttft:{self._args.ttft_ms}", f"tpot:{self._args.tpot_ms}"]
        command = [
            sys.executable, "-c", BENCH, "--backend", "openai-chat",
            "--endpoint", "/v1/chat/completions", "--base-url", self._server.url,
            "--model", DEMO_MODEL_NAME, "--tokenizer", str(DEMO_MODEL),
            "--dataset-name", "custom", "--dataset-path", str(self._prompts()),
            "--skip-chat-template", "--custom-output-len", str(OUTPUT_TOKENS),
            "--ignore-eos", "--num-prompts", str(max(count, 16)),
            "--request-rate", str(rate), "--burstiness", str(burstiness),
            "--max-concurrency", str(MOST_AT_ONCE), "--goodput", *slo,
            "--percentile-metrics", ",".join(MEASURES),
            "--metric-percentiles", "50,90,95,99",
            "--extra-body", json.dumps({"em_inf": em_inf, "temperature": 1.0}),
            "--save-result", "--save-detailed", "--disable-tqdm",
            "--result-dir", str(self._folder), "--result-filename", file.name,
        ]  # fmt: skip
        self._run(command, f"vllm bench serve, {name}")
        found = json.loads(file.read_text())
        kept = ("completed", "failed", "duration", "request_throughput",
                "output_throughput", "request_goodput")  # fmt: skip
        figures = {key: found.get(key) for key in kept}
        for measure in MEASURES:
            for which in ("mean", "p50", "p90", "p95", "p99"):
                figures[f"{which}_{measure}_ms"] = found.get(f"{which}_{measure}_ms")
        figures["ttft_ms"] = [round(1000 * x, 2) for x in found["ttfts"]]
        figures["reasons"] = reasons(found["errors"])
        return {"profile": name, "rate": None if saturated else rate, **figures}

    def guidellm(self, em_inf: Any) -> list[Any]:
        """GuideLLM's sweep from one request at a time to all at once."""
        backend = {
            "kind": "openai_http",
            "target": self._server.url,
            "model": DEMO_MODEL_NAME,
            "api_key": self._key,
            "http2": False,
            "extras": {"body": {"em_inf": em_inf, "temperature": 1.0}},
        }
        synthetic = {
            "kind": "synthetic_text",
            "prompt_tokens": 40,
            "output_tokens": OUTPUT_TOKENS,
        }
        out = self._folder / f"guidellm-{em_inf is not False}.json"
        command = [
            str(Path(sys.executable).with_name("guidellm")), "run",
            "--backend", json.dumps(backend),
            "--profile", json.dumps({"kind": "sweep", "sweep_size": 4}),
            "--constraint", f"kind=max_duration,seconds={self._args.sweep_seconds}",
            "--data", json.dumps(synthetic),
            "--tokenizer", f"kind=huggingface_auto,model={DEMO_MODEL}",
            "--output", f"kind=json,path={out}", "--disable-console",
        ]  # fmt: skip
        self._run(command, "guidellm")
        return [read_guidellm(one) for one in json.loads(out.read_text())["benchmarks"]]

    def locust(self, on: bool, known: Path) -> list[dict[str, Any]]:
        """Locust's users, until enough good requests were sent; their outcomes."""
        out = self._folder / f"locust-{on}.jsonl"
        environ = {
            "EM_INF_KNOWN": str(known),
            "EM_INF_OUT": str(out),
            "EM_INF_KEY": self._key,
            "EM_INF_MODEL": DEMO_MODEL_NAME,
            "EM_INF_ON": str(int(on)),
            "EM_INF_REQUESTS": str(self._args.requests // 2),
        }
        users = str(self._args.users)
        command = [
            sys.executable, "-m", "locust", "--headless", "--host", self._server.url,
            "--locustfile", str(Path(__file__).with_name("locustfile.py")),
            "--users", users, "--spawn-rate", users, "--stop-timeout", "120",
            "--only-summary", "--exit-code-on-error", "0",
        ]  # fmt: skip
        self._run(command, "locust", **environ)
        return [json.loads(line) for line in out.read_text().splitlines()]

    def _prompts(self) -> Path:
        path = self._folder / "prompts.jsonl"
        if not path.exists():
            known = checker.load(self._folder / "known.json")
            lines = [json.dumps({"prompt": one.question}) for one in known]
            path.write_text("\n".join(lines))
        return path

    def _run(self, command: list[str], name: str, **environ: str) -> None:
        print(f"{name} …", flush=True)
        done = subprocess.run(  # noqa: S603
            command,
            env={**self._environ, **environ},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def read_guidellm(benchmark: dict[str, Any]) -> dict[str, Any]:
    """The figures that we keep of one benchmark of GuideLLM's report."""
    metrics = benchmark["metrics"]
    names = {
        "requests_per_second": "request_throughput",
        "output_tokens_per_second": "output_throughput",
        "time_to_first_token_ms": "ttft_ms",
        "inter_token_latency_ms": "itl_ms",
        "time_per_output_token_ms": "tpot_ms",
    }
    found = {
        "strategy": benchmark["config"]["strategy"]["type_"],
        "completed": metrics["request_totals"]["successful"],
        "failed": metrics["request_totals"]["errored"],
        "reasons": reasons(
            request["info"]["error"] for request in benchmark["requests"]["errored"]
        ),
    }
    for theirs, ours in names.items():
        values = metrics[theirs]["successful"]
        found[ours] = values["mean"]
        found[f"p95_{ours}"] = values["percentiles"]["p95"]
    return found


def reasons(errors: Iterable[str | None]) -> dict[str, int]:
    """How often each reason was given; a traceback counts as its last line."""
    lines = [(error or "").strip().splitlines() for error in errors]
    return dict(Counter(found[-1] for found in lines if found).most_common())


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="em_inf.loadtests.load")
    parser.add_argument("--requests", type=int, default=5200, help="good ones, in all")
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20, help="of each timed profile")
    parser.add_argument("--saturating", type=int, default=300, help="requests at once")
    parser.add_argument("--sweep-seconds", type=int, default=8)
    parser.add_argument("--no-guidellm", action="store_true")
    parser.add_argument("--ttft-ms", type=float, default=1000)
    parser.add_argument("--tpot-ms", type=float, default=200)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start the server, load it in every way, and gather what came of it."""
    key = secrets.token_hex(8)
    result: dict[str, Any] = {
        "where": where_it_ran("em_inf.loadtests.load", note=args.note),
        "limits_ms": {"ttft": args.ttft_ms, "tpot": args.tpot_ms},
        "em_inf_on": ON,
        "bench": {"off": [], "on": []},
        "guidellm": {"off": [], "on": []},
        "http": {},
    }
    modes: list[tuple[str, Any]] = [("off", False), ("on", ON)]
    limits = (args.ttft_ms / 1000, args.tpot_ms / 1000)
    with (
        tempfile.TemporaryDirectory() as name,
        serving(EM_INF, None, DEMO_MODEL_NAME, "--api-key", key) as server,
    ):
        folder = Path(name)
        known = checker.questions(server.url, key, DEMO_MODEL_NAME, KNOWN_QUESTIONS)
        checker.save(known, folder / "known.json")
        tool = LoadTool(server, key, folder, args)
        for mode, em_inf in modes:
            saturated = tool.bench("saturation", em_inf, float("inf"), 1.0)
            result["bench"][mode].append(saturated)
        rate = round(result["bench"]["off"][0]["request_throughput"] / 2, 2)
        for mode, em_inf in modes:
            result["bench"][mode].append(tool.bench("constant", em_inf, rate, 1000.0))
            result["bench"][mode].append(tool.bench("poisson", em_inf, rate, 1.0))
        if not args.no_guidellm:
            for mode, em_inf in modes:
                result["guidellm"][mode] = tool.guidellm(em_inf)
        for mode, em_inf in modes:
            outcomes = tool.locust(em_inf is not False, folder / "known.json")
            result["http"][mode] = http_summary(outcomes, limits)
        result["server_errors"] = server.counted(*ERRORS)
        result["healthy_after"] = server.answers("/health") == 200
        if any(result["server_errors"].values()) and server.log is not None:
            print(server.log.read_text()[-20_000:])
    result["failures"] = failures(result, args.requests)
    return result


def main() -> None:
    """Measure, write both files, and say how it went."""
    leave_no_server_behind()
    args = parse()
    result = measure(args)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    write_html(result, args.out.with_suffix(".html"))
    for failure in result["failures"]:
        print(f"FAILED: {failure}")
    good = sum(http["good"] for http in result["http"].values())
    print(f"{good} good requests, {len(result['failures'])} failures: {args.out}.html")
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
