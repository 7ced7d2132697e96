"""Request -> Generation: the path of a request. Built once per server; no request changes it.

request -> audio -> prompt codes -> windows -> conditions -> clips -> codes -> wav
"""

import gc
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from musicgen.audio import load_slice
from musicgen.checkpoints import folders
from musicgen.checkpoints.checkpoint import DIFFUSION_FILE, Checkpoint, open_checkpoint
from musicgen.checkpoints.reading import damage_reported
from musicgen.conditioning.conditioner import MAX_TOKENS, Conditioner
from musicgen.decoder import faults
from musicgen.decoder.clip import Clip
from musicgen.decoder.decode_steps import BATCHES
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM
from musicgen.decoder.loop import Loop
from musicgen.decoder.slots import slots_that_fit
from musicgen.errors import InputError, MusicGenError
from musicgen.generation import Generation
from musicgen.rendering.codec import Codec
from musicgen.rendering.renderers import Renderers
from musicgen.request import Request
from musicgen.runtime import memory, processors
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
from musicgen.streaming import Stream, failures_reported, opened

# Each window after the first adds this fraction of a full window: 18 of 30 s, as in audiocraft.
STRIDE = 18 / 30
# The fraction of the memory left after loading that renderings may hold together. A rendering keeps
# its tensors while it yields the device to others.
RENDERING_SHARE = 0.25
# Time of Demucs on the device for a second of melody, compared with EnCodec's decoder. Rough.
SEPARATION_COST = 10

logger = logging.getLogger(__name__)


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
        budget = Budget(int(RENDERING_SHARE * memory.free_bytes(device)))
        self.renderers = Renderers(checkpoint, self.codec, self.device_thread, budget)
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

    def load_all(self) -> None:
        """Load what is otherwise loaded on first use, to check that it loads."""
        if self.conditioner.melody and self.checkpoint.separates:
            _ = self.conditioner.melody.separator
        if self.checkpoint.has_diffusion:
            _ = self.renderers.diffusion

    def generate(self, request: Request, timings: Timings | None = None) -> Generation:
        """Generate `request.clips` clips. Clip i is what seed + i gives alone, bit for bit.

        `timings` gets the seconds of each stage. Raises InputError before any model runs if the
        request does not fit its audio or model, DecodeError if generation fails, and CancelledError
        if the request is cancelled meanwhile.
        """
        with self._run(request, timings or Timings()) as stream:
            return stream.generation

    def stream(
        self, request: Request, timings: Timings | None = None
    ) -> AbstractContextManager[Stream]:
        """A context manager whose `Stream` gives the pieces of the one clip as they are made.

        Its `generation` is what `generate` returns. Leaving the block early cancels the request.
        The errors are those of `generate`.
        """
        if request.clips > 1:
            raise InputError("clips", request.clips, "a stream has one clip", "Send 1")
        return self._run(request, timings or Timings())

    @contextmanager
    def _run(self, request: Request, timings: Timings) -> Iterator[Stream]:
        with failures_reported(self.device):
            clips = self._clips(request, timings)
        with opened(request, clips, self.loop, self.renderers, self._complete, timings) as stream:
            yield stream

    def _clips(self, request: Request, timings: Timings) -> list[Clip]:
        """The clips to decode. Raises InputError if the request does not fit its audio or model."""
        self._check_model(request)
        # An interface, not only a log line: clients of songstarter read the seed from the log.
        logger.info("seed: %d", request.seed)
        if self.precision != EXACT:
            logger.info("precision: %s", self.precision)
        with timings.stage("audio"):
            melody, prompt = self._read_melody(request), self._read_audio_prompt(request)
        with timings.stage("conditioning"):
            return self.device_thread.run(
                lambda: self._prepare(request, melody, prompt),
                self._preparation_cost(melody, prompt),
            )

    def _complete(self, request: Request, wavs: list[Tensor]) -> Generation:
        return Generation(request, wavs, self.codec.sample_rate, self.name, self.precision)

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

    def _preparation_cost(self, melody: Tensor | None, prompt: Tensor | None) -> float:
        """Time on the device for the conditions of a request, in the unit of `Demand.cost`."""
        seconds = 0.0 if prompt is None else prompt.shape[-1] / self.codec.sample_rate
        if melody is not None and self.conditioner.melody:
            seconds += SEPARATION_COST * melody.shape[-1] / self.conditioner.melody.sample_rate
        return seconds

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
