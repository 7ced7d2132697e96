"""Any audio file -> wav [C, N] float32. Decodes by PyAV, which carries its own ffmpeg."""

import logging
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from julius.resample import resample_frac
from torch import Tensor

from musicgen.errors import InputError
from musicgen.request import resolve_slice

FIX = "Send an audio file (wav, mp3, flac, m4a or ogg) that plays elsewhere"

logger = logging.getLogger(__name__)


def load_slice(
    path: Path, start: float, end: float | None, *, sample_rate: int, channels: int, limit: float
) -> Tensor:
    """The slice [start, end) seconds of `path`, at most `limit` seconds of it.

    Returns wav [channels, N] at `sample_rate`. Decoding stops as soon as the slice is complete, so
    a long upload costs no more memory than what is kept of it. Raises InputError for a file that
    is not audio, or a slice that is not in it.
    """
    stop = start + limit if end is None else min(end, start + limit)
    wav, rate, reached_end = _decode(path, stop)
    first, last = resolve_slice(start, end, wav.shape[-1] / rate, reached_end=reached_end)
    wav = wav[:, round(first * rate) : round(min(last, stop) * rate)]
    if wav.shape[-1] == 0:
        raise InputError("input_audio", path.name, "the slice holds no sample", FIX)
    if not torch.isfinite(wav).all():
        raise InputError("input_audio", path.name, "holds NaN or infinite samples", FIX)
    return resample(convert_channels(wav, channels), rate, sample_rate)


def resample(wav: Tensor, rate: int, new_rate: int) -> Tensor:
    """wav [C, N] at `rate` Hz -> [C, N'] at `new_rate` Hz, by a windowed-sinc filter."""
    resampled: Tensor = resample_frac(wav, rate, new_rate)
    return resampled


def convert_channels(wav: Tensor, channels: int) -> Tensor:
    """wav [C, N] of 1 or 2 channels -> [channels, N]: mean to mono, copy to stereo."""
    if wav.shape[0] == channels:
        return wav
    return wav.mean(0, keepdim=True) if channels == 1 else wav.expand(channels, -1)


def _decode(path: Path, stop: float) -> tuple[Tensor, int, bool]:
    """Samples of `path` up to `stop` seconds: wav [1 or 2, N], sample rate, whether the file ended.

    More than two channels are downmixed by ffmpeg's matrix for their layout, so a 5.1 file keeps
    its centre and surrounds.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError("input_audio", path.name, "holds no audio", FIX)
            stream = container.streams.audio[0]
            # Pictures, subtitles and other streams of a video are not even read.
            rate, count = stream.codec_context.sample_rate, stream.codec_context.channels
            if not rate or not count:
                raise InputError("input_audio", path.name, "its audio format is unknown", FIX)
            resampler = av.AudioResampler("fltp", "mono" if count == 1 else "stereo", rate)
            blocks, kept, reached_end = [], 0, True
            for block in _blocks(container, stream, resampler, path.name):
                blocks.append(block)
                kept += block.shape[-1]
                # One sample more than asked for proves that the file goes on.
                if kept > stop * rate:
                    reached_end = False
                    break
    except av.error.FFmpegError as exc:
        problem = f"cannot be read as audio ({exc.strerror})"
        raise InputError("input_audio", path.name, problem, FIX) from exc
    if not blocks:
        raise InputError("input_audio", path.name, "holds no audio samples", FIX)
    wav = torch.from_numpy(np.concatenate(blocks, axis=-1))
    return wav, rate, reached_end


def _blocks(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    resampler: av.AudioResampler,
    name: str,
) -> Iterator[np.ndarray]:
    """Decoded blocks [C, n] float32. Packets that do not decode are skipped, as players do."""
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
