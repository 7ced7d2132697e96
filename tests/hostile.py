"""Small inputs that ask for much memory or time."""

import struct

import sounds


def _with_count(path, atom, count, at=8):
    """Change the QuickTime file `path` so that its `atom` claims `count` samples."""
    content = bytearray(path.read_bytes())
    place = content.index(atom) + 4 + at
    content[place : place + 4] = struct.pack(">I", count)
    path.write_bytes(content)
    return path


def index(folder, count=60_000_000):
    """A sound file whose header claims `count` samples of one size."""
    path = sounds.stairs(folder / "index.mov", "-c:a", "pcm_s16le", seconds=1)
    _with_count(path, b"stts", count)
    return _with_count(path, b"stsz", count)


def fragment(folder, count=60_000_000):
    """The same in a fragment of a fragmented file."""
    flags = ("-c:a", "pcm_s16le", "-movflags", "frag_keyframe+empty_moov")
    path = sounds.stairs(folder / "fragment.mov", *flags, seconds=1)
    content = bytearray(path.read_bytes())
    place = content.index(b"trun") + 4
    content[place : place + 8] = struct.pack(">II", 0, count)
    path.write_bytes(content)
    return path


def cover(folder, side=5000):
    """An mp3 with a cover of side x side pixels, all of one colour."""
    sound, picture = sounds.stairs(folder / "b.mp3"), folder / "cover.png"
    size = f"color=black:s={side}x{side}"
    sounds.ffmpeg("-f", "lavfi", "-i", size, "-frames:v", 1, "-pix_fmt", "rgba64be", picture)
    path = folder / "cover.mp3"
    sounds.ffmpeg("-i", sound, "-i", picture, "-map", 0, "-map", 1, "-c", "copy", path)
    return path


def silence(folder, seconds=20_000):
    """Hours of silence in a flac of a few megabytes, without an index."""
    path = folder / "silence.flac"
    source = ("-f", "lavfi", "-i", "anullsrc=r=44100:cl=mono", "-t", seconds)
    sounds.ffmpeg(*source, "-c:a", "flac", path)
    return path


FILES = {"index": index, "fragment": fragment, "cover": cover}
