"""weights/demo: what the shipped checkpoint is worth, on prompts that it was not trained on.

Thresholds are well below what its model card reports over more seeds, since another machine's
arithmetic makes other clips.
"""

import json

import numpy as np
import pytest

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.checkpoints.folders import DEFAULT as DEMO
from musicgen.commands import verify
from musicgen.pipeline import MusicGen
from training.evaluate import FEW, KEY, TEMPO, Judge, recordings

LIMIT = 25e6  # bytes


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(MusicGen.load(DEMO, "cpu"), recordings(12), tmp_path_factory.mktemp("judge"))


def test_it_is_whole_and_small():
    open_checkpoint(DEMO).manifest.check_hashes(DEMO)
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < LIMIT


def test_it_says_that_it_separates_nothing():
    checkpoint = open_checkpoint(DEMO)
    assert checkpoint.chroma is not None
    assert not checkpoint.separates
    assert "htdemucs" not in " ".join(checkpoint.manifest.files)
    assert verify.generate(DEMO)


def test_the_codec_renders_what_it_heard(judge):
    found = judge.codec()
    assert found["codec: SI-SDR, dB"] > 10
    assert found["codec: log-spectral distance, dB"] < 12


def test_prompts_set_tempo_and_key(judge):
    """The untrained model gets one in ten of either right."""
    found = judge.text()
    assert found[TEMPO] >= 6
    assert found[KEY] >= 7


def test_a_melody_is_followed(judge):
    found = judge.melody()
    assert found["melody: cosine, given"] > found["melody: cosine, not given"] + 0.4


def test_a_continuation_goes_on_from_what_it_was_given(judge):
    found = judge.continuation()
    assert found["continuation: largest difference from the prompt's rendering"] < 1e-5
    assert found["continuation: no click at the seam"] >= 9
    assert found["continuation: tempo carries on"] >= 4


def test_at_temperature_0_the_seed_does_not_matter(judge):
    assert judge.greedy() == {"temperature 0: the same clip twice": FEW}


def test_it_is_heard_in_stereo(judge):
    one = judge.heard[0]
    left, right = judge.generate(one, prompt=one.prompt)
    assert not np.array_equal(left, right)


def test_the_model_card_says_what_was_measured():
    card = (DEMO / "README.md").read_text()
    results = json.loads((DEMO / "evaluation.json").read_text())
    for name, value in results["trained"].items():
        assert f"| {name} | {value:.3g} |" in card
