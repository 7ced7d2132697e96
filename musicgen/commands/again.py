"""Makes a file again: reads the inputs from its tags, and compares the result with it."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen import provenance
from musicgen.audio_file import open_audio
from musicgen.commands import inputs
from musicgen.commands.inputs import Field
from musicgen.errors import MusicGenError
from musicgen.provenance import Provenance

DEFAULT = "default"  # shown for an input that tags leave out


@dataclass(frozen=True)
class Original:
    """A file that is made again, and what its tags say."""

    file: Path
    made: Provenance

    @classmethod
    def read(cls, file: Path) -> "Original":
        """Raises MusicGenError for a file without tags of this server."""
        try:
            with file.open("rb"):
                found = provenance.read(file)
        except OSError as exc:
            raise MusicGenError(f"--from {file}: {exc.strerror or exc}.") from exc
        if found is None:
            raise MusicGenError(
                f"--from {file}: it has no tags of this server with which it can be made again. "
                "Another program, an earlier version or MUSICGEN_TAGS=off made it, its tags were "
                "removed, or it is a loop."
            )
        return cls(file, found)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a server that writes the same tags."""
        return {"MUSICGEN_TAGS": "full" if "prompt" in self.made.inputs else "standard"}

    def inputs(self, given: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
        """The inputs of a prediction: the tags', replaced and completed by those `given`.

        Asks at the terminal for inputs that are missing. Raises MusicGenError without a terminal,
        and for values that the server would refuse.
        """
        values = settings(self.made, fields) | dict(given)
        for name in self.made.needs:
            if name not in values:
                values |= [inputs.parse(f"{name}={self._ask(name, fields[name])}", dict(fields))]
        return values

    def _ask(self, name: str, field: Field) -> str:
        """The value of an input that the tags do not have, from the terminal."""
        if not sys.stdin.isatty():
            value = "@FILE" if field.kind == "audio" else "VALUE"
            raise MusicGenError(
                f"--from {self.file}: it was made with an input that its tags do not have: {name}. "
                f"Add -i {name}={value}."
            )
        shown = f"{name} ({field.values})" if field.kind == "audio" else name
        print(f"{shown}: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()

    def compared(self, copy: str) -> str:
        """How the file at the path or address `copy` compares with the original, in a sentence."""
        new = Path(copy)
        if not new.is_file():
            return f"{copy} was not compared with {self.file}: it is not on this machine."
        if new.read_bytes() == self.file.read_bytes():
            return f"{copy} equals {self.file}, byte for byte."
        found = provenance.read(new)
        different = differences(self.made, found) if found else []
        reasons = "; ".join(different) or (
            "the tags are equal, so the prompt, input audio, weights or machine are different"
        )
        if _sound(new) == _sound(self.file):
            return f"{copy} has the sound of {self.file}. The rest of the file differs: {reasons}."
        return f"{copy} differs from {self.file}: {reasons}."


def settings(made: Provenance, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The inputs in a file's tags as values of the API, checked like those of a command line.

    Raises MusicGenError for values that the API does not have.
    """
    return dict(
        inputs.parse(f"{name}={provenance.text(value)}", dict(fields))
        for name, value in made.inputs.items()
    )


def differences(original: Provenance, copy: Provenance) -> list[str]:
    """What differs between the tags of two files, such as "model demo, not large"."""
    before, after = (
        {"software": one.software, "model": one.model, "precision": one.precision, **one.inputs}
        for one in (original, copy)
    )
    names = dict.fromkeys([*before, *after])
    return [
        # repr() escapes control characters, which a stranger's file could send to the terminal.
        f"{name} is {after.get(name, DEFAULT)!r}, not {before.get(name, DEFAULT)!r}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _sound(file: Path) -> str:
    """A hash of a file's samples."""
    digest = hashlib.sha256()
    with open_audio(file) as audio:
        for block in audio.blocks():
            digest.update(block.tobytes())
    return digest.hexdigest()
