"""The real client against a real storage server; a proxy between them injects faults."""

import json
import logging
import subprocess
import sys
from itertools import repeat
from pathlib import Path
from random import Random
from urllib.parse import quote

import plain_http
import pytest
from storage import LARGE, SMALL, Fault, Proxy, chain, fault_proxy

from musicgen.errors import UploadError
from musicgen.serving.upload import Bucket, Upload, authorize, upload

KEY = "correct-horse-battery-staple"
SERVER = {"UPLOAD_BUCKET": "songs", "UPLOAD_KEY": KEY}
SONGS = Bucket("songs")
METADATA = {"seed": "7", "duration": "2.0", "sample_rate": "32000", "model": "tiny"}


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return write(tmp_path / "song.mp3", SMALL)


def write(path: Path, size: int, seed: int = 0) -> Path:
    """A file of random bytes that ends in line endings."""
    path.write_bytes(Random(seed).randbytes(size - 4) + b"\r\n\n\r")
    return path


def resource(storage_url: str, name: str) -> dict[str, object]:
    """The stored object's properties, read without the proxy."""
    answer = plain_http.get(f"{storage_url}/storage/v1/b/songs/o/{quote(name, safe='')}")
    answer.raise_for_status()
    found: dict[str, object] = answer.json()
    return found


def exists(storage_url: str, name: str) -> bool:
    return plain_http.get(f"{storage_url}/songs/{name}").status_code == 200


# --- stored objects ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["one request", "resumable"])
@pytest.mark.parametrize(("suffix", "kind"), [(".mp3", "audio/mpeg"), (".wav", "audio/wav")])
def test_object_equals_file(
    proxy: Proxy, storage_url: str, tmp_path: Path, suffix: str, kind: str, size: int
) -> None:
    path = write(tmp_path / f"any name{suffix}", size)
    stored = upload(path, SONGS, 12, METADATA)
    assert stored == Upload(f"gs://songs/songs/12{suffix}", f"{proxy.url}/songs/songs/12{suffix}")
    assert plain_http.get(stored.url).content == path.read_bytes()
    found = resource(storage_url, f"songs/12{suffix}")
    assert found["contentType"] == kind
    assert found["metadata"] == METADATA
    assert found["cacheControl"] == "no-cache"


def test_second_upload_replaces(proxy: Proxy, storage_url: str, tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.mp3", 5000, seed=1), write(tmp_path / "new.mp3", 400, seed=2)
    first = upload(old, SONGS, 3, {"seed": "1"})
    second = upload(new, SONGS, 3, {"seed": "2"})
    assert first == second
    assert plain_http.get(second.url).content == new.read_bytes()
    assert resource(storage_url, "songs/3.mp3")["metadata"] == {"seed": "2"}


@pytest.mark.parametrize("prefix", ["", "a/b/", "no-slash-", "späce ü?#%/"])
def test_prefix(proxy: Proxy, song: Path, prefix: str) -> None:
    stored = upload(song, Bucket("songs", prefix), 0, {})
    assert stored.gcs_uri == f"gs://songs/{prefix}0.mp3"
    assert plain_http.get(stored.url).content == song.read_bytes()


def test_url_in_production_is_https(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), None))
    monkeypatch.setattr(storage.Blob, "upload_from_filename", lambda *_, **__: None)
    assert upload(song, Bucket("b", "a b/"), 1, {}) == Upload(
        "gs://b/a b/1.mp3", "https://storage.googleapis.com/b/a%20b/1.mp3"
    )


def test_sends_no_request_but_the_upload(proxy: Proxy, song: Path) -> None:
    """The least privileged role may write objects, but not read properties of bucket or object."""
    upload(song, SONGS, 2, METADATA)
    sent = [(seen.method, seen.path) for seen in proxy.seen]
    assert sent == [("POST", "/upload/storage/v1/b/songs/o?uploadType=multipart")]


# --- transient faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "faults"),
    [(size, faults) for size in (SMALL, LARGE) for faults in ([503, 503], [429], [500, 408])]
    + [(SMALL, ["drop"]), (SMALL, ["lose"])]
    + [(LARGE, [None, fault]) for fault in ("drop", "lose", 503)],
    ids=str,
)
def test_transient_fault_is_retried(
    proxy: Proxy, tmp_path: Path, size: int, faults: list[Fault]
) -> None:
    path = write(tmp_path / "song.wav", size)
    proxy.inject(faults)
    stored = upload(path, SONGS, 4, METADATA)
    # After the faults the upload starts from its beginning.
    assert len(proxy.seen) == len(faults) + (1 if size == SMALL else 2)
    assert plain_http.get(stored.url).content == path.read_bytes()


def test_silent_connection_times_out_and_is_retried(
    proxy: Proxy, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen.serving.upload._STALL", 0.3)
    proxy.inject(["stall"])
    stored = upload(song, SONGS, 5, {})
    assert plain_http.get(stored.url).content == song.read_bytes()


# --- permanent faults -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [503, "drop", "stall"])
def test_down_for_good(proxy: Proxy, song: Path, fault: Fault) -> None:
    proxy.inject(repeat(fault))
    with pytest.raises(UploadError, match="until the deadline") as caught:
        upload(song, SONGS, 6, METADATA, deadline=1.0)
    assert caught.value.__cause__ is not None


def test_connection_refused(proxy: Proxy, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match="check the network"):
        upload(song, SONGS, 6, METADATA, deadline=0.5)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "HTTP 400.*requester pays"),
        (401, "no Google Cloud credentials"),
        (403, r"storage\.objects\.create"),
        (412, "HTTP 412"),
    ],
)
def test_refusal_is_not_retried(proxy: Proxy, song: Path, status: int, says: str) -> None:
    proxy.inject(repeat(status))
    with pytest.raises(UploadError, match=says):
        upload(song, SONGS, 6, METADATA)
    assert len(proxy.seen) == 1


def test_missing_bucket(proxy: Proxy, song: Path) -> None:
    with pytest.raises(UploadError, match=r"no such bucket.*UPLOAD_BUCKET"):
        upload(song, Bucket("nowhere"), 6, METADATA)
    assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    ("size", "faults"), [(SMALL, ["corrupt"]), (LARGE, [None, "corrupt"])], ids=["one", "resumable"]
)
def test_damaged_transfer_is_noticed(
    proxy: Proxy, storage_url: str, tmp_path: Path, size: int, faults: list[Fault]
) -> None:
    proxy.inject(faults)
    with pytest.raises(UploadError):
        upload(write(tmp_path / "song.wav", size), SONGS, 8, METADATA)
    assert not exists(storage_url, "songs/8.wav")


@pytest.fixture
def no_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production, on a machine without any credentials."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.mark.usefixtures("no_emulator")
def test_no_credentials(song: Path) -> None:
    with pytest.raises(UploadError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        upload(song, SONGS, 6, METADATA)


@pytest.mark.parametrize(
    ("fault", "deadline", "says"),
    [
        (400, 60.0, "credentials were refused"),
        ("drop", 1.0, "check the network"),
        ("drip", 1.0, "could not upload"),  # the library takes the cut answer for an empty one
    ],
)
def test_service_account_gets_no_token(
    storage_url: str,
    song: Path,
    tmp_path: Path,
    no_emulator: None,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    deadline: float,
    says: str,
) -> None:
    with fault_proxy(storage_url) as tokens:
        tokens.inject(repeat(fault))
        account = service_account(f"{tokens.url}/token")
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        with pytest.raises(UploadError, match=says) as caught:
            upload(song, SONGS, 6, METADATA, deadline=deadline)
    assert tokens.seen
    assert account["client_email"] not in str(caught.value)
    assert account["private_key"][100:140] not in chain(caught.value)


def service_account(token_uri: str) -> dict[str, str]:
    """The content of a service account's key file, with a new key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return {
        "type": "service_account",
        "client_email": "songs@example.iam.gserviceaccount.com",
        "private_key": pem.decode(),
        "token_uri": token_uri,
    }


def test_a_proxy_that_sends_without_end_is_cut_at_the_deadline(
    storage_url: str, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.example")
    with fault_proxy(storage_url) as slow:
        slow.inject(repeat("drip"))
        monkeypatch.setenv("http_proxy", slow.url)
        with pytest.raises(UploadError, match="check the network"):
            upload(song, SONGS, 6, METADATA, deadline=1.0)
    assert slow.seen


@pytest.mark.parametrize("host", ["127.0.0.1:9", "http://", "nonsense://x"])
def test_invalid_endpoint(song: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    with pytest.raises(UploadError):
        upload(song, SONGS, 6, METADATA, deadline=0.5)


@pytest.mark.parametrize("name", ["gone.mp3", "song.ogg"])
def test_bad_file(proxy: Proxy, tmp_path: Path, name: str) -> None:
    (tmp_path / "song.ogg").touch()
    with pytest.raises(UploadError):
        upload(tmp_path / name, SONGS, 6, METADATA)
    assert not proxy.seen


# --- secrets and imports ----------------------------------------------------------------------


def test_key_appears_nowhere(
    proxy: Proxy,
    storage_url: str,
    song: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UPLOAD_KEY", KEY)
    monkeypatch.setenv("UPLOAD_BUCKET", "songs")
    with caplog.at_level(logging.DEBUG):
        bucket = authorize(9, KEY).bucket
        stored = upload(song, bucket, 9, METADATA)
        proxy.inject(repeat(503))
        with pytest.raises(UploadError) as caught:
            upload(song, bucket, 9, METADATA, deadline=0.5)
    assert len(proxy.seen) > 1
    assert caplog.records
    requests = "".join(f"{seen}" for seen in proxy.seen)
    told = [repr(bucket), repr(stored), repr(resource(storage_url, "songs/9.mp3")), requests]
    for text in [*told, chain(caught.value), caplog.text]:
        assert KEY not in text


def test_google_is_imported_by_the_first_upload_only() -> None:
    code = f"""
import sys
from musicgen.serving.upload import authorize
authorize(1, {KEY!r}, {SERVER!r})
print([name for name in sys.modules if name.startswith("google")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
