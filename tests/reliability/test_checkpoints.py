"""A damaged, swapped or hostile file of a checkpoint is named, never executed and never loaded.

The checkpoints are loaded as a server loads them, with the models that are loaded on first use.
"""

import os
import pickle
import random
import shutil
import zipfile
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from broken import believed, load
from demucs.htdemucs import HTDemucs
from packages import change_package

from musicgen.checkpoints.checkpoint import CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE
from musicgen.checkpoints.convert import convert
from musicgen.checkpoints.folders import LM_FILE, MANIFEST_FILE
from musicgen.errors import WeightsError

PICKLES = (LM_FILE, CODEC_FILE, DEMUCS_FILE, DIFFUSION_FILE, "t5-base/pytorch_model.bin")
# One file for each reader of files: pickles, JSON, two tokenizers, safetensors. What a damage does
# depends on the reader; the tests marked `full` do the same with every file.
REPRESENTATIVES = {
    "upstream": (LM_FILE, "t5-base/config.json", "t5-base/tokenizer.json"),
    "converted": (MANIFEST_FILE, "lm.safetensors", "t5-base/spiece.model"),
}
FORMS = tuple(REPRESENTATIVES)
# No code reads these files. tokenizer.json is one of them if there is a spiece.model.
UNREAD = {
    "upstream": {"t5-base/tokenizer_config.json"},
    "converted": {"t5-base/tokenizer_config.json", "t5-base/tokenizer.json"},
}

FULL = pytest.mark.full


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


def files(folder, form):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return sorted(names - UNREAD[form])


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


def damage_each(folder, form, names):
    """Check that each of `names` is named after each damage."""
    exempt = WHOLE | (OPTIONAL if form == "upstream" else set())
    for name in names:
        for label, damage in damages((folder / name).read_bytes()).items():
            if (name, label) not in exempt:
                assert refused(folder, name, damage), (name, label)


def swap_each(folder, names):
    """Check that each of `names` is named when it has the contents of another."""
    for name, other in permutations(names, 2):
        assert refused(folder, name, holding((folder / other).read_bytes())), (name, other)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_named(request, form):
    damage_each(request.getfixturevalue(form), form, REPRESENTATIVES[form])


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_every_damaged_file_is_named(request, form):
    folder = request.getfixturevalue(form)
    damage_each(folder, form, files(folder, form))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_the_place_of_another_is_named(request, form):
    swap_each(request.getfixturevalue(form), REPRESENTATIVES[form])


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_every_file_in_the_place_of_every_other_is_named(request, form):
    folder = request.getfixturevalue(form)
    swap_each(folder, files(folder, form))


def flip(folder, names, seeds):
    """Flip bits of each file `seeds` times: the model loads, or an error names the file."""
    told: list[str] = []
    for name in names:
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


@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_flipped_bits_loads_or_is_named(request, form):
    flip(request.getfixturevalue(form), REPRESENTATIVES[form], 6)


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_flipped_bits_loads_or_is_named_300_times(request, form):
    folder = request.getfixturevalue(form)
    flip(folder, files(folder, form), 300)


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


# Every file with one kind, every kind with one file; the others are marked `full`.
def crossed(kinds):
    """Parameters (file, kind) for all of PICKLES and `kinds`."""
    first = (PICKLES[0], kinds[0])
    return [
        pytest.param(*pair, marks=[] if pair[0] == first[0] or pair[1] == first[1] else FULL)
        for pair in product(PICKLES, kinds)
    ]


@pytest.mark.parametrize(("name", "kind"), crossed(["in a zip", "bare", "an old tar"]))
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
            archive.writestr(name, bytes(2**22) if name.endswith("data.pkl") else data)


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
    change_package(path, lambda package: package.setdefault("best_state", {}).update(x=huge))


def foreign(path):
    """A tensor on the meta device."""
    other = torch.zeros(2**10, 2**10, device="meta")
    change_package(path, lambda package: package.update(x=other))


MESSAGES = "(compressed|larger than the|no_storage)"


@pytest.mark.parametrize(("name", "bomb"), crossed([wide, compressed, overlapping, foreign]))
def test_a_pickle_larger_in_memory_than_on_the_disk_is_refused(upstream, name, bomb):
    bomb(upstream / name)
    with pytest.raises(WeightsError, match=f"{upstream / name} .*{MESSAGES}"):
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

    change_package(upstream / DEMUCS_FILE, lambda package: package["kwargs"].update(segment=Lie()))
    with pytest.raises(WeightsError, match=str(upstream / DEMUCS_FILE)):
        load(upstream)
