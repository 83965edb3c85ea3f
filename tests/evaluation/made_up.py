"""A made-up run: answers drawn by seed, so that every figure is known beforehand."""

import numpy as np

from em_inf.evaluation.records import (
    Answer,
    Call,
    DecoderRecord,
    Problem,
    Run,
    TracedAnswer,
    TracedToken,
    Verdict,
)

REQUESTS = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "em_inf(n_grad_steps=5)": {"temperature": 0.7, "em_inf": {"n_grad_steps": 5}},
    "em_inf(n_grad_steps=15)": {"temperature": 0.7, "em_inf": {"n_grad_steps": 15}},
    "self_consistency(n=4)": {"temperature": 0.7},
}


def call(decoder: str, problem: str, sample: int, part: int, text: str, **other) -> Call:
    fields = {
        "seed": 7, "finish_reason": "stop", "prompt_tokens": 12, "tokens": 20,
        "tokens_minimized": 5, "grad_steps": 15, "entropy_before": 0.4,
        "entropy_after": 0.3, "seconds": 0.5, "tries": 1, **other,
    }  # fmt: skip
    return Call(decoder, problem, sample, part, text=text, **fields)


def answer(decoder: str, problem: str, right: bool, sample=0, calls=1, **other) -> Answer:
    text = f"The answer is {problem[1:] if right else -1}."
    made = tuple(
        call(decoder, problem, sample, part, text, **other) for part in range(calls)
    )
    verdict = Verdict("right" if right else "wrong", problem[1:] if right else "-1")
    return Answer(decoder, problem, sample, text, verdict, made)


def run_of(answers, baseline="greedy", samples=1, problems=None, **other) -> Run:
    names = list(dict.fromkeys(given.decoder for given in answers))
    ids = problems or list(dict.fromkeys(given.problem for given in answers))
    decoders = tuple(
        DecoderRecord(name, name.partition("(")[0], REQUESTS.get(name, {}), seconds=10.0)
        for name in names
    )
    fields = {
        "task": "arithmetic", "grader": "numeric", "url": "http://localhost:8000",
        "command": "em-inf eval arithmetic --seed 3", "model": "demo",
        "server": {"version": "0.1.0", "runner": "v1"}, "versions": {"em-inf": "0.1.0"},
        "seed": 3, "concurrency": 8, "started": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T00:01:00Z", "sampling": {"max_tokens": 64}, **other,
    }  # fmt: skip
    return Run(
        **{"decoders": decoders, **fields},
        samples=samples,
        baseline=baseline,
        problems=tuple(
            Problem(
                name, ({"role": "user", "content": f"How much is {name}?"},), name[1:]
            )
            for name in ids
        ),
        answers=tuple(answers),
    )


def drawn_run(shares=None, questions=200, samples=1, seed=0, **other) -> Run:
    """Each decoder is right with its share, every question alike."""
    shares = shares or dict(zip(REQUESTS, (0.7, 0.62, 0.68, 0.71, 0.85), strict=True))
    random = np.random.default_rng(seed)
    answers = []
    for decoder, share in shares.items():
        calls = 4 if decoder.startswith("self") else 1
        for question in range(questions):
            for sample in range(samples):
                right = bool(random.random() < share)
                answers.append(answer(decoder, f"q{question}", right, sample, calls))
    return run_of(answers, samples=samples, **other)


def traced(run: Run, answer: Answer, same_text=True) -> TracedAnswer:
    """Word by word, with entropies that grow from 0 nats to 2.4."""
    words = answer.text.split(" ")
    tokens = tuple(
        TracedToken(word + " ", 0.6 * place, 0.5 * place)
        for place, word in enumerate(words)
    )
    return TracedAnswer(answer.decoder, answer.problem, answer.sample, tokens, same_text)
