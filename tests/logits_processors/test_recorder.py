"""Statistics from a step's rows to the API server: by key, choice and output position."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from em_inf.logits_processors import recorder as module
from em_inf.logits_processors.figures import BYTES_PER_TOKEN, Figures
from em_inf.logits_processors.recorder import (
    NO_RECORD,
    PAGE_TOKENS,
    EMInfWorkerExtension,
    Recorder,
    _Pending,
)
from em_inf.logits_processors.reference import RowFigures

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


def step(*rows: Sequence[float]) -> RowFigures:
    """Rows of entropy before, entropy after, grad steps and temperature."""
    return RowFigures(torch.tensor(rows, dtype=torch.float32).T)


def number(n: float) -> RowFigures:
    """One row whose entropy before is `n`."""
    return step((n, 0.0, 0.0, 1.0))


def whole(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def add(
    recorder: Recorder,
    figures: RowFigures,
    handles: Sequence[int],
    positions: Sequence[int],
) -> None:
    recorder.add(figures, whole(handles), whole(positions))


def add_by_slot(
    recorder: Recorder,
    figures: RowFigures,
    handles: Sequence[int],
    slots: Sequence[int],
    positions: Sequence[int],
) -> None:
    recorder.add_by_slot(
        figures, whole(handles), torch.tensor(slots), torch.tensor(positions)
    )


def popped(recorder: Recorder, key: str) -> Figures:
    return Figures.from_bytes(recorder.pop([key])[key])


def before(recorder: Recorder, key: str) -> list[float]:
    """Pop a key and read its entropies before."""
    return popped(recorder, key).entropy_before.tolist()


# Writing and handing out --------------------------------------------------------------


def test_figures_come_back_as_columns_by_position(recorder: Recorder) -> None:
    record = recorder.open("a")
    add(recorder, step((2.0, 1.5, 5.0, 1.0), (0.5, 0.25, 0.0, 0.5)), [record] * 2, [0, 1])
    assert popped(recorder, "a").table.tolist() == [
        [2.0, 0.5], [1.5, 0.25], [5.0, 0.0], [1.0, 0.5],
    ]  # fmt: skip


def test_rows_of_one_step_go_to_their_own_records(recorder: Recorder) -> None:
    a, b = recorder.open("a"), recorder.open("b")
    add(recorder, step((1, 0, 0, 1), (2, 0, 0, 1)), [b, a], [0, 0])
    assert before(recorder, "a") == [2]
    assert before(recorder, "b") == [1]


def test_position_computed_twice_counts_once_with_its_last_figures(
    recorder: Recorder,
) -> None:
    record = recorder.open("a")
    for n, position in [(1, 0), (2, 1), (3, 0)]:
        add(recorder, number(n), [record], [position])
    assert before(recorder, "a") == [3, 2]


def test_positions_may_come_in_any_order(recorder: Recorder) -> None:
    record = recorder.open("a")
    for n in (2, 0, 1):
        add(recorder, number(n), [record], [n])
    assert before(recorder, "a") == [0, 1, 2]


def test_position_that_never_came_holds_nan(recorder: Recorder) -> None:
    record = recorder.open("a")
    add(recorder, step((1, 2, 3, 4), (5, 6, 7, 8)), [record] * 2, [0, 2])
    table = popped(recorder, "a").table
    assert table[:, 0].tolist() == [1, 2, 3, 4]
    assert np.isnan(table[:, 1]).all()
    assert table[:, 2].tolist() == [5, 6, 7, 8]


def test_request_without_a_token_comes_back_without_figures(recorder: Recorder) -> None:
    recorder.open("a")
    assert recorder.pop(["a"]) == {"a": b""}


def test_opening_again_after_preemption_gives_the_same_record(recorder: Recorder) -> None:
    record = recorder.open("a")
    assert recorder.open("a") == record


def test_row_without_a_record_is_passed_over(recorder: Recorder) -> None:
    record = recorder.open("a")
    add(recorder, step((1, 0, 0, 1), (2, 0, 0, 1)), [NO_RECORD, record], [0, 0])
    assert before(recorder, "a") == [2]


def test_step_without_any_record_leaves_nothing_behind(recorder: Recorder) -> None:
    add(recorder, number(NAN), [NO_RECORD], [0])
    assert recorder.num_keys == 0
    assert recorder.pop_errors() == {}


def test_figures_are_those_of_the_step_even_if_its_buffers_are_written_again(
    recorder: Recorder,
) -> None:
    record = recorder.open("a")
    figures = number(1)
    add(recorder, figures, [record], [0])
    figures.entropy_before.fill_(9)
    assert before(recorder, "a") == [1]


# Pages --------------------------------------------------------------------------------


def test_long_answers_that_grow_together_keep_their_figures_apart(
    recorder: Recorder,
) -> None:
    tokens, answers = 5 * PAGE_TOKENS + 7, 40
    handles = [recorder.open(f"key {i}") for i in range(answers)]
    for position in range(tokens):
        rows = [(1000 * i + position, 1, 2, 3) for i in range(answers)]
        # Each began a step later than the one before it.
        places = [position - i for i in range(answers)]
        add(recorder, step(*rows), handles, places)
    for i in range(answers):
        assert before(recorder, f"key {i}") == [
            1000 * i + position for position in range(i, tokens)
        ]


def test_step_may_write_both_sides_of_a_page_s_end(recorder: Recorder) -> None:
    record = recorder.open("a")
    places = [PAGE_TOKENS, PAGE_TOKENS - 1, 0, 3 * PAGE_TOKENS, PAGE_TOKENS + 1]
    add(recorder, step(*((n, 0, 0, 1) for n in places)), [record] * 5, places)
    found = before(recorder, "a")
    assert [n for n in found if n == n] == sorted(places)


def test_pages_are_given_back_and_hold_nothing_of_the_last_answer(
    recorder: Recorder,
) -> None:
    for n in range(300):
        record = recorder.open("a")
        for position in range(0, 4 * PAGE_TOKENS, PAGE_TOKENS - 1):
            add(recorder, number(n), [record], [position])
        found = before(recorder, "a")
        assert {x for x in found if x == x} == {n}
        assert sum(x == x for x in found) == 5
    first = recorder.num_bytes
    assert first <= 512 * PAGE_TOKENS * BYTES_PER_TOKEN


def test_handle_of_a_popped_answer_does_not_reach_the_next_one(
    recorder: Recorder,
) -> None:
    old = recorder.open("a")
    recorder.pop(["a"])
    new = recorder.open("b")
    add(recorder, step((1, 0, 0, 1), (2, 0, 0, 1)), [old, new], [0, 1])
    assert popped(recorder, "b").table[0, 1] == 2
    assert recorder.num_keys == 0


def test_row_that_nobody_asked_for_reaches_no_free_record(recorder: Recorder) -> None:
    record = recorder.open("a")
    recorder.pop(["a"])
    add(recorder, step((1, 0, 0, 1), (2, 0, 0, 1)), [NO_RECORD, record], [0, 0])
    recorder.open("b")
    assert before(recorder, "b") == []


# By slot, where only the device knows positions ---------------------------------------


def test_figures_by_slot_find_their_records_and_positions(recorder: Recorder) -> None:
    a, b = recorder.open("a"), recorder.open("b")
    add_by_slot(
        recorder,
        step((1, 0, 0, 1), (2, 0, 0, 1), (3, 0, 0, 1)),
        [NO_RECORD, a, b],
        [2, 1, 2],
        [0, 0, 1],
    )
    assert before(recorder, "a") == [2]
    assert before(recorder, "b") == [1, 3]


def test_negative_position_by_slot_counts_not(recorder: Recorder) -> None:
    record = recorder.open("a")
    add_by_slot(
        recorder,
        step((1, 0, 0, 1), (2, 0, 0, 1)),
        [record],
        [0, 0],
        [-1, 0],
    )
    assert before(recorder, "a") == [2]


def test_slot_without_a_record_is_passed_over(recorder: Recorder) -> None:
    add_by_slot(recorder, number(NAN), [NO_RECORD], [0], [0])
    assert recorder.pop_errors() == {}


def test_figures_by_slot_go_to_whom_the_slot_belonged_in_that_step(
    recorder: Recorder,
) -> None:
    a, b = recorder.open("a"), recorder.open("b")
    slots = [a]
    add_by_slot(recorder, number(1), slots, [0], [0])
    slots[0] = b
    recorder.settle()
    assert before(recorder, "a") == [1]
    assert before(recorder, "b") == []


def test_large_positions_by_slot_are_exact(recorder: Recorder) -> None:
    record = recorder.open("a")
    add_by_slot(recorder, number(1), [record], [0], [1_000_001])
    assert len(popped(recorder, "a")) == 1_000_002


class Event:
    """A device's event that has, or has not, come to pass."""

    def __init__(self, happened: bool) -> None:
        self.happened = happened

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        raise AssertionError("the engine must not wait for the device")


def test_popping_waits_for_no_step_that_is_still_running(recorder: Recorder) -> None:
    a, b = recorder.open("a"), recorder.open("b")
    for record, value, happened in ((a, 1, True), (b, 2, False)):
        pending = _Pending(number(value).table, whole([record]), whole([0]))
        pending.event = Event(happened)  # type: ignore[assignment]
        recorder._pending.append(pending)
    assert before(recorder, "a") == [1]
    recorder._pending[0].event = Event(True)  # type: ignore[assignment]
    assert before(recorder, "b") == [2]


# Forgetting ---------------------------------------------------------------------------


def test_popping_forgets(recorder: Recorder) -> None:
    add(recorder, number(1), [recorder.open("a")], [0])
    recorder.pop(["a"])
    assert recorder.pop(["a"]) == {}
    assert recorder.num_keys == 0


def test_popping_leaves_other_keys(recorder: Recorder) -> None:
    add(recorder, number(1), [recorder.open("a")], [0])
    recorder.open("b")
    recorder.pop(["b"])
    assert before(recorder, "a") == [1]


def test_unknown_keys_are_passed_over(recorder: Recorder) -> None:
    recorder.open("a")
    assert list(recorder.pop(["nobody", "a", "nobody"])) == ["a"]


def test_key_opened_again_after_popping_starts_empty(recorder: Recorder) -> None:
    add(recorder, number(1), [recorder.open("a")], [0])
    recorder.pop(["a"])
    add(recorder, number(2), [recorder.open("a")], [0])
    assert before(recorder, "a") == [2]


def test_key_that_nobody_came_back_for_is_forgotten(
    recorder: Recorder, clock: Clock
) -> None:
    recorder.open("leaked")
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.open("new")
    assert list(recorder.pop(["leaked", "new"])) == ["new"]


def test_key_is_kept_until_its_time_is_over(recorder: Recorder, clock: Clock) -> None:
    recorder.open("a")
    clock.now = module.FORGET_AFTER_SECONDS - 1
    recorder.open("new")
    assert recorder.num_keys == 2


def test_key_that_is_written_to_is_kept(recorder: Recorder, clock: Clock) -> None:
    record = recorder.open("long")
    clock.now = module.FORGET_AFTER_SECONDS - 1
    add(recorder, number(1), [record], [0])
    clock.now = module.FORGET_AFTER_SECONDS + 1
    recorder.open("new")
    assert before(recorder, "long") == [1]


def test_old_key_behind_a_running_one_is_forgotten(
    recorder: Recorder, clock: Clock
) -> None:
    running = recorder.open("running")
    recorder.open("leaked")
    clock.now = module.FORGET_AFTER_SECONDS + 1
    add(recorder, number(1), [running], [0])
    recorder.open("new")
    recorder.open("newer")
    keys = ["running", "leaked", "new", "newer"]
    assert set(recorder.pop(keys)) == {"running", "new", "newer"}


def test_request_resumed_after_a_long_preemption_keeps_its_figures(
    recorder: Recorder, clock: Clock
) -> None:
    add(recorder, number(1), [recorder.open("a")], [0])
    clock.now = module.FORGET_AFTER_SECONDS + 1
    add(recorder, number(2), [recorder.open("a")], [1])
    assert before(recorder, "a") == [1, 2]


def test_number_of_keys_stays_within_its_limit(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    for i in range(10):
        recorder.open(f"key {i}")
        assert recorder.num_keys <= 3


def test_newest_key_is_kept_at_the_limit(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    for i in range(10):
        record = recorder.open(f"key {i}")
    add(recorder, number(1), [record], [0])
    assert before(recorder, "key 9") == [1]


def test_figures_of_a_forgotten_key_go_nowhere(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 1)
    forgotten = recorder.open("a")
    recorder.open("b")
    add(recorder, number(1), [forgotten], [0])
    assert recorder.pop(["a", "b"]) == {"b": b""}


# Errors -------------------------------------------------------------------------------


def test_errors_are_handed_out_once(recorder: Recorder) -> None:
    recorder.errors["apply"] += 2
    assert recorder.pop_errors() == {"apply": 2}
    assert recorder.pop_errors() == {}


def test_rows_that_are_not_finite_are_counted(recorder: Recorder) -> None:
    record = recorder.open("a")
    rows = step((NAN, NAN, 0, 1), (1, 1, 0, 1), (NAN, NAN, 0, 1))
    add(recorder, rows, [record] * 3, [0, 1, 2])
    assert recorder.pop_errors() == {"row_not_finite": 2}


def test_rows_that_are_not_finite_are_counted_by_slot(recorder: Recorder) -> None:
    record = recorder.open("a")
    add_by_slot(
        recorder,
        step((NAN, NAN, 0, 1), (NAN, NAN, 0, 1)),
        [record],
        [0, 0],
        [0, -1],
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
    add(shared, number(1), [shared.open("a")], [0])
    shared.errors["apply"] += 1
    assert EMInfWorkerExtension().em_inf_pop(["a", "nobody"]) == {
        "figures": {"a": np.array([1, 0, 0, 1], np.float32).tobytes()},
        "errors": {"apply": 1},
        "seconds": 0.0,
        "calls": 0,
    }


def test_worker_counts_rows_that_settle_while_it_hands_out(shared: Recorder) -> None:
    add(shared, number(NAN), [shared.open("a")], [0])
    assert EMInfWorkerExtension().em_inf_pop(["a"])["errors"] == {"row_not_finite": 1}


def test_worker_without_a_processor_has_an_empty_status(shared: Recorder) -> None:
    shared.open("a")
    assert EMInfWorkerExtension().em_inf_status() == {}


def test_worker_with_a_processor_reports_it_and_its_open_records(
    shared: Recorder,
) -> None:
    shared.status = {"runner": "V2"}
    shared.open("a")
    shared.open("b")
    assert EMInfWorkerExtension().em_inf_status() == {"runner": "V2", "open_records": 2}
