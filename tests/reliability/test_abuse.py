"""Anonymous requests that cost much are refused, and leave the server as it was.

Each attack is sent by several callers at once. The memory that it takes is printed (pytest -rP).
"""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import hostile
import httpx
import psutil
import pytest
from cog_client import data_uri
from web import listening

from musicgen import audio_file
from musicgen.runtime import ffmpeg

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
    """name -> (inputs, texts of which a refusal has one; none if the request may be served)"""
    folder = tmp_path_factory.mktemp("hostile")
    files = {name: data_uri(make(folder)) for name, make in hostile.FILES.items()}
    silence = {"input_audio": data_uri(hostile.silence(folder)), "continuation_start": 10**9}
    with listening(Endless) as url:
        yield {
            "prompt": ({"prompt": "a " * 2_000_000}, ["prompt='a a"]),
            "index": ({"input_audio": files["index"]}, []),
            "fragment": ({"input_audio": files["fragment"]}, ["input_audio="]),
            "cover": ({"input_audio": files["cover"]}, []),
            "silence": (silence, ["starts past the end", "s of processor time"]),
            "endless": ({"input_audio": f"{url}/radio.mp3"}, ["could not be fetched (it took"]),
        }


def answer(server, inputs):
    """The answer to one request, sent again while the server is full."""
    while (response := server.post(**inputs)).status_code == BUSY:
        time.sleep(0.05)
    return response.json()


def megabytes(server):
    """Resident memory of the worker and its children."""
    found = []
    for process in [server.worker(), *server.worker().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found.append(process.memory_info().rss / 2**20)
    return sum(found)


@pytest.mark.parametrize("name", ["prompt", "index", "fragment", "cover", "silence", "endless"])
@pytest.mark.parametrize(
    "callers", [4, pytest.param(32, marks=pytest.mark.full)], ids=["few", "many"]
)
def test_an_attack_is_refused_and_the_server_is_as_before(server, attacks, name, callers):
    inputs, refusals = attacks[name]
    before, idle, peak = answer(server, HONEST)["output"], megabytes(server), 0.0
    with ThreadPoolExecutor(callers + 1) as pool:
        attackers = [pool.submit(answer, server, {"duration": 1, **inputs}) for _ in range(callers)]
        honest = pool.submit(answer, server, HONEST)
        while wait([*attackers, honest], 0.1).not_done:
            peak = max(peak, megabytes(server))
            health = httpx.get(f"{server.url}/health-check", timeout=None).json()["status"]
            assert health in ("READY", "BUSY")
    assert honest.result()["output"] == before
    for attacker in attackers:
        found = attacker.result()
        if refusals or found["status"] == "failed":
            assert any(text in found["error"] for text in refusals or ["input_audio="]), found
    print(f"{name}, {callers} callers: {peak - idle:.0f} MB more than idle")
    assert peak - idle < audio_file.SIDE_BY_SIDE * (ffmpeg.MEMORY_BYTES / 2**20 + 100) + 400
    assert answer(server, HONEST)["output"] == before


def test_slow_addresses_keep_others_out_no_longer_than_the_limit(server, attacks):
    """As many as the server accepts at once."""
    inputs, refusals = attacks["endless"]
    with ThreadPoolExecutor(32) as pool:
        slow = [pool.submit(server.post, duration=1, **inputs) for _ in range(32)]
        errors = [one.result().json().get("error", "") for one in slow]
    assert any(refusals[0] in error for error in errors)
    assert answer(server, HONEST)["status"] == "succeeded"
