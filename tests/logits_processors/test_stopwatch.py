from typing import ClassVar

import pytest
import torch

from em_inf.logits_processors import stopwatch as module
from em_inf.logits_processors.stopwatch import Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Readings of the clock, one after the other."""
    readings: list[float] = []
    monkeypatch.setattr(module.time, "perf_counter", lambda: readings.pop(0))
    return readings


def test_calls_add_up_until_they_are_taken(clock: list[float]) -> None:
    clock += [10.0, 10.5, 20.0, 20.25]
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(CPU):
            pass
    assert watch.pop() == (0.75, 2)
    assert watch.pop() == (0.0, 0)


def test_call_that_fails_counts_too(clock: list[float]) -> None:
    clock += [1.0, 3.0]
    watch = Stopwatch()
    with pytest.raises(ValueError, match="wrong"), watch.running(CPU):
        raise ValueError("wrong")
    assert watch.pop() == (2.0, 1)


class Event:
    """A CUDA event whose passing the test decides."""

    made: ClassVar[list["Event"]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.passed = False
        Event.made.append(self)

    def record(self) -> None: ...

    def query(self) -> bool:
        return self.passed

    def elapsed_time(self, end: "Event") -> float:
        return 250.0


def test_device_time_comes_when_its_events_have_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made.clear()
    watch = Stopwatch()
    with watch.running(torch.device("cuda")):
        pass
    assert watch.pop() == (0.0, 0)
    Event.made[1].passed = True
    assert watch.pop() == (0.25, 1)
    with watch.running(torch.device("cuda")):
        pass
    assert len(Event.made) == 2, "events that have passed are used again"
