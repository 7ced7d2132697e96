"""References in a training configuration are followed; functions are never called."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from musicgen.checkpoints.configuration import read_yaml, select_sections
from musicgen.errors import WeightsError

PATH = Path("a.bin")


def select(text, *names):
    return OmegaConf.to_container(select_sections(PATH, read_yaml(PATH, text), names))


def test_only_the_named_settings_are_kept():
    text = "a: {b: 1, c: 2}\nd: [1, {e: x}]\nf: 3"
    assert select(text, "a.b", "d", "absent", "absent.too") == {"a": {"b": 1}, "d": [1, {"e": "x"}]}


def test_references_are_followed():
    text = "rate: 32000\nalso: ${rate}\nencodec: {rate: '${also}', list: ['${encodec.rate}']}"
    assert select(text, "encodec") == {"encodec": {"rate": 32000, "list": [32000]}}


REFUSED = {
    "itself": "a: ${a}",
    "a circle": "a: ${b}\nb: ${a}",
    "part of a text": "a: x${b}\nb: 1",
    "twice": "a: ${b}${b}\nb: 1",
    "a function": "a: ${oc.env:HOME}",
    "a function with a default": "a: ${oc.env:HOME,x}",
    "not closed": "a: ${b",
    "in a list": "a: [1, {c: '${oc.env:HOME}'}]",
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_interpolations_are_refused_by_their_setting(case):
    with pytest.raises(WeightsError, match=r"a\.bin: a.*refused: only a reference"):
        select(REFUSED[case], "a")


@pytest.mark.parametrize("text", ["a: ${b}", "a: ${b}\nb: [1]", "a: ${b}\nb: {c: 1}"])
def test_a_reference_must_name_a_single_value(text):
    with pytest.raises(ValueError, match=r"no setting b|b is not a single value"):
        select(text, "a")


def test_long_values_are_not_quoted_whole():
    with pytest.raises(WeightsError) as caught:
        select("a: " + "${b}" * 10_000, "a")
    assert len(str(caught.value)) < 300


def test_importing_and_loading_leaves_omegaconfs_resolvers_alone(checkpoints, tmp_path):
    """In a new process, in which nothing of the project was imported."""
    code = """
import sys
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
OmegaConf.register_new_resolver("mine", lambda: 1)
before = dict(BaseContainer._resolvers)
from pathlib import Path
from musicgen.checkpoints.convert import convert
from musicgen.pipeline import MusicGen
convert(Path(sys.argv[1]), Path(sys.argv[2]))
for folder in sys.argv[1:]:
    MusicGen.load(folder, "cpu").load_all()
assert {"oc.env", "mine"} <= before.keys()
assert BaseContainer._resolvers == before
"""
    command = [sys.executable, "-W", "ignore", "-c", code, checkpoints["melody"], tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
