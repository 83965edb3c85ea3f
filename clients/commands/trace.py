"""`em-inf trace`: one answer token by token, as a table and as a figure for a paper."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from em_inf.clients.commands.ask import Outcome, Question, ask, warm_up
from em_inf.clients.commands.failures import USAGE, Failure
from em_inf.clients.commands.options import (
    add_em_inf_options,
    add_prompt_options,
    add_server_options,
    connect,
    model_name,
    read_prompt,
    sampling_value,
    setting_from,
)
from em_inf.clients.commands.terminal import (
    console,
    number,
    print_json,
    safe,
    table,
    visible,
)

_EXAMPLES = """examples:
  em-inf trace "Tom has 34 apples. He buys 3 boxes of 12. How many apples has he?"
  em-inf trace --preset strong --plot entropies.pdf "PROMPT"
  em-inf trace --n-grad-steps 30 --threshold 0.1 --seed 7 "PROMPT"
  em-inf trace --json "PROMPT" | jq '.tokens[] | select(.grad_steps > 0)'

Entropies are in nats, before temperature; probability is the model's own for the token
that was sampled, before EM-INF (unless the server runs with other logprobs).
"""
FORMATS = ("pdf", "png", "svg")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    parser.epilog = _EXAMPLES
    add_prompt_options(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"write a figure: {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--touched", action="store_true", help="list only tokens that were changed"
    )
    add_em_inf_options(parser)
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask once, print every token, and draw them if asked to."""
    setting = setting_from(args)
    if args.plot:
        _check_plot(args.plot)
    client = connect(args)
    question = Question(
        model_name(client, args),
        [{"role": "user", "content": read_prompt(args)}],
        args.completion,
        {
            "temperature": sampling_value("temperature", args.temperature),
            "top_p": sampling_value("top_p", args.top_p),
            "seed": args.seed,
            "max_tokens": args.max_tokens,
        },
    )
    progress = console(args, sys.stderr)
    warm_up(client, question, setting)
    with progress.status("0 tokens") as status:
        count = 0

        def seen(_: object) -> None:
            nonlocal count
            count += 1
            status.update(f"{count} tokens")

        outcome = ask(client, question, setting, seen)
    if args.plot:
        from em_inf.clients.commands.plot import draw

        with progress.status("drawing"):
            draw(outcome.tokens, outcome.report.settings, args.plot)
        progress.print(f"wrote {args.plot}")
    if args.json:
        asked = {"model": question.model, "prompt": question.messages[0]["content"]}
        print_json({**asked, **question.sampling, **outcome.as_json(with_tokens=True)})
    else:
        _show(args, outcome)
    return 0


def _check_plot(path: Path) -> None:
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise Failure(USAGE, f"--plot: {path} must end in .{', .'.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise Failure(USAGE, f"--plot: {path.parent} is no folder")


def _show(args: argparse.Namespace, outcome: Outcome) -> None:
    adaptive = outcome.report.settings.method == "adaptive_temperature"
    headings = [
        ("position", True), ("token", False), ("probability", True),
        ("nats before", True), ("nats after", True),
        ("temperature" if adaptive else "steps", True),
    ]  # fmt: skip
    rows = [
        [
            str(token.position),
            visible(token.text),
            number(token.probability),
            number(token.entropy_before),
            number(token.entropy_after),
            number(token.temperature) if adaptive else number(token.grad_steps, 0),
        ]
        for token in outcome.tokens
        if token.minimized or not args.touched
    ]
    out = console(args)
    out.print(table(headings, rows))
    choice = outcome.choice
    out.print(
        f"\n{choice.tokens} tokens, {choice.tokens_minimized} changed; mean entropy "
        f"{number(choice.mean_entropy_before)} -> {number(choice.mean_entropy_after)} "
        f"nats; {outcome.seconds:.2f} s\n\n{safe(outcome.text)}"
    )
