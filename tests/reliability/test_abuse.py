"""Anonymous requests that cost much are refused, and leave the server as it was.

Each test sends one attack by several callers again and again, beside one honest caller. It prints
(pytest -rP) the memory that the server takes beyond its idle memory, the longest time that a health
check took, and the honest caller's latency beside the attack, relative to its latency alone.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from statistics import median

import httpx
import psutil
import pytest
from attackers import attacking, send

from benchmarks import hostile
from musicgen import audio_file
from musicgen.checkpoints import folders
from musicgen.runtime import ffmpeg

LIMIT_SECONDS = 1
HONEST = {"duration": 2, "seed": 1}
# Megabytes of the decoders, of their requests, and of whatever else runs beside them.
MEMORY = audio_file.SIDE_BY_SIDE * (ffmpeg.MEMORY_BYTES / 2**20 + 100) + 400


@pytest.fixture(scope="module")
def server(start_server):
    """A server of the demo model, whose requests take as long as those of a small real one."""
    return start_server("predict", folders.DEFAULT, INPUT_MAX_SECONDS=str(LIMIT_SECONDS))


@pytest.fixture(scope="module")
def endless():
    with hostile.endless() as url:
        yield url


@pytest.fixture(scope="module")
def output(server):
    """The honest request's output."""
    return answer(server, HONEST)["output"]


@pytest.fixture(scope="module")
def alone(server, output):
    """The median latency of the honest request to a server that does nothing else, seconds."""
    with Watch(server):  # it takes some time of the processors, too
        return median(latencies(server, output, 3))


def answer(server, inputs):
    """The answer to one request, sent again while the server is full."""
    return send(server.url, body_of(inputs))


def body_of(inputs):
    return json.dumps({"input": inputs}).encode()


class Watch:
    """Polls memory and health until it is closed."""

    def __init__(self, server):
        self.server = server
        self.worker = server.worker()
        self.command = self.worker.cmdline()
        self.idle = self.peak = self.megabytes()
        self.slowest, self.states = 0.0, set()
        self.done = threading.Event()
        self.threads = [threading.Thread(target=one) for one in (self.weigh, self.check)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join()

    def megabytes(self):
        """Resident memory of the worker and its children."""
        total = self.worker.memory_info().rss
        for process in self.worker.children(recursive=True):
            with suppress(psutil.Error):
                # Until it runs its program, a new process has the memory of the worker itself.
                if process.cmdline() != self.command:
                    total += process.memory_info().rss
        return total / 2**20

    def weigh(self):
        while not self.done.wait(0.1):
            self.peak = max(self.peak, self.megabytes())

    def check(self):
        with httpx.Client(timeout=None) as client:
            while not self.done.wait(0.02):
                begin = time.perf_counter()
                health = client.get(f"{self.server.url}/health-check").json()
                self.slowest = max(self.slowest, time.perf_counter() - begin)
                self.states.add(health["status"])


def latencies(server, output, count):
    """Seconds of honest requests, one after the other; each gives the same output."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        assert answer(server, HONEST)["output"] == output
        found.append(time.perf_counter() - begin)
    return found


@pytest.mark.parametrize("name", hostile.ATTACKS)
@pytest.mark.parametrize(
    ("callers", "turns", "honest"),
    [(4, 1, 1), pytest.param(28, 4, 3, marks=pytest.mark.full)],
    ids=["few", "many"],
)
def test_an_attack_is_refused_and_the_server_is_as_before(
    server, output, alone, endless, tmp_path, name, callers, turns, honest
):
    attack = hostile.ATTACKS[name](tmp_path, endless)
    body = tmp_path / "body.json"
    body.write_bytes(body_of({"duration": 1, **attack.inputs}))
    beside, refusals = [], []
    with Watch(server) as watch:
        for _ in range(turns):
            with attacking(server.url, body, callers) as answers:
                beside += latencies(server, output, honest)
            refusals += answers
            latencies(server, output, 1)
    for found in refusals:
        assert any(f"{field}=" in found["error"] for field in attack.fields), found
    print(
        f"{name}, {callers} callers, {len(refusals)} requests: {watch.peak - watch.idle:.0f} MB, "
        f"health check {watch.slowest:.2f} s, honest {alone:.2f} s alone, "
        f"{median(beside) / alone:.1f} times that beside"
    )
    assert watch.states <= {"READY", "BUSY"}
    assert watch.peak - watch.idle < MEMORY


def test_slow_addresses_keep_others_out_no_longer_than_the_limit(server, output, endless):
    """As many as the server accepts at once."""
    with ThreadPoolExecutor(32) as pool:
        slow = [
            pool.submit(server.post, duration=1, input_audio=f"{endless}/radio.mp3")
            for _ in range(32)
        ]
        errors = [one.result().json().get("error", "") for one in slow]
    assert any("could not be fetched (it took" in error for error in errors)
    assert answer(server, HONEST)["output"] == output
