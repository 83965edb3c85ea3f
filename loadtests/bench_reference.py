r"""Our server beside the authors' way of running EM-INF, on the bundled model.

    python -m em_inf.loadtests.bench_reference --seconds 180 \
        --out loadtests/results/reference-cpu.json

The authors' way, written afresh from the paper and what is known of their code: the
`generate` of transformers, one prompt after another, with a logits processor that runs
autograd and torch's Adam for each token. Our server, as `em-inf serve` runs that model,
has `--at-once` of the prompts under way over HTTP, and answers each in one piece.

Both use the same model, prompts, settings (n 5), temperature 1.0 and longest answer, and
stop at the end of the answer. Each round has all prompts on the server and then a few of
them the authors' way, in turn; ratios are taken within a round. While the authors' way
runs, the server's processes are stopped (SIGSTOP). It has all cores and torch as many
threads as `--threads` says; one was the fastest here.

Refuses to report where a request failed, or where greedy decoding does not bring the same
words and the same number of gradient steps both ways for nearly all prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)

from em_inf.loadtests.client import RequestFailedError, ask_plainly, connection
from em_inf.loadtests.environment import where_it_ran
from em_inf.loadtests.ratios import Ratio, paired_ratio, spread
from em_inf.loadtests.serving import (
    EM_INF,
    FLAGS,
    ServerFailedError,
    Serving,
    leave_no_server_behind,
    serving,
)
from em_inf.server.cli import DEMO_MODEL, DEMO_MODEL_NAME
from em_inf.server.demo_model.problems import problems

N_GRAD_STEPS, LEARNING_RATE, THRESHOLD, KL_WEIGHT = 5, 0.1, 0.3, 0.001
ENTROPY_PAD = 1e-12
NEARLY_ALL = 0.9
"""Share of prompts that greedy decoding must answer alike; float ties may part some."""

FEWEST_ROUNDS = 3
BAR, AIM = 20.0, 50.0


class AuthorsProcessor(LogitsProcessor):
    """EM-INF on one prompt's logits by autograd and Adam, afresh for each token.

    Attributes:
        grad_steps: taken so far.

    Source: arXiv 2505.15134, section 4 and Algorithm 1.
    """

    def __init__(self) -> None:
        self.grad_steps = 0

    @torch.enable_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Lower the entropy of [1, V] logits."""
        z = scores.detach().float().clone().requires_grad_(True)
        first = torch.softmax(z, dim=-1).detach()
        adam = torch.optim.Adam([z], lr=LEARNING_RATE)
        for _ in range(N_GRAD_STEPS):
            p = torch.softmax(z, dim=-1)
            entropy = -(p * torch.log(p + ENTROPY_PAD)).sum()
            if entropy < THRESHOLD:
                break
            log_p = torch.log_softmax(z, dim=-1)
            pull = torch.nn.functional.kl_div(log_p, first, reduction="batchmean")
            adam.zero_grad()
            (entropy + KL_WEIGHT * pull).backward()
            adam.step()
            self.grad_steps += 1
        return z.detach()


class AuthorsWay:
    """transformers' `generate` on the bundled model, a prompt at a time."""

    def __init__(self) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(
            DEMO_MODEL, dtype=torch.float32
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)

    def answer(self, question: str, tokens: int, greedy: bool) -> tuple[str, int, int]:
        """Its words, output tokens, and gradient steps."""
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        processor = AuthorsProcessor()
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
        out = self._model.generate(
            **prompt,
            **sampling,
            max_new_tokens=tokens,
            logits_processor=LogitsProcessorList([processor]),
        )
        ids = out[0, prompt["input_ids"].shape[1] :]
        words = self._tokenizer.decode(ids, skip_special_tokens=True)
        return words, len(ids), processor.grad_steps


def ask_server(
    server: Serving, questions: list[str], at_once: int, tokens: int, temperature: float
) -> tuple[list[dict[str, Any]], float]:
    """Some questions at a time, the next when one is answered.

    Returns:
        The answers' bodies, and the seconds that they took together.
    """
    bodies: list[dict[str, Any]] = [
        {
            "model": DEMO_MODEL_NAME,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": temperature,
            "em_inf": {
                "n_grad_steps": N_GRAD_STEPS,
                "learning_rate": LEARNING_RATE,
                "threshold": THRESHOLD,
                "kl_weight": KL_WEIGHT,
            },
        }
        for question in questions
    ]

    async def closed_loop() -> tuple[list[dict[str, Any]], float]:
        async with connection(at_once) as session:
            began = time.perf_counter()
            asked = (ask_plainly(session, server.url, body) for body in bodies)
            return await asyncio.gather(*asked), time.perf_counter() - began

    return asyncio.run(closed_loop())


def same_greedily(
    server: Serving, authors: AuthorsWay, questions: list[str], tokens: int
) -> dict[str, Any]:
    """How many prompts greedy decoding answers alike, in words and in gradient steps.

    The server has them all at once.
    """
    answers, _ = ask_server(server, questions, len(questions), tokens, 0.0)
    words = steps = 0
    for question, ours in zip(questions, answers, strict=True):
        theirs, _, grad_steps = authors.answer(question, tokens, greedy=True)
        words += ours["choices"][0]["message"]["content"] == theirs
        (figures,) = ours["em_inf"]["choices"]
        steps += figures["grad_steps"] == grad_steps
    return {"prompts": len(questions), "same_words": words, "same_grad_steps": steps}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start the server, check, measure.

    Raises:
        RequestFailedError: a request failed.
        ServerFailedError: the server did not start.
    """
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    about = where_it_ran(
        "em_inf.loadtests.bench_reference", threads=args.threads, flags=list(FLAGS)
    )
    authors = AuthorsWay()
    found = itertools.islice(problems("held_out", 11), args.prompts)
    questions = [problem.question for problem in found]
    ours: dict[str, list[float]] = {"tokens_per_second": [], "answers_per_minute": []}
    theirs: dict[str, list[float]] = {"tokens_per_second": [], "answers_per_minute": []}
    with serving(EM_INF, None, DEMO_MODEL_NAME) as server:
        check = same_greedily(server, authors, questions[: args.at_once], args.tokens)
        print(f"greedy, both ways: {check}", flush=True)
        alike = min(check["same_words"], check["same_grad_steps"])
        if alike < NEARLY_ALL * check["prompts"]:
            sys.exit(f"nothing to report: the two ways differ: {check}")
        began = time.perf_counter()
        for i in range(args.rounds):
            server.go_on()
            ask_server(server, questions[:1], 1, 2, 1.0)  # Warm.
            answers, seconds = ask_server(
                server, questions, args.at_once, args.tokens, 1.0
            )
            counts = [answer["usage"]["completion_tokens"] for answer in answers]
            keep(ours, counts, seconds)
            server.stand_still()
            some = [
                questions[(i * args.some + j) % args.prompts] for j in range(args.some)
            ]
            start = time.perf_counter()
            counts = [authors.answer(q, args.tokens, greedy=False)[1] for q in some]
            keep(theirs, counts, time.perf_counter() - start)
            late = time.perf_counter() - began > args.seconds
            if late and i + 1 >= min(FEWEST_ROUNDS, args.rounds):
                break
    ratios = {name: paired_ratio(ours[name], theirs[name]) for name in ours}
    for name, ratio in ratios.items():
        print(f"{name}: our server {spread(ours[name])}")
        print(f"{name}: the authors' way {spread(theirs[name])}")
        print(f"{name}: ratio {ratio}, {ratio.rounds} rounds; {verdict(ratio)}")
    return {
        "about": about,
        "prompts": args.prompts,
        "prompts_at_once": args.at_once,
        "greedy_check": check,
        "ours": {name: spread(values) for name, values in ours.items()},
        "authors": {name: spread(values) for name, values in theirs.items()},
        "ratios": {name: ratio.as_json() for name, ratio in ratios.items()},
    }


def keep(figures: dict[str, list[float]], counts: list[int], seconds: float) -> None:
    """Add one round's tokens a second and answers a minute."""
    figures["tokens_per_second"].append(sum(counts) / seconds)
    figures["answers_per_minute"].append(len(counts) / seconds * 60)


def verdict(ratio: Ratio) -> str:
    """A measured ratio beside what is asked of it."""
    met = "met" if ratio.median >= BAR else "MISSED"
    reached = "reached" if ratio.median >= AIM else "not reached"
    return f"at least {BAR:g}: {met}; aim {AIM:g}: {reached}"


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=256, help="a round, our server")
    parser.add_argument("--at-once", type=int, default=32, help="of them, our server")
    parser.add_argument("--some", type=int, default=4, help="a round, the authors' way")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=100, help="at most")
    parser.add_argument("--seconds", type=float, default=180, help="no new round after")
    parser.add_argument("--threads", type=int, default=1, help="of torch, authors' way")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name in ("prompts", "at_once", "some", "tokens", "rounds", "threads"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} is {getattr(args, name)}, allowed is 1 or more")
    leave_no_server_behind()
    try:
        report = run(args)
    except (RequestFailedError, ServerFailedError) as error:
        sys.exit(f"nothing to report: {error}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
