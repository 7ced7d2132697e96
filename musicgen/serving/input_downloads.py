"""Receives input files within limits, instead of Cog, which has none.

Cog downloads for as long as an address sends, into a folder that may be small, and quotes the whole
URL, with its password and signature, when that fails. A URL of megabytes, or a data URI of escapes,
takes it minutes and gigabytes.
"""

import io
import ipaddress
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urljoin, urlsplit

from musicgen import __version__
from musicgen.errors import InputError, MusicGenError
from musicgen.runtime import input_files
from musicgen.serving import data_uris
from musicgen.serving.sessions import bounded

USER_AGENT = f"musicgen-cog/{__version__}"
REDIRECTS = 5
SILENT_SECONDS = 10.0  # without a byte
CHUNK = 2**16  # bytes
# How many times smaller the limit of megabytes is for a compressed response: a kilobyte of gzip can
# be a megabyte of zeros. Audio is hardly ever sent so, and this server asks for it uncompressed.
COMPRESSED = 20
MAX_URL = 8192  # characters; the signed URLs of object stores have up to 2,000
FIX = "Send a URL that is publicly readable, or the file itself as a data URI"


class DownloadError(Exception):
    """A download failed. The text is safe to show: it contains nothing of the URL."""


@dataclass(frozen=True)
class Limits:
    """What one download may take; `private` allows addresses that are not public."""

    megabytes: float = 200
    seconds: float = 60
    private: bool = True

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "Limits":
        """The limits of INPUT_MAX_MB, INPUT_MAX_SECONDS and INPUT_PRIVATE_ADDRESSES."""
        numbers = {}
        for field, name in (("megabytes", "INPUT_MAX_MB"), ("seconds", "INPUT_MAX_SECONDS")):
            if text := environ.get(name):
                try:
                    numbers[field] = float(text)
                except ValueError as exc:
                    raise MusicGenError(f"{name}={text!r} is not a number.") from exc
        private = environ.get("INPUT_PRIVATE_ADDRESSES") or "allow"
        if private not in ("allow", "refuse"):
            raise MusicGenError(f"INPUT_PRIVATE_ADDRESSES={private!r}: set allow or refuse.")
        return cls(**numbers, private=private == "allow")


def install(limits: Limits) -> None:
    """Make Cog receive all inputs of this process by `receive` and `fetch`."""
    from cog import types

    def validate(cls: Any, value: Any) -> Any:
        """Cog's conversion of a value: a file that it reads or fetches later, or a path."""
        return value if isinstance(value, Path) else receive(value)

    def convert(self: Any) -> Path:
        """The file that holds the input; Cog removes it after the prediction."""
        if self._path is None:
            if isinstance(self.fileobj, types.URLFile):
                self._path = types.Path(fetch(self.source, self.filename, limits))
            else:  # a data URI, decoded by `receive`
                with input_files.create(None, Path(self.filename).suffix) as file:
                    shutil.copyfileobj(self.fileobj, file)
                self._path = types.Path(file.name)
        converted: Path = self._path
        return converted

    types.URLPath.convert = convert
    types.Path.validate = classmethod(validate)


def receive(value: str) -> Any:
    """Cog's object for a data URI or an http(s) URL; a path for anything else.

    Raises InputError for a value that is not valid, before anything is done for it.
    """
    from cog import types

    if data_uris.is_data_uri(value):
        try:
            content, suffix = data_uris.read(value)
        except ValueError as exc:
            raise _invalid(value, "data URI", exc) from None
        return types.URLPath(
            source=data_uris.SCHEME, filename=f"file{suffix}", fileobj=io.BytesIO(content)
        )
    if len(value) > MAX_URL:
        problem = f"has more than {MAX_URL:,} characters and is not a data URI"
        raise InputError("input_audio", value[:40], problem, FIX)
    if not value.lower().startswith(("http:", "https:")):
        return types.Path(value)  # refused later: the server does not read paths
    try:
        return types.URLPath(
            source=value, filename=types.get_filename(value), fileobj=types.URLFile(value)
        )
    except Exception as exc:  # the libraries have no common type
        raise _invalid(value, "URL", exc) from None


def _invalid(value: str, kind: str, exc: Exception) -> InputError:
    problem = f"is not a valid {kind} ({exc})"
    return InputError("input_audio", value[:40], problem, "Send one that is complete")


def fetch(url: str, name: str, limits: Limits) -> Path:
    """Download `url` to a temporary file, which errors will call `name`.

    Raises InputError if that fails. Nothing is left on the disk then.
    """
    file = input_files.create(name)
    try:
        with file:
            _download(url, file, limits)
    except Exception as exc:
        os.unlink(file.name)
        problem = f"could not be fetched ({_reason(exc)})"
        raise InputError("input_audio", _without_secrets(url), problem, FIX) from None
    return Path(file.name)


def _download(url: str, file: Any, limits: Limits) -> None:
    """Write what `url` leads to, within the limits. Raises DownloadError or requests' errors."""
    end = monotonic() + limits.seconds
    late = f"it took more than {limits.seconds:g} s"
    try:
        complete = _follow(url, file, limits)
    except DownloadError:
        raise
    except Exception as exc:
        if monotonic() > end:  # the connection was shut down
            raise DownloadError(late) from exc
        raise
    # Without a known length, the shutdown looks like the end of the file.
    if monotonic() > end and not complete:
        raise DownloadError(late)


def _follow(url: str, file: Any, limits: Limits) -> bool:
    """Write what `url`, or its redirects, lead to; whether that is known to be complete."""
    import requests

    headers = {
        "User-Agent": os.environ.get("COG_USER_AGENT") or USER_AGENT,
        "Accept-Encoding": "identity",
    }
    check = (lambda address: None) if limits.private else _check_public
    with requests.Session() as session, bounded(session, limits.seconds, check):
        for _ in range(REDIRECTS + 1):
            response = session.get(
                url, stream=True, timeout=SILENT_SECONDS, headers=headers, allow_redirects=False
            )
            with response:
                if not response.is_redirect:
                    response.raise_for_status()
                    _save(response, file, limits)
                    return "Content-Length" in response.headers
                url = urljoin(url, response.headers["Location"])
                if urlsplit(url).scheme not in ("http", "https"):
                    raise DownloadError("it redirects to something other than http or https")
        raise DownloadError(f"it redirects more than {REDIRECTS} times")


def _save(response: Any, file: Any, limits: Limits) -> None:
    compressed = response.headers.get("Content-Encoding", "identity") != "identity"
    megabytes = limits.megabytes / (COMPRESSED if compressed else 1)
    size = 0
    for chunk in response.iter_content(CHUNK):
        size += len(chunk)
        if size > megabytes * 1e6:
            kind = "compressed and " if compressed else ""
            raise DownloadError(f"it is {kind}larger than {megabytes:g} MB")
        file.write(chunk)


def _check_public(address: str) -> None:
    """Raise DownloadError for an address within a private network or this machine."""
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    if not (mapped or found).is_global:
        raise DownloadError("its address is not public, and this server refuses such addresses")


def _without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment."""
    try:
        place = urlsplit(url)
        return f"{place.scheme}://{place.hostname}{place.path}"[:200]
    except ValueError:
        return "a URL"


def _reason(exc: Exception) -> str:
    """Why a download failed, without a part of the URL."""
    import requests

    if isinstance(exc, DownloadError):
        return str(exc)
    if isinstance(exc.__context__, DownloadError):
        return str(exc.__context__)
    if isinstance(exc, requests.HTTPError):
        return f"HTTP {exc.response.status_code}"
    kinds: tuple[tuple[type[Exception], str], ...] = (
        (requests.exceptions.SSLError, "its certificate is not valid"),
        (requests.exceptions.Timeout, f"no data for {SILENT_SECONDS:g} s"),
        (requests.exceptions.ChunkedEncodingError, "the connection broke"),
        (requests.exceptions.ConnectionError, "the host cannot be reached"),
        (requests.exceptions.RequestException, "the URL is not valid"),
        (OSError, "the server could not store it"),
    )
    return next((text for kind, text in kinds if isinstance(exc, kind)), type(exc).__name__)
