"""A clip in pieces over HTTP: the samples of its file, sent while it is made."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import plain_http
import pytest
from cog_client import content
from gate import until
from image_label import assert_contract

from musicgen.commands.client import (
    CancelledError,
    Client,
    Prediction,
    RefusedError,
    UnreachableError,
)
from musicgen.commands.events import Log, Metric
from musicgen.commands.server import ROOT

EXACT = {"output_format": "wav", "normalization_strategy": "clip"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("streaming")


def new_id():
    return f"test-{uuid.uuid4().hex}"


def pieces(events):
    """The values of the metric `piece` among events, and of the end of the pieces."""
    return [e.value for e in events if isinstance(e, Metric) and e.name == "piece"]


def joined(found):
    """The samples of pieces. Checks that they have no gap, and end with None."""
    *found, end = found
    assert end is None
    pcm = b""
    for piece in found:
        assert piece["start"] * 2 * piece["channels"] == len(pcm)
        pcm += base64.b64decode(piece["pcm"])
    return pcm


def samples(uri):
    """The bytes of the samples in a wav file."""
    raw = content(uri)[1]
    start = raw.index(b"data") + 8
    return raw[start : start + int.from_bytes(raw[start - 4 : start], "little")]


def stream(server, **inputs):
    """All events of a prediction."""
    return list(Client(server.url).stream(inputs))


def begun(server, **inputs):
    """The id of a prediction, and its events after the first piece."""
    name = new_id()
    events = Client(server.url).stream(inputs, name)
    while not pieces([next(events)]):
        pass
    return name, events


def test_the_served_schema_is_the_contract(server):
    assert_contract(plain_http.get(f"{server.url}/openapi.json").json(), "streaming")
    assert Client(server.url).can_stream()


def test_the_other_predictors_do_not_stream(predict_server):
    assert not Client(predict_server.url).can_stream()
    answer = plain_http.post(
        f"{predict_server.url}/predictions", json={"input": {}}, headers=EVENTS
    )
    assert answer.status_code == 406


def test_joined_pieces_are_the_samples_of_the_file(server):
    *events, prediction = stream(server, duration=5, seed=7, prompt="warm piano", **EXACT)
    assert isinstance(prediction, Prediction)
    pcm = joined(pieces(events))
    assert len(pcm) == 5 * 32000 * 2 * 2
    assert samples(prediction.audio[0]) == pcm
    assert {(p["channels"], p["sample_rate"]) for p in pieces(events) if p} == {(2, 32000)}


def test_streams_beside_eight_others_get_the_bytes_that_they_get_alone(server):
    requests = [{"duration": 2 + seed % 2, "seed": seed, **EXACT} for seed in range(4)]
    alone = [joined(pieces(stream(server, **inputs))) for inputs in requests]

    def ask(index):
        inputs = requests[index % 4]
        if index < 4:
            return joined(pieces(stream(server, **inputs)))
        return samples(server.predict(**inputs)["output"][0]["audio"])

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == alone * 3


def test_a_caller_without_events_gets_the_answer_of_predict(server, predict_server):
    inputs = {"duration": 2, "seed": 7, "prompt": "warm piano"}
    answer, expected = server.predict(**inputs), predict_server.predict(**inputs)
    assert answer["output"] == [expected["output"]]
    assert set(answer["metrics"]) == set(expected["metrics"])
    assert Client(server.url).predict(inputs).output == expected["output"]
    assert stream(server, **inputs)[-1].output == expected["output"]


def test_pieces_come_while_the_prediction_runs(server):
    name, events = begun(server, duration=10)
    assert not server.says(name, "Prediction worker completed")
    found = list(events)
    assert "seed: " in found[-1].logs
    assert "piece" not in found[-1].metrics
    assert any(isinstance(event, Log) and "decode: " in event.text for event in found)


@pytest.mark.parametrize("how", ["cancels", "disconnects"])
def test_a_stream_that_is_ended_early_leaves_nothing(server, how):
    before = server.results()
    inputs = {"duration": 3, "seed": 3, **EXACT}
    name, events = begun(server, duration=300)
    with ThreadPoolExecutor(1) as pool, closing(events):
        neighbour = pool.submit(stream, server, **inputs)
        if how == "disconnects":
            events.close()
        else:
            assert Client(server.url).cancel(name)
            with pytest.raises(CancelledError):
                list(events)
        until(lambda: server.says(name, "cancelled"))
        pcm = joined(pieces(neighbour.result()))
    assert pcm == joined(pieces(stream(server, **inputs)))
    until(lambda: len(server.results() - before) == 2)  # those of the neighbour
    assert not Client(server.url).cancel(name)


def test_a_slow_reader_gets_all_pieces_and_delays_no_other(server):
    """Its pieces wait in the server's process until it reads them."""
    inputs = {"duration": 40, "seed": 5, **EXACT}
    name, events = begun(server, **inputs)
    assert server.predict(duration=1)
    until(lambda: server.says(name, "Prediction worker completed"))
    *found, prediction = events
    whole = samples(prediction.audio[0])
    assert whole.endswith(joined_rest(pieces(found)))


def joined_rest(found):
    """The samples of the pieces after the first."""
    *found, end = found
    assert end is None
    return b"".join(base64.b64decode(piece["pcm"]) for piece in found)


def test_a_refused_request_is_one_error(server):
    with pytest.raises(RefusedError, match="there is no input_audio") as caught:
        stream(server, continuation=True)
    assert set(caught.value.fields) == {"continuation"}
    with pytest.raises(RefusedError) as caught:
        stream(server, duration=0)
    assert set(caught.value.fields) == {"duration"}


@pytest.mark.parametrize(
    ("language", "marked", "program"),
    [("python", "requests", sys.executable), ("javascript", "fetch", "node")],
)
def test_the_readers_of_the_documentation_run_as_printed(
    server, tmp_path, language, marked, program
):
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    page = (ROOT / "docs" / "streaming.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    [code] = [block for block in blocks if marked in block]
    file = tmp_path / "reader.mjs"
    file.write_text(code.replace("http://127.0.0.1:5000", server.url))
    done = subprocess.run([program, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == ("0 64000" if language == "python" else "0 16000")
    assert re.fullmatch(r"4(\.0)? \d+", last)


def test_a_server_that_gets_sigterm_finishes_its_streams(start_server, checkpoints):
    server = start_server("streaming", checkpoints["text"])
    process = server.worker().parent()
    _, events = begun(server, duration=10, **EXACT)
    process.send_signal(signal.SIGTERM)
    *found, prediction = events
    assert samples(prediction.audio[0]).endswith(joined_rest(pieces(found)))
    assert process.wait() == 0


def test_streams_of_a_worker_that_dies_fail_at_once(server):
    """The last test of this server."""
    streams = [begun(server, duration=300)[1] for _ in range(3)]
    os.kill(server.worker().pid, signal.SIGKILL)
    for events in streams:
        with pytest.raises((RefusedError, UnreachableError), match="Worker crashed"):
            list(events)
