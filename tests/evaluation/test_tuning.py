"""The search on a made-up surface, where the best settings are known."""

import hashlib
import json
from pathlib import Path

import pytest

from em_inf.evaluation.decoder_texts import parse
from em_inf.evaluation.records import Problem
from em_inf.evaluation.tuning import Scored, Space, Tried, preset, search, split, winner
from em_inf.logits_processors.settings import SettingsError
from em_inf.server.operator_settings import ServerSettings, load_presets


def problems(count: int) -> tuple[Problem, ...]:
    return tuple(
        Problem(f"p{place}", ({"role": "user", "content": f"Question {place}?"},), "1")
        for place in range(count)
    )


def chance(decoder: str) -> float:
    """Of a right answer: highest for ten or more gradient steps at low temperature."""
    first = parse(decoder).first
    heat = first.fields["temperature"]
    if first.em_inf is None:
        return 0.75 - 0.35 * heat
    if first.em_inf["method"] != "gradient":
        return 0.7 - 0.35 * heat
    steps = first.em_inf.get("n_grad_steps", 5)
    return 0.95 - 0.35 * heat - 0.03 * max(0, 10 - steps)


class Surface:
    """Answers by each question's own luck, the same for every decoder."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.stop_after = stop_after

    def __call__(self, decoder, asked):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((decoder, len(asked)))
        likely = chance(decoder)
        return {
            problem.id: Scored(float(luck(problem.id) < likely), tokens=20.0)
            for problem in asked
        }


def luck(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[tuple[Tried, ...], Surface]:
    surface = Surface()
    folder = tmp_path_factory.mktemp("tune")
    return search(surface, problems(128), folder=folder, trials=30, seed=5), surface


def test_greedy_off_and_the_defaults_of_both_methods_are_always_tried_on_everything(
    found,
) -> None:
    fixed = found[0][:4]
    assert [of.decoder for of in fixed] == [
        "greedy", "temperature(1)", "adaptive_temperature(temperature=1)",
        "em_inf(temperature=1)",
    ]  # fmt: skip
    assert all(of.fixed and not of.pruned and of.questions == 128 for of in fixed)
    assert not any(of.fixed for of in found[0][4:])


def test_search_finds_what_the_surface_rewards(found) -> None:
    tried, _ = found
    best = winner(tried)
    first = parse(best.decoder).first
    assert best.value > max(of.value for of in tried if of.fixed)
    assert first.em_inf is not None
    assert first.em_inf.get("n_grad_steps", 5) >= 8
    assert first.fields["temperature"] < 0.5


def test_bad_trials_end_early(found) -> None:
    tried, surface = found
    pruned = [of for of in tried if of.pruned]
    assert pruned
    assert all(32 <= of.questions < 128 and of.questions % 32 == 0 for of in pruned)
    assert sum(count for _, count in surface.asked) < 128 * len(tried)
    assert all(of.value <= winner(tried).value for of in pruned)


def test_killed_search_goes_on_as_if_it_had_not_been(found, tmp_path: Path) -> None:
    first = Surface(stop_after=17)
    with pytest.raises(KeyboardInterrupt):
        search(first, problems(128), folder=tmp_path, trials=30, seed=5)
    again = search(Surface(), problems(128), folder=tmp_path, trials=30, seed=5)
    said = [(of.decoder, of.value, of.questions, of.pruned) for of in again]
    assert said == [(of.decoder, of.value, of.questions, of.pruned) for of in found[0]]


def test_finished_search_asks_nothing(tmp_path: Path) -> None:
    whole = search(Surface(), problems(40), folder=tmp_path, trials=2)
    silent = Surface(stop_after=0)
    assert search(silent, problems(40), folder=tmp_path, trials=2) == whole


def test_other_options_in_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    search(Surface(), problems(40), folder=tmp_path, trials=1)
    with pytest.raises(ValueError, match="another seed"):
        search(Surface(), problems(40), folder=tmp_path, trials=1, seed=1)
    with pytest.raises(ValueError, match="another problems"):
        search(Surface(), problems(41), folder=tmp_path, trials=1)


def test_objective_per_token_prefers_the_shorter_of_two_equals() -> None:
    assert Scored(1.0, 50.0).value("accuracy_per_token") == 20.0
    assert Scored(1.0, 100.0).value("accuracy_per_token") == 10.0
    assert Scored(1.0, 100.0).value("accuracy") == 1.0
    assert Scored(0.0, 0.0).value("accuracy_per_token") == 0.0


def test_every_suggestion_is_a_decoder_that_servers_take(found) -> None:
    for of in found[0]:
        assert parse(of.decoder).calls == 1


def test_winner_is_never_what_a_preset_cannot_hold() -> None:
    space = Space()
    tried = [
        Tried(place, decoder, True, value, 9, False)
        for place, (decoder, value) in enumerate(
            zip(space.fixed, (0.9, 0.8, 0.2, 0.1), strict=True)
        )
    ]
    assert winner(tried).decoder == space.fixed[2]


class TestSplit:
    def test_no_question_is_on_both_sides_and_none_is_lost(self) -> None:
        every = problems(400)
        tune, report = split(every, seed=1)
        assert not {of.id for of in tune} & {of.id for of in report}
        assert len(tune) + len(report) == 400
        assert 160 < len(tune) < 240

    def test_equal_questions_under_other_ids_stay_together(self) -> None:
        twice = [
            Problem(f"{of.id}{mark}", of.messages, "1")
            for of in problems(100) for mark in "ab"
        ]  # fmt: skip
        tune, report = split(twice, seed=1)
        texts = [{of.messages[0]["content"] for of in side} for side in (tune, report)]
        assert not texts[0] & texts[1]

    def test_order_does_not_matter_but_the_seed_does(self) -> None:
        every = problems(100)
        ids = {of.id for of in split(every, 1)[0]}
        assert {of.id for of in split(every[::-1], 1)[0]} == ids
        assert {of.id for of in split(every, 2)[0]} != ids


class TestPreset:
    def test_file_is_what_serve_takes(self) -> None:
        settings = {"method": "gradient", "n_grad_steps": 12, "threshold": 0.21}
        server = ServerSettings.build(presets=load_presets(preset(settings, "tuned")))
        resolved, name = server.resolve("tuned")
        assert name == "tuned"
        assert resolved is not None
        assert (resolved.n_grad_steps, resolved.threshold) == (12, 0.21)
        assert json.loads(preset(settings, "tuned")) == {"tuned": settings}

    @pytest.mark.parametrize("name", ["paper", "No Spaces", "on"])
    def test_name_that_serve_refuses_is_refused(self, name: str) -> None:
        with pytest.raises(SettingsError):
            preset({"n_grad_steps": 3}, name)
