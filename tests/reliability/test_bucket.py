"""Uploads whose connection breaks at any byte, and storage servers that never finish."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from random import Random
from urllib.parse import quote

import plain_http
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
def test_a_transfer_that_is_slow_but_alive_ends_at_the_deadline(
    proxy: Proxy, tmp_path: Path, fault: Fault, size: int
) -> None:
    """At a hundred bytes a second it would take hours, and no socket timeout would fire."""
    path = write(tmp_path / "song.wav", size)
    proxy.inject(repeat(fault))
    with pytest.raises(UploadError, match="could not upload"):
        upload(path, SONGS, 16, METADATA, deadline=1.0)


def check_cuts(proxy: Proxy, storage_url: str, path: Path, cuts: Iterable[int]) -> None:
    """With every request cut after so many bytes the old object stays; cut once, it is replaced."""
    old, name = path.with_suffix(".old.mp3"), "songs/17.mp3"
    old.write_bytes(b"the song that was there before")
    for cut in cuts:
        upload(old, SONGS, 17, METADATA)
        proxy.inject(repeat(Drop(cut)))
        with pytest.raises(UploadError):
            upload(path, SONGS, 17, METADATA, deadline=0.1)
        stored = f"{storage_url}/storage/v1/b/songs/o/{quote(name, safe='')}?alt=media"
        assert plain_http.get(stored).content == old.read_bytes(), cut
        proxy.inject([Drop(cut)])
        upload(path, SONGS, 17, METADATA)
        assert plain_http.get(stored).content == path.read_bytes(), cut


def test_a_cut_anywhere_leaves_the_old_song_or_the_new_one(
    proxy: Proxy, storage_url: str, tmp_path: Path
) -> None:
    check_cuts(proxy, storage_url, write(tmp_path / "song.mp3", 1000), range(0, 1500, 150))


@pytest.mark.full
def test_a_cut_at_every_byte_leaves_the_old_song_or_the_new_one(
    proxy: Proxy, storage_url: str, tmp_path: Path
) -> None:
    check_cuts(proxy, storage_url, write(tmp_path / "song.mp3", 100), range(900))
