"""A text encoder that was trained with the language model is used, and equals audiocraft's."""

import shutil

import oracle
import pytest
import torch
from packages import change_config, change_package
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE
from musicgen.commands.verify import verify
from musicgen.pipeline import MusicGen

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"
KEY = "condition_provider.conditioners.description.t5."


@pytest.fixture(scope="module")
def tuned(checkpoints, tmp_path_factory):
    """A checkpoint whose state has another text encoder than its folder t5-base."""
    folder = tmp_path_factory.mktemp("tuned") / "text"
    shutil.copytree(checkpoints["text"], folder)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        encoder = T5EncoderModel(T5Config.from_pretrained(folder / "t5-base"))
    state = {f"{KEY}{name}": value.half() for name, value in encoder.state_dict().items()}
    change_package(folder / LM_FILE, lambda package: package["best_state"].update(state))
    change_config(folder / LM_FILE, {"conditioners.description.t5.finetune": True})
    return folder


def test_conditions_equal_audiocrafts(checkpoints, tuned):
    reference = oracle.load(tuned)
    attributes, _ = reference._prepare_tokens_and_attributes([PROMPT], None, None)
    provider = reference.lm.condition_provider
    with torch.no_grad():
        expected, _ = provider(provider.tokenize(attributes))["description"]
    [found] = MusicGen.load(tuned, "cpu").conditioner(PROMPT, None, [0.0])
    assert torch.allclose(found.cross[:1], expected, atol=1e-5)
    [stock] = MusicGen.load(checkpoints["text"], "cpu").conditioner(PROMPT, None, [0.0])
    assert not torch.allclose(found.cross, stock.cross, atol=1e-2)


def test_the_converted_checkpoint_gives_the_same_conditions(tuned, tmp_path):
    convert(tuned, tmp_path / "out")
    assert not [name for name in load_file(tmp_path / "out" / "lm.safetensors") if KEY in name]
    [expected] = MusicGen.load(tuned, "cpu").conditioner(PROMPT, None, [0.0])
    [found] = MusicGen.load(tmp_path / "out", "cpu").conditioner(PROMPT, None, [0.0])
    assert torch.equal(found.cross, expected.cross)
    assert list(verify(tmp_path / "out"))


def test_the_weights_of_the_folder_are_not_needed(tuned, tmp_path):
    folder = shutil.copytree(tuned, tmp_path / "tuned")
    (folder / "t5-base" / "model.safetensors").unlink()
    assert MusicGen.load(folder, "cpu")
