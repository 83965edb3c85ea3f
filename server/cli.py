"""`em-inf serve MODEL [any vllm serve flag] [our flags]`.

vLLM's own `serve`, with the logits processor, the worker extension and the endpoint
plugin put in place, and refused where they could not work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from em_inf.logits_processors.extra_args import (
    DEFAULT_MAX_GRAD_STEPS,
    MAX_GRAD_STEPS_VARIABLE,
)
from em_inf.logits_processors.settings import SettingsError
from em_inf.server.operator_settings import (
    MAX_FETCH_SECONDS,
    SERVER_SETTINGS_VARIABLE,
    ServerSettings,
    load_presets,
)

PROCESSOR = "em_inf.logits_processors.processor:EMInfLogitsProcessor"
WORKER_EXTENSION = "em_inf.logits_processors.recorder.EMInfWorkerExtension"
PLUGIN = "em_inf"
RAY_VARIABLES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open. vLLM's own 5 s are less than proxies and pools
of connections wait: they would send into a connection that is just being closed."""
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""vLLM's executor with the worker in the engine's process: its default on one GPU."""
DEMO_MODEL = Path(__file__).parent / "demo_model"
DEMO_MODEL_NAME = "em-inf-demo"
VLLM_VERSIONS = ((0, 32), (0, 33))
"""The minor versions of vLLM that this release is tested with."""

_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
_DESCRIPTION = """Serve an OpenAI-compatible API with EM-INF, entropy minimisation at
inference time. Takes every flag of `vllm serve`; without MODEL it serves the bundled demo
model, which answers short arithmetic word problems."""


class RefusedStartError(Exception):
    """The server would not work as asked; the text says why."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["--version"], ["-V"]):
        print(version("em-inf"))
        return
    if argv[:1] != ["serve"]:
        asked = argv[:1] in ([], ["--help"], ["-h"])
        print(
            "usage: em-inf serve [MODEL] [any vllm serve flag]\n"
            "       em-inf serve --help | em-inf --version",
            file=sys.stdout if asked else sys.stderr,
        )
        raise SystemExit(0 if asked else 2)
    try:
        serve(argv[1:])
    except (RefusedStartError, SettingsError) as error:
        raise SystemExit(f"em-inf serve: {error}") from None


def serve(argv: Sequence[str]) -> None:
    """Start the server and return when it stops.

    Args:
        argv: what follows `em-inf serve`.

    Raises:
        RefusedStartError: it could not work.
        SettingsError: a setting of ours is not allowed.
    """
    check_vllm()
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ["VLLM_PLUGINS"] = ",".join(allowed_plugins(os.environ))

    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="em-inf")
    command = ServeSubcommand()
    serve_parser = command.subparser_init(parser.add_subparsers(dest="subparser"))
    serve_parser.description = _DESCRIPTION
    serve_parser.usage = "em-inf serve [MODEL] [any vllm serve flag] [EM-INF flags]"
    add_flags(serve_parser)
    try:
        args = parser.parse_args(["serve", *argv])
    except ValueError as error:  # vLLM's parser: --served-model-name without MODEL, say.
        raise RefusedStartError(str(error)) from None

    if args.model_tag is None and args.model == serve_parser.get_default("model"):
        use_demo_model(args)
    settings = read_settings(args)
    check_args(args, os.environ)
    if on_cpu():
        keep_prompts_whole(args)
    os.environ[SERVER_SETTINGS_VARIABLE] = settings.model_dump_json()
    os.environ[MAX_GRAD_STEPS_VARIABLE] = str(settings.max_grad_steps)
    os.environ[RAY_VARIABLES] = ray_variables(os.environ)
    os.environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", str(KEEP_ALIVE_SECONDS))
    args.logits_processors = [*(args.logits_processors or []), PROCESSOR]
    args.worker_extension_cls = WORKER_EXTENSION
    command.validate(args)
    if not args.headless:
        threading.Thread(target=announce, args=(args,), daemon=True).start()
    command.cmd(args)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add our own flags to vLLM's parser."""
    group = parser.add_argument_group("EM-INF", "Entropy minimisation at inference time.")
    group.add_argument(
        "--em-inf-default",
        default="off",
        metavar="off|on|PRESET|JSON",
        help="What a request without em_inf gets.",
    )
    group.add_argument(
        "--em-inf-presets",
        type=Path,
        metavar="FILE",
        help="JSON file of presets of your own: name to object of settings.",
    )
    group.add_argument(
        "--em-inf-max-grad-steps",
        type=int,
        default=DEFAULT_MAX_GRAD_STEPS,
        metavar="N",
        help="The largest n_grad_steps that a request may ask for.",
    )
    group.add_argument(
        "--em-inf-fetch-seconds",
        type=float,
        metavar="SECONDS",
        help="How long an answer that is done waits for its figures; then it goes out "
        "with an error in their place. Above 0, at most 30; 0.5 by default, 15 on a CPU.",
    )
    group.add_argument(
        "--em-inf-no-playground",
        action="store_true",
        help="Do not serve the page at /playground.",
    )


def read_settings(args: argparse.Namespace) -> ServerSettings:
    """The operator's settings from our flags.

    Raises:
        SettingsError: something in them is not allowed.
    """
    presets: dict[str, Any] = {}
    if args.em_inf_presets is not None:
        try:
            presets = load_presets(args.em_inf_presets.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError("--em-inf-presets", f"cannot be read: {error}") from None
    settings = ServerSettings.build(
        args.em_inf_default, presets, args.em_inf_max_grad_steps
    )
    seconds = args.em_inf_fetch_seconds
    if seconds is not None and not 0 < seconds <= MAX_FETCH_SECONDS:
        raise SettingsError(
            "--em-inf-fetch-seconds",
            f"{seconds:g} is not allowed; it must be a number of seconds above 0 and at "
            f"most {MAX_FETCH_SECONDS:g}",
        )
    playground = not args.em_inf_no_playground
    return settings.model_copy(
        update={"playground": playground, "fetch_seconds": seconds}
    )


def use_demo_model(args: argparse.Namespace) -> None:
    """Serve the bundled model, small enough for any machine's CPU."""
    args.model_tag = str(DEMO_MODEL)
    args.served_model_name = args.served_model_name or [DEMO_MODEL_NAME]
    if args.dtype == "auto":
        args.dtype = "float32"
    # Compiling a model of this size takes longer than it ever saves.
    args.enforce_eager = True
    workers = (
        args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    )
    if args.distributed_executor_backend is None and workers == 1 and on_cpu():
        # vLLM gives the worker a process of its own there, to bind its threads to cores.
        # A step of this model is too short for that; one thread is all it can use.
        args.distributed_executor_backend = IN_PROCESS
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # GiB. On a CPU vLLM else asks for nearly all of the memory.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def keep_prompts_whole(args: argparse.Namespace) -> None:
    """Turn chunked prefill off, which a CPU's engine does not survive.

    vLLM 0.32's CPU build ends in "CPU Generator does not use offset" when it has split
    the prompt of a request with a seed, and that ends all other requests as well.
    Called after vLLM's parser, so that it does not matter how it was asked for: a flag,
    or a file, whose `enable-chunked-prefill: false` that parser drops.

    Raises:
        RefusedStartError: chunked prefill was asked for.
    """
    if args.enable_chunked_prefill:
        raise RefusedStartError(
            "--enable-chunked-prefill is set, and on a CPU vLLM's engine dies, for "
            "everybody, of the first request with a seed whose prompt it splits. Leave "
            "it out: chunked prefill is off here."
        )
    args.enable_chunked_prefill = False


def on_cpu() -> bool:
    """Whether vLLM will run on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def check_vllm() -> None:
    """Refuse a vLLM that is missing or of a version nobody tested.

    Raises:
        RefusedStartError: with what to install.
    """
    found = None
    for distribution in ("vllm", "vllm-cpu"):
        try:
            found = version(distribution)
            break
        except PackageNotFoundError:
            continue
    supported = " or ".join(f"{major}.{minor}" for major, minor in VLLM_VERSIONS)
    if found is None:
        raise RefusedStartError(
            f"vLLM is not installed; it needs version {supported}, from the extra "
            "em-inf[cuda] or em-inf[cpu]."
        )
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) not in VLLM_VERSIONS:
        raise RefusedStartError(
            f"vLLM {found} is installed, and this release works with {supported}: the "
            "interfaces that it extends move between vLLM's releases."
        )


def check_args(args: argparse.Namespace, environ: os._Environ[str]) -> None:
    """Refuse combinations under which EM-INF would be absent or not work.

    Raises:
        RefusedStartError: with the reason and the way out.
    """
    if environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise RefusedStartError(
            "VLLM_USE_RUST_FRONTEND is set, and vLLM's Rust front end loads no Python "
            "plugins: the em_inf field would be ignored. Unset it."
        )
    if getattr(args, "grpc", False):
        raise RefusedStartError(
            "--grpc serves without HTTP, so there would be no em_inf field. Leave it out."
        )
    if getattr(args, "runner", "auto") == "pooling":
        raise RefusedStartError(
            "--runner pooling samples no tokens, so EM-INF has nothing to do."
        )
    if args.worker_extension_cls:
        raise RefusedStartError(
            f"--worker-extension-cls {args.worker_extension_cls} is set, and vLLM takes "
            "one such class, which EM-INF needs for its statistics. Inherit yours from "
            f"{WORKER_EXTENSION} in a fork of this check, or leave it out."
        )
    if getattr(args, "speculative_config", None) and runner_is_v1(environ):
        raise RefusedStartError(
            "speculative decoding is asked for, and vLLM will use its V1 model runner "
            "here, which allows no custom logits processor beside it. Use the V2 runner "
            "(a GPU, and VLLM_USE_V2_MODEL_RUNNER not 0) or drop --speculative-config."
        )


def runner_is_v1(environ: os._Environ[str]) -> bool:
    """Whether vLLM will run its V1 model runner: told to, or for want of Triton."""
    told = environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if told is not None:
        return told in ("", "0")
    from vllm.triton_utils import HAS_TRITON

    return not HAS_TRITON


def allowed_plugins(environ: os._Environ[str]) -> list[str]:
    """The value of VLLM_PLUGINS that lets our endpoint plugin in and keeps the others.

    Endpoint plugins load only when named there, and naming one shuts every other kind of
    plugin out that is not named too.
    """
    told = environ.get("VLLM_PLUGINS")
    if told is not None:
        names = [name.strip() for name in told.split(",") if name.strip()]
    else:
        names = [e.name for group in _PLUGIN_GROUPS for e in entry_points(group=group)]
    return list(dict.fromkeys([*names, PLUGIN]))


def ray_variables(environ: os._Environ[str]) -> str:
    """The value of `RAY_VARIABLES` that takes our limit to workers on Ray's nodes."""
    told = [name.strip() for name in environ.get(RAY_VARIABLES, "").split(",")]
    return ",".join(name for name in [*told, MAX_GRAD_STEPS_VARIABLE] if name)


def announce(args: argparse.Namespace) -> None:
    """Once the server answers, print a request that works."""
    if args.uds or args.ssl_certfile:
        return
    host = args.host if args.host not in (None, "", "0.0.0.0", "::") else "localhost"
    host = f"[{host}]" if ":" in host else host
    address = f"http://{host}:{args.port}{args.root_path or ''}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        time.sleep(0.5)
        try:
            with direct.open(f"{address}/health", timeout=5):
                break
        except (urllib.error.URLError, OSError):
            continue
    model = (args.served_model_name or [args.model])[0]
    body = {
        "model": model,
        "messages": [
            {
                "role": "user",
                "content": "Tom has 34 apples. He buys 3 boxes of 12 apples. "
                "He gives away 15. How many apples does Tom have now?",
            }
        ],
        "em_inf": True,
    }
    key = (
        " -H 'Authorization: Bearer YOUR_KEY'"
        if args.api_key or os.environ.get("VLLM_API_KEY")
        else ""
    )
    page = "" if args.em_inf_no_playground else f"Playground: {address}/playground\n\n"
    print(
        f"\nem-inf serves {model} at {address}. Try:\n\n"
        f"curl -s {address}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{json.dumps(body)}'\n\n{page}",
        flush=True,
    )
