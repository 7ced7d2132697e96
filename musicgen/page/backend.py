"""Predictions of the page: requests one, reports its progress, saves its audio."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen.commands import client
from musicgen.commands.client import Client, Prediction, ServerError
from musicgen.page import progress
from musicgen.page.progress import Progress, Webhooks
from musicgen.page.takes import Clip, Take, names

POLL_SECONDS = 0.25  # between two progress reports
MAX_PREDICTIONS = 32  # of all visitors together


@dataclass(frozen=True)
class Backend:
    """A server, the receiver of its webhooks, and the folder for results."""

    server: Client
    webhooks: Webhooks
    folder: Path
    threads: ThreadPoolExecutor

    @classmethod
    def connect(cls, url: str, folder: Path) -> "Backend":
        """The backend for the server at `url`."""
        return cls(Client(url), Webhooks(url), folder, ThreadPoolExecutor(MAX_PREDICTIONS))

    def predict(
        self, prediction_id: str, inputs: dict[str, Any]
    ) -> Generator[Progress | None, None, Prediction]:
        """Yield the progress, None if it is unknown; return the prediction.

        Raises ServerError. Closing the generator before its end cancels the prediction. The request
        waits for the answer, so only the progress depends on webhooks.
        """
        self.webhooks.logs[prediction_id] = ""
        address = self.webhooks.address
        future = self.threads.submit(self.server.predict, inputs, prediction_id, address)
        try:
            while not wait([future], timeout=POLL_SECONDS).done:
                yield progress.read(self.webhooks.logs[prediction_id])
        finally:
            del self.webhooks.logs[prediction_id]
            if not future.done():
                self.cancel(prediction_id)
        return future.result()

    def cancel(self, prediction_id: str) -> None:
        """Cancel a prediction, if it is running."""
        with suppress(ServerError):  # the prediction's own request then fails, too, and says why
            self.server.cancel(prediction_id)

    def save(self, number: int, settings: dict[str, Any], prediction: Prediction) -> Take:
        """A prediction as take `number`, with its audio in files. Raises ServerError."""
        files = [client.save(uri, self.folder, client.new_id()) for uri in prediction.audio]
        first = prediction.seed
        seeds = [None if first is None else first + index for index in range(len(files))]
        clips = map(Clip, names(number, len(files)), files, seeds)
        return Take(number, settings, tuple(clips), prediction.facts, prediction.metrics)
