"""Many callers of one real server, against the same server with one prediction at a time.

The same requests, of all lengths and modes, go to both, from so many callers that each send one,
wait for its answer, pause a little and send the next. Where the server takes one at a time, those
who must wait do so before it, as behind a proxy with a queue.
"""

import base64
import io
import json
import os
import random
import threading
import time
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks import machine
from musicgen.checkpoints import folders
from musicgen.commands import server

RATE = 32000
SECONDS = (1, 2, 4)  # of results; mixed, a short one never waits for long ones only
MELODY_HERTZ = (262, 330, 392, 523)
PAUSE = 0.1  # seconds between an answer and a caller's next request, on average
ONE_AT_A_TIME = {"COG_MAX_CONCURRENCY": "1"}

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """All requests, once: wall seconds, seconds until each result, seconds of audio in all."""

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
    """So many requests: text, continuations and, where the model follows them, melodies."""
    chance, melody = random.Random(seed), tune()
    modes: list[Inputs] = [
        {"prompt": "lofi chill, warm piano, C minor, 80 bpm"},
        {"prompt": "trap, dark bells, D minor, 140 bpm"},
        {"input_audio": melody, "continuation": True, "continuation_end": 1},
        *([{"prompt": "string quartet", "input_audio": melody}] if melodies else []),
    ]
    requests = []
    for index in range(count):
        mode = chance.choice(modes)
        longer = 1 if "continuation" in mode else 0  # by the prompt
        requests.append({**mode, "duration": chance.choice(SECONDS) + longer, "seed": index})
    return requests


def compare(weights: Path, callers: Sequence[int], count: int, seed: int) -> dict[str, Any]:
    """A round for each number of callers, on both servers; the same machine, minute and weights."""
    environment = {"MUSICGEN_WEIGHTS": str(weights.resolve())}
    rounds = []
    for shared in (False, True):
        limits = {} if shared else ONE_AT_A_TIME
        with (
            open(os.devnull, "w") as log,
            server.running("predict", log, {**environment, **limits}) as url,
        ):
            requests = mixture(count, seed, follows_melodies(url))
            for inputs in requests[:2]:
                _ask(url, inputs)  # what is loaded or compiled when first needed
            rounds += [_round(url, requests, number, shared) for number in callers]
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
    """A line for each number of callers, one at a time and at once."""
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


def _round(url: str, requests: Sequence[Inputs], callers: int, shared: bool) -> Round:
    door: Callable[[], AbstractContextManager[Any]] = nullcontext
    if not shared:
        lock = threading.Lock()
        door = lambda: lock  # noqa: E731  # as short as what it stands beside
    chance = random.Random(callers)
    pauses = [chance.expovariate(1 / PAUSE) for _ in requests]

    def one(job: tuple[Inputs, float]) -> float:
        inputs, pause = job
        time.sleep(pause)
        start = time.perf_counter()
        with door():
            _ask(url, inputs)
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        results = list(pool.map(one, zip(requests, pauses, strict=True)))
    wall = time.perf_counter() - start
    return Round(callers, shared, wall, results, sum(inputs["duration"] for inputs in requests))


def _ask(url: str, inputs: Inputs) -> None:
    while True:
        try:
            answer = server.call(f"{url}/predictions", {"input": inputs})
        except urllib.error.HTTPError as exc:
            if exc.code != 409:  # with one at a time, Cog frees its slot after it has answered
                raise
            continue
        if answer["status"] != "succeeded":
            raise RuntimeError(answer.get("error"))
        return


def follows_melodies(url: str) -> bool:
    inputs = {"input_audio": tune(), "duration": 1}
    return bool(server.call(f"{url}/predictions", {"input": inputs})["status"] == "succeeded")


def tune() -> str:
    """Two seconds of four notes, as a data URI."""
    instants = np.arange(2 * RATE) / RATE
    hertz = np.array(MELODY_HERTZ)[(instants * 2).astype(int)]
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * hertz * instants), RATE, format="WAV")
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"
