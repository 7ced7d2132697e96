"""The gate's requests to its servers, in this process: recorded by small servers on loopback."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import warnings
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psutil
import pytest
from starlette.requests import Request

with warnings.catch_warnings(action="ignore"):  # Ray emits some when it is imported
    from musicgen.cluster import gate as gates
    from musicgen.cluster import replica as replicas


@contextmanager
def recorder():
    """(address, list of the requests that were sent there)."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(f"{self.command} {self.path}")
            body = json.dumps({"status": "succeeded"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = answer  # noqa: N815  # the name that the library calls
        do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


class Gate(gates.Gate):
    """A gate whose slots are all at one server; Ray, which lends them, does not run here."""

    def __init__(self, url, age=0.0):
        super().__init__(None)
        self.url = url
        self.started_monotonic -= age

    @asynccontextmanager
    async def lease(self):
        yield self.url


def ask(gate, requests, servers=()):
    """The statuses of (method, path) requests to a gate that knows some servers."""

    async def app(scope, receive, send):
        response = await gate(Request(scope, receive))
        await response(scope, receive, send)

    async def run():
        for url in servers:
            await gate.announce(url)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as c:
            return [
                (await c.request(method, path, json={"input": {}})).status_code
                for method, path in requests
            ]

    return asyncio.run(run())


@pytest.mark.parametrize(
    "path", ["/predictions/a%3Fb", "/predictions/a%2Fb", "/predictions/a?b=%20"]
)
def test_path_and_query_are_forwarded_unchanged(path):
    with recorder() as (url, seen):
        assert ask(Gate(url), [("PUT", path)]) == [200]
        assert seen == [f"PUT {path}"]


def test_an_escaped_slash_does_not_turn_an_id_into_another_path():
    with recorder() as (url, seen):
        assert ask(Gate(url), [("POST", "/predictions/a%2Fcancel")]) == [404]
        assert seen == []


def test_a_new_id_is_asked_of_other_servers_only_after_a_start():
    with ExitStack() as stack:
        (url, seen), (other, also) = (stack.enter_context(recorder()) for _ in range(2))
        put = [("PUT", "/predictions/mine")]
        assert ask(Gate(url), put, [url, other]) == [200]
        assert (len(seen), len(also)) == (2, 1)
        assert ask(Gate(url, age=gates.FORGOTTEN_AFTER), put, [url, other]) == [200]
        assert (len(seen), len(also)) == (3, 1)


def group_of_two():
    """A shell that ignores SIGTERM, and its child, in a process group of their own."""
    command = ["sh", "-c", "trap '' TERM; sleep 600 & echo started; wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"started\n"
    return process, psutil.Process(process.pid).children()


def test_a_stopped_server_ends_with_its_group_even_if_it_ignores_the_signal(monkeypatch):
    monkeypatch.setattr(replicas, "STOP_SECONDS", 0.2)
    process, children = group_of_two()
    with process.stdout:
        replicas.stop(process, replicas.start_guard(process.pid))
        psutil.wait_procs(children)
    assert process.returncode == -signal.SIGKILL


def test_the_guard_kills_the_group_of_a_server_whose_replica_has_died():
    process, children = group_of_two()
    with process.stdout:
        replicas.start_guard(process.pid).close()
        assert process.wait() == -signal.SIGKILL
        psutil.wait_procs(children)


def test_the_guard_of_a_stopped_server_kills_no_group_that_gets_its_number():
    ended = subprocess.Popen(["true"], start_new_session=True)
    stranger, children = group_of_two()
    guard = replicas.start_guard(stranger.pid)
    with stranger.stdout:
        replicas.stop(ended, guard)
        guards = [
            p
            for p in psutil.process_iter(["cmdline"])
            if (p.info["cmdline"] or [""])[-1] == str(stranger.pid)
        ]
        psutil.wait_procs(guards)
        assert stranger.poll() is None
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()
        psutil.wait_procs(children)
