"""Loops of whole bars: their length, their seam, their tempo, and how the page offers them."""

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
from actions import generate, press, radios
from groove import RATE, groove
from playwright.sync_api import expect

from musicgen.page import loops
from musicgen.runtime.librosa_import import librosa


@pytest.fixture
def clip(tmp_path):
    """bpm -> a wav file of that tempo."""

    def write(bpm):
        soundfile.write(tmp_path / f"{bpm}.wav", groove(bpm), RATE)
        return tmp_path / f"{bpm}.wav"

    return write


@pytest.mark.parametrize("bpm", [80, 97, 120, 124, 150])
def test_a_loop_has_whole_bars_of_the_asked_tempo_and_no_click(clip, bpm):
    file = clip(bpm)
    found = loops.find(file, float(bpm))
    assert found.fits
    assert {1, 2} <= {loop.bars for loop in found.found}
    for loop in found.found:
        assert found.has_tempo(loop)
        sound, rate = loops.samples(file, loop)
        beats = len(sound) / rate * bpm / 60
        assert beats == pytest.approx(4 * loop.bars, rel=0.01)
        whole, _ = soundfile.read(file, dtype=np.float32)
        jumps = np.abs(np.diff(whole, axis=0)).max(1)
        assert np.abs(sound[0] - sound[-1]).max() <= np.median(jumps)
        repeated = np.tile(sound, (4, 1)).mean(1)
        tempo, _ = librosa().beat.beat_track(y=repeated, sr=rate, start_bpm=bpm, hop_length=160)
        assert float(tempo[0]) == pytest.approx(bpm, rel=0.02)  # its resolution at 150 bpm


@pytest.mark.parametrize("beat", [0, 100, 300, 5000])
def test_a_cut_is_where_a_noisy_wave_changes_little(beat):
    noise = np.random.default_rng(1).normal(size=(RATE, 2)).astype(np.float32)
    jumps = np.abs(np.diff(noise, axis=0)).max(1)
    place = loops._quietest_step(noise, beat, RATE)
    assert jumps[place - 1] < np.quantile(jumps, 0.05)
    assert abs(place - beat) < 0.03 * RATE


def test_a_loop_starts_at_the_strongest_beat_of_four(clip):
    file = clip(120)
    for loop in loops.find(file, 120.0).found:
        bars = (loop.start / RATE - 0.3) / 2
        assert bars - round(bars) == pytest.approx(0, abs=0.02)


def test_another_tempo_than_the_asked_one_is_noticed(clip):
    found = loops.find(clip(120), 110.0)
    assert not found.fits
    assert found.tempo == pytest.approx(120, rel=0.01)
    assert not any(found.has_tempo(loop) for loop in found.found)


def test_silence_has_no_loop(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((RATE, 2)), RATE)
    assert loops.find(tmp_path / "silence.wav", 120.0).found == ()


def test_a_sampler_finds_the_loop_in_the_file(clip):
    file = clip(120)
    loop = loops.find(file, 120.0).found[0]
    content = loops.wav(file, loop)
    with wave.open(io.BytesIO(content)) as read:
        frames = read.getnframes()
        assert (read.getframerate(), read.getnchannels()) == (RATE, 2)
    assert frames == loop.stop - loop.start
    at = content.index(b"smpl") + 8
    fields = struct.unpack("<9I6I", content[at : at + 60])
    assert (fields[2], fields[7]) == (31250, 1)  # nanoseconds a sample, loops
    assert fields[10:13] == (0, 0, frames - 1)  # forward, from the first to the last frame


def test_a_loop_is_played_and_saved(page):
    page.get_by_label("Prompt").fill("deep house, organ chords, A minor, 124 bpm")
    generate(page, duration=8, seed=1)
    offered = page.locator("#loops li").first
    expect(offered).to_contain_text("prompt: 124")
    play_button = offered.get_by_role("button")
    play_button.click()
    expect(play_button).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("looping?.source?.loop")
    play_button.click()
    expect(play_button).to_have_attribute("aria-pressed", "false")
    with page.expect_download() as begun:
        offered.get_by_role("link").click()
    assert begun.value.suggested_filename.endswith("seed-1 loop-1-bar.wav")
    sound, rate = soundfile.read(begun.value.path())
    assert len(sound) / rate * 124 / 60 == pytest.approx(4, rel=0.1)


def test_the_next_seeds_are_offered_if_the_tempo_is_another(page):
    made = radios(page).count()
    page.get_by_label("Prompt").fill("calm ambient, no drums, 233 bpm")
    generate(page, duration=2, seed=1)
    expect(page.locator("#loops")).to_contain_text("too few beats")
    press(page, "Try 4 more")
    expect(radios(page)).to_have_count(made + 5)
    texts = " ".join(page.locator("#takes label").all_inner_texts())
    assert all(f"seed {seed}" in texts for seed in (1, 2, 3, 4, 5))
    expect(page.locator("#seed-chip")).to_have_count(0)
