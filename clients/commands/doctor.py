"""`em-inf doctor`: check a server, and say what to do about what is wrong."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import openai

from em_inf.clients.commands.failures import (
    FAILED,
    NO_EM_INF,
    UNREACHABLE,
    Failure,
    explained,
)
from em_inf.clients.commands.options import add_server_options, connect, model_name
from em_inf.clients.commands.terminal import console, print_json
from em_inf.clients.errors import NoReportError, setting_errors
from em_inf.clients.report import Trace, report_of
from em_inf.clients.settings import EMInf

_EXAMPLES = """examples:
  em-inf doctor
  em-inf doctor --url https://models.example.org --api-key "$KEY"
  em-inf doctor --json | jq '.checks[] | select(.ok | not)'
  until em-inf doctor >/dev/null; do sleep 5; done

Ends with 0 only if every check is well: the server answers, a model is served, the logits
processor is loaded in the workers, a tiny request comes back changed and one with no
gradient step comes back unchanged, and the processor met no error so far.
"""
_STEPS = 5
_DESCRIBED = {
    "version", "vllm_version", "runner", "backend", "device", "enabled_by_default",
}  # fmt: skip
_TINY: dict[str, Any] = {
    "prompt": "One, two,", "max_tokens": 16, "temperature": 1.0, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        ok: whether it is well.
        detail: what was seen.
        advice: what to do where it is not well.
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""


class _Ill(Exception):  # noqa: N818 - a finding, no error of the program's.
    """A check found something wrong."""

    def __init__(self, code: int, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.advice = advice


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = __doc__.partition(": ")[2]
    parser.epilog = _EXAMPLES
    add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check one thing after the other; what rests on a failed one is left out."""
    client = connect(args)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("server", lambda: _server(client, args)),
        ("model", lambda: model_name(client, args)),
        ("processor", lambda: _processor(client)),
        ("tiny request", lambda: _tiny_request(client, args)),
        ("errors so far", lambda: _errors(client, args)),
    ]
    checks: list[Check] = []
    code = 0
    for name, step in steps:
        try:
            with setting_errors():
                checks.append(Check(name, True, step()))
        except _Ill as ill:
            checks.append(Check(name, False, ill.detail, ill.advice))
            code = ill.code
        except (Failure, NoReportError, openai.APIError, ValueError) as error:
            failure = explained(error, args.url)
            checks.append(Check(name, False, str(failure), "see the server's log"))
            code = failure.code
        if code in (UNREACHABLE, NO_EM_INF) or (code and name == "model"):
            break
    _show(args, checks)
    return code


def _show(args: argparse.Namespace, checks: list[Check]) -> None:
    if args.json:
        well = all(check.ok for check in checks)
        found = [asdict(check) for check in checks]
        print_json({"ok": well, "url": args.url, "checks": found})
        return
    out = console(args)
    for check in checks:
        mark, style = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
        out.print(mark, style=style, end=" ")
        out.print(f"{check.name}: {check.detail}", soft_wrap=True)
        if not check.ok and check.advice:
            out.print(f"     {check.advice}", soft_wrap=True)


def _server(client: openai.OpenAI, args: argparse.Namespace) -> str:
    try:
        client.get(f"{args.url}/health", cast_to=str)
    except openai.APIConnectionError as error:
        raise _Ill(
            UNREACHABLE,
            f"nothing answers at {args.url} ({error.__cause__ or error})",
            "start one with `em-inf serve`, or say where it is with --url or EM_INF_URL; "
            "loading a large model takes minutes, in which nothing answers yet",
        ) from error
    except openai.APIStatusError as error:
        raise _Ill(
            FAILED,
            f"{args.url}/health answers {error.status_code}",
            "the engine has died or the address is another service's; see the log",
        ) from error
    return f"answers at {args.url}"


def _processor(client: openai.OpenAI) -> str:
    try:
        about: Any = client.get("/em_inf", cast_to=object)
    except openai.NotFoundError as error:
        raise _Ill(
            NO_EM_INF,
            "GET /v1/em_inf is not there: this server runs without EM-INF",
            "start it with `em-inf serve MODEL` in the place of `vllm serve MODEL`; it "
            "takes the same flags",
        ) from error
    if not isinstance(about, Mapping) or not about.keys() >= _DESCRIBED:
        raise _Ill(
            NO_EM_INF,
            "GET /v1/em_inf answers with something else than a description of EM-INF",
            "another service stands at this address, or a proxy in between; see --url",
        )
    own = version("em-inf")
    same = "" if about["version"] == own else f" (this command is {own})"
    state = "on" if about["enabled_by_default"] else "off"
    return (
        f"em-inf {about['version']}{same} on vLLM {about['vllm_version']}, runner "
        f"{about['runner']}, backend {about['backend']} on {about['device']}; {state} by "
        "default"
    )


def _tiny_request(client: openai.OpenAI, args: argparse.Namespace) -> str:
    model = model_name(client, args)
    changed = _trace(client, model, _STEPS)
    if changed is None or not any(changed.grad_steps or ()):
        raise _Ill(
            FAILED,
            f"no token was changed by {_STEPS} gradient steps with threshold 0",
            "see em_inf_processor_errors_total in /metrics and the server's log",
        )
    pairs = list(zip(changed.entropy_before, changed.entropy_after, strict=True))
    lower = sum((after or 0) < (before or 0) for before, after in pairs)
    still = _trace(client, model, 0)
    if still is None or still.entropy_before != still.entropy_after:
        raise _Ill(
            FAILED,
            "a request with n_grad_steps 0 came back changed",
            "the server mixes requests up; please report this, with its log",
        )
    return f"{lower} of {len(pairs)} tokens sharpened; with no gradient step, none"


def _trace(client: openai.OpenAI, model: str, steps: int) -> Trace | None:
    asked = EMInf(method="gradient", n_grad_steps=steps, threshold=0.0, report="trace")
    body = {**asked, "ignore_eos": True}
    answer = client.completions.create(model=model, **_TINY, extra_body=body)
    return report_of(answer).choices[0].trace


def _errors(client: openai.OpenAI, args: argparse.Namespace) -> str:
    metrics = client.get(f"{args.url}/metrics", cast_to=str)
    counts = re.findall(
        r"^em_inf_(?:processor|fetch)_errors_total(?:\{.*\})? (\S+)$", metrics, re.M
    )
    total = sum(float(count) for count in counts)
    if total:
        raise _Ill(
            FAILED,
            f"{total:.0f} errors in EM-INF's processor or in fetching its figures",
            "those steps went on with the logits unchanged; the server's log has the "
            "first one of each kind",
        )
    return "none, in the processor or in fetching its figures"
