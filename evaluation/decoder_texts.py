"""Decoders by name, and the text in which they are written on a command line.

A text is `kind` or `kind(argument, name=value, ...)`, where `of=` takes another decoder:

    greedy
    temperature(0.7, top_p=0.9)
    self_consistency(n=4, of=em_inf(n_grad_steps=15))

One's own is `path/to/file.py:function(...)`: a function that returns a
`em_inf.evaluation.decoding.Decoder`. A kind is added by a function under `@_entry`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from em_inf.clients.errors import SettingsError
from em_inf.clients.settings import EMInf
from em_inf.evaluation.decoding import (
    Decoder,
    Matched,
    Plain,
    Refinement,
    SelfConsistency,
)
from em_inf.evaluation.errors import DecoderError

Entry = Callable[..., Decoder]
KINDS: dict[str, Entry] = {}
"""Every kind; the arguments of its function are those of its text."""

DEFAULT = (
    "greedy",
    "temperature(1.0)",
    "temperature(0.7)",
    "temperature(0.5)",
    "em_inf(n_grad_steps=5)",
    "em_inf(n_grad_steps=15)",
    "adaptive_temperature",
    "matched(of=em_inf(n_grad_steps=15))",
    "min_p(0.1)",
    "top_p(0.9)",
    "self_consistency(n=4, of=temperature(0.7))",
    "refinement(n=3, of=temperature(1.0))",
    "self_consistency(n=4, of=em_inf(n_grad_steps=15))",
)
"""What is compared unless decoders are given."""
MAX_PARTS = 64
"""Requests that one answer may take."""

# Range of each sampling parameter: lowest, highest, whether the lowest is excluded.
_SAMPLING: dict[str, tuple[float, float | None, bool]] = {
    "temperature": (0, None, False),
    "top_p": (0, 1, True),
    "top_k": (0, None, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (0, None, True),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
}
_OWN = re.compile(r"(?P<file>[^()]+\.py):(?P<name>[A-Za-z_]\w*)(?P<rest>\(.*\))?", re.S)


def parse(text: str) -> Decoder:
    """The decoder that a text describes; its name is the text in one way of writing.

    Raises:
        DecoderError: it cannot be read or made; names the part.
    """
    text = text.strip()
    own = _OWN.fullmatch(text)
    source = f"own{own['rest'] or ''}" if own else text
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        where = f", column {error.offset}" if isinstance(error, SyntaxError) else ""
        raise DecoderError(
            f"decoder {text!r}: cannot be read{where}; it is written like "
            "self_consistency(n=4, of=em_inf(n_grad_steps=15))"
        ) from None
    entries = {**KINDS}
    notes: tuple[str, ...] = ()
    if own:
        entries = {"own": _own_entry(Path(own["file"]), own["name"])}
        digest = hashlib.sha256(Path(own["file"]).read_bytes()).hexdigest()
        notes = (f"made by {own['file']} (sha256 {digest[:16]})",)
    made = _made(tree, source, entries)
    written = ast.unparse(tree)
    if own:
        written = f"{own['file']}:{own['name']}{written.removeprefix('own')}"
        kind = own["name"]
    else:
        kind = ast.unparse(tree.func) if isinstance(tree, ast.Call) else written
    if made.calls > MAX_PARTS:
        raise DecoderError(
            f"{written}: one answer takes {made.calls} requests; at most {MAX_PARTS}"
        )
    # "greedy()" is "greedy".
    written = written.removesuffix("()")
    return replace(made, name=written, kind=kind, notes=(*made.notes, *notes))


def several(texts: Sequence[str]) -> tuple[Decoder, ...]:
    """Decoders for one run; `default` and `plain` stand for sets of them.

    `plain` is what of `default` needs no EM-INF.

    Raises:
        DecoderError: as `parse`, and where two are the same.
    """
    found: dict[str, Decoder] = {}
    for text in texts:
        if text in ("default", "plain"):
            named = [parse(each) for each in DEFAULT]
            wanted = [d for d in named if text == "default" or not d.needs_em_inf]
        else:
            wanted = [parse(text)]
        for decoder in wanted:
            if decoder.name in found:
                raise DecoderError(f"decoder {decoder.name!r} is there twice")
            found[decoder.name] = decoder
    return tuple(found.values())


def _made(node: ast.expr, source: str, entries: dict[str, Entry]) -> Decoder:
    part = ast.get_source_segment(source, node) or source
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name) or called.id not in entries:
        raise DecoderError(
            f"{ast.unparse(called)!r} is no kind of decoder; there are "
            f"{', '.join(KINDS)}, and path/to/file.py:function"
        )
    args: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        args = [_value(each, part) for each in node.args]
        for keyword in node.keywords:
            if keyword.arg is None:
                raise DecoderError(f"{part}: ** has no meaning here")
            if keyword.arg == "of":
                named["of"] = _inner(keyword.value, source)
            else:
                named[keyword.arg] = _value(keyword.value, part)
    entry = entries[called.id]
    try:
        inspect.signature(entry).bind(*args, **named)
    except TypeError as error:
        raise DecoderError(
            f"{part}: {error}; it takes {inspect.signature(entry)}"
        ) from None
    try:
        made = entry(*args, **named)
    except (DecoderError, SettingsError, TypeError) as error:
        raise DecoderError(f"{part}: {error}") from None
    if not isinstance(made, Decoder):
        raise DecoderError(
            f"{part}: its function returned {type(made).__name__}, and must return a "
            "em_inf.evaluation.decoding.Decoder"
        )
    return made


def _inner(node: ast.expr, source: str) -> Decoder:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return parse(node.value)  # path/to/file.py:function stands in quotes there.
    inner = _made(node, source, KINDS)
    text = ast.unparse(node).removesuffix("()")
    kind = ast.unparse(node.func) if isinstance(node, ast.Call) else text
    return replace(inner, name=text, kind=kind)


def _value(node: ast.expr, part: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id  # A preset's name needs no quotes.
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise DecoderError(
            f"{part}: {ast.unparse(node)!r} is no number or text; a decoder inside "
            "another stands after of="
        ) from None


def _own_entry(path: Path, name: str) -> Entry:
    if not path.is_file():
        raise DecoderError(f"decoder {path}:{name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"em_inf_decoder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DecoderError(f"decoder {path}:{name}: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DecoderError(
            f"decoder {path}:{name}: {path} cannot be loaded: {error!r}"
        ) from error
    entry = getattr(module, name, None)
    if not callable(entry):
        raise DecoderError(f"decoder {path}:{name}: {path} has no function {name}")
    return entry


def sampling(**fields: Any) -> dict[str, Any]:
    """Sampling parameters, checked; those that are None are left out.

    Raises:
        DecoderError: an unknown name, or a value out of its range.
    """
    found = {name: value for name, value in fields.items() if value is not None}
    for name, value in found.items():
        if name not in _SAMPLING:
            raise DecoderError(f"{name!r} is unknown; there are {', '.join(_SAMPLING)}")
        low, high, open_ = _SAMPLING[name]
        whole = name == "top_k"
        good = isinstance(value, int if whole else int | float)
        good = good and not isinstance(value, bool)
        good = good and (value > low if open_ else value >= low)
        if not good or (high is not None and value > high) or value == float("inf"):
            raise DecoderError(
                f"{name}: {value!r} is not allowed; "
                f"{'an integer' if whole else 'a number'} "
                f"{'above' if open_ else 'of at least'} {low:g}"
                + ("" if high is None else f" and at most {high:g}")
            )
    return found


def _entry(make: Entry) -> Entry:
    KINDS[make.__name__] = make
    return make


@_entry
def greedy(**more: Any) -> Decoder:
    """The likeliest token each time."""
    return Plain(fields=sampling(**{"temperature": 0.0, **more}))


@_entry
def temperature(value: float, **more: Any) -> Decoder:
    """Plain sampling."""
    return Plain(fields=sampling(temperature=value, **more))


@_entry
def em_inf(temperature: float = 1.0, **settings: Any) -> Decoder:
    """EM-INF, then temperature; takes every setting of EM-INF and sampling parameter."""
    more = {name: settings.pop(name) for name in list(settings) if name in _SAMPLING}
    if not {"preset", "method"} & set(settings):
        settings["method"] = "gradient"
    return Plain(
        fields=sampling(temperature=temperature, **more), em_inf=_em_inf(settings)
    )


@_entry
def adaptive_temperature(temperature: float = 1.0, **settings: Any) -> Decoder:
    """The paper's adaptive temperature, then temperature."""
    return em_inf(temperature, method="adaptive_temperature", **settings)


@_entry
def min_p(value: float, temperature: float = 1.0, **more: Any) -> Decoder:
    """Sampling from tokens at least so likely, relative to the likeliest."""
    return Plain(fields=sampling(min_p=value, temperature=temperature, **more))


@_entry
def top_p(value: float, temperature: float = 1.0, **more: Any) -> Decoder:
    """Sampling from the likeliest tokens that hold so much probability."""
    return Plain(fields=sampling(top_p=value, temperature=temperature, **more))


@_entry
def self_consistency(n: int = 4, of: Decoder | None = None) -> Decoder:
    """The majority of n answers; of temperature(0.7) if nothing is given."""
    inner = temperature(0.7) if of is None else of
    return SelfConsistency(
        of=inner, n=_count(n), notes=(f"the majority of {n} answers, first to reach it",)
    )


@_entry
def refinement(n: int = 3, of: Decoder | None = None) -> Decoder:
    """n rounds, each of which revises the one before; of temperature(1.0) by default."""
    inner = temperature(1.0) if of is None else of
    note = f"the last of {n} rounds, each of which sees the question and the round before"
    return Refinement(of=inner, n=_count(n), notes=(note,))


@_entry
def matched(of: Decoder) -> Decoder:
    """Plain sampling at the temperature that has the entropy which EM-INF leaves."""
    if not isinstance(of, Plain) or of.em_inf is None:
        raise DecoderError("of: must be em_inf(...) or adaptive_temperature(...)")
    if of.fields["temperature"] == 0:
        raise DecoderError("of: temperature 0 is greedy, which has nothing to match")
    return Matched(of=of)


def _count(n: Any) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_PARTS:
        raise DecoderError(f"n: {n!r} is not allowed; an integer from 1 to {MAX_PARTS}")
    return n


def _em_inf(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        checked = EMInf(**settings).settings
    except TypeError:
        known = ", ".join(name for name in EMInf.__dataclass_fields__)
        unknown = set(settings) - set(EMInf.__dataclass_fields__)
        raise DecoderError(
            f"{min(unknown)!r} is unknown; there are {known}, {', '.join(_SAMPLING)}"
        ) from None
    for name in ("report", "enabled"):
        if name in checked:
            raise DecoderError(f"{name}: is the evaluation's to set")
    return checked
