"""audiocraft's MusicGen of a checkpoint folder: the reference for arithmetic."""

import functools
import warnings
from unittest import mock

import demucs.apply
from audiocraft.models.loaders import load_compression_model, load_lm_model
from audiocraft.models.musicgen import MusicGen
from audiocraft.modules.conditioners import T5Conditioner

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.checkpoints.demucs_file import open_demucs
from training import configs


def load(folder):
    """Load as `MusicGen.get_pretrained` does, with T5 and Demucs from the folder."""
    checkpoint = open_checkpoint(folder)
    with (
        warnings.catch_warnings(),
        mock.patch(
            "demucs.pretrained.get_model",
            side_effect=lambda _: open_demucs(checkpoint.demucs_file).load(),
        ),
        mock.patch("audiocraft.modules.conditioners.T5Tokenizer", _Local(folder, "T5Tokenizer")),
        mock.patch(
            "audiocraft.modules.conditioners.T5EncoderModel", _Local(folder, "T5EncoderModel")
        ),
        mock.patch.dict(T5Conditioner.MODELS_DIMS, {configs.T5_NAME: configs.T5_WIDTH}),
    ):
        warnings.simplefilter("ignore")
        lm = load_lm_model(folder)
        codec = load_compression_model(folder)
    conditioners = lm.condition_provider.conditioners
    if "self_wav" in conditioners:
        conditioners["self_wav"].match_len_on_eval = True
        conditioners["self_wav"]._use_masking = False
    # The constructor strides by 18 s, which it refuses for windows shorter than that.
    reference = MusicGen("oracle", codec, lm, max_duration=30)
    reference.max_duration = checkpoint.max_duration
    return reference


# In audiocraft, Demucs shifts its input at random; this project turns that off.
unshifted = mock.patch(
    "demucs.apply.apply_model", functools.partial(demucs.apply.apply_model, shifts=0)
)


class _Local:
    """A transformers class whose from_pretrained reads from a folder."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def from_pretrained(self, model):
        import transformers

        return getattr(transformers, self.name).from_pretrained(self.folder / model)
