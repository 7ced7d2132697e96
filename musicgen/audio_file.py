"""An audio file -> blocks of float32 samples, decoded by ffmpeg in a limited child process."""

import functools
import logging
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from musicgen.errors import InputError
from musicgen.runtime import cancellation, ffmpeg
from musicgen.runtime.input_files import sent_name

FIX = "Send an audio file (wav, mp3, flac, m4a or ogg) that plays elsewhere"
# Container formats that may be opened, by ffmpeg's names, whatever the suffix. Others hold no
# audio, or are playlists that would make ffmpeg open further files.
FORMATS = (
    "aac ac3 aiff amr ape asf au avi caf dsf dts eac3 flac flv matroska mov mp3 mpc mpc8 mpeg "
    "mpegts ogg tak tta voc w64 wav wv"
)
RATES = range(1000, 768_001)  # Hz; a header may claim any number
TRACKS = 8  # audio tracks that are tried
# Containers whose packets have timestamps, by the bytes that they begin with (offset, bytes). Gaps
# in the others' timestamps are artefacts of joined or damaged streams.
TIMED = (
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (4, b"ftyp"),  # MP4, QuickTime
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"OggS"),
    (0, b"FLV"),
    (0, b"\x30\x26\xb2\x75"),  # ASF, WMA
    (188, b"\x47"),  # MPEG transport stream; its first packet begins with the same byte
)
# Puts frames at their timestamps: silence where some are missing, and before a late beginning.
ON_TIMELINE = "aresample=async=1:first_pts=0"
# A start beyond this many seconds is reached by the file's index, if it has one. Decoding begins
# LEAD_IN seconds before, because a codec's first samples after a jump depend on those before.
SEEK_BEYOND, LEAD_IN = 60.0, 10.0
METADATA_BYTES = 2**20  # of tags that are read; ours have 250 kB at most, with the longest prompt
# A tag in ffmpeg's metadata format: name=value, with a backslash before special characters.
METADATA = re.compile(r"^((?:\\.|[^\\=\n])+)=((?:\\.|[^\\\n])*)$", re.DOTALL | re.MULTILINE)
# How many files are decoded side by side: together they take this many times ffmpeg.MEMORY_BYTES.
SIDE_BY_SIDE = 4

_places = threading.BoundedSemaphore(SIDE_BY_SIDE)

logger = logging.getLogger(__name__)


class AudioFile:
    """Samples of one file from `begin` seconds on, at its own `rate`, in `channels` channels.

    `mask` has a bit for each speaker, in the order of WAVE_FORMAT_EXTENSIBLE; 0 if unknown.
    """

    def __init__(self, path: Path, process: ffmpeg.Ffmpeg, begin: float) -> None:
        self.name = sent_name(path)
        self.begin = begin
        self._process = process
        self._chunks = process.chunks()
        self._buffer = b""
        self.rate, self.channels, self.mask = self._read_header()

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks [n, channels] float32, in order. Raises InputError if the limits end decoding.

        What was decoded before other faults is used, with a warning.
        """
        frame = 4 * self.channels
        while True:
            whole = len(self._buffer) // frame * frame
            if whole:
                block = np.frombuffer(self._buffer[:whole], np.float32)
                self._buffer = self._buffer[whole:]
                yield block.reshape(-1, self.channels)
            data = next(self._chunks, b"")
            if not data:
                break
            self._buffer += data
        _check_time(self._process, self.name)
        if damage := self._process.complaints(but="whitelist"):
            logger.warning("input_audio %r: damaged (%s)", self.name, damage[-1])

    def _read_header(self) -> tuple[int, int, int]:
        """Rate, channels and mask of the WAVE header that ffmpeg writes. Raises InputError."""
        while b"data" not in self._buffer:
            data = next(self._chunks, b"")
            if not data:
                _check_time(self._process, self.name)
                raise self._unreadable()
            self._buffer += data
        start = self._buffer.index(b"fmt ") + 8
        kind, channels, rate = struct.unpack_from("<HHI", self._buffer, start)
        extensible = kind == 0xFFFE
        mask = struct.unpack_from("<I", self._buffer, start + 20)[0] if extensible else 0
        self._buffer = self._buffer[self._buffer.index(b"data") + 8 :]
        if rate not in RATES:
            raise InputError("input_audio", self.name, f"its sample rate is {rate} Hz", FIX)
        return rate, channels, mask

    def _unreadable(self) -> InputError:
        process = self._process
        for text, problem in (
            ("matches no streams", "holds no audio"),
            ("no decoder found", "its audio format is unknown"),
        ):
            if process.says(text):
                return InputError("input_audio", self.name, problem, FIX)
        if process.says("Cannot allocate memory"):
            limit = f"{ffmpeg.MEMORY_BYTES / 2**20:.0f} MB"
            problem = f"decoding it takes more than {limit} of memory"
            return InputError("input_audio", self.name, problem, FIX)
        # A format outside of the whitelist is an "Invalid argument" to ffmpeg.
        unknown = process.says("not on whitelist") or process.says("Invalid argument")
        reason = "not one of its formats" if unknown else process.message
        return InputError("input_audio", self.name, f"cannot be read as audio ({reason})", FIX)


@contextmanager
def open_audio(path: Path, start: float = 0.0, rate: int | None = None) -> Iterator[AudioFile]:
    """Decode the first audio track of `path` that ffmpeg has a decoder for.

    Decoding may begin later than at 0, but before `start` seconds: see `AudioFile.begin`. ffmpeg
    resamples to `rate` if one is given. Raises InputError for a file that is not audio.
    """
    begin = start - LEAD_IN if start > SEEK_BEYOND else 0.0
    undecodable: InputError | None = None
    with _place():
        for track in range(TRACKS):
            with ffmpeg.running(_arguments(path, track, begin, rate)) as process:
                try:
                    file = AudioFile(path, process, begin)
                except InputError as exc:
                    if process.says("no decoder found"):
                        undecodable = exc
                        continue
                    raise undecodable or exc from None
                yield file
                return
    assert undecodable
    raise undecodable


def measure_length(path: Path) -> float:
    """Seconds of a file, by its packets, without decoding them. Raises InputError without any."""
    output = ["-map", "0:a:0", "-c", "copy", "-f", "null", "-progress", "pipe:1", "-"]
    command = [*_input_options(), "-i", f"file:{path}", *output]
    with _place(), ffmpeg.running(command) as process:
        report = b"".join(process.chunks()).decode()
        _check_time(process, sent_name(path))
    times = re.findall(r"^out_time_us=(\d+)$", report, re.MULTILINE)
    if not times or times[-1] == "0":
        raise InputError("input_audio", sent_name(path), "holds no audio samples", FIX)
    return int(times[-1]) / 1e6


def read_metadata(path: Path) -> dict[str, str]:
    """The tags of a file, by ffmpeg's names. Raises InputError for a file that is not audio.

    What lies beyond METADATA_BYTES is not read.
    """
    output = ["-fflags", "+bitexact", "-f", "ffmetadata", "pipe:1"]
    report = b""
    with _place(), ffmpeg.running([*_input_options(), "-i", f"file:{path}", *output]) as process:
        for chunk in process.chunks():
            report += chunk
            if len(report) > METADATA_BYTES:
                break
        if not report:
            problem = f"cannot be read as audio ({process.message})"
            raise InputError("file", path.name, problem, FIX)
    text = report.decode(errors="replace")
    return {_unescaped(name): _unescaped(value) for name, value in METADATA.findall(text)}


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _check_time(process: ffmpeg.Ffmpeg, name: str) -> None:
    """Raise InputError if a process was ended by its limit of processor time."""
    if process.out_of_time:
        raise InputError(
            "input_audio",
            name,
            f"decoding it took more than {ffmpeg.CPU_SECONDS} s of processor time",
            "Send a shorter file, or just the part that is to be used",
        )


def _input_options() -> list[str]:
    options = ["-nostdin", "-format_whitelist", FORMATS.replace(" ", ",")]
    options += ["-protocol_whitelist", "file,pipe"]
    # Cover art would be decoded while the file is probed.
    return [*options, "-codec_whitelist", audio_decoders(), "-threads", "1"]


def _arguments(path: Path, track: int, begin: float, rate: int | None) -> list[str | Path]:
    seek = ["-ss", f"{begin:f}"] if begin else []
    timeline = ["-af", ON_TIMELINE] if _is_timed(path) else []
    # Without the prefix a name such as "concat:a" would name a protocol.
    source = f"file:{path}"
    resampled = ["-ar", str(rate)] if rate else []
    output = [
        "-map",
        f"0:a:{track}",
        *timeline,
        *resampled,
        "-c:a",
        "pcm_f32le",
        "-f",
        "wav",
        "pipe:1",
    ]
    return [*_input_options(), *seek, "-i", source, *output]


@functools.cache
def audio_decoders() -> str:
    """Names of ffmpeg's audio decoders, separated by commas."""
    with ffmpeg.running(["-decoders"]) as process:
        listed = b"".join(process.chunks()).decode()
    return ",".join(re.findall(r"^ A\S{5} (\S+)", listed, re.MULTILINE))


def _is_timed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(189)
    except OSError as exc:
        problem = f"cannot be read as audio ({exc.strerror})"
        raise InputError("input_audio", sent_name(path), problem, FIX) from exc
    return any(
        head[offset : offset + len(magic)] == magic and (offset < 188 or head[:1] == magic)
        for offset, magic in TIMED
    )


@contextmanager
def _place() -> Iterator[None]:
    """One of the SIDE_BY_SIDE places. Raises CancelledError if the request is cancelled."""
    while not _places.acquire(timeout=ffmpeg.CHECK_SECONDS):
        cancellation.current.get().check()
    try:
        yield
    finally:
        _places.release()
