"""A stand-in for a real language model: its sizes and entropies, without its weights.

    python -m em_inf.loadtests.stand_in FOLDER

makes it (1.2 GB, well under a minute) and prints the entropies of its own decode steps.
A Qwen2 of 2 layers at the widths of Qwen2.5-0.5B (hidden 896, intermediate 4864, 14
heads, 2 for keys and values) and its vocabulary of 151,936, float32, every weight random
from a fixed seed. The output head is not tied to the embedding, so that the model does
not repeat itself. Two layers of 24 make the forward pass cheaper than that of any real
model of this vocabulary: what is done to the logits shows more here than in service.

The channels of the last norm differ widely in weight, so the scale of the logits differs
from token to token, as in language models; `LOGIT_SCALE` and `SCALE_SPREAD` were set for
that. Over 4,096 decode steps at temperature 1.0 (64 prompts, transformers) the quantiles
of the entropy were 0.0047 nats (25 %), 0.18 (50 %), 0.69 (75 %) and 1.36 (95 %); 43 % of
the steps lay above 0.3. `bench_server` keeps those of its own runs with its results.
"""

from __future__ import annotations

import argparse
import itertools
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 151936
HIDDEN_SIZE = 896
NUM_LAYERS = 2
SEED = 20250521
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SMALLEST_VOCAB = 259
"""Every byte, and the three special tokens."""

EMBEDDING_SCALE = 0.3
"""Standard deviation of the embedding: as large as what two layers add to it."""

LOGIT_SCALE = 26.0
SCALE_SPREAD = 3.0
"""Standard deviations of the logits, and of the log of the last norm's weights."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `vocab_size` tokens: bytes, then strings of letters.

    Raises:
        ValueError: fewer tokens than there are bytes and special tokens.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(
            f"vocab_size is {vocab_size}, allowed is {SMALLEST_VOCAB} or more"
        )
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    longer = itertools.chain.from_iterable(
        itertools.product(string.ascii_lowercase, repeat=length)
        for length in itertools.count(2)
    )
    words = itertools.islice(longer, vocab_size - SMALLEST_VOCAB)
    merges = [("".join(letters[:-1]), letters[-1]) for letters in words]
    tokens += ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
    )


def make_stand_in(
    folder: Path,
    vocab_size: int = VOCAB_SIZE,
    hidden_size: int = HIDDEN_SIZE,
    num_layers: int = NUM_LAYERS,
) -> None:
    """Write the model into a folder in transformers' format.

    Args:
        folder: made where it is missing.
        vocab_size: tokens, 259 at least.
        hidden_size: a multiple of 64.
        num_layers: decoder layers.

    Raises:
        ValueError: a size is not as above.
    """
    if hidden_size % 64 or hidden_size <= 0:
        raise ValueError(f"hidden_size is {hidden_size}, allowed are multiples of 64")
    tokenizer = make_tokenizer(vocab_size)
    heads = hidden_size // 64
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 38 // 7,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=2 if heads % 2 == 0 else 1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=EMBEDDING_SCALE)
        model.lm_head.weight.normal_(std=LOGIT_SCALE / hidden_size**0.5)
        weights = (torch.randn(hidden_size) * SCALE_SPREAD).exp()
        # The mean square is one, so that the head's weights set the logits' scale.
        model.model.norm.weight.copy_(weights / weights.square().mean().sqrt())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def decode_entropies(folder: Path, num_prompts: int, num_tokens: int) -> Tensor:
    """Decode at temperature 1.0 with transformers.

    Returns:
        [num_prompts * num_tokens] float32, the entropy at each step in nats.
    """
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(0, len(tokenizer) - 3, (num_prompts, 8))
    cache, found = None, []
    for _ in range(num_tokens):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        log_p = torch.log_softmax(out.logits[:, -1].float(), dim=1)
        found.append(-(log_p.exp() * log_p).sum(dim=1))
        ids = torch.multinomial(log_p.exp(), 1)
    return torch.cat(found)


def main() -> None:
    """Make it, and measure its entropies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make_stand_in(args.folder)
    entropies = decode_entropies(args.folder, num_prompts=64, num_tokens=64)
    for share in QUANTILES:
        print(f"{share:4.0%} below {float(entropies.quantile(share)):.4f} nats")
    print(f"{float((entropies > 0.3).float().mean()):4.0%} above 0.3 nats")


if __name__ == "__main__":
    main()
