"""The tags of a file as tinytag, which is not part of this project, reads them."""

import io
import json
from dataclasses import dataclass
from typing import Any

from tinytag import TinyTag


@dataclass(frozen=True)
class Tags:
    """The line for people, the software, the record (JSON) and the digital source type."""

    words: str
    software: str
    record: str
    source: str

    @property
    def facts(self) -> dict[str, Any]:
        """The values of the record."""
        return dict(json.loads(self.record))

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs in the record."""
        return dict(self.facts["inputs"])


def read_by_others(content: bytes) -> Tags:
    """The tags of an mp3 or wav file of this project. Fails if it has none."""
    name = "a.mp3" if content.startswith(b"ID3") else "a.wav"
    found = TinyTag.get(name, file_obj=io.BytesIO(content)).as_dict()
    if name == "a.mp3":
        names = ("_comment", "encoded_by", "musicgen", "digital_source_type")
        return Tags(*(found[tag][0] for tag in names))
    words, software, record = (found[tag][0] for tag in ("comment", "isft", "isbj"))
    return Tags(words, software, record, json.loads(record)["digital_source_type"])
