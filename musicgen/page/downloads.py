"""Addresses of the page's server: clips to save, and the sound of a take while it is made."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, StreamingResponse

from musicgen import provenance
from musicgen.page import loops, prompts
from musicgen.page.encoding import encode
from musicgen.page.takes import Clip, Take, file_name
from musicgen.page.visits import Job, Visits

TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}


def formats(clip: Clip) -> list[str]:
    """The formats in which a clip can be saved: its own, and mp3."""
    return list(dict.fromkeys([clip.file.suffix[1:], "mp3"]))


def name(take: Take, clip: Clip, kind: str) -> str:
    """A file name: "take-2 lofi-chill-C-minor-80bpm seed-80.wav"."""
    extra, _, suffix = kind.rpartition(".")
    stem = prompts.file_stem(take.prompt, take.name)
    whole = file_name(take.number, stem, clip.seed, take.clips.index(clip))
    return f"{whole} {extra}".strip() + f".{suffix}"


def link(visit: str, take: Take, clip: Clip, kind: str, text: str) -> str:
    """An HTML link that saves a clip. `kind` is "wav", "mp3", or as "loop-4-bars.wav"."""
    address = f"/clips/{quote(visit)}/{take.number}/{take.clips.index(clip)}/{quote(kind)}"
    return f'<a href="{address}" download="{name(take, clip, kind)}" class="save">{text}</a>'


def add_routes(app: FastAPI, visits: Visits) -> None:
    """Serve the addresses of `link`, and of a take while it is made: its sound, then its file."""

    @app.get("/clips/{visit}/{number}/{index}/{kind}")
    def clip(visit: str, number: int, index: int, kind: str) -> Any:
        known = visits.get(visit)
        take = known.library.find(number) if known else None
        if take is None or not 0 <= index < len(take.clips):
            raise HTTPException(404, "No such clip.")
        return _answer(take, take.clips[index], kind)

    @app.get("/sounds/{visit}/{job}")
    def sound(visit: str, job: str) -> Any:
        return StreamingResponse(_heard(visits, visit, job).sound.wav(), media_type=TYPES["wav"])

    @app.get("/sounds/{visit}/{job}/take")
    def made(visit: str, job: str) -> Any:
        number = _heard(visits, visit, job).take
        take = visits[visit].library.find(number) if number else None
        return FileResponse(take.clips[0].file) if take else Response(status_code=204)


def _heard(visits: Visits, visit: str, job: str) -> Job:
    known = visits.get(visit)
    if known is None or known.heard is None or known.heard.id != job:
        raise HTTPException(404, "No such prediction.")
    return known.heard


def _answer(take: Take, clip: Clip, kind: str) -> Response:
    saved_as = name(take, clip, kind)
    suffix = kind.rpartition(".")[2]
    if clip.file.suffix == f".{kind}":
        return FileResponse(clip.file, media_type=TYPES.get(suffix), filename=saved_as)
    if kind == "mp3":
        content = mp3(clip.file)
    elif found := loops.of_name(clip.file, prompts.tempo(take.prompt), kind):
        content = loops.wav(clip.file, found)
    else:
        raise HTTPException(404, "No such format.")
    disposition = f"attachment; filename*=UTF-8''{quote(saved_as)}"
    return Response(content, media_type=TYPES[suffix], headers={"Content-Disposition": disposition})


def mp3(file: Path) -> bytes:
    """The mp3 that the server makes of the same request as a 16-bit wav file, with equal tags."""
    samples, rate = soundfile.read(file, dtype="int16", always_2d=True)
    made = provenance.stated(file)
    return encode(samples.astype("float32") / 32767, rate, "mp3", made and made.in_format("mp3"))
