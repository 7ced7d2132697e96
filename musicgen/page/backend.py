"""Predictions of the page: requests one, reports its progress, cancels it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from musicgen.commands.client import BusyError, CancelledError, Client, Prediction, ServerError
from musicgen.page import progress
from musicgen.page.progress import Progress, Webhooks

BUSY_SECONDS = 0.5  # until a busy server is asked again


@dataclass(frozen=True)
class Backend:
    """A server, the receiver of its webhooks, and a folder for files."""

    server: Client
    webhooks: Webhooks
    folder: Path

    @classmethod
    def connect(cls, url: str, folder: Path) -> "Backend":
        """The backend for the server at `url`."""
        return cls(Client(url), Webhooks(url), folder)

    def predict(self, prediction_id: str, inputs: dict[str, Any], cancelled: Event) -> Prediction:
        """The prediction, waited for. A server without a free slot is asked again.

        Raises ServerError. Only the progress depends on webhooks, not the result.
        """
        self.webhooks.logs[prediction_id] = ""
        try:
            while not cancelled.is_set():
                try:
                    return self.server.predict(inputs, prediction_id, self.webhooks.address)
                except BusyError:
                    cancelled.wait(BUSY_SECONDS)
        finally:
            del self.webhooks.logs[prediction_id]
        raise CancelledError("Cancelled.")

    def progress(self, prediction_id: str) -> Progress | None:
        """The progress of a running prediction, None if it is unknown."""
        return progress.read(self.webhooks.logs.get(prediction_id, ""))

    def cancel(self, prediction_id: str) -> None:
        """Cancel a prediction, if it is running."""
        with suppress(ServerError):  # the prediction's own request then fails, too, and says why
            self.server.cancel(prediction_id)
