"""Ten thousand predictions leave no file, and no memory, thread or descriptor in use."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sounds
from web import web_server

from musicgen.serving.result_files import COG_FOLDER, LEFTOVER_SECONDS

SHORTEST = {"duration": 1, "output_format": "wav", "normalization_strategy": "clip"}
NAME = f"leftover-{os.getpid()}"  # Cog keeps the folders of all servers in one place
FAILING = 2  # one in so many predictions has an input that cannot be downloaded


def send(server, web, numbers):
    """Run these predictions with eight callers; exactly those with a bad input fail."""
    broken = (f"{web.url}/half/a.wav", "http://127.0.0.1:9/a.wav")

    def one(number):
        fails = number % FAILING == 0
        audio = {"input_audio": broken[number // FAILING % 2]} if fails else {}
        body = {"id": f"{NAME}-{number}", "input": {**SHORTEST, **audio}}
        answer = client.post(f"{server.url}/predictions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == ("failed" if fails else "succeeded"), answer.text

    with httpx.Client(timeout=None) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(one, numbers))


def leftovers(server):
    """Cog's folders for these predictions, and incomplete downloads of inputs."""
    return [*COG_FOLDER.glob(f"{NAME}-*"), *server.temporary.glob("musicgen-*/inputs/*")]


def needs(server):
    """Resources of the worker and of Cog's server process.

    Cog leaves files of failed downloads open until Python collects them; a few are always waiting.
    """
    processes = [server.worker(), server.worker().parent()]
    waiting = [sum("/inputs/" in file.path for file in one.open_files()) for one in processes]
    return {
        "memory": [process.memory_info().rss for process in processes],
        "threads": [process.num_threads() for process in processes],
        "waiting": waiting,
        "descriptors": [one.num_fds() - few for one, few in zip(processes, waiting, strict=True)],
    }


ALLOWED = {"memory": (1.1, 0), "threads": (1, 4), "waiting": (1, 20), "descriptors": (1, 4)}


def grown(before, after):
    """Names of resources that grew beyond a factor and an allowance."""
    return [
        what
        for what, (factor, more) in ALLOWED.items()
        for was, now in zip(before[what], after[what], strict=True)
        if now > factor * was + more
    ]


def check(server, sound, count):
    with web_server({"a.wav": sound}) as web:
        send(server, web, range(count // 10))
        before, start = needs(server), time.monotonic()
        send(server, web, range(count // 10, count))
        after = needs(server)
        print(f"{0.9 * count / (time.monotonic() - start):.1f} predictions/s", before, after)
        assert grown(before, after) == []
        left = leftovers(server)
        assert left  # shows that the search below looks in the right place
        then = time.time() - LEFTOVER_SECONDS - 1
        for path in left:  # instead of waiting ten minutes
            os.utime(path, (then, then))
        time.sleep(LEFTOVER_SECONDS / 10 + 1)  # the server sweeps no more often than that
        send(server, web, [count + 1])  # an odd number: one that succeeds
        assert [path.name for path in leftovers(server)] == [f"{NAME}-{count + 1}"]


@pytest.mark.full
def test_ten_thousand_predictions_leave_nothing(start_server, checkpoints, tmp_path):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(1.0, 32000, 1), 32000)
    server = start_server("predict", checkpoints["text"])
    check(server, path.read_bytes(), 10_000)
