"""What a file says about itself: that it is AI-generated, and how to make it again.

Nothing here identifies a caller: no prompt (unless it is asked for), no name of an input, no key,
no song_id and no time. The same request therefore gives the same bytes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen import __version__
from musicgen.audio_file import read_metadata
from musicgen.errors import InputError, MusicGenError

if TYPE_CHECKING:  # the commands read tags, and do not import torch
    from musicgen.generation import Generation

EXACT = "exact"  # the default of Generation.precision
LEVELS = ("standard", "full", "off")  # full adds the prompt
# IPTC's vocabulary of digital source types: all of the sound is generated, or a part of it.
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CONTINUED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
# Settings of a Request, written where they differ from their default.
SETTINGS = (
    "continuation",
    "continuation_start",
    "continuation_end",
    "multi_band_diffusion",
    "normalization_strategy",
    "top_k",
    "top_p",
    "temperature",
    "classifier_free_guidance",
)
# All inputs that tags may give. Never a file: tags may be a stranger's.
INPUTS = ("prompt", "seed", "duration", "output_format", *SETTINGS)
PRIVATE = ("prompt", "input_audio")  # in `needs` if the request had them and the tags do not
MAX_WORDS = 256  # bytes, of a Broadcast Wave description
# Bytes of a record in an object's metadata. Cloud Storage allows 8 KiB for all metadata.
MAX_OBJECT_RECORD = 4096
# ffmpeg's name of a tag -> ours. In wav, names in capitals are chunks of LIST/INFO, and description
# and originator belong to the bext chunk that DAWs show. ffmpeg reads the description and ICMT as
# one tag, so they have the same text.
TAGS = {
    "mp3": {
        "comment": "comment",
        "encoded_by": "software",
        "digital_source_type": "digital_source_type",
        "musicgen": "musicgen",
    },
    "wav": {
        "ICMT": "comment",
        "ISFT": "software",
        "ISBJ": "musicgen",
        "description": "comment",
        "originator": "software",
    },
}
RECORDS = tuple(name for tags in TAGS.values() for name, ours in tags.items() if ours == "musicgen")


@dataclass(frozen=True)
class Provenance:
    """How one clip was made.

    `inputs` are inputs of predict.py that make it again; `needs` are the names of further inputs
    that the request had. `part` names a part that was cut from the clip, such as a loop. It cannot
    be made again from the inputs, so its tags do not have them.
    """

    software: str
    model: str
    digital_source_type: str
    inputs: Mapping[str, Any]
    needs: tuple[str, ...]
    precision: str = EXACT
    part: str = ""

    def in_format(self, output_format: str) -> "Provenance":
        """How the same clip was made in another format."""
        return replace(self, inputs={**self.inputs, "output_format": output_format})

    def of_part(self, part: str) -> "Provenance":
        """How a part of the clip was made."""
        return replace(self, inputs={}, needs=(), part=part)

    @property
    def words(self) -> str:
        """One line for people, in ASCII, of at most MAX_WORDS bytes; without the prompt."""
        kind = self.digital_source_type.rpartition("/")[2]
        facts = {"model": self.model, **self._part, **self.inputs, **self._precision}
        listed = [f"{name} {text(value)}" for name, value in facts.items() if name != "prompt"]
        line = "; ".join([f"AI-generated ({kind}) by {self.software}", *listed])
        return line.encode("ascii", "backslashreplace").decode()[:MAX_WORDS]

    @property
    def record(self) -> str:
        """All values as JSON in ASCII, since wav has no encoding for other characters."""
        again = {"inputs": self.inputs, "needs": self.needs}
        facts = {
            "software": self.software,
            "model": self.model,
            **(self._part or again),
            "digital_source_type": self.digital_source_type,
            **self._precision,
        }
        return json.dumps(facts)

    @property
    def tags(self) -> dict[str, str]:
        """The values by our names of tags."""
        return {
            "comment": self.words,
            "software": self.software,
            "digital_source_type": self.digital_source_type,
            "musicgen": self.record,
        }

    @property
    def _part(self) -> dict[str, Any]:
        return {"part": self.part} if self.part else {}

    @property
    def _precision(self) -> dict[str, str]:
        return {} if self.precision == EXACT else {"precision": self.precision}


def configured(environ: Mapping[str, str] = os.environ) -> str:
    """The level that MUSICGEN_TAGS names, `standard` by default. Raises MusicGenError."""
    level = environ.get("MUSICGEN_TAGS") or LEVELS[0]
    if level not in LEVELS:
        raise MusicGenError(f"MUSICGEN_TAGS={level!r}: set one of {', '.join(LEVELS)}.")
    return level


def of_clip(
    generation: "Generation", clip: int, output_format: str, level: str
) -> Provenance | None:
    """How clip number `clip` was made, or None at the level `off`. Raises InputError."""
    if level not in LEVELS:
        raise InputError("tags", level, "not a known level", f"Use one of {', '.join(LEVELS)}")
    if level == "off":
        return None
    request = generation.request
    inputs: dict[str, Any] = {
        # The seed with which a request for one clip gives this clip.
        "seed": request.clip_seed(clip),
        "duration": _number(request.duration),
        "output_format": output_format,
    }
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in SETTINGS and value != field.default:
            inputs[field.name] = _number(value)
    if level == "full" and request.prompt:
        inputs["prompt"] = request.prompt
    return Provenance(
        software=f"musicgen {__version__}",
        model=generation.model,
        digital_source_type=CONTINUED if request.continuation else GENERATED,
        inputs=inputs,
        needs=tuple(name for name in PRIVATE if getattr(request, name) and name not in inputs),
        precision=generation.precision,
    )


def object_metadata(generation: "Generation", level: str) -> dict[str, str]:
    """The tags of a single clip for the metadata of an object in a bucket.

    A prompt that is too long for them is left out.
    """
    output_format = generation.request.output_format
    found = of_clip(generation, 0, output_format, level)
    if found and len(found.record) > MAX_OBJECT_RECORD:
        found = of_clip(generation, 0, output_format, "standard")
    return found.tags if found else {}


def ffmpeg_options(provenance: Provenance, output_format: str) -> list[str]:
    """ffmpeg's options that write the tags into a file."""
    values = provenance.tags
    options = ["-write_bext", "1"] if output_format == "wav" else []
    for name, ours in TAGS[output_format].items():
        options += ["-metadata", f"{name}={values[ours]}"]
    return options


def read(path: str | Path) -> Provenance | None:
    """How to make a file again, by its tags, or None if it has none that can be used.

    Tags are not signed: anybody can write them. Raises InputError for a file that is not audio, or
    whose tags have an input that this version does not know.
    """
    found = stated(path)
    if found is None:
        return None
    unknown = [name for name in (*found.inputs, *found.needs) if name not in (*INPUTS, *PRIVATE)]
    if unknown or "input_audio" in found.inputs:
        name = unknown[0] if unknown else "input_audio"
        problem = f"its tags have the input {name[:40]!r}, which this version does not read"
        raise InputError("file", Path(path).name, problem, f"Use {found.software[:40]!r}")
    return found


def stated(path: str | Path) -> Provenance | None:
    """What a file's tags say about how it was made, unchecked, or None if they have no inputs.

    Raises InputError for a file that is not audio.
    """
    metadata = read_metadata(Path(path))
    record = next((metadata[name] for name in RECORDS if name in metadata), "")
    try:
        return _parsed(json.loads(record))
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _parsed(facts: Any) -> Provenance:
    """The record of a file. Raises KeyError or TypeError if it is not one of ours."""
    found = Provenance(
        facts["software"],
        facts["model"],
        facts["digital_source_type"],
        dict(facts["inputs"]),
        tuple(facts["needs"]),
        facts.get("precision", EXACT),
    )
    texts = (found.software, found.model, found.digital_source_type, found.precision, *found.needs)
    values = found.inputs.values()
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    if not all(isinstance(value, str | int | float | bool) for value in values):
        raise TypeError
    return found


def _number(value: Any) -> Any:
    """A whole number without a fraction: 3.0 and 3 are the same request."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text(value: Any) -> str:
    """A value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)
