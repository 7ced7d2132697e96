"""weights/demo: the quality of the shipped checkpoint on prompts that it was not trained on.

The thresholds are well below the figures of its model card, because other machines round
differently and then generate different clips.
"""

import json

import numpy as np
import pytest

from musicgen.checkpoints.checkpoint import open_checkpoint
from musicgen.checkpoints.folders import DEFAULT as DEMO
from musicgen.commands import verify
from musicgen.pipeline import MusicGen
from training.evaluate import FEW, KEY, TEMPO, Evaluator, recordings

LIMIT = 25e6  # bytes


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return Evaluator(
        MusicGen.load(DEMO, "cpu"), recordings(12), tmp_path_factory.mktemp("evaluator")
    )


def test_the_demo_is_complete_and_small():
    open_checkpoint(DEMO).manifest.check_hashes(DEMO)
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < LIMIT


def test_the_demo_declares_that_it_has_no_source_separation():
    checkpoint = open_checkpoint(DEMO)
    assert checkpoint.chroma is not None
    assert not checkpoint.separates
    assert "htdemucs" not in " ".join(checkpoint.manifest.files)
    assert verify.generate(DEMO)


def test_the_codec_reconstructs_audio(evaluator):
    found = evaluator.codec()
    assert found["codec: SI-SDR, dB"] > 10
    assert found["codec: log-spectral distance, dB"] < 12


def test_prompts_set_tempo_and_key(evaluator):
    """The untrained model is right in one of ten clips for each."""
    found = evaluator.text()
    assert found[TEMPO] >= 6
    assert found[KEY] >= 7


def test_a_melody_is_followed(evaluator):
    found = evaluator.melody()
    assert found["melody: cosine, given"] > found["melody: cosine, not given"] + 0.4


def test_a_continuation_begins_with_its_audio_prompt(evaluator):
    found = evaluator.continuation()
    assert found["continuation: largest difference from the prompt's rendering"] < 1e-5
    assert found["continuation: no click at the seam"] >= 9
    assert found["continuation: tempo carries on"] >= 4


def test_at_temperature_0_the_seed_does_not_matter(evaluator):
    assert evaluator.greedy() == {"temperature 0: the same clip twice": FEW}


def test_generated_audio_is_stereo(evaluator):
    one = evaluator.songs[0]
    left, right = evaluator.generate(one, prompt=one.prompt)
    assert not np.array_equal(left, right)


def test_the_model_card_has_the_measured_figures():
    card = (DEMO / "README.md").read_text()
    results = json.loads((DEMO / "evaluation.json").read_text())
    for name, value in results["trained"].items():
        assert f"| {name} | {value:.3g} |" in card
