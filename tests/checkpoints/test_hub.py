"""`scripts/weights pull` with the hub's real client and a local imitation of the hub."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub as loopback
import huggingface_hub.constants
import pytest
import tiny_checkpoints
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers_musicgen import write_transformers

from musicgen.checkpoints import hub, pull
from musicgen.checkpoints.checkpoint import (
    CODEC_FILE,
    DEMUCS_FILE,
    DIFFUSION_FILE,
    open_checkpoint,
)
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import read_manifest
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen
from musicgen.request import Request

SONGSTARTER = "nateraw/musicgen-songstarter-v0.2"
SMALL = "facebook/musicgen-small"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Small random checkpoints in the hub's layout: name -> (folder, licence on its card)."""
    root = tmp_path_factory.mktemp("hub")
    found = {}

    def repo(name, licence=None):
        folder = root / name
        folder.mkdir(parents=True)
        found[name] = (folder, licence)
        return folder

    tiny_checkpoints.write_checkpoint(root / "mono", "text")
    tiny_checkpoints.write_checkpoint(root / "stereo", "stereo-melody")
    small = repo(SMALL, "cc-by-nc-4.0")
    songstarter = repo(SONGSTARTER)
    for name in (LM_FILE, CODEC_FILE):
        shutil.copy(root / "mono" / name, small)
    shutil.copy(root / "stereo" / LM_FILE, songstarter)
    torch.save({"pretrained": "facebook/encodec_32khz"}, songstarter / CODEC_FILE)
    shutil.copytree(
        root / "mono" / "t5-base", repo("google-t5/t5-base", "apache-2.0"), dirs_exist_ok=True
    )
    melody = repo("facebook/musicgen-melody-hf", "cc-by-nc-4.0")
    model = write_transformers(melody, "melody")
    (melody / DEMUCS_FILE).unlink()
    (melody / "preprocessor_config.json").write_text('{"num_chroma": 12}')
    encodec = repo("facebook/encodec_32khz")
    model.audio_encoder.save_pretrained(encodec)
    loopback.write_demucs(repo("adefossez/HTDemucs", "mit"), root / "stereo" / DEMUCS_FILE)
    (repo("facebook/multiband-diffusion") / DIFFUSION_FILE).write_bytes(b"four bands")
    return found


@pytest.fixture
def replaced(server, tmp_path):
    """Replaces a repository of the hub by a copy, which the test may change."""

    def replace(name):
        folder, licence = server.repositories[name]
        copy = shutil.copytree(folder, tmp_path / "changed" / name)
        server.repositories[name] = (copy, licence)
        return copy

    return replace


def test_all_dependencies_of_a_model_are_fetched(server, tmp_path, capsys):
    manifest = pull.pull(SONGSTARTER, tmp_path / "out", diffusion=True)
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.name == "musicgen-songstarter-v0.2"
    assert {source.name: source.licence for source in manifest.sources} == {
        SONGSTARTER: "CC-BY-NC-4.0",
        "facebook/encodec_32khz": "CC-BY-NC-4.0",
        "google-t5/t5-base": "Apache-2.0",
        "adefossez/HTDemucs": "MIT",
        "facebook/multiband-diffusion": "CC-BY-NC-4.0",
    }
    assert {source.revision for source in manifest.sources} == {loopback.REVISION}
    assert (tmp_path / "out" / DIFFUSION_FILE).read_bytes() == b"four bands"
    assert "licence CC-BY-NC-4.0" in (said := capsys.readouterr().out)
    assert "not for commercial use" in said
    model = MusicGen.load(tmp_path / "out", "cpu")
    assert model.conditioner.melody.separator
    [wav] = model.generate(Request(prompt="hip hop, 140 bpm", duration=1, seed=1)).wavs
    assert wav.shape == (2, 32000)
    assert not (tmp_path / "out" / ".download").exists()


def test_a_text_model_fetches_no_other_files(server, tmp_path):
    pull.pull(SMALL, tmp_path / "out")
    asked = {name for name, _ in server.requests}
    assert asked == {
        LM_FILE,
        CODEC_FILE,
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert open_checkpoint(tmp_path / "out").chroma is None


def test_a_transformers_repository_is_fetched_and_converted(server, tmp_path):
    pull.pull("facebook/musicgen-melody-hf", tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.chroma["n_chroma"] == 12
    with safe_open(checkpoint.demucs_file, "pt") as file:
        assert file.metadata()["klass"] == "demucs.htdemucs.HTDemucs"


def test_a_cut_connection_is_continued(server, tmp_path, monkeypatch):
    # The client writes whole chunks; an incomplete one is lost with the connection.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server.cuts = {LM_FILE: [1_000_000, 500_000], CODEC_FILE: [7]}
    pull.pull(SMALL, tmp_path / "out")
    starts = [first for name, first in server.requests if name == LM_FILE]
    assert starts == [0, 1_000_000, 1_500_000]


def test_a_killed_pull_continues_its_partial_file(server, tmp_path, monkeypatch):
    get = hub.http_get

    def killed(url, stream, **options):
        if url.endswith(LM_FILE):
            stream.write((server.repositories[SMALL][0] / LM_FILE).read_bytes()[:123_456])
            raise KeyboardInterrupt
        get(url, stream, **options)

    monkeypatch.setattr(hub, "http_get", killed)
    with pytest.raises(KeyboardInterrupt):
        pull.pull(SMALL, tmp_path / "out")
    monkeypatch.setattr(hub, "http_get", get)
    pull.pull(SMALL, tmp_path / "out")
    assert [first for name, first in server.requests if name == LM_FILE] == [123_456]


def test_a_pull_that_was_interrupted_late_fetches_nothing_twice(server, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pull, "convert", broken)
        with pytest.raises(KeyboardInterrupt):
            pull.pull(SMALL, tmp_path / "out")
    with pytest.raises(WeightsError, match="not a MusicGen checkpoint"):
        open_checkpoint(tmp_path / "out")
    server.requests.clear()
    pull.pull(SMALL, tmp_path / "out")
    assert server.requests == []


@pytest.mark.parametrize("name", [LM_FILE, "tokenizer.json"])
def test_a_file_that_arrives_damaged_is_refused_and_fetched_again(server, tmp_path, name):
    server.damaged = {name}
    with pytest.raises(WeightsError, match=f"{name} arrived damaged"):
        pull.pull(SMALL, tmp_path / "out")
    server.damaged = set()
    pull.pull(SMALL, tmp_path / "out")


def test_a_partial_file_of_another_revision_is_not_continued(server, replaced, tmp_path):
    server.cuts = {LM_FILE: [1000]}
    server.damaged = {CODEC_FILE}
    with pytest.raises(WeightsError, match=CODEC_FILE):
        pull.pull(SMALL, tmp_path / "out")
    part = next((tmp_path / "out" / ".download").glob(f"{LM_FILE}*"))
    part.rename(part.with_name(f"{LM_FILE}.0000000000000000.part"))
    server.damaged = set()
    server.requests.clear()
    pull.pull(SMALL, tmp_path / "out")
    assert (LM_FILE, 0) in server.requests


def test_a_missing_repository_is_named(server, tmp_path):
    with pytest.raises(WeightsError, match="no model 'facebook/musicgen-huge'"):
        pull.pull("facebook/musicgen-huge", tmp_path / "out")
    with pytest.raises(WeightsError, match="no model 'not/a/name'"):
        pull.pull("not/a/name", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("musicgen-small", "Did you mean facebook/musicgen-small?"),
        ("musicgen-stereo-melody", "Did you mean facebook/musicgen-stereo-melody?"),
        ("musicgen-songstarter", "Did you mean nateraw/musicgen-songstarter-v0.2?"),
        ("not a name", "There is no file or folder 'not a name'"),
        ("musicgen-style", "style conditioner is not implemented"),
        ("facebook/musicgen-style", "style conditioner is not implemented"),
    ],
)
def test_a_name_that_cannot_be_pulled_is_refused_without_asking_the_hub(
    server, tmp_path, name, message
):
    with pytest.raises(WeightsError, match=re.escape(message)):
        pull.pull(name, tmp_path / "out")
    assert server.requests == []
    assert not (tmp_path / "out").exists()


def test_the_published_models_are_those_of_the_table():
    page = (ROOT / "weights" / "README.md").read_text()
    rows = re.findall(r"^\| `(\S+/musicgen-\S+)`((?:, `-\w+`)*)", page, re.MULTILINE)
    listed = set()
    for name, further in rows:
        stem = name.rpartition("-")[0]
        listed |= {name, *(stem + suffix for suffix in re.findall(r"-\w+", further))}
    assert listed == set(pull.PUBLISHED.values())


def test_a_missing_file_is_named(replaced, tmp_path):
    (replaced(SMALL) / CODEC_FILE).unlink()
    with pytest.raises(WeightsError, match=rf"{SMALL} on the hub has no {CODEC_FILE}"):
        pull.pull(SMALL, tmp_path / "out")


def test_a_text_encoder_may_be_a_pickle(replaced, tmp_path):
    folder = replaced("google-t5/t5-base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pull.pull(SMALL, tmp_path / "out")
    assert MusicGen.load(tmp_path / "out", "cpu")


def test_a_demucs_of_several_models_is_refused(replaced, tmp_path):
    (replaced("adefossez/HTDemucs") / "htdemucs.yaml").write_text("models: [a, ../b]")
    with pytest.raises(WeightsError, match="not one model"):
        pull.pull(SONGSTARTER, tmp_path / "out")


def test_no_network_and_offline_mode_name_the_remedy(server, tmp_path, monkeypatch):
    loopback.set_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="run the command again to continue"):
        pull.pull(SMALL, tmp_path / "out")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        pull.pull(SMALL, tmp_path / "out")


def test_a_checkpoint_is_never_overwritten(server, tmp_path):
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(WeightsError, match="remove it first"):
        pull.pull(SMALL, tmp_path)


def test_a_disk_that_is_too_small_is_found_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=r"needs 0\.01 GB and has 0\.01 GB free"):
        pull.pull(SMALL, tmp_path / "out")
    assert server.requests == []


def pull_command(server, folder, model=SMALL, limit=None, prefix=()):
    """Run `scripts/weights pull` in a new process, with files of at most `limit` bytes."""
    code = "from musicgen.commands.cli import main; main()"
    if limit:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1)); {code}"
    return subprocess.run(
        [
            *prefix,
            *(sys.executable, "-W", "ignore", "-c", code),
            *("weights", "pull", model, str(folder)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )


def test_a_file_system_that_is_too_small_is_found_before_the_download(server, tmp_path):
    """The folder is a file system of 2 MB, mounted in a new namespace."""
    mount = f"mount -t tmpfs -o size=2m none '{tmp_path}'"
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*namespace, mount]).returncode:
        pytest.skip("mounting a file system is not allowed here")
    prefix = [*namespace, f'{mount} && exec "$0" "$@"']
    done = pull_command(server, tmp_path / "out", prefix=prefix)
    assert done.returncode == 1
    assert re.search(r"needs 0\.01 GB and has 0\.00 GB free.*Free some space", done.stderr), (
        done.stderr
    )
    assert server.requests == []


def test_a_disk_that_fills_up_keeps_the_partial_file(server, tmp_path, capsys):
    """A limit on the file size imitates the full disk: the same error at the same place."""
    done = pull_command(server, tmp_path / "out", limit=2_000_000)
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert "Traceback" not in done.stderr
    [part] = (tmp_path / "out" / ".download").glob("*.part")
    assert part.stat().st_size == 2_000_000
    pull.pull(SMALL, tmp_path / "out")
    assert (LM_FILE, 2_000_000) in server.requests
    assert "state_dict.bin: 100%" in capsys.readouterr().err  # the progress bar
    assert "licence CC-BY-NC-4.0" in done.stdout
