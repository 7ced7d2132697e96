"""Input files are fetched within limits, and what fails is explained without the URL's secrets."""

import base64
import gzip
import socket
import ssl
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest
from certificates import write_certificate
from web import listening

from musicgen.errors import InputError, MusicGenError
from musicgen.serving import data_uris, input_downloads, sessions
from musicgen.serving.input_downloads import USER_AGENT, Limits, fetch

# Sent compressed, whatever the client asks for.
GZIPPED = {"/gzipped.wav": b"a song" * 5000, "/zeros.wav": bytes(200_000)}
SECRETS = ("user7", "hunter2", "X-Amz-Signature", "S3CR3T")


class Server(BaseHTTPRequestHandler):
    """Each path behaves in its own way."""

    agents: ClassVar[list[str]] = []
    encodings: ClassVar[list[str]] = []
    elsewhere = ""

    def do_GET(self):
        self.agents.append(self.headers["User-Agent"])
        self.encodings.append(self.headers["Accept-Encoding"])
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
        if path in GZIPPED:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if path in GZIPPED:
            return self.wfile.write(gzip.compress(GZIPPED[path]))
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


def test_a_file_that_comes_compressed_is_unpacked(web):
    fetched = fetch(f"{web}/gzipped.wav", "a.wav", Limits(megabytes=1))
    assert fetched.read_bytes() == GZIPPED["/gzipped.wav"]


def test_files_are_asked_for_uncompressed(web):
    Server.encodings.clear()
    fetch(f"{web}/song.mp3", "song.mp3", Limits())
    assert Server.encodings == ["identity"]


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
        ("/endless.mp3", "it is larger than 1 MB"),
        ("/zeros.wav", "it is compressed and larger than 0.05 MB"),
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


@pytest.mark.parametrize(
    ("uri", "content", "suffix"),
    [
        ("data:,a%20song", b"a song", ""),
        ("data:audio/mpeg,a%20song", b"a song", ".mp3"),
        ("DATA:Audio/MPEG;BASE64,YSBzb25n", b"a song", ".mp3"),
        ("data:audio/mpeg;codecs=mp3;base64,YSBzb25n", b"a song", ".mp3"),
        ("data:audio/x-nothing;base64,YSBz%62%32%35n", b"a song", ""),
        ("data:;base64,YSBz\nb25n", b"a song", ""),
        ("data:text/plain;charset=utf-8,a,b;c", b"a,b;c", ".txt"),
    ],
)
def test_a_data_uri_is_its_content(uri, content, suffix):
    assert data_uris.is_data_uri(uri)
    assert data_uris.read(uri) == (content, suffix)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("data:", "no comma"),
        ("data:" + "a;" * 10_000 + "base64,YSBz", "no comma in its first 1,000 characters"),
        ("data:audio/wav," + "%41" * (data_uris.MAX_ESCAPES + 1), "percent signs; send it as base"),
        ("data:audio/wav;base64,abc", "padding"),
        ("data:audio/wav;base64,\ud800", "surrogates not allowed"),
    ],
)
def test_a_data_uri_that_is_not_valid_or_takes_long_is_named(cog_types, uri, problem):
    with pytest.raises(InputError, match=rf"input_audio='data:.*not a valid data URI.*{problem}"):
        cog_types.Path.validate(uri)


def test_receiving_data_uris_takes_memory_in_proportion_and_keeps_none(cog_types):
    """Parts of the standard library keep the last URIs that they have seen."""
    tracemalloc.start()
    for number in range(20):
        content = number.to_bytes(4, "big") * 250_000
        uri = "data:audio/wav;base64," + base64.b64encode(content).decode()
        path = cog_types.Path.validate(uri).convert()
        assert path.read_bytes() == content
        path.unlink()
    del content, uri, path
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1e6
    assert peak < 10e6


@pytest.mark.parametrize(
    "url",
    [
        "http://" + "a." * 100_000 + "/a.wav",
        "http://127.0.0.1:9/" + "%41" * 100_000,
        "https://127.0.0.1:9/?" + "a=b&" * 100_000,
        "ftp://" + "a" * 100_000,
    ],
)
def test_a_long_url_is_refused_before_it_is_parsed(cog_types, url, monkeypatch):
    monkeypatch.setattr(cog_types, "get_filename", None)
    with pytest.raises(InputError, match=r"input_audio='\w+://.*more than 8,192 characters"):
        cog_types.Path.validate(url)


def test_other_values_are_paths_and_stay_paths(cog_types):
    path = cog_types.Path.validate("/etc/passwd")
    assert type(path) is cog_types.Path
    assert cog_types.Path.validate(path) is path
    with pytest.raises(InputError, match=r"input_audio='http://\[': is not a valid URL"):
        cog_types.Path.validate("http://[")


@contextmanager
def trickling(head=b""):
    """The port of a server that sends `head`, then a byte now and then, whatever it is asked."""
    ended = threading.Event()

    def send(connection):
        with connection, suppress(OSError):
            connection.sendall(head)
            while not ended.wait(0.05):
                connection.sendall(b"\x00")

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=send, args=[server.accept()[0]]).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("scheme", "head"),
    [
        ("https", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"),  # a TLS message of 16 kB begins
        ("http", b"HTTP/1.1 200 OK\r\nX-Long: "),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
    ids=["TLS handshake", "headers", "body", "body of known length", "length of a chunk"],
)
def test_an_address_that_sends_slowly_is_left_at_the_deadline(web, tmp_path, scheme, head):
    with trickling(head) as port, pytest.raises(InputError, match=r"it took more than 0\.5 s"):
        fetch(f"{scheme}://127.0.0.1:{port}/a.mp3", "a.mp3", Limits(seconds=0.5))
    assert left(tmp_path) == []


def test_a_redirect_at_the_deadline_does_not_begin_another_download(web, monkeypatch, tmp_path):
    with trickling(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        monkeypatch.setattr(Server, "elsewhere", f"http://127.0.0.1:{port}/")
        monkeypatch.setattr(sessions.Deadline, "_shut_down", lambda self: None)  # it has run before
        monkeypatch.setattr(Server, "send_to", after(Server.send_to, 0.6))
        with pytest.raises(InputError, match=r"it took more than 0\.5 s"):
            fetch(f"{web}/elsewhere", "a.mp3", Limits(seconds=0.5))
    assert left(tmp_path) == []


def after(function, seconds):
    """A function that waits before it does what another does."""

    def late(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    return late


def test_a_host_of_many_dead_addresses_is_left_at_the_deadline(monkeypatch, tmp_path):
    """A full queue of connections drops what comes, as a firewall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        monkeypatch.setattr(sessions, "_addresses", lambda host, port: ["127.0.0.1"] * 50)
        with pytest.raises(InputError, match=r"it took more than 0\.5 s"):
            fetch(f"http://many.invalid:{port}/a.mp3", "a.mp3", Limits(seconds=0.5))
        for one in waiting:
            one.close()


def test_the_next_address_of_a_host_is_used_if_the_first_refuses(web, monkeypatch):
    monkeypatch.setattr(sessions, "_addresses", lambda host, port: ["127.0.0.2", "127.0.0.1"])
    port = web.rpartition(":")[2]
    assert fetch(f"http://two.invalid:{port}/song.mp3", "a.mp3", Limits()).read_bytes() == b"a song"
