"""`em-inf chat`: a streaming conversation whose settings change on the way."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import openai
from rich.console import Console

from em_inf.clients.commands.conversation import Conversation, Reply
from em_inf.clients.commands.failures import INTERRUPTED, Failure, explained
from em_inf.clients.commands.options import (
    add_em_inf_options,
    add_server_options,
    checked_text,
    connect,
    model_name,
    sampling_value,
    setting_from,
)
from em_inf.clients.commands.terminal import (
    console,
    legend,
    number,
    print_json,
    safe,
    shaded,
)
from em_inf.clients.errors import NoReportError, SettingsError, setting_errors

_EXAMPLES = """examples:
  em-inf chat
  em-inf chat --preset strong --temperature 0.8 --shade
  echo "Tom has 3 apples. He buys 4. How many has he?" | em-inf chat
  em-inf chat --json < questions.txt

In a pipe each line is a message or a command, and the first failure ends the run. With
--json each answer is one line of JSON. On a terminal, Ctrl-C stops an answer, or ends the
conversation where none is being given; Ctrl-D ends it too.

"""
_HELP = """/set NAME VALUE      change a setting: n_grad_steps, threshold, temperature ...
/unset NAME          back to the preset's or the server's value
/preset NAME         take a preset, and nothing else
/on  /off            EM-INF on or off
/temperature VALUE   short for /set temperature VALUE
/shade on|off        show each answer again, its tokens shaded by entropy
/settings            what the next answer gets
/reset               forget the conversation
/help                this
/quit                end (Ctrl-D too)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    parser.epilog = _EXAMPLES + "commands in the conversation:\n" + _HELP
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="a system message")
    group.add_argument("--temperature", help="the model's own, if not given")
    group.add_argument("--top-p", help="the model's own, if not given")
    group.add_argument("--seed", type=int, help="the same for every answer")
    group.add_argument("--max-tokens", type=int, metavar="N", help="of one answer")
    group.add_argument(
        "--shade", action="store_true", help="shade each answer's tokens by entropy"
    )
    add_em_inf_options(parser)
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Hold the conversation until its end."""
    setting = setting_from(args)
    sampling: dict[str, Any] = {
        name: sampling_value(name, getattr(args, name))
        for name in ("temperature", "top_p")
        if getattr(args, name) is not None
    }
    sampling |= {
        name: getattr(args, name)
        for name in ("seed", "max_tokens")
        if getattr(args, name) is not None
    }
    client = connect(args)
    conversation = Conversation(
        client, model_name(client, args), setting.em_inf, sampling, args.shade
    )
    if args.system:
        system = checked_text(args.system, "--system")
        conversation.messages.append({"role": "system", "content": system})
    talking = sys.stdin.isatty() and sys.stdout.isatty()
    out = console(args)
    if talking:
        import readline  # noqa: F401 - gives input() a history and an editable line.

        out.print(f"{conversation.model} at {args.url}; {conversation.described()}")
        out.print("/help lists the commands.")
    while True:
        line = _read_line(talking)
        if line is None:
            if talking:
                out.print()
            return 0
        if not line.strip():
            continue
        if line.split()[0] in ("/quit", "/exit"):
            return 0
        try:
            with setting_errors():
                _obey(line, conversation, args, out, talking)
        except (Failure, SettingsError, NoReportError, openai.APIError) as error:
            failure = explained(error, args.url)
            if not talking:
                raise failure from error
            out.print(f"em-inf: {failure}", style="red")


def _read_line(talking: bool) -> str | None:
    """The next line, None at the end."""
    if not talking:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        return None


def _obey(
    line: str,
    conversation: Conversation,
    args: argparse.Namespace,
    out: Console,
    talking: bool,
) -> None:
    """Do what a line asks: change a setting, or answer it."""
    if line.startswith("/"):
        said = _HELP if line.strip() == "/help" else conversation.command(line)
        if talking:
            out.print(said, style="dim")
        return
    text = checked_text(line.rstrip("\n"), "the message")
    reply = _answer(text, conversation, args.json, talking, out)
    if args.json:
        print_json(reply.as_json())
        return
    if reply.tokens:
        out.print(shaded(reply.tokens, out))
        out.print(legend(out))
    if reply.stopped:
        out.print("stopped", style="dim")
    if reply.report and talking:
        choice = reply.report.choices[0]
        out.print(
            f"{choice.tokens} tokens, {choice.tokens_minimized} changed, "
            f"{number(choice.mean_entropy_before)} -> "
            f"{number(choice.mean_entropy_after)} nats, {reply.seconds:.1f} s",
            style="dim",
        )


def _answer(
    text: str, conversation: Conversation, quiet: bool, talking: bool, out: Console
) -> Reply:
    """Stream an answer to stdout.

    Raises:
        KeyboardInterrupt: Ctrl-C, in a pipe.
    """
    written = False

    def show(piece: str) -> None:
        nonlocal written
        if not quiet:
            written = written or bool(piece)
            sys.stdout.write(safe(piece))
            sys.stdout.flush()

    try:
        reply = conversation.ask(text, show)
    finally:
        if written:
            out.print()
    if reply.stopped and not talking:
        raise KeyboardInterrupt(INTERRUPTED)
    return reply
