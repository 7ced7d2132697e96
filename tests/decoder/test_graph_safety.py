"""Captured decode steps, as the engine uses them on CUDA, as far as a CPU can check them."""

import random
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from paper_graph import Capture, NoWaiting, Operations, PaperGraph, Unsafe, no_allocation
from tiny_lm import MAX_LENGTH, STRIDE, clip, oracle_lm, tiny_config
from torch import Tensor

from musicgen.decoder import decode_steps, kernels
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM

SHARED = 3  # positions
SETTINGS = (
    {},
    {"temperature": 0.0, "length": 33},
    {
        "top_p": 0.9,
        "length": 90,
        "prompt": 11,
    },  # windows: one with a prompt, whole ones, a shorter last one
    {"top_k": 0, "cfg_coef": 1.0, "length": 7},
    {"length": 1, "text": "3:1"},
    {"length": 60, "prompt": 40, "text": "2:14"},
)


def make_engine(lm, **options):
    null = None if lm.config.cross_attention else torch.zeros(SHARED, lm.config.dim)
    return Engine(
        lm,
        max_length=MAX_LENGTH,
        stride=STRIDE,
        slots=4,
        max_prefix=16,
        shared_prefix=null,
        ops=kernels.TORCH,
        **options,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["cross", "prepend"])
def lm(request):
    config = tiny_config(cross=request.param, num_layers=2)
    state = oracle_lm(config, half=True).state_dict()
    return LM.from_audiocraft(config, state, device="cpu", dtype=torch.float16)


@pytest.fixture
def captured(lm, monkeypatch):
    """An engine that captures its steps."""
    monkeypatch.setattr(decode_steps, "Graphed", PaperGraph)
    return make_engine(lm, capture=True)


def clips_of(lm):
    clips = [clip(lm.config, seed=seed, **settings) for seed, settings in enumerate(SETTINGS)]
    if lm.config.cross_attention:
        return clips
    return [replace(one, conditions=[*map(guided, one.conditions)]) for one in clips]


def guided(conditions):
    """Conditions whose unconditional row begins with the shared prefix, up to its own length."""
    return replace(conditions, shared=(0, min(SHARED, conditions.prefix.shape[1])))


def addresses(value):
    """The addresses of all tensors in nested dataclasses."""
    if isinstance(value, Tensor):
        return [value.data_ptr()]
    parts = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else []
    return [address for part in parts for address in addresses(part)]


def quiet(engine):
    """Whether the next step only replays a graph that is already captured."""
    slots = [slot for slot in engine._slots if slot]
    graphs = {size for size, (_, step) in engine.decode_steps.captured.items() if step.graph}
    waiting = engine._waiting or any(slot.prefill or slot.left == 1 for slot in slots)
    gone = any(slot.job.cancelled() for slot in slots)
    return not waiting and not gone and any(size // 2 < len(slots) <= size for size in graphs)


def finish(engine, jobs):
    """Step to the end under observation; the number of steps that only replayed a graph."""
    steps = 0
    while engine.busy:
        still = quiet(engine)
        steps += still
        with NoWaiting(), no_allocation() if still else Operations(lambda *_: None):
            engine.step()
    for job in jobs:
        if not job.cancelled():
            job.result()  # raises the exception of a step that failed
    assert not engine._retried
    return steps


def test_captured_steps_give_the_codes_of_uncaptured_steps(lm, captured):
    """Over first, later and last windows, with clips that arrive, finish and are cancelled."""
    clips, before = clips_of(lm), addresses(captured.state)
    alone = [make_engine(lm).generate([one])[0] for one in clips]
    chance, jobs = random.Random(1), []
    for _ in range(16):
        index = chance.randrange(len(clips))
        jobs.append((index, captured.submit(clips[index])))
        for _ in range(chance.randrange(20)):
            with NoWaiting():
                captured.step()
        if chance.random() < 0.3:
            chance.choice(jobs)[1].cancel()
    quiet_steps = finish(captured, [job for _, job in jobs])
    left = [(index, job) for index, job in jobs if not job.cancelled()]
    assert 8 < len(left) < 16
    for index, job in left:
        assert torch.equal(job.result(), alone[index])
    assert quiet_steps > 20
    assert addresses(captured.state) == before
    assert set(captured.decode_steps.captured) == {1, 2, 4}


def reads_a_number(engine):
    return int(engine.state.column[0])


def chooses_by_a_number(engine):
    return 1 if engine.state.column[0] > 3 else 0


def brings_a_number(engine):
    engine.state.column.add_(torch.tensor([0]))


def grows(engine):
    engine.kept = [*getattr(engine, "kept", []), engine.state.column + 1]


UNSAFE = {
    reads_a_number: "waits",
    chooses_by_a_number: "waits",
    brings_a_number: "copies from the host",
    grows: "keeps what it allocates",
}


@pytest.mark.parametrize("wrong", UNSAFE, ids=lambda wrong: wrong.__name__)
def test_a_step_that_cannot_be_captured_is_detected(lm, captured, wrong, monkeypatch):
    step = decode_steps.decode_step

    def decode_step(*arguments):
        wrong(captured)
        step(*arguments)

    monkeypatch.setattr(decode_steps, "decode_step", decode_step)
    job = captured.submit(clips_of(lm)[0])
    with pytest.raises(Unsafe, match=UNSAFE[wrong]):
        finish(captured, [job])


def test_an_allocation_between_replays_is_detected(lm, captured, monkeypatch):
    monkeypatch.setattr(captured, "_limit_lead", lambda: torch.zeros(1))
    job = captured.submit(clips_of(lm)[0])
    with pytest.raises(Unsafe, match="allocates"):
        finish(captured, [job])


def test_a_replay_repeats_the_choices_of_the_capture():
    """Like a CUDA graph, it repeats the host's choices during capture, at the same addresses."""
    place, choice = torch.zeros(2), iter([1.0, 2.0, 3.0, 4.0])
    capture = Capture(lambda: place.copy_(place + next(choice)))
    place.zero_()
    capture.replay()
    capture.replay()
    assert place.tolist() == [4.0, 4.0]
