"""Measures how soon a clip can be heard: the server that streams, beside the one that does not.

Both get the same requests from the same number of callers. Each caller sends one request after the
other. A listener who starts at the first piece hears a gap where the music that has arrived is
shorter than the time since then.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from musicgen.checkpoints import folders
from musicgen.commands import server
from musicgen.commands.client import Client
from musicgen.commands.events import Metric

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"
EACH = 3  # requests of each caller

T = TypeVar("T")
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Listened:
    """One streamed clip: for each piece, when it came and which second of music it begins with.

    Times are seconds after the request.
    """

    arrived: Sequence[float]
    begins: Sequence[float]
    complete: float  # when the file came

    @property
    def first(self) -> float:
        """When the first piece came."""
        return self.arrived[0]

    @property
    def start_without_gaps(self) -> float:
        """The earliest start of playback with which no piece comes too late."""
        return max(come - begin for come, begin in zip(self.arrived, self.begins, strict=True))

    def ahead(self) -> list[float]:
        """Seconds of music ahead of playback from the first piece on: the least of each quarter.

        Measured just before a piece comes; below 0 playback has stopped.
        """
        later = zip(self.arrived[1:], self.begins[1:], strict=True)
        values = [begin - (come - self.first) for come, begin in later] or [0.0]
        first = [quarter * len(values) // 4 for quarter in range(4)]
        last = [(quarter + 1) * len(values) // 4 for quarter in range(4)]
        return [min(values[i : max(i + 1, j)]) for i, j in zip(first, last, strict=True)]


def compare(weights: Path, callers: Sequence[int], seconds: int) -> dict[str, Any]:
    """The results of both servers for each number of callers, with the same weights."""
    import torch

    from benchmarks import machine

    with _serving("streaming", weights) as client:
        streamed = [_figures(_by_callers(_listen, client, number, seconds)) for number in callers]
    with _serving("predict", weights) as client:
        whole = [median(_by_callers(_wait, client, number, seconds)) for number in callers]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "weights": weights.name,
        "device": machine.device_name(device),
        "precision": os.environ.get("MUSICGEN_PRECISION") or "exact",
        "commit": machine.commit(),
        "seconds": seconds,
        "results": [
            {"callers": number, **row, "whole_s": file}
            for number, row, file in zip(callers, streamed, whole, strict=True)
        ],
    }


def table(document: dict[str, Any]) -> str:
    """A line for each number of callers."""
    lines = [
        f"{document['weights']}, {document['device']}, {document['precision']}, clips of "
        f"{document['seconds']} s; medians, in seconds",
        "callers  first piece  worst  start without gaps  ahead of playback in each quarter, worst"
        "  file  file of predict.py",
    ]
    for row in document["results"]:
        ahead = " ".join(f"{value:6.1f}" for value in row["ahead_s"])
        lines.append(
            f"{row['callers']:7d}  {row['first_s']:11.2f}  {row['first_worst_s']:5.2f}  "
            f"{row['start_without_gaps_s']:18.2f}  {ahead:>43}  {row['complete_s']:4.1f}  "
            f"{row['whole_s']:18.1f}"
        )
    return "\n".join(lines)


def main(callers: Sequence[int], weights: Path | None, seconds: int) -> None:
    """Print the table and, last, one line of JSON."""
    document = compare(folders.resolve(weights), callers, seconds)
    print(table(document))
    print(json.dumps(document))


@contextmanager
def _serving(predictor: str, weights: Path) -> Iterator[Client]:
    """A warm server of a predictor."""
    environment = {"MUSICGEN_WEIGHTS": str(weights.resolve())}
    with (
        open(os.devnull, "w") as log,
        server.running(predictor, log, environment) as url,
    ):
        client = Client(url)
        client.predict({"prompt": PROMPT, "duration": 1})
        yield client


def _by_callers(
    one: Callable[[Client, Inputs], T], client: Client, callers: int, seconds: int
) -> list[T]:
    """What `one` returns for EACH requests of each caller."""
    requests = [
        {"prompt": PROMPT, "duration": seconds, "seed": seed} for seed in range(EACH * callers)
    ]
    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(lambda inputs: one(client, inputs), requests))


def _listen(client: Client, inputs: Inputs) -> Listened:
    """Receive one clip in pieces."""
    start = time.perf_counter()
    arrived, begins = [], []
    for event in client.stream(inputs):
        if isinstance(event, Metric) and event.name == "piece" and event.value:
            arrived.append(time.perf_counter() - start)
            begins.append(event.value["start"] / event.value["sample_rate"])
    return Listened(arrived, begins, time.perf_counter() - start)


def _wait(client: Client, inputs: Inputs) -> float:
    """Seconds until a whole clip has come."""
    start = time.perf_counter()
    client.predict(inputs)
    return time.perf_counter() - start


def _figures(found: Sequence[Listened]) -> dict[str, Any]:
    """The figures of streamed clips."""
    return {
        "first_s": median(one.first for one in found),
        "first_worst_s": max(one.first for one in found),
        "start_without_gaps_s": median(one.start_without_gaps for one in found),
        "ahead_s": [min(values) for values in zip(*(one.ahead() for one in found), strict=True)],
        "complete_s": median(one.complete for one in found),
    }
