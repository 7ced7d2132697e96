"""Generation -> normalized wav -> file -> properties in the response.

Targets are audiocraft's `audio_write` defaults: -14 LUFS, -18 dBFS RMS, -1 dBFS peak. Peaks above
the ceiling are limited smoothly; only the strategy `clip` cuts them.
"""

import io
import logging
import math
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

from musicgen import provenance
from musicgen.errors import InputError, OutputError
from musicgen.generation import Generation
from musicgen.request import OUTPUT_FORMATS
from musicgen.runtime import cancellation, ffmpeg
from musicgen.runtime.timings import Timings

with warnings.catch_warnings():
    # On import it looks for a system ffmpeg and warns; imageio-ffmpeg brings ours.
    warnings.simplefilter("ignore")
    from pydub import AudioSegment

LOUDNESS_LUFS = -14.0
RMS_DBFS = -18.0
PEAK_DBFS = -1.0
LOUDNESS_BLOCK = 0.4  # seconds, the gating block of BS.1770-4
SILENCE_LUFS = -70.0  # its absolute gate
RELATIVE_GATE_LU = -10.0  # its relative gate, below the loudness of the blocks above the absolute
LOUDNESS_TOLERANCE = 0.1  # LU
LOUDNESS_ROUNDS = 12
SILENCE = 1e-9  # peak, -180 dBFS: below the resolution of any format
LIMITER_SECONDS = 0.005
MP3_BITRATE = "320k"
# Normalization takes a dozen times the memory of a clip. Long clips are normalized one at a time,
# so that the memory for all callers does not add up.
LONG_SECONDS = 30.0

_long_clips = threading.Lock()

logger = logging.getLogger(__name__)


def normalize(wav: Tensor, strategy: str, sample_rate: int) -> Tensor:
    """wav [C, N] -> [C, N], finite and within the peak ceiling (-1 dBFS).

    Samples that are not finite become silence, and silence stays silence.
    """
    wav = wav.float()
    broken = int((~torch.isfinite(wav)).sum())
    if broken:
        logger.warning("%d rendered samples are not finite; silenced", broken)
        wav = torch.where(torch.isfinite(wav), wav, 0.0)
    if float(wav.abs().max()) < SILENCE:
        return torch.zeros_like(wav)
    return STRATEGIES[strategy](wav, sample_rate)


def loudness(wav: Tensor, sample_rate: int) -> float:
    """Integrated loudness of wav [C, N], C up to 3, in LUFS (BS.1770-4), -inf for silence.

    Audio shorter than one gating block is repeated until it fills one. The arithmetic is that of
    torchaudio's `loudness`, but one channel after the other: a filter takes 17 times its input.
    """
    shortest = int(LOUDNESS_BLOCK * sample_rate) + 1
    repeats = -(-shortest // wav.shape[-1])
    energy = torch.stack([_block_energy(channel.repeat(repeats), sample_rate) for channel in wav])
    level = _lufs(energy.sum(0))
    loud = level > SILENCE_LUFS
    loud &= level > _gated(energy, loud) + RELATIVE_GATE_LU
    value = float(_gated(energy, loud))
    return value if value > SILENCE_LUFS else float("-inf")


def _block_energy(samples: Tensor, sample_rate: int) -> Tensor:
    """The mean squares [B] of the overlapping gating blocks of samples [N] with K-weighting."""
    block = round(LOUDNESS_BLOCK * sample_rate)
    shelved = AF.treble_biquad(samples[None], sample_rate, 4.0, 1500.0, 1 / math.sqrt(2))
    weighted: Tensor = AF.highpass_biquad(shelved, sample_rate, 38.0, 0.5)
    return weighted[0].square().unfold(-1, block, round(block / 4)).mean(-1)


def _gated(energy: Tensor, kept: Tensor) -> Tensor:
    """The loudness of the blocks in `kept` [B] of energy [C, B]; NaN for none."""
    return _lufs(((kept * energy).sum(-1) / kept.count_nonzero()).sum())


def _lufs(power: Tensor) -> Tensor:
    return -0.691 + 10 * torch.log10(power)


def limit(wav: Tensor, sample_rate: int, ceiling: float) -> Tensor:
    """wav [C, N] with no sample above `ceiling`, by a gain that changes smoothly over 5 ms.

    A look-ahead limiter in three steps: the peak in a window around each sample (a sliding
    maximum), the gain that brings that peak to the ceiling, and the average of those gains over the
    same window. Every gain in the average belongs to a window that contains this sample, so the
    average keeps it below the ceiling too.
    """
    peaks = wav.abs().amax(0)[None, None]
    if float(peaks.max()) <= ceiling:
        return wav
    radius = max(1, int(LIMITER_SECONDS * sample_rate))
    width = 2 * radius + 1
    needed = ceiling / F.max_pool1d(peaks, width, stride=1, padding=radius).clamp(min=ceiling)
    window = torch.hann_window(width + 2, periodic=False)[1:-1]
    padded = F.pad(needed, (radius, radius), mode="replicate" if wav.shape[-1] > 1 else "constant")
    gain = F.conv1d(padded, (window / window.sum())[None, None])[0]
    # Rounding in the average could pass the ceiling by a few ulp.
    return (wav * gain).clamp(-ceiling, ceiling)


def save(
    generation: Generation, path: str | Path, *, tags: str = provenance.LEVELS[0]
) -> list[Path]:
    """Normalize the clips as the request says and write them; returns the files, in order.

    The suffix of `path`, .mp3 or .wav, is the format. A single clip is written to `path`, one of
    several to NAME-0, NAME-1 and so on. An existing file is replaced only by a complete one.

    Tags in a file say that it is AI-generated and how to make it again: `tags` is standard, full
    (with the prompt) or off. Raises InputError for another suffix or level, OutputError if a file
    cannot be written.
    """
    path = Path(path)
    output_format = path.suffix.removeprefix(".").lower()
    if output_format not in OUTPUT_FORMATS:
        known = " or ".join(f".{name}" for name in OUTPUT_FORMATS)
        raise InputError("path", str(path), "its suffix is not a known format", f"Use {known}")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [
        _tag_options(generation, clip, output_format, tags) for clip in range(len(generation.wavs))
    ]
    several = len(generation.wavs) > 1
    names = [
        path.with_stem(f"{path.stem}-{index}") if several else path
        for index in range(len(generation.wavs))
    ]
    for name, wav, tagged in zip(names, _normalized(generation), options, strict=True):
        write(wav, name, generation.sample_rate, output_format, tagged)
    return names


def write_clips(
    generation: Generation, folder: Path, timings: Timings, tags: str = provenance.LEVELS[0]
) -> list[Path]:
    """`save` for a server: the clips in the request's format, in `folder`."""
    with timings.stage("output"):
        files = save(generation, folder / f"clip.{generation.request.output_format}", tags=tags)
    cancellation.current.get().check()  # an upload would replace a song in the bucket
    return files


def describe(generation: Generation) -> dict[str, int | float | str]:
    """Properties of the result in the API's output object."""
    return {
        "seed": generation.seed,
        "duration": round(generation.duration, 3),
        "sample_rate": generation.sample_rate,
        "channels": generation.wavs[0].shape[0],
        "output_format": generation.request.output_format,
        "model": generation.model,
    }


def write(
    wav: Tensor, path: Path, sample_rate: int, output_format: str, options: Sequence[str] = ()
) -> None:
    """wav [C, N] in [-1, 1] -> 16-bit wav or 320 kbit/s mp3 at `path`. Raises OutputError.

    `options` are further options of ffmpeg, such as tags. Written beside `path` under a temporary
    name, then renamed.
    """
    segment = AudioSegment(
        _pcm(wav),
        sample_width=2,
        frame_rate=sample_rate,
        channels=wav.shape[0],
    )
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _encode(segment, partial, output_format, options)
        partial.replace(path)
    except OSError as exc:
        raise OutputError(f"{output_format} could not be written: {exc.strerror or exc}") from exc
    finally:
        partial.unlink(missing_ok=True)


def preview(wav: Tensor) -> bytes:
    """wav [C, N] of a piece -> 16-bit little-endian samples, channels interleaved.

    Joined, the pieces of a clip are the samples of the wav file that the strategy `clip` gives, the
    only one that changes each sample by itself.
    """
    return _pcm(_clip(torch.where(torch.isfinite(wav), wav, 0.0), 0))


def _pcm(wav: Tensor) -> bytes:
    """wav [C, N] in [-1, 1] -> 16-bit little-endian samples, channels interleaved."""
    samples = wav.clamp(-1, 1).mul_(32767).round_().to(torch.int16)
    return samples.T.contiguous().numpy().astype("<i2", copy=False).tobytes()


def _encode(
    segment: AudioSegment, target: Path, output_format: str, options: Sequence[str]
) -> None:
    """Encode into `target` by ffmpeg, fed through a pipe. Raises OutputError with its message.

    pydub's own export with tags needs an ffmpeg on PATH and leaves temporary files when it fails.
    """
    wav = io.BytesIO()
    segment.export(wav, format="wav")
    # Otherwise ffmpeg names itself as the software that made a wav file.
    encoding = {"mp3": ["-b:a", MP3_BITRATE], "wav": ["-fflags", "+bitexact"]}[output_format]
    encoding += [*options, "-f", output_format]
    try:
        ffmpeg.feed(wav.getbuffer(), ["-y", "-f", "wav", "-i", "pipe:0", *encoding, target])
    except ffmpeg.FfmpegError as exc:
        message = str(exc).replace(f"{target.parent}/", "")
        raise OutputError(f"{output_format} could not be written: {message}") from exc


def _tag_options(generation: Generation, clip: int, output_format: str, level: str) -> list[str]:
    """ffmpeg's options for the tags of a clip."""
    made = provenance.of_clip(generation, clip, output_format, level)
    return provenance.ffmpeg_options(made, output_format) if made else []


def _normalized(generation: Generation) -> Iterator[Tensor]:
    """The clips at the request's level, [C, N] each, one after the other."""
    strategy, rate = generation.request.normalization_strategy, generation.sample_rate
    for wav in generation.wavs:
        with _long_clips if generation.duration > LONG_SECONDS else nullcontext():
            cancellation.current.get().check()
            level = normalize(wav, strategy, rate)
        yield level


def _to_loudness(wav: Tensor, sample_rate: int) -> Tensor:
    """Gain to -14 LUFS through the limiter; the loudness that limiting takes is given back.

    Stops when more gain no longer makes it louder: single clicks cannot reach the target.
    """
    ceiling = _amplitude(PEAK_DBFS)
    wav = wav / wav.abs().max().clamp(min=1.0)
    gain_db, now = LOUDNESS_LUFS - loudness(wav, sample_rate), float("-inf")
    if gain_db == float("inf"):
        return limit(wav, sample_rate, ceiling)
    for _ in range(LOUDNESS_ROUNDS):
        louder = wav * _amplitude(gain_db)
        result = limit(louder, sample_rate, ceiling)
        if result is louder:
            break  # the limiter took nothing
        before, now = now, loudness(result, sample_rate)
        if LOUDNESS_LUFS - now < LOUDNESS_TOLERANCE or now - before < LOUDNESS_TOLERANCE:
            break
        gain_db += LOUDNESS_LUFS - now
    return result


def _to_rms(wav: Tensor, sample_rate: int) -> Tensor:
    """By the RMS over all channels; audiocraft's RMS of their mean is 0 for opposite phases."""
    rms = float(wav.double().square().mean().sqrt())
    return limit(wav * (_amplitude(RMS_DBFS) / rms), sample_rate, _amplitude(PEAK_DBFS))


def _to_peak(wav: Tensor, sample_rate: int) -> Tensor:
    return wav * (_amplitude(PEAK_DBFS) / float(wav.abs().max()))


def _clip(wav: Tensor, _: int) -> Tensor:
    ceiling = _amplitude(PEAK_DBFS)
    return wav.clamp(-ceiling, ceiling)


def _amplitude(dbfs: float) -> float:
    return float(10 ** (dbfs / 20))


STRATEGIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "loudness": _to_loudness,
    "clip": _clip,
    "peak": _to_peak,
    "rms": _to_rms,
}
