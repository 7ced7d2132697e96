"""Puts one finished file into a Google Cloud Storage bucket; knows nothing of how it was made.

google.cloud is imported by the first upload, not with this module: a server that never
uploads does not pay for it.
"""

import hmac
import logging
import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import TYPE_CHECKING, Any

from musicgen.errors import InputError, UploadError

if TYPE_CHECKING:
    from requests import Session

logger = logging.getLogger(__name__)

_CONTENT_TYPES = {".mp3": "audio/mpeg", ".wav": "audio/wav"}

# Seconds between attempts: up to `initial`, doubled each time (the library adds the jitter).
_BACK_OFF = {"initial": 0.5, "maximum": 8.0}
# A connection that is silent for this long is given up and the attempt repeated (seconds).
_STALL = 20.0
# Shortest wait for a socket, for the attempt that starts just before the deadline (seconds).
_LAST_CALL = 0.1

_REFUSALS = {
    401: ("its credentials were refused", "The operator must renew them"),
    403: (
        "its account may not write there",
        "The operator must grant it storage.objects.create and storage.objects.delete",
    ),
    404: (
        "there is no such bucket",
        "The operator must create it or correct UPLOAD_BUCKET",
    ),
}


@dataclass(frozen=True)
class Bucket:
    """Where songs go: objects are named `{prefix}{song_id}.{mp3|wav}`."""

    name: str
    prefix: str = "songs/"


@dataclass(frozen=True)
class Upload:
    """A stored song: `gs://bucket/object`, and the https URL for whoever may read it."""

    gcs_uri: str
    url: str


def settings(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """What `authorize` reads of the environment. The key leaves it with that: what this process
    starts from now on (ffmpeg, a compiler, Google's command) does not inherit the secret."""
    found = dict(environ)
    environ.pop("UPLOAD_KEY", None)
    return found


def authorize(
    song_id: int | None, key: str | None, environ: Mapping[str, str] = os.environ
) -> Bucket | None:
    """The bucket for `song_id`, if `key` equals the server's UPLOAD_KEY. Touches no network.

    Without a `song_id` there is nothing to store, and `key` is not looked at.

    Raises InputError on `song_id` when the server is not set up for uploads, naming the
    variable at fault, and on `key` when it is missing, empty or wrong. No message holds a key.
    """
    if song_id is None:
        return None
    bucket = Bucket(environ.get("UPLOAD_BUCKET", ""), environ.get("UPLOAD_PREFIX", "songs/"))
    secret = environ.get("UPLOAD_KEY", "")
    faults = {
        "UPLOAD_BUCKET is not set": not bucket.name,
        "UPLOAD_KEY is not set": not secret,
        "UPLOAD_BUCKET must be a bare name, without gs:// or /": "/" in bucket.name,
        "UPLOAD_PREFIX must not start with /": bucket.prefix.startswith("/"),
    }
    if any(faults.values()):
        found = "; ".join(fault for fault, present in faults.items() if present)
        raise InputError(
            "song_id",
            song_id,
            f"this server cannot upload: {found}",
            "The operator must correct that; without song_id the audio comes in the reply",
        )
    if not key:
        raise InputError("key", key, "song_id needs a key", "Send the server's upload key")
    # Bytes, as compare_digest refuses non-ASCII text; lone surrogates must not crash it either.
    if not hmac.compare_digest(
        key.encode("utf-8", "surrogatepass"), secret.encode("utf-8", "surrogatepass")
    ):
        raise InputError("key", "***", "wrong key", "Send the server's upload key")
    return bucket


def deliver(
    file: Path, bucket: Bucket | None, song_id: int | None, facts: Mapping[str, object]
) -> dict[str, object]:
    """The part of the answer that says where the audio is.

    Without a bucket `audio` is the file itself. A failed upload loses nothing: `audio` is then the
    file too, and `upload_error` says why.
    """
    if bucket is None or song_id is None:
        return {"audio": file}
    answer: dict[str, object] = {"audio": file, "song_id": song_id}
    try:
        stored = upload(file, bucket, song_id, {name: str(value) for name, value in facts.items()})
    except UploadError as exc:
        logger.error("%s", exc)
        return {**answer, "upload_error": str(exc)}
    return {**answer, "audio": stored.url, "gcs_uri": stored.gcs_uri}


def upload(
    path: Path,
    bucket: Bucket,
    song_id: int,
    metadata: Mapping[str, str],
    *,
    deadline: float = 60.0,
) -> Upload:
    """Store the .mp3 or .wav file `path` as `song_id`, replacing an earlier one.

    Errors that the client library calls transient are retried with back-off, until `deadline`
    seconds have passed: then no attempt starts, and one that is under way is cut, even if it still
    moves. The storage server verifies a checksum of the content, and keeps nothing of an attempt
    that was cut.

    Raises UploadError for whatever goes wrong, so that the caller can still hand out the audio.
    """
    end = monotonic() + deadline
    name = f"{bucket.prefix}{song_id}{path.suffix}"
    # Otherwise every client also asks for the bucket's properties, in a thread that shares its
    # connection; the right to write objects does not include that
    # (googleapis/google-cloud-python issues 17650 and 18116).
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    try:
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        # No project: writing an object needs none, and not every credential names one.
        with storage.Client(project=None) as client, _cut_after(deadline, client._http):
            blob = client.bucket(bucket.name).blob(name)
            blob.metadata = dict(metadata)
            # Caches keep public objects for an hour by default, which would hide a replacement.
            blob.cache_control = "no-cache"

            def attempt() -> None:
                """One whole upload; repeating it is safe, as it only replaces the object."""
                wait = min(_STALL, max(_LAST_CALL, end - monotonic()))
                try:
                    blob.upload_from_filename(
                        str(path),
                        content_type=_CONTENT_TYPES[path.suffix],
                        checksum="auto",
                        timeout=wait,
                        retry=None,
                    )
                except JSONDecodeError as exc:
                    raise ConnectionError("the answer ended too early") from exc

            DEFAULT_RETRY.with_delay(**_BACK_OFF).with_timeout(end - monotonic())(attempt)()
            return Upload(f"gs://{bucket.name}/{name}", blob.public_url)
    except Exception as exc:
        problem, fix = _explain(exc)
        message = f"this server could not upload to gs://{bucket.name}/{name}: {problem}. {fix}."
        raise UploadError(message) from exc


@contextmanager
def _cut_after(seconds: float, session: "Session") -> Iterator[None]:
    """Shut the connections that `session` opens down after so many seconds, whatever they do.

    Timeouts do not do that: they begin anew with every few bytes that pass.
    """
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    opened: list[socket.socket] = []

    def noted(pool: Any) -> type:
        class Connection(pool.ConnectionCls):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                opened.append(self.sock)

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {
                "http": noted(HTTPConnectionPool),
                "https": noted(HTTPSConnectionPool),
            }

    def cut() -> None:
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    session.mount("https://", Adapter())
    session.mount("http://", Adapter())
    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _explain(exc: Exception) -> tuple[str, str]:
    """What went wrong and how to fix it, quoting nothing that the storage service said."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

    if isinstance(exc, RetryError):
        last = _explain(exc.cause)[0] if isinstance(exc.cause, Exception) else "no answer"
        return (
            f"every attempt until the deadline failed, the last with: {last}",
            "Try again later; the operator must check the network if it goes on",
        )
    # The first that fits: the third is the base of the two above it.
    credentials = (
        (
            DefaultCredentialsError,
            "it has no Google Cloud credentials",
            "The operator must attach a service account or set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (
            TransportError,
            "its credentials could not be renewed over the network",
            "The operator must check the network",
        ),
        (GoogleAuthError, *_REFUSALS[401]),
    )
    for kind, problem, fix in credentials:
        if isinstance(exc, kind):
            return problem, fix
    if isinstance(exc, GoogleAPICallError) and exc.code in _REFUSALS:
        return _REFUSALS[exc.code]
    seen = f"HTTP {exc.code}" if isinstance(exc, GoogleAPICallError) else type(exc).__name__
    return seen, "The operator must check UPLOAD_BUCKET and UPLOAD_PREFIX if it happens again"
