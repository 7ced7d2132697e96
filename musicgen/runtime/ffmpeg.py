"""Runs ffmpeg in a child process with limits on memory and time.

A few hundred bytes of a hostile file can make a decoder take gigabytes or hours. In a child the
operating system enforces the limits, and a cancelled request ends the child at once.
"""

import os
import selectors
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

import imageio_ffmpeg

from musicgen.runtime import cancellation
from musicgen.runtime.printable import printable

MEMORY_BYTES = 256 * 2**20  # of data; an ordinary file takes 35 MB
CPU_SECONDS = 20  # decoding an hour of mp3 takes about 10
SILENT_SECONDS = 300.0  # without output, after which a process counts as stuck
CHECK_SECONDS = 0.1  # between two checks for cancellation
MESSAGE_BYTES = 2**14  # the last messages count; one about a codec lists all that are allowed
CHUNK = 2**18  # bytes

# `ulimit` before `exec` sets the limits before ffmpeg allocates anything. macOS may not know -d.
LIMITED = 'ulimit -d "$0" 2>/dev/null; ulimit -t "$1"; shift; exec nice -n "$@"'
# Priorities. Reading an input may take seconds of processor time, and must not slow the decoding of
# other requests; writing a result is short.
READ_NICE, WRITE_NICE = 10, 0

Arguments = Sequence[str | os.PathLike[str]]


class FfmpegError(Exception):
    """ffmpeg failed. The text is its last message."""


class Ffmpeg:
    """A running ffmpeg: its output in chunks; then its messages and how it ended."""

    def __init__(self, arguments: Arguments) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            _command(arguments, READ_NICE), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        self.messages = b""
        self.stuck = False

    @property
    def out_of_time(self) -> bool:
        """Whether it was ended by its limit of processor time, or because it was stuck."""
        return self.stuck or -self.process.wait() in (signal.SIGXCPU, signal.SIGKILL)

    @property
    def message(self) -> str:
        """The last message."""
        return _last_line(self.messages)

    def complaints(self, but: str) -> list[str]:
        """The messages, except those that contain a text."""
        return [line for line in _lines(self.messages) if but not in line]

    def says(self, text: str) -> bool:
        """Whether the messages contain a text."""
        return text.encode() in self.messages

    def chunks(self) -> Iterator[bytes]:
        """The output as it arrives. Raises CancelledError if the request is cancelled."""
        assert self.process.stdout
        assert self.process.stderr
        last = monotonic()
        with selectors.DefaultSelector() as selector:
            for pipe in (self.process.stdout, self.process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(CHECK_SECONDS)
                cancellation.current.get().check()
                if ready:
                    last = monotonic()
                elif monotonic() - last > SILENT_SECONDS:
                    self.stuck = True
                    self.process.kill()
                for key, _ in ready:
                    data = os.read(key.fd, CHUNK)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self.process.stderr:
                        self.messages = _tail(self.messages + data)
                    else:
                        yield data

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()


@contextmanager
def running(arguments: Arguments) -> Iterator[Ffmpeg]:
    """An ffmpeg with these arguments, ended with the block."""
    process = Ffmpeg(arguments)
    try:
        yield process
    finally:
        process.close()


def feed(data: bytes | memoryview, arguments: Arguments) -> None:
    """Run ffmpeg with `data` as its standard input. Raises FfmpegError if it fails."""
    try:
        done = subprocess.run(
            _command(arguments, WRITE_NICE), input=data, capture_output=True, timeout=SILENT_SECONDS
        )
    except subprocess.TimeoutExpired as exc:
        raise FfmpegError(f"not finished after {SILENT_SECONDS:.0f} s") from exc
    if done.returncode:
        raise FfmpegError(_last_line(done.stderr))


def _command(arguments: Arguments, nice: int) -> list[str | os.PathLike[str]]:
    limits = [str(MEMORY_BYTES // 1024), str(CPU_SECONDS), str(nice)]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "repeat+error"]
    return ["sh", "-c", LIMITED, *limits, *ffmpeg, *arguments]


def _tail(messages: bytes) -> bytes:
    """The last MESSAGE_BYTES of messages, without a line that would be cut."""
    if len(messages) <= MESSAGE_BYTES:
        return messages
    kept = messages[-MESSAGE_BYTES:]
    return kept.partition(b"\n")[2] or kept


def _last_line(messages: bytes) -> str:
    return (_lines(messages) or ["no message"])[-1]


def _lines(messages: bytes) -> list[str]:
    """Messages without ffmpeg's prefixes in brackets, and without control characters of files."""
    lines = messages.decode(errors="replace").strip().splitlines()
    return [printable(line.rpartition("] ")[2].strip()) for line in lines]
