"""Requests that ask for much memory or time with little, and files that are unusual but honest.

scripts/soak and the tests of abuse send them. Packages are imported where they are used, since the
help of scripts/soak needs a bare Python.
"""

import functools
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from musicgen.commands.client import data_uri

COUNT = 60_000_000  # samples that headers claim
INDEXED = ("-c:a", "pcm_s16le")
FRAGMENTED = (*INDEXED, "-movflags", "frag_keyframe+empty_moov")
MEGABYTE = 10**6


@dataclass(frozen=True)
class Attack:
    """Inputs of a request, and the fields of which its refusal names one."""

    inputs: dict[str, Any]
    fields: tuple[str, ...] = ("input_audio",)


Maker = Callable[[Path, str], Attack]


def _file(make: Callable[[Path], Path]) -> Maker:
    """A file that is read and, since a second of it leaves nothing of `duration`, then refused."""

    def attack(folder: Path, slow: str) -> Attack:
        inputs = {"input_audio": data_uri(make(folder)), "continuation": True, "duration": 1}
        return Attack(inputs, ("input_audio", "duration"))

    return attack


def _silence(folder: Path, slow: str) -> Attack:
    uri = data_uri(silence(folder, 4000))
    inputs = {"input_audio": uri, "continuation_start": 10**9}
    return Attack(inputs, ("input_audio", "continuation_start"))


def _slow(name: str) -> Maker:
    return lambda folder, slow: Attack({"input_audio": f"{slow}/{name}"})


def _text(field: str, value: str) -> Maker:
    return lambda folder, slow: Attack({field: value}, (field,))


def index(folder: Path, count: int = COUNT) -> Path:
    """A sound file whose header claims `count` samples of one size."""
    path = tone(folder / "index.mov", *INDEXED)
    _claim(path, b"stts", count)
    return _claim(path, b"stsz", count)


def tracks(folder: Path, count: int = COUNT) -> Path:
    """The same in each of four tracks."""
    source, path = tone(folder / "track.wav", seconds=1), folder / "tracks.mov"
    maps = [word for _ in range(4) for word in ("-map", "0")]
    _ffmpeg("-i", source, *maps, *INDEXED, path)
    content = bytearray(path.read_bytes())
    for atom in (b"stts", b"stsz"):
        at = content.find(atom)
        while at >= 0:
            content[at + 12 : at + 16] = struct.pack(">I", count)
            at = content.find(atom, at + 1)
    path.write_bytes(content)
    return path


def fragment(folder: Path, count: int = COUNT) -> Path:
    """A fragmented sound file with a fragment that claims `count` samples."""
    path = tone(folder / "fragment.mov", *FRAGMENTED)
    content = bytearray(path.read_bytes())
    place = content.index(b"trun") + 4
    content[place : place + 8] = struct.pack(">II", 0, count)
    path.write_bytes(content)
    return path


def cover(folder: Path, side: int = 5000) -> Path:
    """An mp3 with a cover of side x side pixels, all of one colour."""
    sound, picture = tone(folder / "b.mp3"), folder / "cover.png"
    source = ("-f", "lavfi", "-i", f"color=black:s={side}x{side}")
    _ffmpeg(*source, "-frames:v", 1, "-pix_fmt", "rgba64be", picture)
    path = folder / "cover.mp3"
    _ffmpeg("-i", sound, "-i", picture, "-map", 0, "-map", 1, "-c", "copy", path)
    return path


def silence(folder: Path, seconds: int = 20_000) -> Path:
    """Hours of silence in a flac of a few megabytes, without an index."""
    path = folder / "silence.flac"
    # The largest blocks that ffmpeg generates. They do not change the file, only the time it takes.
    source = ("-f", "lavfi", "-i", "anullsrc=r=44100:cl=mono:n=65535", "-t", seconds)
    _ffmpeg(*source, "-c:a", "flac", "-threads", 1, "-frame_size", 1024, path)
    return path


# Files of at most a megabyte.
FILES = {"index": index, "fragment": fragment, "tracks": tracks, "cover": cover}


def unusual(folder: Path) -> dict[str, Path]:
    """Files as people really send them, by name. All can be read."""
    stereo, mono = tone(folder / "stereo.mp3"), tone(folder / "mono.mp3", "-ac", 1, "-ar", 22050)
    joined = folder / "joined.mp3"
    joined.write_bytes(stereo.read_bytes() + mono.read_bytes())
    return {
        "joined streams": joined,
        "gap": tone(folder / "gap.webm", "-af", "aselect='not(between(t,0.5,1))'"),
        "six channels": tone(folder / "six.wav", "-af", "pan=5.1|" + _each("c{}=0.5*c0", 6)),
        "odd channel mask": odd_mask(folder),
        "late track": _late(folder),
        "float": tone(folder / "float.wav", "-af", "volume=4", "-c:a", "pcm_f32le"),
    }


# Attack -> what makes it, from a folder for its files and the URL of `endless`.
ATTACKS: dict[str, Maker] = {
    "prompt": _text("prompt", "a " * (2 * MEGABYTE)),
    "index": _file(index),
    "fragment": _file(fragment),
    "tracks": _file(tracks),
    "cover": _file(cover),
    "silence": _silence,
    "endless": _slow("radio.mp3"),
    "gzip": _slow("bomb.mp3"),
    "host of many labels": _text("input_audio", "http://" + "a." * MEGABYTE + "/a.wav"),
    "path of many escapes": _text("input_audio", "http://127.0.0.1:9/" + "%41" * MEGABYTE),
    "data URI of escapes": _text("input_audio", "data:audio/wav," + "%41" * (2 * MEGABYTE)),
    "data URI with a long type": _text("input_audio", "data:" + "a;" * MEGABYTE + "base64,AAAA"),
    "song number": lambda folder, slow: Attack(
        {"song_id": 2.0**64, "key": "x" * MEGABYTE}, ("song_id",)
    ),
}


def odd_mask(folder: Path, mask: int = 0x80000001) -> Path:
    """A stereo wav with bits in its channel mask that name no speaker."""
    path, content = folder / "mask.wav", tone(folder / "plain.wav").read_bytes()
    data = content[content.index(b"data") :]
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 44100, 4 * 44100, 4, 16, 22, 16, mask) + guid
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    return path


def tone(path: Path, *options: object, seconds: float = 2) -> Path:
    """A stereo file of a sine. `options` are ffmpeg's, for the output."""
    sine = "0.4*sin(600*PI*t)"
    _ffmpeg("-f", "lavfi", "-i", f"aevalsrc='{sine}|{sine}':d={seconds}:s=44100", *options, path)
    return path


@contextmanager
def endless() -> Iterator[str]:
    """A server whose files never end: /radio.mp3 is slow, /bomb.mp3 is compressed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/bomb.mp3":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            with suppress(OSError):  # the client has closed the connection, as it should
                while True:
                    if self.path == "/bomb.mp3":
                        self.wfile.write(_zeros())
                    else:
                        self.wfile.write(b"x")
                        time.sleep(0.1)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@functools.cache
def _zeros() -> bytes:
    """100 MB of zeros as a gzip member of 100 kB."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(MEGABYTE)
    return b"".join([*(packer.compress(block) for _ in range(100)), packer.flush()])


def _late(folder: Path) -> Path:
    """A video whose sound begins half a second after the picture."""
    path, sound = folder / "late.mp4", tone(folder / "late.wav")
    picture = ("-f", "lavfi", "-i", "color=s=64x64:d=2", "-itsoffset", 0.5, "-i", sound)
    _ffmpeg(*picture, "-map", 0, "-map", 1, "-c:v", "mpeg4", "-c:a", "aac", path)
    return path


def _each(form: str, count: int) -> str:
    return "|".join(form.format(number) for number in range(count))


def _claim(path: Path, atom: bytes, count: int) -> Path:
    """Change the first `atom` of a QuickTime file so that it claims `count` samples."""
    content = bytearray(path.read_bytes())
    place = content.index(atom) + 12
    content[place : place + 4] = struct.pack(">I", count)
    path.write_bytes(content)
    return path


def _ffmpeg(*arguments: object) -> None:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-nostdin"]
    subprocess.run([*command, *map(str, arguments)], check=True)
