"""Train the bundled demo model from scratch: `python -m em_inf.server.demo_model.train`.

A Qwen2-architecture decoder of about 0.9 million parameters learns the solutions of
`problems.py` (training split only). Everything random is seeded; on one machine with one
thread count the same weights come out again. Writes config, weights, tokenizer, chat
template and generation config into `--out` (this folder unless told).
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from em_inf.server.demo_model.problems import extract_answer, problems

HERE = Path(__file__).parent
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB_SIZE = 512
MAX_POSITIONS = 1024
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Think step by step.",
    "Solve the problem.",
)
IGNORED = -100  # the label that cross entropy leaves out


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training text: any text encodes, each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = itertools.islice(problems("train", seed), 5000)
    text = [*SYSTEM_PROMPTS, "system\n", "user\n", "assistant\n"] * 500
    text += [part for p in corpus for part in (p.question, p.solution)]
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=(HERE / "chat_template.jinja").read_text(),
        model_max_length=MAX_POSITIONS,
    )


def conversations(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Endless (token ids, labels); only the assistant's words are to be learnt.

    One conversation holds one or two problems, and sometimes a system message, so that a
    chat of several turns looks to the model like its training data.
    """
    rng = random.Random(seed + 1)
    stream = problems("train", seed + 2)
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in (TURN_START, TURN_END))
    newline = tokenizer.encode("\n", add_special_tokens=False)

    def turn(role: str, text: str) -> tuple[list[int], list[int]]:
        head = [start, *tokenizer.encode(f"{role}\n", add_special_tokens=False)]
        body = [*tokenizer.encode(text, add_special_tokens=False), end]
        hidden = [IGNORED] * len(body) if role != "assistant" else body
        labels = [IGNORED] * len(head) + hidden + [IGNORED] * len(newline)
        return head + body + newline, labels

    while True:
        ids: list[int] = []
        labels: list[int] = []
        turns = []
        if rng.random() < 0.1:
            turns.append(("system", rng.choice(SYSTEM_PROMPTS)))
        for problem in itertools.islice(stream, rng.choice((1, 1, 1, 2))):
            turns += [("user", problem.question), ("assistant", problem.solution)]
        for role, text in turns:
            more_ids, more_labels = turn(role, text)
            ids += more_ids
            labels += more_labels
        yield ids, labels


def batches(
    stream: Iterator[tuple[list[int], list[int]]], size: int, pad: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input ids, labels), each [size, T] int64, padded on the right.

    Eight batches are drawn at a time and sorted by length, so that little is padding.
    With causal attention no real token sees the padding behind it: no mask is needed.
    """
    while True:
        drawn = sorted(itertools.islice(stream, size * 8), key=lambda pair: len(pair[0]))
        groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        random.Random(len(drawn[0][0])).shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in group])
            labels = torch.tensor([y + [IGNORED] * (width - len(y)) for _, y in group])
            yield ids, labels


@torch.inference_mode()
def quick_accuracy(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    temperature: float,
    count: int = 200,
) -> float:
    """Share of held-out problems answered right; a look on the way, not the card."""
    model.eval()
    asked = list(itertools.islice(problems("held_out", 17), count))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for p in asked
    ]
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature
        else {"do_sample": False}
    )
    output = model.generate(
        **{k: inputs[k] for k in ("input_ids", "attention_mask")},
        max_new_tokens=160,
        **sampling,
    )
    texts = tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    model.train()
    right = sum(extract_answer(t) == p.answer for t, p in zip(texts, asked, strict=True))
    return right / count


def main() -> None:
    """Train, report on the way, and write the model's files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=20250521)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=250)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    stream = batches(
        conversations(tokenizer, args.seed), args.batch_size, tokenizer.pad_token_id
    )
    model.train()
    began = time.monotonic()
    for step, (ids, labels) in enumerate(itertools.islice(stream, args.steps), 1):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            seconds = time.monotonic() - began
            print(f"step {step}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
        if step % args.report_every == 0 or step == args.steps:
            greedy, sampled = (quick_accuracy(model, tokenizer, t) for t in (0.0, 1.0))
            print(f"step {step}  greedy {greedy:.3f}  T=1 {sampled:.3f}", flush=True)
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
