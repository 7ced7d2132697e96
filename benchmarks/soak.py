"""scripts/soak: send mixed requests for hours, and check that the server's resources do not grow.

Callers of a real server send the requests of `callers.mixture`. One request in eight is a fault: it
is cancelled, its client disconnects, its input is not audio or cannot be fetched, or it is one of
the attacks or of the unusual files of `benchmarks.hostile`. The samples cover the server's two
processes, its folder of temporary files, and Cog's folders for these requests. The exit code is 1
if the last quarter of the run needs more than the second, or if a response was wrong.
"""

import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import hostile
from benchmarks.callers import Inputs, follows_melodies, mixture
from musicgen.commands import options, server
from musicgen.commands.client import CancelledError, Client, RefusedError, data_uri
from musicgen.serving.result_files import COG_FOLDER, LEFTOVER_SECONDS

if TYPE_CHECKING:
    import psutil

SAMPLES = 60  # in a run
FAULTS = 1 / 8  # share of the requests
LONG = 300  # duration of the predictions that are cancelled or abandoned, seconds
DOWNLOAD_SECONDS = 5  # that the server may take to fetch an input
PATIENCE = 600  # seconds after which a missing response is a finding
NOT_AUDIO = "data:audio/wav;base64,UklGRg=="
UNREACHABLE = "http://127.0.0.1:9/a.wav"
# Files are kept for ten minutes, so in a shorter run than this their number grows.
MINUTES_FOR_FILES = 40
# Older files should have been swept, which happens once a minute.
STALE_SECONDS = LEFTOVER_SECONDS + 120
# Measurement -> the factor and the amount that together are not yet growth. Files and latency
# depend on the requests of the last minutes, and allocators keep some freed memory. Other work on
# the machine affects the latency, but hardly the processor time.
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
    """Measurements of the server at one time, and since the previous sample.

    `stale` counts files that should have been swept. For each second of audio, `cpu` is the
    processor time and `latency` the median waiting time, both in seconds.
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
    """Callers that send requests until `stop`, and the results so far."""

    def __init__(self, url: str, seed: int, folder: Path, slow: str) -> None:
        """`folder` gets files, and `slow` is the URL of `hostile.endless`."""
        self.client = Client(url)
        self.attacks = {name: make(folder, slow) for name, make in hostile.ATTACKS.items()}
        self.unusual = {name: data_uri(path) for name, path in hostile.unusual(folder).items()}
        self.name = f"soak-{os.getpid()}"  # prefix of the ids, since all servers share Cog's folder
        self.requests = mixture(1000, seed, follows_melodies(self.client))
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
            faults = (
                *(self.cancelled, self.abandoned, self.not_audio, self.unreachable),
                *(self.attacked, self.attacked, self.heard, self.heard),
            )
            send = self.chance.choice(faults) if self.chance.random() < FAULTS else self.succeeded
            try:
                send(inputs, f"{self.name}-{number}")
            except Exception as exc:  # any exception is a finding
                self.wrong.append(f"{send.__name__}: {exc!r}")
                print(self.wrong[-1], file=sys.stderr, flush=True)
            self.sent += 1

    def succeeded(self, inputs: Inputs, name: str) -> None:
        start = time.perf_counter()
        self.client.predict(inputs, name, timeout=PATIENCE)
        self.latencies.append((time.perf_counter() - start) / inputs["duration"])
        self.audio += inputs["duration"]

    def not_audio(self, inputs: Inputs, name: str) -> None:
        self.expect_refusal({**inputs, "input_audio": NOT_AUDIO}, name)

    def unreachable(self, inputs: Inputs, name: str) -> None:
        self.expect_refusal({**inputs, "input_audio": UNREACHABLE}, name)

    def attacked(self, inputs: Inputs, name: str) -> None:
        kind = self.chance.choice(list(self.attacks))
        attack = self.attacks[kind]
        try:
            self.client.predict({"duration": 1, **attack.inputs}, name, timeout=PATIENCE)
        except RefusedError as exc:
            if exc.fields.keys() & set(attack.fields):
                return
            raise RuntimeError(f"{kind}: the refusal names no field: {exc}") from exc
        raise RuntimeError(f"{kind}: succeeded")

    def heard(self, inputs: Inputs, name: str) -> None:
        kind = self.chance.choice(list(self.unusual))
        audio = {"input_audio": self.unusual[kind], "continuation": True, "continuation_end": 1.0}
        whole = {"duration": 2.0, "seed": 1.0, "top_k": 250.0}  # floats for integers
        try:
            self.client.predict({**whole, **audio}, name, timeout=PATIENCE)
        except RefusedError as exc:
            raise RuntimeError(f"{kind}: {exc}") from exc

    def expect_refusal(self, inputs: Inputs, name: str) -> None:
        try:
            self.client.predict(inputs, name, timeout=PATIENCE)
        except RefusedError:
            return
        raise RuntimeError("succeeded, although its input is unusable")

    def cancelled(self, inputs: Inputs, name: str) -> None:
        timer = threading.Timer(self.chance.random(), self.cancel, [name])
        timer.start()
        try:
            self.client.predict({**inputs, "duration": LONG}, name, timeout=PATIENCE)
        except CancelledError:
            return
        finally:
            timer.join()
        raise RuntimeError("succeeded, although it was cancelled")

    def cancel(self, name: str) -> None:
        while not self.stop.is_set() and not self.client.cancel(name):
            time.sleep(0.05)

    def abandoned(self, inputs: Inputs, name: str) -> None:
        timeout = 0.1 + self.chance.random()
        with suppress(TimeoutError):
            self.client.predict({**inputs, "duration": LONG}, name, timeout=timeout)
            raise RuntimeError(f"{LONG} s of audio took less than two seconds")


def grown(samples: list[Sample]) -> list[str]:
    """The measurements that grew from the second quarter to the last; the first is the warm-up."""
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


def soak(weights: Path | str, minutes: float, callers: int, seed: int) -> list[str]:
    """Run the soak, print a line for every sample; the findings."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as files,
        hostile.endless() as slow,
        open(os.devnull, "w") as log,
    ):
        environment = {
            "MUSICGEN_WEIGHTS": str(weights),
            "TMPDIR": folder,
            "INPUT_MAX_SECONDS": str(DOWNLOAD_SECONDS),
        }
        with server.running("predict", log, environment) as url:
            traffic = Traffic(url, seed, Path(files), slow)
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
    """Exit with 1 if there are findings."""
    parser = options.make_parser("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)g")
    parser.add_argument("--callers", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options.add_weights_option(parser)
    parsed = parser.parse_args()
    with options.exit_codes():
        weights = options.choose_weights(parsed.weights)
        findings = soak(weights, parsed.minutes, parsed.callers, parsed.seed)
    print("\n".join(findings) or "No growth, no wrong responses.")
    sys.exit(bool(findings))


def _row(values: Iterable[object]) -> str:
    return "  ".join(f"{value:>11}" for value in values)


def _processes(folder: str) -> "list[psutil.Process]":
    """Cog's server and its worker, identified by their folder of temporary files."""
    import psutil  # here, so that --help needs a bare Python only

    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.environ().get("TMPDIR") == folder
    ]


class Meter:
    """Takes samples of a server."""

    def __init__(self, traffic: Traffic, folder: str) -> None:
        self.traffic = traffic
        self.folder = folder
        self.processes = _processes(folder)
        self.cpu, self.audio = self._cpu(), 0.0
        self.stale: set[Path] = set()

    def sample(self, minute: float) -> Sample:
        traffic, processes = self.traffic, self.processes
        latencies, traffic.latencies = traffic.latencies, []
        cpu, audio = self._cpu(), traffic.audio
        spent, generated = cpu - self.cpu, audio - self.audio
        self.cpu, self.audio = cpu, audio
        files = dict(ages(Path(self.folder), *COG_FOLDER.glob(f"{traffic.name}-*")))
        stale = {path for path, age in files.items() if age > STALE_SECONDS}
        for path in sorted(stale - self.stale):
            print(f"not swept: {path}", file=sys.stderr, flush=True)
        self.stale = stale
        return Sample(
            minute=round(minute, 2),
            requests=traffic.sent,
            wrong=len(traffic.wrong),
            memory_mb=round(sum(process.memory_info().rss for process in processes) / 1e6, 1),
            threads=sum(process.num_threads() for process in processes),
            descriptors=sum(process.num_fds() for process in processes),
            files=len(files),
            stale=len(stale),
            cpu=round(spent / generated, 3) if generated else 0.0,
            latency=round(median(latencies), 3) if latencies else 0.0,
        )

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def ages(*roots: Path) -> Iterator[tuple[Path, float]]:
    """Files and folders in `roots`, and the seconds since each was changed. Some may vanish."""
    for root in roots:
        # Unlike a glob, os.walk continues if a folder has been deleted.
        for here, inside, files in os.walk(root):
            for name in (*inside, *files):
                with suppress(FileNotFoundError):
                    path = Path(here, name)
                    yield path, time.time() - os.lstat(path).st_mtime


if __name__ == "__main__":
    main()
