"""wav <-> codes by EnCodec, one clip at a time, so a clip does not depend on its neighbours."""

from collections.abc import Sequence

import torch
from audiocraft.models.builders import get_compression_model
from audiocraft.models.encodec import (
    CompressionModel,
    HFEncodecCompressionModel,
    InterleaveStereoCompressionModel,
)
from torch import Tensor
from transformers import EncodecModel

from musicgen.errors import WeightsError
from musicgen.weights import Checkpoint


class Codec:
    """EnCodec of a checkpoint. Stereo models interleave left and right codes (K doubles)."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        model = load_encodec(checkpoint).eval().to(device).requires_grad_(False)
        self.mono = model
        self.model = InterleaveStereoCompressionModel(model) if checkpoint.stereo else model
        self.device = device
        self.sample_rate: int = model.sample_rate
        self.frame_rate = float(model.frame_rate)
        self.channels: int = self.model.channels
        if self.model.num_codebooks != checkpoint.lm.n_q:
            raise WeightsError(
                f"{checkpoint.folder}: the codec has {self.model.num_codebooks} codebooks, the "
                f"language model {checkpoint.lm.n_q}; the two files do not belong together."
            )

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """wav [C, N] -> codes [K, T], T = ceil(N / hop)."""
        codes: Tensor = self.model.encode(wav[None].to(self.device))[0][0]
        return codes

    @torch.inference_mode()
    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU. `seeds` are for other decoders."""
        return torch.cat([self.model.decode(clip[None]).float().cpu() for clip in codes])


def load_encodec(checkpoint: Checkpoint) -> CompressionModel:
    """EnCodec from audiocraft's file, or from the transformers folder that it names."""
    source = checkpoint.codec()
    if isinstance(source, tuple):
        config, state = source
        config.device = "cpu"
        model = get_compression_model(config)
        model.load_state_dict(state)
        return model
    model = HFEncodecCompressionModel(EncodecModel.from_pretrained(source, local_files_only=True))
    per_channel = checkpoint.lm.n_q // (2 if checkpoint.stereo else 1)
    model.set_num_codebooks(per_channel)
    return model
