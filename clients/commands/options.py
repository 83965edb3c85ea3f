"""Options that commands share, and settings as one writes them on a command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from em_inf.clients.commands.failures import FAILED, USAGE, Failure
from em_inf.clients.settings import EMInf
from em_inf.logits_processors.settings import Settings

DEFAULT_URL = "http://localhost:8000"
SAMPLING = {"temperature": (0.0, None), "top_p": (0.0, 1.0)}
"""Sampling parameters that a setting may change too, with their range."""
_MAX_SECONDS = 86_400
EM_INF_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(EMInf)
    if field.name not in ("report", "enabled")
)


@dataclass(frozen=True)
class Setting:
    """How to decode: EM-INF's settings, and sampling parameters that differ.

    Attributes:
        name: as the user wrote it.
        em_inf: EM-INF's settings; None where it is off.
        sampling: temperature and top_p, where they are given.
    """

    name: str
    em_inf: Mapping[str, Any] | None
    sampling: Mapping[str, float]

    def request(self, report: str) -> EMInf:
        """The request's field. Off is "measure", which reports the entropies.

        It leaves every logit bit for bit as it is; a test holds that.
        """
        if self.em_inf is None:
            return EMInf(preset="measure", report=report)  # type: ignore[arg-type]
        return EMInf(**{**self.em_inf, "report": report})


def parse_setting(text: str) -> Setting:
    """Read `off`, `on`, a preset's name, or `name=value,name=value`.

    Without a setting of EM-INF among the pairs it is off: `temperature=0.5` is plain
    lower temperature.

    Raises:
        Failure: a name is unknown or a sampling value out of its range.
        SettingsError: a value that no server accepts.
    """
    if "=" not in text:
        known: dict[str, dict[str, Any] | None] = {"off": None, "on": {}}
        return _checked(Setting(text, known.get(text, {"preset": text}), {}))
    em_inf: dict[str, Any] = {}
    sampling: dict[str, float] = {}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name in SAMPLING:
            sampling[name] = sampling_value(name, value)
        else:
            em_inf[known_field(name)] = parse_value(value)
    return _checked(Setting(text, em_inf or None, sampling))


def _checked(setting: Setting) -> Setting:
    setting.request("trace")
    return setting


def known_field(name: str) -> str:
    """The name of one of EM-INF's settings; a dash counts as an underscore.

    Raises:
        Failure: it is none.
    """
    field = name.replace("-", "_")
    if field not in EM_INF_FIELDS:
        allowed = ", ".join([*EM_INF_FIELDS, *SAMPLING])
        raise Failure(USAGE, f"{name!r} is no setting; there are {allowed}")
    return field


def parse_value(text: str) -> Any:
    """A number where it is one, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def sampling_value(name: str, text: str) -> float:
    """The value of a sampling parameter.

    Raises:
        Failure: no number, or out of range.
    """
    low, high = SAMPLING[name]
    value = parse_value(text)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= (high or float("inf")):
        limit = "" if high is None else f" and at most {high:g}"
        raise Failure(
            USAGE, f"{name}: {text!r} is not allowed; a number of at least {low:g}{limit}"
        )
    return float(value)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Where the server is, and how the output looks."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        default=os.environ.get("EM_INF_URL") or DEFAULT_URL,
        help=f"its address; else EM_INF_URL, else {DEFAULT_URL}",
    )
    group.add_argument(
        "--api-key",
        default=os.environ.get("EM_INF_API_KEY") or "none",
        metavar="KEY",
        help="else EM_INF_API_KEY, which does not show in a list of processes",
    )
    group.add_argument("--model", help="the first one that the server has, if not given")
    group.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="SECONDS", help="default 600"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--no-color", action="store_true", help="no colour on a terminal; NO_COLOR too"
    )


def _seconds(text: str) -> float:
    value = parse_value(text)
    if isinstance(value, str) or not 0 < value < _MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below a day")
    return float(value)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """A prompt and how to sample its answer."""
    parser.add_argument("prompt", metavar="PROMPT", help="- reads it from stdin")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", default="1.0", help="default 1.0")
    group.add_argument("--top-p", default="1.0", help="default 1.0")
    group.add_argument("--seed", type=int, default=0, help="default 0")
    group.add_argument(
        "--max-tokens", type=int, default=512, metavar="N", help="default 512"
    )
    group.add_argument(
        "--completion",
        action="store_true",
        help="use /v1/completions, for a model without a chat template",
    )


def add_em_inf_options(parser: argparse.ArgumentParser) -> None:
    """EM-INF's settings, one flag each; values are checked as settings are."""
    group = parser.add_argument_group("EM-INF")
    for name in EM_INF_FIELDS:
        field = Settings.model_fields.get(name)
        text = (field.description or "") if field else "a preset of the server's"
        group.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=text)
    group.add_argument("--off", action="store_true", help="no EM-INF")


def setting_from(args: argparse.Namespace) -> Setting:
    """The setting that `add_em_inf_options`'s flags ask for.

    Raises:
        Failure: `--off` together with a setting.
        SettingsError: a value that no server accepts.
    """
    given = {
        name: parse_value(getattr(args, name))
        for name in EM_INF_FIELDS
        if getattr(args, name) is not None
    }
    if args.off and given:
        raise Failure(USAGE, f"--off leaves no use for --{next(iter(given))}")
    name = ",".join(f"{key}={value}" for key, value in given.items()) or "on"
    return _checked(Setting("off" if args.off else name, None if args.off else given, {}))


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt, from stdin if it is `-`.

    Raises:
        Failure: it is empty, or no text.
    """
    text = sys.stdin.read() if args.prompt == "-" else str(args.prompt)
    if not text.strip():
        raise Failure(USAGE, "PROMPT is empty")
    return checked_text(text, "PROMPT")


def checked_text(text: str, name: str) -> str:
    """The text, if it can be sent.

    Raises:
        Failure: it holds bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Failure(USAGE, f"{name} is not UTF-8 at character {error.start}") from None
    return text


def connect(args: argparse.Namespace) -> openai.OpenAI:
    """OpenAI's client for the server; it tries once.

    Raises:
        Failure: the address is none, or the key cannot be sent.
    """
    parts = urlsplit(args.url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Failure(USAGE, f"--url: {args.url!r} is no address like {DEFAULT_URL}")
    if not (args.api_key.isascii() and args.api_key.isprintable() and args.api_key):
        raise Failure(USAGE, "--api-key: must be printable ASCII characters")
    args.url = args.url.rstrip("/").removesuffix("/v1")
    return openai.OpenAI(
        base_url=f"{args.url}/v1",
        api_key=args.api_key,
        timeout=args.timeout,
        max_retries=0,
    )


def model_name(client: openai.OpenAI, args: argparse.Namespace) -> str:
    """The model that is asked for, else the server's first.

    Raises:
        Failure: the server has none, or is no such server.
    """
    if args.model:
        return str(args.model)
    listed: Any = client.get("/models", cast_to=object)
    try:
        return str(listed["data"][0]["id"])
    except (TypeError, KeyError, IndexError):
        raise Failure(
            FAILED,
            f"{args.url}/v1/models lists no model; is it an OpenAI-compatible server?",
        ) from None
