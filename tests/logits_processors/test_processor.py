"""The processor under vLLM's V1 and V2 interfaces: its rows, settings and errors.

Driven with vLLM's own classes, but without an engine: rows are what an engine would hand
over, and what comes out is held against the same row run alone.
"""

import logging
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.distributed import parallel_state
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

from em_inf.logits_processors import minimize, recorder
from em_inf.logits_processors.extra_args import to_extra_args
from em_inf.logits_processors.figures import Figures
from em_inf.logits_processors.processor import EMInfLogitsProcessor
from em_inf.logits_processors.recorder import EMInfWorkerExtension, Recorder
from em_inf.logits_processors.settings import Settings, SettingsError
from tests.logits_processors.autograd_oracle import entropy_of
from tests.logits_processors.rows import CPU, bits, llm_like_rows, minimized

VOCAB_SIZE = 32
LOGITS = llm_like_rows(VOCAB_SIZE, 8, seed=3)[::2].contiguous()
FIRST = Settings(n_grad_steps=3, threshold=0.0)
SECOND = Settings(n_grad_steps=15, threshold=0.0, kl_weight=0.05)
ADAPTIVE = Settings(method="adaptive_temperature", target_ratio=0.5, threshold=0.0)

SWAP = MoveDirectionality.SWAP
ONE_WAY = MoveDirectionality.UNIDIRECTIONAL


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder of its own in the place of the process's."""
    own = Recorder()
    monkeypatch.setattr(recorder, "RECORDER", own)
    return own


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What the processor logs, once, whether or not vLLM passes it on to the root."""
    logger = logging.getLogger("vllm.em_inf")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


class Breakable:
    """The public operation, which fails while it is broken and counts its calls."""

    def __init__(self) -> None:
        self.broken = False
        self.calls = 0
        self.works = minimize.minimize_entropy_

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.broken:
            raise RuntimeError("broken on purpose")
        return self.works(*args, **kwargs)


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> Breakable:
    """Stands in for the public operation in processors made after it."""
    breakable = Breakable()
    monkeypatch.setattr(minimize, "minimize_entropy_", breakable)
    return breakable


def config(num_speculative_tokens: int = 0) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        speculative_config=object() if num_speculative_tokens else None,
        num_speculative_tokens=num_speculative_tokens,
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCAB_SIZE),
    )


def asking(settings: Settings, key: str = "key", **sampling: Any) -> SamplingParams:
    """Sampling parameters of a request with EM-INF on."""
    extra_args = {"em_inf": to_extra_args(settings, key)}
    return SamplingParams(extra_args=extra_args, **sampling)


def alone(row: int, settings: Settings) -> Tensor:
    """What a row of `LOGITS` becomes by itself."""
    return minimized(LOGITS[row : row + 1], settings)[0][0]


def check(after: Tensor, expected: Sequence[Settings | None]) -> None:
    """Hold each row against the row alone under its settings, None for untouched."""
    for row, settings in enumerate(expected):
        before = LOGITS[row]
        if settings is None:
            assert torch.equal(bits(after[row]), bits(before)), f"row {row}"
        else:
            assert torch.equal(after[row], alone(row, settings)), f"row {row}"
            assert not torch.equal(after[row], before), f"row {row}"


def popped(key: str = "key") -> list[list[float]]:
    """What the API server gets for a finished request, as columns."""
    data = EMInfWorkerExtension().em_inf_pop([key])["figures"][key]
    return Figures.from_bytes(data).table.tolist()


def entropies(*rows: int) -> Any:
    """Entropies of rows of `LOGITS`, as they would be recorded."""
    return pytest.approx(entropy_of(LOGITS[list(rows)]).tolist(), abs=1e-5)


# Vllm's V1 runner ---------------------------------------------------------------------


class V1:
    """A processor as the V1 runner drives it, with the output tokens of each request."""

    def __init__(self) -> None:
        self.processor = EMInfLogitsProcessor(config(), CPU, False)

    def update(
        self,
        *,
        removed: Sequence[int] = (),
        added: Sequence[tuple[int, SamplingParams, list[int]]] = (),
        moved: Sequence[tuple[int, int, MoveDirectionality]] = (),
    ) -> None:
        self.processor.update_state(
            BatchUpdate(
                batch_size=4,
                removed=removed,
                added=[(row, params, None, out) for row, params, out in added],
                moved=moved,
            )
        )

    def add(self, row: int, params: SamplingParams) -> list[int]:
        """Add one request; returns the live list of its output tokens."""
        output: list[int] = []
        self.update(added=[(row, params, output)])
        return output

    def step(self) -> Tensor:
        return self.processor.apply(LOGITS.clone())


@pytest.fixture
def v1() -> V1:
    return V1()


def test_v1_request_that_asks_gets_its_row_minimized(v1: V1) -> None:
    v1.add(1, asking(FIRST))
    check(v1.step(), [None, FIRST, None, None])


def test_v1_rows_are_changed_in_place(v1: V1) -> None:
    v1.add(1, asking(FIRST))
    logits = LOGITS.clone()
    assert v1.processor.apply(logits) is logits
    check(logits, [None, FIRST, None, None])


def test_v1_each_row_gets_the_settings_of_its_own_request(v1: V1) -> None:
    plain = SamplingParams()
    requests = [asking(FIRST, "a"), plain, asking(ADAPTIVE, "b"), asking(SECOND, "c")]
    v1.update(added=[(i, params, []) for i, params in enumerate(requests)])
    check(v1.step(), [FIRST, None, ADAPTIVE, SECOND])


def test_v1_settings_last_over_steps_without_a_batch_update(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.step()
    v1.processor.update_state(None)
    check(v1.step(), [FIRST, None, None, None])


def test_v1_batch_of_fewer_rows_than_slots_is_served(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.add(3, asking(SECOND))
    after = v1.processor.apply(LOGITS[:2].clone())
    check(after, [FIRST, None])


def test_v1_removed_request_leaves_its_row_alone(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.update(removed=[0])
    check(v1.step(), [None] * 4)


def test_v1_row_reused_by_a_request_without_em_inf_is_left_alone(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.update(removed=[0], added=[(0, SamplingParams(), [])])
    check(v1.step(), [None] * 4)


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}, {"em_inf": None}])
def test_v1_request_added_over_another_without_removal_replaces_it(
    v1: V1, extra_args: dict[str, Any] | None
) -> None:
    v1.add(0, asking(FIRST))
    v1.add(0, SamplingParams(extra_args=extra_args))
    check(v1.step(), [None] * 4)


def test_v1_row_reused_by_another_request_takes_its_settings(v1: V1) -> None:
    v1.add(0, asking(FIRST, "a"))
    v1.update(removed=[0], added=[(0, asking(ADAPTIVE, "b"), [])])
    check(v1.step(), [ADAPTIVE, None, None, None])


def test_v1_one_way_move_carries_the_settings(v1: V1) -> None:
    v1.add(3, asking(FIRST))
    v1.update(moved=[(3, 1, ONE_WAY)])
    check(v1.step(), [None, FIRST, None, None])


def test_v1_one_way_move_over_a_running_request_drops_it(v1: V1) -> None:
    v1.add(1, asking(SECOND, "a"))
    v1.add(3, asking(FIRST, "b"))
    v1.update(moved=[(3, 1, ONE_WAY)])
    check(v1.step(), [None, FIRST, None, None])


def test_v1_one_way_move_of_a_plain_request_turns_the_target_off(v1: V1) -> None:
    v1.add(1, asking(FIRST))
    v1.add(3, SamplingParams())
    v1.update(moved=[(3, 1, ONE_WAY)])
    check(v1.step(), [None] * 4)


def test_v1_swap_exchanges_the_settings(v1: V1) -> None:
    v1.add(0, asking(FIRST, "a"))
    v1.add(2, asking(ADAPTIVE, "b"))
    v1.update(moved=[(0, 2, SWAP)])
    check(v1.step(), [ADAPTIVE, None, FIRST, None])


def test_v1_swap_with_a_plain_request_carries_the_settings(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.add(2, SamplingParams())
    v1.update(moved=[(0, 2, SWAP)])
    check(v1.step(), [None, None, FIRST, None])


def test_v1_removals_come_before_additions_and_moves_after(v1: V1) -> None:
    v1.add(0, asking(FIRST, "a"))
    v1.add(3, asking(SECOND, "b"))
    v1.update(
        removed=[0],
        added=[(0, asking(ADAPTIVE, "c"), [])],
        moved=[(0, 1, SWAP), (3, 0, ONE_WAY)],
    )
    check(v1.step(), [SECOND, ADAPTIVE, None, None])


def test_v1_figures_come_back_by_output_position(v1: V1) -> None:
    output = v1.add(2, asking(FIRST))
    v1.step()
    output.append(17)
    v1.step()
    before, after, grad_steps, temperatures = popped()
    _, stats = minimized(LOGITS[2:3], FIRST)
    assert before == entropies(2, 2)
    assert after == [stats.entropy_after.item()] * 2
    assert grad_steps == [3, 3]
    assert temperatures == [1, 1]


def test_v1_token_sampled_twice_counts_once(v1: V1) -> None:
    v1.add(2, asking(FIRST))
    v1.step()
    v1.step()
    assert popped()[0] == entropies(2)


def test_v1_figures_of_each_request_come_back_under_its_key(v1: V1) -> None:
    v1.add(0, asking(FIRST, "a"))
    v1.add(3, asking(ADAPTIVE, "b"))
    v1.step()
    assert popped("a")[0] == entropies(0)
    assert popped("b")[0] == entropies(3)


def test_v1_figures_follow_a_moved_request(v1: V1) -> None:
    output = v1.add(3, asking(FIRST))
    v1.step()
    output.append(17)
    v1.update(moved=[(3, 1, ONE_WAY)])
    v1.step()
    assert popped()[0] == entropies(3, 1)


def test_v1_figures_follow_swapped_requests(v1: V1) -> None:
    longer = v1.add(0, asking(FIRST, "a"))
    v1.step()
    longer.append(17)
    v1.add(2, asking(SECOND, "b"))
    v1.update(moved=[(0, 2, SWAP)])
    v1.step()
    assert popped("a")[0] == entropies(0, 2)
    assert popped("b")[0] == entropies(0)


def test_v1_request_resumed_after_preemption_keeps_its_earlier_figures(v1: V1) -> None:
    params = asking(FIRST)
    output = v1.add(0, params)
    v1.step()
    output.append(17)
    v1.update(removed=[0])
    v1.step()
    v1.update(added=[(2, params, [17])])
    v1.step()
    assert popped()[0] == entropies(0, 2)


def test_v1_request_with_a_seed_has_its_figures(v1: V1) -> None:
    v1.add(0, asking(FIRST, seed=100))
    v1.step()
    assert popped()[0] == entropies(0)


def test_v1_request_that_wants_no_report_is_minimized_without_a_record(
    v1: V1, records: Recorder
) -> None:
    settings = FIRST.model_copy(update={"report": "none"})
    v1.add(0, asking(settings))
    check(v1.step(), [settings, None, None, None])
    assert records.num_keys == 0


def test_v1_adaptive_temperature_is_reported(v1: V1) -> None:
    v1.add(1, asking(ADAPTIVE))
    v1.step()
    _, stats = minimized(LOGITS[1:2], ADAPTIVE)
    assert popped()[3] == [stats.temperature.item()]
    assert stats.temperature.item() < 1


def test_v1_batch_in_which_nobody_asks_is_not_worked_on(operation: Breakable) -> None:
    v1 = V1()
    v1.add(0, SamplingParams())
    check(v1.step(), [None] * 4)
    assert operation.calls == 0


def test_v1_runs_the_processor_before_temperature() -> None:
    processor = EMInfLogitsProcessor(config(), CPU, False)
    assert LogitsProcessors([processor]).non_argmax_invariant == [processor]


def test_v1_row_with_nan_is_left_alone_and_counted(v1: V1, records: Recorder) -> None:
    v1.add(0, asking(FIRST))
    logits = LOGITS.clone()
    logits[0, 3] = float("nan")
    after = v1.processor.apply(logits.clone())
    assert torch.equal(bits(after), bits(logits))
    assert records.pop_errors() == {"row_not_finite": 1}


# Errors -------------------------------------------------------------------------------


def test_error_while_minimizing_leaves_logits_unchanged(operation: Breakable) -> None:
    v1 = V1()
    v1.add(0, asking(FIRST))
    operation.broken = True
    check(v1.step(), [None] * 4)


def test_step_after_an_error_works(operation: Breakable) -> None:
    v1 = V1()
    v1.add(0, asking(FIRST))
    operation.broken = True
    v1.step()
    operation.broken = False
    check(v1.step(), [FIRST, None, None, None])


def test_position_of_a_failed_step_is_reported_as_missing(operation: Breakable) -> None:
    v1 = V1()
    output = v1.add(0, asking(FIRST))
    operation.broken = True
    v1.step()
    operation.broken = False
    output.append(17)
    v1.step()
    failed, second = popped()[0]
    assert np.isnan(failed)
    assert [second] == entropies(0)


def test_every_error_is_counted(operation: Breakable, records: Recorder) -> None:
    v1 = V1()
    v1.add(0, asking(FIRST))
    operation.broken = True
    v1.step()
    v1.step()
    assert records.pop_errors() == {"apply": 2}


def test_only_the_first_error_of_a_kind_is_logged(
    operation: Breakable, log: pytest.LogCaptureFixture
) -> None:
    v1 = V1()
    v1.add(0, asking(FIRST))
    operation.broken = True
    v1.step()
    v1.step()
    (record,) = log.records
    assert record.getMessage().startswith("EM-INF failed (apply)")
    assert "broken on purpose" in log.text


def test_errors_of_another_kind_are_logged_too(
    operation: Breakable, log: pytest.LogCaptureFixture
) -> None:
    v1 = V1()
    v1.add(0, asking(FIRST))
    operation.broken = True
    v1.step()
    v1.update(removed=[99])
    kinds = [record.getMessage().split("(")[1].split(")")[0] for record in log.records]
    assert kinds == ["apply", "update_state"]


def test_error_in_a_batch_update_turns_em_inf_off_for_running_requests(v1: V1) -> None:
    # Which rows are whose is unknown from here on.
    v1.add(0, asking(FIRST))
    v1.update(removed=[99])
    check(v1.step(), [None] * 4)


def test_error_in_a_batch_update_is_counted(v1: V1, records: Recorder) -> None:
    v1.update(removed=[99])
    assert records.pop_errors() == {"update_state": 1}


def test_request_added_after_a_failed_batch_update_works(v1: V1) -> None:
    v1.add(0, asking(FIRST))
    v1.update(removed=[99])
    v1.add(2, asking(SECOND))
    check(v1.step(), [None, None, SECOND, None])


def wrong() -> SamplingParams:
    """Settings that nobody admitted."""
    return SamplingParams(extra_args={"em_inf": {"n_grad_steps": 5}})


def test_request_with_wrong_settings_is_left_alone_and_others_are_not(v1: V1) -> None:
    v1.update(added=[(0, asking(FIRST), []), (1, wrong(), []), (2, asking(SECOND), [])])
    check(v1.step(), [FIRST, None, SECOND, None])


def test_request_with_wrong_settings_takes_nothing_from_the_slots_last_one(
    v1: V1,
) -> None:
    v1.add(0, asking(FIRST))
    v1.add(0, wrong())
    check(v1.step(), [None] * 4)


def test_request_with_wrong_settings_is_counted(v1: V1, records: Recorder) -> None:
    v1.add(0, wrong())
    assert records.pop_errors() == {"add_request": 1}


# Admission and loading ----------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(extra_args={}),
        SamplingParams(extra_args={"other": object()}),
        SamplingParams(extra_args={"em_inf": None}),
        asking(FIRST),
        asking(ADAPTIVE, seed=6),
    ],
)
def test_proper_requests_are_admitted(params: SamplingParams) -> None:
    EMInfLogitsProcessor.validate_params(params)


@pytest.mark.parametrize(
    "value",
    [
        True,
        "paper",
        {},
        {"key": "key", "n_grad_steps": 65},
        {"key": "key", "lr": 1},
        {"key": "key", 7: 1},
        {**to_extra_args(FIRST, "key"), "key": ""},
    ],
)
def test_foreign_settings_are_refused_at_admission(value: Any) -> None:
    with pytest.raises(SettingsError):
        EMInfLogitsProcessor.validate_params(SamplingParams(extra_args={"em_inf": value}))


def test_v1_worker_reports_its_processor() -> None:
    assert EMInfWorkerExtension().em_inf_status() == {}
    EMInfLogitsProcessor(config(), CPU, False)
    status = EMInfWorkerExtension().em_inf_status()
    assert (status["runner"], status["device"]) == ("V1", "cpu")


@pytest.fixture
def not_last_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process a pipeline stage that samples nothing."""
    monkeypatch.setattr(parallel_state, "model_parallel_is_initialized", lambda: True)
    stage = SimpleNamespace(is_last_rank=False)
    monkeypatch.setattr(parallel_state, "get_pp_group", lambda: stage)


@pytest.mark.usefixtures("not_last_stage")
def test_pipeline_stage_that_samples_nothing_declines_requests() -> None:
    processor = EMInfLogitsProcessor(config(), states())
    assert processor.add_request(0, asking(FIRST)) is False


@pytest.mark.usefixtures("not_last_stage")
def test_pipeline_stage_that_samples_nothing_opens_no_records(records: Recorder) -> None:
    EMInfLogitsProcessor(config(), states()).add_request(0, asking(FIRST))
    assert records.num_keys == 0


# Vllm's V2 runner ---------------------------------------------------------------------


def states() -> Any:
    """Request states of four slots, all prompts empty."""

    def lengths() -> Any:
        host = np.zeros(4, dtype=np.int32)
        return SimpleNamespace(np=host, gpu=torch.from_numpy(host))

    return SimpleNamespace(
        device=CPU, max_num_reqs=4, prompt_len=lengths(), prefill_len=lengths()
    )


class V2:
    """A processor as the V2 runner drives it."""

    def __init__(self, num_speculative_tokens: int = 0) -> None:
        self.states = states()
        self.processor = EMInfLogitsProcessor(config(num_speculative_tokens), self.states)

    def add(
        self,
        slot: int,
        params: SamplingParams,
        prompt_len: int = 10,
        prefill_len: int | None = None,
    ) -> bool:
        """Let a request enter a slot; `prefill_len` is the prompt's unless preempted."""
        self.states.prompt_len.np[slot] = prompt_len
        self.states.prefill_len.np[slot] = prefill_len or prompt_len
        return self.processor.add_request(slot, params)

    def step(self, slots: Sequence[int], lengths: Sequence[Sequence[int]]) -> Tensor:
        """One step on as many rows of `LOGITS` as there are lengths.

        Args:
            slots: slot of each request of the batch.
            lengths: for each request, tokens that each of its rows sees.
        """
        rows = [len(each) for each in lengths]
        flat = [length for each in lengths for length in each]
        mapping = np.array(slots, dtype=np.int32)
        context = LogitsContext(
            expanded_idx_mapping=torch.from_numpy(np.repeat(mapping, rows)),
            idx_mapping=torch.from_numpy(mapping),
            idx_mapping_np=mapping,
            expanded_local_pos=torch.tensor([i for n in rows for i in range(n)]),
            input_ids=torch.zeros(len(flat), dtype=torch.int32),
            pos=torch.tensor(flat) - 1,
            # vLLM's buffer may be longer than the batch.
            seq_lens_upper_bound_np=np.array([max(each) for each in lengths] + [0, 0]),
        )
        self.processor.apply_staged_writes()
        return self.processor.apply(LOGITS[: len(flat)].clone(), context)


@pytest.fixture
def v2() -> V2:
    return V2()


def test_v2_request_that_asks_is_taken_up(v2: V2) -> None:
    assert v2.add(0, asking(FIRST)) is True


@pytest.mark.parametrize("extra_args", [None, {}, {"em_inf": None}])
def test_v2_request_that_does_not_ask_is_declined(
    v2: V2, extra_args: dict[str, Any] | None
) -> None:
    assert v2.add(0, SamplingParams(extra_args=extra_args)) is False


def test_v2_rows_are_found_by_their_slots(v2: V2) -> None:
    v2.add(3, asking(FIRST, "a"))
    v2.add(1, SamplingParams())
    v2.add(0, asking(ADAPTIVE, "b"))
    check(v2.step([1, 3, 0], [[10], [10], [10]]), [None, FIRST, ADAPTIVE])


def test_v2_rows_may_come_in_another_order_in_every_step(v2: V2) -> None:
    v2.add(3, asking(FIRST, "a"))
    v2.add(1, asking(SECOND, "b"))
    v2.step([3, 1], [[10], [10]])
    check(v2.step([1, 3], [[11], [11]]), [SECOND, FIRST])
    assert popped("a")[0] == entropies(0, 1)
    assert popped("b")[0] == entropies(1, 0)


def test_v2_finished_request_does_not_reach_rows_of_others(v2: V2) -> None:
    v2.add(3, asking(FIRST, "a"))
    v2.add(1, SamplingParams())
    v2.step([3, 1], [[10], [10]])
    check(v2.step([1], [[11]]), [None])


def test_v2_recycled_slot_takes_nothing_from_its_last_request(v2: V2) -> None:
    v2.add(2, asking(FIRST))
    v2.step([2], [[10]])
    assert v2.add(2, SamplingParams()) is False
    check(v2.step([2], [[10]]), [None])


def test_v2_recycled_slot_takes_the_settings_of_its_new_request(v2: V2) -> None:
    v2.add(2, asking(FIRST, "a"))
    v2.step([2], [[10]])
    v2.add(2, asking(ADAPTIVE, "b"))
    check(v2.step([2], [[10]]), [ADAPTIVE])
    assert popped("a")[0] == popped("b")[0] == entropies(0)


def test_v2_row_of_a_prompt_not_yet_read_to_its_end_is_left_alone(v2: V2) -> None:
    v2.add(0, asking(FIRST, "a"), prompt_len=10)
    v2.add(1, asking(SECOND, "b"), prompt_len=10)
    check(v2.step([0, 1], [[9], [10]]), [None, SECOND])


def test_v2_row_of_a_prompt_not_yet_read_to_its_end_is_not_recorded(v2: V2) -> None:
    v2.add(0, asking(FIRST), prompt_len=10)
    v2.step([0], [[4]])
    v2.step([0], [[10]])
    assert popped()[0] == entropies(0)


def test_v2_figures_come_back_by_output_position(v2: V2) -> None:
    v2.add(0, asking(FIRST), prompt_len=7)
    v2.step([0], [[7]])
    v2.step([0], [[8]])
    assert popped()[0] == entropies(0, 0)


def test_v2_request_resumed_after_preemption_keeps_its_earlier_figures(v2: V2) -> None:
    params = asking(FIRST)
    v2.add(0, params, prompt_len=10)
    v2.step([0], [[10]])
    v2.step([0], [[11]])
    v2.add(3, params, prompt_len=10, prefill_len=12)
    v2.add(1, SamplingParams())
    v2.step([1, 3], [[10], [11]])
    v2.step([1, 3], [[11], [12]])
    assert popped()[0] == entropies(0, 0, 1)


def test_v2_batch_in_which_nobody_asks_is_not_worked_on(operation: Breakable) -> None:
    v2 = V2()
    v2.add(0, SamplingParams())
    check(v2.step([0], [[10]]), [None])
    assert operation.calls == 0


def test_v2_error_while_minimizing_leaves_logits_unchanged(
    operation: Breakable, records: Recorder
) -> None:
    v2 = V2()
    v2.add(0, asking(FIRST))
    operation.broken = True
    check(v2.step([0], [[10]]), [None])
    assert records.pop_errors() == {"apply": 1}


def test_v2_step_after_an_error_works(operation: Breakable) -> None:
    v2 = V2()
    v2.add(0, asking(FIRST))
    operation.broken = True
    v2.step([0], [[10]])
    operation.broken = False
    check(v2.step([0], [[11]]), [FIRST])


def test_v2_request_with_wrong_settings_is_declined_and_counted(
    v2: V2, records: Recorder
) -> None:
    assert v2.add(0, wrong()) is False
    check(v2.step([0], [[10]]), [None])
    assert records.pop_errors() == {"add_request": 1}


def test_v2_worker_reports_its_processor(v2: V2) -> None:
    status = EMInfWorkerExtension().em_inf_status()
    assert (status["runner"], status["device"]) == ("V2", "cpu")


def test_v2_runs_under_inference_mode(v2: V2) -> None:
    v2.add(0, asking(FIRST))
    with torch.inference_mode():
        check(v2.step([0], [[10]]), [FIRST])
    assert popped()[0] == entropies(0)


# Speculative decoding under V2 --------------------------------------------------------


@pytest.fixture
def drafting() -> V2:
    return V2(num_speculative_tokens=2)


def test_draft_rows_take_the_settings_of_their_request(drafting: V2) -> None:
    drafting.add(3, asking(FIRST, "a"))
    drafting.add(1, SamplingParams())
    after = drafting.step([3, 1], [[10, 11, 12], [10]])
    check(after, [FIRST, FIRST, FIRST, None])


def test_draft_rows_of_plain_requests_stay_bit_identical(drafting: V2) -> None:
    drafting.add(3, asking(ADAPTIVE, "a"))
    drafting.add(1, SamplingParams())
    after = drafting.step([1, 3], [[10, 11, 12], [10]])
    check(after, [None, None, None, ADAPTIVE])


def test_draft_rows_are_recorded_at_their_own_positions(drafting: V2) -> None:
    drafting.add(0, asking(FIRST), prompt_len=10)
    drafting.step([0], [[10, 11, 12]])
    assert popped()[0] == entropies(0, 1, 2)


def test_position_of_a_rejected_draft_is_recorded_anew(drafting: V2) -> None:
    drafting.add(2, asking(FIRST, "a"), prompt_len=10)
    drafting.add(0, asking(SECOND, "b"), prompt_len=4)
    drafting.step([2], [[10, 11, 12]])
    drafting.step([0, 2], [[4], [11, 12]])
    assert popped("a")[0] == entropies(0, 1, 2)
    assert popped("b")[0] == entropies(0)


def test_rows_of_an_unfinished_prompt_are_not_recorded_while_drafting(
    drafting: V2,
) -> None:
    drafting.add(0, asking(FIRST, "a"), prompt_len=10)
    drafting.add(1, asking(SECOND, "b"), prompt_len=10)
    drafting.step([0, 1], [[6], [10]])
    assert popped("a") == [[], [], [], []]
    assert popped("b")[0] == entropies(1)


def test_request_resumed_while_drafting_keeps_its_earlier_figures(drafting: V2) -> None:
    params = asking(FIRST)
    drafting.add(0, params, prompt_len=10)
    drafting.step([0], [[10, 11, 12]])
    drafting.add(1, params, prompt_len=10, prefill_len=13)
    drafting.step([1], [[11]])
    drafting.step([1], [[13]])
    assert popped()[0] == entropies(0, 1, 2, 0)


def test_slot_recycled_while_drafting_takes_nothing_from_its_last_request(
    drafting: V2,
) -> None:
    drafting.add(0, asking(FIRST, "a"))
    drafting.add(1, asking(SECOND, "b"))
    drafting.step([0, 1], [[10], [10]])
    drafting.add(0, SamplingParams())
    check(drafting.step([0, 1], [[10, 11], [11, 12]]), [None, None, SECOND, SECOND])
    assert popped("a")[0] == entropies(0)


def test_drafts_of_a_batch_in_which_nobody_asks_are_not_worked_on(
    operation: Breakable,
) -> None:
    drafting = V2(num_speculative_tokens=2)
    drafting.add(0, SamplingParams())
    check(drafting.step([0], [[10, 11]]), [None, None])
    assert operation.calls == 0
