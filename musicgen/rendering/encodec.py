"""EnCodec's network: SEANet, mostly an LSTM in the middle, and a residual vector quantizer.

Defossez et al. 2022, "High Fidelity Neural Audio Compression". The arithmetic is audiocraft's
(modules/seanet.py, conv.py, quantization/core_vq.py) for mono and without training; weight norm is
multiplied out when loading. Written out because either library that has it takes longer to import
than all else that a server needs to start.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_FRAMES = 500  # 10 s
SEEN_FRAMES = 4  # more than the convolutions on either side of the LSTM reach


@dataclass(frozen=True)
class EncodecConfig:
    """The shape of an EnCodec, under audiocraft's names."""

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
        """Samples of a frame."""
        return math.prod(self.ratios)


class Conv(nn.Conv1d):
    """A convolution that keeps the length, or divides it by its stride, rounded up."""

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
        self.causal, self.pad_mode = config.causal, config.pad_mode

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, N] -> [B, out, ceil(N / stride)]."""
        padding, length = self.span - self.stride[0], x.shape[-1]
        # The last window is made full.
        extra = -(-length // self.stride[0]) * self.stride[0] - length
        right = 0 if self.causal else padding // 2
        return super().forward(_pad(x, padding - right, right + extra, self.pad_mode))


class Upsample(nn.ConvTranspose1d):
    """A transposed convolution that multiplies the length by its stride."""

    def __init__(self, config: EncodecConfig, width: int, out: int, stride: int) -> None:
        super().__init__(width, out, 2 * stride, stride)
        cut = stride  # kernel size less stride
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


class Memory(nn.Module):
    """An LSTM over time with a skip connection."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width, T] -> the same shape."""
        sequence = x.permute(2, 0, 1)
        remembered: Tensor = self.lstm(sequence)[0]
        return (remembered + sequence).permute(1, 2, 0)


class Encodec(nn.Module):
    """Mono EnCodec; see `EncodecConfig` for its shape. Layers have audiocraft's numbers."""

    codebooks: Tensor  # [n_q, bins, dimension]

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.memories = min(config.lstm, 1)  # what is not computed in chunks, as it recurs
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        width = config.n_filters
        self.encoder.append(Conv(config, 1, width, config.kernel_size))
        for ratio in reversed(config.ratios):
            self.encoder.extend(_residuals(config, width))
            self.encoder.extend([nn.ELU(), Conv(config, width, 2 * width, 2 * ratio, ratio)])
            width *= 2
        last = config.last_kernel_size
        self.encoder.extend([*_memory(config, width), nn.ELU()])
        self.encoder.append(Conv(config, width, config.dimension, last))
        self.decoder.append(Conv(config, config.dimension, width, config.kernel_size))
        self.decoder.extend(_memory(config, width))
        for ratio in config.ratios:
            self.decoder.extend([nn.ELU(), Upsample(config, width, width // 2, ratio)])
            width //= 2
            self.decoder.extend(_residuals(config, width))
        self.decoder.extend([nn.ELU(), Conv(config, width, 1, last)])
        shape = (config.n_q, config.bins, config.dimension)
        self.register_buffer("codebooks", torch.empty(shape))

    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] -> codes [B, n_q, ceil(N / hop)]."""
        before, after = self.encoder[: -2 - self.memories], self.encoder[-2 - self.memories :]
        residual = after(_in_chunks(before, wav, self.config.hop, 1)).mT
        codes = []
        for book in self.codebooks:
            scores = 2 * residual @ book.T - book.square().sum(1)
            codes.append(scores.argmax(-1))
            residual = residual - F.embedding(codes[-1], book)
        return torch.stack(codes, dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """codes [B, n_q, T] -> the sum of what they stand for [B, dimension, T]."""
        books = zip(codes.unbind(1), self.codebooks, strict=True)
        return torch.stack([F.embedding(code, book) for code, book in books]).sum(0).mT

    def render(self, embeddings: Tensor) -> Tensor:
        """embeddings [B, dimension, T] -> wav [B, 1, hop * T]."""
        before, after = self.decoder[: 1 + self.memories], self.decoder[1 + self.memories :]
        return _in_chunks(after, before(embeddings), 1, self.config.hop)


def load_encodec(config: EncodecConfig, state: Mapping[str, Tensor]) -> Encodec:
    """The network with its weights, under audiocraft's or transformers' names.

    Raises RuntimeError, naming them, for weights that are missing or of another shape.
    """
    with torch.device("meta"):
        model = Encodec(config)
    model.load_state_dict(_translate(state), assign=True)
    return model.eval().requires_grad_(False)


# Names of audiocraft and of transformers -> ours, in this order.
RENAMED = (
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
    (".model.", "."),
    (".layers.", "."),
    (".convtr.convtr.", "."),
    (".conv.conv.", "."),
    (".conv.", "."),
)


# A codebook's number; where a state is spread over files, they come in any order.
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


def _memory(config: EncodecConfig, width: int) -> list[nn.Module]:
    """The LSTM; a codec may be made without."""
    return [Memory(width, config.lstm)] if config.lstm else []


def _pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """F.pad; reflection of what is shorter than the padding goes on into zeros, as audiocraft's."""
    short = max(left, right) - x.shape[-1] + 1 if mode == "reflect" else 0
    if short <= 0:
        return F.pad(x, (left, right), mode)
    padded = F.pad(F.pad(x, (0, short)), (left, right), mode)
    return padded[..., : padded.shape[-1] - short]


def _in_chunks(layers: Callable[[Tensor], Tensor], x: Tensor, taken: int, given: int) -> Tensor:
    """Convolutions on x [B, D, N], `taken` samples a frame -> [B, D', N'], `given` a frame.

    The same result as at once but for rounding, in bounded memory: five minutes of stereo would
    take 5 GB a layer. Each chunk is read with the frames around it that its convolutions see.
    """
    frames = -(-x.shape[-1] // taken)
    parts = []
    for start in range(0, frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, frames)
        first, last = max(0, start - SEEN_FRAMES), min(stop + SEEN_FRAMES, frames)
        part = layers(x[..., first * taken : last * taken])
        parts.append(part[..., (start - first) * given : (stop - first) * given])
    return torch.cat(parts, dim=-1)
