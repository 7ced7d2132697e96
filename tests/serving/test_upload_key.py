"""Only requests with the server's key may upload; without a key on the server none may."""

import logging
import re

import pytest
from storage import chain

from musicgen.errors import InputError
from musicgen.serving.upload import MAX_SONG_ID, Bucket, Song, authorize

KEY = "correct-horse-battery-staple"
SERVER = {"UPLOAD_BUCKET": "songs", "UPLOAD_KEY": KEY}
SONGS = Bucket("songs")


def test_right_key_gives_the_bucket() -> None:
    assert authorize(0, KEY, SERVER) == Song(Bucket("songs", "songs/"), 0)
    assert authorize(0, KEY, SERVER | {"UPLOAD_PREFIX": "x/"}) == Song(Bucket("songs", "x/"), 0)
    assert authorize(0, KEY, SERVER | {"UPLOAD_PREFIX": ""}) == Song(Bucket("songs", ""), 0)


def test_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UPLOAD_PREFIX", raising=False)
    assert authorize(1, KEY) == Song(SONGS, 1)


@pytest.mark.parametrize("key", ["clé-鍵-🔑", "\udcff\ud800", "x" * 10**6])
def test_any_text_can_be_a_key(key: str) -> None:
    assert authorize(1, key, SERVER | {"UPLOAD_KEY": key}) == Song(SONGS, 1)
    with pytest.raises(InputError) as caught:
        authorize(1, key, SERVER)
    assert caught.value.field == "key"
    assert key not in chain(caught.value)
    with pytest.raises(InputError) as caught:
        authorize(1, KEY, SERVER | {"UPLOAD_KEY": key})
    assert key not in chain(caught.value)


@pytest.mark.parametrize(
    "key", [None, "", " ", "wrong-one", KEY[:-1], KEY + "\n", KEY.upper(), KEY + "\0"]
)
def test_any_other_key_is_refused(key: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as caught:
        authorize(1, key, SERVER)
    assert caught.value.field == "key"
    text = chain(caught.value) + caplog.text
    assert KEY not in text
    assert not (key or "").strip() or key not in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"UPLOAD_KEY": ""}, "UPLOAD_KEY is not set"),
        ({"UPLOAD_BUCKET": ""}, "UPLOAD_BUCKET is not set"),
        ({"UPLOAD_BUCKET": "gs://songs"}, "UPLOAD_BUCKET must be a bare name"),
        ({"UPLOAD_PREFIX": "/songs/"}, "UPLOAD_PREFIX must not start with /"),
    ],
)
@pytest.mark.parametrize("key", [KEY, "wrong-one", "", None])
def test_server_not_set_up(change: dict[str, str], says: str, key: str | None) -> None:
    with pytest.raises(InputError, match=says) as caught:
        authorize(1, key, SERVER | change)
    assert caught.value.field == "song_id"
    assert KEY not in chain(caught.value)


def test_empty_environment_names_both_variables() -> None:
    with pytest.raises(InputError, match="UPLOAD_BUCKET is not set; UPLOAD_KEY is not set"):
        authorize(1, "", {})


@pytest.mark.parametrize("song_id", [7.0, 1e2, 0.0])
def test_a_whole_number_sent_as_a_float_is_that_number(song_id):
    song = authorize(song_id, KEY, SERVER)
    assert song == Song(SONGS, int(song_id))
    assert isinstance(song.song_id, int)


@pytest.mark.parametrize("song_id", [-1, 7.5, 2.0**53 * 2, 2**64, 1e26, float("inf"), float("nan")])
def test_a_number_that_is_not_exact_is_refused(song_id):
    message = f"song_id={re.escape(str(song_id))}: .*whole number from 0 to"
    with pytest.raises(InputError, match=message):
        authorize(song_id, KEY, SERVER)
    assert authorize(MAX_SONG_ID, KEY, SERVER).song_id == MAX_SONG_ID
