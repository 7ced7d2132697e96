"""Clients that vanish, read slowly or die, and a worker that does: nobody else notices."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
from test_disk import limited

from musicgen.commands.client import Client

NEIGHBOURS = 4
CLIENT = """
import sys, httpx
httpx.post(sys.argv[1] + "/predictions", json={"input": {"duration": 60}}, timeout=None)
"""


def raw_request(url, **inputs):
    """A connection on which a prediction was asked for, and nothing read."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"input": inputs})
    head = f"POST /predictions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def vanish(url, seconds):
    """Ask for a minute, go after so many seconds: while it is prepared, decoded or encoded."""
    with raw_request(url, duration=60, output_format="mp3"):
        time.sleep(seconds)


def die(url, seconds):
    """A client process that is killed."""
    process = subprocess.Popen([sys.executable, "-c", CLIENT, url])
    time.sleep(1.0 + seconds)  # after its imports
    process.send_signal(signal.SIGKILL)
    process.wait()


def dawdle(url, seconds):
    """Read an answer of megabytes a little at a time, and leave before its end."""
    with raw_request(url, duration=20, output_format="wav") as connection:
        end = time.monotonic() + 5 + seconds
        while time.monotonic() < end and connection.recv(100):
            time.sleep(0.01)


def mumble(url, seconds):
    """Send half of a request and go."""
    with raw_request(url, duration=1) as connection:
        connection.sendall(b"POST /predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{")
        time.sleep(seconds)


def check_neighbours(client, faults):
    """Requests beside clients at fault get the bytes that they get alone."""
    alone = [client.predict(duration=6, seed=seed)["output"] for seed in range(NEIGHBOURS)]
    done = threading.Event()

    def ask(seed):
        answers = []
        while not done.is_set() or not answers:
            answers.append(client.predict(duration=6, seed=seed)["output"])
        return answers

    with ThreadPoolExecutor(2 * NEIGHBOURS) as pool:
        asked = [pool.submit(ask, seed) for seed in range(NEIGHBOURS)]
        try:
            chance = random.Random(0)
            list(pool.map(lambda fault: fault(client.url, chance.uniform(0, 3)), faults))
        finally:
            done.set()
        for seed, answers in enumerate(asked):
            assert all(answer == alone[seed] for answer in answers.result())
    health = httpx.get(f"{client.url}/health-check").json()["status"]
    assert health in ("READY", "BUSY")


def test_clients_at_fault_do_not_disturb_others(predict_server):
    check_neighbours(predict_server, [vanish, dawdle, mumble, die])


@pytest.mark.full
def test_many_clients_at_fault_do_not_disturb_others(predict_server):
    check_neighbours(predict_server, [vanish, dawdle, mumble, die] * 20)


def test_a_worker_that_dies_fails_what_it_had_at_once_and_says_so(start_server):
    client = start_server("predict")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, duration=300) for _ in range(4)]
        time.sleep(1.0)
        os.kill(client.worker().pid, signal.SIGKILL)
        for answer in asked:
            body = answer.result().json()
            assert body["status"] == "failed"
            assert "Worker crashed" in body["error"]
    # Cog never starts another one: who runs the container must (docs/internet.md).
    assert httpx.get(f"{client.url}/health-check").json()["status"] == "UNHEALTHY"


def test_connections_beyond_the_descriptors_are_waited_out(tmp_path, checkpoints):
    few = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
    with limited(tmp_path, checkpoints["text"], *few) as client:
        before = client.predict(duration=1, seed=1)["output"]
        host, port = client.url.removeprefix("http://").split(":")
        with ExitStack() as stack, suppress(TimeoutError):  # what is accepted no more
            for _ in range(400):
                address = (host, int(port))
                stack.enter_context(socket.create_connection(address, timeout=1.0))
        assert client.predict(duration=1, seed=1)["output"] == before
        assert Client(client.url).health()["status"] == "READY"
