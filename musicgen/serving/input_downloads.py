"""Downloads input files within limits, instead of Cog, which has none.

Cog downloads for as long as an address sends, into a folder that may be small, and quotes the whole
URL, with its password and signature, when that fails.
"""

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
from musicgen.serving.sessions import bounded

USER_AGENT = f"musicgen-cog/{__version__}"
REDIRECTS = 5
SILENT_SECONDS = 10.0  # without a byte
CHUNK = 2**16  # bytes
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
    """Make Cog use `fetch` for all inputs of this process, and name the field in its errors."""
    from cog import types

    read = types.Path.validate.__func__

    def validate(cls: Any, value: Any) -> Path:
        """Cog's own conversion; a broken data URI becomes an InputError."""
        try:
            checked: Path = read(cls, value)
        except Exception as exc:
            shown = str(value)[:40]
            problem = f"is not a valid data URI or URL ({exc})"
            raise InputError("input_audio", shown, problem, "Send one that is complete") from exc
        return checked

    def convert(self: Any) -> Path:
        """The file that holds the input; Cog removes it after the prediction."""
        if self._path is None:
            if isinstance(self.fileobj, types.URLFile):
                self._path = types.Path(fetch(self.source, self.filename, limits))
            else:  # Cog has decoded a data URI, and called it "file" with its type's suffix
                with input_files.create(None, Path(self.filename).suffix) as file:
                    shutil.copyfileobj(self.fileobj, file)
                self._path = types.Path(file.name)
        converted: Path = self._path
        return converted

    types.URLPath.convert = convert
    types.Path.validate = classmethod(validate)


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
    """Write what `url`, or its redirects, lead to. Raises DownloadError or requests' errors."""
    import requests

    end = monotonic() + limits.seconds
    headers = {"User-Agent": os.environ.get("COG_USER_AGENT") or USER_AGENT}
    check = (lambda address: None) if limits.private else _check_public
    with requests.Session() as session, bounded(session, limits.seconds, check):
        for _ in range(REDIRECTS + 1):
            response = session.get(
                url, stream=True, timeout=SILENT_SECONDS, headers=headers, allow_redirects=False
            )
            with response:
                if not response.is_redirect:
                    response.raise_for_status()
                    _save(response, file, limits, end)
                    return
                url = urljoin(url, response.headers["Location"])
                if urlsplit(url).scheme not in ("http", "https"):
                    raise DownloadError("it redirects to something other than http or https")
        raise DownloadError(f"it redirects more than {REDIRECTS} times")


def _save(response: Any, file: Any, limits: Limits, end: float) -> None:
    size, late = 0, f"it took more than {limits.seconds:g} s"
    try:
        for chunk in response.iter_content(CHUNK):
            size += len(chunk)
            if size > limits.megabytes * 1e6:
                raise DownloadError(f"it is larger than {limits.megabytes:g} MB")
            if monotonic() > end:
                raise DownloadError(late)
            file.write(chunk)
    except DownloadError:
        raise
    except Exception as exc:
        if monotonic() > end:  # the connection was shut down
            raise DownloadError(late) from exc
        raise
    expected = response.headers.get("Content-Length")
    if monotonic() > end and expected is None:
        raise DownloadError(late)  # an end of the stream that was the shutdown


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
