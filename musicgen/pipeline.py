"""A request -> generated clips. Built once per server; holds no state of a request."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from musicgen.audio import load_slice
from musicgen.checkpoints.checkpoint import DIFFUSION_FILE, Checkpoint, open_checkpoint, resolve
from musicgen.conditioning.conditioner import Conditioner
from musicgen.decoder.clip import Clip, windows
from musicgen.decoder.engine import Engine
from musicgen.decoder.sampling import Sampling
from musicgen.errors import InputError, MusicGenError
from musicgen.rendering.codec import Codec
from musicgen.report import timed
from musicgen.request import Request

# The share of a full window that is new in each one after the first: 18 of 30 s, as in audiocraft.
STRIDE = 18 / 30
# Up to this width a second CPU thread saves a sixth of a decode step at best. It can cost half of
# one: Cog predicts in changing threads, OpenMP keeps a pool for each, and pools that outnumber the
# cores wait asleep.
ONE_THREAD_DIM = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What came of a request: wav [C, N] of each clip, and the seconds that each stage took."""

    wavs: Sequence[Tensor]
    sample_rate: int
    model: str
    seconds: dict[str, float]

    @property
    def duration(self) -> float:
        """Seconds of audio in a clip."""
        return self.wavs[0].shape[-1] / self.sample_rate

    @property
    def metrics(self) -> dict[str, float]:
        """Seconds of each stage so far, and seconds of audio made per second of work."""
        made = self.duration * len(self.wavs)
        stages = {f"seconds.{stage}": round(value, 4) for stage, value in self.seconds.items()}
        return {**stages, "real_time_factor": round(made / sum(self.seconds.values()), 3)}


class Decoder(Protocol):
    """Codes -> wav; EnCodec and Multi-Band Diffusion are the two."""

    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone."""
        ...


class MusicGen:
    """A checkpoint on a device, ready to serve requests one after the other."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.name = checkpoint.name
        self.checkpoint = checkpoint
        self.device = device
        self.max_duration = checkpoint.max_duration
        self.has_melody = checkpoint.chroma is not None
        checkpoint.read_ahead()  # the disk works while the other models are built
        self.codec = Codec(checkpoint, device)
        self.conditioner = Conditioner(checkpoint, device)
        rate = self.codec.frame_rate
        self.engine = Engine(
            checkpoint.load_lm(device, compute_dtype(device)),
            max_length=int(self.max_duration * rate),
            stride=int(STRIDE * self.max_duration * rate),
        )

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str | None = None) -> "MusicGen":
        """Load `weights` (default: MUSICGEN_WEIGHTS, or the demo) and warm the engine up."""
        checkpoint = open_checkpoint(resolve(weights))
        if checkpoint.lm.dim <= ONE_THREAD_DIM:
            torch.set_num_threads(1)
        model = cls(checkpoint, resolve_device(device))
        model.engine.warm_up()
        return model

    @cached_property
    def diffusion(self) -> Decoder:
        """Loaded when a request first asks for it: it is as large as a language model."""
        # audiocraft with it, which takes seconds to import.
        from musicgen.rendering.diffusion import MultiBandDiffusion

        return MultiBandDiffusion(self.checkpoint, self.codec, self.device)

    def load_all(self) -> None:
        """Load what is otherwise loaded when first asked for, to see that it loads."""
        if self.conditioner.melody and self.checkpoint.separates:
            _ = self.conditioner.melody.separator
        if self.checkpoint.has_diffusion:
            _ = self.diffusion

    def generate(self, request: Request) -> Generation:
        """Generate `request.clips` clips. Clip i is what seed + i gives alone, bit for bit.

        Raises InputError before any model runs if the request does not fit its audio or model.
        """
        seconds: dict[str, float] = {}
        decoder = self._decoder(request)
        with timed(seconds, "audio"):
            melody, prompt = self._read_audio(request)
        with timed(seconds, "conditioning"):
            clips = self._prepare(request, melody, prompt)
        with timed(seconds, "decode"):
            codes = self._decode(clips)
        with timed(seconds, "codec"):
            wavs = decoder.decode(codes, [clip.seed for clip in clips])
        return Generation(list(wavs), self.codec.sample_rate, self.name, seconds)

    def _decoder(self, request: Request) -> Decoder:
        """The decoder that the request asks for."""
        if not request.multi_band_diffusion:
            return self.codec
        if not self.checkpoint.has_diffusion:
            raise InputError(
                "multi_band_diffusion",
                True,
                f"the checkpoint folder {self.name} has no {DIFFUSION_FILE}",
                "Fetch it with `scripts/weights pull <model> --diffusion`, or send false",
            )
        return self.diffusion

    def _read_audio(self, request: Request) -> tuple[Tensor | None, Tensor | None]:
        """The request's audio as (melody [1, N], continuation prompt [C, N])."""
        if request.audio is None:
            return None, None
        if not request.continuation and not self.has_melody:
            raise InputError(
                "input_audio",
                request.audio.name,
                f"the model {self.name} has no melody conditioning",
                "Set continuation=true to continue the audio, or leave input_audio out",
            )
        # More than this cannot be heard: a melody repeats after the longest window or the end.
        limit = max(self.max_duration, request.duration)
        wav = load_slice(
            request.audio,
            request.start,
            request.end,
            sample_rate=self.codec.sample_rate,
            channels=self.codec.channels if request.continuation else 1,
            limit=request.duration if request.continuation else limit,
        )
        if not request.continuation:
            return wav, None
        request.check_prompt_frames(self.codec.frames(wav.shape[-1]), self.codec.frame_rate)
        return None, wav

    def _prepare(
        self, request: Request, melody: Tensor | None, prompt: Tensor | None
    ) -> list[Clip]:
        """Prompt codes and conditions: all that the engine knows of a request."""
        assert request.seed is not None
        logger.info("seed: %d", request.seed)
        rate = self.codec.frame_rate
        length = int(request.duration * rate)
        prompt_codes = None if prompt is None else self.codec.encode(prompt)
        prompt_frames = 0 if prompt_codes is None else prompt_codes.shape[-1]
        spans = windows(prompt_frames, length, self.engine.max_length, self.engine.stride)
        starts = [span.start / rate for span in spans]
        conditions = self.conditioner(request.prompt, melody, starts)
        sampling = Sampling(request.top_k, request.top_p, request.temperature, request.cfg_coef)
        return [
            Clip(length, request.clip_seed(index), sampling, conditions, prompt_codes)
            for index in range(request.clips)
        ]

    def _decode(self, clips: list[Clip]) -> Tensor:
        """Codes [B, K, T] of all clips as one batch, with a progress bar in the log."""
        with tqdm(desc="decode", unit="step", mininterval=1.0, delay=1e-9) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return torch.stack(self.engine.generate(clips, progress))


def resolve_device(device: str | None = None) -> torch.device:
    """The device to serve on: the argument, MUSICGEN_DEVICE, or (auto) a GPU if there is one."""
    name = device or os.environ.get("MUSICGEN_DEVICE") or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError as exc:
        raise MusicGenError(
            f"MUSICGEN_DEVICE={name!r} is no device; set auto, cpu or cuda."
        ) from exc
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MusicGenError(f"MUSICGEN_DEVICE={name!r}, but no CUDA device is usable; set cpu.")
    return found


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp16 on a GPU, as audiocraft; fp32 arithmetic on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32
