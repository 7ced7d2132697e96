"""Any audio file -> wav [C, N] float32. Decodes by PyAV, which carries its own ffmpeg."""

import errno
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from julius.resample import resample_frac
from torch import Tensor

from musicgen.errors import InputError

FIX = "Send an audio file (wav, mp3, flac, m4a or ogg) that plays elsewhere"
# Container formats that may be opened, by ffmpeg's names, whatever the suffix. Others hold no
# audio, or are playlists that would make ffmpeg open further files.
FORMATS = (
    "aac ac3 aiff amr ape asf au avi caf dsf dts eac3 flac flv matroska mov mp3 mpc mpc8 mpeg "
    "mpegts ogg tak tta voc w64 wav wv"
)
OPTIONS = {"format_whitelist": FORMATS.replace(" ", ","), "protocol_whitelist": "file"}
RATES = range(1000, 768_001)  # Hz; a header may claim any number
# Elements of the resampling filter. The common divisor of 44,100 and 32,000 makes it small; from
# 44,101 Hz it would take 6 GB.
LARGEST_FILTER = 2**25
FILTER_ZEROS = 24  # zero crossings of julius' sinc filter, its default

logger = logging.getLogger(__name__)


def load_slice(
    path: Path, start: float, end: float | None, *, sample_rate: int, channels: int, limit: float
) -> Tensor:
    """The slice [start, end) seconds of `path`, at most `limit` seconds of it.

    Returns wav [channels, N] at `sample_rate`. Decoding stops when the slice is complete, so a long
    upload takes no more memory than its slice. Raises InputError for a file that is not audio, or
    a slice outside of it.
    """
    stop = start + limit if end is None else min(end, start + limit)
    decoded = _decode(path, start, stop, sample_rate)
    first, last = resolve_slice(start, end, decoded.length, reached_end=decoded.reached_end)
    wav = decoded.wav[:, : round(min(last, stop) * decoded.rate) - round(first * decoded.rate)]
    if wav.shape[-1] * sample_rate < decoded.rate:  # less than one sample at the new rate
        raise InputError("input_audio", path.name, "the slice holds no sample", FIX)
    if not torch.isfinite(wav).all():
        raise InputError("input_audio", path.name, "holds NaN or infinite samples", FIX)
    return resample(convert_channels(wav, channels), decoded.rate, sample_rate)


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
    resampled: Tensor = resample_frac(wav, rate, new_rate)
    return resampled


def convert_channels(wav: Tensor, channels: int) -> Tensor:
    """wav [C, N] of 1 or 2 channels -> [channels, N]: mean to mono, copy to stereo."""
    if wav.shape[0] == channels:
        return wav
    return wav.mean(0, keepdim=True) if channels == 1 else wav.expand(channels, -1)


@dataclass(frozen=True)
class _Decoded:
    """wav [1 or 2, N] from the slice's start on, at `rate` Hz."""

    wav: Tensor
    rate: int
    length: float  # seconds of the file that were decoded
    reached_end: bool


def _decode(path: Path, start: float, stop: float, wanted_rate: int) -> _Decoded:
    """The samples of `path` from `start` seconds on, and to little more than `stop`.

    ffmpeg downmixes more than two channels by the matrix for their layout, so a 5.1 file keeps its
    centre and surrounds.
    """
    try:
        with av.open(str(path), options=OPTIONS, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise InputError("input_audio", path.name, "holds no audio", FIX)
            stream = container.streams.audio[0]
            # Video, subtitles and other streams are not read.
            context = stream.codec_context  # None if ffmpeg has no decoder for it
            rate, count = (context.sample_rate, context.channels) if context else (0, 0)
            if rate not in RATES or not count:
                raise InputError("input_audio", path.name, "its audio format is unknown", FIX)
            if _filter_size(rate, wanted_rate) > LARGEST_FILTER:
                rate = wanted_rate  # ffmpeg resamples instead, without a precomputed filter
            resampler = av.AudioResampler("fltp", "mono" if count == 1 else "stereo", rate)
            blocks, position, reached_end = [], 0, True
            for block in _blocks(container, stream, resampler, path.name):
                before = max(0, round(start * rate) - position)
                position += block.shape[-1]
                if before < block.shape[-1]:
                    blocks.append(block[:, before:])
                # One sample more than requested proves that the file continues.
                if position > stop * rate:
                    reached_end = False
                    break
    except av.error.FFmpegError as exc:
        # ffmpeg reports a format outside of the whitelist as "Invalid argument".
        reason = "not one of its formats" if exc.errno == errno.EINVAL else exc.strerror
        problem = f"cannot be read as audio ({reason})"
        raise InputError("input_audio", path.name, problem, FIX) from exc
    if not position:
        raise InputError("input_audio", path.name, "holds no audio samples", FIX)
    wav = torch.from_numpy(np.concatenate(blocks, axis=-1)) if blocks else torch.zeros(1, 0)
    return _Decoded(wav, rate, position / rate, reached_end)


def _filter_size(rate: int, new_rate: int) -> int:
    """Elements of julius' filter from one rate to the other."""
    shared = math.gcd(rate, new_rate)
    old, new = rate // shared, new_rate // shared
    return new * (old + 2 * math.ceil(FILTER_ZEROS * old / min(old, new)))


def _blocks(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    resampler: av.AudioResampler,
    name: str,
) -> Iterator[np.ndarray]:
    """Decoded blocks [C, n] float32. Damaged packets are skipped, as players do."""
    skipped = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            skipped += 1
            continue
        for frame in frames:
            for part in resampler.resample(frame):
                yield part.to_ndarray()
    for part in resampler.resample(None):
        yield part.to_ndarray()
    if skipped:
        logger.warning("input_audio %s: skipped %d damaged packets", name, skipped)
