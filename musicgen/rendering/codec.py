"""wav <-> codes by a checkpoint's EnCodec, one clip at a time, so that clips are independent."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.checkpoints.encodec_files import AUDIOCRAFT, TRANSFORMERS
from musicgen.checkpoints.limits import check_numbers
from musicgen.errors import WeightsError
from musicgen.rendering.encodec import Encodec, EncodecConfig, load_encodec
from musicgen.rendering.pieces import Rendering, Span, render

# Setting -> the only value that the network supports, in audiocraft's and transformers' names.
REQUIRED_AUDIOCRAFT = {
    "activation": "ELU",
    "channels": 1,
    "disable_norm_outer_blocks": 0,
    "norm": "weight_norm",
}
REQUIRED_TRANSFORMERS = {"audio_channels": 1, "norm_type": "weight_norm", "normalize": False}
# EncodecConfig's name -> transformers' name, transformers' default.
TRANSFORMERS_NAMES = {
    "sample_rate": ("sampling_rate", 24000),
    "dimension": ("hidden_size", 128),
    "n_filters": ("num_filters", 32),
    "n_residual_layers": ("num_residual_layers", 1),
    "kernel_size": ("kernel_size", 7),
    "last_kernel_size": ("last_kernel_size", 7),
    "residual_kernel_size": ("residual_kernel_size", 3),
    "dilation_base": ("dilation_growth_rate", 2),
    "causal": ("use_causal_conv", True),
    "pad_mode": ("pad_mode", "reflect"),
    "compress": ("compress", 2),
    "lstm": ("num_lstm_layers", 2),
    "trim_right_ratio": ("trim_right_ratio", 1.0),
    "bins": ("codebook_size", 1024),
}
# Settings of audiocraft's section `seanet` with the same name in EncodecConfig.
# Number -> the largest accepted value, far above that of any EnCodec.
LIMITS: dict[str, int | float] = {
    "sample_rate": 2**18,
    "dimension": 2**13,
    "n_filters": 2**12,
    "n_residual_layers": 16,
    "kernel_size": 2**10,
    "last_kernel_size": 2**10,
    "residual_kernel_size": 2**10,
    "dilation_base": 16,
    "compress": 2**10,
    "trim_right_ratio": 1.0,
    "n_q": 2**6,
    "bins": 2**20,
}
MAX_LSTM_LAYERS, MAX_RATIOS, MAX_HOP = 16, 16, 2**16
MAX_REACH = 100  # frames; MusicGen's EnCodec has 3
PAD_MODES = ("constant", "reflect", "replicate")
SEANET_NAMES = (
    "dimension",
    "n_filters",
    "n_residual_layers",
    "kernel_size",
    "last_kernel_size",
    "residual_kernel_size",
    "dilation_base",
    "causal",
    "pad_mode",
    "compress",
    "lstm",
    "true_skip",
)


class Codec:
    """The EnCodec of a checkpoint: K codebooks of `card` entries, 50 frames/s at 32 kHz.

    A stereo model has one mono EnCodec for both channels. It interleaves their codes, left first,
    which doubles K. Both channels always run as one batch.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = open_encodec(checkpoint).to(device)
        config = self.model.config
        self.device = device
        self.channels = 2 if checkpoint.stereo else 1
        self.sample_rate = config.sample_rate
        self.frame_rate = config.sample_rate / config.hop
        codebooks = config.n_q * self.channels
        if codebooks != checkpoint.lm.n_q:
            raise WeightsError(
                f"{checkpoint.folder}: the codec has {codebooks} codebooks, the language model "
                f"{checkpoint.lm.n_q}; the two files do not belong together."
            )

    @property
    def pieces(self) -> list[nn.Module]:
        """The modules that are called once for each chunk of a long clip."""
        return [self.model.encoder[0], self.model.decoder[-1]]

    def frames(self, samples: int) -> int:
        """The number of frames that `encode` returns for so many samples."""
        return -(-samples // self.model.config.hop)

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """wav [C, N] -> codes [K, T], T = frames(N)."""
        return self.model.encode(wav[:, None].to(self.device)).transpose(0, 1).flatten(0, 1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU. `seeds` are not used."""
        return torch.stack([self._decode(clip) for clip in codes])

    def _decode(self, codes: Tensor) -> Tensor:
        """codes [K, T] -> wav [C, N] on the CPU."""
        rendering = self.rendering(codes.shape[-1])
        pieces = [
            self.render_piece(rendering, s, codes[:, s.low : s.high]) for s in rendering.spans
        ]
        return torch.cat(pieces, dim=-1)

    def rendering(self, frames: int) -> Rendering:
        """What `render_piece` needs to render a clip of so many frames, once."""
        return Rendering(self.model, frames)

    @torch.inference_mode()
    def render_piece(self, rendering: Rendering, span: Span, codes: Tensor) -> Tensor:
        """The next piece: codes [K, high - low] of its span -> wav [C, N] float32 on the CPU."""
        return rendering.render(span, self.embed(codes))[:, 0].cpu()

    def embed(self, codes: Tensor) -> Tensor:
        """codes [K, T] -> embeddings of each channel [C, D, T]."""
        by_channel = codes.to(self.device).unflatten(0, (-1, self.channels)).transpose(0, 1)
        return self.model.embed(by_channel)

    def render(self, embeddings: Tensor) -> Tensor:
        """embeddings [C, D, T] -> wav [C, 1, N]."""
        return render(self.model, embeddings)


def open_encodec(checkpoint: Checkpoint) -> Encodec:
    """The EnCodec of a checkpoint, in audiocraft's or transformers' format."""
    files = checkpoint.codec()
    config = CONFIGURATIONS[files.library](checkpoint, files.config)
    _check_limits(files.config_file, config)
    try:
        model = load_encodec(config, files.state)
    except RuntimeError as exc:
        raise WeightsError(
            f"{checkpoint.folder}: EnCodec's weights do not fit its configuration ({exc})."
        ) from exc
    reach = max(*model.encoder_reach, *model.first_reach, *model.upsampling_reach)
    if reach > MAX_REACH:
        raise WeightsError(
            f"{checkpoint.folder}: EnCodec's convolutions reach {reach} frames, more than the "
            f"supported {MAX_REACH}."
        )
    return model


def _check_limits(path: Path, config: EncodecConfig) -> None:
    """Raise WeightsError for a shape that could take too much memory or time."""
    ratios = config.ratios
    check_numbers(path, asdict(config), LIMITS)
    problems = {
        f"lstm={config.lstm!r}": config.lstm not in range(MAX_LSTM_LAYERS + 1),
        f"pad_mode={config.pad_mode!r}": config.pad_mode not in PAD_MODES,
        f"ratios={reprlib.repr(ratios)}": not 0 < len(ratios) <= MAX_RATIOS
        or any(type(ratio) is not int or ratio < 1 for ratio in ratios)
        or config.hop > MAX_HOP,
    }
    for problem, found in problems.items():
        if found:
            raise WeightsError(f"{path}: EnCodec with {problem} is not supported.")


def from_audiocraft(checkpoint: Checkpoint, config: Any) -> EncodecConfig:
    """The shape that audiocraft's configuration describes."""
    _check(checkpoint, "seanet", config.seanet, REQUIRED_AUDIOCRAFT)
    _check(checkpoint, "encodec", config.encodec, {"renormalize": False})
    return EncodecConfig(
        sample_rate=config.encodec.sample_rate,
        ratios=tuple(config.seanet.ratios),
        trim_right_ratio=config.seanet.decoder.trim_right_ratio,
        n_q=config.rvq.n_q,
        bins=config.rvq.bins,
        **{name: config.seanet[name] for name in SEANET_NAMES},
    )


def from_transformers(checkpoint: Checkpoint, config: Mapping[str, Any]) -> EncodecConfig:
    """The shape that transformers' configuration describes."""
    _check(checkpoint, "encodec", config, REQUIRED_TRANSFORMERS)
    found = {name: config.get(key, default) for name, (key, default) in TRANSFORMERS_NAMES.items()}
    ratios = tuple(config.get("upsampling_ratios", (8, 5, 4, 2)))
    # transformers states the number of codebooks as a bandwidth in kbit/s.
    bits = math.ceil(found["sample_rate"] / math.prod(ratios)) * math.ceil(math.log2(found["bins"]))
    return EncodecConfig(
        ratios=ratios,
        true_skip=not config.get("use_conv_shortcut", True),
        n_q=int(1000 * config["target_bandwidths"][-1] // bits),
        **found,
    )


CONFIGURATIONS = {AUDIOCRAFT: from_audiocraft, TRANSFORMERS: from_transformers}


def _check(
    checkpoint: Checkpoint, section: str, config: Mapping[str, Any], required: Mapping[str, object]
) -> None:
    for key, expected in required.items():
        if config.get(key, expected) != expected:
            raise WeightsError(
                f"{checkpoint.folder}: EnCodec with {section}.{key}={config[key]!r} is not "
                "supported."
            )
