"""Composition, synthesis, captions and tokens of songs."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from training import captions, song, synth, text

RATE = synth.SAMPLE_RATE


def songs(count):
    return [song.draw(np.random.default_rng(seed)) for seed in range(count)]


def test_a_seed_determines_song_and_audio():
    one, other = (song.draw(np.random.default_rng(3)) for _ in range(2))
    assert one == other
    first, second = (synth.render(drawn, 2.0) for drawn in (one, other))
    assert all(np.array_equal(first[part], second[part]) for part in synth.PARTS)
    assert song.draw(np.random.default_rng(4)) != one


def test_songs_cover_all_values_that_a_prompt_can_name():
    drawn = songs(400)
    assert {one.style for one in drawn} == set(song.STYLES)
    assert {(one.tonic, one.mode) for one in drawn} == set(
        itertools.product(range(12), song.SCALES)
    )
    assert {one.chord_sound for one in drawn} == set(song.CHORD_SOUNDS)
    assert {one.lead_sound for one in drawn} == set(song.LEAD_SOUNDS)
    tempos = [one.tempo for one in drawn]
    assert min(tempos) < 65
    assert max(tempos) > 175


@pytest.mark.parametrize("drawn", songs(12), ids=str)
def test_notes_are_in_key_and_on_the_beat(drawn):
    notes = drawn.notes(10.0)
    assert drawn.beat_frames / 50 == pytest.approx(60 / drawn.tempo, rel=0.03)
    # No style plays shorter notes than a quarter of a beat; in swing, the half beat is late.
    quarters = (0, 1 / 3, 2 / 3, 5 / 6) if drawn.swing else (0, 1 / 4, 1 / 2, 3 / 4)
    finest = {int(drawn.beat_frames * quarter) for quarter in quarters}
    for note in notes:
        assert note.part == "drums" or note.pitch % 12 in drawn.scale
        assert note.frame % drawn.beat_frames in finest
    bass = [note for note in notes if note.part == "bass"]
    assert bass[0].pitch % 12 == drawn.tonic


def house_song(turn, **fields):
    [drawn] = songs(1)
    return replace(drawn, style="house", drums=True, swing=False, turn=turn, **fields)


def test_a_break_is_silent():
    drawn = house_song("break", tempo=100)
    beat = drawn.beat_frames * synth.FRAME
    wav = synth.mix(synth.render(drawn, 12.0))
    last = wav[:, 15 * beat : 16 * beat]
    assert np.square(wav[:, 14 * beat : 15 * beat]).mean() > 1e-4
    assert not last[:, beat // 2 :].any()
    assert np.square(wav[:, 16 * beat : 17 * beat]).mean() > 1e-4


def test_a_fill_is_a_drum_roll():
    def last_beat(drawn):
        notes = [note for note in drawn.notes(10.0) if note.part == "drums"]
        return [n.sound for n in notes if 15 <= n.frame / drawn.beat_frames < 16]

    assert last_beat(house_song("fill", tempo=120)) == ["clap"] * 4
    assert set(last_beat(house_song("plain", tempo=120))) == {"kick", "clap", "open hat"}
    assert not replace(house_song("fill", tempo=120), drums=False).fills


def test_a_rendered_part_equals_that_part_of_the_whole():
    drawn = songs(1)[0]
    whole, window = synth.render(drawn, 6.0), synth.render(drawn, 3.0, start=101)
    first = 101 * synth.FRAME
    for part in synth.PARTS:
        assert np.array_equal(window[part], whole[part][:, first : first + 3 * RATE]), part


def test_a_mix_is_below_full_scale_and_the_lead_in_its_channel():
    for drawn in songs(12):
        stems = synth.render(drawn, 4.0)
        wav = synth.mix(stems)
        assert wav.shape == (2, 4 * RATE)
        assert 0.05 < np.abs(wav).max() < 1
        lead, other = (0, 1) if drawn.lead_side < 0 else (1, 0)
        assert stems["lead"][lead].any()
        assert stems["chords"][other].any()
        assert not stems["lead"][other].any()
        assert not stems["chords"][lead].any()


def test_tones_have_no_energy_above_the_highest_partial():
    for sound in synth.SOUNDS:
        spectrum = np.abs(np.fft.rfft(synth._tone(sound, song.LOWEST_LEAD + song.LEAD_RANGE)))
        high = round(len(spectrum) * 2 * synth.HIGHEST / RATE)
        assert np.square(spectrum[high:]).sum() < 1e-3 * np.square(spectrum).sum(), sound


def test_captions_describe_their_song():
    rng = np.random.default_rng(0)
    for drawn in songs(200):
        words = captions.caption(drawn, rng)
        if tempo := re.search(r"(\d+) bpm", words):
            assert int(tempo[1]) == drawn.tempo
        if key := re.search(r"\b([A-G][#b]?)( major| minor|m\b)", words):
            names = captions.SHARP if key[1] in captions.SHARP else captions.FLAT
            assert names.index(key[1]) == drawn.tonic
            assert ("major" in key[2]) == (drawn.mode == "major")
        assert drawn.turn == "break" or not re.search("break|stops", words)
        assert drawn.fills or "fill" not in words
        assert drawn.swing or not re.search("sw[iu]ng|shuffle", words)


def test_the_tokenizer_knows_every_word_of_the_captions():
    rng, tokenizer = np.random.default_rng(0), text.tokenizer()
    for drawn in songs(200):
        caption = captions.caption(drawn, rng).replace("zzz", "")
        tokens = tokenizer.encode(caption).tokens
        assert text.UNKNOWN not in tokens, caption
        assert len(tokens) == text.LENGTH, caption


def test_the_tokenizer_handles_case_and_punctuation():
    tokens = text.tokenizer().encode("Lo-Fi, C# minor;90BPM ukulele").tokens
    caption = ["lo", "fi", "c#", "minor", "90", "bpm", text.UNKNOWN, text.END]
    assert tokens == caption + [text.PAD] * (text.LENGTH - len(caption))


def test_near_tempos_start_with_near_embeddings():
    table = text.build().get_input_embeddings().weight.detach()
    ids = {word: index for index, word in enumerate(text.vocabulary())}
    near, far = (
        torch.cosine_similarity(table[ids["120"]], table[ids[word]], dim=0)
        for word in ("121", "90")
    )
    assert near > 0.7
    assert far < 0.5
    assert torch.equal(table[ids["db"]], table[ids["c#"]])
    assert not torch.equal(table[ids["db"]], table[ids["d"]])
