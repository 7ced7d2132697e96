"""Uploads that are cut anywhere, and storage servers that never come to an end."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from random import Random
from urllib.parse import quote

import httpx
import pytest
from storage import LARGE, SMALL, Drop, Fault, Proxy

from musicgen.errors import UploadError
from musicgen.serving.upload import Bucket, upload

SONGS = Bucket("songs")
METADATA = {"seed": "7"}


def write(path: Path, size: int) -> Path:
    path.write_bytes(Random(size).randbytes(size))
    return path


@pytest.mark.parametrize("fault", ["sip", "drip"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["one request", "resumable"])
def test_what_still_moves_is_cut_at_the_deadline(
    proxy: Proxy, tmp_path: Path, fault: Fault, size: int
) -> None:
    """A hundred bytes a second would go on for hours, and no timeout would notice."""
    path = write(tmp_path / "song.wav", size)
    proxy.inject(repeat(fault))
    with pytest.raises(UploadError, match="could not upload"):
        upload(path, SONGS, 16, METADATA, deadline=1.0)


def check_cuts(proxy: Proxy, storage_url: str, path: Path, cuts: Iterable[int]) -> None:
    """Cut after so many bytes, for good: nothing new is there. Cut once: the whole file is."""
    old, name = path.with_suffix(".old.mp3"), "songs/17.mp3"
    old.write_bytes(b"the song that was there before")
    for cut in cuts:
        upload(old, SONGS, 17, METADATA)
        proxy.inject(repeat(Drop(cut)))
        with pytest.raises(UploadError):
            upload(path, SONGS, 17, METADATA, deadline=0.1)
        stored = f"{storage_url}/storage/v1/b/songs/o/{quote(name, safe='')}?alt=media"
        assert httpx.get(stored).content == old.read_bytes(), cut
        proxy.inject([Drop(cut)])
        upload(path, SONGS, 17, METADATA)
        assert httpx.get(stored).content == path.read_bytes(), cut


def test_a_cut_anywhere_leaves_the_old_song_or_the_new_one(
    proxy: Proxy, storage_url: str, tmp_path: Path
) -> None:
    check_cuts(proxy, storage_url, write(tmp_path / "song.mp3", 1000), range(0, 1500, 150))


@pytest.mark.full
def test_a_cut_at_every_byte_leaves_the_old_song_or_the_new_one(
    proxy: Proxy, storage_url: str, tmp_path: Path
) -> None:
    check_cuts(proxy, storage_url, write(tmp_path / "song.mp3", 100), range(900))
