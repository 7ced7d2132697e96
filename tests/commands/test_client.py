"""The HTTP client against a real server, and against answers that a real server rarely gives."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
import sounds
from web import listening

from musicgen.commands import client
from musicgen.commands.client import (
    BusyError,
    CancelledError,
    Client,
    Prediction,
    RefusedError,
    UnreachableError,
)
from musicgen.commands.events import Log, Metric

# The messages of predictions that were cancelled before and just after their start.
EARLY = "Input validation error: "
LATER = "Prediction failed: Async prediction failed: CancelationException: "


@pytest.fixture(scope="module")
def cog(predict_server):
    return Client(predict_server.url)


@contextmanager
def answering(status, body):
    """A server that answers every request with one status and one body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with listening(Handler) as url:
        yield Client(url)


def test_importing_it_imports_neither_torch_nor_an_http_package():
    check = (
        "import sys, musicgen.commands.client; "
        "assert not {'torch', 'httpx', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_prediction_has_audio_facts_log_and_metrics(cog, tmp_path):
    prediction = cog.predict({"duration": 1, "seed": 5}, client.new_id())
    assert prediction.facts["duration"] == 1
    assert prediction.seed == 5
    assert "seed: 5" in prediction.logs
    assert prediction.metrics["predict_time"] > 0
    path = client.save(prediction.audio[0], tmp_path, "clip")
    assert path == tmp_path / "clip.mp3"
    assert path.stat().st_size > 1000


def test_the_seed_of_a_predictor_that_returns_files_is_read_from_its_log(songstarter_server):
    prediction = Client(songstarter_server.url).predict({"duration": 1, "seed": 7})
    assert len(prediction.audio) == 4
    assert (prediction.facts, prediction.seed) == ({}, 7)


def test_an_input_of_a_wrong_value_is_refused_by_its_name(cog):
    with pytest.raises(RefusedError, match="duration: 0 is less than the minimum") as caught:
        cog.predict({"duration": 0, "top_k": -1})
    assert set(caught.value.fields) == {"duration", "top_k"}


def test_an_input_that_the_model_refuses_is_named_without_cogs_prefixes(cog):
    with pytest.raises(RefusedError, match=r"^continuation=True: ") as caught:
        cog.predict({"continuation": True})
    assert set(caught.value.fields) == {"continuation"}


def test_a_prediction_is_cancelled_by_its_id(cog, predict_server):
    name = client.new_id()
    with ThreadPoolExecutor(1) as pool:
        prediction = pool.submit(cog.predict, {"duration": 300}, name)
        while not prediction.done() and not predict_server.says(name, "decode: "):
            time.sleep(0.05)
        assert cog.cancel(name)
        with pytest.raises(CancelledError):
            prediction.result()
    assert not cog.cancel(name)


def test_a_timeout_is_told_from_an_unreachable_server(cog):
    with pytest.raises(TimeoutError):
        cog.predict({"duration": 300}, timeout=0.5)
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9 did not answer"):
        Client("http://127.0.0.1:9").health()


@pytest.mark.parametrize(
    ("status", "answer", "error", "message"),
    [
        (409, {"error": "All slots busy"}, BusyError, "All slots busy. Try again in a moment."),
        (503, {"detail": "Too many requests."}, BusyError, "Too many requests. Try again in"),
        (202, {"id": "a", "status": "processing"}, BusyError, "the id a is running already"),
        (500, b"a proxy's page", RefusedError, "HTTP status 500"),
        (200, b"a proxy's page", UnreachableError, "did not answer"),
        (200, {"status": "canceled"}, CancelledError, "Cancelled"),
        (
            200,
            {"status": "failed", "error": "Input validation error: "},
            CancelledError,
            "Cancelled",
        ),
        (
            200,
            {"status": "failed", "error": "x: CancelationException: "},
            CancelledError,
            "Cancelled",
        ),
        (200, {"status": "failed", "error": ""}, RefusedError, "ended with status failed"),
    ],
)
def test_every_other_answer_is_an_error_with_a_message(status, answer, error, message):
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with answering(status, body) as server, pytest.raises(error, match=message):
        server.predict({})


def streamed(body):
    with answering(200, body) as server:
        return list(server.stream({}))


def test_events_are_read_and_others_are_skipped():
    events = (
        b': a comment\n\nevent: start\ndata: {}\n\nevent: log\r\ndata: {"data": "a\\n"}\r\n\r\n'
    )
    events += (
        b'id: 3\nevent: metric\ndata: {"name": "x", "value": [1],\ndata: "mode": "replace"}\n\n'
    )
    events += b'event:completed\ndata:{"status": "succeeded", "output": [{"audio": "a"}]}\n\n'
    assert streamed(events) == [Log("a\n"), Metric("x", [1]), Prediction({"audio": "a"}, "", {})]


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", UnreachableError, "ended before the prediction did"),
        (b'event: log\ndata: {"data": "a"}\n', UnreachableError, "ended before the prediction did"),
        (b"event: log\ndata: {\n\n", UnreachableError, "did not answer"),
        (
            b'event: error\ndata: {"error": "SSE stream lagged; events were dropped"}\n\n',
            UnreachableError,
            "stopped sending events: SSE stream lagged",
        ),
        (b'event: completed\ndata: {"status": "canceled"}\n\n', CancelledError, "Cancelled"),
        (
            b'event: completed\ndata: {"status": "failed", "error": "seed=1: no"}\n\n',
            RefusedError,
            "seed=1: no",
        ),
    ],
)
def test_a_stream_that_does_not_complete_is_an_error(body, error, message):
    with pytest.raises(error, match=message):
        streamed(body)


def test_cogs_prefixes_are_removed_from_the_reason_of_a_failed_setup():
    text = "worker setup failed: worker setup failed (slot 7276-ab): Setup failed: setup failed: "
    assert client.PREFIXES.sub("", text + "WeightsError: /w does not exist") == "/w does not exist"


def test_audio_is_saved_from_an_http_address_too(predict_server, tmp_path):
    address = f"{predict_server.url}/openapi.json"
    assert client.save(address, tmp_path, "a") == tmp_path / "a.json"
    with pytest.raises(UnreachableError, match="fetching it failed"):
        client.save("http://127.0.0.1:9/a.wav", tmp_path, "b")
    with pytest.raises(UnreachableError, match="not an address"):
        client.save((tmp_path / "a.json").as_uri(), tmp_path, "c")


def test_a_file_is_sent_as_a_data_uri(cog, tmp_path):
    path = sounds.write(tmp_path / "tune.wav", sounds.melody(2.0, 32000), 32000)
    inputs = {"input_audio": client.data_uri(path), "duration": 2}
    assert cog.predict(inputs | {"continuation": True, "continuation_end": 1}).audio
