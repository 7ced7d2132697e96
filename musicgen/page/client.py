"""A Cog server as this page uses it: its inputs, a prediction with its progress, an end to it.

A prediction is one PUT that waits for its answer, so the answer comes wherever the server is, and a
page that dies cancels what it asked for. Progress comes beside it, by webhooks (progress.py).
"""

import base64
import mimetypes
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx

from musicgen.errors import MusicGenError

SUFFIXES = {"audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav"}
# What Cog puts before an exception's text: the field and the problem are what a reader wants.
PREFIXES = re.compile(r"^(([\w ]*prediction failed|\w*Error): )+", re.IGNORECASE)
FIELD = re.compile(r"^(\w+)=")
SEED = re.compile(r"^seed: (\d+)", re.MULTILINE)
BUSY = 409


class RefusedError(MusicGenError):
    """A prediction that the server did not make. `fields` has the messages that name a field."""

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class CancelledError(MusicGenError):
    """A prediction that somebody ended."""


@dataclass(frozen=True)
class Answer:
    """A prediction that succeeded: audio as URIs, what the server says of it, its metrics."""

    audio: list[str]
    facts: dict[str, Any]
    metrics: dict[str, Any]
    seed: int | None


@dataclass(frozen=True)
class Server:
    """A Cog server at `url`, without a slash at the end."""

    url: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=None))

    def document(self) -> dict[str, Any]:
        """Its OpenAPI document. Raises MusicGenError if there is none."""
        try:
            response = self.http.get(f"{self.url}/openapi.json")
            response.raise_for_status()
            document: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as exc:
            raise MusicGenError(f"{self.url} has no /openapi.json: {exc}") from exc
        return document

    def predict(self, prediction: str, inputs: dict[str, Any], webhook: str) -> Answer:
        """Wait for one prediction. Raises RefusedError or Cancelled."""
        body = {"input": inputs, "webhook": webhook, "webhook_events_filter": ["start", "logs"]}
        try:
            response = self.http.put(f"{self.url}/predictions/{prediction}", json=body)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as exc:
            raise RefusedError(f"The server at {self.url} did not answer: {exc}") from exc
        if response.is_error:
            raise _refusal(response.status_code, answer)
        return _read(answer)

    def cancel(self, prediction: str) -> None:
        """End a prediction; its own call then raises CancelledError. One that is over stays so."""
        with suppress(httpx.HTTPError):  # then its own call fails, too, and tells
            self.http.post(f"{self.url}/predictions/{prediction}/cancel")

    def fetch(self, uri: str, folder: Path) -> Path:
        """The audio behind a data or http(s) URI, as a file in `folder`. Raises RefusedError."""
        name = uuid.uuid4().hex
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            kind = head.removeprefix("data:").partition(";")[0]
            raw = base64.b64decode(text) if head.endswith(";base64") else unquote_to_bytes(text)
            path = folder / (name + SUFFIXES.get(kind, ".bin"))
        else:
            try:
                raw = self.http.get(uri, follow_redirects=True).raise_for_status().content
            except httpx.HTTPError as exc:
                raise RefusedError(f"The audio was made, but not at {uri}: {exc}") from exc
            path = folder / (name + Path(httpx.URL(uri).path).suffix)
        path.write_bytes(raw)
        return path


def new_id() -> str:
    """A name for a prediction that nobody has used."""
    return uuid.uuid4().hex


def data_uri(path: Path) -> str:
    """A file as an input."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _read(answer: dict[str, Any]) -> Answer:
    """What a 200 holds: Cog answers so whether the prediction succeeded or not."""
    if answer["status"] == "canceled":
        raise CancelledError("Cancelled.")
    if answer["status"] != "succeeded":
        message = PREFIXES.sub("", str(answer.get("error") or answer["status"]))
        named = FIELD.match(message)
        raise RefusedError(message, {named[1]: message} if named else None)
    output = answer["output"]
    facts = {} if isinstance(output, list) else dict(output)
    audio = output if isinstance(output, list) else [facts.pop("audio")]
    logged = SEED.search(answer.get("logs") or "")
    seed = facts.get("seed", int(logged[1]) if logged else None)
    return Answer(audio, facts, answer.get("metrics") or {}, seed)


def _refusal(status: int, answer: dict[str, Any]) -> RefusedError:
    detail = answer.get("detail") or answer.get("error") or f"HTTP status {status}"
    if isinstance(detail, list):
        fields = {str(part["loc"][-1]): str(part["msg"]) for part in detail}
        message = "; ".join(f"{name}: {text}" for name, text in fields.items())
        return RefusedError(message, fields)
    advice = " Try again in a moment." if status == BUSY else ""
    return RefusedError(f"{detail}.{advice}")
