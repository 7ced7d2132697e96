"""Anonymous requests that cost much do not stop the server, and honest callers are served.

Each attack is sent by many callers at once, while an honest one sends short requests and another
looks at the server's health. What is measured is printed (pytest -rP).
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from statistics import median

import hostile
import httpx
import psutil
import pytest
from cog_client import data_uri
from web import listening

from musicgen import audio_file
from musicgen.runtime import ffmpeg

ATTACKERS = 8
LIMIT_SECONDS = 3
HONEST = {"duration": 1, "seed": 1}
BUSY = 409


class Endless(BaseHTTPRequestHandler):
    """Sends a byte now and then, for ever."""

    def do_GET(self):
        with suppress(OSError):
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.1)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("predict", INPUT_MAX_SECONDS=str(LIMIT_SECONDS))


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    """name -> (inputs, text of the refusal)"""
    folder = tmp_path_factory.mktemp("hostile")
    files = {name: data_uri(make(folder)) for name, make in hostile.FILES.items()}
    silence = data_uri(hostile.silence(folder, 100_000))
    with listening(Endless) as url:
        yield {
            "prompt": ({"prompt": "a " * 2_000_000}, "prompt='a a"),
            "index": ({"input_audio": files["index"]}, "input_audio="),
            "fragment": ({"input_audio": files["fragment"]}, "input_audio="),
            "cover": ({"input_audio": files["cover"]}, None),
            "silence": (
                {"input_audio": silence, "continuation_start": 10**9},
                "starts past the end|more than 20 s of processor time",
            ),
            "endless": ({"input_audio": f"{url}/radio.mp3"}, "could not be fetched (it took more"),
        }


class Watch:
    """What the server does meanwhile: its health, its memory, an honest caller's seconds."""

    def __init__(self, server) -> None:
        self.server = server
        self.family = [server.worker().parent(), server.worker()]
        self.health, self.memory, self.seconds = set(), [], []
        self.stop = threading.Event()

    def run(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            for work in (self.observe, self.call):
                pool.submit(work)

    def observe(self) -> None:
        while not self.stop.wait(0.05):
            answer = httpx.get(f"{self.server.url}/health-check", timeout=None).json()
            self.health.add(answer["status"])
            processes = [*self.family, *self.family[1].children(recursive=True)]
            with suppress(psutil.NoSuchProcess):
                self.memory.append(sum(one.memory_info().rss for one in processes) / 2**20)

    def call(self) -> None:
        while not self.stop.is_set():
            begin = time.monotonic()
            while (response := self.server.post(**HONEST)).status_code == BUSY:
                time.sleep(0.05)
            assert response.json()["status"] == "succeeded", response.text
            self.seconds.append(time.monotonic() - begin)


def during(server, attack: Callable[[], object], least=3):
    """A `Watch` of the time of an attack, and of at least so many honest requests."""
    watch = Watch(server)
    thread = threading.Thread(target=watch.run)
    thread.start()
    attack()
    while thread.is_alive() and len(watch.seconds) < least:
        time.sleep(0.05)
    watch.stop.set()
    thread.join()
    return watch


@pytest.mark.parametrize("name", ["prompt", "index", "fragment", "cover", "silence", "endless"])
@pytest.mark.parametrize(
    "callers", [ATTACKERS, pytest.param(32, marks=pytest.mark.full)], ids=["few", "many"]
)
def test_an_attack_is_refused_and_honest_callers_are_served(server, attacks, name, callers):
    inputs, refusal = attacks[name]
    before = server.predict(**HONEST)["output"]["audio"]
    alone = during(server, lambda: None, least=5)
    answers = []

    def attack():
        def one(_):
            while (response := server.post(duration=1, **inputs)).status_code == BUSY:
                time.sleep(0.05)
            answers.append(response.json())

        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(one, range(callers)))

    beside = during(server, attack)
    assert len(answers) == callers
    for answer in answers:
        if refusal:
            assert answer["status"] == "failed", answer
            assert any(text in answer["error"] for text in refusal.split("|")), answer["error"]
    assert beside.health <= {"READY", "BUSY"}
    child = ffmpeg.MEMORY_BYTES / 2**20 + 100
    bound = audio_file.SIDE_BY_SIDE * child + 400
    grown = max(beside.memory) - max(alone.memory)
    ratio = median(beside.seconds) / median(alone.seconds)
    print(
        f"{name}, {callers} callers: memory +{grown:.0f} MB (at most {bound:.0f}), honest caller "
        f"{median(alone.seconds):.2f} s alone, {median(beside.seconds):.2f} s beside: {ratio:.1f}x"
    )
    assert grown < bound
    assert server.predict(**HONEST)["output"]["audio"] == before


def test_slow_addresses_keep_others_out_no_longer_than_the_limit(server, attacks):
    """As many as the server accepts at once."""
    inputs, refusal = attacks["endless"]
    with ThreadPoolExecutor(32) as pool:
        slow = [pool.submit(server.post, duration=1, **inputs) for _ in range(32)]
        errors = [one.result().json().get("error", "") for one in slow]
    assert any(refusal in error for error in errors)
    assert server.predict(**HONEST)
