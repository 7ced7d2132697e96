"""EnCodec's network: SEANet with an optional LSTM, and a residual vector quantizer.

Defossez et al. 2022, "High Fidelity Neural Audio Compression". The arithmetic is audiocraft's
(modules/seanet.py, conv.py, quantization/core_vq.py), for mono and inference only. Weight norm is
multiplied out when loading. Neither library with an EnCodec is used, because importing one takes
longer than everything else that starts a server.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_FRAMES = 500  # frames that are encoded at once: 10 s at 50 frames/s


class Reach(NamedTuple):
    """Frames before and after a frame on which its output depends."""

    before: int
    after: int


@dataclass(frozen=True)
class EncodecConfig:
    """The shape of an EnCodec, in audiocraft's names."""

    sample_rate: int
    dimension: int
    n_filters: int
    n_residual_layers: int
    ratios: tuple[int, ...]
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    dilation_base: int
    causal: bool
    pad_mode: str
    compress: int
    lstm: int
    true_skip: bool
    trim_right_ratio: float
    n_q: int
    bins: int

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)


LSTMState = tuple[Tensor, Tensor]


class Conv(nn.Conv1d):
    """A convolution that divides the length by its stride, rounded up."""

    def __init__(
        self,
        config: EncodecConfig,
        width: int,
        out: int,
        size: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(width, out, size, stride, dilation=dilation)
        self.span = (size - 1) * dilation + 1
        self.pad_mode = config.pad_mode
        padding = self.span - stride
        self.right = 0 if config.causal else padding // 2
        self.left = padding - self.right

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, N] -> [B, out, ceil(N / stride)]."""
        length = x.shape[-1]
        # Zeros or reflection complete the last window.
        extra = -(-length // self.stride[0]) * self.stride[0] - length
        return super().forward(_pad(x, self.left, self.right + extra, self.pad_mode))


class Upsample(nn.ConvTranspose1d):
    """A transposed convolution that multiplies the length by its stride."""

    def __init__(self, config: EncodecConfig, width: int, out: int, stride: int) -> None:
        super().__init__(width, out, 2 * stride, stride)
        cut = stride  # kernel size minus stride
        self.right = math.ceil(cut * config.trim_right_ratio) if config.causal else cut // 2
        self.left = cut - self.right

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, width, N] -> [B, out, stride * N]."""
        y = super().forward(x)
        return y[..., self.left : y.shape[-1] - self.right]


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, config: EncodecConfig, width: int, dilation: int) -> None:
        super().__init__()
        hidden, size = width // config.compress, config.residual_kernel_size
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(config, width, hidden, size, dilation=dilation),
            nn.ELU(),
            Conv(config, hidden, width, 1),
        )
        self.shortcut = nn.Identity() if config.true_skip else Conv(config, width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped: Tensor = self.shortcut(x) + self.block(x)
        return skipped


class SkipLSTM(nn.Module):
    """An LSTM over time with a skip connection."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, T] -> the same shape."""
        return self.advance(x, None)[0]

    def advance(self, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """The output for the next x [B, width, T] after `state`, and the state after it."""
        sequence = x.permute(2, 0, 1)
        output, state = self.lstm(sequence, state)
        return (output + sequence).permute(1, 2, 0), state


class Encodec(nn.Module):
    """Mono EnCodec. Its layers are numbered as audiocraft's."""

    codebooks: Tensor  # [n_q, bins, dimension]

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.lstms = min(config.lstm, 1)  # modules that cannot run in chunks
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        width = config.n_filters
        self.encoder.append(Conv(config, 1, width, config.kernel_size))
        for ratio in reversed(config.ratios):
            self.encoder.extend(_residuals(config, width))
            self.encoder.extend([nn.ELU(), Conv(config, width, 2 * width, 2 * ratio, ratio)])
            width *= 2
        last = config.last_kernel_size
        self.encoder.extend([*_lstm(config, width), nn.ELU()])
        self.encoder.append(Conv(config, width, config.dimension, last))
        self.decoder.append(Conv(config, config.dimension, width, config.kernel_size))
        self.decoder.extend(_lstm(config, width))
        for ratio in config.ratios:
            self.decoder.extend([nn.ELU(), Upsample(config, width, width // 2, ratio)])
            width //= 2
            self.decoder.extend(_residuals(config, width))
        self.decoder.extend([nn.ELU(), Conv(config, width, 1, last)])
        shape = (config.n_q, config.bins, config.dimension)
        self.register_buffer("codebooks", torch.empty(shape))
        self.encoder_reach = _reach(self.encoder[: -2 - self.lstms], taken=config.hop, given=1)
        self.first_reach = _reach(self.decoder[:1], taken=1, given=1)
        self.upsampling_reach = _reach(self.upsampling, taken=1, given=config.hop)

    @property
    def upsampling(self) -> nn.Sequential:
        """The layers of the decoder after the LSTM, from frames to samples."""
        return nn.Sequential(*list(self.decoder)[1 + self.lstms :])

    @property
    def decoder_lstms(self) -> list[SkipLSTM]:
        """The LSTM of the decoder, if the codec has one."""
        return [layer for layer in self.decoder if isinstance(layer, SkipLSTM)]

    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> codes [B, n_q, ceil(N / hop)]."""
        before, after = self.encoder[: -2 - self.lstms], self.encoder[-2 - self.lstms :]
        residual = after(self._in_chunks(before, wav)).mT
        codes = []
        for book in self.codebooks:
            scores = 2 * residual @ book.T - book.square().sum(1)
            codes.append(scores.argmax(-1))
            residual = residual - F.embedding(codes[-1], book)
        return torch.stack(codes, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """codes [B, n_q, T] -> the sum of their codebook vectors [B, dimension, T]."""
        books = zip(codes.unbind(1), self.codebooks, strict=True)
        return torch.stack([F.embedding(code, book) for code, book in books]).sum(0).mT

    def _in_chunks(self, layers: nn.Module, wav: Tensor) -> Tensor:
        """The encoder's convolutions on wav [B, 1, N] -> [B, D, frames].

        Equal to one call up to rounding, but in bounded memory: five minutes of stereo would take 5
        GB a layer.
        """
        hop, (before, after) = self.config.hop, self.encoder_reach
        frames = -(-wav.shape[-1] // hop)
        parts = []
        for start in range(0, frames, CHUNK_FRAMES):
            stop = min(start + CHUNK_FRAMES, frames)
            first = max(0, start - before)
            part = layers(wav[..., first * hop : (stop + after) * hop])
            parts.append(part[..., start - first : stop - first])
        return torch.cat(parts, dim=-1)


def load_encodec(config: EncodecConfig, state: Mapping[str, Tensor]) -> Encodec:
    """The network with the weights of `state`, in audiocraft's or transformers' names.

    Raises RuntimeError naming weights that are missing or have another shape.
    """
    with torch.device("meta"):
        model = Encodec(config)
    model.load_state_dict(_translate(state), assign=True)
    return model.eval().requires_grad_(False)


# Part of a name in audiocraft or transformers -> in `Encodec`. Replaced in this order.
RENAMED = (
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
    (".model.", "."),
    (".layers.", "."),
    (".convtr.convtr.", "."),
    (".conv.conv.", "."),
    (".conv.", "."),
)


# Name of a codebook with its number. The codebooks of a state may be in any order.
BOOK = re.compile(r"quantizer\..*\b(\d+)\._?codebook\.embed")


def _translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    books: dict[int, Tensor] = {}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("quantizer."):
            if book := BOOK.fullmatch(name):
                books[int(book[1])] = value.float()
            continue
        for old, new in RENAMED:
            name = name.replace(old, new)
        renamed[name] = value.float()
    for name in [name for name in renamed if name.endswith(".weight_g")]:
        stem = name.removesuffix("_g")
        renamed[stem] = torch._weight_norm(renamed.pop(f"{stem}_v"), renamed.pop(name), 0)
    return {**renamed, "codebooks": torch.stack([books[number] for number in sorted(books)])}


def _residuals(config: EncodecConfig, width: int) -> list[nn.Module]:
    dilations = (config.dilation_base**j for j in range(config.n_residual_layers))
    return [Residual(config, width, dilation) for dilation in dilations]


def _lstm(config: EncodecConfig, width: int) -> list[nn.Module]:
    """The LSTM, if the codec has one."""
    return [SkipLSTM(width, config.lstm)] if config.lstm else []


def _pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """F.pad. As in audiocraft, a signal too short to be reflected is extended by zeros first."""
    short = max(left, right) - x.shape[-1] + 1 if mode == "reflect" else 0
    if short <= 0:
        return F.pad(x, (left, right), mode)
    padded = F.pad(F.pad(x, (0, short)), (left, right), mode)
    return padded[..., : padded.shape[-1] - short]


def _reach(layers: nn.Module, taken: int, given: int) -> Reach:
    """How far one frame of the layers' output reaches into their input.

    A frame has `taken` positions in the input and `given` in the output. Follows the first and the
    last index that are read, from the output to the input.
    """
    low, high = 0, given - 1
    for module in reversed(list(layers.modules())):
        if isinstance(module, Conv):
            stride = module.stride[0]
            low, high = low * stride - module.left, high * stride - module.left + module.span - 1
        elif isinstance(module, Upsample):
            # Input i adds to the outputs [i * stride, (i + 2) * stride), before they are cut.
            stride = module.stride[0]
            low, high = (low + module.left) // stride - 1, (high + module.left) // stride
    return Reach(-(low // taken), high // taken)
