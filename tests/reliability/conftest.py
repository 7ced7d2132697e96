"""Valid checkpoints; the tests here damage copies of them."""

import shutil

import pytest
import tiny_checkpoints
import torch
from safetensors.torch import load_file

from musicgen.checkpoints.convert import convert


@pytest.fixture(scope="module")
def originals(checkpoints, tmp_path_factory):
    """form -> a melody model with diffusion: `upstream` has pickles, `converted` safetensors."""
    root = tmp_path_factory.mktemp("originals")
    upstream = shutil.copytree(checkpoints["melody"], root / "upstream")
    tiny_checkpoints.write_diffusion(upstream)
    convert(upstream, root / "converted")
    text = upstream / "t5-base"
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    return {"upstream": upstream, "converted": root / "converted"}


@pytest.fixture
def upstream(originals, tmp_path):
    return shutil.copytree(originals["upstream"], tmp_path / "upstream")


@pytest.fixture
def converted(originals, tmp_path):
    return shutil.copytree(originals["converted"], tmp_path / "converted")
