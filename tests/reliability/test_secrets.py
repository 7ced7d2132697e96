"""The upload key is only in the server's own memory and environment.

Each test uses a real server with a bucket. `leaks` then searches its files, its log, its answers,
its requests to the bucket and its child processes.
"""

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import imageio_ffmpeg
import plain_http
import pytest
import sounds
import storage
from cog_client import data_uri
from gate import until

KEY = "clé-0xC0FFEE-battery"
WRONG = "not-0xDECAF-quite"
# Encodings in which the middle of either key could appear; base64 has three alignments.
FORMS = {
    form
    for middle in (b"0xC0FFEE", b"0xDECAF")
    for form in (
        middle,
        middle.hex().encode(),
        repr(list(middle))[1:-1].encode(),
        *(base64.b64encode(b"?" * shift + middle)[4:8] for shift in range(3)),
    )
}
# Replaces ffmpeg: records its environment and arguments, then runs ffmpeg.
RECORDER = """#!/bin/sh
tr '\\0' '\\n' </proc/self/environ >>{folder}/children
echo "$@" >>{folder}/children
exec {ffmpeg} "$@"
"""


def found_in(data):
    return [form for form in FORMS if form in data]


@pytest.fixture(scope="module")
def bucket():
    with storage.storage_server("songs") as url, storage.fault_proxy(url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """A folder with a recording ffmpeg; it writes to the file `children` there."""
    folder = tmp_path_factory.mktemp("children")
    program = folder / "ffmpeg"
    program.write_text(RECORDER.format(folder=folder, ffmpeg=imageio_ffmpeg.get_ffmpeg_exe()))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture(scope="module")
def server(start_server, bucket, children):
    """A server for all tests; the last one ends it."""
    return start_server(
        "predict",
        UPLOAD_BUCKET="songs",
        UPLOAD_KEY=KEY,
        STORAGE_EMULATOR_HOST=bucket.url,
        IMAGEIO_FFMPEG_EXE=str(children / "ffmpeg"),
        COG_LOG_LEVEL="debug",
    )


def written(server):
    """(path, content) of every file of the server, including its log."""
    for path in (server.log, *server.temporary.rglob("*")):
        if path.is_file():
            yield str(path), path.name.encode() + path.read_bytes()


def leaks(server, bucket, children, answers):
    """place -> encodings of the keys found there."""
    worker = server.worker()
    family = [worker, worker.parent(), *worker.children(recursive=True)]
    texts = {
        **dict(written(server)),
        **{f"answer {number}": text.encode() for number, text in enumerate(answers)},
        **{f"request {n}": str(seen).encode() for n, seen in enumerate(bucket.seen)},
        **{f"command of {p.pid}": "\0".join(p.cmdline()).encode() for p in family},
        **{
            f"environment of {p.pid}": json.dumps(p.environ(), ensure_ascii=False).encode()
            for p in worker.children(recursive=True)
        },
        "children": (children / "children").read_bytes(),
    }
    return {place: found for place, text in texts.items() if (found := found_in(text))}


def raw(server, body, path="/predictions", method="POST", **headers):
    headers = {"Content-Type": "application/json", **headers}
    return plain_http.request(method, server.url + path, content=body, headers=headers)


def test_the_search_finds_every_encoding_of_a_key():
    """The tests below rely on this search."""
    for key in (KEY, WRONG):
        data = key.encode()
        for text in (
            data,
            b"x" + data + b"y",
            quote(key).encode(),
            json.dumps(key).encode(),
            data.hex().encode(),
            *(base64.b64encode(b"x" * shift + data) for shift in range(3)),
            repr(data).encode(),
            str(list(data)).encode(),
        ):
            assert found_in(text), text


def test_requests_of_every_kind_leave_no_key(server, bucket, children, tmp_path):
    sound = data_uri(sounds.write(tmp_path / "a.wav", sounds.melody(1.0), 44100))
    inputs = [
        {},
        {"output_format": "wav"},
        {"input_audio": sound},
        {"input_audio": sound, "continuation": True, "continuation_end": 1, "duration": 2},
        {"continuation": True},
        {"multi_band_diffusion": True},
        {"input_audio": "data:audio/wav;base64,AAAA"},
        {"input_audio": "/etc/passwd"},
        {"input_audio": "http://127.0.0.1:9/a.wav"},
        {"song_id": 10**30},
        {"song_id": "3"},
        {"duration": 0},
        {"top_p": "x"},
        {"prompt": None},
        {"unknown": 1},
        {"prompt": "\ud800"},
    ]
    keys = [KEY, KEY + "\n", KEY.upper(), KEY * 1000, WRONG]
    answers = [
        raw(server, json.dumps({"input": {"duration": 1, "song_id": 1, "key": key, **more}})).text
        for more in inputs
        for key in (KEY, WRONG)
    ]
    answers += [server.post(duration=1, song_id=1, key=key).text for key in keys]
    for faults in ([503], [403] * 9, ["drop"], ["corrupt"], ["lose"]):
        bucket.inject(faults)
        answers.append(server.post(duration=1, song_id=2, key=KEY).text)
    bucket.inject([])
    assert sum('"gcs_uri"' in text for text in answers) > 5
    assert leaks(server, bucket, children, answers) == {}


def test_invalid_bodies_leave_no_key(server, bucket, children):
    whole = json.dumps({"input": {"duration": 1, "song_id": 3, "key": KEY}})
    keys = [[KEY], {"value": KEY}, {KEY: 1}, [[WRONG]], None, 12]
    bodies = [
        *(json.dumps({"input": {"duration": 1, "song_id": 3, "key": key}}) for key in keys),
        *(whole[:-cut] for cut in (1, 2, 3, 10)),
        json.dumps({"input": {"duration": KEY, "song_id": WRONG}}),
        json.dumps({"input": KEY}),
        json.dumps({"key": KEY, "input": {"duration": 1}}),
        json.dumps(KEY),
        whole.encode("utf-16"),
    ]
    answers = [raw(server, body).text for body in bodies]
    answers.append(raw(server, whole, **{"Content-Type": "text/plain"}).text)
    answers.append(raw(server, whole, f"/predictions/{'x' * 300}", "PUT").text)
    answers.append(raw(server, whole, Prefer="respond-async").text)
    found = leaks(server, bucket, children, answers)
    # Only Cog's validation errors contain the key: they quote the invalid body to its sender.
    assert {place.split()[0] for place in found} == {"answer"}, found


def test_a_cut_upload_and_a_killed_worker_leave_no_key(server, bucket, children):
    answers = [server.post(duration=1, song_id=4, key=KEY).text]
    bucket.inject(["sip"])
    seen = len(bucket.seen)
    with closing(server.begin("cut", duration=1, song_id=5, key=KEY)):
        until(lambda: len(bucket.seen) > seen)  # then the client disconnects during the upload
    assert leaks(server, bucket, children, answers) == {}
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.post, "killed", duration=60, song_id=6, key=KEY)
        until(lambda: server.says("killed", "seed: "))
        server.worker().kill()
        answers.append(waiting.result().text)
    assert "Worker crashed" in answers[-1]
    texts = {**dict(written(server)), "answers": "".join(answers).encode()}
    assert [place for place, text in texts.items() if found_in(text)] == []
