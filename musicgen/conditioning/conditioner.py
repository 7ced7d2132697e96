"""Text and melody -> conditions of the decoder, and the unconditional ones for guidance.

The arithmetic is that of audiocraft's T5Conditioner and ChromaStemConditioner as configured by
MusicGen.get_pretrained. It runs for one request at a time: without padding, no result depends on
another request.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.checkpoints.demucs_file import open_demucs
from musicgen.checkpoints.reading import damage_reported
from musicgen.conditioning.chroma import Chroma
from musicgen.conditioning.t5 import T5Encoder
from musicgen.conditioning.tokens import open_tokenizer
from musicgen.decoder.clip import Conditions
from musicgen.errors import WeightsError

if TYPE_CHECKING:
    from musicgen.conditioning.separation import Separator

# Tokens of a text prompt that are used. T5 was trained on 512; most prompts have fewer than 128.
MAX_TOKENS = (512, 256, 128)
RESAMPLING_SECONDS = 0.1  # longer than half a resampling filter
CHROMA_ARGUMENTS = ("sample_rate", "n_chroma", "radix2_exp", "argmax")

Register = Callable[[nn.Module], object]

logger = logging.getLogger(__name__)


class TextEncoder:
    """Text prompt -> [L, dim] by T5 and the checkpoint's projection, in fp32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        folder = checkpoint.text_folder
        self.tokenize = open_tokenizer(folder)
        with damage_reported(folder):
            self.encoder = T5Encoder(checkpoint.text_encoder(), device)
            tokens, embeddings = self.tokenize.size, len(self.encoder.state["embedding"])
            if tokens > embeddings:
                raise WeightsError(
                    f"{folder}: the tokenizer has {tokens} tokens, but the text encoder has "
                    f"embeddings of {embeddings}; the two do not belong together."
                )
        self.projection = _projection(checkpoint, "description", self.encoder.width, device)
        self.device = device
        self.max_tokens = MAX_TOKENS[0]

    def __call__(self, prompt: str | None) -> Tensor:
        """Embeddings [L, dim] of `prompt`. None gives zeros, one for each token of ""."""
        tokens = self.tokenize(prompt or "")
        if prompt is None:
            return torch.zeros(len(tokens), self.projection.out_features, device=self.device)
        limit = self.max_tokens
        if len(tokens) > limit:
            logger.warning("prompt: %d tokens, only the first %d are used", len(tokens), limit)
            tokens = [*tokens[: limit - 1], tokens[-1]]
        embeddings: Tensor = self.projection(self.encoder(torch.tensor(tokens, device=self.device)))
        return embeddings


class MelodyEncoder:
    """Melody -> embeddings [T, dim] of its chroma, computed without drums and bass."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        chroma: Mapping[str, Any],
        device: torch.device,
        register: Register,
    ) -> None:
        arguments = {key: chroma[key] for key in CHROMA_ARGUMENTS}
        self.sample_rate: int = arguments["sample_rate"]
        self.extractor = Chroma(**arguments).to(device)
        self.projection = _projection(checkpoint, "self_wav", arguments["n_chroma"], device)
        self.checkpoint = checkpoint
        self.device = device
        self.register = register
        # Truncated as in audiocraft: the number of frames that the model was trained with.
        self.samples = int(checkpoint.max_duration * self.sample_rate)
        self.frames = self.extractor.frames(self.samples)

    @cached_property
    def separator(self) -> "Separator":
        """Demucs. It and its library are loaded with the first melody: most requests have none."""
        from musicgen.conditioning.separation import Separator

        separator = Separator(self.checkpoint.demucs_file, self.device)
        self.register(separator.model)
        return separator

    @cached_property
    def context(self) -> float:
        """Seconds of melody after the end of a window that still affect the window's chroma.

        They are half an STFT window, and a segment of Demucs, which needs whole segments. The
        length of a segment is read from Demucs' file, without loading the model.
        """
        half: float = self.extractor.n_fft / 2 / self.sample_rate
        separates = self.checkpoint.separates
        segment = open_demucs(self.checkpoint.demucs_file).segment if separates else 0.0
        return half + segment + RESAMPLING_SECONDS

    def separate(self, wav: Tensor) -> Tensor:
        """The sum of the melody's stems of wav [1, N]: [1, N']. Without Demucs, wav itself."""
        if not self.checkpoint.separates:
            return wav.to(self.device)
        return self.separator(wav, self.sample_rate)

    def window(self, stem: Tensor, start: float | None) -> Tensor:
        """Chroma embeddings [frames, dim] of one window of the melody `stem` [1, N].

        With `start` None (the only window), the chroma is repeated to fill the window. Otherwise
        (several windows) the stem is repeated and read from `start` seconds on.
        """
        if start is not None:
            first = round(start * self.sample_rate)
            positions = torch.arange(first, first + self.samples, device=stem.device)
            stem = stem[:, positions % stem.shape[-1]]
        chroma = self.extractor(stem)[0]
        repeats = -(-self.frames // chroma.shape[0])
        embeddings: Tensor = self.projection(chroma.repeat(repeats, 1)[: self.frames])
        return embeddings

    def check_rate(self, sample_rate: int) -> None:
        """Raise WeightsError unless the melody encoder and the codec have the same sample rate.

        audiocraft resamples a melody to the codec's rate first and then to Demucs'. Equal codes
        need the same order.
        """
        if sample_rate != self.sample_rate:
            raise WeightsError(
                f"{self.checkpoint.config_file}: melodies have {self.sample_rate} Hz, the codec "
                f"has {sample_rate} Hz; the two files do not belong together."
            )

    @cached_property
    def null(self) -> Tensor:
        """Chroma embeddings [frames, dim] without a melody: audiocraft takes one zero sample."""
        return self.window(torch.zeros(1, 1, device=self.device), None)


class Conditioner:
    """Computes the conditions of a request from its text prompt and melody."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, register: Register = lambda module: None
    ) -> None:
        """`register` is called with each module that is called many times for a long melody."""
        chroma = checkpoint.chroma
        self.text = TextEncoder(checkpoint, device)
        self.melody = MelodyEncoder(checkpoint, chroma, device, register) if chroma else None
        self.cross = checkpoint.lm.cross_attention

    @property
    def shared(self) -> Tensor | None:
        """Embeddings [T, dim] that every condition without a melody begins with."""
        return self.melody.null if self.melody else None

    @property
    def longest(self) -> int:
        """Length of the longest condition that a request can have."""
        return self.text.max_tokens + (self.melody.frames if self.melody else 0)

    @torch.inference_mode()
    def __call__(
        self, prompt: str | None, melody_wav: Tensor | None, starts: list[float]
    ) -> list[Conditions]:
        """Conditions of each window that begins at one of `starts` (seconds).

        `melody_wav` [1, N] has the melody encoder's sample rate; it is separated once.
        """
        text = self.text(prompt)
        text_pair = torch.stack([text, torch.zeros_like(text)])
        if self.cross:
            return [Conditions(cross=text_pair)] * len(starts)
        if self.melody is None:
            return [Conditions(prefix=text_pair)] * len(starts)
        null = self.melody.null
        if melody_wav is None:
            prefix = torch.cat([torch.stack([null, null]), text_pair], dim=1)
            return [Conditions(prefix=prefix, shared=(len(null), len(null)))] * len(starts)
        stem = self.melody.separate(melody_wav)
        windows: list[float | None] = [None] if len(starts) == 1 else [*starts]
        chromas = [self.melody.window(stem, start) for start in windows]
        pairs = [torch.stack([chroma, null]) for chroma in chromas]
        return [
            Conditions(prefix=torch.cat([pair, text_pair], dim=1), shared=(0, len(null)))
            for pair in pairs
        ]


def _projection(checkpoint: Checkpoint, name: str, width: int, device: torch.device) -> nn.Linear:
    """The projection of a conditioner's `width` features to the decoder's dim."""
    state, dim = checkpoint.projection(name), checkpoint.lm.dim
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    if shapes != {"weight": (dim, width), "bias": (dim,)}:
        raise WeightsError(
            f"{checkpoint.lm_file}: the output_proj of {name} has the shapes {shapes}, but the "
            f"conditioner has {width} features and the decoder {dim}; they do not belong together."
        )
    projection = nn.Linear(width, dim, device="meta")
    parameters: dict[str, Any] = {key: value.float() for key, value in state.items()}
    projection.load_state_dict(parameters, assign=True)
    return projection.to(device).requires_grad_(False)
