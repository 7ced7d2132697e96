"""A slice of any audio file -> wav [C, N] float32 at the rate and channels of a model."""

import functools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from julius.resample import ResampleFrac
from torch import Tensor

from musicgen.audio_file import FIX, AudioFile, measure_length, open_audio
from musicgen.errors import InputError
from musicgen.runtime.input_files import sent_name

# A float file with a peak above this is refused: its samples are probably integers.
# Below, a file above full scale (1.0) is scaled down to it.
MAX_PEAK = 8.0
# A mean of channels with less than this fraction of their power has cancelled out: -20 dB.
CANCELLED = 0.01
# Elements of the resampling filter. The common divisor of 44,100 and 32,000 makes it small; from
# 44,101 Hz it would take 6 GB.
LARGEST_FILTER = 2**25
KEPT_FILTER = 2**20  # elements of a filter that is kept for the next file; 4 MB
FILTER_ZEROS = 24  # zero crossings of julius' sinc filter, its default
# Gain of each speaker in the left and the right channel, in the order of WAVE_FORMAT_EXTENSIBLE's
# mask. As ffmpeg's default: centres and surrounds at -3 dB, no LFE.
LEFT, RIGHT, BOTH, NONE = (1, 0), (0, 1), (1, 1), (0, 0)
SPEAKERS = np.array(
    [
        *(LEFT, RIGHT, BOTH, NONE, LEFT, RIGHT),  # front, centre, LFE, back
        *(LEFT, RIGHT, BOTH, LEFT, RIGHT),  # front of centre, back centre, side
        *(BOTH, LEFT, BOTH, RIGHT, LEFT, BOTH, RIGHT),  # top
    ],
    np.float32,
)
SPEAKERS[2:] *= math.sqrt(0.5)

logger = logging.getLogger(__name__)


def load_slice(
    path: Path, start: float, end: float | None, *, sample_rate: int, channels: int, limit: float
) -> Tensor:
    """The slice [start, end) seconds of `path`, at most `limit` seconds of it.

    Returns wav [channels, N] at `sample_rate`, within full scale. Seconds count on the file's
    timeline, as a player shows them. Decoding stops when the slice is complete, so a long upload
    takes no more memory than its slice. Raises InputError for a file that is not audio, or a slice
    outside of it.
    """
    stop = start + limit if end is None else min(end, start + limit)
    with _open(path, start, sample_rate) as file:
        wav, length, reached_end = _read(file, start, stop)
        rate = file.rate
    if not wav.shape[-1]:
        length = measure_length(path)
    first, last = resolve_slice(start, end, length, reached_end=reached_end)
    wav = wav[:, : round(min(last, stop) * rate) - round(first * rate)]
    if wav.shape[-1] * sample_rate < rate:  # less than one sample at the new rate
        raise InputError("input_audio", sent_name(path), "the slice holds no sample", FIX)
    wav = _to_channels(_within_full_scale(wav, sent_name(path)), channels)
    return resample(wav, rate, sample_rate)


def resolve_slice(
    start: float, end: float | None, length: float, *, reached_end: bool = True
) -> tuple[float, float]:
    """The slice [start, end) in seconds of a file `length` seconds long.

    An end past the file means the file's end, with a log line: clients of other MusicGen servers
    rely on that. A start past the file raises InputError. With `reached_end` False, `length` is
    only the part of the file that was read.
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


def resample(wav: Tensor, rate: int, new_rate: int) -> Tensor:
    """wav [C, N] at `rate` Hz -> [C, N'] at `new_rate` Hz, by a windowed-sinc filter."""
    small = _filter_size(rate, new_rate) <= KEPT_FILTER
    resampled: Tensor = (_resampler if small else ResampleFrac)(rate, new_rate)(wav)
    return resampled


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, new_rate: int) -> ResampleFrac:
    """A resampler whose filter is kept: computing it takes a tenth of loading three minutes."""
    return ResampleFrac(rate, new_rate)


def _filter_size(rate: int, new_rate: int) -> int:
    """Elements of julius' filter from one rate to the other."""
    shared = math.gcd(rate, new_rate)
    old, new = rate // shared, new_rate // shared
    return new * (old + 2 * math.ceil(FILTER_ZEROS * old / min(old, new)))


def convert_channels(wav: Tensor, channels: int) -> Tensor:
    """wav [C, N] of 1 or 2 channels -> [channels, N]: mean to mono, copy to stereo."""
    if wav.shape[0] == channels:
        return wav
    return wav.mean(0, keepdim=True) if channels == 1 else wav.expand(channels, -1)


@contextmanager
def _open(path: Path, start: float, sample_rate: int) -> Iterator[AudioFile]:
    """The file at its own rate, or at `sample_rate` where julius' filter would be too large."""
    with open_audio(path, start) as file:
        if _filter_size(file.rate, sample_rate) <= LARGEST_FILTER:
            yield file
            return
    with open_audio(path, start, rate=sample_rate) as file:
        yield file


def _read(file: AudioFile, start: float, stop: float) -> tuple[Tensor, float, bool]:
    """wav [1 or 2, N] from `start` on, the seconds that were read, and whether the file ended."""
    matrix = _downmix(file.channels, file.mask)
    kept: list[np.ndarray] = []
    position, reached_end = round(file.begin * file.rate), True
    for block in file.blocks():
        before = max(0, round(start * file.rate) - position)
        position += len(block)
        if before < len(block):
            part = block[before:]
            kept.append(part if matrix is None else part @ matrix)
        # One sample more than requested proves that the file continues.
        if position > stop * file.rate:
            reached_end = False
            break
    # Channels one after the other, as all that follows reads them.
    wav = np.empty((kept[0].shape[1] if kept else 1, sum(map(len, kept))), np.float32)
    if kept:
        np.concatenate([part.T for part in kept], axis=1, out=wav)
    return torch.from_numpy(wav), position / file.rate, reached_end


def _downmix(channels: int, mask: int) -> np.ndarray | None:
    """Matrix [channels, 2] of more than two channels; the mean of all if speakers are unknown."""
    if channels <= 2:
        return None
    speakers = [bit for bit in range(32) if mask >> bit & 1]
    if len(speakers) == channels and speakers[-1] < len(SPEAKERS):
        return SPEAKERS[speakers]
    return np.full((channels, 2), 1 / channels, np.float32)


def _within_full_scale(wav: Tensor, name: str) -> Tensor:
    """wav, scaled down to full scale if it exceeds it. Raises InputError if it is far above."""
    low, high = map(float, wav.aminmax())  # NaN if a sample is
    peak = max(-low, high)
    if not math.isfinite(peak):
        raise InputError("input_audio", name, "holds NaN or infinite samples", FIX)
    if peak > MAX_PEAK:
        problem = f"its samples reach {peak:.4g}; the full scale of a float file is 1"
        raise InputError("input_audio", name, problem, "Send it scaled to -1 .. 1")
    if peak > 1:
        logger.info("input_audio: scaled from a peak of %.2f to full scale", peak)
        return wav / peak
    return wav


def _to_channels(wav: Tensor, channels: int) -> Tensor:
    """`convert_channels`; but the louder channel where the mean of two would cancel out."""
    if channels == 1 and len(wav) == 2:
        power = wav.double().square().mean(1)
        if wav.double().mean(0).square().mean() < CANCELLED * power.mean():
            logger.info("input_audio: its channels are in opposite phase; using the louder one")
            wav = wav[power.argmax()][None]
    return convert_channels(wav, channels)
