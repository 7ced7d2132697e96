"""Every snippet of docs/clients.md, run against a real server."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import haproxy
import httpx
import plain_http
import pytest
import sounds
from web import serving

from musicgen.commands.server import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
SERVER = "http://127.0.0.1:5000"
REPLICATE = "replicate@1.4.0"


def snippet(language, contains):
    """The one code block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    [block] = [block for block in blocks if contains in block]
    assert SERVER in block
    return block


def run(command, folder, **environment):
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def hum(tmp_path):
    """hum.mp3, which the snippets send."""
    return sounds.write(tmp_path / "hum.mp3", sounds.melody(2.0, 32000), 32000)


def test_curl(predict_server, tmp_path):
    code = snippet("bash", "curl").replace(SERVER, predict_server.url)
    printed = run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
    assert "'seed': 7" in printed
    assert (tmp_path / "song.mp3").stat().st_size > 100_000


def test_curl_prints_the_error_of_a_refused_request(predict_server, tmp_path):
    code = snippet("bash", "curl").replace(SERVER, predict_server.url)
    refused = code.replace('"duration": 4', '"continuation": true')
    command = ["bash", "-euo", "pipefail", "-c", refused]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    [shown] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert (done.returncode, done.stderr) == (1, json.loads(shown)["error"] + "\n")
    assert json.loads(shown).items() <= json.loads((tmp_path / "answer.json").read_text()).items()
    invalid = code.replace('"duration": 4', '"duration": 0')
    done = subprocess.run([*command[:-1], invalid], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "duration" in done.stderr
    assert "Traceback" not in done.stderr


def test_python(predict_server, hum, tmp_path):
    code = snippet("python", "def predict").replace(SERVER, predict_server.url)
    (tmp_path / "client.py").write_text(code)
    assert run([sys.executable, "client.py"], tmp_path).strip().isdigit()
    assert (tmp_path / "quartet.mp3").stat().st_size > 100_000


@pytest.fixture(scope="module")
def python_client():
    """The functions of the Python snippet, without the call at its end."""
    names = {}
    exec(snippet("python", "def predict").partition("output = predict(")[0], names)
    return names


def test_python_says_which_field_is_wrong(predict_server, python_client):
    python_client["URL"] = predict_server.url
    with pytest.raises(ValueError, match="duration"):
        python_client["predict"](duration=0)
    with pytest.raises(RuntimeError, match="continuation=True: there is no input_audio"):
        python_client["predict"](continuation=True)


def test_python_waits_for_a_place_and_for_the_start(start_server, python_client):
    """Four callers of a server that takes one prediction at a time."""
    client = start_server("predict", COG_MAX_CONCURRENCY="1")
    python_client["URL"] = client.url
    with ThreadPoolExecutor(4) as pool:
        outputs = list(
            pool.map(lambda seed: python_client["predict"](seed=seed, duration=1), range(8))
        )
    assert [output["seed"] for output in outputs] == [*range(8)]


@pytest.fixture(scope="module")
def npm_folder(tmp_path_factory):
    """A folder in which the npm package `replicate` is installed."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", REPLICATE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm install failed: {done.stderr.strip()[-200:]}")
    return folder


def javascript(code, hum, folder, **environment):
    """Run an ES module in the folder of the npm package; what it prints."""
    shutil.copy(hum, folder / "hum.mp3")
    (folder / "client.js").write_text(code)
    return run(["node", "client.js"], folder, **environment)


def test_javascript(predict_server, hum, npm_folder):
    code = snippet("javascript", "Replicate").replace(SERVER, predict_server.url)
    assert javascript(code, hum, npm_folder).strip().isdigit()
    song = npm_folder / "quartet.mp3"
    assert song.read_bytes()[:3] == b"ID3"
    assert song.stat().st_size > 100_000
    song.unlink()


def test_javascript_with_four_clips(songstarter_server, hum, npm_folder):
    code = snippet("javascript", "Replicate").replace(SERVER, songstarter_server.url)
    code = code.partition("await writeFile")[0] + "console.log((await output[3].blob()).type);"
    assert javascript(code, hum, npm_folder).strip() in ("audio/wav", "audio/x-wav")


@pytest.mark.skipif(not haproxy.is_installed(), reason="haproxy is not installed")
def test_javascript_through_the_proxy(predict_server, hum, npm_folder, tmp_path):
    with haproxy.running(predict_server.url, tmp_path) as proxy:
        code = snippet("javascript", "Replicate").replace(SERVER, proxy.url)
        trust = {"NODE_EXTRA_CA_CERTS": str(proxy.certificate)}
        printed = javascript(code, hum, npm_folder, MUSICGEN_TOKEN=haproxy.TOKEN, **trust)
    assert printed.strip().isdigit()


def test_a_model_without_a_version_does_not_work_in_javascript(predict_server, hum, npm_folder):
    code = snippet("javascript", "Replicate").replace(SERVER, predict_server.url)
    code, replaced = re.subn("`any/model.*`;", '"any/model";', code)
    assert replaced == 1
    shutil.copy(hum, npm_folder / "hum.mp3")
    (npm_folder / "client.js").write_text(code)
    done = subprocess.run(["node", "client.js"], cwd=npm_folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "404" in done.stderr


def test_the_webhook_gets_the_prediction(predict_server, tmp_path):
    received, arrived = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response_only(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_):
            pass

    with serving(Handler) as hook:
        code = snippet("python", "webhook").replace(SERVER, predict_server.url)
        code = code.replace("https://example.com/finished", hook.url)
        (tmp_path / "client.py").write_text(code)
        name, status = run([sys.executable, "client.py"], tmp_path).split()
        assert arrived.wait(600)
    [prediction] = received
    assert (prediction["id"], status) == (name, "starting")
    assert prediction["status"] == "succeeded"
    assert prediction["output"]["audio"].startswith("data:audio/mpeg;base64,")


def test_what_does_not_work_does_not(predict_server):
    body = {"input": {"duration": 1}}
    url = predict_server.url
    assert plain_http.post(f"{url}/v1/predictions", json=body).status_code == 404
    assert plain_http.post(f"{url}/models/owner/name/predictions", json=body).status_code == 404
    assert plain_http.get(f"{url}/predictions/some-id").status_code == 405
    stream = {"Accept": "text/event-stream"}
    answer = plain_http.post(f"{url}/predictions", json=body, headers=stream)
    assert answer.status_code == 406


BODY = b'{"input": {"duration": 1}}'


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/predictions/", {}, BODY, 404),
        ("POST", "/predictions", {}, b"\xef\xbb\xbf" + BODY, 400),
        ("POST", "/predictions", {"Content-Encoding": "gzip"}, gzip.compress(BODY), 400),
        ("POST", "/predictions", {"Content-Type": "text/plain"}, BODY, 415),
        ("POST", "/predictions", {"Prefer": "respond-async, wait=5"}, BODY, 200),
        ("POST", "/predictions", {"Prefer": "respond-async"}, BODY, 202),
        ("OPTIONS", "/predictions", {"Origin": "https://example.com"}, b"", 405),
    ],
    ids=[
        "slash",
        "byte order mark",
        "gzip",
        "text",
        "two preferences",
        "asynchronous",
        "preflight",
    ],
)
def test_unusual_requests_have_the_status_of_the_page(
    predict_server, method, path, headers, body, status
):
    answer = plain_http.request(
        method,
        predict_server.url + path,
        content=body,
        headers={"Content-Type": "application/json", **headers},
        timeout=None,
    )
    assert answer.status_code == status, answer.text
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_id_of_a_running_prediction_gets_that_prediction(predict_server):
    inputs = {"duration": 300, "prompt": "twice"}
    url = f"{predict_server.url}/predictions/twice"
    request = {"json": {"input": inputs}, "headers": {"Prefer": "respond-async"}}
    first = plain_http.put(url, **request)
    second = plain_http.put(url, json={"input": {"duration": 1}})
    plain_http.post(f"{url}/cancel").raise_for_status()
    assert (first.status_code, second.status_code) == (202, 202)
    assert inputs.items() <= second.json()["input"].items()


def test_a_body_without_a_content_type_is_ignored(predict_server):
    """Cog then does not read it, and may reset the connection instead of answering."""

    def ask():
        url, body = f"{predict_server.url}/predictions", b'{"input": {"output_format": "wav"}}'
        with suppress(httpx.ReadError):
            return plain_http.post(url, content=body).json()["output"]["output_format"]

    answers = (ask() for _ in range(20))
    assert next(filter(None, answers)) == "mp3"
