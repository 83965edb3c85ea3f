"""A check that does not trust our own code path.

For served answers with a trace, the entropies before and after of every token are
computed again: logits by a plain transformers forward pass of the same model over the
same token ids, then the authors' algorithm by autograd and torch.optim.Adam.
"""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_inf.server.cli import DEMO_MODEL
from tests.e2e.serving import QUESTION, Server
from tests.logits_processors import autograd_oracle


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


def logits_of(model: Any, answer: Any) -> torch.Tensor:
    """[T, V] float32: the logits that each output token was sampled from."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_dict=False,
    )
    output = answer["choices"][0]["token_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output])).logits[0]
    return logits[len(prompt) - 1 : -1].clone()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_grad_steps": 15},
        {"n_grad_steps": 9, "learning_rate": 0.3, "threshold": 0.05, "kl_weight": 0.5},
        "paper",
    ],
    ids=["default", "strong", "far from default", "paper"],
)
def test_trace_agrees_with_transformers_and_autograd(
    server: Server, model: Any, settings: Any
) -> None:
    if isinstance(settings, str):
        settings = {"preset": settings}
    answer = server.chat(
        {**settings, "report": "trace"}, temperature=1.2, seed=21, return_token_ids=True
    ).json
    used = answer["em_inf"]["settings"]
    trace = answer["em_inf"]["choices"][0]["trace"]
    rows = logits_of(model, answer)
    assert len(rows) == len(trace["grad_steps"])
    assert sum(trace["grad_steps"]) > 0
    for i, row in enumerate(rows):
        oracle = autograd_oracle.em_inf(
            row,
            used["n_grad_steps"],
            used["learning_rate"],
            used["threshold"],
            used["kl_weight"],
        )
        before, after = oracle.entropies[0], oracle.entropies[-1]
        assert trace["entropy_before"][i] == pytest.approx(before, abs=1e-3)
        assert trace["entropy_after"][i] == pytest.approx(after, abs=1e-3)
        assert trace["grad_steps"][i] == oracle.steps


def test_adaptive_trace_agrees_with_transformers_and_bisection(
    server: Server, model: Any
) -> None:
    settings = {"preset": "adaptive", "report": "trace"}
    answer = server.chat(settings, temperature=1.2, seed=22, return_token_ids=True).json
    trace = answer["em_inf"]["choices"][0]["trace"]
    touched = 0
    for i, row in enumerate(logits_of(model, answer)):
        before = float(autograd_oracle.entropy_of(row))
        target = max(0.5 * before, 0.3) if before > 0.3 else before
        temperature = autograd_oracle.temperature_for(row, target)
        touched += temperature < 1
        assert trace["entropy_before"][i] == pytest.approx(before, abs=1e-3)
        assert trace["entropy_after"][i] == pytest.approx(target, abs=1e-3)
        assert trace["temperature"][i] == pytest.approx(temperature, abs=5e-3)
    assert touched > 0
