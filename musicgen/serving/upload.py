"""Uploads a finished file to a Google Cloud Storage bucket.

google.cloud is imported by the first upload, not with this module: a server that never uploads
starts faster.
"""

import hmac
import logging
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from time import monotonic

from musicgen.errors import InputError, UploadError
from musicgen.serving import upload_key
from musicgen.serving.sessions import bounded

logger = logging.getLogger(__name__)

_CONTENT_TYPES = {".mp3": "audio/mpeg", ".wav": "audio/wav"}

# Seconds between attempts: up to `initial`, doubled each time (the library adds the jitter).
_BACK_OFF = {"initial": 0.5, "maximum": 8.0}
# After this many seconds of silence a connection is closed and the attempt repeated.
_STALL = 20.0
# Shortest socket timeout in seconds, for an attempt that starts just before the deadline.
_LAST_CALL = 0.1

_REFUSALS = {
    400: (
        "the storage service refused the request (HTTP 400)",
        "The operator must check UPLOAD_BUCKET and UPLOAD_PREFIX; buckets with requester pays are "
        "not supported",
    ),
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


# JSON readers that keep numbers as doubles, JavaScript's among them, know no larger whole number.
MAX_SONG_ID = 2**53


@dataclass(frozen=True)
class Bucket:
    """The bucket for songs; objects are named `{prefix}{song_id}.{mp3|wav}`."""

    name: str
    prefix: str = "songs/"


@dataclass(frozen=True)
class Song:
    """Where one result is stored."""

    bucket: Bucket
    song_id: int


@dataclass(frozen=True)
class Upload:
    """A stored song: `gs://bucket/object`, and its https URL, which needs permission to read."""

    gcs_uri: str
    url: str


def take_settings(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for `authorize`. Removes the key from the process's own environment.

    Processes started later (ffmpeg, a compiler, Google's command) do not inherit the secret then.
    """
    key = upload_key.take(environ)
    return dict(environ) | ({} if key is None else {upload_key.VARIABLE: key})


def authorize(
    song_id: float | None, key: str | None, environ: Mapping[str, str] = os.environ
) -> Song | None:
    """The place of `song_id`, if `key` equals the server's UPLOAD_KEY. Does no network access.

    None without a `song_id`: nothing is stored, and `key` is ignored.

    Raises InputError for `song_id` if the server is not configured for uploads, naming the wrong
    variable, and for `key` if it is missing, empty or wrong. No message contains a key.
    """
    if song_id is None:
        return None
    # JSON allows 7.0 where the schema says integer.
    if not 0 <= song_id <= MAX_SONG_ID or song_id != int(song_id):
        fix = f"Send a whole number from 0 to {MAX_SONG_ID}"
        raise InputError("song_id", song_id, "out of range", fix)
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
            "The operator must correct that; without song_id the response contains the audio",
        )
    if not key:
        raise InputError("key", key, "song_id needs a key", "Send the server's upload key")
    # compare_digest refuses non-ASCII text, so compare bytes; lone surrogates must not crash it.
    if not hmac.compare_digest(
        key.encode("utf-8", "surrogatepass"), secret.encode("utf-8", "surrogatepass")
    ):
        raise InputError("key", "***", "wrong key", "Send the server's upload key")
    return Song(bucket, int(song_id))


def deliver(file: Path, song: Song | None, properties: Mapping[str, object]) -> dict[str, object]:
    """Upload the file as `song`, if any; return the part of the response that holds the audio.

    `audio` is the URL of the upload, or the file itself without one. A failed upload loses
    nothing: `audio` is the file, and `upload_error` gives the reason.
    """
    if song is None:
        return {"audio": file}
    answer: dict[str, object] = {"audio": file, "song_id": song.song_id}
    try:
        metadata = {name: str(value) for name, value in properties.items()}
        stored = upload(file, song.bucket, song.song_id, metadata)
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

    Errors that the client library calls transient are retried with back-off until `deadline`
    seconds have passed. Then no attempt starts, and a running one is aborted, even if data still
    flows. The storage server verifies a checksum of the content and keeps nothing of an aborted
    attempt.

    Raises only UploadError, so that the caller can still return the audio.
    """
    end = monotonic() + deadline
    name = f"{bucket.prefix}{song_id}{path.suffix}"
    # Otherwise every client also requests the bucket's properties, in a thread that shares its
    # connection; permission to write objects does not cover that
    # (googleapis/google-cloud-python issues 17650 and 18116).
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    try:
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        # Writing an object needs no project, and not every credential names one.
        with storage.Client(project=None) as client, bounded(client._http, deadline):
            blob = client.bucket(bucket.name).blob(name)
            blob.metadata = dict(metadata)
            # By default caches keep public objects for an hour, which would hide a replacement.
            blob.cache_control = "no-cache"

            def attempt() -> None:
                """One whole upload. It can be repeated, because it only replaces the object."""
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
                    raise ConnectionError("the response ended too early") from exc

            DEFAULT_RETRY.with_delay(**_BACK_OFF).with_timeout(end - monotonic())(attempt)()
            return Upload(f"gs://{bucket.name}/{name}", blob.public_url)
    except Exception as exc:
        problem, fix = _explain(exc)
        message = f"this server could not upload to gs://{bucket.name}/{name}: {problem}. {fix}."
        raise UploadError(message) from exc


def _explain(exc: Exception) -> tuple[str, str]:
    """The problem and its fix, without quoting the storage service."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

    if isinstance(exc, RetryError):
        last = _explain(exc.cause)[0] if isinstance(exc.cause, Exception) else "no response"
        return (
            f"every attempt until the deadline failed, the last with: {last}",
            "Try again later; the operator must check the network if this continues",
        )
    # The first match counts: the third class is the base of the two above it.
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
