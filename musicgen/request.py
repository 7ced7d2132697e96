"""What one prediction asks for, and every rule between its fields, checked before heavy work.

Errors name fields as the API spells them, because that is what the sender can change.
"""

import logging
import math
import secrets
from dataclasses import dataclass
from pathlib import Path

from musicgen.decoder.sampling import SEED_RANGE, Sampling
from musicgen.errors import InputError

NORMALIZATIONS = ("loudness", "clip", "peak", "rms")
OUTPUT_FORMATS = ("wav", "mp3")
DRAWN = -1  # a seed that says: draw one
FILE_END = -1  # an end of the slice that says: the file's
# Far beyond what makes sense, and far within what float32 can compute with.
LARGEST = 1e9

DEFAULTS = Sampling()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One prediction. Times are seconds; `audio` is the input audio file, not its path as text.

    `duration` counts the continuation's prompt. `end` None or -1 is the end of the file. `seed` -1
    draws one; after construction it is always the seed that will be used.

    Raises InputError for a field, or a combination of fields, that cannot be served.
    """

    prompt: str | None = None
    audio: Path | None = None
    duration: float = 8
    continuation: bool = False
    start: float = 0
    end: float | None = None
    multi_band_diffusion: bool = False
    normalization: str = "loudness"
    top_k: int = DEFAULTS.top_k
    top_p: float = DEFAULTS.top_p
    temperature: float = DEFAULTS.temperature
    cfg_coef: float = DEFAULTS.cfg_coef
    output_format: str = "mp3"
    seed: int = DRAWN
    clips: int = 1

    def __post_init__(self) -> None:
        _check_values(self)
        _check_audio_fields(self)
        _check_slice(self)
        # A frozen dataclass sets its own derived values this way; nobody else may.
        object.__setattr__(self, "prompt", (self.prompt or "").strip() or None)
        object.__setattr__(self, "end", None if self.end == FILE_END else self.end)
        if self.seed == DRAWN:
            object.__setattr__(self, "seed", secrets.randbelow(SEED_RANGE))

    @property
    def melody(self) -> Path | None:
        """The audio, if it is to be followed."""
        return None if self.continuation else self.audio

    @property
    def continued(self) -> Path | None:
        """The audio, if it is to be continued."""
        return self.audio if self.continuation else None

    def clip_seed(self, index: int) -> int:
        """Seed of clip `index`: clip i of a request is what `seed + i` gives alone."""
        return (self.seed + index) % SEED_RANGE

    def frames(self, frame_rate: float) -> int:
        """Codec frames of the result."""
        return int(self.duration * frame_rate)

    def check_prompt_frames(self, frames: int, frame_rate: float) -> None:
        """Raise unless a continuation prompt of so many codec frames leaves a frame to generate."""
        total = self.frames(frame_rate)
        if frames < total:
            return
        whole = math.floor((total - 1) / frame_rate)
        cut = f" or continuation_end={self.start + whole:g}" if whole > 0 else ""
        raise InputError(
            "duration",
            self.duration,
            f"the continuation prompt of {frames / frame_rate:.2f} s or more leaves nothing to "
            "generate, since duration includes the prompt",
            f"Send a duration above {frames / frame_rate:.2f}{cut}",
        )


def resolve_slice(
    start: float, end: float | None, length: float, *, reached_end: bool = True
) -> tuple[float, float]:
    """The slice [start, end) in seconds of a file `length` seconds long.

    An end past the file means the file's end, with a log line: clients of other MusicGen servers
    rely on it. A start there is an error. With `reached_end` False the file is longer than
    `length`, the part of it that was read.
    """
    if start >= length and reached_end:
        raise InputError(
            "continuation_start",
            start,
            f"starts past the end of input_audio, which is {length:.2f} s long",
            f"Send a value below {length:.2f}",
        )
    if end is not None and end > length and reached_end:
        logger.info("continuation_end=%g is past the end of input_audio; using %.2f s", end, length)
    return start, length if end is None else min(end, length)


def _check_values(request: Request) -> None:
    """Each field on its own, for callers that do not come through the API's schema."""
    r, sensible = request, f"Send 0 to {LARGEST:,.0f}"
    checks: tuple[tuple[str, object, bool, str], ...] = (
        ("duration", r.duration, 0 < r.duration < math.inf, "Send a number of seconds above 0"),
        ("top_k", r.top_k, r.top_k >= 0, "Send 0 (no limit) or more"),
        ("top_p", r.top_p, 0 <= r.top_p <= 1, "Send a value from 0 to 1"),
        ("temperature", r.temperature, 0 <= r.temperature <= LARGEST, sensible),
        (
            "classifier_free_guidance",
            r.cfg_coef,
            0 <= r.cfg_coef <= LARGEST,
            f"Send 0 to {LARGEST:g}",
        ),
        ("seed", r.seed, DRAWN <= r.seed < SEED_RANGE, f"Send -1 (random) to {SEED_RANGE - 1}"),
        (
            "normalization_strategy",
            r.normalization,
            r.normalization in NORMALIZATIONS,
            f"Send one of {', '.join(NORMALIZATIONS)}",
        ),
        (
            "output_format",
            r.output_format,
            r.output_format in OUTPUT_FORMATS,
            f"Send one of {', '.join(OUTPUT_FORMATS)}",
        ),
    )
    for field, value, good, fix in checks:
        if not good:  # a NaN fails every comparison
            raise InputError(field, value, "out of range", fix)


def _check_audio_fields(request: Request) -> None:
    if request.audio is not None and not isinstance(request.audio, Path):
        raise InputError(
            "input_audio",
            str(request.audio)[:80],
            "not a file",
            "Send an http(s) URL or a data URI; the server does not read paths",
        )
    if request.audio is not None:
        return
    fix = "Send input_audio too, or leave this field out"
    if request.continuation:
        raise InputError("continuation", True, "there is no input_audio to continue", fix)
    if request.start != 0:
        raise InputError("continuation_start", request.start, "no input_audio to cut", fix)
    if request.end not in (None, FILE_END):
        raise InputError("continuation_end", request.end, "no input_audio to cut", fix)


def _check_slice(request: Request) -> None:
    start, end = request.start, request.end
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
