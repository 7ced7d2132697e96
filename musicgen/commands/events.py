"""Server-sent events: the format of a streamed response (HTML standard, section 9.2)."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Log:
    """Text that a running prediction has written to its log: a line, or a part of one."""

    text: str


@dataclass(frozen=True)
class Metric:
    """A value that a running prediction has recorded. None if it was removed.

    The metric `piece` is a part of the clip: {"start", "pcm", "channels", "sample_rate"}. `pcm` is
    base64 of 16-bit little-endian samples, channels interleaved.
    """

    name: str
    value: Any


def read(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """The events of a response: (name, its JSON data). `lines` are those of the body."""
    name, data = "", b""
    for line in lines:
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            data += value
        elif not field and not value and data:  # an empty line ends an event
            yield name, json.loads(data)
            name, data = "", b""
