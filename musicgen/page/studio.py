"""One prediction from the page's side: asked for, watched, fetched."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen.page import progress
from musicgen.page.client import Answer, Server
from musicgen.page.progress import Progress, Webhooks
from musicgen.page.takes import Clip, Take, names

BEAT = 0.25  # seconds between two looks at the progress
AT_ONCE = 32  # predictions of all visits


@dataclass(frozen=True)
class Studio:
    """A server, where its progress arrives, and the folder of all that it makes."""

    server: Server
    webhooks: Webhooks
    folder: Path
    threads: ThreadPoolExecutor

    @classmethod
    def open(cls, url: str, folder: Path) -> "Studio":
        """The studio of the server at `url`."""
        return cls(Server(url), Webhooks(url), folder, ThreadPoolExecutor(AT_ONCE))

    def predict(
        self, prediction: str, inputs: dict[str, Any]
    ) -> Generator[Progress | None, None, Answer]:
        """Yield progress, None where there is none; return the answer.

        Raises RefusedError or CancelledError. Closed before its end, it cancels the prediction.
        """
        self.webhooks.logs[prediction] = ""
        address = self.webhooks.address
        future = self.threads.submit(self.server.predict, prediction, inputs, address)
        try:
            while not wait([future], timeout=BEAT).done:
                yield progress.read(self.webhooks.logs[prediction])
        finally:
            del self.webhooks.logs[prediction]
            if not future.done():
                self.server.cancel(prediction)
        return future.result()

    def keep(self, number: int, settings: dict[str, Any], answer: Answer) -> Take:
        """An answer as take `number`, its audio on the disk."""
        files = [self.server.fetch(uri, self.folder) for uri in answer.audio]
        seeds = [None if answer.seed is None else answer.seed + i for i in range(len(files))]
        clips = map(Clip, names(number, len(files)), files, seeds)
        return Take(number, settings, tuple(clips), answer.facts, answer.metrics)
