"""The text encoder and its tokenizer give the same results as transformers'."""

import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.checkpoints.transformers_model import read_transformers_model
from musicgen.conditioning.conditioner import TextEncoder
from musicgen.conditioning.t5 import T5Encoder
from musicgen.errors import WeightsError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(ours, transformers') of a random T5 with weights of a realistic size."""
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = T5EncoderModel(config).eval()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    reference.save_pretrained(folder)
    return T5Encoder(read_transformers_model(folder), CPU), reference


@pytest.mark.parametrize("length", [1, 2, 9, 40, 300, 512])
def test_embeddings_equal_transformers(pair, length):
    """The longest prompt uses every bucket of distances, including the last."""
    ours, reference = pair
    tokens = torch.randint(50, (length,), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = reference(tokens[None]).last_hidden_state[0]
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompt", ["lofi chill, 80 bpm", "a", "🎹 ピアノ ß", "  two   spaces "])
def test_tokens_equal_transformers(checkpoints, prompt):
    checkpoint = open_checkpoint(checkpoints["text"])
    reference = T5Tokenizer.from_pretrained(checkpoint.text_folder)
    ours = TextEncoder(checkpoint, CPU).tokenize
    assert ours(prompt) == reference(prompt).input_ids


def test_the_unconditional_embedding_is_as_long_as_a_padded_prompt(checkpoints, tmp_path):
    """For a model that was trained on padded prompts, the music starts at the same position."""
    encoder = TextEncoder(open_checkpoint(checkpoints["text"]), CPU)
    assert encoder(None).shape == encoder("").shape == (1, encoder.projection.out_features)
    shutil.copytree(checkpoints["text"], tmp_path / "padded")
    path = str(tmp_path / "padded" / "t5-base" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_padding(length=24)
    tokenizer.save(path)
    padded = TextEncoder(open_checkpoint(tmp_path / "padded"), CPU)
    assert padded(None).shape == padded("").shape == padded("lofi").shape
    assert not padded(None).any()


def test_another_t5_is_refused_and_a_missing_weight_is_named(pair, checkpoints, tmp_path):
    saved = read_transformers_model(open_checkpoint(checkpoints["text"]).text_folder)
    gated = replace(saved, config={**saved.config, "feed_forward_proj": "gated-gelu"})
    with pytest.raises(WeightsError, match="feed_forward_proj='gated-gelu'"):
        T5Encoder(gated, CPU)
    state = {key: value for key, value in saved.state.items() if "block.1.layer.1" not in key}
    with pytest.raises(WeightsError, match=r"has no encoder\.block\.1\.layer\.1"):
        T5Encoder(replace(saved, state=state), CPU)
