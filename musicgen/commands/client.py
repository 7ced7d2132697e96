"""An HTTP client of a Cog server, for the commands, the page, the benchmarks and the tests.

It uses the standard library alone: importing it imports neither torch nor an HTTP package.

ServerError
├── UnreachableError   no answer, or an answer that is not Cog's
├── BusyError          no free slot: the same request may succeed later
├── RefusedError       the inputs were refused, or the prediction failed; names the fields
└── CancelledError     the prediction was cancelled
"""

import base64
import json
import mimetypes
import re
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from musicgen.commands import events
from musicgen.commands.events import Log, Metric
from musicgen.errors import MusicGenError

JSON, EVENT_STREAM = "application/json", "text/event-stream"
EXTENSIONS = {"audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav"}
BUSY = (409, 503)  # HTTP statuses: all slots of a server are taken, or all queues of a cluster
# Cog writes these before an exception's text, some of them twice. Readers want the text alone.
PREFIXES = re.compile(
    r"^(([\w ]*(prediction|setup) failed( \(slot [^)]*\))?|[\w ]*Error): )+", re.IGNORECASE
)
# Cog says that a prediction failed, with such a message, if it is cancelled in its first moments.
CANCELLED_EARLY = re.compile(r"^Input validation error: $|CancelationException: $")
FIELD = re.compile(r"^(\w+)=")  # how the message of an InputError begins
SEED = re.compile(r"^seed: (\d+)", re.MULTILINE)


class ServerError(MusicGenError):
    """A server did not give what it was asked for."""


class UnreachableError(ServerError):
    """No answer, or an answer that is not Cog's."""


class BusyError(ServerError):
    """No free slot. The same request may succeed later."""


class CancelledError(ServerError):
    """The prediction was cancelled."""


class RefusedError(ServerError):
    """The inputs were refused, or the prediction failed.

    `fields` has a message for each input that the server named.
    """

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


@dataclass(frozen=True)
class Prediction:
    """A prediction that succeeded: the predictor's output, its log, and Cog's metrics."""

    output: Any
    logs: str
    metrics: dict[str, Any]

    @property
    def audio(self) -> list[str]:
        """The URIs of the clips."""
        return self.output if isinstance(self.output, list) else [self.output["audio"]]

    @property
    def facts(self) -> dict[str, Any]:
        """The output without the audio."""
        if isinstance(self.output, list):
            return {}
        return {name: value for name, value in self.output.items() if name != "audio"}

    @property
    def seed(self) -> int | None:
        """The seed of the first clip. A predictor that returns files alone says it in its log."""
        logged = SEED.search(self.logs)
        return self.facts.get("seed", int(logged[1]) if logged else None)


@dataclass(frozen=True)
class Client:
    """The server at `url`, which has no slash at its end. Methods raise ServerError."""

    url: str

    def document(self) -> dict[str, Any]:
        """The server's OpenAPI document."""
        return self._call("GET", "/openapi.json")

    def health(self) -> dict[str, Any]:
        """The server's health: `status` is STARTING, READY, BUSY, SETUP_FAILED, ..."""
        return self._call("GET", "/health-check")

    def can_stream(self) -> bool:
        """Whether the server sends events while a prediction runs."""
        return "x-cog-streaming" in self.document()["paths"]["/predictions"]["post"]

    def predict(
        self,
        inputs: dict[str, Any],
        prediction_id: str | None = None,
        webhook: str | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """The result of one prediction, waited for. Raises TimeoutError after `timeout` seconds.

        A prediction with an id can be cancelled from another thread. Cog cancels a prediction
        whose client disconnects. Progress is posted to `webhook`.
        """
        body: dict[str, Any] = {"input": inputs}
        if webhook:
            body |= {"webhook": webhook, "webhook_events_filter": ["start", "logs"]}
        return _prediction(self._call(*_create(body, prediction_id), timeout))

    def stream(
        self,
        inputs: dict[str, Any],
        prediction_id: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Log | Metric | Prediction]:
        """The events of one prediction as they happen; the last is the prediction itself.

        For a server that `can_stream`. Closing the iterator cancels the prediction. Raises
        TimeoutError if nothing comes for `timeout` seconds.
        """
        call = _create({"input": inputs}, prediction_id)
        with self._open(*call, timeout, EVENT_STREAM) as response:
            for name, data in events.read(response):
                if name == "log":
                    yield Log(data["data"])
                elif name == "metric":
                    yield Metric(data["name"], data["value"])
                elif name == "error":
                    raise UnreachableError(f"The server stopped sending events: {data['error']}")
                elif name == "completed":
                    yield _prediction(data)
                    return
        raise UnreachableError(f"The connection to {self.url} ended before the prediction did.")

    def cancel(self, prediction_id: str) -> bool:
        """Cancel a prediction: its `predict` raises CancelledError. False if none has that id."""
        try:
            self._call("POST", _path(prediction_id) + "/cancel", {})
        except RefusedError:
            return False
        return True

    def shutdown(self, timeout: float | None = None) -> None:
        """Tell the server to end."""
        self._call("POST", "/shutdown", {}, timeout)

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        with self._open(method, path, body, timeout) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        timeout: float | None,
        accept: str = JSON,
    ) -> Iterator[HTTPResponse]:
        """A response with status 2xx, to be read in the block."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": JSON, "Accept": accept}
        try:
            request = urllib.request.Request(self.url + path, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=timeout) as response:
                yield response
        except HTTPError as exc:
            with exc:
                raise _refusal(exc) from exc
        except (TimeoutError, ServerError):
            raise
        except (OSError, HTTPException, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            raise UnreachableError(f"The server at {self.url} did not answer: {reason}") from exc


def new_id() -> str:
    """A prediction id that is not in use."""
    return uuid.uuid4().hex


def data_uri(path: Path, media_type: str | None = None) -> str:
    """A file's content as a value of an input of format uri."""
    kind = media_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def save(uri: str, folder: Path, name: str) -> Path:
    """Write the audio behind a data or http(s) URI into `folder`; the path of the file."""
    content, suffix = fetch(uri)
    path = folder / f"{name}{suffix}"
    path.write_bytes(content)
    return path


def fetch(uri: str) -> tuple[bytes, str]:
    """The content and the file name suffix of the audio behind a data or http(s) URI."""
    if urlsplit(uri).scheme not in ("data", "http", "https"):
        raise UnreachableError(f"{uri} is not an address of audio.")
    try:
        with urllib.request.urlopen(uri) as response:
            return response.read(), _suffix(uri, response)
    except (OSError, HTTPException) as exc:
        raise UnreachableError(f"The audio is at {uri}, but fetching it failed: {exc}") from exc


def _suffix(uri: str, response: Any) -> str:
    known = EXTENSIONS.get(response.headers.get_content_type())
    return known or ("" if uri.startswith("data:") else Path(urlsplit(uri).path).suffix) or ".bin"


def _create(body: dict[str, Any], prediction_id: str | None) -> tuple[str, str, dict[str, Any]]:
    """Method, path and body of the request that starts a prediction."""
    if prediction_id is None:
        return "POST", "/predictions", body
    return "PUT", _path(prediction_id), body


def _path(prediction_id: str) -> str:
    return f"/predictions/{quote(prediction_id, safe='')}"


def _prediction(answer: dict[str, Any]) -> Prediction:
    """The prediction in an answer with status 2xx, which Cog also gives to those that failed."""
    status, message = answer.get("status"), str(answer.get("error") or "")
    if status == "succeeded":
        output = answer["output"]
        if isinstance(output, list) and isinstance(output[-1], dict):
            output = output[-1]  # of a predictor that streams
        return Prediction(output, answer.get("logs") or "", answer.get("metrics") or {})
    if status == "canceled" or CANCELLED_EARLY.search(message):
        raise CancelledError("Cancelled.")
    if status in ("starting", "processing"):
        raise BusyError(f"A prediction with the id {answer.get('id')} is running already.")
    message = PREFIXES.sub("", message) or f"The prediction ended with status {status}."
    named = FIELD.match(message)
    raise RefusedError(message, {named[1]: message} if named else None)


def _refusal(response: HTTPError) -> ServerError:
    """The error that an answer with an HTTP status of 400 or more stands for."""
    answer = _json_object(response)
    detail = answer.get("detail") or answer.get("error") or f"HTTP status {response.code}"
    if isinstance(detail, list):
        fields = {str(part["loc"][-1]): str(part["msg"]) for part in detail}
        return RefusedError("; ".join(f"{name}: {text}" for name, text in fields.items()), fields)
    if response.code in BUSY:
        return BusyError(f"{str(detail).rstrip('.')}. Try again in a moment.")
    return RefusedError(str(detail))


def _json_object(response: IO[bytes]) -> dict[str, Any]:
    try:
        answer = json.load(response)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
