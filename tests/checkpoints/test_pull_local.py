"""`scripts/weights pull` completes a local folder or tar, as trainers and Replicate write them."""

import os
import shutil
import tarfile

import hub as loopback
import pytest
import tiny_checkpoints
import torch
from transformers_musicgen import write_transformers

from musicgen.checkpoints import pull
from musicgen.checkpoints.checkpoint import CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen
from musicgen.request import Request

REQUEST = Request(prompt="x", duration=1, seed=3)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, checkpoints):
    """The models that others depend on: name -> (folder, licence)."""
    root = tmp_path_factory.mktemp("hub")
    names = ("facebook/encodec_32khz", "google-t5/t5-base", "adefossez/HTDemucs")
    folders = {name: root / name for name in names}
    model = write_transformers(root / "model", "text")
    model.audio_encoder.save_pretrained(folders["facebook/encodec_32khz"])
    shutil.copytree(checkpoints["text"] / "t5-base", folders["google-t5/t5-base"])
    loopback.write_demucs(folders["adefossez/HTDemucs"], checkpoints["melody"] / DEMUCS_FILE)
    return {name: (folder, None) for name, folder in folders.items()}


@pytest.fixture
def tuned(checkpoints, tmp_path):
    """What a trainer exports: the language model, and the name of an EnCodec."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    shutil.copy(checkpoints["melody"] / LM_FILE, folder)
    torch.save({"pretrained": "facebook/encodec_32khz"}, folder / CODEC_FILE)
    return folder


def asked(server):
    return {name for name, _ in server.requests}


def test_a_folder_is_completed(server, tuned, tmp_path, capsys):
    manifest = pull.pull(str(tuned), tmp_path / "out")
    assert manifest.name == "my-model"
    assert {source.name for source in manifest.sources} == {
        "my-model",
        "facebook/encodec_32khz",
        "google-t5/t5-base",
        "adefossez/HTDemucs",
    }
    assert "completing a local model" in capsys.readouterr().out
    model = MusicGen.load(tmp_path / "out", "cpu")
    model.load_all()
    assert model.generate(REQUEST).wavs[0].shape == (1, 32000)
    assert {path.name for path in tuned.iterdir()} == {LM_FILE, CODEC_FILE}
    assert not (tmp_path / "out" / pull.DOWNLOADS).exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", [".", "trained/weights"])
def test_a_tar_is_completed(server, tuned, tmp_path, mode, name):
    path = tmp_path / ("tuned.tar.gz" if mode == "w:gz" else "tuned.tar")
    with tarfile.open(path, mode) as tar:
        tar.add(tuned, name)
    assert pull.pull(str(path), tmp_path / "out").name == "tuned"
    assert MusicGen.load(tmp_path / "out", "cpu").has_melody


def test_only_what_is_missing_is_fetched(server, checkpoints, tmp_path):
    source = shutil.copytree(checkpoints["melody"], tmp_path / "source")
    tiny_checkpoints.write_diffusion(source)
    shutil.rmtree(source / "t5-base")
    manifest = pull.pull(str(source), tmp_path / "out", diffusion=True)
    assert asked(server) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert DIFFUSION_FILE in manifest.files
    shutil.copytree(server.repositories["google-t5/t5-base"][0], source / "t5-base")
    expected = MusicGen.load(source, "cpu").generate(REQUEST).wavs[0]
    assert torch.equal(MusicGen.load(tmp_path / "out", "cpu").generate(REQUEST).wavs[0], expected)


def test_a_folder_without_any_encodec_gets_the_published_one(server, tuned, tmp_path, capsys):
    (tuned / CODEC_FILE).unlink()
    pull.pull(str(tuned), tmp_path / "out")
    assert "using facebook/encodec_32khz" in capsys.readouterr().out
    assert MusicGen.load(tmp_path / "out", "cpu").codec.sample_rate == 32000


def test_a_transformers_melody_model_gets_demucs(server, tmp_path):
    write_transformers(tmp_path / "hf", "melody")
    (tmp_path / "hf" / DEMUCS_FILE).unlink()
    pull.pull(str(tmp_path / "hf"), tmp_path / "out")
    assert asked(server) == {"htdemucs.yaml", "955717e8.safetensors"}
    MusicGen.load(tmp_path / "out", "cpu").load_all()


def test_an_interrupted_pull_of_a_folder_continues(server, tuned, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pull, "convert", broken)
        with pytest.raises(KeyboardInterrupt):
            pull.pull(str(tuned), tmp_path / "out")
    server.requests.clear()
    pull.pull(str(tuned), tmp_path / "out")
    assert server.requests == []


def test_a_lora_adapter_is_refused(server, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    with pytest.raises(WeightsError, match=r"LoRA adapter of x/y.*merge_and_unload"):
        pull.pull(str(tmp_path / "adapter"), tmp_path / "out")
    server.repositories["me/adapter"] = (tmp_path / "adapter", None)
    with pytest.raises(WeightsError, match=r"LoRA adapter of x/y.*merge_and_unload"):
        pull.pull("me/adapter", tmp_path / "out")


def test_other_folders_are_refused(server, checkpoints, tmp_path):
    with pytest.raises(WeightsError, match=r"holds no model: neither state_dict\.bin"):
        pull.pull(str(tmp_path), tmp_path / "out")
    convert(checkpoints["text"], tmp_path / "converted")
    with pytest.raises(WeightsError, match="is converted already"):
        pull.pull(str(tmp_path / "converted"), tmp_path / "out")
    with pytest.raises(WeightsError, match="holds a checkpoint already"):
        pull.pull(str(checkpoints["text"]), checkpoints["text"])


def test_a_hostile_tar_writes_nothing_outside(server, tmp_path):
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "inside" / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../../evil"))
    with pytest.raises(WeightsError, match=r"evil\.tar could not be unpacked"):
        pull.pull(str(tmp_path / "inside" / "evil.tar"), tmp_path / "inside" / "out")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name == "evil"]
