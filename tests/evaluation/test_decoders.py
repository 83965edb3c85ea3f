"""Decoders: their texts, and how they make one answer of several requests."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from em_inf.evaluation.decoder_texts import DEFAULT, MAX_PARTS, parse, several
from em_inf.evaluation.decoding import REFINE, Messages, majority
from em_inf.evaluation.errors import DecoderError
from em_inf.evaluation.records import Call


@pytest.mark.parametrize(
    ("text", "name", "kind", "asked"),
    [
        ("greedy", "greedy", "greedy", {"temperature": 0.0, "em_inf": None}),
        (" greedy() ", "greedy", "greedy", {"temperature": 0.0, "em_inf": None}),
        (
            "temperature( 0.7,top_p=0.9 )",
            "temperature(0.7, top_p=0.9)",
            "temperature",
            {"temperature": 0.7, "top_p": 0.9, "em_inf": None},
        ),
        (
            "em_inf(preset=strong, temperature=0.6)",
            "em_inf(preset=strong, temperature=0.6)",
            "em_inf",
            {"temperature": 0.6, "em_inf": {"preset": "strong"}},
        ),
        (
            "em_inf(n_grad_steps=3, kl_weight=0.05, top_k=20)",
            "em_inf(n_grad_steps=3, kl_weight=0.05, top_k=20)",
            "em_inf",
            {
                "temperature": 1.0,
                "top_k": 20,
                "em_inf": {"method": "gradient", "n_grad_steps": 3, "kl_weight": 0.05},
            },
        ),
        (
            "adaptive_temperature(target_ratio=0.4)",
            "adaptive_temperature(target_ratio=0.4)",
            "adaptive_temperature",
            {
                "temperature": 1.0,
                "em_inf": {"method": "adaptive_temperature", "target_ratio": 0.4},
            },
        ),
        (
            "min_p(0.1)",
            "min_p(0.1)",
            "min_p",
            {"min_p": 0.1, "temperature": 1.0, "em_inf": None},
        ),
    ],
)
def test_text_becomes_a_request(
    text: str, name: str, kind: str, asked: dict[str, Any]
) -> None:
    record = parse(text).record()
    assert (record.name, record.kind, record.request) == (name, kind, asked)
    assert record.calls_per_answer == 1


def test_decoders_nest_and_their_names_read_back() -> None:
    text = "self_consistency(n=2, of=refinement(n=3, of=em_inf(n_grad_steps=15)))"
    decoder = parse(text)
    assert (decoder.name, decoder.kind) == (text, "self_consistency")
    assert decoder.calls == 6
    assert decoder.needs_em_inf
    assert parse(decoder.name) == decoder
    for name in DEFAULT:
        assert parse(name).name == name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("greedy(", "column 7"),
        ("", "cannot be read"),
        ("beam", "'beam' is no kind of decoder; there are greedy, temperature"),
        ("a + b", "'a + b' is no kind"),
        ("temperature()", "temperature(): missing a required argument: 'value'"),
        ("temperature(-1)", "temperature: -1 is not allowed; a number of at least 0"),
        ("temperature(true)", "temperature: 'true' is not allowed"),
        ("temperature(1e999)", "temperature: inf"),
        ("top_p(1.5)", "top_p: 1.5 is not allowed; a number above 0 and at most 1"),
        ("greedy(top_k=1.5)", "top_k: 1.5 is not allowed; an integer"),
        ("em_inf(steps=3)", "em_inf(steps=3): 'steps' is unknown; there are preset"),
        ("em_inf(n_grad_steps=-1)", "em_inf.n_grad_steps: -1 is not allowed"),
        ("em_inf(report=none)", "report: is the evaluation's to set"),
        (
            "adaptive_temperature(method=gradient)",
            "adaptive_temperature(method=gradient)",
        ),
        ("self_consistency(n=0)", "n: 0 is not allowed"),
        ("self_consistency(greedy)", "n: 'greedy'"),
        ("refinement(of=3)", "'3' is no kind of decoder"),
        ("refinement(of=em_inf(threshold=-1))", "em_inf.threshold: -1"),
        ("matched(of=greedy)", "matched(of=greedy): of: must be em_inf"),
        ("matched(of=em_inf(temperature=0))", "nothing to match"),
        ("self_consistency(n=9, of=refinement(n=9))", f"at most {MAX_PARTS}"),
        ("nowhere.py:mine", "there is no file nowhere.py"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(text: str, part: str) -> None:
    with pytest.raises(DecoderError) as error:
        parse(text)
    assert part in str(error.value)


def test_sets_stand_for_their_decoders_and_no_decoder_comes_twice() -> None:
    assert [decoder.name for decoder in several(["default"])] == list(DEFAULT)
    plain = [decoder.name for decoder in several(["plain", "em_inf()"])]
    assert "greedy" in plain
    assert [name for name in plain if "em_inf" in name] == ["em_inf"]
    with pytest.raises(DecoderError, match="'greedy' is there twice"):
        several(["default", "greedy()"])


def test_ones_own_decoder_is_loaded_and_can_be_nested(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from em_inf.evaluation.decoding import Plain\n"
        "def cold(value=0.1):\n"
        "    return Plain(fields={'temperature': value})\n"
        "def wrong():\n"
        "    return 3\n"
    )
    decoder = parse(f"{path}:cold(0.2)")
    assert (decoder.name, decoder.kind) == (f"{path}:cold(0.2)", "cold")
    assert decoder.record().request == {"temperature": 0.2, "em_inf": None}
    assert "sha256" in decoder.notes[0]
    voted = parse(f"self_consistency(n=3, of='{path}:cold')")
    assert voted.record().request["temperature"] == 0.1
    for text, part in [
        (f"{path}:none", "has no function none"),
        (f"{path}:wrong", "returned int"),
        (f"{path}:cold(x=1)", "unexpected keyword"),
    ]:
        with pytest.raises(DecoderError, match=part):
            parse(text)
    path.write_text("1/0")
    with pytest.raises(DecoderError, match="cannot be loaded: ZeroDivisionError"):
        parse(f"{path}:cold")


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        (["1", "2", "2", "1"], 1),  # Both have two; "2" had them first.
        (["1", "1", "2", "2"], 0),
        (["1", "2", "3"], 0),
        ([None, "2", None], 1),
        ([None, None], 0),
        (["1", None, "2", "2"], 2),
    ],
)
def test_majority_is_the_first_to_reach_it(votes: list[str | None], winner: int) -> None:
    texts = [f"text {place}" for place in range(len(votes))]
    assert majority(texts, votes) == texts[winner]


class Scripted:
    """Answers in the order of their parts, and remembers what was asked."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.asked: dict[int, Messages] = {}

    async def call(
        self, part: int, messages: Messages, fields: Mapping[str, Any]
    ) -> Call:
        assert part not in self.asked
        self.asked[part] = messages
        text = self.texts[part]
        return Call("d", "p", 0, part, 0, text, "stop", 1, 1, 0, 0, None, None, 0.1)

    def extract(self, text: str) -> str | None:
        return text.split()[-1] if text else None


QUESTION = ({"role": "user", "content": "how many?"},)


def answered(text: str, texts: list[str]) -> tuple[str, Scripted]:
    asking = Scripted(texts)
    return asyncio.run(parse(text).answer(asking, QUESTION)), asking


def test_refinement_shows_each_round_the_question_and_the_last_answer() -> None:
    text, asking = answered("refinement(n=3)", ["is 1", "is 2", "is 3"])
    assert text == "is 3"
    assert list(asking.asked[0]) == list(QUESTION)
    assert list(asking.asked[2]) == [
        *QUESTION,
        {"role": "assistant", "content": "is 2"},
        {"role": "user", "content": REFINE},
    ]


def test_votes_are_taken_on_the_answers_of_the_inner_decoder() -> None:
    text, asking = answered(
        "self_consistency(n=3, of=refinement(n=2))",
        ["a 9", "is 1", "b 9", "is 2", "c 9", "it is 2"],
    )
    assert text == "is 2"
    assert sorted(asking.asked) == [0, 1, 2, 3, 4, 5]
    text, _ = answered(
        "refinement(n=2, of=self_consistency(n=2))", ["is 1", "is 1", "", "is 5"]
    )
    assert text == "is 5"
