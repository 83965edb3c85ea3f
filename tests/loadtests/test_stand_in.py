from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_inf.loadtests.stand_in import decode_entropies, make_stand_in, make_tokenizer

VOCAB_SIZE = 5000


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("stand-in")
    make_stand_in(folder, vocab_size=VOCAB_SIZE, hidden_size=128, num_layers=1)
    return folder


def test_transformers_loads_it_with_the_vocabulary_asked_for(stand_in: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stand_in)
    assert model.lm_head.weight.shape == (VOCAB_SIZE, 128)
    assert model.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(stand_in)) == VOCAB_SIZE


def test_entropies_are_a_mix_as_language_models_have_it(stand_in: Path) -> None:
    entropies = decode_entropies(stand_in, num_prompts=32, num_tokens=16)
    touched = float((entropies > 0.3).float().mean())
    assert 0.2 < touched < 0.7
    assert float(entropies.quantile(0.2)) < 0.1
    assert 1.0 < float(entropies.max()) < 5.0


def test_same_seed_makes_the_same_model(stand_in: Path, tmp_path: Path) -> None:
    make_stand_in(tmp_path, vocab_size=VOCAB_SIZE, hidden_size=128, num_layers=1)
    first, again = (
        (folder / "model.safetensors").read_bytes() for folder in (stand_in, tmp_path)
    )
    assert first == again


@pytest.mark.parametrize("vocab_size", [259, 300, 20000])
def test_tokenizer_has_exactly_the_tokens_asked_for(vocab_size: int) -> None:
    assert len(make_tokenizer(vocab_size)) == vocab_size


def test_any_text_survives_the_tokenizer(stand_in: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stand_in)
    text = "Tom has 34 apples, naïve ≠ 東京\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_marks_turns_with_single_tokens(stand_in: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stand_in)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("sizes", [{"vocab_size": 258}, {"hidden_size": 100}])
def test_impossible_sizes_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make_stand_in(tmp_path, **sizes)
