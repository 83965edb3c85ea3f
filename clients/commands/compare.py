"""`em-inf compare`: one prompt and seed under several settings, side by side."""

from __future__ import annotations

import argparse
import sys

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from em_inf.clients.commands.ask import Outcome, Question, ask, warm_up
from em_inf.clients.commands.options import (
    Setting,
    add_prompt_options,
    add_server_options,
    connect,
    model_name,
    parse_setting,
    read_prompt,
    sampling_value,
)
from em_inf.clients.commands.terminal import console, number, print_json, safe, table

_EXAMPLES = """examples:
  em-inf compare "Tom has 34 apples. He buys 3 boxes of 12. How many apples has he?"
  em-inf compare --setting off --setting strong --setting temperature=0.3 "PROMPT"
  em-inf compare --setting n_grad_steps=30,threshold=0.1,temperature=0.7 "PROMPT"
  em-inf compare --json "PROMPT" | jq '.answers[].mean_entropy_after'

A setting is off, on, the name of a preset, or name=value pairs joined by commas. Without
--setting: off, balanced, strong, adaptive, and half the temperature without EM-INF.
The settings run one after another, and after an untimed token, so that their times
compare. Off is sent as the preset measure, which changes no logit and reports the
entropies: nats, before temperature, means over the answer's tokens.
"""
_PANEL_COLUMNS = 50
"""Least width of an answer on a terminal."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    parser.epilog = _EXAMPLES
    add_prompt_options(parser)
    parser.add_argument(
        "--setting",
        action="append",
        metavar="SETTING",
        help="one of the settings to compare; may be given several times",
    )
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask under each setting, and print what came of it."""
    temperature = sampling_value("temperature", args.temperature)
    usual = ["off", "balanced", "strong", "adaptive", f"temperature={temperature / 2:g}"]
    settings = [parse_setting(text) for text in args.setting or usual]
    client = connect(args)
    question = Question(
        model_name(client, args),
        [{"role": "user", "content": read_prompt(args)}],
        args.completion,
        {
            "temperature": temperature,
            "top_p": sampling_value("top_p", args.top_p),
            "seed": args.seed,
            "max_tokens": args.max_tokens,
        },
    )
    progress = console(args, sys.stderr)
    outcomes = []
    warm_up(client, question, settings[0])
    for count, setting in enumerate(settings, 1):
        with progress.status(f"{count} of {len(settings)}: {setting.name}"):
            outcomes.append(ask(client, question, setting))
        if not progress.is_terminal:
            progress.print(f"{count} of {len(settings)}: {setting.name}")
    if args.json:
        print_json(
            {
                "model": question.model,
                "prompt": question.messages[0]["content"],
                **question.sampling,
                "answers": [outcome.as_json() for outcome in outcomes],
            }
        )
    else:
        _show(console(args), outcomes)
    return 0


def _show(out: Console, outcomes: list[Outcome]) -> None:
    headings = [
        ("setting", False), ("tokens", True), ("touched", True), ("steps", True),
        ("nats before", True), ("nats after", True), ("seconds", True),
        ("tokens/s", True), ("end", False),
    ]  # fmt: skip
    out.print(table(headings, (_row(outcome) for outcome in outcomes)))
    out.print()
    if not out.is_terminal:
        for outcome in outcomes:
            out.print(f"== {outcome.setting.name}\n{safe(outcome.text)}\n")
        return
    per_row = max(1, min(len(outcomes), out.width // _PANEL_COLUMNS))
    width = out.width // per_row - 1
    panels = [
        Panel(Text(safe(outcome.text)), title=_title(outcome.setting), width=width)
        for outcome in outcomes
    ]
    out.print(Columns(panels, padding=(0, 1)))


def _title(setting: Setting) -> Text:
    return Text(setting.name, "bold")


def _row(outcome: Outcome) -> list[str]:
    choice = outcome.choice
    return [
        outcome.setting.name,
        str(choice.tokens),
        str(choice.tokens_minimized),
        "-" if choice.grad_steps is None else str(choice.grad_steps),
        number(choice.mean_entropy_before),
        number(choice.mean_entropy_after),
        number(outcome.seconds, 2),
        number(choice.tokens / outcome.seconds, 0),
        outcome.finish_reason or "-",
    ]
