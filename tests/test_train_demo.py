"""The maker of weights/demo: songs, sound, words, the training's state, what is measured."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audiocraft.modules.transformer import create_sin_embedding
from train_demo import (
    captions,
    codec,
    dataset,
    distance,
    evaluate,
    lm,
    measures,
    song,
    start,
    synth,
    text,
    train,
)
from train_demo.join import join
from train_demo.muon import Muon
from train_demo.run import LOSSES, Run, schedule

from musicgen.checkpoints import folders
from musicgen.pipeline import MusicGen
from musicgen.request import Request

ROOT = Path(__file__).parent.parent
RATE = synth.SAMPLE_RATE


def songs(count):
    return [song.draw(np.random.default_rng(seed)) for seed in range(count)]


def test_a_seed_is_a_song_and_a_sound():
    one, other = (song.draw(np.random.default_rng(3)) for _ in range(2))
    assert one == other
    first, second = (synth.render(drawn, 2.0) for drawn in (one, other))
    assert all(np.array_equal(first[part], second[part]) for part in synth.PARTS)
    assert song.draw(np.random.default_rng(4)) != one


def test_songs_differ_in_everything_that_a_prompt_can_ask_for():
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
    # A quarter of a beat is the finest that any style plays; its half comes late in swing.
    quarters = (0, 1 / 3, 2 / 3, 5 / 6) if drawn.swing else (0, 1 / 4, 1 / 2, 3 / 4)
    finest = {int(drawn.beat_frames * quarter) for quarter in quarters}
    for note in notes:
        assert note.part == "drums" or note.pitch % 12 in drawn.scale
        assert note.frame % drawn.beat_frames in finest
    bass = [note for note in notes if note.part == "bass"]
    assert bass[0].pitch % 12 == drawn.tonic


def turning(turn, **fields):
    [drawn] = songs(1)
    return replace(drawn, style="house", drums=True, swing=False, turn=turn, **fields)


def test_a_break_is_silent():
    drawn = turning("break", tempo=100)
    beat = drawn.beat_frames * synth.FRAME
    wav = synth.mix(synth.render(drawn, 12.0))
    last = wav[:, 15 * beat : 16 * beat]
    assert np.square(wav[:, 14 * beat : 15 * beat]).mean() > 1e-4
    assert not last[:, beat // 2 :].any()
    assert np.square(wav[:, 16 * beat : 17 * beat]).mean() > 1e-4


def test_drums_roll_in_a_fill():
    def last_beat(drawn):
        notes = [note for note in drawn.notes(10.0) if note.part == "drums"]
        return [n.sound for n in notes if 15 <= n.frame / drawn.beat_frames < 16]

    assert last_beat(turning("fill", tempo=120)) == ["clap"] * 4
    assert set(last_beat(turning("plain", tempo=120))) == {"kick", "clap", "open hat"}
    assert not replace(turning("fill", tempo=120), drums=False).fills


def test_a_window_is_a_piece_of_the_whole():
    drawn = songs(1)[0]
    whole, window = synth.render(drawn, 6.0), synth.render(drawn, 3.0, start=101)
    first = 101 * synth.FRAME
    for part in synth.PARTS:
        assert np.array_equal(window[part], whole[part][:, first : first + 3 * RATE]), part


def test_a_mix_is_below_full_scale_and_the_lead_on_its_side():
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


def test_tones_end_where_they_should():
    for sound in synth.SOUNDS:
        spectrum = np.abs(np.fft.rfft(synth._tone(sound, song.LOWEST_LEAD + song.LEAD_RANGE)))
        high = round(len(spectrum) * 2 * synth.HIGHEST / RATE)
        assert np.square(spectrum[high:]).sum() < 1e-3 * np.square(spectrum).sum(), sound


def test_captions_are_true():
    rng = np.random.default_rng(0)
    for drawn in songs(200):
        said = captions.caption(drawn, rng)
        if tempo := re.search(r"(\d+) bpm", said):
            assert int(tempo[1]) == drawn.tempo
        if key := re.search(r"\b([A-G][#b]?)( major| minor|m\b)", said):
            names = captions.SHARP if key[1] in captions.SHARP else captions.FLAT
            assert names.index(key[1]) == drawn.tonic
            assert ("major" in key[2]) == (drawn.mode == "major")
        assert drawn.turn == "break" or not re.search("break|stops", said)
        assert drawn.fills or "fill" not in said
        assert drawn.swing or not re.search("sw[iu]ng|shuffle", said)


def test_the_tokenizer_knows_every_word_of_the_captions():
    rng, tokenizer = np.random.default_rng(0), text.tokenizer()
    for drawn in songs(200):
        said = captions.caption(drawn, rng).replace("zzz", "")
        tokens = tokenizer.encode(said).tokens
        assert text.UNKNOWN not in tokens, said
        assert len(tokens) == text.LENGTH, said


def test_the_tokenizer_reads_prompts_as_people_write_them():
    tokens = text.tokenizer().encode("Lo-Fi, C# minor;90BPM ukulele").tokens
    said = ["lo", "fi", "c#", "minor", "90", "bpm", text.UNKNOWN, text.END]
    assert tokens == said + [text.PAD] * (text.LENGTH - len(said))


def test_near_tempos_begin_with_near_embeddings():
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


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def train(folder, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        adam = torch.optim.AdamW(model.parameters(), 0.1)
        run = Run(folder, model, steps=6, optimizers=[adam], save_every=2)
        for step in run:
            if step == stop:
                return model
            wav = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            run.update(model(wav).square().mean())
            run.note(step, loss=step / 10)
        return model

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", stop=5)
    parts = train(tmp_path / "parts")
    assert torch.equal(whole.weight, parts.weight)
    rows = list(csv.DictReader((tmp_path / "parts" / LOSSES).read_text().splitlines()))
    assert [row["step"] for row in rows] == [str(step) for step in range(6)]


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == rates[100] == 1
    assert rates[-1] < 0.021


def test_muon_goes_where_torchs_goes():
    """Which rounds to bfloat16 on its way."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 256), (256, 64), (48, 48)):
        start = torch.randn(shape, generator=generator)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        optimizers = [
            Muon([ours], 0.02),
            torch.optim.Muon([theirs], 0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        ]
        for _ in range(4):
            ours.grad = torch.randn(shape, generator=generator)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


def test_heads_begin_at_the_moments_chroma_and_at_the_words():
    """Before any training: what the first layer's first two heads look at."""
    model = lm.Demo().requires_grad_(False)
    attention = model.lm.transformer.layers[0].self_attn
    project = model.lm.condition_provider.conditioners
    frames, words, codes = 63, text.LENGTH, dataset.SECONDS * song.FRAME_RATE
    generator = torch.Generator().manual_seed(0)
    chroma = torch.eye(12)[torch.randint(12, (frames,), generator=generator)]
    x = torch.cat(
        [
            project["self_wav"].output_proj(chroma),
            project["description"].output_proj(torch.randn(words, 128, generator=generator)),
            0.5 * torch.randn(codes, 256, generator=generator),
        ]
    )
    positions = torch.arange(len(x)).view(1, -1, 1)
    x = torch.nn.functional.layer_norm(x + create_sin_embedding(positions, 256)[0], (256,))
    queries, keys, _ = (x @ attention.in_proj_weight.T).split(256, dim=1)
    first = frames + words
    for t in (0, 100, 200, 399):
        seen = slice(first + t + 1)
        along, at_words = (
            (queries[first + t, head] @ keys[seen, head].T / 8).softmax(0)
            for head in (slice(64), slice(64, 128))
        )
        assert abs(int(along.argmax()) - t * lm.SLOWER) < 2.5
        assert float(at_words[frames:first].sum()) > 0.9


@pytest.fixture(scope="module")
def clips():
    return dataset.Clips(codec.build().eval(), "cpu")


@pytest.mark.parametrize("kind", [dataset.BEGINNING, dataset.WHOLE], ids=["beginning", "whole"])
def test_batches_say_what_was_asked_of_them(kind, clips, monkeypatch):
    """Clips as long as wanted; captions; a melody or what stands for none; true answers."""
    made = [clips.clip(index) for index in range(3)]
    assert all(0 <= clip.codes.min() <= clip.codes.max() < codec.CARD for clip in made)
    # Codes that tell which frame of the clip they are.
    numbered = torch.arange(dataset.WHOLE.frames).expand(dataset.K, -1)
    monkeypatch.setattr(clips, "clip", lambda index: replace(made[index], codes=numbered))
    batch = clips.batch(kind, [0, 1, 2], np.random.default_rng(0))
    assert batch.codes.shape == (3, dataset.K, kind.frames)
    assert torch.equal(batch.heard, batch.codes)
    assert batch.tokens.shape[0] == batch.chroma.shape[0] == 3
    assert batch.tokens.eq(clips.tokenizer.token_to_id(text.END)).sum(1).eq(1).all()
    for clip, codes, chroma, key, beat in zip(
        made, batch.codes, batch.chroma, batch.key, batch.beat, strict=True
    ):
        first = int(codes[0, 0])
        assert torch.equal(codes, numbered[:, first : first + kind.frames])
        assert key.unique().item() == clip.song.tonic + 12 * (clip.song.mode == "minor")
        assert not ((clip.start + codes[0] + beat) % clip.song.beat_frames).any()
        assert beat.min() == 0
        assert beat.max() == clip.song.beat_frames - 1
        melodies = [clips.no_melody] if first else [clips.no_melody, clip.lead, clip.mix]
        assert any(torch.equal(chroma, melody.long()) for melody in melodies)


def test_mistakes_are_few_and_anothers(clips):
    codes = clips.batch(dataset.BEGINNING, list(range(4)), np.random.default_rng(0)).codes
    apart = codes % 100 + 100 * torch.arange(4)[:, None, None]  # tells whose a code is
    heard = dataset.with_mistakes(apart, np.random.default_rng(1))
    wrong = heard != apart
    assert 0.03 < wrong.float().mean() < 0.2
    assert torch.equal(heard[wrong], apart.roll(1, 0)[wrong])
    # Some are whole passages of one side.
    sides = wrong.unflatten(1, (dataset.K // 2, 2)).all(1)
    assert sides.any()
    assert not sides.all(1).equal(sides.any(1))


@pytest.mark.parametrize("heard", [codec.LOW.heard, codec.HIGH.heard, codec.DECODER_HEARD])
def test_codec_batches_are_the_same_at_every_visit(heard):
    wav = codec.segments(5, heard)
    assert wav.shape == (heard.segments, 1, round(heard.seconds * RATE))
    assert torch.equal(wav, codec.segments(5, heard))
    assert not torch.equal(wav, codec.segments(6, heard))


def test_a_band_is_what_lies_above():
    low, high = (torch.from_numpy(tone([pitch])).float()[:1, None] for pitch in (60, 120))
    inside = slice(codec.TAPS, -codec.TAPS)
    heard = codec.above(low + high, codec.HIGH.above)
    assert (heard - high)[..., inside].abs().max() < 0.01
    assert torch.equal(codec.above(low, 0.0), low)


def trained(band):
    """As if it were: every codebook filled."""
    model = codec.build([band])
    for number, layer in enumerate(model.quantizer.vq.layers):
        generator = torch.Generator().manual_seed(number)
        layer._codebook.embed.normal_(0, 0.5, generator=generator)
        layer._codebook.inited.fill_(1)
    return model.eval()


@torch.inference_mode()
def test_bands_side_by_side_are_one_codec():
    parts = [trained(band) for band in codec.BANDS.values()]
    whole = join(parts, codec.build()).eval()
    wav = codec.segments(3)[:4]
    codes = [part.encode(wav)[0] for part in parts]
    assert torch.equal(whole.encode(wav)[0], torch.cat(codes, dim=1))
    sound = sum(part(wav).x for part in parts)
    assert sound.abs().max() > 1e-3
    assert torch.allclose(whole(wav).x, sound, atol=1e-5 * float(sound.abs().max()))


def test_training_the_decoder_leaves_the_codes(tmp_path):
    whole = join([trained(band) for band in codec.BANDS.values()], codec.build())
    wav = codec.segments(3)[:2]
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    codes = whole.eval().encode(wav)[0]
    codec.train_decoder(tmp_path, whole, 2, "cpu")
    assert torch.equal(whole.encode(wav)[0], codes)
    changed = {
        name.split(".")[0]
        for name, value in whole.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"decoder"}


def command_line(work, output, *more):
    """Arguments that train one step of everything, on a few clips."""
    steps = [f"--{name}-steps=1" for name in train.STEPS]
    return ["--work", work, "--output", output, "--clips", "0-4", *steps, *more]


def run_train(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train.main()


def test_the_commands_make_a_checkpoint_that_the_server_loads(tmp_path, monkeypatch, capsys):
    """One step of each training, through the command."""
    output = tmp_path / "demo"
    arguments = command_line(tmp_path / "work", output)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [ROOT / "scripts/train_demo/train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (output / "losses.png").stat().st_size > 1000
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["name"], manifest["licence"]) == ("demo", "MIT")
    model = MusicGen.load(output, "cpu")
    [wav] = model.generate(Request(prompt="techno, A minor, 120 bpm", duration=1, seed=1)).wavs
    assert wav.shape == (2, RATE)
    # The second time there is nothing left to train, and nothing else in the folder is lost.
    (output / "kept.json").write_text("{}")
    run_train(monkeypatch, *arguments)
    assert capsys.readouterr().out.count("going on from step 1") == len(train.STEPS)
    assert (output / "kept.json").exists()
    assert json.loads((output / "manifest.json").read_text()) == manifest


def test_a_demo_can_be_trained_further(tmp_path, monkeypatch):
    demo = folders.DEFAULT
    codec_before, before = start.read(demo)
    run_train(monkeypatch, *command_line(tmp_path / "work", tmp_path / "demo", "--start", demo))
    codec_after, after = start.read(tmp_path / "demo")
    learned = {
        name.partition(".")[0]
        for name, value in codec_before.state_dict().items()
        if not torch.equal(value, codec_after.state_dict()[name])
    }
    assert learned == {"decoder"}
    for part in ("lm", "text"):
        pairs = zip(
            getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True
        )
        moved = max((a - b).abs().max().item() for a, b in pairs)
        assert 0 < moved < 0.1, part  # what it knew is still there


def test_what_is_read_of_a_demo_says_what_the_server_says():
    encodec, _ = start.read(folders.DEFAULT)
    served = MusicGen.load(folders.DEFAULT, "cpu")
    wav = codec.segments(3)[:2, 0]
    codes = dataset.encode(encodec.eval(), wav)
    assert (codes == served.codec.encode(wav)).float().mean() > 0.999


def tone(pitches, seconds=4.0):
    time = np.arange(round(seconds * RATE)) / RATE
    hertz = [440 * 2 ** ((pitch - 69) / 12) for pitch in pitches]
    return np.stack([sum(np.sin(2 * np.pi * f * time) for f in hertz)] * 2) / len(pitches)


def test_distances_are_what_they_say():
    wav = tone([60, 64])[0]
    noise = np.random.default_rng(0).standard_normal(len(wav))
    noise *= 0.1 * np.linalg.norm(wav) / np.linalg.norm(noise)
    assert measures.si_sdr(wav, wav + noise) == pytest.approx(20, abs=0.1)
    assert measures.si_sdr(wav, 3 * wav + 3 * noise) == pytest.approx(20, abs=0.1)
    loud = np.random.default_rng(1).standard_normal(len(wav))
    assert measures.log_spectral_distance(loud, 0.5 * loud) == pytest.approx(6.02, abs=0.1)


def test_a_loss_hears_samples_spectra_and_silence():
    wav = torch.from_numpy(tone([60])).float()[:1, None]
    same, louder = codec.DECODER_LOSS(wav, wav), codec.DECODER_LOSS(wav, 1.1 * wav)
    assert same == 0
    assert louder > 0.1
    rest = torch.cat([wav, torch.zeros_like(wav)], dim=-1)
    noisy = rest + 1e-4 * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
    silent = replace(codec.DECODER_LOSS, levels=0.0)
    assert silent(rest, noisy) + 0.3 < codec.DECODER_LOSS(rest, noisy)
    assert distance.level(torch.zeros(1, 1, RATE)).unique().tolist() == [distance.SILENCE]


def test_a_look_shows_each_clip_once_in_a_drawn_order(tmp_path, capsys):
    wav = np.random.default_rng(0).standard_normal((2, RATE))
    shown = {name: [0.1 * wav] * 4 for name in ("before", "trained", "recording")}
    evaluate.look(shown, ["house", "funk", "pop", "rock"], tmp_path / "look.png")
    assert (tmp_path / "look.png").stat().st_size > 10_000
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["1", "house"], ["2", "funk"], ["3", "pop"], ["4", "rock"]]
    assert all(set(row[2:]) == set(shown) for row in rows)
    assert len({tuple(row[2:]) for row in rows}) > 1


def test_the_floor_is_that_of_the_quietest_moments():
    wav = tone([60])
    wav[:, : RATE // 2] *= 1e-3
    assert measures.floor([wav]) == pytest.approx(-63, abs=1)
    wav[:, : RATE // 2] = 0
    assert measures.floor([wav]) == measures.SILENCE
    assert measures.floor([tone([60]), wav]) == measures.SILENCE  # of the set, not of each


def test_hats_are_what_sounds_high():
    low, high = tone([60]), tone([120])  # 8.4 kHz
    assert measures.hats([low]) < -60
    assert measures.hats([high]) == pytest.approx(0, abs=0.5)  # two full-scale sines
    assert measures.hats([low, high]) == pytest.approx(-3, abs=0.5)


def test_sets_are_as_far_apart_as_they_sound():
    rng = np.random.default_rng(0)
    noises = [0.1 * rng.standard_normal((2, 4 * RATE)) for _ in range(3)]
    near = measures.frechet_distance(noises[:1], noises[1:2])
    assert measures.frechet_distance(noises, noises) == pytest.approx(0, abs=0.01)
    assert near < 1
    quiet = [0.1 * noise for noise in noises]  # 20 dB are 2 in each of the bands
    assert measures.frechet_distance(noises, quiet) == pytest.approx(
        4 * measures.MEL_BANDS, rel=0.05
    )


@pytest.mark.parametrize("beats", [75, 120, 160])
def test_a_click_track_has_its_tempo(beats):
    wav = np.zeros((2, 10 * RATE))
    click = np.random.default_rng(0).standard_normal(400) * np.hanning(400)
    for beat in np.arange(0, 9.9, 60 / beats):
        first = round(beat * RATE)
        wav[:, first : first + 400] = click
    assert measures.is_tempo(measures.tempo(wav), beats)
    assert not measures.is_tempo(beats * 1.2, beats)


def test_a_scale_has_its_key():
    wav = np.concatenate([tone([60 + step, 64, 67], 0.5) for step in (0, 2, 4, 5, 7, 9, 11, 12)], 1)
    assert "C major" in measures.keys(wav)[:3]
    assert "F# major" not in measures.keys(wav)[:3]


def test_chroma_tells_melodies_apart():
    assert measures.chroma_similarity(tone([60]), tone([72])) > 0.9
    assert measures.chroma_similarity(tone([60]), tone([66])) < 0.3


def test_a_click_is_heard_at_its_place():
    wav = tone([69], 1.0)
    assert measures.seam(wav, RATE // 2) <= 1
    wav[:, RATE // 2 :] += 0.5
    assert measures.seam(wav, RATE // 2) > 1
    assert measures.seam(wav, RATE // 4) <= 1
