"""Temporary files that hold inputs, and the names that their senders know them by.

An error must not name a temporary file, which says nothing to the sender.
"""

import re
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "musicgen-input-"
# mkstemp puts 8 characters between prefix and suffix.
STORED = re.compile(rf"{PREFIX}\w{{8}}(?:-(?P<name>.+)|\.\w+)?", re.DOTALL)
DATA_URI = "data:..."


def create(name: str | None, suffix: str = "") -> IO[bytes]:
    """An open temporary file for an input: called `name` by its sender, or without a name."""
    ending = suffix if name is None else f"-{name or 'download'}"
    return tempfile.NamedTemporaryFile(prefix=PREFIX, suffix=ending, delete=False)


def sent_name(path: Path) -> str:
    """The sender's name of a file; the beginning of a data URI if it came in one."""
    stored = STORED.fullmatch(path.name)
    return path.name if stored is None else stored["name"] or DATA_URI
