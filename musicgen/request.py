"""What one prediction asks for, and the rules between its fields, checked before any heavy work.

The fields have the names of the API, so an error always names what the caller wrote.
"""

import math
import secrets
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from musicgen.decoder.sampling import SEED_RANGE, Sampling
from musicgen.errors import InputError

NORMALIZATIONS = ("loudness", "clip", "peak", "rms")
OUTPUT_FORMATS = ("wav", "mp3")
RANDOM_SEED = -1  # draw a seed
FILE_END = -1  # continuation_end: the end of the file
# Far beyond any useful value, and well within the range of float32 arithmetic.
MAX_VALUE = 1e9

# Far more than the 512 tokens that T5 reads; tokenizing megabytes would stop all other requests.
MAX_PROMPT = 10_000
WHOLE_NUMBERS = ("top_k", "seed", "clips")
NUMBERS = (
    *WHOLE_NUMBERS,
    "duration",
    "continuation_start",
    "top_p",
    "temperature",
    "classifier_free_guidance",
)

DEFAULTS = Sampling()


@dataclass(frozen=True)
class Request:
    """One prediction. Times are in seconds.

    `input_audio` is the file to follow or, with `continuation`, to continue. `duration` includes
    the part that is continued (the audio prompt). `continuation_end` None or -1 means the end of
    the file. `seed` -1 draws one; after construction `seed` is always the seed that will be used.

    Raises InputError for a field, or a combination of fields, that cannot be served.
    """

    prompt: str | None = None
    input_audio: Path | None = None
    duration: float = 8
    continuation: bool = False
    continuation_start: float = 0
    continuation_end: float | None = None
    multi_band_diffusion: bool = False
    normalization_strategy: str = "loudness"
    top_k: int = DEFAULTS.top_k
    top_p: float = DEFAULTS.top_p
    temperature: float = DEFAULTS.temperature
    classifier_free_guidance: float = DEFAULTS.cfg_coef
    output_format: str = "mp3"
    seed: int = RANDOM_SEED
    clips: int = 1

    def __post_init__(self) -> None:
        _check_types(self)
        for field in WHOLE_NUMBERS:
            object.__setattr__(self, field, _whole(field, getattr(self, field)))
        _check_values(self)
        _check_audio_fields(self)
        _check_slice(self)
        # The normalized values; a frozen dataclass is written this way in its own constructor.
        object.__setattr__(self, "prompt", (self.prompt or "").strip() or None)
        if self.continuation_end == FILE_END:
            object.__setattr__(self, "continuation_end", None)
        if self.seed == RANDOM_SEED:
            object.__setattr__(self, "seed", secrets.randbelow(SEED_RANGE))

    @property
    def melody(self) -> Path | None:
        """`input_audio`, if its melody is to be followed."""
        return None if self.continuation else self.input_audio

    @property
    def audio_prompt(self) -> Path | None:
        """`input_audio`, if it is to be continued."""
        return self.input_audio if self.continuation else None

    @property
    def sampling(self) -> Sampling:
        """The decoder's sampling settings."""
        return Sampling(self.top_k, self.top_p, self.temperature, self.classifier_free_guidance)

    def clip_seed(self, index: int) -> int:
        """Seed of clip `index`: clip i equals the only clip of a request with `seed + i`."""
        return (self.seed + index) % SEED_RANGE

    def frames(self, frame_rate: float) -> int:
        """Codec frames of the result."""
        return int(self.duration * frame_rate)

    def check_audio_prompt(self, frames: int, frame_rate: float) -> None:
        """Raise InputError unless an audio prompt of `frames` leaves a frame to generate."""
        total = self.frames(frame_rate)
        if frames < total:
            return
        whole = math.floor((total - 1) / frame_rate)
        cut = f" or continuation_end={self.continuation_start + whole:g}" if whole > 0 else ""
        raise InputError(
            "duration",
            self.duration,
            f"the continuation prompt of {frames / frame_rate:.2f} s or more leaves nothing to "
            "generate, since duration includes the prompt",
            f"Send a duration above {frames / frame_rate:.2f}{cut}",
        )


def _check_types(request: Request) -> None:
    """The types of text and numbers, for callers from Python."""
    if not isinstance(request.prompt, str | None):
        raise InputError("prompt", request.prompt, "not a text", "Send a text, or None")
    optional = ("continuation_end",) if request.continuation_end is not None else ()
    for field in (*NUMBERS, *optional):
        value = getattr(request, field)
        if not isinstance(value, Real):
            raise InputError(field, value, "not a number", "Send a number")


def _whole(field: str, value: float) -> int:
    """A whole number as int: JSON allows 42.0 where the schema says integer."""
    if not math.isfinite(value) or value != int(value):
        raise InputError(field, value, "not a whole number", "Send it without a fraction")
    return int(value)


def _check_values(request: Request) -> None:
    """Each field by itself, for callers that do not come through the API's schema."""
    r, bounded = request, f"Send 0 to {MAX_VALUE:,.0f}"
    checks: tuple[tuple[str, bool, str], ...] = (
        ("prompt", len(r.prompt or "") <= MAX_PROMPT, f"Send at most {MAX_PROMPT:,} characters"),
        ("duration", 0 < r.duration < math.inf, "Send a number of seconds above 0"),
        ("top_k", r.top_k >= 0, "Send 0 (no limit) or more"),
        ("top_p", 0 <= r.top_p <= 1, "Send a value from 0 to 1"),
        ("temperature", 0 <= r.temperature <= MAX_VALUE, bounded),
        ("classifier_free_guidance", 0 <= r.classifier_free_guidance <= MAX_VALUE, bounded),
        (
            "normalization_strategy",
            r.normalization_strategy in NORMALIZATIONS,
            f"Send one of {', '.join(NORMALIZATIONS)}",
        ),
        (
            "output_format",
            r.output_format in OUTPUT_FORMATS,
            f"Send one of {', '.join(OUTPUT_FORMATS)}",
        ),
        (
            "seed",
            RANDOM_SEED <= r.seed < SEED_RANGE,
            f"Send -1 (random) to {SEED_RANGE - 1}",
        ),
        ("clips", r.clips >= 1, "Send 1 or more"),
    )
    for field, good, fix in checks:
        if not good:  # a NaN fails every comparison
            value = getattr(request, field)
            shown = f"{value[:20]}..." if field == "prompt" else value
            raise InputError(field, shown, "out of range", fix)


def _check_audio_fields(request: Request) -> None:
    audio = request.input_audio
    if audio is not None and not isinstance(audio, Path):
        raise InputError(
            "input_audio",
            str(audio)[:80],
            "not a file",
            "Send an http(s) URL or a data URI; the server does not read paths. From Python, pass "
            "a pathlib.Path",
        )
    if audio is not None:
        return
    fix = "Send input_audio too, or leave this field out"
    if request.continuation:
        raise InputError("continuation", True, "there is no input_audio to continue", fix)
    unused = {
        "continuation_start": request.continuation_start != 0,
        "continuation_end": request.continuation_end not in (None, FILE_END),
    }
    for field, given in unused.items():
        if given:
            raise InputError(field, getattr(request, field), "no input_audio to cut", fix)


def _check_slice(request: Request) -> None:
    start, end = request.continuation_start, request.continuation_end
    if not 0 <= start < math.inf:
        raise InputError("continuation_start", start, "out of range", "Send 0 or more seconds")
    if end is None or end == FILE_END:
        return
    if not 0 <= end < math.inf:
        raise InputError("continuation_end", end, "out of range", "Send seconds, or -1 for the end")
    if end <= start:
        raise InputError(
            "continuation_end",
            end,
            f"the slice from continuation_start={start:g} is empty or reversed",
            f"Send a value above {start:g}, or -1 for the end of the file",
        )
