"""Settings by slot: whose they are after requests come, go and move."""

from typing import Any

import pytest
import torch

from em_inf.logits_processors.recorder import NO_RECORD
from em_inf.logits_processors.reference import RowParams
from em_inf.logits_processors.settings import Settings
from em_inf.logits_processors.slots import Slots
from tests.logits_processors.rows import CPU

GRADIENT = Settings(n_grad_steps=7, learning_rate=0.25, threshold=0.5, kl_weight=2.0)
ADAPTIVE = Settings(
    method="adaptive_temperature", n_grad_steps=9, target_ratio=0.75, threshold=0.125
)
OFF = dict.fromkeys(RowParams.COLUMNS, 0.0)


@pytest.fixture
def slots() -> Slots:
    return Slots(4, CPU)


def line(slots: Slots, slot: int) -> dict[str, float]:
    """What the device sees of a slot."""
    slots.upload()
    params = slots.params(torch.tensor([slot]))
    return {name: getattr(params, name).item() for name in RowParams.COLUMNS}


def test_new_slots_are_off(slots: Slots) -> None:
    assert not slots.active.any()
    assert [line(slots, i) for i in range(4)] == [OFF] * 4


def test_gradient_settings_reach_the_device(slots: Slots) -> None:
    slots.set(2, GRADIENT, NO_RECORD)
    assert line(slots, 2) == {
        "adaptive": 0.0,
        "n_grad_steps": 7.0,
        "learning_rate": 0.25,
        "threshold": 0.5,
        "kl_weight": 2.0,
        "target_ratio": 0.5,
    }


def test_adaptive_settings_reach_the_device_without_grad_steps(slots: Slots) -> None:
    slots.set(2, ADAPTIVE, NO_RECORD)
    shown = line(slots, 2)
    assert shown["adaptive"] == 1
    assert shown["n_grad_steps"] == 0
    assert (shown["target_ratio"], shown["threshold"]) == (0.75, 0.125)


def test_threshold_beyond_float32_is_infinite_on_the_device(slots: Slots) -> None:
    slots.set(0, Settings(threshold=1e300), NO_RECORD)
    assert line(slots, 0)["threshold"] == float("inf")


def test_setting_one_slot_leaves_the_others_off(slots: Slots) -> None:
    slots.set(2, GRADIENT, NO_RECORD)
    assert slots.active.tolist() == [False, False, True, False]
    assert line(slots, 1) == OFF


def test_params_come_in_the_order_of_the_slots_asked_for(slots: Slots) -> None:
    slots.set(0, Settings(n_grad_steps=1), NO_RECORD)
    slots.set(3, Settings(n_grad_steps=4), NO_RECORD)
    slots.upload()
    params = slots.params(torch.tensor([3, 0, 3, 1]))
    assert params.n_grad_steps.tolist() == [4, 1, 4, 0]


def test_params_are_float32_columns(slots: Slots) -> None:
    params = slots.params(torch.tensor([0, 1]))
    for name in RowParams.COLUMNS:
        column = getattr(params, name)
        assert (column.dtype, column.shape) == (torch.float32, (2,))


def test_cleared_slot_is_off_and_forgets_its_record(slots: Slots) -> None:
    slots.set(1, GRADIENT, 1)
    slots.clear(1)
    assert line(slots, 1) == OFF
    assert not slots.active[1]
    assert slots.records[1] == NO_RECORD


def test_slot_given_to_another_request_keeps_nothing_of_the_first(slots: Slots) -> None:
    slots.set(1, GRADIENT, 1)
    second = 2
    slots.set(1, ADAPTIVE, second)
    slots.set(2, ADAPTIVE, NO_RECORD)
    assert slots.records[1] == second
    assert line(slots, 1) == line(slots, 2)


def test_clearing_all_turns_every_slot_off(slots: Slots) -> None:
    slots.set(0, GRADIENT, 1)
    slots.set(3, ADAPTIVE, 1)
    slots.clear_all()
    assert not slots.active.any()
    assert slots.records.tolist() == [NO_RECORD] * 4
    assert [line(slots, i) for i in range(4)] == [OFF] * 4


def test_one_way_move_carries_settings_and_record_and_empties_the_source(
    slots: Slots,
) -> None:
    record = 2
    slots.set(3, GRADIENT, record)
    before = line(slots, 3)
    slots.move(3, 0, swap=False)
    assert line(slots, 0) == before
    assert slots.records.tolist() == [record, NO_RECORD, NO_RECORD, NO_RECORD]
    assert slots.active.tolist() == [True, False, False, False]
    assert line(slots, 3) == OFF


def test_one_way_move_drops_whoever_was_at_the_target(slots: Slots) -> None:
    record = 2
    slots.set(0, ADAPTIVE, 1)
    slots.set(3, GRADIENT, record)
    slots.move(3, 0, swap=False)
    assert line(slots, 0)["n_grad_steps"] == 7
    assert slots.records.tolist() == [record, NO_RECORD, NO_RECORD, NO_RECORD]


def test_one_way_move_of_a_request_without_em_inf_turns_the_target_off(
    slots: Slots,
) -> None:
    slots.set(0, ADAPTIVE, 1)
    slots.move(3, 0, swap=False)
    assert line(slots, 0) == OFF
    assert not slots.active.any()
    assert slots.records.tolist() == [NO_RECORD] * 4


def test_swap_exchanges_two_requests(slots: Slots) -> None:
    first, second = 1, 2
    slots.set(0, GRADIENT, first)
    slots.set(2, ADAPTIVE, second)
    at_0, at_2 = line(slots, 0), line(slots, 2)
    slots.move(0, 2, swap=True)
    assert (line(slots, 0), line(slots, 2)) == (at_2, at_0)
    assert slots.records.tolist() == [second, NO_RECORD, first, NO_RECORD]


def test_swap_with_an_empty_slot_keeps_the_request(slots: Slots) -> None:
    slots.set(0, GRADIENT, NO_RECORD)
    slots.move(0, 2, swap=True)
    assert slots.active.tolist() == [False, False, True, False]
    assert line(slots, 2)["n_grad_steps"] == 7


def test_number_of_active_slots_follows_every_change(slots: Slots) -> None:
    def step(change: Any, *args: Any) -> int:
        change(*args)
        assert slots.num_active == slots.active.sum()
        return slots.num_active

    assert step(slots.set, 0, GRADIENT, NO_RECORD) == 1
    assert step(slots.set, 0, ADAPTIVE, NO_RECORD) == 1
    assert step(slots.set, 1, GRADIENT, NO_RECORD) == 2
    assert step(slots.move, 0, 2, False) == 2
    assert step(slots.move, 2, 1, False) == 1
    assert step(slots.move, 1, 3, True) == 1
    assert step(slots.clear, 0) == 1
    assert step(slots.clear_all) == 0


def test_largest_step_count_follows_the_requests(slots: Slots) -> None:
    def uploaded() -> int:
        slots.upload()
        return slots.max_grad_steps

    assert uploaded() == 0
    slots.set(0, Settings(n_grad_steps=3), NO_RECORD)
    slots.set(1, Settings(n_grad_steps=60), NO_RECORD)
    assert uploaded() == 60
    slots.move(1, 2, swap=False)
    assert uploaded() == 60
    slots.clear(2)
    assert uploaded() == 3


def test_adaptive_temperature_is_seen_while_a_request_asks_for_it(slots: Slots) -> None:
    slots.set(0, GRADIENT, NO_RECORD)
    slots.upload()
    assert not slots.any_adaptive
    slots.set(1, ADAPTIVE, NO_RECORD)
    slots.upload()
    assert slots.any_adaptive
    slots.set(1, GRADIENT, NO_RECORD)
    slots.upload()
    assert not slots.any_adaptive
