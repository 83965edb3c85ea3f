"""What we rely on in vLLM. When one of these fails, vLLM moved: read before you mend."""

import inspect
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm import SamplingParams, entrypoints
from vllm.config import ModelConfig
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX
from vllm.exceptions import VLLMValidationError
from vllm.ray.ray_env import get_env_vars_to_copy
from vllm.sampling_params import RequestOutputKind
from vllm.tracing import SpanAttributes
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.ray_executor import RayDistributedExecutor
from vllm.v1.sample.logits_processor import (
    BUILTIN_LOGITS_PROCESSORS,
    interface,
)
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.sample.logits_processor import interface as v2_interface
from vllm.v1.worker.gpu_worker import Worker as GPUWorker
from vllm.v1.worker.worker_base import WorkerBase

from em_inf.logits_processors.extra_args import MAX_GRAD_STEPS_VARIABLE
from em_inf.logits_processors.processor import EMInfLogitsProcessor
from em_inf.server.cli import PROCESSOR, RAY_VARIABLES, WORKER_EXTENSION, ray_variables
from em_inf.server.requests import REQUEST_MODELS


def test_our_class_satisfies_both_processor_interfaces() -> None:
    assert issubclass(EMInfLogitsProcessor, interface.LogitsProcessor)
    assert issubclass(EMInfLogitsProcessor, v2_interface.LogitsProcessor)
    assert not inspect.isabstract(EMInfLogitsProcessor)


def test_runners_construct_with_different_numbers_of_arguments() -> None:
    v1 = inspect.signature(interface.LogitsProcessor.__init__)
    v2 = inspect.signature(v2_interface.LogitsProcessor.__init__)
    assert list(v1.parameters) == ["self", "vllm_config", "device", "is_pin_memory"]
    assert list(v2.parameters) == ["self", "vllm_config", "req_states"]


def test_batch_update_has_the_parts_that_we_follow() -> None:
    fields = interface.BatchUpdate.__dataclass_fields__
    assert {"removed", "added", "moved"} <= set(fields)
    assert {m.name for m in interface.MoveDirectionality} == {"UNIDIRECTIONAL", "SWAP"}
    assert BUILTIN_LOGITS_PROCESSORS


def test_v2_context_has_the_fields_that_we_read() -> None:
    context = set(v2_interface.LogitsContext.__dataclass_fields__)
    assert {
        "expanded_idx_mapping",
        "idx_mapping_np",
        "pos",
        "seq_lens_upper_bound_np",
    } <= context
    state = set(v2_interface.LogitsProcRequestState.__dataclass_fields__)
    assert {"device", "max_num_reqs", "prompt_len", "prefill_len"} <= state


@pytest.mark.parametrize("client", [AsyncMPClient, DPAsyncMPClient])
def test_engine_clients_can_call_one_engine(client: type) -> None:
    assert inspect.iscoroutinefunction(client._call_utility_async)
    assert "engine" in inspect.signature(client._call_utility_async).parameters
    # Which names the engines there are, `em_inf.server.fetch` reads.
    assert "self.core_engines" in inspect.getsource(client.call_utility_all_async)


def test_choices_of_one_request_have_seeds_that_count_up() -> None:
    params = SamplingParams(n=3, seed=7, output_kind=RequestOutputKind.FINAL_ONLY)
    params.extra_args = {"em_inf": {"key": "k"}}

    parent = ParentRequest(
        SimpleNamespace(request_id="r", external_req_id="r", params=params)
    )
    children = [parent.get_child_info(i)[1] for i in range(3)]
    assert [child.seed for child in children] == [7, 8, 9]
    assert all(child.extra_args == params.extra_args for child in children)


def test_validation_errors_carry_the_field_to_the_answer() -> None:
    error = VLLMValidationError("text", parameter="em_inf.threshold")
    assert error.parameter == "em_inf.threshold"
    assert not isinstance(error, ValueError), "pydantic would wrap it"


@pytest.mark.parametrize("path", list(REQUEST_MODELS)[:3])
def test_request_models_turn_themselves_into_sampling_parameters(path: str) -> None:
    assert callable(REQUEST_MODELS[path].to_sampling_params)  # type: ignore[attr-defined]


def test_engine_client_says_what_the_servers_logprobs_are() -> None:
    assert "model_config" in EngineClient.__annotations__
    assert {"logprobs_mode", "max_logprobs"} <= ModelConfig.__dataclass_fields__.keys()


def test_key_does_not_guard_the_playground() -> None:
    assert "/v1" in GUARDED_PREFIX
    assert not "/playground".startswith(GUARDED_PREFIX)


def test_serve_is_a_subcommand_that_can_be_extended() -> None:
    assert {"subparser_init", "validate", "cmd"} <= set(dir(ServeSubcommand))


def test_ray_workers_are_given_the_operators_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(RAY_VARIABLES, "MINE, ")
    monkeypatch.setenv(RAY_VARIABLES, ray_variables(os.environ))
    monkeypatch.setenv("VLLM_PLUGINS", "em_inf")
    names = get_env_vars_to_copy()
    assert {"MINE", MAX_GRAD_STEPS_VARIABLE, "VLLM_PLUGINS"} <= names


def test_workers_find_our_classes_by_name_and_nothing_of_theirs_is_hidden() -> None:
    # What a worker on another machine does, be it started by Ray or by vLLM.
    extension = resolve_obj_by_qualname(WORKER_EXTENSION)
    module, _, name = PROCESSOR.partition(":")
    assert resolve_obj_by_qualname(f"{module}.{name}") is EMInfLogitsProcessor
    added = {attribute for attribute in dir(extension) if not attribute.startswith("__")}
    assert added == {"em_inf_pop", "em_inf_status"}
    assert not added & {*dir(WorkerBase), *dir(CPUWorker), *dir(GPUWorker)}


def test_ray_and_plain_executors_answer_a_call_once_for_each_worker() -> None:
    for executor in (RayDistributedExecutor, MultiprocExecutor):
        parameters = list(inspect.signature(executor.collective_rpc).parameters)
        assert parameters[1:5] == ["method", "timeout", "args", "kwargs"]


def test_request_spans_carry_the_id_that_generate_was_given() -> None:
    assert SpanAttributes.GEN_AI_REQUEST_ID == "gen_ai.request.id"
    source = inspect.getsource(OutputProcessor.do_tracing)
    assert "GEN_AI_REQUEST_ID: req_state.external_req_id" in source


def test_every_engine_request_of_vllms_server_goes_through_a_handlers_engine_client() -> (
    None
):
    # `server/plugin.py: holders` replaces it there. A new file wants a look: where does
    # its client come from, and is its route one that takes or refuses `em_inf`?
    root = Path(entrypoints.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "engine_client.generate(" in path.read_text()
    }
    assert found <= {
        "generate/beam_search/online.py",
        "generate/label_reads.py",
        "openai/chat_completion/batch_serving.py",
        "openai/chat_completion/serving.py",
        "openai/completion/serving.py",
        "openai/responses/serving.py",
        "scale_out/token_in_token_out/serving.py",
        "speech_to_text/base/serving.py",
        "speech_to_text/realtime/connection.py",
    }
