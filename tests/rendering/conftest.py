"""Checkpoints with Multi-Band Diffusion, and their decoders."""

import shutil

import pytest
import tiny_checkpoints
from banded import load

from musicgen.checkpoints.checkpoint import CODEC_FILE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A mono and a stereo checkpoint with the same EnCodec, both with diffusion."""
    made = {}
    for kind in ("text", "stereo"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_checkpoints.write_checkpoint(made[kind], kind)
        tiny_checkpoints.write_diffusion(made[kind])
    shutil.copy(made["text"] / CODEC_FILE, made["stereo"])
    return made


@pytest.fixture(scope="module")
def mono(folders):
    return load(folders["text"])


@pytest.fixture(scope="module")
def stereo(folders):
    return load(folders["stereo"])
