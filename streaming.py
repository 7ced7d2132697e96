"""The API of predict.py without uploads, and the clip in pieces while it is made.

With `Accept: text/event-stream`, the pieces are metric events (docs/streaming.md). They are promised
for Cog's own server only. Built by cog.streaming.yaml.
"""

import base64
from typing import Any, AsyncIterator, Dict, Optional

from cog import BasePredictor, Input, Path, concurrent, streaming

from musicgen import provenance
from musicgen.output import describe, preview, write_clips
from musicgen.pipeline import MusicGen
from musicgen.request import RANDOM_SEED, Request
from musicgen.serving import input_downloads
from musicgen.serving.input_downloads import Limits
from musicgen.serving.logs import log_to_stderr
from musicgen.serving.result_files import ResultFiles
from musicgen.serving.tracing import traced_timings
from musicgen.serving.workers import Workers
from musicgen.streaming import Stream


class Predictor(BasePredictor):
    """Cog reads this file without running it: every Input keyword is one plain literal."""

    def setup(self, weights: Optional[Path] = None) -> None:
        """Load the checkpoint and warm up."""
        log_to_stderr()
        self.tags = provenance.configured()
        self.model = MusicGen.load(weights)
        self.result_files = ResultFiles()
        self.result_files.receive_inputs()
        input_downloads.install(Limits.of())
        self.workers = Workers()

    @streaming
    @concurrent(max=32)
    async def predict(
        self,
        prompt: Optional[str] = Input(
            description="Description of the music. Without one the model generates freely."
        ),
        input_audio: Optional[Path] = Input(
            description="Audio file to take the melody from or, if continuation is true, to continue."
        ),
        duration: int = Input(
            description="Length of the result in seconds. For a continuation, this includes the audio that is continued.",
            default=8,
            ge=1,
            le=300,
        ),
        continuation: bool = Input(
            description="Continue input_audio. Otherwise the result follows its melody.",
            default=False,
        ),
        continuation_start: int = Input(
            description="Second at which the used part of input_audio starts, for melody and continuation.",
            default=0,
            ge=0,
        ),
        continuation_end: Optional[int] = Input(
            description="Second at which the used part of input_audio ends, for melody and continuation. None or -1 means the end of the file.",
            ge=-1,
        ),
        multi_band_diffusion: bool = Input(
            description="Decode with Multi-Band Diffusion instead of EnCodec: slower, with fewer artefacts. Works with mono and stereo models.",
            default=False,
        ),
        normalization_strategy: str = Input(
            description="Level of the result: loudness is -14 LUFS, rms -18 dBFS, peak -1 dBFS; clip only cuts peaks above -1 dBFS.",
            default="loudness",
            choices=["loudness", "clip", "peak", "rms"],
        ),
        top_k: int = Input(
            description="Sample from the k most likely codes. 0 samples from all.",
            default=250,
            ge=0,
        ),
        top_p: float = Input(
            description="Above 0, sample from the most likely codes whose probabilities add up to p; this replaces top_k.",
            default=0,
            ge=0,
            le=1,
        ),
        temperature: float = Input(
            description="Above 1 is more varied, below 1 more predictable. 0 always takes the most likely code.",
            default=1,
            ge=0,
        ),
        classifier_free_guidance: int = Input(
            description="How closely the result follows the prompt and the melody.",
            default=3,
            ge=0,
        ),
        output_format: str = Input(
            description="mp3 has 320 kbit/s, wav has 16 bits per sample.",
            default="mp3",
            choices=["wav", "mp3"],
        ),
        seed: Optional[int] = Input(
            description="The same seed and inputs give the same audio. None or -1 draws a random seed; the output contains it.",
            ge=-1,
            le=4294967295,
        ),
    ) -> AsyncIterator[dict]:  # type: ignore[type-arg]  # dict[str, Any] would be another schema
        """Generate one clip; the output's only item is the file and its properties.

        Cog allows `@streaming` for iterators only, but collects what an asynchronous one yields and
        sends all at its end. Metrics are sent at once, so the pieces are metrics.
        """
        request = Request(
            prompt=prompt,
            input_audio=input_audio,
            duration=duration,
            continuation=continuation,
            continuation_start=continuation_start,
            continuation_end=continuation_end,
            multi_band_diffusion=multi_band_diffusion,
            normalization_strategy=normalization_strategy,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            classifier_free_guidance=classifier_free_guidance,
            output_format=output_format,
            seed=RANDOM_SEED if seed is None else seed,
        )
        yield await self.workers.run(self.answer, request)

    def answer(self, request: Request) -> Dict[str, Any]:
        """Serve one request from start to end, in a worker thread."""
        with traced_timings() as timings, self.result_files.folder() as folder:
            with self.model.stream(request, timings) as stream:
                self.send_pieces(stream)
                generation = stream.generation
            [file] = write_clips(generation, folder, timings, self.tags)
            for name, value in timings.metrics(generation.total_duration).items():
                self.record_metric(name, value)
            self.record_metric("precision", generation.precision)
            return {"audio": Path(file), **describe(generation)}

    def send_pieces(self, stream: Stream) -> None:
        """Send each piece as a metric event; then remove the metric from the response."""
        try:
            for piece in stream:
                pcm = base64.b64encode(preview(piece.wav)).decode()
                properties = {"channels": len(piece.wav), "sample_rate": stream.sample_rate}
                self.record_metric("piece", {"start": piece.start, "pcm": pcm, **properties})
        finally:
            self.scope.metrics.delete("piece")
