"""Takes in a folder: each a JSON file beside its audio files."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import RLock
from typing import Any

from musicgen.commands import client
from musicgen.commands.client import Prediction
from musicgen.page import prompts
from musicgen.page.takes import Clip, Take, clip_names, file_name, find

AUDIO_FIELD = "input_audio"


class Library:
    """The takes of a folder. Every change is on the disk when its method returns.

    The last deleted take can be restored. Its audio is removed when the next one is deleted, or by
    `close`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.deleted: Take | None = None
        self._lock = RLock()
        found = filter(None, map(_read, folder.glob("take-*.json")))
        self._takes = {take.number: take for take in found}

    @property
    def takes(self) -> list[Take]:
        """All takes, oldest first."""
        with self._lock:
            return [self._takes[number] for number in sorted(self._takes)]

    def find(self, number: int) -> Take | None:
        """The take with a number, or None."""
        return find(self.takes, number)

    def add(self, settings: dict[str, Any], prediction: Prediction) -> Take:
        """Save a prediction as a new take. Raises ServerError if its audio cannot be fetched."""
        with self._lock:
            known = [*self._takes, self.deleted.number if self.deleted else 0]
            number = max(known) + 1
            stem = prompts.file_stem(settings.get("prompt") or "")
            names = clip_names(number, len(prediction.audio))
            first = prediction.seed
            clips = []
            for index, (name, uri) in enumerate(zip(names, prediction.audio, strict=True)):
                seed = None if first is None else first + index
                file = client.save(uri, self.folder, file_name(number, stem, seed, index))
                clips.append(Clip(name, file, seed))
            take = Take(
                number, self._own(settings), tuple(clips), prediction.facts, prediction.metrics
            )
            self._put(take)
            return take

    def rename(self, number: int, name: str) -> None:
        """Give a take a name of the user's; "" is its prompt again."""
        self._change(number, lambda take: replace(take, name=name.strip()))

    def star(self, number: int) -> None:
        """Star a take, or remove its star."""
        self._change(number, lambda take: replace(take, starred=not take.starred))

    def delete(self, number: int) -> None:
        """Delete a take. `restore` undoes this until the next one is deleted."""
        with self._lock:
            self.close()
            self.deleted = self._takes.pop(number, None)
            self._json(number).unlink(missing_ok=True)

    def restore(self) -> Take | None:
        """Bring the last deleted take back; None if there is none."""
        with self._lock:
            take, self.deleted = self.deleted, None
            if take:
                self._put(take)
            return take

    def close(self) -> None:
        """Remove the audio of the last deleted take."""
        with self._lock:
            for clip in self.deleted.clips if self.deleted else ():
                clip.file.unlink(missing_ok=True)
            self.deleted = None

    def _change(self, number: int, change: Callable[[Take], Take]) -> None:
        with self._lock:
            if take := self._takes.get(number):
                self._put(change(take))

    def _put(self, take: Take) -> None:
        content = asdict(take)
        content["clips"] = [{**asdict(clip), "file": clip.file.name} for clip in take.clips]
        if audio := take.settings.get(AUDIO_FIELD):
            content["settings"][AUDIO_FIELD] = Path(audio).name
        path = self._json(take.number)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(path)
        self._takes[take.number] = take

    def _json(self, number: int) -> Path:
        return self.folder / f"take-{number}.json"

    def _own(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings with a copy of the input audio in this folder."""
        if not settings.get(AUDIO_FIELD):
            return settings
        source = Path(settings[AUDIO_FIELD])
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
        own = self.folder / f"input-{digest}{source.suffix}"
        if not own.exists():
            shutil.copyfile(source, own)
        return settings | {AUDIO_FIELD: str(own)}


def _read(path: Path) -> Take | None:
    """A take from its JSON file; None, with a line on stderr, if the file is not one."""
    try:
        content = json.loads(path.read_text())
        clips = tuple(
            Clip(clip["name"], path.parent / clip["file"], clip["seed"])
            for clip in content.pop("clips")
        )
        if audio := content["settings"].get(AUDIO_FIELD):
            content["settings"][AUDIO_FIELD] = str(path.parent / audio)
        take = Take(clips=clips, **content)
        if clips and all(clip.file.is_file() for clip in clips):
            return take
        reason: object = "its audio is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        reason = exc
    print(f"{path} is not a take and is ignored: {reason}", file=sys.stderr)
    return None
