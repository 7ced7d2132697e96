"""Clips that arrive, are cancelled or fail while others decode: the others keep their codes."""

import random
import threading
from concurrent.futures import wait
from dataclasses import replace

import pytest
import torch
from tiny_lm import (
    MAX_LENGTH,
    STRIDE,
    clip,
    engine_lm,
    half_engine,
    oracle_codes,
    oracle_lm,
    tiny_config,
)

from musicgen.decoder import lm as decoder
from musicgen.decoder.engine import Engine

SETTINGS = (
    {},
    {"temperature": 0.0},
    {"top_p": 0.9, "length": 90, "prompt": 11},
    {"top_k": 0, "cfg_coef": 1.0, "length": 7},
    {"temperature": 1.3, "length": 50, "text": "2:14"},
    {"length": 1, "text": "3:1"},
    {"length": 60, "prompt": 40},
)


@pytest.fixture(scope="module", params=[True, False], ids=["cross", "prepend"])
def made(request):
    """An engine of four slots, clips of all kinds, and the codes of each clip decoded alone."""
    config = tiny_config(cross=request.param)
    engine = half_engine(config, slots=4)
    clips = [clip(config, seed=seed, **settings) for seed, settings in enumerate(SETTINGS)]
    return engine, clips, [engine.generate([one])[0] for one in clips]


def finish(engine):
    while engine.busy:
        engine.step()


def test_codes_do_not_depend_on_arrival_time_or_on_cancelled_clips(made):
    engine, clips, alone = made
    chance = random.Random(0)
    jobs = []
    for _ in range(40):
        index = chance.randrange(len(clips))
        jobs.append((index, engine.submit(clips[index])))
        for _ in range(chance.randrange(12)):
            engine.step()
        if chance.random() < 0.3:
            chance.choice(jobs)[1].cancel()
    finish(engine)
    left = [(index, job) for index, job in jobs if not job.cancelled()]
    assert 10 < len(left) < 40
    assert all(torch.equal(job.result(), alone[index]) for index, job in left)


def test_clips_are_admitted_first_come_first_served(made):
    engine, clips, _ = made
    jobs = [engine.submit(one) for one in clips]
    finish(engine)
    admitted = [job.admitted for job in jobs]
    assert admitted == sorted(admitted)
    assert jobs[0].waited < jobs[-1].waited


def test_a_cancelled_clip_frees_its_slot_before_the_next_step(made):
    engine, clips, alone = made
    jobs = [engine.submit(clips[2]) for _ in range(4)]
    waiting = engine.submit(clips[0])
    for _ in range(20):
        engine.step()
    assert waiting.admitted is None
    assert jobs[1].cancel()
    engine.step()
    assert waiting.admitted
    finish(engine)
    assert torch.equal(waiting.result(), alone[0])
    assert all(torch.equal(job.result(), alone[2]) for job in jobs if job is not jobs[1])


def test_a_clip_cancelled_while_it_waits_never_starts(made):
    engine, clips, _ = made
    job = engine.submit(clips[0])
    job.cancel()
    finish(engine)
    assert job.admitted is None
    assert job.done_steps == 0


def test_a_finished_clip_cannot_be_cancelled(made):
    engine, clips, alone = made
    job = engine.submit(clips[3])
    finish(engine)
    assert not job.cancel()
    assert torch.equal(job.result(), alone[3])


def test_an_error_in_a_step_is_the_result_of_the_clips_in_it(made, monkeypatch):
    engine, clips, alone = made
    hit = [engine.submit(clips[0]), engine.submit(clips[4])]
    for _ in range(5):
        engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(engine.lm, "step", lambda *_: 1 / 0)
        engine.step()
    later = engine.submit(clips[0])
    finish(engine)
    for job in hit:
        with pytest.raises(ZeroDivisionError):
            job.result()
    assert torch.equal(later.result(), alone[0])


def test_an_error_between_two_windows_fails_that_clip_only(made, monkeypatch):
    engine, clips, alone = made
    jobs = [engine.submit(clips[0]), engine.submit(clips[2])]
    opened = engine._open_window

    def fail(slot):
        if slot.window:
            raise MemoryError
        opened(slot)

    with monkeypatch.context() as broken:
        broken.setattr(engine, "_open_window", fail)
        finish(engine)
    assert torch.equal(jobs[0].result(), alone[0])
    with pytest.raises(MemoryError):
        jobs[1].result()


def test_a_thread_that_waits_for_a_cancelled_clip_is_woken(made):
    engine, clips, _ = made
    job = engine.submit(clips[2])
    engine.step()
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: (wait([job]), woken.set()))
    waiter.start()
    job.cancel()
    engine.step()
    waiter.join(timeout=60)
    assert woken.is_set()


def test_a_clip_that_cannot_be_prefilled_fails_alone(made, monkeypatch):
    engine, clips, alone = made
    neighbour = engine.submit(clips[0])
    for _ in range(5):
        engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(engine.lm, "embed", lambda *_: torch.empty(10**15))
        hit = engine.submit(clips[1])
        broken.setattr(engine, "_decode", lambda *_: None)  # it calls embed as well
        engine.step()
    finish(engine)
    with pytest.raises(RuntimeError, match="allocate"):
        hit.result()
    assert torch.equal(neighbour.result(), alone[0])


@pytest.mark.parametrize("cross", [True, False], ids=["cross", "prepend"])
@pytest.mark.parametrize("piece", [1, 7])
def test_the_size_of_prefill_pieces_does_not_change_codes(cross, piece, monkeypatch):
    monkeypatch.setitem(decoder.PREFILL_PIECE, "cpu", piece)
    config = tiny_config(cross=cross)
    oracle = oracle_lm(config)
    engine = Engine(
        engine_lm(oracle, config), max_length=MAX_LENGTH, stride=STRIDE, slots=2, max_prefix=16
    )
    asked = clip(config, length=70, prompt=30)
    assert torch.equal(engine.generate([asked])[0], oracle_codes(oracle, asked))


def test_other_clips_decode_during_a_long_prefill(made, monkeypatch):
    monkeypatch.setitem(decoder.PREFILL_PIECE, "cpu", 2)
    engine, clips, _ = made
    neighbour = engine.submit(replace(clips[0], seed=50))
    for _ in range(10):
        engine.step()
    long = engine.submit(clips[6])
    before = neighbour.done_steps
    for _ in range(7):
        engine.step()
    assert long.done_steps == 0
    assert neighbour.done_steps == before + 7
    finish(engine)
    assert long.result().shape == (4, 60)


def test_every_clip_uses_its_own_seed(made):
    engine, clips, alone = made
    same = [engine.submit(clips[0]) for _ in range(3)]
    other = engine.submit(replace(clips[0], seed=77))
    finish(engine)
    assert all(torch.equal(job.result(), alone[0]) for job in same)
    assert not torch.equal(other.result(), alone[0])


@pytest.mark.parametrize("clips", [1, 4])
def test_a_burst_of_clips_takes_one_step_per_piece_of_prefill(made, clips):
    """Each clip prefills one piece, so the last clip starts `clips - 1` steps after the first."""
    engine, _, _ = made
    config = engine.lm.config
    # A single prompt frame, so that models with cross-attention have something to prefill, too.
    burst = [clip(config, length=6, prompt=1, seed=seed) for seed in range(clips)]
    jobs = [engine.submit(one) for one in burst]
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert steps == jobs[0].steps + clips - 1


def test_the_step_that_ends_a_prefill_decodes(made):
    engine, clips, _ = made
    job = engine.submit(clips[0])
    engine.step()
    assert job.done_steps == 1
    finish(engine)
