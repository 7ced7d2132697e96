"""Weights given as the https address of a tar, as Replicate passes it to setup()."""

import io
import re
import ssl
import subprocess
import tarfile
from http.server import BaseHTTPRequestHandler
from random import Random

import pytest
from certificates import write_certificate
from web import serving

from musicgen.checkpoints import checkpoint as weights
from musicgen.checkpoints import folders
from musicgen.commands.server import ROOT
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a key and a certificate for the loopback address."""
    return write_certificate(tmp_path_factory.mktemp("tls"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        path = self.path.partition("?")[0]
        if location := self.server.redirects.get(path):
            self.send_response(302)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = self.server.files.get(path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write((body or b"")[: self.server.cut])

    def log_message(self, *_):
        """Log nothing."""


@pytest.fixture
def web(certificate, tmp_path, monkeypatch):
    """An https server on loopback that this process trusts. It serves `web.files` and
    `web.redirects`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(folders, "WEIGHTS", tmp_path / "weights")
    with serving(Handler, context) as server:
        server.files, server.redirects, server.requests, server.cut = {}, {}, 0, None
        yield server


def tar_of(folder, name=".", mode="w"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        tar.add(folder, name)
    return data.getvalue()


def tar_with(*members):
    """A tar of empty entries (name, type, link target)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return data.getvalue()


@pytest.mark.parametrize("name", [".", "model", "a/b/model"])
def test_weights_can_be_the_address_of_a_tar(web, checkpoints, name):
    web.files["/weights.tar"] = tar_of(checkpoints["text"], name)
    assert MusicGen.load(f"{web.url}/weights.tar?signature=x", "cpu").has_melody is False
    folders.resolve(f"{web.url}/weights.tar?signature=x")
    assert web.requests == 1  # the second call uses the unpacked folder


def test_the_tar_that_docs_deployment_makes_is_served(web, checkpoints, tmp_path):
    page = (ROOT / "docs" / "deployment.md").read_text()
    [command] = re.findall(r"`(tar -C weights/checkpoint [^`]*)`", page)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "checkpoint").symlink_to(checkpoints["text"])
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    web.files["/weights.tar"] = (tmp_path / "weights.tar").read_bytes()
    assert weights.open_checkpoint(folders.resolve(f"{web.url}/weights.tar")).chroma is None


def test_a_tar_may_be_compressed(web, checkpoints):
    web.files["/weights.tgz"] = tar_of(checkpoints["text"], mode="w:gz")
    assert weights.open_checkpoint(folders.resolve(f"{web.url}/weights.tgz")).chroma is None


OUTSIDE = {
    "parent": [("../evil", tarfile.REGTYPE, "")],
    "absolute link": [("evil", tarfile.SYMTYPE, "/etc/passwd")],
    "link and through it": [
        ("out", tarfile.SYMTYPE, "../.."),
        ("out/evil", tarfile.REGTYPE, ""),
    ],
    "hard link": [("evil", tarfile.LNKTYPE, "../../evil")],
    "device": [("evil", tarfile.CHRTYPE, "")],
    "pipe": [("evil", tarfile.FIFOTYPE, "")],
    "link to the inside": [("a/b", tarfile.REGTYPE, ""), ("a/evil", tarfile.SYMTYPE, "b")],
    "hard link to the inside": [("a/b", tarfile.REGTYPE, ""), ("a/evil", tarfile.LNKTYPE, "a/b")],
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_no_file_is_written_outside_of_the_folder(web, tmp_path, case):
    web.files["/evil.tar"] = tar_with(*OUTSIDE[case])
    with pytest.raises(WeightsError, match=r"evil\.tar could not be fetched and unpacked"):
        folders.resolve(f"{web.url}/evil.tar")
    assert not list(tmp_path.rglob("*evil*"))
    assert list((tmp_path / "weights").iterdir()) == []


def test_an_error_hides_the_signature_and_no_file_is_left(web, checkpoints, tmp_path):
    web.files["/text.tar"] = tar_of(checkpoints["text"])
    web.files["/none.tar"] = tar_with(("README", tarfile.REGTYPE, ""))
    web.files["/two.tar"] = tar_with(
        ("a/manifest.json", tarfile.REGTYPE, ""), ("b/state_dict.bin", tarfile.REGTYPE, "")
    )
    web.files["/text.zip"] = b"PK not a tar"
    cases = {
        "/absent.tar": "HTTP Error 404",
        "/text.zip": "could not be fetched",
        "/none.tar": "holds no checkpoint",
        "/two.tar": "holds 2 checkpoints",
    }
    for path, message in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            folders.resolve(f"{web.url}{path}?signature=secret")
        assert "secret" not in str(caught.value)
    with tarfile.open(fileobj=io.BytesIO(web.files["/text.tar"])) as tar:
        between_files = tar.getmember("./state_dict.bin").offset
    for web.cut in (1_000_000, between_files):
        with pytest.raises(WeightsError, match="could not be fetched"):
            folders.resolve(f"{web.url}/text.tar")
    assert list((tmp_path / "weights").iterdir()) == []


def test_other_schemes_are_refused():
    for url in ("http://example.com/a.tar", "file:///etc/passwd", "gs://bucket/a.tar"):
        with pytest.raises(WeightsError, match="over https only"):
            folders.resolve(url)


def test_an_address_is_shown_with_its_port_and_without_its_secrets():
    with pytest.raises(WeightsError, match=r"^http://host:81/a\.tar: weights"):
        folders.resolve("http://me:secret@host:81/a.tar?signature=S")


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_a_redirect_to_another_scheme_is_refused(web, checkpoints, tmp_path, scheme):
    """The target would send the same tar, over a connection that anyone on the path can change."""
    with serving(Handler) as plain:
        plain.files, plain.redirects, plain.requests, plain.cut = {}, {}, 0, None
        plain.files["/text.tar"] = tar_of(checkpoints["text"])
        web.redirects["/a.tar"] = f"{web.url}/b.tar"
        web.redirects["/b.tar"] = f"{scheme}://127.0.0.1:{plain.server_port}/text.tar"
        with pytest.raises(
            WeightsError, match=r"a\.tar could not .*(https only|not allowed)"
        ) as caught:
            folders.resolve(f"{web.url}/a.tar?signature=secret")
    assert "secret" not in str(caught.value)
    assert plain.requests == 0
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_redirect_to_https_is_followed(web, checkpoints):
    web.files["/text.tar"] = tar_of(checkpoints["text"])
    web.redirects["/a.tar"] = f"{web.url}/text.tar"
    assert weights.open_checkpoint(folders.resolve(f"{web.url}/a.tar"))


def test_an_untrusted_certificate_is_refused(web, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(WeightsError, match="certificate verify failed"):
        folders.resolve(f"{web.url}/weights.tar")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_member_larger_than_the_free_disk_is_refused_by_its_header(web, tmp_path, mode):
    """The data after the header is much shorter."""
    member = tarfile.TarInfo("state_dict.bin")
    member.size = 2**60
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
        tar.fileobj.write(bytes(10**6))
    web.files["/bomb.tar"] = data.getvalue()
    with pytest.raises(WeightsError, match=r"bomb\.tar could not be .* more than are free"):
        folders.resolve(f"{web.url}/bomb.tar")
    assert list((tmp_path / "weights").iterdir()) == []


def tar_of_members(members, kind=tarfile.PAX_FORMAT, headers=None):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz", format=kind, pax_headers=headers) as tar:
        for member in members:
            tar.addfile(member)
    return data.getvalue()


def member(name="a", kind=tarfile.REGTYPE, headers=None):
    made = tarfile.TarInfo(name)
    made.type, made.pax_headers = kind, headers or {}
    return made


LONG = "a" * (2**20 + 1)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
# What tarfile reads into memory, or keeps there, while a header is read.
HEADERS = {
    "a long comment": lambda: tar_of_members([member(headers={"comment": LONG})]),
    "a long name": lambda: tar_of_members([member(LONG)], tarfile.GNU_FORMAT),
    "a long global comment": lambda: tar_of_members([member()], headers={"comment": LONG}),
    "many members": lambda: tar_of_members([member(str(k)) for k in range(1_010)]),
    "a sparse file": lambda: tar_of_members([member(kind=tarfile.GNUTYPE_SPARSE)]),
    "a sparse file of pax": lambda: tar_of_members([member(headers=SPARSE)]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_tar_with_large_headers_is_refused(web, tmp_path, case):
    web.files["/large.tar"] = HEADERS[case]()
    assert len(web.files["/large.tar"]) < 200_000
    message = r"large\.tar could not be fetched.*(a header|global headers|members|a sparse file)"
    with pytest.raises(WeightsError, match=message):
        folders.resolve(f"{web.url}/large.tar")
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_damaged_tar_is_refused_whole(web, tmp_path, mode):
    """With any bit flipped, the result is all files or an error, never some of the files."""
    folder = tmp_path / "made"
    (folder / "t5-base").mkdir(parents=True)
    contents = {name: Random(name).randbytes(700) for name in ("state_dict.bin", "t5-base/x")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    whole = tar_of(folder, mode=mode)
    refused = loaded = 0
    for seed in range(60):
        rng, data = Random(seed), bytearray(whole)
        data[rng.randrange(min(len(data), 2500))] ^= 1 << rng.randrange(8)
        web.files[f"/{seed}.tar"] = bytes(data)
        try:
            found = folders.resolve(f"{web.url}/{seed}.tar")
        except WeightsError as exc:
            refused += f"/{seed}.tar" in str(exc)
        else:
            sizes = [file.stat().st_size for file in found.rglob("*") if file.is_file()]
            assert sizes == [700, 700], seed
            loaded += 1
    assert refused + loaded == 60
    assert refused > 5
    assert not [path for path in (tmp_path / "weights").iterdir() if "fetching" in path.name]
