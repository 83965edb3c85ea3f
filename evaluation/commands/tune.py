"""`em-inf tune`: search settings on some questions, judge the best one on others."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai

from em_inf.clients.commands import failures
from em_inf.clients.commands.failures import Failure
from em_inf.clients.commands.options import add_server_options, connect
from em_inf.clients.commands.terminal import console, print_json, table
from em_inf.evaluation.commands.arguments import positive, share
from em_inf.evaluation.commands.progress import RunProgress

if TYPE_CHECKING:
    from em_inf.evaluation.plan import Plan
    from em_inf.evaluation.records import Problem, Run
    from em_inf.evaluation.tuning import Objective, Scored, Space, Tried

_EXAMPLES = """examples:
  em-inf tune arithmetic --trials 20
  em-inf tune questions.jsonl --grader numeric --name ours --temperature 0.3 1.2
  em-inf serve --em-inf-presets em-inf-tune/questions-1a2b3c4d/presets.json

DATA is what `em-inf eval` takes. Its questions are split by the seed: on one part Optuna
searches method, steps, learning rate, threshold, KL weight, target ratio and temperature;
greedy, and at the highest temperature off, adaptive temperature and EM-INF with its
defaults, are always tried. The best setting is then asked once, with those four, on the
other part, of which no question was seen before; only that decides. It ends with a
report, and with a preset file that `em-inf serve --em-inf-presets` takes. A preset holds
no temperature: send it beside.

The same command again goes on where the last one stopped.
"""


@dataclass(frozen=True)
class _Data:
    """What is asked."""

    name: str
    grader: str
    tuning: tuple[Problem, ...]
    report: tuple[Problem, ...]
    sampling: Mapping[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    parser.epilog = _EXAMPLES
    parser.add_argument("data", metavar="DATA", help="JSONL file or known task")
    parser.add_argument("--trials", type=positive, default=30, help="default 30")
    parser.add_argument(
        "--objective",
        choices=("accuracy", "accuracy-per-token"),
        default="accuracy",
        help="accuracy, or right answers for each 1000 output tokens of a question",
    )
    parser.add_argument(
        "--temperature",
        nargs=2,
        type=float,
        default=(0.1, 1.0),
        metavar=("LOW", "HIGH"),
        help="where to look; default 0.1 1.0",
    )
    parser.add_argument(
        "--max-grad-steps", type=positive, default=16, metavar="N", help="default 16"
    )
    parser.add_argument("--name", default="tuned", help="of the preset; default tuned")
    parser.add_argument("--grader", metavar="NAME", help="as for em-inf eval")
    group = parser.add_argument_group("run")
    group.add_argument(
        "--limit", type=positive, metavar="N", help="first N questions of each part"
    )
    group.add_argument(
        "--share",
        type=share,
        default=0.5,
        help="of the questions to tune on, where the data have no split of their own; "
        "default 0.5",
    )
    group.add_argument("--samples", type=positive, default=1, metavar="N")
    group.add_argument("--seed", type=int, default=0, help="default 0")
    group.add_argument("--concurrency", type=positive, default=16, metavar="N")
    group.add_argument("--max-tokens", type=positive, metavar="N")
    group.add_argument("--retries", type=positive, default=8, metavar="N")
    group.add_argument("--path", type=Path, help="a local copy of a known task's data")
    group.add_argument("--output", type=Path, metavar="FOLDER")
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Search, judge, report, and write the preset."""
    try:
        from em_inf.evaluation import errors, graders, tasks, tuning
        from em_inf.evaluation.report import write
    except ModuleNotFoundError as error:
        raise Failure(
            failures.USAGE,
            f"{error.name} is missing; install em-inf[eval] (`deploy/install cpu eval`)",
        ) from None
    low, high = args.temperature
    if not 0 < low <= high:
        raise Failure(
            failures.USAGE, f"--temperature: {low:g} {high:g} is not 0 < LOW <= HIGH"
        )
    # A name that no server takes is told before an hour of questions.
    tuning.preset({"n_grad_steps": 1}, args.name)
    connect(args)
    space = tuning.Space((low, high), args.max_grad_steps)
    try:
        data = _data(args)
        folder = args.output or _default_folder(args, data)
        tried, done = _tuned(args, data, folder, space)
    except errors.NoEMInfError as error:
        raise Failure(failures.NO_EM_INF, str(error)) from None
    except (errors.PlanError, graders.GraderError, tasks.TaskError) as error:
        raise Failure(failures.USAGE, str(error)) from None
    written = write(done, folder / "report")
    best = tuning.winner(tried, space)
    written += _files(folder, best, tried, args)
    _show(args, tried, best, done, written)
    return 0


def _data(args: argparse.Namespace) -> _Data:
    from em_inf.evaluation import data, tasks
    from em_inf.evaluation.tuning import split

    sampling: dict[str, Any] = {"max_tokens": 512}
    if args.data == "arithmetic":
        parts = [tasks.load(args.data, args.path, of) for of in ("tune", "held_out")]
        name, grader = args.data, args.grader or parts[0].grader
        sides = parts[0].problems, parts[1].problems
        sampling.update(parts[0].sampling)
    elif args.data in tasks.names():
        task = tasks.load(args.data, args.path)
        name, grader = args.data, args.grader or task.grader
        sides = split(task.problems, args.seed, args.share)
        sampling.update(task.sampling)
    else:
        if args.path:
            raise Failure(failures.USAGE, f"--path: {args.data} is no known task")
        name, grader = args.data, args.grader or "normalized"
        problems = data.read(Path(args.data), grader)
        sides = split(problems, args.seed, args.share)
    if args.max_tokens:
        sampling["max_tokens"] = args.max_tokens
    tuning, report = sides[0][: args.limit], sides[1][: args.limit]
    if not tuning or not report:
        raise Failure(
            failures.USAGE,
            f"{args.data} leaves {len(tuning)} questions to tune on and {len(report)} to "
            "report on; there must be some of both",
        )
    return _Data(name, grader, tuning, report, sampling)


def _default_folder(args: argparse.Namespace, data: _Data) -> Path:
    """The same for the same search, and no other's."""
    decides = [
        args.objective, list(args.temperature), args.max_grad_steps, args.samples,
        args.seed, args.model, repr(data),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]
    return Path("em-inf-tune") / f"{Path(data.name).stem}-{digest}"


def _tuned(
    args: argparse.Namespace, data: _Data, folder: Path, space: Space
) -> tuple[tuple[Tried, ...], Run]:
    from em_inf.evaluation.errors import PlanError, StoppedError
    from em_inf.evaluation.runner import evaluate
    from em_inf.evaluation.traces import with_traces
    from em_inf.evaluation.tuning import search, winner

    progress = RunProgress(console(args, sys.stderr))
    progress.say(f"trials and report: {folder}")

    def tell(of: Tried) -> None:
        ended = f", ended early after {of.questions} questions" if of.pruned else ""
        progress.say(f"{of.number}: {of.decoder}: {of.value:.4f}{ended}")

    again = f"to go on from there, run the same command again: {_command(args)}"
    try:
        tried = search(
            _Asking(args, data, folder),
            data.tuning,
            folder=folder,
            trials=args.trials,
            space=space,
            objective=_objective(args),
            seed=args.seed,
            block=max(16, 2 * args.concurrency),
            tell=tell,
        )
        best = winner(tried, space).decoder
        with progress:
            plan = _report_plan(args, data, folder, best, space)
            done = with_traces(plan, evaluate(plan, progress))
    except StoppedError as error:
        gone = isinstance(error.cause, openai.APIConnectionError)
        raise Failure(
            failures.UNREACHABLE if gone else failures.FAILED, f"{error}; {again}"
        ) from error
    except KeyboardInterrupt:
        progress.say(f"em-inf: what was answered is kept in {folder}; {again}")
        raise
    except ValueError as error:
        raise PlanError(str(error)) from error
    return tried, done


class _Asking:
    """Asks through `evaluate`, whose journals keep what was answered."""

    def __init__(self, args: argparse.Namespace, data: _Data, folder: Path) -> None:
        self._args, self._data, self._folder = args, data, folder

    def __call__(self, decoder: str, problems: Sequence[Problem]) -> Mapping[str, Scored]:
        from em_inf.evaluation.decoder_texts import parse
        from em_inf.evaluation.runner import evaluate
        from em_inf.evaluation.tuning import Scored

        made = parse(decoder)
        asked = [decoder, *(problem.id for problem in problems)]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        plan = _plan(
            self._args, self._data, problems, [made], self._folder / "asked" / digest
        )
        found: dict[str, list[tuple[float, int]]] = {}
        for answer in evaluate(plan).answers:
            right = float(answer.verdict.grade == "right")
            tokens = sum(call.tokens for call in answer.calls)
            found.setdefault(answer.problem, []).append((right, tokens))
        return {
            problem: Scored(
                sum(right for right, _ in of) / len(of),
                sum(tokens for _, tokens in of) / len(of),
            )
            for problem, of in found.items()
        }


def _plan(
    args: argparse.Namespace,
    data: _Data,
    problems: Sequence[Problem],
    decoders: Sequence[Any],
    folder: Path,
) -> Plan:
    from em_inf.evaluation.plan import Plan

    return Plan(
        task=data.name,
        problems=tuple(problems),
        grader=data.grader,
        decoders=tuple(decoders),
        baseline=decoders[0].name,
        url=args.url,
        api_key=args.api_key,
        model=args.model or "",
        folder=folder,
        command=_command(args),
        sampling=data.sampling,
        seed=args.seed,
        samples=args.samples,
        concurrency=args.concurrency,
        timeout=args.timeout,
        retries=args.retries,
    )


def _report_plan(
    args: argparse.Namespace, data: _Data, folder: Path, best: str, space: Space
) -> Plan:
    from em_inf.evaluation.decoder_texts import parse

    decoders = {parse(text).name: parse(text) for text in (*space.fixed, best)}
    note = (
        f"the best of {args.trials} trials on {len(data.tuning)} other questions, by "
        + args.objective.replace("-", " ")
    )
    name = parse(best).name
    decoders[name] = replace(decoders[name], notes=(*decoders[name].notes, note))
    ordered = list(decoders.values())
    return _plan(args, data, data.report, ordered, folder / "report")


def _objective(args: argparse.Namespace) -> Objective:
    return "accuracy" if args.objective == "accuracy" else "accuracy_per_token"


def _command(args: argparse.Namespace) -> str:
    """The command that does it again, without a key."""
    words = ["em-inf", "tune", args.data]
    for name in (
        "trials", "objective", "temperature", "max_grad_steps", "name", "grader",
        "limit", "share", "samples", "seed", "concurrency", "max_tokens", "retries",
        "path", "output", "url", "model", "timeout",
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None:
            several = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, several)]
    return shlex.join(words)


def _files(
    folder: Path, best: Tried, tried: Sequence[Tried], args: argparse.Namespace
) -> list[Path]:
    from em_inf.evaluation.decoder_texts import parse
    from em_inf.evaluation.tuning import preset

    first = parse(best.decoder).first
    texts = {
        "presets.json": preset(first.em_inf or {}, args.name),
        "tuning.json": json.dumps(
            {
                "command": _command(args),
                "objective": args.objective,
                "winner": asdict(best),
                "request": {**first.fields, "em_inf": args.name},
                "trials": [asdict(of) for of in tried],
            },
            indent=1,
        )
        + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _show(
    args: argparse.Namespace,
    tried: Sequence[Tried],
    best: Tried,
    done: Run,
    written: list[Path],
) -> None:
    from em_inf.evaluation.decoder_texts import parse
    from em_inf.evaluation.summary import summarize

    summary = summarize(done)
    name = parse(best.decoder).name
    line = summary.of(name)
    temperature = parse(best.decoder).first.fields["temperature"]
    sentences = [
        f"{name}, the best on the {best.questions} tuning questions, is "
        f"{line.verdict} ({len(done.problems)} questions that were not tuned on).",
        f"em-inf serve --em-inf-presets {written[-2]} offers it as the preset "
        f"{args.name!r}; send temperature={temperature:g} with it.",
    ]
    if args.json:
        print_json({
            "winner": asdict(best), "verdict": line.verdict, "sentences": sentences,
            "trials": [asdict(of) for of in tried], "summary": asdict(summary),
            "written": [str(path) for path in written],
        })  # fmt: skip
        return
    out = console(args)
    ranked = sorted(tried, key=lambda of: (of.pruned, -of.value, of.number))
    out.print(
        table(
            [("trial", True), ("decoder", False), ("objective", True),
             ("questions", True), ("", False)],
            [(str(of.number), of.decoder, f"{of.value:.4f}", str(of.questions),
              "ended early" if of.pruned else "always tried" if of.fixed else "")
             for of in ranked],
        )
    )  # fmt: skip
    out.print()
    for sentence in (*sentences, *summary.headlines):
        out.print(sentence, soft_wrap=True)
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True)
