"""Valid checkpoints; the tests here damage copies of them."""

import io
import shutil

import pytest
import sentencepiece
import tiny_checkpoints
import torch
from safetensors.torch import load_file

from musicgen.checkpoints.convert import convert


@pytest.fixture(scope="module")
def originals(checkpoints, tmp_path_factory):
    """form -> a melody model with diffusion.

    The text encoder of "upstream" is a pickle. That of "converted" is safetensors, and it has a
    tokenizer of sentencepiece.
    """
    root = tmp_path_factory.mktemp("originals")
    upstream = shutil.copytree(checkpoints["melody"], root / "upstream")
    tiny_checkpoints.write_diffusion(upstream)
    train_sentencepiece(upstream / "t5-base" / "spiece.model")
    convert(upstream, root / "converted")
    (upstream / "t5-base" / "spiece.model").unlink()
    text = upstream / "t5-base"
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    return {"upstream": upstream, "converted": root / "converted"}


def train_sentencepiece(path):
    """Write a tokenizer with fewer pieces than the small text encoder has embeddings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a slow piano in c minor, 80 bpm"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


@pytest.fixture
def upstream(originals, tmp_path):
    return shutil.copytree(originals["upstream"], tmp_path / "upstream")


@pytest.fixture
def converted(originals, tmp_path):
    return shutil.copytree(originals["converted"], tmp_path / "converted")
