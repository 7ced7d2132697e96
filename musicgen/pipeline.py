"""A request -> generated clips. Built once per server; holds no state of a request."""

import logging
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from musicgen import cancellation, memory
from musicgen.audio import load_slice
from musicgen.checkpoints.checkpoint import DIFFUSION_FILE, Checkpoint, open_checkpoint, resolve
from musicgen.checkpoints.files import damage_reported
from musicgen.conditioning.conditioner import Conditioner
from musicgen.decoder.clip import Clip, windows
from musicgen.decoder.engine import BATCHES, Engine, slot_columns
from musicgen.decoder.lm import LM
from musicgen.decoder.loop import Loop
from musicgen.decoder.sampling import Sampling
from musicgen.decoder.state import State
from musicgen.errors import DecodeError, InputError, MusicGenError
from musicgen.rendering.codec import Codec
from musicgen.report import Timings
from musicgen.request import Request
from musicgen.turns import Turns

# The share of a full window that is new in each one after the first: 18 of 30 s, as in audiocraft.
STRIDE = 18 / 30
# Of the memory that is free once the models are loaded, what the slots may take. The rest is for
# separating, rendering and diffusion, and for what else runs on the machine.
SLOTS_SHARE = 0.6
OUT_OF_MEMORY = (
    "Out of memory. Send a shorter duration, or try again when the server has less to do; its "
    "operator can lower COG_MAX_CONCURRENCY."
)
FAILED = "Generating failed, not by the request's fault. Try again; the log says what happened."
# Up to this width most of a decode step's operations are over before a second thread has woken up.
ONE_THREAD_DIM = 256
PROGRESS_SECONDS = 0.5  # between two looks at how far the decoder is

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What came of a request: wav [C, N] float32 of each clip."""

    wavs: Sequence[Tensor]
    sample_rate: int
    model: str

    @property
    def duration(self) -> float:
        """Seconds of audio in a clip."""
        return self.wavs[0].shape[-1] / self.sample_rate

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in all clips."""
        return self.duration * len(self.wavs)


class Renderer(Protocol):
    """Codes -> wav; EnCodec and Multi-Band Diffusion are the two."""

    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone."""
        ...


class MusicGen:
    """A checkpoint on a device, ready for requests from many threads at once.

    All of them decode together (`loop`); what else needs the device they do in turns.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.name = checkpoint.name
        self.checkpoint = checkpoint
        self.device = device
        self.max_duration = checkpoint.max_duration
        self.has_melody = checkpoint.chroma is not None
        checkpoint.read_ahead()  # the disk works while the other models are built
        self.turns = Turns()
        with damage_reported(checkpoint.codec_file):
            self.codec = Codec(checkpoint, device)
        for module in self.codec.pieces:
            self.turns.share(module)
        with damage_reported(checkpoint.lm_file):
            self.conditioner = Conditioner(checkpoint, device, self.turns.share)
        if self.conditioner.melody:
            self.conditioner.melody.check_rate(self.codec.sample_rate)
        lm = checkpoint.load_lm(device, compute_dtype(device))
        rate, prefix = self.codec.frame_rate, self.conditioner.longest
        shared = self.conditioner.shared
        max_length = int(self.max_duration * rate)
        self.engine = Engine(
            lm,
            max_length=max_length,
            stride=int(STRIDE * self.max_duration * rate),
            slots=slots_that_fit(lm, max_length, prefix, shared is not None),
            prefix=prefix,
            shared=shared,
        )
        self.loop = Loop(self.engine)
        weakref.finalize(self, self.loop.close)

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str | None = None) -> "MusicGen":
        """Load `weights` (default: MUSICGEN_WEIGHTS, or the demo) and warm the engine up."""
        checkpoint = open_checkpoint(resolve(weights))
        if checkpoint.lm.dim <= ONE_THREAD_DIM:
            torch.set_num_threads(1)
        return cls(checkpoint, resolve_device(device))

    @cached_property
    def diffusion(self) -> Renderer:
        """Loaded when a request first asks for it: it is as large as a language model."""
        # audiocraft with it, which takes seconds to import.
        from musicgen.rendering.diffusion import MultiBandDiffusion

        diffusion = MultiBandDiffusion(self.checkpoint, self.codec, self.device)
        for band in diffusion.bands:
            self.turns.share(band.model)
        return diffusion

    def load_all(self) -> None:
        """Load what is otherwise loaded when first asked for, to see that it loads."""
        if self.conditioner.melody and self.checkpoint.separates:
            _ = self.conditioner.melody.separator
        if self.checkpoint.has_diffusion:
            _ = self.diffusion

    def generate(self, request: Request, timings: Timings | None = None) -> Generation:
        """Generate `request.clips` clips. Clip i is what seed + i gives alone, bit for bit.

        `timings` gets the seconds of each stage. Raises InputError before any model runs if the
        request does not fit its audio or model, DecodeError if generating fails, and CancelledError
        if the request was given up meanwhile.
        """
        try:
            return self._generate(request, timings or Timings())
        except (MusicGenError, CancelledError):
            raise
        except Exception as exc:
            logger.exception("generating failed")
            raise DecodeError(OUT_OF_MEMORY if memory.is_exhausted(exc) else FAILED) from exc

    def _generate(self, request: Request, timings: Timings) -> Generation:
        self._check(request)
        with timings.stage("audio"):
            melody, prompt = self.read_melody(request), self.read_prompt(request)
        with timings.stage("conditioning"), self.turns:
            clips = self._prepare(request, melody, prompt)
        codes = self._decode(clips, timings)
        with timings.stage("codec"), self.turns:
            renderer = self.diffusion if request.multi_band_diffusion else self.codec
            wavs = renderer.decode(codes, [clip.seed for clip in clips])
        return Generation(list(wavs), self.codec.sample_rate, self.name)

    def _check(self, request: Request) -> None:
        """Raise InputError for what this checkpoint cannot do."""
        if request.multi_band_diffusion and not self.checkpoint.has_diffusion:
            raise InputError(
                "multi_band_diffusion",
                True,
                f"the checkpoint folder {self.name} has no {DIFFUSION_FILE}",
                "Fetch it with `scripts/weights pull <model> --diffusion`, or send false",
            )
        if request.melody and not self.has_melody:
            raise InputError(
                "input_audio",
                request.melody.name,
                f"the model {self.name} has no melody conditioning",
                "Set continuation=true to continue the audio, or leave input_audio out",
            )

    def read_melody(self, request: Request) -> Tensor | None:
        """The melody to follow, [1, N] at the melody encoder's rate, as far as it can be heard."""
        if request.melody is None or self.conditioner.melody is None:
            return None
        melody = self.conditioner.melody
        last = self._windows(request, 0)[-1]
        with self.turns:
            reach = last + self.max_duration + melody.context
        return load_slice(
            request.melody,
            request.start,
            request.end,
            sample_rate=melody.sample_rate,
            channels=1,
            limit=reach,
        )

    def read_prompt(self, request: Request) -> Tensor | None:
        """The beginning to continue, [C, N] at the codec's rate."""
        if request.continued is None:
            return None
        wav = load_slice(
            request.continued,
            request.start,
            request.end,
            sample_rate=self.codec.sample_rate,
            channels=self.codec.channels,
            limit=request.duration,
        )
        request.check_prompt_frames(self.codec.frames(wav.shape[-1]), self.codec.frame_rate)
        return wav

    def _windows(self, request: Request, prompt_frames: int) -> list[float]:
        """Seconds at which the windows of a clip begin, after so many known frames."""
        rate, engine = self.codec.frame_rate, self.engine
        spans = windows(prompt_frames, request.frames(rate), engine.max_length, engine.stride)
        return [span.start / rate for span in spans]

    def _prepare(
        self, request: Request, melody: Tensor | None, prompt: Tensor | None
    ) -> list[Clip]:
        """Prompt codes and conditions: all that the engine knows of a request."""
        logger.info("seed: %d", request.seed)
        prompt_codes = None if prompt is None else self.codec.encode(prompt)
        prompt_frames = 0 if prompt_codes is None else prompt_codes.shape[-1]
        starts = self._windows(request, prompt_frames)
        conditions = self.conditioner(request.prompt, melody, starts)
        sampling = Sampling(request.top_k, request.top_p, request.temperature, request.cfg_coef)
        length = request.frames(self.codec.frame_rate)
        return [
            Clip(length, request.clip_seed(index), sampling, conditions, prompt_codes)
            for index in range(request.clips)
        ]

    def _decode(self, clips: list[Clip], timings: Timings) -> Tensor:
        """Codes [B, K, T] of all clips, decoded beside other requests'; logs progress."""
        jobs = [self.loop.submit(clip) for clip in clips]
        total = sum(job.steps for job in jobs)
        bar = tqdm(desc="decode", unit="step", total=total, mininterval=1.0, delay=1e-9, position=0)
        with timings.stage("decode"), cancellation.current.get().covers([*jobs]), bar:
            while True:
                waiting = wait(jobs, PROGRESS_SECONDS, FIRST_EXCEPTION).not_done
                bar.update(sum(job.done_steps for job in jobs) - bar.n)
                if not waiting or any(job.done() and job.exception() for job in jobs):
                    break
            codes = [job.result() for job in jobs]
        waited = min(job.waited for job in jobs)
        timings.add("waiting", waited)
        timings.add("decode", -waited)
        return torch.stack(codes)


def slots_that_fit(lm: LM, max_length: int, prefix: int, shared: bool = False) -> int:
    """How many clips can be decoded at once: as many as a step can be made for, memory allowing.

    A slot has two rows; `shared` ones need a row more for all of them.
    """
    row = State.slot_bytes(lm, slot_columns(lm, max_length), prefix) / 2
    rows = int(SLOTS_SHARE * memory.free_bytes(lm.device) / row) - shared
    return max(1, min(BATCHES[-1], rows // 2))


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
