"""Predictions of the page: requests one, reports its progress and its sound, cancels it."""

from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from musicgen.commands.client import BusyError, CancelledError, Client, Prediction, ServerError
from musicgen.commands.events import Log, Metric
from musicgen.page import progress
from musicgen.page.progress import Progress, Webhooks
from musicgen.page.sound import Sound

BUSY_SECONDS = 0.5  # until a busy server is asked again


@dataclass(frozen=True)
class Backend:
    """A server, and a folder for files. A server that does not stream reports to `webhooks`."""

    server: Client
    webhooks: Webhooks | None
    folder: Path
    logs: dict[str, str] = field(default_factory=dict)  # of running predictions, by id

    @classmethod
    def connect(cls, url: str, folder: Path) -> "Backend":
        """The backend for the server at `url`."""
        server, logs = Client(url), dict[str, str]()
        return cls(server, None if server.can_stream() else Webhooks(url, logs), folder, logs)

    @property
    def streams(self) -> bool:
        """Whether a take can be heard while it is made."""
        return self.webhooks is None

    def predict(
        self, prediction_id: str, inputs: dict[str, Any], cancelled: Event, sound: Sound
    ) -> Prediction:
        """The prediction, waited for. A server without a free slot is asked again.

        `sound` gets what has been made so far, if the server streams. Raises ServerError.
        """
        self.logs[prediction_id] = ""
        try:
            while not cancelled.is_set():
                try:
                    if self.webhooks:
                        return self.server.predict(inputs, prediction_id, self.webhooks.address)
                    return self._stream(prediction_id, inputs, sound)
                except BusyError:
                    cancelled.wait(BUSY_SECONDS)
        finally:
            del self.logs[prediction_id]
        raise CancelledError("Cancelled.")

    def progress(self, prediction_id: str) -> Progress | None:
        """The progress of a running prediction, None if it is unknown."""
        return progress.read(self.logs.get(prediction_id, ""))

    def cancel(self, prediction_id: str) -> None:
        """Cancel a prediction, if it is running."""
        with suppress(ServerError):  # the prediction's own request then fails, too, and says why
            self.server.cancel(prediction_id)

    def _stream(self, prediction_id: str, inputs: dict[str, Any], sound: Sound) -> Prediction:
        for event in self.server.stream(inputs, prediction_id):
            match event:
                case Log(text):
                    self.logs[prediction_id] += text
                case Metric("piece", dict(piece)):
                    if piece["start"] == 0:
                        sound.begin(piece["sample_rate"], piece["channels"])
                    sound.add(b64decode(piece["pcm"]))
                case Prediction():
                    return event
        raise AssertionError("a stream ends with its prediction or an error")
