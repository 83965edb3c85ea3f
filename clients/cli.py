"""The command `em-inf`: the server, and the tools that talk to one over HTTP.

Loads no more than the chosen command needs: only `serve` needs vLLM.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

EXIT_CODES = """exit codes:
  0    done; for doctor: all is well
  1    the server failed or refused; for doctor: something is wrong
  2    wrong usage, or a setting that cannot be accepted
  3    no server answers at the address
  4    the server answers, but without EM-INF
  130  interrupted (Ctrl-C)
  141  whoever read the output has gone
"""
_SUMMARIES = {
    "serve": "start an OpenAI-compatible server with EM-INF",
    "chat": "talk to a model, changing the settings on the way",
    "compare": "one prompt and seed under several settings, side by side",
    "trace": "one answer token by token: entropies before and after, and a plot",
    "doctor": "check a server, and say what to do about what is wrong",
    "eval": "which way of decoding answers best, on one's own data, with intervals",
    "tune": "search settings on some questions, and judge the best one on others",
}
_OF_THE_EVALUATION = ("eval", "tune")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit with its code.

    Args:
        argv: arguments without the program's name; those of the process if None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["serve"]:
        try:
            from em_inf.server.cli import main as serve
        except ModuleNotFoundError as error:
            sys.exit(
                f"em-inf serve: {error.name} is not installed; pip install "
                "'em-inf[cuda]', or 'em-inf[cpu]'"
            )
        serve(argv)
        raise SystemExit(0)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What its encoding has no character for is no reason to fail.
            stream.reconfigure(errors="replace")
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("em-inf: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Python flushes once more as it ends; there is nobody left to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    raise SystemExit(code)


def _run(argv: Sequence[str]) -> int:
    parser, subparsers = _parser()
    name = argv[0] if argv else ""
    if name not in _SUMMARIES:
        parser.parse_args(argv)  # Help, version, or an error; all three exit.
        parser.print_help()
        return 0
    from em_inf.clients.commands import failures

    package = "evaluation" if name in _OF_THE_EVALUATION else "clients"
    try:
        command = import_module(f"em_inf.{package}.commands.{name}")
    except ModuleNotFoundError as error:
        extra = "eval" if name in _OF_THE_EVALUATION else "cli"
        print(
            f"em-inf {name}: {error.name} is not installed; "
            f"pip install 'em-inf[{extra}]'",
            file=sys.stderr,
        )
        return 2
    own = subparsers[name]
    command.add_options(own)
    run: Callable[[argparse.Namespace], int] = command.run
    return failures.guarded(run, parser.parse_args(argv))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="em-inf",
        description="Entropy minimisation at inference time: a server and its tools.",
        epilog=EXIT_CODES + "\n`em-inf COMMAND --help` shows examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=version("em-inf"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    return parser, {
        name: commands.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, text in _SUMMARIES.items()
    }


if __name__ == "__main__":
    main()
