"""The language model's training: resuming, learning rates, initial attention, batches."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from audiocraft.modules.transformer import create_sin_embedding

from training import codec, dataset, lm, song, text
from training.muon import Muon
from training.run import LOSSES, Run, schedule


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
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


def test_the_learning_rate_warms_up_and_decays():
    rates = [schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == rates[100] == 1
    assert rates[-1] < 0.021


def test_muon_agrees_with_pytorchs_muon():
    """PyTorch's rounds to bfloat16, so the two agree within 3%."""
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


def test_untrained_heads_attend_to_the_chroma_of_their_time_and_to_the_words():
    """Checks the attention of the first layer's first two heads before training."""
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
def test_batches_contain_what_their_kind_defines(kind, clips, monkeypatch):
    """Lengths, captions, a melody or its absence, and correct auxiliary targets."""
    made = [clips.clip(index) for index in range(3)]
    assert all(0 <= clip.codes.min() <= clip.codes.max() < codec.CARD for clip in made)
    # Each code is the number of its frame.
    numbered = torch.arange(dataset.WHOLE.frames).expand(dataset.K, -1)
    monkeypatch.setattr(clips, "clip", lambda index: replace(made[index], codes=numbered))
    batch = clips.batch(kind, [0, 1, 2], np.random.default_rng(0))
    assert batch.codes.shape == (3, dataset.K, kind.frames)
    assert torch.equal(batch.inputs, batch.codes)
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


def test_mistakes_are_rare_and_come_from_another_clip(clips):
    codes = clips.batch(dataset.BEGINNING, list(range(4)), np.random.default_rng(0)).codes
    apart = codes % 100 + 100 * torch.arange(4)[:, None, None]  # hundreds: the clip
    inputs = dataset.with_mistakes(apart, np.random.default_rng(1))
    wrong = inputs != apart
    assert 0.03 < wrong.float().mean() < 0.2
    assert torch.equal(inputs[wrong], apart.roll(1, 0)[wrong])
    # Some are whole passages of one channel.
    channels = wrong.unflatten(1, (dataset.K // 2, 2)).all(1)
    assert channels.any()
    assert not channels.all(1).equal(channels.any(1))
