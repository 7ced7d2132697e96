"""Text and melody -> what the decoder is conditioned on, and its null for guidance.

The arithmetic is audiocraft's T5Conditioner and ChromaStemConditioner as MusicGen.get_pretrained
configures them, for one request at a time: nothing is padded, so nothing depends on a neighbour.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musicgen.checkpoints.checkpoint import Checkpoint
from musicgen.checkpoints.demucs import open_demucs
from musicgen.checkpoints.files import damage_reported
from musicgen.checkpoints.saved import read_saved
from musicgen.conditioning.chroma import Chroma
from musicgen.conditioning.t5 import T5Encoder
from musicgen.conditioning.tokens import open_tokenizer
from musicgen.decoder.clip import Conditions
from musicgen.errors import WeightsError

if TYPE_CHECKING:
    from musicgen.conditioning.separation import Separator

# Every slot reserves this many positions. T5 was trained on 512; people send far fewer than 128.
MAX_TOKENS = 128
RESAMPLING_SECONDS = 0.1  # more than a resampling filter sees
CHROMA_ARGUMENTS = ("sample_rate", "n_chroma", "radix2_exp", "argmax")

Register = Callable[[nn.Module], object]

logger = logging.getLogger(__name__)


class TextEncoder:
    """A prompt -> [L, dim]; frozen T5, then the checkpoint's projection. Runs in fp32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        folder = checkpoint.text_folder
        self.tokenize = open_tokenizer(folder)
        with damage_reported(folder):
            self.encoder = T5Encoder(read_saved(folder), device)
        self.projection = _projection(checkpoint, "description", device)
        self.device = device

    def __call__(self, prompt: str | None) -> Tensor:
        """Embeddings [L, dim] of `prompt`; without one zeros, as many as "" has tokens."""
        tokens = self.tokenize(prompt or "")
        if prompt is None:
            return torch.zeros(len(tokens), self.projection.out_features, device=self.device)
        if len(tokens) > MAX_TOKENS:
            logger.warning("prompt: %d tokens, only the first %d are used", len(tokens), MAX_TOKENS)
            tokens = [*tokens[: MAX_TOKENS - 1], tokens[-1]]
        embeddings: Tensor = self.projection(self.encoder(torch.tensor(tokens, device=self.device)))
        return embeddings


class MelodyEncoder:
    """A melody -> chroma [T, dim]: without drums and bass, one pitch class per frame."""

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
        self.projection = _projection(checkpoint, "self_wav", device)
        self.checkpoint = checkpoint
        self.device = device
        self.register = register
        self.samples = int(checkpoint.max_duration * self.sample_rate)
        self.frames: int = self.extractor(torch.zeros(1, self.samples, device=device)).shape[1]

    @cached_property
    def separator(self) -> "Separator":
        """Loaded when the first melody comes, its library too: most requests have none."""
        from musicgen.conditioning.separation import Separator

        separator = Separator(self.checkpoint.demucs_file, self.device)
        self.register(separator.model)
        return separator

    @cached_property
    def context(self) -> float:
        """Seconds of melody after the end of a window that still affect the window's chroma.

        Half a spectrum's window; and Demucs works in segments, of which the last one that reaches
        into the window must be whole. Read from Demucs' file, without loading the model.
        """
        half: float = self.extractor.n_fft / 2 / self.sample_rate
        separates = self.checkpoint.separates
        segment = open_demucs(self.checkpoint.demucs_file).segment if separates else 0.0
        return half + segment + RESAMPLING_SECONDS

    def separate(self, wav: Tensor) -> Tensor:
        """The melody's stems of wav [1, N], mixed: [1, N']; wav itself without Demucs."""
        if not self.checkpoint.separates:
            return wav.to(self.device)
        return self.separator(wav, self.sample_rate)

    def window(self, stem: Tensor, start: float | None) -> Tensor:
        """Chroma embeddings [frames, dim] of one window of the melody `stem` [1, N].

        Without `start` the chroma itself repeats until it fills the window (one window); with it
        the stem is tiled and read from `start` seconds on (windows beyond the model's length).
        """
        if start is not None:
            first = int(start * self.sample_rate)
            positions = torch.arange(first, first + self.samples, device=stem.device)
            stem = stem[:, positions % stem.shape[-1]]
        chroma = self.extractor(stem)[0]
        repeats = -(-self.frames // chroma.shape[0])
        embeddings: Tensor = self.projection(chroma.repeat(repeats, 1)[: self.frames])
        return embeddings

    def check_rate(self, sample_rate: int) -> None:
        """Raise unless melodies have the codec's rate, as audiocraft takes for granted.

        It resamples to that rate before it does to Demucs'; so must we, for the same codes.
        """
        if sample_rate != self.sample_rate:
            raise WeightsError(
                f"{self.checkpoint.lm_file}: its melodies have {self.sample_rate} Hz, its codec "
                f"{sample_rate}; the two files do not belong together."
            )

    @cached_property
    def null(self) -> Tensor:
        """Chroma embeddings [frames, dim] of no melody: audiocraft's single zero sample."""
        return self.window(torch.zeros(1, 1, device=self.device), None)


class Conditioner:
    """Both encoders behind one call."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, register: Register = lambda module: None
    ) -> None:
        """`register` is called with each module that long work calls many times."""
        chroma = checkpoint.chroma
        self.text = TextEncoder(checkpoint, device)
        self.melody = MelodyEncoder(checkpoint, chroma, device, register) if chroma else None
        self.cross = checkpoint.lm.cross_attention

    @property
    def shared(self) -> Tensor | None:
        """Embeddings [T, dim] that all conditions without a melody begin with."""
        return self.melody.null if self.melody else None

    @property
    def longest(self) -> int:
        """Positions of the longest condition that a request can have."""
        return MAX_TOKENS + (self.melody.frames if self.melody else 0)

    @torch.inference_mode()
    def __call__(
        self, prompt: str | None, melody_wav: Tensor | None, starts: list[float]
    ) -> list[Conditions]:
        """Conditions of each window that begins at one of `starts` (seconds).

        `melody_wav` [1, N] is at the melody encoder's sample rate; it is separated once.
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


def _projection(checkpoint: Checkpoint, name: str, device: torch.device) -> nn.Linear:
    state = checkpoint.projection(name)
    dim, width = state["weight"].shape
    projection = nn.Linear(width, dim, device="meta")
    parameters: dict[str, Any] = {key: value.float() for key, value in state.items()}
    projection.load_state_dict(parameters, assign=True)
    return projection.to(device).requires_grad_(False)
