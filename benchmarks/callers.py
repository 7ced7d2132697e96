"""Measures a server under concurrent callers, against the same server limited to one prediction.

Both get the same requests, of all lengths and modes. Each caller sends a request, waits for its
result, pauses and sends the next. For the limited server, waiting callers queue in this process, as
they would in a proxy before the server. Packages are imported where they are used, since the help
of scripts/soak, which imports this module, needs a bare Python.
"""

import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from musicgen.checkpoints import folders
from musicgen.commands import server
from musicgen.commands.client import BusyError, Client, RefusedError, data_uri

RATE = 32000
SECONDS = (1, 2, 4)  # durations of results, mixed: a short one does not wait for long ones only
MELODY_HERTZ = (262, 330, 392, 523)
PAUSE = 0.1  # seconds between an answer and a caller's next request, on average
ONE_AT_A_TIME = {"COG_MAX_CONCURRENCY": "1"}

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """One pass over all requests: wall seconds, seconds to each result, total seconds of audio."""

    callers: int
    shared: bool
    wall: float
    results: Sequence[float]
    audio: float

    def record(self) -> dict[str, Any]:
        return {
            "callers": self.callers,
            "at_once": self.shared,
            "clips_per_minute": 60 * len(self.results) / self.wall,
            "audio_seconds_per_second": self.audio / self.wall,
            "median_s": median(self.results),
            "p95_s": quantiles(self.results, n=20)[-1],
        }


def mixture(count: int, seed: int, melodies: bool) -> list[Inputs]:
    """`count` random requests: text, continuations and, if `melodies`, melodies to follow."""
    chance, melody = random.Random(seed), melody_uri()
    modes: list[Inputs] = [
        {"prompt": "lofi chill, warm piano, C minor, 80 bpm"},
        {"prompt": "trap, dark bells, D minor, 140 bpm"},
        {"input_audio": melody, "continuation": True, "continuation_end": 1},
        *([{"prompt": "string quartet", "input_audio": melody}] if melodies else []),
    ]
    requests = []
    for index in range(count):
        mode = chance.choice(modes)
        longer = 1 if "continuation" in mode else 0  # the second of audio that is continued
        requests.append({**mode, "duration": chance.choice(SECONDS) + longer, "seed": index})
    return requests


def compare(weights: Path, callers: Sequence[int], count: int, seed: int) -> dict[str, Any]:
    """The results of both servers for each number of callers, with the same weights."""
    import torch

    from benchmarks import machine

    environment = {"MUSICGEN_WEIGHTS": str(weights.resolve())}
    rounds = []
    for shared in (False, True):
        limits = {} if shared else ONE_AT_A_TIME
        with (
            open(os.devnull, "w") as log,
            server.running("predict", log, {**environment, **limits}) as url,
        ):
            client = Client(url)
            requests = mixture(count, seed, follows_melodies(client))
            for inputs in requests[:2]:
                _predict(client, inputs)  # warm up: some models load, and kernels compile, on use
            rounds += [_round(client, requests, number, shared) for number in callers]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "weights": weights.name,
        "device": machine.device_name(device),
        "commit": machine.commit(),
        "requests": count,
        "seed": seed,
        "results": [one.record() for one in rounds],
    }


def table(document: dict[str, Any]) -> str:
    """A line for each number of callers and each server."""
    before = {row["callers"]: row for row in document["results"] if not row["at_once"]}
    lines = [
        f"{document['weights']}, {document['device']}, {document['requests']} requests, seed "
        f"{document['seed']}",
        "callers      served  clips/min  audio s/s  median s  95th s  against one at a time",
    ]
    for row in document["results"]:
        gain = row["clips_per_minute"] / before[row["callers"]]["clips_per_minute"]
        lines.append(
            f"{row['callers']:7d}  {'at once' if row['at_once'] else 'one by one':>10}  "
            f"{row['clips_per_minute']:9.1f}  {row['audio_seconds_per_second']:9.2f}  "
            f"{row['median_s']:8.2f}  {row['p95_s']:6.2f}  {gain:21.2f}x"
        )
    return "\n".join(lines)


def main(callers: Sequence[int], weights: Path | None, count: int, seed: int) -> None:
    """Print the table and, last, one line of JSON."""
    document = compare(folders.resolve(weights), callers, count, seed)
    print(table(document))
    print(json.dumps(document))


def _round(client: Client, requests: Sequence[Inputs], callers: int, shared: bool) -> Round:
    queue: AbstractContextManager[Any] = nullcontext() if shared else threading.Lock()
    chance = random.Random(callers)
    pauses = [chance.expovariate(1 / PAUSE) for _ in requests]

    def one(job: tuple[Inputs, float]) -> float:
        inputs, pause = job
        time.sleep(pause)
        start = time.perf_counter()
        with queue:
            _predict(client, inputs)
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        results = list(pool.map(one, zip(requests, pauses, strict=True)))
    wall = time.perf_counter() - start
    return Round(callers, shared, wall, results, sum(inputs["duration"] for inputs in requests))


def _predict(client: Client, inputs: Inputs) -> None:
    while True:
        # A server with one slot frees it only after it has sent the answer.
        with suppress(BusyError):
            client.predict(inputs)
            return


def follows_melodies(client: Client) -> bool:
    """Whether the server's model is a melody model."""
    try:
        client.predict({"input_audio": melody_uri(), "duration": 1})
    except RefusedError:
        return False
    return True


def melody_uri() -> str:
    """Two seconds of four notes, as a data URI."""
    import numpy as np
    import soundfile

    instants = np.arange(2 * RATE) / RATE
    hertz = np.array(MELODY_HERTZ)[(instants * 2).astype(int)]
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        soundfile.write(file.name, 0.3 * np.sin(2 * np.pi * hertz * instants), RATE)
        return data_uri(Path(file.name))
