"""Input files are fetched within limits, and what fails is explained without the URL's secrets."""

import base64
import ssl
import tempfile
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest
from certificates import write_certificate
from web import listening

from musicgen.errors import InputError, MusicGenError
from musicgen.serving import input_downloads
from musicgen.serving.input_downloads import USER_AGENT, Limits, fetch

SECRETS = ("user7", "hunter2", "X-Amz-Signature", "S3CR3T")


class Server(BaseHTTPRequestHandler):
    """Each path behaves in its own way."""

    agents: ClassVar[list[str]] = []
    elsewhere = ""

    def do_GET(self):
        self.agents.append(self.headers["User-Agent"])
        path = self.path.partition("?")[0]
        if path == "/redirect":
            return self.send_to("/song.mp3")
        if path == "/loop":
            return self.send_to("/loop")
        if path == "/file":
            return self.send_to("file:///etc/passwd")
        if path == "/elsewhere":
            return self.send_to(self.elsewhere)
        if path.startswith("/status/"):
            return self.send_error(int(path.rpartition("/")[2]))
        self.send_response(200)
        if path == "/short.mp3":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        if path in ("/endless.mp3", "/drip.mp3"):
            block, pause = (b"x" * 65536, 0) if path == "/endless.mp3" else (b"x", 0.05)
            while True:
                self.wfile.write(block)
                time.sleep(pause)
        self.wfile.write(b"a song")

    def send_to(self, place):
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(OSError):  # the client has closed the connection, as it should
            super().handle()


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with listening(Server) as url:
        yield url


def left(tmp_path):
    return list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("path", ["/song.mp3", "/redirect"])
def test_a_file_is_fetched_with_the_projects_user_agent(web, path):
    Server.agents.clear()
    assert fetch(web + path, "song.mp3", Limits()).read_bytes() == b"a song"
    assert set(Server.agents) == {USER_AGENT}


def test_the_operator_can_choose_the_user_agent(web, monkeypatch):
    monkeypatch.setenv("COG_USER_AGENT", "browser/1.0")
    Server.agents.clear()
    fetch(f"{web}/song.mp3", "song.mp3", Limits())
    assert Server.agents == ["browser/1.0"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "HTTP 404"),
        ("/status/403", "HTTP 403"),
        ("/status/500", "HTTP 500"),
        ("/loop", "redirects more than 5 times"),
        ("/file", "redirects to something other than http or https"),
        ("/short.mp3", "the connection broke"),
        ("/endless.mp3", "larger than 1 MB"),
        ("/drip.mp3", "took more than 0.5 s"),
    ],
)
def test_a_download_that_fails_names_field_and_reason_and_no_secret(web, tmp_path, path, reason):
    url = web.replace("//", "//user7:hunter2@") + path + "?X-Amz-Signature=S3CR3T"
    with pytest.raises(InputError) as caught:
        fetch(url, "a.mp3", Limits(megabytes=1, seconds=0.5))
    message = str(caught.value)
    assert message.startswith("input_audio='http://127.0.0.1/")
    assert reason in message
    assert "Send a URL that is publicly readable" in message
    assert not [secret for secret in SECRETS if secret in message]
    assert caught.value.__cause__ is None
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://nowhere.invalid/a.mp3", "the host cannot be reached"),
        ("http://127.0.0.1:9/a.mp3", "the host cannot be reached"),
        ("http://[/a.mp3", "not valid"),
    ],
)
def test_hosts_that_cannot_be_reached(web, tmp_path, url, reason):
    with pytest.raises(InputError, match=reason):
        fetch(url, "a.mp3", Limits())
    assert left(tmp_path) == []


def test_an_invalid_certificate_is_named(web, tmp_path):

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write_certificate(tmp_path / "tls"))
    refused = pytest.raises(InputError, match="its certificate is not valid")
    with listening(Server, context) as url, refused:
        fetch(f"{url}/song.mp3", "a.mp3", Limits())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001"])
def test_private_addresses_are_refused_before_anything_is_sent(web, tmp_path, host):
    Server.agents.clear()
    url = web.replace("127.0.0.1", host)
    with pytest.raises(InputError, match=r"its address is not public|cannot be reached"):
        fetch(f"{url}/song.mp3", "a.mp3", Limits(private=False))
    assert Server.agents == []
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "fe80::1",
     "::ffff:10.0.0.1", "0.0.0.0", "100.64.0.1"],
)  # fmt: skip
def test_which_addresses_are_private(address):
    with pytest.raises(input_downloads.DownloadError, match="not public"):
        input_downloads._check_public(address)
    input_downloads._check_public("8.8.8.8")
    input_downloads._check_public("2606:4700::1111")


def test_limits_come_from_the_environment():
    assert Limits.of({}) == Limits()
    given = {"INPUT_MAX_MB": "5", "INPUT_MAX_SECONDS": "1.5", "INPUT_PRIVATE_ADDRESSES": "refuse"}
    assert Limits.of(given) == Limits(5, 1.5, private=False)
    with pytest.raises(MusicGenError, match="INPUT_MAX_MB='many' is not a number"):
        Limits.of({"INPUT_MAX_MB": "many"})
    with pytest.raises(MusicGenError, match="INPUT_PRIVATE_ADDRESSES='no': set allow or refuse"):
        Limits.of({"INPUT_PRIVATE_ADDRESSES": "no"})


@pytest.fixture
def cog_types(monkeypatch):
    from cog import types

    monkeypatch.setattr(types.URLPath, "convert", types.URLPath.convert)
    monkeypatch.setattr(types.Path, "validate", types.Path.validate)
    input_downloads.install(Limits(megabytes=1))
    return types


def test_cog_fetches_through_it(web, cog_types):
    path = cog_types.Path.validate(f"{web}/song.mp3").convert()
    assert isinstance(path, cog_types.Path)
    assert path.read_bytes() == b"a song"
    assert path.suffix == ".mp3"
    with pytest.raises(InputError, match="HTTP 404"):
        cog_types.Path.validate(f"{web}/status/404").convert()


def test_data_uris_are_read_as_ever_and_broken_ones_are_named(web, cog_types):
    content = base64.b64encode(b"a song").decode()
    path = cog_types.Path.validate(f"data:audio/webm;codecs=opus;base64,{content}").convert()
    assert path.read_bytes() == b"a song"
    with pytest.raises(InputError, match=r"input_audio='data:.*not a valid data URI"):
        cog_types.Path.validate("data:audio/wav;base64,abc")
