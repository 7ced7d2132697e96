"""Reads an exported demo, to train it further."""

from pathlib import Path

import torch
from audiocraft.models.encodec import EncodecModel
from safetensors.torch import load_file
from torch import nn
from transformers import T5EncoderModel

from musicgen.checkpoints.checkpoint import CODEC_TENSORS, LM_TENSORS
from training import codec, lm
from training.export import WINDOW

TRAINED = 0.6  # weight of the trained language model in the average with the one it started from


def read(folder: Path) -> tuple[EncodecModel, lm.Demo]:
    """Returns the codec and the language model with its text encoder, in float32.

    Parts that are only used in training, such as the auxiliary heads, are initialized again.
    """
    encodec, demo = codec.build(), lm.Demo()
    encodec.load_state_dict(load_file(folder / CODEC_TENSORS))
    state = load_file(folder / LM_TENSORS)
    del state[WINDOW]
    demo.lm.load_state_dict(state)
    demo.text = T5EncoderModel.from_pretrained(folder / lm.TEXT_NAME, dtype="float32")
    return encodec, demo


@torch.no_grad()
def average(before: nn.Module, after: nn.Module) -> None:
    """Average the weights into `after`, often better than either model (Wortsman et al. 2022)."""
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        new.lerp_(old, 1 - TRAINED)
