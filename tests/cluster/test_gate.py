"""The gate's requests to its servers, in this process: recorded by small servers on loopback."""

import asyncio
import io
import json
import warnings
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from starlette.requests import Request
from web import listening

with warnings.catch_warnings(action="ignore"):  # Ray emits some when it is imported
    from musicgen.cluster import gate as gates
    from musicgen.cluster import inputs
    from musicgen.cluster.metrics import HEAD, Record


@contextmanager
def recorder(headers_sent=None):
    """(address, list of the requests that were sent there). Their headers go to `headers_sent`."""
    seen, headers_sent = [], [] if headers_sent is None else headers_sent

    class Handler(BaseHTTPRequestHandler):
        sent = headers_sent

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(f"{self.command} {self.path}")
            self.sent.append(self.headers)
            body = json.dumps({"status": "succeeded"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = answer  # noqa: N815  # the name that the library calls
        do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with listening(Handler) as url:
        yield url, seen


class Gate(gates.Gate):
    """A gate whose slots are all at one server; Ray, which lends them, does not run here."""

    def __init__(self, url, age=0.0):
        super().__init__(None, ["prompt", "duration"])
        self.url = url
        self.started_monotonic -= age

    @asynccontextmanager
    async def lease(self):
        yield self.url


def ask(gate, requests, servers=(), body=None, headers=()):
    """The statuses of (method, path) requests to a gate that knows some servers."""

    async def app(scope, receive, send):
        response = await gate(Request(scope, receive))
        await response(scope, receive, send)

    async def run():
        for url in servers:
            await gate.announce(url)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as c:
            return [
                (
                    await c.request(method, path, json=body or {"input": {}}, headers=headers)
                ).status_code
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


async def problems(body):
    with io.BytesIO(body) as stream:
        return await inputs.check(stream, ["prompt", "duration"])


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ({"input": {"promt": "x"}}, ["body", "input", "promt"], "Did you mean prompt?"),
        ({"input": {"size": 1}}, ["body", "input", "size"], "The inputs are prompt, duration."),
        ({"prompt": "x"}, ["body", "input"], 'no "input"'),
        ({"input": {"x": "y" * inputs.IN_THREAD}}, ["body", "input", "x"], "no such input"),
    ],
)
def test_bodies_that_cog_would_misread_are_refused(body, place, message):
    [problem] = asyncio.run(problems(json.dumps(body).encode()))
    assert problem["loc"] == place
    assert message in problem["msg"]
    with recorder() as (url, seen):
        assert ask(Gate(url), [("POST", "/predictions")], body=body) == [422]
        assert seen == []


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"input": 1}', b'{"input": {"prompt": ""}}'])
def test_all_other_bodies_are_left_to_the_server(body):
    assert asyncio.run(problems(body)) == []


@pytest.mark.parametrize(
    "value", [b"Zo\xc3\xab", b"Zo\xeb", b"\xff\xfe", "日本".encode()], ids=lambda value: value.hex()
)
def test_headers_are_forwarded_byte_by_byte(value):
    sent = []
    with recorder(sent) as (url, _):
        headers = [(b"X-Name", value), (b"User-Agent", value)]
        assert ask(Gate(url), [("POST", "/predictions")], headers=headers) == [200]
    [received] = sent
    for name in ("X-Name", "User-Agent"):
        assert received[name].encode("latin-1", "surrogateescape") == value


def test_an_offer_to_upgrade_the_connection_is_not_forwarded():
    sent = []
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMA"}
    with recorder(sent) as (url, _):
        assert ask(Gate(url), [("POST", "/predictions")], headers=headers) == [200]
    assert not {"upgrade", "http2-settings"} & {name.lower() for name in sent[0]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": {"x": [' + b"[]," * inputs.MAX_VALUES + b"[]]}}",
        b'{"zzz": [' + b"1," * inputs.MAX_VALUES + b"1]}",
        b'{"input": {' + b'"duration": 1,' * inputs.MAX_VALUES + b'"duration": 1}}',
    ],
)
def test_a_body_of_many_values_is_refused_before_it_is_parsed(body, monkeypatch):
    monkeypatch.setattr(inputs.json, "loads", None)
    [problem] = asyncio.run(problems(body))
    assert "more than 100,000 values" in problem["msg"]


def test_few_of_many_unknown_names_are_reported():
    names = {f"{number}{'x' * 10_000}": 1 for number in range(1000)}
    found = asyncio.run(problems(json.dumps({"input": names}).encode()))
    assert len(found) == inputs.MAX_PROBLEMS
    assert len(json.dumps(found)) < 10_000


def test_a_deeply_nested_body_is_left_to_the_server():
    assert asyncio.run(problems(b'{"input": ' + b"[" * 50_000)) == []


@pytest.mark.parametrize("size", [1, 7, 64, 65, 1000, 2**16])
def test_the_metrics_of_a_streamed_response_are_those_of_its_last_event(size):
    piece = f'event: metric\ndata: {{"name":"piece","value":{{"pcm":"{"A" * HEAD}"}}}}\n\n'
    answer = {
        "logs": 'event: completed "real_time_factor":9',
        "metrics": {"real_time_factor": 2.0, "seconds": {"codec": 1.0, "decode": 1.5}},
        "output": [{"audio": "A" * HEAD}],
        "status": "succeeded",
    }
    text = json.dumps(answer, separators=(",", ":"))
    body = f"{piece}event: completed\ndata: {text}\n\n".encode()
    record = Record()
    for start in range(0, len(body), size):
        record.add(body[start : start + size])
    assert record.audio_seconds() == 5.0
    assert b'"status":"succeeded"' in record.tail
