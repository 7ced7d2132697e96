"""training/train: a new demo, and further training of an existing one."""

import json
import os
import subprocess
import sys

import torch
from states import changed

from musicgen.checkpoints import folders
from musicgen.commands.server import ROOT
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from training import codec, dataset, start, synth, train

RATE = synth.SAMPLE_RATE


def command_line(work, output, *more):
    """Returns arguments that train one step of every part, on a few clips."""
    steps = [f"--{name}-steps=1" for name in train.STEPS]
    return ["--work", work, "--output", output, "--clips", "0-4", *steps, *more]


def run_train(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train.main()


def test_the_command_makes_a_checkpoint_that_the_server_loads(tmp_path, monkeypatch, capsys):
    """Runs one step of each training through the command."""
    output = tmp_path / "demo"
    arguments = command_line(tmp_path / "work", output)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [ROOT / "training/train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (output / "losses.png").stat().st_size > 1000
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["name"], manifest["licence"]) == ("demo", "MIT")
    model = MusicGen.load(output, "cpu")
    [wav] = model.generate(Request(prompt="techno, A minor, 120 bpm", duration=1, seed=1)).wavs
    assert wav.shape == (2, RATE)
    # A second run has nothing left to train and keeps other files of the folder.
    (output / "kept.json").write_text("{}")
    run_train(monkeypatch, *arguments)
    assert capsys.readouterr().out.count("resuming at step 1") == len(train.STEPS)
    assert (output / "kept.json").exists()
    assert json.loads((output / "manifest.json").read_text()) == manifest


def test_a_demo_can_be_trained_further(tmp_path, monkeypatch):
    demo = folders.DEFAULT
    codec_before, before = start.read(demo)
    run_train(monkeypatch, *command_line(tmp_path / "work", tmp_path / "demo", "--start", demo))
    codec_after, after = start.read(tmp_path / "demo")
    assert changed(codec_before.state_dict(), codec_after.state_dict()) == {"decoder"}
    for part in ("lm", "text"):
        pairs = zip(
            getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True
        )
        moved = max((a - b).abs().max().item() for a, b in pairs)
        assert 0 < moved < 0.1, part  # close to the weights it started from


def test_a_demo_that_is_read_encodes_as_the_server_does():
    encodec, _ = start.read(folders.DEFAULT)
    served = MusicGen.load(folders.DEFAULT, "cpu")
    wav = codec.segments(3)[:2, 0]
    codes = dataset.encode(encodec.eval(), wav)
    assert (codes == served.codec.encode(wav)).float().mean() > 0.999


def test_averaging_ends_between_the_old_and_the_new_weights():
    before, after = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    became = after.weight.clone()
    start.average(before, after)
    share = (after.weight - before.weight) / (became - before.weight)
    assert torch.allclose(share, torch.tensor(start.TRAINED))
