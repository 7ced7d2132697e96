"""A decode step that fails ends only the clips that cannot be decoded without an error."""

import random

import pytest
import torch
from tiny_lm import clip, half_engine, tiny_config

from musicgen.decoder import decode_steps
from musicgen.decoder.state import NOISE_STEPS

SETTINGS = (
    {},
    {"temperature": 0.0},
    {"top_p": 0.9, "length": 90, "prompt": 11},
    {"top_k": 0, "cfg_coef": 1.0, "length": 7},
    {"temperature": 1.3, "length": 50, "text": "2:14"},
)
OPTIONS = {"cpu": {}, "as on CUDA": {"capture": True, "eager": True}}


class Fault(Exception):  # noqa: N818 - the name says what is injected
    pass


@pytest.fixture(scope="module", params=OPTIONS)
def made(request):
    """An engine, clips of all kinds, and the codes of each clip decoded alone."""
    with pytest.MonkeyPatch.context() as patch:
        if OPTIONS[request.param]:
            patch.setitem(NOISE_STEPS, "cpu", 32)
        config = tiny_config(cross=request.param == "cpu", num_layers=2)
        engine = half_engine(config, slots=5, **OPTIONS[request.param])
        clips = [clip(config, seed=seed, **settings) for seed, settings in enumerate(SETTINGS)]
        yield engine, clips, [engine.generate([one])[0] for one in clips]


def break_before(step, fails):
    """Fails before anything is computed."""

    def broken(lm, ops, state, slots):
        if fails(slots):
            raise Fault
        step(lm, ops, state, slots)

    return broken


def break_inside(step, fails):
    """Fails when all keys and values are written, and no code."""

    def broken(lm, ops, state, slots):
        class Sampling:
            def __getattr__(self, name):
                return getattr(ops, name)

            def sample(self, *arguments):
                if fails(slots):
                    raise Fault
                return ops.sample(*arguments)

        step(lm, Sampling(), state, slots)

    return broken


def break_after(step, fails):
    """Fails when the codes are written and the positions advanced; spoils the codes as well."""

    def broken(lm, ops, state, slots):
        step(lm, ops, state, slots)
        if fails(slots):
            state.sequence[slots, :, state.column[slots]] = 0
            raise Fault

    return broken


BREAKS = (break_before, break_inside, break_after)


def finish(engine):
    while engine.busy:
        engine.step()


@pytest.mark.parametrize("bad", range(len(SETTINGS)))
@pytest.mark.parametrize("break_step", BREAKS)
def test_a_clip_whose_steps_fail_ends_alone(made, monkeypatch, break_step, bad):
    engine, clips, alone = made
    step, steps = decode_steps.decode_step, 0

    def fails(slots):
        nonlocal steps
        steps += 1
        return steps > 5 and bool((slots == bad).any())

    monkeypatch.setattr(decode_steps, "decode_step", break_step(step, fails))
    jobs = [engine.submit(one) for one in clips]
    finish(engine)
    with pytest.raises(Fault):
        jobs[bad].result()
    del jobs[bad]
    expected = [codes for index, codes in enumerate(alone) if index != bad]
    assert all(torch.equal(job.result(), codes) for job, codes in zip(jobs, expected, strict=True))
    assert engine.failures == 0


@pytest.mark.parametrize("break_step", BREAKS)
def test_no_clip_ends_if_its_step_works_without_the_others(made, monkeypatch, break_step):
    """As with memory that suffices for a smaller batch only."""
    engine, clips, alone = made
    step = decode_steps.decode_step
    monkeypatch.setattr(decode_steps, "decode_step", break_step(step, lambda slots: len(slots) > 1))
    jobs = [engine.submit(one) for one in clips]
    finish(engine)
    assert all(torch.equal(job.result(), codes) for job, codes in zip(jobs, alone, strict=True))


def test_random_failures_leave_the_codes_of_all_other_clips_alone(made, monkeypatch):
    engine, clips, alone = made
    chance, step = random.Random(3), decode_steps.decode_step

    def fails(slots):
        return chance.random() < (0.3 if len(slots) > 1 else 0.05)

    def broken(*arguments):
        chance.choice(BREAKS)(step, fails)(*arguments)

    monkeypatch.setattr(decode_steps, "decode_step", broken)
    jobs = []
    for _ in range(30):
        index = chance.randrange(len(clips))
        jobs.append((index, engine.submit(clips[index])))
        for _ in range(chance.randrange(12)):
            engine.step()
    finish(engine)
    failed = [job for _, job in jobs if job.exception()]
    left = [(index, job) for index, job in jobs if job not in failed]
    assert 0 < len(failed) < len(left)
    assert all(isinstance(job.exception(), Fault) for job in failed)
    assert all(torch.equal(job.result(), alone[index]) for index, job in left)


def test_noise_that_cannot_be_drawn_ends_its_clip_alone(made, monkeypatch):
    engine, clips, alone = made
    jobs = [engine.submit(one) for one in clips[:3]]
    engine._admit()
    engine._slots[1].generator = None  # draws from PyTorch's global generator, unlike a clip

    def no_default(tensor, *, generator):
        if generator is None:
            raise Fault
        return exponential(tensor, generator=generator)

    exponential = torch.Tensor.exponential_
    monkeypatch.setattr(torch.Tensor, "exponential_", no_default)
    finish(engine)
    with pytest.raises(Fault):
        jobs[1].result()
    assert torch.equal(jobs[0].result(), alone[0])
    assert torch.equal(jobs[2].result(), alone[2])


def test_a_repeated_step_is_logged_once(made, monkeypatch, caplog):
    engine, clips, _ = made
    step = decode_steps.decode_step
    engine._retried = False
    monkeypatch.setattr(
        decode_steps, "decode_step", break_before(step, lambda slots: len(slots) > 1)
    )
    engine.generate(clips[:2])
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "Fault" in caplog.text
