"""Reads a demo that was exported before, to be trained on."""

from pathlib import Path

from audiocraft.models.encodec import EncodecModel
from safetensors.torch import load_file
from transformers import T5EncoderModel

from musicgen.checkpoints.checkpoint import CODEC_TENSORS, LM_TENSORS, PROVIDER_PREFIX
from train_demo import codec, lm

NOT_LEARNED = f"{PROVIDER_PREFIX}self_wav.chroma"  # a buffer that `export` saves along


def read(folder: Path) -> tuple[EncodecModel, lm.Demo]:
    """The codec and the language model with its text encoder, in float32.

    What trainings keep for themselves, as the answers to questions, begins anew.
    """
    encodec, demo = codec.build(), lm.Demo()
    encodec.load_state_dict(load_file(folder / CODEC_TENSORS))
    state = load_file(folder / LM_TENSORS)
    demo.lm.load_state_dict({k: v for k, v in state.items() if not k.startswith(NOT_LEARNED)})
    demo.text = T5EncoderModel.from_pretrained(folder / lm.TEXT_NAME, dtype="float32")
    return encodec, demo
