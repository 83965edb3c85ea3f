"""`em-inf eval`: which way of decoding answers best on one's own data, with intervals."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai

from em_inf.clients.commands.failures import (
    FAILED,
    NO_EM_INF,
    UNREACHABLE,
    USAGE,
    Failure,
)
from em_inf.clients.commands.options import add_server_options, connect
from em_inf.clients.commands.terminal import console, number, print_json, table
from em_inf.evaluation.commands.arguments import natural, positive
from em_inf.evaluation.commands.progress import RunProgress

if TYPE_CHECKING:
    from em_inf.evaluation.decoding import Decoder
    from em_inf.evaluation.plan import Plan
    from em_inf.evaluation.records import Run
    from em_inf.evaluation.summary import DecoderSummary

_EXAMPLES = """examples:
  em-inf eval arithmetic --limit 100
  em-inf eval questions.jsonl --grader numeric --decoder greedy \\
      --decoder "em_inf(n_grad_steps=15, temperature=0.7)" --decoder "temperature(0.7)"
  em-inf eval questions.jsonl --decoder default --decoder mine.py:my_decoder --samples 4
  em-inf eval math-500 --replicate qwen2.5-7b/em_inf --model Qwen/Qwen2.5-7B-Instruct
  em-inf eval --report em-inf-eval/questions-1a2b3c4d

DATA is a JSONL file or the name of a known task ({tasks}).
A line of the file holds "prompt" (or "messages"), "answer", and if it likes "id" and
what its grader reads ("choices", "tests").

A decoder is one of
  greedy                              temperature(0.7)
  em_inf(n_grad_steps=15)             adaptive_temperature(target_ratio=0.5)
  min_p(0.1)                          top_p(0.9)
  matched(of=em_inf(n_grad_steps=15))     the plain temperature with that entropy
  self_consistency(n=4, of=...)           majority of n answers
  refinement(n=3, of=...)                 n rounds, each revising the one before
  path/to/file.py:function(...)           a function that returns a Decoder
Each takes sampling parameters too (temperature, top_p, top_k, min_p, penalties). default
stands for a set of them all, plain for those of it that need no EM-INF. Every request is
sent with every sampling parameter, so that no server fills in its own, and decoders
share their seeds. Off is sent as the preset measure, which reports entropies.

Every answer is kept in a journal as it comes. The same command again goes on where the
last one stopped, however it stopped, and asks nothing twice. Seconds are those of a
decoder's own turns: problems are asked in blocks, decoder after decoder in each block.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    try:
        from em_inf.evaluation import tasks

        known = ", ".join(tasks.names())
    except ModuleNotFoundError:
        known = "see the README"
    parser.epilog = _EXAMPLES.replace("{tasks}", known)
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="JSONL file or known task"
    )
    parser.add_argument(
        "--decoder",
        action="append",
        metavar="DECODER",
        help="one to compare; may be given several times; default: default",
    )
    parser.add_argument(
        "--baseline",
        metavar="DECODER",
        help="that the others are compared with; greedy, or else the first",
    )
    parser.add_argument(
        "--grader",
        metavar="NAME",
        help="exact, normalized, choice, numeric, numeric:TOL, math, code, or "
        "path/to/file.py:function; a task's own, and normalized for a file",
    )
    parser.add_argument(
        "--replicate",
        metavar="ROW",
        help="a row of the paper's tables on DATA, beside its base and greedy rows",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write the report of an earlier run again, without a server",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--limit", type=positive, metavar="N", help="first N problems only"
    )
    group.add_argument("--samples", type=positive, metavar="N", help="default 1")
    group.add_argument("--seed", type=int, default=0, help="of the run; default 0")
    group.add_argument(
        "--concurrency", type=positive, default=16, metavar="N", help="default 16"
    )
    group.add_argument("--max-tokens", type=positive, metavar="N", help="of each request")
    group.add_argument(
        "--retries", type=natural, default=8, metavar="N", help="of a request; default 8"
    )
    group.add_argument(
        "--calibration",
        type=positive,
        default=64,
        metavar="N",
        help="problems on which matched() looks for its temperature; default 64",
    )
    group.add_argument(
        "--max-logprobs",
        type=positive,
        default=20,
        metavar="N",
        help="top logprobs that matched() asks for; default 20",
    )
    group.add_argument("--path", type=Path, help="a local copy of a known task's data")
    group.add_argument("--split", help="of a known task's data")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for journal and report; default em-inf-eval/NAME-HASH, the same for the "
        "same run",
    )
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, grade, report; or report again."""
    try:
        from em_inf.evaluation import errors, graders, tasks
        from em_inf.evaluation.report import write
        from em_inf.evaluation.runner import load
        from em_inf.evaluation.traces import with_kept_traces
    except ModuleNotFoundError as error:
        raise Failure(
            USAGE,
            f"{error.name} is missing; install em-inf[eval] (`deploy/install cpu eval`)",
        ) from None
    try:
        if args.report:
            if args.data or args.replicate:
                raise Failure(USAGE, "--report stands alone; it needs no DATA")
            done, folder = load(args.report, args.grader), args.report
            done = with_kept_traces(done, folder)
        else:
            done, folder = _evaluated(args)
        written = write(done, folder)
    except errors.NoEMInfError as error:
        raise Failure(NO_EM_INF, str(error)) from None
    except (errors.PlanError, graders.GraderError, tasks.TaskError) as error:
        raise Failure(USAGE, str(error)) from None
    except ModuleNotFoundError as error:
        raise Failure(
            USAGE,
            f"{error.name} is missing; install em-inf[eval] (`deploy/install cpu eval`)",
        ) from None
    _show(args, done, written)
    return 0


def _evaluated(args: argparse.Namespace) -> tuple[Run, Path]:
    from em_inf.evaluation.errors import StoppedError
    from em_inf.evaluation.runner import evaluate
    from em_inf.evaluation.traces import with_traces

    connect(args)  # Checks the address and the key.
    plan = _plan(args)
    progress = RunProgress(console(args, sys.stderr))
    progress.say(f"journal and report: {plan.folder}")
    try:
        with progress:
            return with_traces(plan, evaluate(plan, progress)), plan.folder
    except StoppedError as error:
        gone = isinstance(error.cause, openai.APIConnectionError)
        raise Failure(
            UNREACHABLE if gone else FAILED, f"{error}. {_go_on(plan, progress)}"
        ) from error
    except KeyboardInterrupt:
        progress.say(f"em-inf: {_go_on(plan, progress)}")
        raise


def _go_on(plan: Plan, progress: RunProgress) -> str:
    return (
        f"{progress.done} of {progress.total or '?'} answers are kept in {plan.folder}; "
        f"to go on from there, run the same command again: {plan.command}"
    )


def _plan(args: argparse.Namespace) -> Plan:
    from em_inf.evaluation import data, tasks
    from em_inf.evaluation.decoder_texts import several
    from em_inf.evaluation.plan import Plan

    if not args.data:
        raise Failure(USAGE, "DATA is missing: a JSONL file, or the name of a known task")
    replicated, paper = _replicated(args) if args.replicate else ((), {})
    sampling: dict[str, Any] = {"max_tokens": 512}
    if args.data in tasks.names():
        task = tasks.load(args.data, args.path, args.split, args.limit)
        name, problems, grader = task.name, task.problems, args.grader or task.grader
        sampling.update(task.sampling)
    else:
        for flag in ("path", "split"):
            if getattr(args, flag):
                raise Failure(USAGE, f"--{flag}: {args.data} is no known task")
        name, grader = args.data, args.grader or "normalized"
        problems = data.read(Path(args.data), grader)[: args.limit]
    if args.max_tokens:
        sampling["max_tokens"] = args.max_tokens
    chosen = args.decoder or ([] if replicated else ["default"])
    decoders = replicated + several(chosen)
    plan = Plan(
        task=name,
        problems=problems,
        grader=grader,
        decoders=decoders,
        baseline=args.baseline or _usual_baseline(decoders),
        url=args.url,
        api_key=args.api_key,
        model=args.model or "",
        folder=args.output or Path(),
        command=command_line(args),
        sampling=sampling,
        seed=args.seed,
        samples=args.samples or 1,
        concurrency=args.concurrency,
        timeout=args.timeout,
        retries=args.retries,
        calibration=args.calibration,
        max_logprobs=args.max_logprobs,
        paper=paper,
    )
    return plan if args.output else replace(plan, folder=plan.default_folder)


def _replicated(
    args: argparse.Namespace,
) -> tuple[tuple[Decoder, ...], dict[str, tuple[float, str]]]:
    """A row of the paper's, beside its base and greedy rows, and the paper's numbers."""
    from em_inf.evaluation.decoder_texts import parse
    from em_inf.evaluation.replication import (
        row,
    )

    asked = row(args.replicate)
    model = asked.name.partition("/")[0]
    decoders: dict[str, Decoder] = {}
    paper: dict[str, tuple[float, str]] = {}
    for each in (row(f"{model}/greedy"), row(f"{model}/base"), asked):
        decoder = parse(each.decoder(args.data))
        notes = (f"the paper's model is {each.model}", *each.caveats[args.data])
        decoders[decoder.name] = replace(decoder, notes=(*decoder.notes, *notes))
        paper[decoder.name] = each.paper[args.data]
    return tuple(decoders.values()), paper


def _usual_baseline(decoders: tuple[Decoder, ...]) -> str:
    greedy = [decoder.name for decoder in decoders if decoder.kind == "greedy"]
    return greedy[0] if greedy else decoders[0].name


def command_line(args: argparse.Namespace) -> str:
    """The command that does it again, with every flag that decides, and without a key."""
    words = ["em-inf", "eval", *([args.data] if args.data else [])]
    for name in (
        "decoder", "baseline", "grader", "replicate", "limit", "samples", "seed",
        "concurrency", "max_tokens", "retries", "calibration", "max_logprobs", "path",
        "split", "output", "url", "model", "timeout",
    ):  # fmt: skip
        value = getattr(args, name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                words += [f"--{name.replace('_', '-')}", str(each)]
    return shlex.join(words)


def _show(args: argparse.Namespace, done: Run, written: list[Path]) -> None:
    from em_inf.evaluation.summary import summarize

    if args.json:
        (report,) = [path for path in written if path.suffix == ".json"]
        summary = json.loads(report.read_text())["summary"]
        print_json({"written": [str(path) for path in written], "summary": summary})
        return
    summary = summarize(done)
    headings = [
        ("decoder", False), ("right", True), ("95 % interval", True),
        ("less baseline", True), ("p (Holm)", True), ("no answer", True),
        ("tokens", True), ("answers/min", True),
    ]  # fmt: skip
    out = console(args)
    out.print(table(headings, [_row(line) for line in summary.decoders]))
    out.print()
    for sentence in summary.headlines:
        out.print(sentence, soft_wrap=True)
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True)


def _row(line: DecoderSummary) -> list[str]:
    accuracy, gap = line.accuracy, line.difference
    return [
        line.record.name,
        "-" if accuracy is None else f"{accuracy.value:.1%}",
        "-"
        if accuracy is None
        else f"{accuracy.interval.low:.1%} to {accuracy.interval.high:.1%}",
        "-" if gap is None else f"{100 * gap.value:+.1f}",
        number(line.holm_p, 3),
        str(line.grades["not_extracted"] + line.grades["not_graded"]),
        number(line.costs.tokens, 0),
        number(line.costs.answers_per_minute, 1),
    ]
