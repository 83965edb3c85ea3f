"""Runs the scenarios of one runner in this process and writes down what came out.

    python scenarios.py MODEL OUTPUT.json

The runner is chosen by the environment, as `conftest.py` sets it. Starting an engine is
slow, so every scenario of one engine configuration runs in the same engine, and every
engine in this one process. What a scenario must have given is not said here, but in
`test_runners.py`.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import StructuredOutputsParams

import em_inf.logits_processors.minimize
from em_inf.logits_processors.extra_args import EXTRA_ARGS_KEY, to_extra_args
from em_inf.logits_processors.figures import Figures
from em_inf.logits_processors.settings import Settings

FAILING_POSITION = 3
PUSHED_BUT_BANNED_TOKEN = 40
MIN_TOKENS = 4
NUM_CHARACTER_TOKENS = 64
"""The first tokens of a byte-level vocabulary are printable ASCII characters."""

PROCESSOR = "em_inf.logits_processors.processor:EMInfLogitsProcessor"
WORKER_EXTENSION = "em_inf.logits_processors.recorder.EMInfWorkerExtension"

ROOMY: Mapping[str, Any] = {
    "max_num_seqs": 12,
    # A small model would rather write spaces than the JSON object that is asked of it.
    "structured_outputs_config": {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    },
}
# Four requests of up to two blocks do not fit together, and a long prompt needs steps.
TIGHT: Mapping[str, Any] = {
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "num_gpu_blocks_override": 5,
}
SPECULATIVE: Mapping[str, Any] = {
    "max_num_seqs": 4,
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    },
}

MIXED_SETTINGS: tuple[Settings | None, ...] = (
    Settings(n_grad_steps=1, threshold=0),
    Settings(n_grad_steps=3, kl_weight=0.05),
    Settings(),
    Settings(n_grad_steps=7, learning_rate=0.3, threshold=0.1),
    Settings(n_grad_steps=10, threshold=0, kl_weight=0),
    Settings(n_grad_steps=15, threshold=0.05, report="trace"),
    Settings(method="adaptive_temperature", threshold=0.1),
    Settings(method="adaptive_temperature", target_ratio=0.9, threshold=0),
    Settings(n_grad_steps=4, report="none"),
    Settings(n_grad_steps=0),
    None,
    None,
)


@dataclass(frozen=True)
class Ask:
    """One request: a prompt of token ids, its settings and how to sample.

    It is greedy, and stops at no end-of-text token, unless `sampling` says otherwise.
    """

    prompt: list[int]
    max_tokens: int = 8
    settings: Settings | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def sampling_params(self, key: str) -> SamplingParams:
        """What vLLM gets; `key` names the figures."""
        given = {"temperature": 0.0, "ignore_eos": True, **self.sampling}
        if self.settings is not None:
            travelling = to_extra_args(self.settings, key)
            given["extra_args"] = {EXTRA_ARGS_KEY: travelling}
        return SamplingParams(max_tokens=self.max_tokens, **given)


class Tripwire:
    """Hands calls on to `minimize_entropy_`, and fails on one of them when told to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls_before_failure: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.calls_before_failure is not None:
            self.calls_before_failure -= 1
            if self.calls_before_failure < 0:
                self.calls_before_failure = None
                raise RuntimeError("the tripwire of the engine tests")
        return self._function(*args, **kwargs)


def prompt_of(length: int, seed: int, vocab_size: int) -> list[int]:
    """Arbitrary token ids, none of them special."""
    return random.Random(seed).choices(range(8, vocab_size), k=length)


@contextmanager
def engine(model: str, **options: Any) -> Iterator[LLM]:
    """A vLLM engine in this process, taken down afterwards."""
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        seed=0,
        block_size=32,
        max_model_len=96,
        logprobs_mode="processed_logprobs",
        disable_log_stats=False,
        **options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def em_inf_engine(model: str, **options: Any) -> Any:
    """An engine with EM-INF loaded the way `em-inf serve` loads it."""
    return engine(
        model,
        logits_processors=[PROCESSOR],
        worker_extension_cls=WORKER_EXTENSION,
        **options,
    )


def run(llm: LLM, asks: Sequence[Ask]) -> dict[str, Any]:
    """Give the engine all requests at once; returns answers and EM-INF's errors."""
    keys = [f"request-{i}" for i in range(len(asks))]
    outputs = llm.generate(
        [{"prompt_token_ids": ask.prompt} for ask in asks],
        [ask.sampling_params(key) for ask, key in zip(asks, keys, strict=True)],
        use_tqdm=False,
    )
    popped: dict[str, Any] = {"figures": {}, "errors": {}}
    if llm.llm_engine.vllm_config.model_config.logits_processors:
        (popped,) = llm.collective_rpc("em_inf_pop", args=(keys,))
    answers = []
    for ask, key, output in zip(asks, keys, outputs, strict=True):
        answers.append(
            {
                "prompt": ask.prompt,
                "settings": ask.settings and ask.settings.model_dump(),
                "choices": [
                    {
                        "token_ids": list(choice.token_ids),
                        "text": choice.text,
                        "finish_reason": choice.finish_reason,
                        "logprobs": choice.logprobs
                        and [
                            at[token].logprob
                            for at, token in zip(
                                choice.logprobs, choice.token_ids, strict=True
                            )
                        ],
                    }
                    for choice in output.outputs
                ],
                "figures": _columns(popped["figures"].get(key)),
            }
        )
    return {"answers": answers, "errors": popped["errors"]}


def _columns(figures: bytes | None) -> list[list[float]] | None:
    return None if figures is None else Figures.from_bytes(figures).table.tolist()


def run_alone(llm: LLM, asks: Sequence[Ask]) -> dict[str, Any]:
    """Like `run`, but each request has the engine to itself."""
    runs = [run(llm, [ask]) for ask in asks]
    errors: dict[str, int] = {}
    for one in runs:
        errors.update(one["errors"])
    answers = [answer for one in runs for answer in one["answers"]]
    return {"answers": answers, "errors": errors}


def counters(llm: LLM) -> dict[str, int]:
    """vLLM's counters, those with one value for the engine, by name."""
    return {m.name: m.value for m in llm.get_metrics() if type(m).__name__ == "Counter"}


def counted(llm: LLM, name: str, asks: Sequence[Ask]) -> dict[str, Any]:
    """Like `run`, with what vLLM's counters whose name holds `name` have grown by."""
    before = counters(llm)
    result = run(llm, asks)
    grown = {k: v - before.get(k, 0) for k, v in counters(llm).items() if name in k}
    return {**result, "counters": grown}


class Asks:
    """The requests of each scenario."""

    def __init__(self, vocab_size: int) -> None:
        def prompt(length: int, seed: int) -> list[int]:
            return prompt_of(length, seed, vocab_size)

        self.greedy = [
            Ask(prompt(3 + i, i), settings=Settings(), sampling={"logprobs": 0})
            for i in range(4)
        ]
        self.greedy_off = [replace(ask, settings=None) for ask in self.greedy]
        self.mixed = [
            Ask(prompt(4 + i % 5, 100 + i), 6, settings, sampling={"logprobs": 0})
            for i, settings in enumerate(MIXED_SETTINGS)
        ]
        seeded = {"temperature": 1.0, "seed": 11, "logprobs": 0}
        self.mixed[-1] = replace(self.mixed[-1], sampling=seeded)
        self.mixed_off = [replace(ask, settings=None) for ask in self.mixed]
        settings = (*MIXED_SETTINGS[:8], None)
        self.slots = [
            Ask(
                prompt(2 + 5 * i % 23, 200 + i),
                max_tokens=1 + 3 * i % 7,
                settings=settings[i % len(settings)],
            )
            for i in range(24)
        ]
        self.crowd = [
            Ask(prompt(28 + i, 300 + i), max_tokens=10, settings=MIXED_SETTINGS[2 + i])
            for i in range(4)
        ]
        self.long_prompts = [
            Ask(prompt(90, 400), max_tokens=6, settings=Settings(threshold=0.05)),
            Ask(prompt(64, 401), max_tokens=6, settings=MIXED_SETTINGS[7]),
        ]
        few = [40, 50, 60]
        only_few = {"allowed_token_ids": few}
        # More than fit at a time: the last ones, one without EM-INF, get used slots.
        self.repetitive = [
            Ask(few * 3, 12, Settings(threshold=0), sampling=only_few),
            Ask(prompt(5, 500) * 2, 8, MIXED_SETTINGS[6]),
            Ask(prompt(7, 501), 6, MIXED_SETTINGS[5]),
            Ask(prompt(6, 502) * 2, 7),
            Ask(prompt(6, 503) * 2, 6, sampling={"logprobs": 0}),
            Ask(prompt(6, 504) * 2, 6, MIXED_SETTINGS[4], sampling={"logprobs": 0}),
        ]
        # As the engine client asks for the choices of one request with a seed.
        self.choices = [
            Ask(
                prompt(5, 600),
                settings=Settings(threshold=0.05),
                sampling={"seed": seed, "temperature": 2.0},
            )
            for seed in (41, 42, 43)
        ]
        eager = Settings(threshold=0, n_grad_steps=3)

        def constrained(seed: int, **grammar: Any) -> Ask:
            params = StructuredOutputsParams(**grammar)
            stop = {"ignore_eos": False, "structured_outputs": params}
            # Whole characters, else the end of the prompt runs into the text.
            characters = prompt_of(5, seed, NUM_CHARACTER_TOKENS)
            return Ask(characters, 24, eager, sampling=stop)

        schema = {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
        self.constrained = [
            constrained(700, regex="[a-c]{3}-[0-9]{2}"),
            constrained(701, json=schema),
        ]


def everything_at_once(llm: LLM, vocab_size: int) -> Ask:
    """A request with a value for each sampling parameter that shapes the logits.

    One token is pushed up but banned, the end-of-text token pushed up further but not
    allowed among the first few.
    """
    tokenizer = llm.get_tokenizer()
    pushed = PUSHED_BUT_BANNED_TOKEN
    return Ask(
        prompt_of(6, 800, vocab_size),
        max_tokens=12,
        settings=Settings(threshold=0, n_grad_steps=4),
        sampling={
            "ignore_eos": False,
            "temperature": 0.8,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.001,
            "seed": 5,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.2,
            "logit_bias": {pushed: 30.0, tokenizer.eos_token_id: 100.0},
            "bad_words": [tokenizer.decode([pushed])],
            "min_tokens": MIN_TOKENS,
        },
    )


def register_kernels_once() -> None:
    """Let only the first engine register vLLM's CPU kernels; that is process-wide.

    vLLM would for each, and it looks for their users in every loaded module, which
    ends in an AttributeError at llvmlite's library object as soon as numba is loaded.
    A server has one engine a process and never gets there.
    """
    once = functools.cache(current_platform.register_triton_kernel_overrides)
    type(current_platform).register_triton_kernel_overrides = staticmethod(once)


def refusal(start: Callable[[], Any]) -> str | None:
    """The text of the ValueError that `start` ends in, None if it does not."""
    try:
        start()
    except ValueError as error:
        return str(error)
    return None


def refused_request(llm: LLM, asks: Sequence[Ask]) -> dict[str, Any]:
    """A request whose settings nobody checked before, then one that is right."""
    wrong = {EXTRA_ARGS_KEY: {"key": "wrong", "n_grad_steps": -1}}
    params = SamplingParams(max_tokens=2, extra_args=wrong)
    try:
        llm.generate({"prompt_token_ids": asks[0].prompt}, params, use_tqdm=False)
        refused = None
    except VLLMValidationError as error:
        refused = str(error)
    return {**run(llm, asks[:1]), "refused": refused}


def main(model: str, output: str) -> None:
    """Run all scenarios of the runner that the environment chooses."""
    v2 = os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    config = json.loads((Path(model) / "config.json").read_text())
    asks = Asks(config["vocab_size"])
    results: dict[str, Any] = {}
    register_kernels_once()

    with engine(model, **ROOMY) as llm:
        results["greedy without"] = run(llm, asks.greedy_off)
        results["mixed without"] = run(llm, asks.mixed_off)

    tripwire = Tripwire(em_inf.logits_processors.minimize.minimize_entropy_)
    em_inf.logits_processors.minimize.minimize_entropy_ = tripwire
    with em_inf_engine(model, **ROOMY) as llm:
        (results["status"],) = llm.collective_rpc("em_inf_status")
        results["greedy"] = run(llm, asks.greedy)
        results["mixed"] = run(llm, asks.mixed)
        results["mixed alone"] = run_alone(llm, asks.mixed)
        results["roomy crowd"] = counted(llm, "num_preemptions", asks.crowd)
        results["whole prompts"] = run(llm, asks.long_prompts)
        results["unspeculated"] = run(llm, asks.repetitive)
        results["choices"] = run(llm, asks.choices)
        results["constrained"] = run(llm, asks.constrained)
        everything = everything_at_once(llm, config["vocab_size"])
        results["everything"] = run(llm, [everything])
        results["end-of-text token"] = llm.get_tokenizer().eos_token_id
        results["banned token"] = PUSHED_BUT_BANNED_TOKEN
        results["min tokens"] = MIN_TOKENS
        results["refused request"] = refused_request(llm, asks.greedy)
        tripwire.calls_before_failure = FAILING_POSITION
        results["failing step"] = run(llm, asks.greedy)
        results["failing position"] = FAILING_POSITION
        results["after failure"] = run(llm, asks.greedy)
        if not v2:
            # A reference for both runners; the interpreter would take a minute for it.
            results["slots alone"] = run_alone(llm, asks.slots)
        (results["last status"],) = llm.collective_rpc("em_inf_status")

    with em_inf_engine(model, **TIGHT) as llm:
        results["slots"] = run(llm, asks.slots)
        results["crowd"] = counted(llm, "num_preemptions", asks.crowd)
        results["chunked prompts"] = run(llm, asks.long_prompts)
        results["token budget"] = (
            llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        )

    speculative = em_inf_engine(model, **SPECULATIVE)
    if v2:
        with speculative as llm:
            results["speculated"] = counted(llm, "spec_decode", asks.repetitive)
    else:
        results["speculation refused"] = refusal(speculative.__enter__)

    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
