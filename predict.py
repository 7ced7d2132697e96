"""The face of stable-audio-prod: an object, mp3, and a bucket. cog.yaml builds it."""

from typing import Optional

from cog import BasePredictor, Input, Path, Secret

from musicgen.output import Outbox, deliver
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from musicgen.upload import authorize


class Predictor(BasePredictor):
    """Every input is a literal, because Cog reads this file without running it."""

    def setup(self, weights: Optional[Path] = None) -> None:
        """Load the checkpoint."""
        self.model = MusicGen.load(weights)
        self.outbox = Outbox()

    def predict(
        self,
        prompt: Optional[str] = Input(description="Description of the music. Without one the model invents freely."),
        input_audio: Optional[Path] = Input(description="Audio whose melody to follow, or to continue if `continuation` is true."),
        duration: int = Input(description="Length of the result in seconds. A continuation's prompt is part of it.", default=8, ge=1, le=300),
        continuation: bool = Input(description="Continue `input_audio` instead of following its melody.", default=False),
        continuation_start: int = Input(description="Second of `input_audio` to use it from, for melody and continuation alike.", default=0, ge=0),
        continuation_end: Optional[int] = Input(description="Second of `input_audio` to use it up to, for melody and continuation alike. -1 or none: the end of the file.", ge=-1),
        multi_band_diffusion: bool = Input(description="Turn the codes into sound by Multi-Band Diffusion instead of EnCodec: slower, fewer artefacts. For mono and stereo models.", default=False),
        normalization_strategy: str = Input(description="How to level the result: `loudness` to -14 LUFS, `rms` to -18 dBFS, `peak` to -1 dBFS, `clip` only cuts above -1 dBFS.", default="loudness", choices=["loudness", "clip", "peak", "rms"]),
        top_k: int = Input(description="Sample from the k most likely codes; 0 for all.", default=250, ge=0),
        top_p: float = Input(description="Above 0: sample from the likeliest codes whose probabilities add up to p, and ignore `top_k`.", default=0, ge=0, le=1),
        temperature: float = Input(description="Above 1 more varied, below 1 more predictable; 0 always takes the likeliest code.", default=1, ge=0),
        classifier_free_guidance: int = Input(description="How strongly the result follows the prompt and the melody.", default=3, ge=0),
        output_format: str = Input(description="mp3 at 320 kbit/s or 16-bit wav.", default="mp3", choices=["wav", "mp3"]),
        seed: Optional[int] = Input(description="The same seed and inputs give the same audio. -1 or none draws one, which the output tells.", ge=-1, le=4294967295),
        song_id: Optional[int] = Input(description="Store the result in the bucket of this server under this number. Needs `key`.", ge=0),
        key: Optional[Secret] = Input(description="Password that this server asks for before it stores a `song_id`."),
    ) -> dict:  # type: ignore[type-arg]  # Cog renders exactly this as an object
        """Generate one clip."""
        request = Request(
            prompt=prompt,
            audio=input_audio,
        )
