"""Statistics from a step's rows to the API server: by key, choice and output position."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from logits_processors import recorder as module
from logits_processors.recorder import (
    EMInfWorkerExtension,
    Recorder,
    _Pending,
)
from logits_processors.reference import RowStats

NAN = float("nan")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def stats(*rows: Sequence[float]) -> RowStats:
    """Rows of entropy before, entropy after, grad steps and temperature."""
    return RowStats(torch.tensor(rows, dtype=torch.float32).T)


def number(n: float) -> RowStats:
    """One row whose entropy before is `n`."""
    return stats((n, 0.0, 0.0, 1.0))


def before(recorder: Recorder, key: str, choice: int = 0) -> list[float]:
    """Pop a key and read the entropies before of one choice."""
    return recorder.pop([key])[key][choice][0]


# Writing and handing out --------------------------------------------------------------


def test_figures_come_back_as_columns_by_position(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add(stats((2.0, 1.5, 5.0, 1.0), (0.5, 0.25, 0.0, 0.5)), [record] * 2, [0, 1])
    assert recorder.pop(["a"]) == {
        "a": {0: [[2.0, 0.5], [1.5, 0.25], [5.0, 0.0], [1.0, 0.5]]}
    }


def test_rows_of_one_step_go_to_their_own_records(recorder: Recorder) -> None:
    a, b = recorder.open("a", 0), recorder.open("b", 0)
    recorder.add(stats((1, 0, 0, 1), (2, 0, 0, 1)), [b, a], [0, 0])
    assert before(recorder, "a") == [2]
    assert before(recorder, "b") == [1]


def test_choices_of_one_request_are_kept_apart(recorder: Recorder) -> None:
    recorder.add(number(1), [recorder.open("a", 0)], [0])
    recorder.add(number(2), [recorder.open("a", 3)], [0])
    popped = recorder.pop(["a"])["a"]
    assert {choice: columns[0] for choice, columns in popped.items()} == {0: [1], 3: [2]}


def test_position_computed_twice_counts_once_with_its_last_figures(
    recorder: Recorder,
) -> None:
    record = recorder.open("a", 0)
    for n, position in [(1, 0), (2, 1), (3, 0)]:
        recorder.add(number(n), [record], [position])
    assert before(recorder, "a") == [3, 2]


def test_positions_may_come_in_any_order(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    for n in (2, 0, 1):
        recorder.add(number(n), [record], [n])
    assert before(recorder, "a") == [0, 1, 2]


def test_position_that_never_came_holds_nan(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add(stats((1, 2, 3, 4), (5, 6, 7, 8)), [record] * 2, [0, 2])
    columns = recorder.pop(["a"])["a"][0]
    assert [column[0] for column in columns] == [1, 2, 3, 4]
    assert all(math.isnan(column[1]) for column in columns)
    assert [column[2] for column in columns] == [5, 6, 7, 8]


def test_request_without_a_token_comes_back_with_empty_columns(
    recorder: Recorder,
) -> None:
    recorder.open("a", 0)
    assert recorder.pop(["a"]) == {"a": {0: [[], [], [], []]}}


def test_opening_again_after_preemption_gives_the_same_record(recorder: Recorder) -> None:
    record = recorder.open("a", 1)
    assert recorder.open("a", 1) is record


def test_row_without_a_record_is_passed_over(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add(stats((1, 0, 0, 1), (2, 0, 0, 1)), [None, record], [0, 0])
    assert before(recorder, "a") == [2]


def test_step_without_any_record_leaves_nothing_behind(recorder: Recorder) -> None:
    recorder.add(number(NAN), [None], [0])
    assert recorder.num_keys == 0
    assert recorder.pop_errors() == {}


def test_figures_are_those_of_the_step_even_if_its_buffers_are_written_again(
    recorder: Recorder,
) -> None:
    record = recorder.open("a", 0)
    step = number(1)
    recorder.add(step, [record], [0])
    step.entropy_before.fill_(9)
    assert before(recorder, "a") == [1]


# By slot, where only the device knows positions ---------------------------------------


def test_figures_by_slot_find_their_records_and_positions(recorder: Recorder) -> None:
    a, b = recorder.open("a", 0), recorder.open("b", 0)
    recorder.add_by_slot(
        stats((1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 1)),
        [None, a, b],
        torch.tensor([2, 1, 2]),
        torch.tensor([0, 0, 1]),
    )
    assert before(recorder, "a") == [2]
    assert before(recorder, "b") == [1, 3]


def test_negative_position_by_slot_counts_not(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add_by_slot(
        stats((1, 0, 0, 1), (2, 0, 0, 1)),
        [record],
        torch.tensor([0, 0]),
        torch.tensor([-1, 0]),
    )
    assert before(recorder, "a") == [2]


def test_slot_without_a_record_is_passed_over(recorder: Recorder) -> None:
    recorder.add_by_slot(number(NAN), [None], torch.tensor([0]), torch.tensor([0]))
    assert recorder.pop_errors() == {}


def test_figures_by_slot_go_to_whom_the_slot_belonged_in_that_step(
    recorder: Recorder,
) -> None:
    a, b = recorder.open("a", 0), recorder.open("b", 0)
    slots = [a]
    recorder.add_by_slot(number(1), slots, torch.tensor([0]), torch.tensor([0]))
    slots[0] = b
    recorder.settle()
    assert before(recorder, "a") == [1]
    assert recorder.pop(["b"])["b"][0][0] == []


def test_large_positions_by_slot_are_exact(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add_by_slot(
        number(1), [record], torch.tensor([0]), torch.tensor([1_000_001])
    )
    assert list(record.figures) == [1_000_001]


class Event:
    """A device's event that has, or has not, come to pass."""

    def __init__(self, happened: bool) -> None:
        self.happened = happened

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        raise AssertionError("the engine must not wait for the device")


def test_popping_waits_for_no_step_that_is_still_running(recorder: Recorder) -> None:
    a, b = recorder.open("a", 0), recorder.open("b", 0)
    for record, value, happened in ((a, 1, True), (b, 2, False)):
        pending = _Pending(number(value).table, [record], [0])
        pending.event = Event(happened)  # type: ignore[assignment]
        recorder._pending.append(pending)
    assert before(recorder, "a") == [1]
    assert b.figures == {}
    recorder._pending[0].event = Event(True)  # type: ignore[assignment]
    assert before(recorder, "b") == [2]


# Forgetting ---------------------------------------------------------------------------


def test_popping_forgets(recorder: Recorder) -> None:
    recorder.add(number(1), [recorder.open("a", 0)], [0])
    recorder.pop(["a"])
    assert recorder.pop(["a"]) == {}
    assert recorder.num_keys == 0


def test_popping_leaves_other_keys(recorder: Recorder) -> None:
    recorder.add(number(1), [recorder.open("a", 0)], [0])
    recorder.open("b", 0)
    recorder.pop(["b"])
    assert before(recorder, "a") == [1]


def test_unknown_keys_are_passed_over(recorder: Recorder) -> None:
    recorder.open("a", 0)
    assert list(recorder.pop(["nobody", "a", "nobody"])) == ["a"]


def test_key_opened_again_after_popping_starts_empty(recorder: Recorder) -> None:
    recorder.add(number(1), [recorder.open("a", 0)], [0])
    recorder.pop(["a"])
    recorder.add(number(2), [recorder.open("a", 0)], [0])
    assert before(recorder, "a") == [2]


def test_key_that_nobody_came_back_for_is_forgotten(
    recorder: Recorder, clock: Clock
) -> None:
    recorder.open("leaked", 0)
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.open("new", 0)
    assert list(recorder.pop(["leaked", "new"])) == ["new"]


def test_key_is_kept_until_its_time_is_over(recorder: Recorder, clock: Clock) -> None:
    recorder.open("a", 0)
    clock.now = module.FORGET_AFTER_SECONDS - 1
    recorder.open("new", 0)
    assert recorder.num_keys == 2


def test_key_that_is_written_to_is_kept(recorder: Recorder, clock: Clock) -> None:
    record = recorder.open("long", 0)
    clock.now = module.FORGET_AFTER_SECONDS - 1
    recorder.add(number(1), [record], [0])
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.open("new", 0)
    assert before(recorder, "long") == [1]


def test_key_whose_other_choice_is_written_to_is_kept(
    recorder: Recorder, clock: Clock
) -> None:
    recorder.add(number(1), [recorder.open("long", 0)], [0])
    second = recorder.open("long", 1)
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.add(number(2), [second], [0])
    recorder.open("new", 0)
    assert before(recorder, "long") == [1]


def test_old_key_behind_a_running_one_is_forgotten(
    recorder: Recorder, clock: Clock
) -> None:
    running = recorder.open("running", 0)
    recorder.open("leaked", 0)
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.add(number(1), [running], [0])
    recorder.open("new", 0)
    recorder.open("newer", 0)
    keys = ["running", "leaked", "new", "newer"]
    assert set(recorder.pop(keys)) == {"running", "new", "newer"}


def test_request_resumed_after_a_long_preemption_keeps_its_figures(
    recorder: Recorder, clock: Clock
) -> None:
    recorder.add(number(1), [recorder.open("a", 0)], [0])
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.add(number(2), [recorder.open("a", 0)], [1])
    assert before(recorder, "a") == [1, 2]


def test_number_of_keys_stays_within_its_limit(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    for i in range(10):
        recorder.open(f"key {i}", 0)
        assert recorder.num_keys <= 3


def test_newest_key_is_kept_at_the_limit(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    for i in range(10):
        record = recorder.open(f"key {i}", 0)
    recorder.add(number(1), [record], [0])
    assert before(recorder, "key 9") == [1]


def test_second_choice_at_the_limit_leaves_the_first(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 1)
    recorder.open("a", 0)
    recorder.open("a", 1)
    assert set(recorder.pop(["a"])["a"]) == {0, 1}


def test_figures_of_a_forgotten_key_go_nowhere(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 1)
    forgotten = recorder.open("a", 0)
    recorder.open("b", 0)
    recorder.add(number(1), [forgotten], [0])
    assert recorder.pop(["a", "b"]) == {"b": {0: [[], [], [], []]}}


# Errors -------------------------------------------------------------------------------


def test_errors_are_handed_out_once(recorder: Recorder) -> None:
    recorder.errors["apply"] += 2
    assert recorder.pop_errors() == {"apply": 2}
    assert recorder.pop_errors() == {}


def test_rows_that_are_not_finite_are_counted(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    rows = stats((NAN, NAN, 0, 1), (1, 1, 0, 1), (NAN, NAN, 0, 1))
    recorder.add(rows, [record] * 3, [0, 1, 2])
    assert recorder.pop_errors() == {"row_not_finite": 2}


def test_rows_that_are_not_finite_are_counted_by_slot(recorder: Recorder) -> None:
    record = recorder.open("a", 0)
    recorder.add_by_slot(
        stats((NAN, NAN, 0, 1), (NAN, NAN, 0, 1)),
        [record],
        torch.tensor([0, 0]),
        torch.tensor([0, -1]),
    )
    assert recorder.pop_errors() == {"row_not_finite": 1}


# The worker extension -----------------------------------------------------------------


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder of its own in the place of the process's."""
    recorder = Recorder()
    monkeypatch.setattr(module, "RECORDER", recorder)
    return recorder


def test_worker_hands_out_records_and_errors(shared: Recorder) -> None:
    shared.add(number(1), [shared.open("a", 0)], [0])
    shared.errors["apply"] += 1
    assert EMInfWorkerExtension().em_inf_pop(["a", "nobody"]) == {
        "records": {"a": {0: [[1.0], [0.0], [0.0], [1.0]]}},
        "errors": {"apply": 1},
        "seconds": 0.0,
        "calls": 0,
    }


def test_worker_counts_rows_that_settle_while_it_hands_out(shared: Recorder) -> None:
    shared.add(number(NAN), [shared.open("a", 0)], [0])
    assert EMInfWorkerExtension().em_inf_pop(["a"])["errors"] == {"row_not_finite": 1}


def test_worker_without_a_processor_has_an_empty_status(shared: Recorder) -> None:
    shared.open("a", 0)
    assert EMInfWorkerExtension().em_inf_status() == {}


def test_worker_with_a_processor_reports_it_and_its_open_records(
    shared: Recorder,
) -> None:
    shared.status = {"runner": "V2"}
    shared.open("a", 0)
    shared.open("b", 0)
    assert EMInfWorkerExtension().em_inf_status() == {"runner": "V2", "open_records": 2}
