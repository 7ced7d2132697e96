"""wav <-> codes by EnCodec, one clip at a time, so a clip does not depend on its neighbours.

The network is the one of transformers, which computes what audiocraft's does but imports in a
fraction of the time; audiocraft's checkpoints are renamed into it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import EncodecConfig, EncodecModel
from transformers.initialization import no_init_weights
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from musicgen.errors import WeightsError
from musicgen.weights import Checkpoint

# audiocraft's names -> those of transformers.
RENAMED = (
    (".model.", ".layers."),
    (".conv.conv.", ".conv."),
    (".convtr.convtr.", ".conv."),
    (".vq.layers.", ".layers."),
    ("._codebook.", ".codebook."),
)
CHUNK_FRAMES = 500  # 10 s
SEEN_FRAMES = 4  # more than the convolutions on either side of the LSTM reach

# What the network of transformers takes for granted about a SEANet.
GRANTED = {"activation": "ELU", "channels": 1, "disable_norm_outer_blocks": 0}


class Codec:
    """EnCodec of a checkpoint: K codebooks, card entries each, 50 frames/s at 32 kHz.

    A stereo model has one mono EnCodec for both channels and interleaves their codes, left first:
    K doubles. Both channels always run as one batch.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = load_encodec(checkpoint).eval().requires_grad_(False).to(device)
        config = self.model.config
        self.device = device
        self.channels = 2 if checkpoint.stereo else 1
        self.sample_rate: int = config.sampling_rate
        self.hop: int = math.prod(config.upsampling_ratios)
        self.frame_rate = config.sampling_rate / self.hop
        codebooks = config.num_quantizers * self.channels
        if codebooks != checkpoint.lm.n_q:
            raise WeightsError(
                f"{checkpoint.folder}: the codec has {codebooks} codebooks, the language model "
                f"{checkpoint.lm.n_q}; the two files do not belong together."
            )

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """wav [C, N] -> codes [K, T], T = ceil(N / hop)."""
        codes: Tensor = self.model.quantizer.encode(
            self.model.encoder(wav[:, None].to(self.device))
        )
        return codes.flatten(0, 1)

    @torch.inference_mode()
    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU. `seeds` are for other decoders."""
        return torch.stack([self.render(self.embed(clip))[:, 0].cpu() for clip in codes])

    def embed(self, codes: Tensor) -> Tensor:
        """codes [K, T] -> what they stand for in each channel: [C, D, T]."""
        by_channel = codes.to(self.device).unflatten(0, (-1, self.channels))
        embeddings: Tensor = self.model.quantizer.decode(by_channel)
        return embeddings

    def render(self, embeddings: Tensor) -> Tensor:
        """embeddings [C, D, T] -> wav [C, 1, N]."""
        layers = list(self.model.decoder.layers)
        rest = next(i for i, layer in enumerate(layers) if isinstance(layer, EncodecLSTM)) + 1
        return _in_chunks(layers[rest:], _run(layers[:rest], embeddings), 1, self.hop)


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _in_chunks(layers: Sequence[nn.Module], x: Tensor, taken: int, given: int) -> Tensor:
    """Convolutions on x [C, D, N], `taken` samples a frame -> [C, D', N'], `given` a frame.

    The same result as at once but for rounding, in bounded memory: five minutes of stereo would
    take 5 GB a layer. Each chunk is read with the frames around it that its convolutions see.
    """
    frames = -(-x.shape[-1] // taken)
    parts = []
    for start in range(0, frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, frames)
        first, last = max(0, start - SEEN_FRAMES), min(stop + SEEN_FRAMES, frames)
        part = _run(layers, x[..., first * taken : last * taken])
        parts.append(part[..., (start - first) * given : (stop - first) * given])
    return torch.cat(parts, dim=-1)


def load_encodec(checkpoint: Checkpoint) -> EncodecModel:
    """EnCodec from audiocraft's file, or from the transformers folder that it names."""
    source = checkpoint.codec()
    if not isinstance(source, tuple):
        model = EncodecModel.from_pretrained(source, local_files_only=True)
        return _without_weight_norm(model)
    config, state = source
    with no_init_weights():  # drawing 57 M random weights would take longer than loading them
        model = _without_weight_norm(EncodecModel(translate_config(checkpoint, config)))
    try:
        model.load_state_dict(translate_state(state), assign=True)
    except RuntimeError as exc:
        raise WeightsError(
            f"{checkpoint.folder}: EnCodec's weights do not fit its configuration ({exc})."
        ) from exc
    return model


def translate_config(checkpoint: Checkpoint, config: DictConfig) -> EncodecConfig:
    """audiocraft's EnCodec configuration as that of transformers."""
    seanet, rate = config.seanet, config.encodec.sample_rate
    for key, expected in GRANTED.items():
        if seanet.get(key, expected) != expected:
            raise WeightsError(
                f"{checkpoint.folder}: EnCodec with seanet.{key}={seanet[key]!r} is not supported."
            )
    frame_rate = rate // math.prod(seanet.ratios)
    return EncodecConfig(
        audio_channels=1,
        sampling_rate=rate,
        normalize=config.encodec.get("renormalize", False),
        hidden_size=seanet.dimension,
        num_filters=seanet.n_filters,
        num_residual_layers=seanet.n_residual_layers,
        upsampling_ratios=list(seanet.ratios),
        norm_type=seanet.norm,
        kernel_size=seanet.kernel_size,
        last_kernel_size=seanet.last_kernel_size,
        residual_kernel_size=seanet.residual_kernel_size,
        dilation_growth_rate=seanet.dilation_base,
        use_causal_conv=seanet.causal,
        pad_mode=seanet.pad_mode,
        compress=seanet.compress,
        num_lstm_layers=seanet.lstm,
        trim_right_ratio=seanet.decoder.trim_right_ratio,
        use_conv_shortcut=not seanet.true_skip,
        codebook_size=config.rvq.bins,
        codebook_dim=seanet.dimension,
        # transformers counts codebooks by their bits per second.
        target_bandwidths=[config.rvq.n_q * frame_rate * math.log2(config.rvq.bins) / 1000],
    )


def translate_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audiocraft's EnCodec state under the names of transformers, weight norm multiplied out."""
    renamed = {}
    for name, value in state.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        renamed[name] = value
    for name in [name for name in renamed if name.endswith(".weight_g")]:
        stem = name.removesuffix("_g")
        renamed[stem] = torch._weight_norm(renamed.pop(f"{stem}_v"), renamed.pop(name), 0)
    return renamed


def _without_weight_norm(model: EncodecModel) -> EncodecModel:
    """The same model with plain weights: nothing to multiply out at every call."""
    normed = [module for module in model.modules() if parametrize.is_parametrized(module)]
    for module in normed:
        parametrize.remove_parametrizations(module, "weight")
    return model
