"""Request -> Generation: the path of a request. Built once per server; no request changes it.

request -> audio -> prompt codes -> windows -> conditions -> clips -> codes -> wav
"""

import gc
import logging
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, wait
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from musicgen.audio import load_slice
from musicgen.checkpoints import folders
from musicgen.checkpoints.checkpoint import DIFFUSION_FILE, Checkpoint, open_checkpoint
from musicgen.checkpoints.reading import damage_reported
from musicgen.conditioning.conditioner import MAX_TOKENS, Conditioner
from musicgen.decoder import cuda, faults
from musicgen.decoder.clip import Clip
from musicgen.decoder.decode_steps import BATCHES
from musicgen.decoder.engine import Engine
from musicgen.decoder.job import Job
from musicgen.decoder.lm import LM
from musicgen.decoder.loop import Loop
from musicgen.decoder.slots import slots_that_fit
from musicgen.errors import DecodeError, InputError, MusicGenError
from musicgen.generation import Generation
from musicgen.rendering.codec import Codec
from musicgen.rendering.demand import DIFFUSION, ENCODEC, Demand
from musicgen.request import Request
from musicgen.runtime import cancellation, memory, processors
from musicgen.runtime.budget import Budget
from musicgen.runtime.device_thread import DeviceThread
from musicgen.runtime.devices import (
    EXACT,
    FAST,
    compute_dtype,
    describe_device,
    resolve_device,
    resolve_precision,
)
from musicgen.runtime.input_files import sent_name
from musicgen.runtime.timings import Timings

# Each window after the first adds this fraction of a full window: 18 of 30 s, as in audiocraft.
STRIDE = 18 / 30
OUT_OF_MEMORY = (
    "Out of memory. Send a shorter duration, or try again when the server has less to do; its "
    "operator can set MUSICGEN_SLOTS to decode fewer clips at once."
)
FAILED = (
    "Generation failed because of a server error, not because of your request. Try again; the "
    "server's log has the details."
)
PROGRESS_SECONDS = 0.5  # between two updates of the progress bar
# The fraction of the memory left after loading that renderings may hold together. A rendering keeps
# its tensors while it yields the device to others.
RENDERING_SHARE = 0.25
# Time of Demucs on the device for a second of melody, compared with EnCodec's decoder. Rough.
SEPARATION_COST = 10

logger = logging.getLogger(__name__)


class Renderer(Protocol):
    """Codes -> wav, implemented by EnCodec and by Multi-Band Diffusion."""

    def decode(self, codes: Tensor, seeds: Sequence[int]) -> Tensor:
        """codes [B, K, T] -> wav [B, C, N] float32 on the CPU; clip i depends on seeds[i] alone."""
        ...


class MusicGen:
    """A checkpoint on a device. `generate` may be called from many threads at once.

    All requests decode together, in the one thread of `loop`. Other work on the device (T5, Demucs,
    EnCodec, diffusion) runs in `device_thread`.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, precision: str = EXACT
    ) -> None:
        """Use `load`."""
        self.name = checkpoint.name
        self.precision = precision
        self.checkpoint = checkpoint
        self.device = device
        self.max_duration = checkpoint.max_duration
        self.has_melody = checkpoint.chroma is not None
        checkpoint.read_ahead()  # the disk works while the other models are built
        self.device_thread = DeviceThread(device)
        weakref.finalize(self, self.device_thread.close)
        with damage_reported(checkpoint.codec_file):
            self.codec = Codec(checkpoint, device)
        for module in self.codec.pieces:
            self.device_thread.yield_before(module)
        with damage_reported(checkpoint.lm_file):
            self.conditioner = Conditioner(checkpoint, device, self.device_thread.yield_before)
        if self.conditioner.melody:
            self.conditioner.melody.check_rate(self.codec.sample_rate)
        lm = checkpoint.load_lm(
            device, compute_dtype(device), processors.available(), fast=precision == FAST
        )
        # Each slot has memory for the longest text. Where that is short, long texts are cut.
        for self.conditioner.text.max_tokens in MAX_TOKENS:
            if self._slots(lm) == _wanted_slots():
                break
        self.loop = self._start_decoding(lm)
        self.engine = self.loop.engine
        weakref.finalize(self, self.loop.close)
        self.renderings = Budget(int(RENDERING_SHARE * memory.free_bytes(device)))
        if device.type == "cuda":
            self.device_thread.run(self._warm_up_codec_and_text)

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> "MusicGen":
        """Load the checkpoint `weights` and warm up.

        `weights` is a folder, or the https URL of a tar that holds one; by default MUSICGEN_WEIGHTS
        or the demo. `device` is auto, cpu or cuda; by default MUSICGEN_DEVICE or auto. `precision`
        is exact or, on a CPU, fast (int8 weights, float16 keys and values); by default
        MUSICGEN_PRECISION or exact. Raises WeightsError for a checkpoint that cannot be used.
        """
        begin = perf_counter()
        chosen = resolve_device(device)
        mode = resolve_precision(precision, chosen)
        model = cls(open_checkpoint(folders.resolve(weights)), chosen, mode)
        logger.info(
            "%s is ready on %s: %s, precision %s, %d clips at once, texts of %d tokens, loaded in "
            "%.1f s",
            model.name,
            describe_device(model.device),
            model.engine.decode_steps.description,
            model.precision,
            model.engine.slots,
            model.conditioner.text.max_tokens,
            perf_counter() - begin,
        )
        return model

    @cached_property
    def diffusion(self) -> Renderer:
        """Multi-Band Diffusion, loaded for the first request that asks: it is as large as an LM."""
        # It imports audiocraft, which takes seconds.
        from musicgen.rendering.diffusion import MultiBandDiffusion

        diffusion = MultiBandDiffusion(self.checkpoint, self.codec, self.device)
        for band in diffusion.bands:
            self.device_thread.yield_before(band.model)
        return diffusion

    def load_all(self) -> None:
        """Load what is otherwise loaded on first use, to check that it loads."""
        if self.conditioner.melody and self.checkpoint.separates:
            _ = self.conditioner.melody.separator
        if self.checkpoint.has_diffusion:
            _ = self.diffusion

    def generate(self, request: Request, timings: Timings | None = None) -> Generation:
        """Generate `request.clips` clips. Clip i is what seed + i gives alone, bit for bit.

        `timings` gets the seconds of each stage. Raises InputError before any model runs if the
        request does not fit its audio or model, DecodeError if generation fails, and CancelledError
        if the request is cancelled meanwhile.
        """
        try:
            return self._generate(request, timings or Timings())
        except (MusicGenError, CancelledError):
            raise
        except Exception as exc:
            logger.exception("generation failed")
            cuda.exit_if_context_is_lost(self.device)
            raise DecodeError(OUT_OF_MEMORY if faults.is_exhausted(exc) else FAILED) from exc

    def _generate(self, request: Request, timings: Timings) -> Generation:
        self._check_model(request)
        # An interface, not only a log line: clients of songstarter read the seed from the log.
        logger.info("seed: %d", request.seed)
        if self.precision != EXACT:
            logger.info("precision: %s", self.precision)
        with timings.stage("audio"):
            melody, prompt = self._read_melody(request), self._read_audio_prompt(request)
        with timings.stage("conditioning"):
            clips = self.device_thread.run(
                lambda: self._prepare(request, melody, prompt),
                self._preparation_cost(melody, prompt),
            )
        codes = self._decode(clips, timings)
        with timings.stage("codec"), self.renderings.take(self._rendering_bytes(request)):
            wavs = self.device_thread.run(
                lambda: self._render(request, codes),
                request.duration * request.clips * self._demand(request).cost,
            )
        return Generation(request, list(wavs), self.codec.sample_rate, self.name, self.precision)

    def _check_model(self, request: Request) -> None:
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
                sent_name(request.melody),
                f"the model {self.name} has no melody conditioning",
                "Set continuation=true to continue the audio, or leave input_audio out",
            )

    def _read_melody(self, request: Request) -> Tensor | None:
        """The melody to follow, [1, N] at the melody encoder's rate, as far as it matters."""
        encoder = self.conditioner.melody
        if request.melody is None or encoder is None:
            return None
        one_window = request.duration <= self.max_duration
        # No window ends later than this.
        stop = self.max_duration if one_window else request.duration + STRIDE * self.max_duration
        return load_slice(
            request.melody,
            request.continuation_start,
            request.continuation_end,
            sample_rate=encoder.sample_rate,
            channels=1,
            limit=stop + encoder.context,
        )

    def _read_audio_prompt(self, request: Request) -> Tensor | None:
        """The audio to continue, [C, N] at the codec's rate."""
        if request.audio_prompt is None:
            return None
        wav = load_slice(
            request.audio_prompt,
            request.continuation_start,
            request.continuation_end,
            sample_rate=self.codec.sample_rate,
            channels=self.codec.channels,
            limit=request.duration,
        )
        request.check_audio_prompt(self.codec.frames(wav.shape[-1]), self.codec.frame_rate)
        return wav

    def _prepare(
        self, request: Request, melody: Tensor | None, prompt: Tensor | None
    ) -> list[Clip]:
        """Everything the engine needs of a request: prompt codes, windows' conditions, seeds."""
        rate = self.codec.frame_rate
        length = request.frames(rate)
        prompt_codes = None if prompt is None else self.codec.encode(prompt)
        prompt_length = 0 if prompt_codes is None else prompt_codes.shape[-1]
        windows = self.engine.windows(prompt_length, length)
        starts = [window.start / rate for window in windows]
        conditions = self.conditioner(request.prompt, melody, starts)
        return [
            Clip(length, request.clip_seed(index), request.sampling, conditions, prompt_codes)
            for index in range(request.clips)
        ]

    def _decode(self, clips: list[Clip], timings: Timings) -> Tensor:
        """Codes [B, K, T] of all clips, decoded beside other requests'; shows progress."""
        begin = perf_counter()
        jobs: list[Job] = []
        bar = tqdm(desc="decode", unit="step", mininterval=1.0, delay=1e-9, position=0)
        with cancellation.current.get().covers(jobs), bar:
            for clip in clips:
                jobs.append(self.loop.submit(clip))
            bar.total = sum(job.steps for job in jobs)
            while True:
                running = wait(jobs, PROGRESS_SECONDS, FIRST_EXCEPTION).not_done
                bar.update(sum(job.done_steps for job in jobs) - bar.n)
                if not running or any(job.done() and job.exception() for job in jobs):
                    break
            codes = [job.result() for job in jobs]
        waited = min(job.waited for job in jobs)
        timings.add("waiting", waited)
        timings.add("decode", perf_counter() - begin - waited)
        return torch.stack(codes)

    def _render(self, request: Request, codes: Tensor) -> Tensor:
        """wav [B, C, N] of codes [B, K, T]."""
        renderer = self.diffusion if request.multi_band_diffusion else self.codec
        return renderer.decode(codes, [request.clip_seed(i) for i in range(request.clips)])

    def _preparation_cost(self, melody: Tensor | None, prompt: Tensor | None) -> float:
        """Time on the device for the conditions of a request, in the unit of `Demand.cost`."""
        seconds = 0.0 if prompt is None else prompt.shape[-1] / self.codec.sample_rate
        if melody is not None and self.conditioner.melody:
            seconds += SEPARATION_COST * melody.shape[-1] / self.conditioner.melody.sample_rate
        return seconds

    def _rendering_bytes(self, request: Request) -> int:
        """Memory that rendering the request's clips takes at its peak, on the device or beside."""
        samples = request.duration * request.clips * self.codec.sample_rate * self.codec.channels
        return int(4 * samples * self._demand(request).copies)

    @staticmethod
    def _demand(request: Request) -> Demand:
        return DIFFUSION if request.multi_band_diffusion else ENCODEC

    def _start_decoding(self, lm: LM) -> Loop:
        """Start the decode thread with as many slots as fit.

        If another process has taken the memory in the meantime, try half as many.
        """
        slots = self._slots(lm)
        while True:
            try:
                return Loop(
                    Engine(
                        lm,
                        max_length=window_frames(self.checkpoint, self.codec),
                        stride=round(STRIDE * self.max_duration * self.codec.frame_rate),
                        slots=slots,
                        max_prefix=self.conditioner.longest,
                        shared_prefix=self.conditioner.shared,
                    )
                )
            except RuntimeError as exc:
                if slots == 1 or not faults.is_exhausted(exc):
                    raise
                logger.warning("no memory for %d slots, trying %d", slots, slots // 2)
            slots //= 2
            gc.collect()  # the failed engine is part of a reference cycle
            torch.cuda.empty_cache()

    def _slots(self, lm: LM) -> int:
        """How many slots fit beside what the first request for diffusion will load.

        MUSICGEN_SLOTS can lower the number; clips above it wait.
        """
        diffusion = self.checkpoint.folder / DIFFUSION_FILE
        reserved = diffusion.stat().st_size if self.checkpoint.has_diffusion else 0
        free = memory.free_bytes(self.device) - reserved
        shared = self.conditioner.shared is not None
        frames = window_frames(self.checkpoint, self.codec)
        fit = slots_that_fit(lm, free, frames, self.conditioner.longest, shared)
        return min(_wanted_slots(), fit)

    def _warm_up_codec_and_text(self) -> None:
        """Run the other models once: the first call on a GPU loads libraries, which takes seconds.

        cuDNN and cuBLAS would otherwise be loaded during the first request.
        """
        with torch.inference_mode():
            self.conditioner("warm-up", None, [0.0])
            silence = torch.zeros(self.codec.channels, self.codec.sample_rate)
            self.codec.decode(self.codec.encode(silence)[None], [0])


def window_frames(checkpoint: Checkpoint, codec: Codec) -> int:
    """Frames of the longest window."""
    return int(checkpoint.max_duration * codec.frame_rate)


def _wanted_slots() -> int:
    """The most clips to decode at once, by MUSICGEN_SLOTS. Raises MusicGenError."""
    text = os.environ.get("MUSICGEN_SLOTS") or str(BATCHES[-1])
    if not text.isdecimal() or not 1 <= int(text) <= BATCHES[-1]:
        raise MusicGenError(f"MUSICGEN_SLOTS={text!r}: set a whole number from 1 to {BATCHES[-1]}.")
    return int(text)
