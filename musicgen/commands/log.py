"""Makes Cog's log, which has one JSON object a line, readable on a terminal."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import IO, Any, TextIO

from musicgen.commands.client import PREFIXES, SEED
from musicgen.runtime.printable import printable

PROGRESS_BAR = "%|"
# Lines that say nothing to an operator: a deprecation that concerns this project's source, and a
# library that reports each large message between Cog's processes.
NOISE = ("is deprecated; use", "worker::coglet::bridge::codec")
PREDICTION = "coglet::prediction"
# Cog's message -> the outcome of a prediction.
OUTCOMES = {
    "Prediction worker completed": "succeeded",
    "Prediction cancelled": "cancelled",
    "Prediction failed": "failed",
}

Show = Callable[[str], None]


@contextmanager
def read_by(show: Show) -> Iterator[IO[str]]:
    """A stream for a server's log. Each line that is written there is passed to `show`."""
    source, sink = os.pipe()
    reader = threading.Thread(target=_read, args=(source, show), daemon=True)
    reader.start()
    try:
        with os.fdopen(sink, "w") as stream:
            yield stream
    finally:
        # A process of the server that does not end must not keep this command from ending.
        reader.join(timeout=2)


def _read(source: int, show: Show) -> None:
    with os.fdopen(source, errors="replace") as lines:
        for line in lines:
            with suppress(OSError):  # the terminal is closed; a server must not block on its log
                show(line.rstrip("\n"))


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """(target, fields) of a line of Cog's log; ("", {}) for any other line."""
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(line)
        return str(record["target"]), dict(record["fields"], level=record.get("level"))
    return "", {}


class Predictions:
    """Shows what predictions log: their seed, warnings and progress bars."""

    def __init__(self, target: TextIO) -> None:
        self.target = target

    def __call__(self, line: str) -> None:
        """Show a line if a prediction wrote it."""
        target, fields = parse(line)
        if target != PREDICTION or "source" not in fields:
            return
        text = fields["message"].strip("\r\n")
        unfinished = PROGRESS_BAR in text and "100%" not in text
        if unfinished and self.target.isatty():
            # The next state of the bar overwrites this one.
            print(text, end="\r", file=self.target, flush=True)
        elif text and not unfinished:
            print(text, file=self.target, flush=True)


class Requests:
    """Shows one line for each prediction that has ended, warnings and errors."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.seeds: dict[str, str] = {}
        self.started: dict[str, datetime] = {}

    def __call__(self, line: str) -> None:
        """Show a line of the log, a summary of it, or nothing."""
        if any(noise in line for noise in NOISE):
            return
        target, fields = parse(line)
        if not target:
            text = line  # a traceback, or a message of a library
        elif target == PREDICTION:
            text = self.prediction(fields)
        else:
            text = self.other(target, fields)
        if text:
            print(text, file=self.target, flush=True)

    def prediction(self, fields: dict[str, Any]) -> str:
        """A line for an event of a prediction, or "" if it needs none."""
        # The caller may have chosen the id.
        name = printable(str(fields.get("prediction_id", "?")))
        message = printable(fields.get("message", "").strip())
        now = datetime.now()
        if message == "Starting prediction":
            self.started[name] = now
        elif message in OUTCOMES:
            seconds = (now - self.started.pop(name, now)).total_seconds()
            seed = self.seeds.pop(name, None)
            error = printable(PREFIXES.sub("", fields.get("error", "")))
            return (
                f"{now:%H:%M:%S} {name} {OUTCOMES[message]} after {seconds:.1f} s"
                f"{f', seed {seed}' if seed else ''}{f': {error}' if error else ''}"
            )
        elif drawn := SEED.match(message):
            self.seeds[name] = drawn[1]
        elif "source" in fields and message and PROGRESS_BAR not in message:
            return f"{now:%H:%M:%S} {name} {message}"
        return ""

    def other(self, target: str, fields: dict[str, Any]) -> str:
        """A line for a warning or error of the server, or for its setup's log; otherwise ""."""
        message = fields.get("message", "")
        error = f": {PREFIXES.sub('', fields['error'])}" if "error" in fields else ""
        if fields.get("level") in ("WARN", "ERROR") or target == "coglet::setup":
            return f"{message}{error}".strip()
        return ""
