"""The sound of a take while it is made."""

import struct
from collections.abc import Iterator
from threading import Condition

WAIT_SECONDS = 1.0  # between two empty chunks, by which the reader notices that its client has left
SAMPLE_BYTES = 2
UNKNOWN = 2**32 - 1  # the size of a wav file that has no end yet


class Sound:
    """The samples of one prediction as they arrive: int16, little-endian, channels interleaved.

    One thread writes; any number may read, each from the beginning.
    """

    def __init__(self) -> None:
        self._data = bytearray()  # of a wav file
        self._ended = False
        self._changed = Condition()

    def begin(self, rate: int, channels: int) -> None:
        """Set the format of the samples, before the first of them."""
        frame = SAMPLE_BYTES * channels
        form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * frame, frame, 8 * SAMPLE_BYTES)
        data = b"data" + struct.pack("<I", UNKNOWN)
        self.add(b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + form + data)

    def add(self, pcm: bytes) -> None:
        """Add samples."""
        with self._changed:
            self._data += pcm
            self._changed.notify_all()

    def end(self) -> None:
        """No samples will follow."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wav(self) -> Iterator[bytes]:
        """A wav file in parts, as they arrive. A part is empty if nothing came for a while."""
        position, ended = 0, False
        while not ended:
            part, ended = self._after(position)
            position += len(part)
            yield part

    def _after(self, position: int) -> tuple[bytes, bool]:
        """The bytes from a position on, waited for, and whether no others will follow."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) > position or self._ended, WAIT_SECONDS)
            return bytes(self._data[position:]), self._ended
