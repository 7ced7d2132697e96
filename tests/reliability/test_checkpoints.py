"""A damaged, swapped or hostile file of a checkpoint is named, never executed and never loaded.

The checkpoints are loaded as a server loads them, with the models that are loaded on first use.
"""

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from broken import believed, load, resaved
from demucs.htdemucs import HTDemucs
from omegaconf import OmegaConf

from musicgen.checkpoints.checkpoint import CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.errors import WeightsError

PICKLES = (LM_FILE, CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE, "t5-base/pytorch_model.bin")
UNREAD = "t5-base/tokenizer_config.json"  # no code reads it


# --- damaged and swapped ----------------------------------------------------------------------


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_secret(path):
    path.unlink()
    path.symlink_to("/etc/passwd")


def holding(content):
    return lambda path: path.write_bytes(content)


def damages(data):
    """label -> a function that damages a file with contents `data`; none may load afterwards."""
    return {
        "empty": holding(b""),
        "half": holding(data[: len(data) // 2]),
        "a byte less": holding(data[:-1]),
        "zeros": holding(bytes(len(data))),
        "noise": holding(random.Random(1).randbytes(5000)),
        "a list": holding(b"[]"),
        "nothing in it": holding(b"{}"),
        "null": holding(b"null"),
        "deep": holding(b"[" * 100_000),
        "another alphabet": holding(b"\xff\xfe{}"),
        "folder": as_folder,
        "loop": as_loop,
        "pipe": as_pipe,
        "another file": as_secret,
    }


def files(folder):
    names = (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name != UNREAD]


def other_names(name):
    """Words for a file besides its name: the folder of the text encoder, the model of the codec."""
    return [word for part, word in (("t5-base/", "t5-base"), ("codec", "EnCodec")) if part in name]


def refused(folder, name, damage):
    """Whether a copy of `folder` with a damaged file `name` is refused by that name."""
    copy = shutil.copytree(folder, folder.with_name("copy"), symlinks=True)
    try:
        damage(copy / name)
        if name != MANIFEST_FILE:
            believed(copy)
        with pytest.raises(WeightsError) as caught:
            load(copy)
        told = str(caught.value)
        return str(copy) in told and any(
            part in told for part in (Path(name).name, *other_names(name))
        )
    finally:
        shutil.rmtree(copy)


# These files end with a line break, and are complete without it.
WHOLE = {(MANIFEST_FILE, "a byte less"), ("t5-base/config.json", "a byte less")}
# An optional file that does not exist is not an error unless the manifest lists it.
OPTIONAL = {(DIFFUSION_FILE, "loop")}


@pytest.mark.parametrize("form", ["upstream", "converted"])
def test_a_damaged_file_is_named(request, form):
    folder = request.getfixturevalue(form)
    for name in files(folder):
        for label, damage in damages((folder / name).read_bytes()).items():
            exempt = WHOLE | (OPTIONAL if form == "upstream" else set())
            if (name, label) not in exempt:
                assert refused(folder, name, damage), (name, label)


@pytest.mark.parametrize("form", ["upstream", "converted"])
def test_a_file_in_the_place_of_another_is_named(request, form):
    folder = request.getfixturevalue(form)
    for name in files(folder):
        for other in files(folder):
            if name != other:
                assert refused(folder, name, holding((folder / other).read_bytes())), (name, other)


def flip(folder, seeds):
    """Flip bits of each file `seeds` times: the model loads, or an error names the file."""
    told: list[str] = []
    for name in files(folder):
        whole = (folder / name).read_bytes()
        for seed in range(seeds):
            rng, data = random.Random(f"{name} {seed}"), bytearray(whole)
            reach = rng.choice([len(data), min(2000, len(data))])
            for _ in range(rng.choice([1, 5])):
                data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(data)
            if name != MANIFEST_FILE:
                believed(folder)
            try:
                load(folder)
            except WeightsError as exc:
                told.append(str(exc))
        (folder / name).write_bytes(whole)
        believed(folder)
    assert told
    assert [message for message in told if str(folder) not in message] == []


@pytest.mark.parametrize("form", ["upstream", "converted"])
def test_a_model_with_flipped_bits_loads_or_is_named(request, form):
    flip(request.getfixturevalue(form), 6)


@pytest.mark.full
@pytest.mark.parametrize("form", ["upstream", "converted"])
def test_a_model_with_flipped_bits_loads_or_is_named_300_times(request, form):
    flip(request.getfixturevalue(form), 300)


def test_weights_of_another_model_are_named(converted, checkpoints, tmp_path):
    """A complete file of the same kind with other shapes."""
    convert(checkpoints["stereo-melody"], tmp_path / "other")
    shutil.copy(tmp_path / "other" / "lm.safetensors", converted)
    believed(converted)
    with pytest.raises(WeightsError, match=r"lm\.safetensors: decoder weight"):
        load(converted)


def test_a_number_of_heads_that_does_not_fit_the_weights_is_named(converted):
    path = converted / "t5-base" / "config.json"
    path.write_text(path.read_text().replace('"num_heads": 4', '"num_heads": 2'))
    believed(converted)
    with pytest.raises(WeightsError, match=r"t5-base: .* not those of its configuration"):
        load(converted)


# --- pickles ----------------------------------------------------------------------------------


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("kind", ["in a zip", "bare", "an old tar"])
def test_code_in_a_pickle_is_never_executed(upstream, tmp_path, name, kind):
    marker = tmp_path / "executed"
    bomb = Calls(os.mkdir, str(marker))
    write = {
        "in a zip": lambda path: torch.save({"xp.cfg": bomb, "best_state": bomb, 0: bomb}, path),
        "bare": lambda path: path.write_bytes(pickle.dumps(bomb)),
        "an old tar": lambda path: torch.save(bomb, path, _use_new_zipfile_serialization=False),
    }[kind]
    write(upstream / name)
    with pytest.raises(WeightsError, match=f"{upstream / name} .*never executed"):
        load(upstream)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()  # the pickle does execute it elsewhere


def compressed(path):
    """A part of the archive decompresses to a thousand times its size."""
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, bytes(2**26) if name.endswith("data.pkl") else data)


def overlapping(path):
    """Several parts of the archive refer to the same bytes of the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
        [part] = archive.filelist
        for number in range(1000):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            again.file_size = again.compress_size = part.file_size
            again.header_offset, again.CRC = part.header_offset, part.CRC
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True


def wide(path):
    """A tensor of one number that claims to be a terabyte."""
    huge = torch.zeros(1).expand(2**38)
    resaved(path, lambda package: package.setdefault("best_state", {}).update(x=huge))


def foreign(path):
    """A tensor on the meta device."""
    other = torch.zeros(2**10, 2**10, device="meta")
    resaved(path, lambda package: package.update(x=other))


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("bomb", [compressed, overlapping, wide, foreign])
def test_a_pickle_larger_in_memory_than_on_the_disk_is_refused(upstream, name, bomb):
    bomb(upstream / name)
    with pytest.raises(WeightsError, match=f"{upstream / name} .*(compressed|larger than the)"):
        load(upstream)


def test_a_pickle_may_refer_to_demucs_but_not_call_it(upstream):
    torch.save({"klass": Calls(HTDemucs, ["drums"])}, upstream / DEMUCS_FILE)
    with pytest.raises(WeightsError, match=r"htdemucs\.HTDemucs is called in it"):
        load(upstream)


@pytest.mark.parametrize("text", ["1e999999999", "1/0", "x", "1" * 10_000])
def test_a_fraction_in_a_pickle_is_checked(upstream, text):
    from fractions import Fraction

    class Lie:
        def __reduce__(self):
            return Fraction, (text,)

    resaved(upstream / DEMUCS_FILE, lambda package: package["kwargs"].update(segment=Lie()))
    with pytest.raises(WeightsError, match=str(upstream / DEMUCS_FILE)):
        load(upstream)


# --- configurations ---------------------------------------------------------------------------


def reconfigured(path, **changes):
    """Set settings, by their dotted names, in the training configuration of a pickle."""

    def change(package):
        config = OmegaConf.create(package["xp.cfg"])
        for name, value in changes.items():
            OmegaConf.update(config, name, value, force_add=True)
        package["xp.cfg"] = OmegaConf.to_yaml(config)

    resaved(path, change)


COUNTS = [
    "transformer_lm.dim",
    "transformer_lm.num_heads",
    "transformer_lm.num_layers",
    "transformer_lm.hidden_scale",
    "transformer_lm.n_q",
    "transformer_lm.card",
    "dataset.segment_duration",
    "conditioners.self_wav.chroma_stem.radix2_exp",
    "conditioners.self_wav.chroma_stem.n_chroma",
    "conditioners.self_wav.chroma_stem.sample_rate",
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [10**9, -1, 0, float("nan"), float("inf"), "x", None, [1]])
def test_counts_that_no_model_has_are_named(upstream, name, value):
    reconfigured(upstream / LM_FILE, **{name: value})
    with pytest.raises(WeightsError, match=f"{upstream / LM_FILE}: {name}="):
        load(upstream)


def in_manifest(section):
    """Changes settings of a section of manifest.json."""

    def change(path, **changes):
        manifest = json.loads(path.read_text())
        for name, value in changes.items():
            *parents, last = name.split(".")
            parent = manifest[section]
            for key in parents:
                parent = parent[key]
            parent[last] = value
        path.write_text(json.dumps(manifest))

    return change


def in_first_band(path, **changes):
    """Changes settings of a diffusion band's configuration."""

    def change(package):
        for name, value in changes.items():
            OmegaConf.update(package[0]["cfg"], name, value, force_add=True)

    resaved(path, change)


# file, its checkpoint, a function that changes settings, a setting that is read
CONFIGURATIONS = [
    (LM_FILE, "upstream", reconfigured, "transformer_lm.activation"),
    (CODEC_FILE, "upstream", reconfigured, "seanet.pad_mode"),
    (DIFFUSION_FILE, "upstream", in_first_band, "processor.name"),
    (MANIFEST_FILE, "converted", in_manifest("lm"), "transformer_lm.activation"),
    (MANIFEST_FILE, "converted", in_manifest("codec"), "seanet.pad_mode"),
]
CALLS = [
    "${oc.env:UPLOAD_KEY}",
    "x${oc.env:UPLOAD_KEY}",
    "${x.${oc.env:UPLOAD_KEY}}",
    "${oc.decode:'${oc.env:UPLOAD_KEY}'}",
    "${ oc.env : UPLOAD_KEY }",
]


@pytest.mark.parametrize("value", CALLS)
@pytest.mark.parametrize(("file", "form", "change", "name"), CONFIGURATIONS)
def test_a_configuration_that_calls_a_function_is_refused(
    request, monkeypatch, file, form, change, name, value
):
    monkeypatch.setenv("UPLOAD_KEY", "0xC0FFEE")
    folder = request.getfixturevalue(form)
    change(folder / file, **{name: value})
    believed(folder)
    with pytest.raises(WeightsError, match=f"{folder / file}: {name}=.*reference") as caught:
        load(folder)
    assert "C0FFEE" not in str(caught.value)


def test_a_reference_to_a_setting_that_calls_a_function_is_refused(upstream, monkeypatch):
    monkeypatch.setenv("UPLOAD_KEY", "0xC0FFEE")
    changes = {"mine": "${oc.env:UPLOAD_KEY}", "transformer_lm.activation": "${mine}"}
    reconfigured(upstream / LM_FILE, **changes)
    with pytest.raises(WeightsError, match=r"transformer_lm\.activation=.*mine") as caught:
        load(upstream)
    assert "C0FFEE" not in str(caught.value)


def test_sections_that_are_not_read_may_call_functions(upstream):
    """Upstream's training configuration has this one."""
    reconfigured(upstream / LM_FILE, **{"dora.dir": "/checkpoint/${oc.env:USER}/outputs"})
    load(upstream)


def test_yaml_aliases_are_refused(upstream):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bomb = "\n".join(lines)
    resaved(upstream / LM_FILE, lambda package: package.update({"xp.cfg": bomb}))
    with pytest.raises(WeightsError, match=r"state_dict\.bin: .*aliases"):
        load(upstream)


@pytest.mark.parametrize("name", ["..", "a/..", "/", ""])
def test_a_configuration_cannot_name_a_folder_outside(upstream, name):
    reconfigured(upstream / LM_FILE, **{"conditioners.description.t5.name": name})
    with pytest.raises(WeightsError, match="not the name of a model"):
        load(upstream)
