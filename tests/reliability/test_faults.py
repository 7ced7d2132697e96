"""Clients that disconnect, read slowly or die do not affect others.

A worker that dies is in test_stages.py.
"""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import plain_http
import pytest
from cog_server import cog_server
from gate import until

NEIGHBOURS = 4
# Texts in the log of a prediction when Cog has it, when it runs and when it is being decoded.
STAGES = ("Starting prediction", "seed: ", "decode: ")
CLIENT = """
import sys, httpx
body = {"id": sys.argv[2], "input": {"duration": 60}}
httpx.post(sys.argv[1] + "/predictions", json=body, timeout=None)
"""


def raw_request(url, name, **inputs):
    """A connection on which prediction `name` was requested, and nothing read."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"id": name, "input": inputs})
    head = f"POST /predictions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def disconnect(client, name, stage):
    """Disconnect when the prediction has reached a stage."""
    with raw_request(client.url, name, duration=60, output_format="mp3"):
        until(lambda: client.says(name, stage))


def die(client, name, stage):
    """A client process that is killed when its prediction has reached a stage."""
    process = subprocess.Popen([sys.executable, "-c", CLIENT, client.url, name])
    until(lambda: client.says(name, stage))
    process.send_signal(signal.SIGKILL)
    process.wait()


def read_slowly(client, name, stage):
    """Read an answer of 0.7 MB at 10 kB a second at most, and disconnect before its end."""
    with raw_request(client.url, name, duration=4, output_format="wav") as connection:
        until(lambda: client.says(name, stage))
        for _ in range(100):
            assert connection.recv(100)
            time.sleep(0.01)


def send_half(client, name, stage):
    """Send a request and half of another, then disconnect."""
    with raw_request(client.url, name, duration=1) as connection:
        connection.sendall(b"POST /predictions HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{")
        until(lambda: client.says(name, stage))


def check_neighbours(client, faults):
    """Requests beside faulty clients get the same bytes as alone."""
    alone = [client.predict(duration=3, seed=seed)["output"] for seed in range(NEIGHBOURS)]
    done = threading.Event()

    def ask(seed):
        answers = []
        while not done.is_set() or not answers:
            answers.append(client.predict(duration=3, seed=seed)["output"])
        return answers

    with ThreadPoolExecutor(2 * NEIGHBOURS) as pool:
        asked = [pool.submit(ask, seed) for seed in range(NEIGHBOURS)]
        try:
            chance = random.Random(0)
            jobs = [(fault, uuid.uuid4().hex, chance.choice(STAGES)) for fault in faults]
            list(pool.map(lambda job: job[0](client, *job[1:]), jobs))
        finally:
            done.set()
        for seed, answers in enumerate(asked):
            assert all(answer == alone[seed] for answer in answers.result())
    health = plain_http.health(client.url)
    assert health in ("READY", "BUSY")


def test_faulty_clients_do_not_disturb_others(predict_server):
    check_neighbours(predict_server, [disconnect, read_slowly, send_half, die])


@pytest.mark.full
def test_many_faulty_clients_do_not_disturb_others(predict_server):
    check_neighbours(predict_server, [disconnect, read_slowly, send_half, die] * 20)


def test_a_server_out_of_descriptors_recovers(tmp_path, checkpoints):
    few = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
    with cog_server(tmp_path, checkpoints["text"], wrapper=few) as client:
        before = client.predict(duration=1, seed=1)["output"]
        host, port = client.url.removeprefix("http://").split(":")
        with ExitStack() as stack, suppress(TimeoutError):  # a connection that is not accepted
            for _ in range(400):
                address = (host, int(port))
                stack.enter_context(socket.create_connection(address, timeout=1.0))
        assert client.predict(duration=1, seed=1)["output"] == before
        assert plain_http.health(client.url) == "READY"
