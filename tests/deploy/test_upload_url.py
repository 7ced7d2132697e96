"""Cog's --upload-url: which files are uploaded, and under which names."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from cog_server import cog_server
from web import serving

SHORT = {"prompt": "trap", "duration": 1}


@contextmanager
def receiving():
    """The URL of a server that keeps what is PUT there, by its path, and the files."""
    files = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            files.setdefault(self.path, []).append(body)
            self.send_response_only(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with serving(Handler) as server:
        yield server.url, files


@pytest.fixture
def uploading(checkpoints, tmp_path):
    """predictor -> (a server that uploads its files, where they are received)."""

    @contextmanager
    def start(predictor):
        with receiving() as (url, files):
            wrapper = ["sh", "-c", f'exec "$@" --upload-url {url}/up/', "sh"]
            with cog_server(tmp_path, checkpoints["text"], predictor, wrapper) as server:
                yield server, f"{url}/up/", files

    return start


def test_every_clip_of_every_prediction_has_its_own_name(uploading):
    with uploading("songstarter") as (server, url, files):
        outputs = [server.predict(seed=seed, **SHORT)["output"] for seed in (1, 2)]
    uploaded = [address for output in outputs for address in output]
    assert len(uploaded) == len(set(uploaded)) == 8
    assert all(address.startswith(url) and address.endswith(".wav") for address in uploaded)
    assert sorted(files) == sorted(
        address.removeprefix(url[: -len("/up/")]) for address in uploaded
    )
    assert all(body[:4] == b"RIFF" for [body] in files.values())


def test_the_object_keeps_its_audio_inline(uploading):
    with uploading("predict") as (server, _, files):
        audio = server.predict(**SHORT)["output"]["audio"]
    assert audio.startswith("data:audio/mpeg;base64,")
    assert not files
