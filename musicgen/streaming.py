"""A request's clips -> its Generation, and the pieces of a clip as soon as they are made.

submitted clips -> codes that are final -> pieces (EnCodec) -> Generation

A piece is rendered once its codes are final, while the decoder makes the next. Its samples are
those of the whole clip, bit for bit (rendering/pieces.py).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from musicgen.decoder import cuda, faults
from musicgen.decoder.clip import Clip
from musicgen.decoder.job import Job
from musicgen.decoder.loop import Loop
from musicgen.errors import DecodeError, MusicGenError
from musicgen.generation import Generation
from musicgen.rendering.renderers import Renderers
from musicgen.request import Request
from musicgen.runtime import cancellation
from musicgen.runtime.timings import Timings

OUT_OF_MEMORY = (
    "Out of memory. Send a shorter duration, or try again when the server has less to do; its "
    "operator can set MUSICGEN_SLOTS to decode fewer clips at once."
)
FAILED = (
    "Generation failed because of a server error, not because of your request. Try again; the "
    "server's log has the details."
)
PROGRESS_SECONDS = 0.5  # between two updates of the progress bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """A part of a clip: wav [C, n] float32 on the CPU, from sample `start` on."""

    start: int
    wav: Tensor


class Stream:
    """A request while it is decoded. Iterate over it to get the pieces of its clip.

    The pieces come in order, without gaps, from sample 0 on. With Multi-Band Diffusion they are a
    preview by EnCodec, because diffusion completes all samples at once, at its end.
    """

    def __init__(
        self,
        request: Request,
        jobs: Sequence[Job],
        renderers: Renderers,
        complete: Callable[[Request, list[Tensor]], Generation],
        timings: Timings,
        bar: "tqdm[Any]",
    ) -> None:
        """Use `MusicGen.stream`. `complete` makes a Generation of the clips' wavs."""
        self._request = request
        self._jobs = jobs
        self._renderers = renderers
        self._complete = complete
        self._timings = timings
        self._bar = bar
        self._own = Timings()  # decoding and rendering alternate; each is one stage of `_timings`
        self._wav = torch.empty(0)  # [C, N] of the clip, filled piece by piece
        self._rendered = 0  # frames of it
        self._generation: Generation | None = None
        self._pieces: Iterator[Piece] = self._render_pieces()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def sample_rate(self) -> int:
        """Samples per second, of the pieces and of the generation."""
        return self._renderers.codec.sample_rate

    @property
    def generation(self) -> Generation:
        """What `generate` returns for the request. Waits until the clips are complete."""
        # Not a cached_property: until Python 3.12 those of all streams would share one lock.
        if self._generation is None:
            with failures_reported(self._renderers.codec.device):
                wavs = self._wavs(self._codes())
                self._timings.add("codec", self._own.seconds["codec"])
                self._generation = self._complete(self._request, wavs)
        return self._generation

    def _close(self) -> None:
        """End the pieces. Their generator refers to this object, which would outlive its users."""
        self._pieces = iter(())

    def _wavs(self, codes: Tensor) -> list[Tensor]:
        """wav [C, N] of each clip, of which pieces may be rendered already."""
        diffusion = self._request.multi_band_diffusion
        if self._rendered and not diffusion:
            for _ in self._pieces:
                pass
            if self._rendered == codes.shape[-1]:  # and no piece has failed
                return [self._wav]
        seeds = [self._request.clip_seed(index) for index in range(len(codes))]
        with self._own.stage("codec"):
            return list(self._renderers.render(codes, seeds, diffusion))

    def _render_pieces(self) -> Iterator[Piece]:
        """The pieces of the only clip, each as soon as its codes are final."""
        [job] = self._jobs
        codec = self._renderers.codec
        hop, rendering = codec.model.config.hop, codec.rendering(job.clip.length)
        self._wav = torch.empty(codec.channels, job.clip.length * hop)
        for span in rendering.spans:
            with failures_reported(codec.device):
                codes = self._part(job, span.low, span.high)
                with self._own.stage("codec"):
                    wav = self._renderers.render_piece(rendering, span, codes)
            if not self._request.multi_band_diffusion:
                self._wav[:, span.start * hop : span.stop * hop] = wav
            self._rendered = span.stop
            # A copy, so that nothing that is done with a piece changes the generation.
            yield Piece(span.start * hop, wav.clone())

    def _part(self, job: Job, start: int, stop: int) -> Tensor:
        """Codes [K, stop - start] of a clip, once they are final."""
        part = job.part(start, stop)
        self._wait([job, part], FIRST_COMPLETED)
        return part.result() if part.done() else job.result()[:, start:stop]

    def _codes(self) -> Tensor:
        """Codes [B, K, T] of all clips, once they are complete."""
        self._wait(self._jobs, FIRST_EXCEPTION)
        codes = torch.stack([job.result() for job in self._jobs])
        self._bar.close()
        waited = min(job.waited for job in self._jobs)
        self._timings.add("waiting", waited)
        self._timings.add("decode", max(0.0, self._own.seconds["decode"] - waited))
        return codes

    def _wait(self, futures: Sequence[Future[Tensor]], return_when: str) -> None:
        """`concurrent.futures.wait`, which shows the progress meanwhile."""
        with self._own.stage("decode"):
            while True:
                done, running = wait(futures, PROGRESS_SECONDS, return_when)
                self._bar.update(sum(job.done_steps for job in self._jobs) - self._bar.n)
                # A cancelled job counts as running for `wait` until the engine has seen that.
                failed = any(future.done() and future.exception() for future in futures)
                if failed or not running or (done and return_when == FIRST_COMPLETED):
                    return


@contextmanager
def opened(
    request: Request,
    clips: Sequence[Clip],
    loop: Loop,
    renderers: Renderers,
    complete: Callable[[Request, list[Tensor]], Generation],
    timings: Timings,
) -> Iterator[Stream]:
    """Decode clips while the block runs. If it ends before they are complete, they are cancelled,
    and their slots are free before the next step."""
    jobs: list[Job] = []
    bar = tqdm(desc="decode", unit="step", mininterval=1.0, delay=1e-9, position=0)
    with cancellation.current.get().covers(jobs), bar:
        with failures_reported(renderers.codec.device):
            for clip in clips:
                jobs.append(loop.submit(clip))
        bar.total = sum(job.steps for job in jobs)
        stream = Stream(request, jobs, renderers, complete, timings, bar)
        try:
            yield stream
        finally:
            stream._close()


@contextmanager
def failures_reported(device: torch.device) -> Iterator[None]:
    """Turn an unexpected error into a DecodeError, whose details are in the log.

    Ends the process if the error was the loss of the device's CUDA context.
    """
    try:
        yield
    except (MusicGenError, CancelledError):
        raise
    except Exception as exc:
        logger.exception("generation failed")
        cuda.exit_if_context_is_lost(device)
        raise DecodeError(OUT_OF_MEMORY if faults.is_exhausted(exc) else FAILED) from exc
