"""Callers that send one request again and again, as a program of its own.

    attackers.py URL FILE COUNT

sends the body in FILE until standard input ends, then prints the answers. It runs at the lowest
priority: real attackers do not take the server's processors by making and sending their requests.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

BUSY = 409
LOWEST = 19


def send(url, body):
    """The answer to one request, sent again while the server is full."""
    headers = {"Content-Type": "application/json"}
    while (
        answer := httpx.post(f"{url}/predictions", content=body, headers=headers, timeout=None)
    ).status_code == BUSY:
        time.sleep(0.05)
    return answer.json()


@contextmanager
def attacking(url, file, count):
    """`count` callers who send the body in `file` until the block ends, and the list that then
    receives their answers."""
    answers = []
    command = [sys.executable, __file__, url, file, str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        try:
            yield answers
        finally:
            printed, _ = process.communicate()
            answers += json.loads(printed)
    assert process.returncode == 0


def main(url, file, count):
    os.nice(LOWEST)
    body = Path(file).read_bytes()
    done = threading.Event()

    def keep_sending():
        answers = []
        while not done.is_set():
            answers.append(send(url, body))
        return answers

    with ThreadPoolExecutor(int(count)) as pool:
        asking = [pool.submit(keep_sending) for _ in range(int(count))]
        print("begun", flush=True)
        sys.stdin.read()
        done.set()
        print(json.dumps([answer for one in asking for answer in one.result()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
