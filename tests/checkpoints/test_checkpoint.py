"""Opening a checkpoint folder finds and names damage, and does not hold files in memory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_checkpoints
import torch
from safetensors.torch import load_file, save_file

from musicgen.checkpoints.checkpoint import CODEC_FILE, open_checkpoint
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.checkpoints.manifest import describe_file, read_manifest
from musicgen.checkpoints.tensors import TensorFile, write_tensors
from musicgen.commands import weights as commands
from musicgen.commands.verify import verify
from musicgen.errors import WeightsError
from musicgen.pipeline import MusicGen


@pytest.fixture(scope="module")
def upstream(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("upstream") / "melody"
    shutil.copytree(checkpoints["melody"], folder)
    tiny_checkpoints.write_diffusion(folder)
    return folder


@pytest.fixture(scope="module")
def original(upstream, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "melody"
    convert(upstream, folder)
    return folder


@pytest.fixture
def converted(original, tmp_path):
    return shutil.copytree(original, tmp_path / "converted")


FILES = (
    "lm.safetensors",
    "codec.safetensors",
    "htdemucs.safetensors",
    "t5-base/model.safetensors",
    "t5-base/tokenizer.json",
    "mbd_musicgen_32khz.th",
)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def rename(path):
    path.rename(path.with_suffix(".old"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, rename])
def test_truncated_and_renamed_files_are_named_at_load(converted, name, damage):
    damage(converted / name)
    with pytest.raises(WeightsError, match=str(converted / name)):
        open_checkpoint(converted)


@pytest.mark.parametrize("name", FILES)
def test_verify_finds_a_changed_byte(converted, name):
    path = converted / name
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    open_checkpoint(converted)  # the size is right, and loading does not compute hashes
    with pytest.raises(WeightsError, match=f"{path} was changed"):
        list(verify(converted))


def test_a_tensor_of_another_shape_is_named_at_load(converted):
    path = converted / "lm.safetensors"
    state = load_file(path)
    key = "transformer.layers.0.linear1.weight"
    state[key] = state[key].T.contiguous()
    save_file(state, path)
    manifest = json.loads((converted / MANIFEST_FILE).read_text())
    manifest["files"]["lm.safetensors"]["bytes"] = path.stat().st_size
    (converted / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=rf"lm\.safetensors: .*{key}.* another shape"):
        MusicGen.load(converted, "cpu")


def test_another_models_codec_is_refused(converted):
    path = converted / "codec.safetensors"
    save_file({"encoder.model.0.weight": torch.zeros(3)}, path)
    manifest = json.loads((converted / MANIFEST_FILE).read_text())
    manifest["files"]["codec.safetensors"]["bytes"] = path.stat().st_size
    (converted / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="EnCodec's weights do not fit"):
        MusicGen.load(converted, "cpu")


MANIFESTS = {
    "damaged": (lambda text: text[:100], "cannot be read"),
    "newer": (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2"),
    "outside": (lambda text: text.replace('"lm.safe', '"../lm.safe'), "outside of the folder"),
    "incomplete": (lambda text: text.replace('"lm":', '"ml":'), "cannot be read"),
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_bad_manifest_is_refused(converted, change):
    edit, message = MANIFESTS[change]
    path = converted / MANIFEST_FILE
    path.write_text(edit(path.read_text()))
    with pytest.raises(WeightsError, match=rf"{path}.*{message}"):
        open_checkpoint(converted)


@pytest.mark.parametrize("name", [LM_FILE, CODEC_FILE])
@pytest.mark.parametrize("size", [0, 100, -1000])
def test_truncated_upstream_files_are_named(upstream, tmp_path, name, size):
    folder = shutil.copytree(upstream, tmp_path / "upstream")
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=str(path)):
        MusicGen.load(folder, "cpu")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"neither manifest\.json nor state_dict\.bin"):
        open_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")


def test_verify_reports_each_check(converted, upstream):
    lines = "\n".join(verify(converted))
    assert "8 files match manifest.json" in lines
    assert "2 layers x 64, 4 codebooks" in lines
    assert "2 s of 1-channel audio" in lines
    assert "hashes: none" in next(verify(upstream))


def test_the_commands_print_their_result(upstream, tmp_path, capsys):
    folder = tmp_path / "out"
    commands.main(["convert", str(upstream), str(folder)])
    assert f"Wrote melody to {folder}" in (said := capsys.readouterr().out)
    assert "CC-BY-NC-4.0" in said
    commands.main(["verify", str(folder)])
    assert f"{folder} is good." in capsys.readouterr().out


def test_verify_finds_a_wrong_dtype(converted):
    path = converted / "lm.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
    manifest = read_manifest(converted)
    files = {**manifest.files, "lm.safetensors": describe_file(path)}
    replace(manifest, files=files).write(converted)
    with pytest.raises(WeightsError, match=r"lm\.safetensors: .*float32, not torch\.float16"):
        list(verify(converted))


def test_tensors_written_by_the_library_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {
        "half": torch.randn(3, 5).half(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "flag": torch.tensor([True]),
        "float": torch.randn(2),
    }
    save_file(state, path)
    file = TensorFile(path)
    assert file.keys() == state.keys()
    assert all(torch.equal(file[name], value) for name, value in state.items())


def test_the_library_reads_written_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {"b": torch.randn(3, 3), "a": torch.randn(5).half()}
    write_tensors(path, state, lambda name, tensor: tensor.dtype, {"klass": "x"})
    found = load_file(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert list(TensorFile(path)) == ["b", "a"]
    assert TensorFile(path).metadata == {"format": "pt", "klass": "x"}


def test_reading_a_mapped_file_takes_little_memory(tmp_path):
    """After 512 MB were read tensor by tensor, the process has grown by less than 200 MB."""
    path = tmp_path / "large.safetensors"
    size = 64 * 2**20
    header = {
        str(k): {"dtype": "U8", "shape": [size], "data_offsets": [k * size, (k + 1) * size]}
        for k in range(8)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 8 * size)  # zeros that take no disk space
    code = """
import sys
from pathlib import Path
from musicgen.checkpoints.tensors import TensorFile
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
file = TensorFile(Path(sys.argv[1]))
before, peak = resident(), 0
for name in file:
    assert not file[name][::4096].any()
    peak = max(peak, resident())
print((peak - before) // 2**20)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(output) < 200
