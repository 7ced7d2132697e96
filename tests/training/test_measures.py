"""Measures of audio."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tones import tone

from training import codec, distance, evaluate, measures, synth

RATE = synth.SAMPLE_RATE


def test_distances_have_the_expected_decibels():
    wav = tone([60, 64])[0]
    noise = np.random.default_rng(0).standard_normal(len(wav))
    noise *= 0.1 * np.linalg.norm(wav) / np.linalg.norm(noise)
    assert measures.si_sdr(wav, wav + noise) == pytest.approx(20, abs=0.1)
    assert measures.si_sdr(wav, 3 * wav + 3 * noise) == pytest.approx(20, abs=0.1)
    loud = np.random.default_rng(1).standard_normal(len(wav))
    assert measures.log_spectral_distance(loud, 0.5 * loud) == pytest.approx(6.02, abs=0.1)


def test_the_loss_depends_on_samples_spectra_and_silence():
    wav = torch.from_numpy(tone([60])).float()[:1, None]
    same, louder = codec.DECODER_LOSS(wav, wav), codec.DECODER_LOSS(wav, 1.1 * wav)
    assert same == 0
    assert louder > 0.1
    rest = torch.cat([wav, torch.zeros_like(wav)], dim=-1)
    noisy = rest + 1e-4 * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
    silent = replace(codec.DECODER_LOSS, levels=0.0)
    assert silent(rest, noisy) + 0.3 < codec.DECODER_LOSS(rest, noisy)
    assert distance.level(torch.zeros(1, 1, RATE)).unique().tolist() == [distance.SILENCE]


def test_look_shows_each_clip_once_in_a_random_order(tmp_path, capsys):
    wav = np.random.default_rng(0).standard_normal((2, RATE))
    shown = {name: [0.1 * wav] * 4 for name in ("before", "trained", "recording")}
    evaluate.look(shown, ["house", "funk", "pop", "rock"], tmp_path / "look.png")
    assert (tmp_path / "look.png").stat().st_size > 10_000
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["1", "house"], ["2", "funk"], ["3", "pop"], ["4", "rock"]]
    assert all(set(row[2:]) == set(shown) for row in rows)
    assert len({tuple(row[2:]) for row in rows}) > 1


def test_the_floor_is_the_level_of_the_quietest_frames():
    wav = tone([60])
    wav[:, : RATE // 2] *= 1e-3
    assert measures.floor([wav]) == pytest.approx(-63, abs=1)
    wav[:, : RATE // 2] = 0
    assert measures.floor([wav]) == measures.SILENCE
    assert measures.floor([tone([60]), wav]) == measures.SILENCE  # over the whole set, not per clip


def test_hats_are_measured_at_high_frequencies():
    low, high = tone([60]), tone([120])  # 8.4 kHz
    assert measures.hats([low]) < -60
    assert measures.hats([high]) == pytest.approx(0, abs=0.5)  # two full-scale sines
    assert measures.hats([low, high]) == pytest.approx(-3, abs=0.5)


def test_the_frechet_distance_grows_with_the_level_difference():
    rng = np.random.default_rng(0)
    noises = [0.1 * rng.standard_normal((2, 4 * RATE)) for _ in range(3)]
    near = measures.frechet_distance(noises[:1], noises[1:2])
    assert measures.frechet_distance(noises, noises) == pytest.approx(0, abs=0.01)
    assert near < 1
    quiet = [0.1 * noise for noise in noises]  # 20 dB are 2 units in each band
    assert measures.frechet_distance(noises, quiet) == pytest.approx(
        4 * measures.MEL_BANDS, rel=0.05
    )


@pytest.mark.parametrize("beats", [75, 120, 160])
def test_the_tempo_of_a_click_track_is_found(beats):
    wav = np.zeros((2, 10 * RATE))
    click = np.random.default_rng(0).standard_normal(400) * np.hanning(400)
    for beat in np.arange(0, 9.9, 60 / beats):
        first = round(beat * RATE)
        wav[:, first : first + 400] = click
    assert measures.is_tempo(measures.tempo(wav), beats)
    assert not measures.is_tempo(beats * 1.2, beats)


def test_the_key_of_a_scale_is_found():
    wav = np.concatenate([tone([60 + step, 64, 67], 0.5) for step in (0, 2, 4, 5, 7, 9, 11, 12)], 1)
    assert "C major" in measures.keys(wav)[:3]
    assert "F# major" not in measures.keys(wav)[:3]


def test_chroma_similarity_distinguishes_pitches():
    assert measures.chroma_similarity(tone([60]), tone([72])) > 0.9
    assert measures.chroma_similarity(tone([60]), tone([66])) < 0.3


def test_a_click_is_found_at_its_position():
    wav = tone([69], 1.0)
    assert measures.seam(wav, RATE // 2) <= 1
    wav[:, RATE // 2 :] += 0.5
    assert measures.seam(wav, RATE // 2) > 1
    assert measures.seam(wav, RATE // 4) <= 1
