"""A fault at any stage of one prediction does not affect seven others that run beside it.

Stages that could end before a test acts are held at a gate: in the web server of the input, in a
wrapper around ffmpeg, in the proxy before the bucket. The others show in the log that they began.
"""

import http.client
import json
import os
import signal
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import imageio_ffmpeg
import plain_http
import pytest
import sounds
import storage
import tiny_checkpoints
from cog_client import CogClient, content
from gate import Gate, until
from web import Web, web_server

KEY = "open-sesame-0xC0FFEE"
NEIGHBOURS = range(7)
STAGES = {
    "fetching": {"input_audio": "held/tune.wav", "duration": 2},
    "reading": {"input_audio": "whole/tune.wav", "duration": 2},
    "decoding": {"duration": 20},
    "rendering": {"multi_band_diffusion": True, "duration": 3},
    "encoding": {"output_format": "mp3", "duration": 1},
    "uploading": {"duration": 1},
}
# A wrapper around ffmpeg: waits at the gate of a web server first.
WRAPPER = """#!/bin/bash
exec 3<>/dev/tcp/{host}/{port}
printf 'GET /held/gate HTTP/1.0\\r\\n\\r\\n' >&3
cat <&3 >/dev/null
exec 3>&- {ffmpeg} "$@"
"""


@dataclass
class Surroundings:
    """The services that a server uses: inputs, ffmpeg's gate, the bucket and a proxy before it."""

    web: Web
    ffmpeg: Web
    bucket: str
    proxy: storage.Proxy
    environment: dict[str, str]

    def close(self) -> dict[str, Gate]:
        """New, closed gates: stage -> gate."""
        self.web.gate, self.ffmpeg.gate, uploading = Gate(), Gate(), Gate()
        self.proxy.inject([uploading])
        return {
            "fetching": self.web.gate,
            "reading": self.ffmpeg.gate,
            "encoding": self.ffmpeg.gate,
            "uploading": uploading,
        }

    def stored(self, name: str) -> bytes:
        path = f"{self.bucket}/storage/v1/b/songs/o/{quote('songs/' + name, safe='')}?alt=media"
        return plain_http.get(path).raise_for_status().content

    def request(self, inputs):
        """Inputs with the URL of their file, one second of which is continued."""
        fields = {"output_format": "wav", "seed": 99, **inputs}
        if "input_audio" in fields:
            fields["input_audio"] = f"{self.web.url}/{fields['input_audio']}"
            fields |= {"continuation": True, "continuation_end": 1}
        return fields


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    folder = tmp_path_factory.mktemp("around")
    tune = sounds.write(folder / "tune.wav", sounds.melody(2.0, 32000), 32000)
    with (
        web_server({"tune.wav": tune.read_bytes()}) as web,
        web_server({"gate": b"--"}) as ffmpeg,
        storage.storage_server("songs") as bucket,
        storage.fault_proxy(bucket) as proxy,
    ):
        program = folder / "ffmpeg"
        host, port = ffmpeg.url.removeprefix("http://").split(":")
        program.write_text(
            WRAPPER.format(host=host, port=port, ffmpeg=imageio_ffmpeg.get_ffmpeg_exe())
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        environment = {
            "UPLOAD_BUCKET": "songs",
            "UPLOAD_KEY": KEY,
            "STORAGE_EMULATOR_HOST": proxy.url,
            "IMAGEIO_FFMPEG_EXE": str(program),
        }
        yield Surroundings(web, ffmpeg, bucket, proxy, environment)


@pytest.fixture(scope="module")
def start(start_server, around, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusing")
    tiny_checkpoints.write_checkpoint(folder, "stereo-melody")
    tiny_checkpoints.write_diffusion(folder)
    return lambda: start_server("predict", folder, **around.environment)


@pytest.fixture(scope="module")
def alone(start, around):
    """A server, and a function (name, inputs) -> its output with no other request running."""
    server, answers = start(), {}

    def answer(name, inputs):
        if name not in answers:
            for gate in around.close().values():
                gate.open()
            answers[name] = server.predict(**around.request(inputs))["output"]
        return answers[name]

    return server, answer


def neighbour(number):
    """Inputs of neighbour `number`: every second one continues a tune."""
    return {
        "seed": number,
        "duration": 3,
        **({"input_audio": "whole/tune.wav"} if number % 2 else {}),
    }


def key_found_in(server: CogClient) -> list[Path]:
    files = [server.log, *server.temporary.rglob("*")]
    return [path for path in files if path.is_file() and KEY.encode() in path.read_bytes()]


def answered(connection, pause=lambda: None):
    """The answer, read 10 kB at a time with `pause()` after each."""
    response, parts = connection.getresponse(), []
    while part := response.read(10_000):
        parts.append(part)
        pause()
    return json.loads(b"".join(parts))


@dataclass
class Held:
    """A prediction that has reached a stage, and its seven running neighbours."""

    server: CogClient
    name: str
    connection: http.client.HTTPConnection
    gates: dict[str, Gate]
    others: list[Future]

    def open(self):
        for gate in self.gates.values():
            gate.open()


# --- faults: each returns the answer, unless its client has disconnected --------------------------


def disconnect(held):
    held.connection.close()
    held.open()


def cancel(held):
    plain_http.post(f"{held.server.url}/predictions/{held.name}/cancel").raise_for_status()
    held.open()
    return answered(held.connection)


def read_slowly(held):
    """Read slowly until all neighbours have their answers."""
    held.open()

    def pause():
        if not all(other.done() for other in held.others):
            time.sleep(0.05)

    return answered(held.connection, pause)


def terminate(held):
    process = held.server.worker().parent()
    process.send_signal(signal.SIGTERM)
    until(lambda: "Received SIGTERM" in held.server.log.read_text())
    held.open()
    answer = answered(held.connection)
    assert process.wait() == 0
    return answer


def kill(held):
    """All predictions fail although the gates are still closed: none waits for a stage.

    Cog starts no other worker: the supervisor of the container must (docs/internet.md).
    """
    held.server.worker().kill()
    answers = [answered(held.connection), *(other.result() for other in held.others)]
    assert {answer["status"] for answer in answers} == {"failed"}
    assert all("Worker crashed" in answer["error"] for answer in answers)
    health = plain_http.health(held.server.url)
    assert health == "UNHEALTHY"
    held.open()


FAULTS = {
    "disconnects": disconnect,
    "cancels": cancel,
    "reads slowly": read_slowly,
    "SIGTERM": terminate,
    "kill -9": kill,
}
CANCELLED = ("disconnects", "cancels")
DEADLY = ("SIGTERM", "kill -9")


@contextmanager
def held_at(stage, server, around, name, inputs):
    """A `Held` at `stage`; its gates open at the end."""
    gates = around.close()
    for gate in {*gates.values()} - {gates.get(stage)}:
        gate.open()
    reached = {
        **{name: gate.arrived for name, gate in gates.items()},
        "decoding": lambda: until(lambda: server.says(name, "decode: ")),
        "rendering": lambda: until(lambda: server.says(name, "diffusion band 1")),
    }

    def ask(number):
        return server.post(f"{name}-{number}", **around.request(neighbour(number))).json()

    with ThreadPoolExecutor(len(NEIGHBOURS)) as pool:
        held = Held(server, name, server.begin(name, **inputs), gates, [])
        try:
            reached[stage]()
            held.others += [pool.submit(ask, number) for number in NEIGHBOURS]
            for number in NEIGHBOURS:
                until(lambda number=number: server.says(f"{name}-{number}", "seed: "))
            yield held
        finally:
            held.open()
            held.connection.close()


def check(around, start, alone, stage, fault):
    shared, answer_alone = alone
    expected = [answer_alone(number, neighbour(number)) for number in NEIGHBOURS]
    new = content(answer_alone(stage, STAGES[stage])["audio"])[1]
    server = start() if fault in DEADLY else shared
    inputs = {**around.request(STAGES[stage]), "song_id": 5, "key": KEY}
    song = f"5.{inputs['output_format']}"
    around.proxy.inject([])
    first = {"duration": 1, "seed": 1, "output_format": inputs["output_format"]}
    server.predict(**first, song_id=5, key=KEY)
    old, before = around.stored(song), server.results()
    assert old != new

    name = f"{stage}-{fault.split()[0]}-{os.getpid()}"
    with held_at(stage, server, around, name, inputs) as held:
        answer = FAULTS[fault](held)
        answers = [other.result() for other in held.others]
    assert key_found_in(server) == []
    if fault != "kill -9":
        assert [answer["output"] for answer in answers] == expected
    if fault in CANCELLED:

        def cleaned():
            """It left no result. Only an upload may end before Cog notices that its client left."""
            left = len(server.results() - before) - len(NEIGHBOURS)
            unnoticed = (stage, fault) == ("uploading", "disconnects")
            return left == 0 or (unnoticed and left == 1 and around.stored(song) == new)

        until(cleaned)
    if fault == "cancels":
        early = answer["status"] == "failed" and answer["error"] == "Input validation error: "
        assert answer["status"] == "canceled" or (early and stage == "fetching"), answer
    if fault in ("reads slowly", "SIGTERM"):
        assert "gcs_uri" in answer["output"]
        assert around.stored(song) == new
    else:
        assert around.stored(song) in ((old, new) if stage == "uploading" else (old,))


@pytest.mark.parametrize(
    ("stage", "fault"),
    [("fetching", "disconnects"), ("encoding", "cancels"), ("uploading", "kill -9")],
)
def test_a_fault_at_a_stage_does_not_affect_others(around, start, alone, stage, fault):
    check(around, start, alone, stage, fault)


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_fault_at_every_stage_does_not_affect_others(around, start, alone, stage, fault):
    check(around, start, alone, stage, fault)
