"""scripts/soak: hours of mixed requests, faults among them, and whether anything grows meanwhile.

Callers of a real server send what `callers.mixture` draws. One request in eight is at fault: it is
cancelled, its client leaves, or its input is no audio or cannot be fetched. What is measured is of
the server's own two processes, its folder of temporary files, and Cog's folders of these requests.
Exits with 1 when the last quarter needs more than the second, or an answer was not what it had to
be.
"""

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.callers import Inputs, follows_melodies, mixture
from musicgen.checkpoints import folders
from musicgen.commands import server
from musicgen.serving.result_files import COG_FOLDER, LEFTOVER_SECONDS

SAMPLES = 60  # of a whole run
FAULTS = 1 / 8  # of the requests
LONG = 300  # seconds of what is given up before it is done
PATIENCE = 600  # seconds until an answer that does not come is a finding
NO_AUDIO = "data:audio/wav;base64,UklGRg=="
NOWHERE = "http://127.0.0.1:9/a.wav"
# Files are kept for ten minutes: a shorter run than this sees their number grow.
MINUTES_FOR_FILES = 40
# What is older than this should have been swept: that happens once a minute.
STALE_SECONDS = LEFTOVER_SECONDS + 120
# What -> how many times as much, and how much more, is not yet growth. Files and latency follow the
# requests of the last minutes; allocators keep some of what they had. What the machine's other work
# does to the latency it hardly does to the processor's time.
TOLERANCE: dict[str, tuple[float, float]] = {
    "memory_mb": (1.05, 50),
    "threads": (1.0, 2),
    "descriptors": (1.0, 8),
    "files": (1.5, 30),
    "stale": (1.0, 0),
    "cpu": (1.25, 0.05),
    "latency": (1.5, 0.5),
}


@dataclass(frozen=True)
class Sample:
    """The server at one time, and what it did since the sample before.

    `stale` are files that should have been swept; `cpu` is seconds of a processor, and `latency`
    seconds of waiting, the median, for a second of audio.
    """

    minute: float
    requests: int
    wrong: int
    memory_mb: float
    threads: float
    descriptors: float
    files: float
    stale: float
    cpu: float
    latency: float


class Traffic:
    """Callers that go on until `stop`, and what came of it."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.name = f"soak-{os.getpid()}"  # Cog's folders of all servers are in one place
        self.requests = mixture(1000, seed, follows_melodies(url))
        self.chance = random.Random(seed)
        self.numbers = itertools.count()
        self.stop = threading.Event()
        self.latencies: list[float] = []
        self.audio = 0.0
        self.wrong: list[str] = []
        self.sent = 0

    def caller(self) -> None:
        while not self.stop.is_set():
            number = next(self.numbers)
            inputs = self.requests[number % len(self.requests)]
            faults = (self.cancelled, self.left, self.refused, self.unfetched)
            fault = self.chance.choice(faults) if self.chance.random() < FAULTS else self.answered
            try:
                fault(inputs, f"{self.name}-{number}")
            except Exception as exc:  # whatever it is, it is a finding
                self.wrong.append(f"{fault.__name__}: {exc!r}")
            self.sent += 1

    def answered(self, inputs: Inputs, name: str) -> None:
        start = time.perf_counter()
        self.expect("succeeded", inputs, name)
        self.latencies.append((time.perf_counter() - start) / inputs["duration"])
        self.audio += inputs["duration"]

    def refused(self, inputs: Inputs, name: str) -> None:
        self.expect("failed", {**inputs, "input_audio": NO_AUDIO}, name)

    def unfetched(self, inputs: Inputs, name: str) -> None:
        self.expect("failed", {**inputs, "input_audio": NOWHERE}, name)

    def cancelled(self, inputs: Inputs, name: str) -> None:
        timer = threading.Timer(self.chance.random(), self.cancel, [name])
        timer.start()
        body = {"input": {**inputs, "duration": LONG}}
        url = f"{self.url}/predictions/{name}"
        status = server.call(url, body, "PUT", PATIENCE)["status"]
        timer.join()
        if status not in ("canceled", "failed"):  # failed: Cog was still preparing the inputs
            raise RuntimeError(f"cancelled, and yet {status}")

    def cancel(self, name: str) -> None:
        while not self.stop.is_set():
            with suppress(urllib.error.HTTPError):  # not there yet
                server.call(f"{self.url}/predictions/{name}/cancel", {})
                return
            time.sleep(0.05)

    def left(self, inputs: Inputs, name: str) -> None:
        body = {"id": name, "input": {**inputs, "duration": LONG}}
        with suppress(TimeoutError):
            server.call(f"{self.url}/predictions", body, timeout=0.1 + self.chance.random())
            raise RuntimeError("five minutes took less than two seconds")

    def expect(self, status: str, inputs: Inputs, name: str) -> None:
        body = {"id": name, "input": inputs}
        answer = server.call(f"{self.url}/predictions", body, timeout=PATIENCE)
        if answer["status"] != status:
            raise RuntimeError(f"{answer['status']}: {answer.get('error')}")


def grown(samples: list[Sample]) -> list[str]:
    """What the last quarter of a run has more of than the second; the first is for warming up."""
    quarter = len(samples) // 4
    findings = []
    for name, (factor, more) in TOLERANCE.items():
        if name in ("files", "stale") and samples[-1].minute < MINUTES_FOR_FILES:
            continue
        before, after = (
            median(getattr(sample, name) for sample in part)
            for part in (samples[quarter : 2 * quarter], samples[-quarter:])
        )
        if after > before * factor + more:
            findings.append(f"{name} grew from {before:.1f} to {after:.1f}")
    return findings


def soak(weights: Path, minutes: float, callers: int, seed: int) -> list[str]:
    """Run it, print a line for every sample; what is wrong, as text."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as log:
        environment = {"MUSICGEN_WEIGHTS": str(weights.resolve()), "TMPDIR": folder}
        with server.running("predict", log, environment) as url:
            traffic = Traffic(url, seed)
            meter = Meter(traffic, folder)
            samples = []
            print(_row(Sample.__dataclass_fields__), flush=True)
            with ThreadPoolExecutor(callers) as pool:
                for _ in range(callers):
                    pool.submit(traffic.caller)
                try:
                    for index in range(SAMPLES):
                        time.sleep(minutes * 60 / SAMPLES)
                        samples.append(meter.sample((index + 1) * minutes / SAMPLES))
                        print(_row(asdict(samples[-1]).values()), flush=True)
                finally:
                    traffic.stop.set()
    return [*traffic.wrong, *grown(samples)]


def main() -> None:
    """Exit code 1 when something grew or went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--weights", type=Path, help="what is served")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and faults")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the server is ended too
    findings = soak(
        folders.resolve(options.weights), options.minutes, options.callers, options.seed
    )
    print("\n".join(findings) or "nothing grew, nothing went wrong")
    sys.exit(bool(findings))


def _row(values: Iterable[object]) -> str:
    return "  ".join(f"{value:>11}" for value in values)


def _processes(folder: str) -> list[psutil.Process]:
    """Cog's server and its worker, known by their folder of temporary files."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.environ().get("TMPDIR") == folder
    ]


class Meter:
    """Looks at a server from time to time."""

    def __init__(self, traffic: Traffic, folder: str) -> None:
        self.traffic = traffic
        self.folder = folder
        self.processes = _processes(folder)
        self.cpu, self.audio = self._cpu(), 0.0

    def sample(self, minute: float) -> Sample:
        traffic, processes = self.traffic, self.processes
        latencies, traffic.latencies = traffic.latencies, []
        cpu, audio = self._cpu(), traffic.audio
        spent, made = cpu - self.cpu, audio - self.audio
        self.cpu, self.audio = cpu, audio
        files = list(ages(Path(self.folder), *COG_FOLDER.glob(f"{traffic.name}-*")))
        return Sample(
            minute=round(minute, 2),
            requests=traffic.sent,
            wrong=len(traffic.wrong),
            memory_mb=round(sum(process.memory_info().rss for process in processes) / 1e6, 1),
            threads=sum(process.num_threads() for process in processes),
            descriptors=sum(process.num_fds() for process in processes),
            files=len(files),
            stale=sum(age > STALE_SECONDS for age in files),
            cpu=round(spent / made, 3) if made else 0.0,
            latency=round(median(latencies), 3) if latencies else 0.0,
        )

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def ages(*roots: Path) -> Iterator[float]:
    """Seconds since each file and folder in `roots` was changed; some go while this looks."""
    for root in roots:
        # Unlike a glob, a walk goes on where a folder is no more.
        for here, inside, files in os.walk(root):
            for name in (*inside, *files):
                with suppress(FileNotFoundError):
                    yield time.time() - os.lstat(Path(here, name)).st_mtime


if __name__ == "__main__":
    main()
