"""The pieces of a stream, joined, are the clip that `generate` returns, bit for bit."""

import gc
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextvars import copy_context

import pytest
import sounds
import tiny_checkpoints
import torch
from gate import until
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen import streaming
from musicgen.errors import DecodeError, InputError
from musicgen.output import normalize, preview, save
from musicgen.pipeline import MusicGen
from musicgen.rendering.demand import ENCODEC
from musicgen.request import Request
from musicgen.runtime import cancellation
from musicgen.runtime.budget import Budget
from musicgen.runtime.timings import Timings

FRAME = 0.02  # seconds
# Lengths in frames: around the ends of the first pieces, and at a rest that joins the piece before.
LENGTHS = [1, 24, 25, 26, 36, 37, 62, 63, 250]
full = pytest.mark.full


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A model with windows of 3 s: clips of 8 s have four."""
    folder = tmp_path_factory.mktemp("windowed")
    tiny_checkpoints.write_checkpoint(folder, "text", 3)
    return MusicGen.load(folder, "cpu")


@pytest.fixture(scope="module")
def diffusing(tmp_path_factory):
    """A model with Multi-Band Diffusion."""
    folder = tmp_path_factory.mktemp("diffusing")
    tiny_checkpoints.write_checkpoint(folder, "text")
    tiny_checkpoints.write_diffusion(folder)
    return MusicGen.load(folder, "cpu")


def asked(**fields):
    return Request(**{"prompt": "warm piano", "duration": 2, "seed": 7, **fields})


def streamed(model, request):
    """The joined pieces [C, N] of a stream, and its generation. Checks that there is no gap."""
    wavs, end = [], 0
    with model.stream(request) as stream:
        for piece in stream:
            assert piece.start == end
            wavs.append(piece.wav)
            end += piece.wav.shape[-1]
        return torch.cat(wavs, dim=-1), stream.generation


def assert_equal(model, request):
    joined, generation = streamed(model, request)
    [expected] = model.generate(request).wavs
    assert torch.equal(joined, expected)
    [wav] = generation.wavs
    assert torch.equal(wav, expected)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize(
    "kind",
    ["text", "stereo-melody", *(pytest.param(kind, marks=full) for kind in ("melody", "stereo"))],
)
def test_joined_pieces_are_the_clip(models, kind, frames):
    assert_equal(models[kind], asked(duration=frames * FRAME))


@pytest.mark.parametrize("seconds", [4, pytest.param(8, marks=full)])
def test_joined_pieces_are_the_clip_in_several_windows(windowed, seconds):
    assert_equal(windowed, asked(duration=seconds))


@pytest.mark.parametrize("prompt", [0.02, 0.4, 1.6])
def test_joined_pieces_are_the_clip_in_a_continuation(models, tmp_path, prompt):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(prompt, 32000), 32000)
    request = asked(input_audio=path, continuation=True, duration=3)
    assert_equal(models["stereo"], request)


def test_a_prompt_longer_than_a_window_is_streamed(windowed, tmp_path):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(4.0, 32000, 1), 32000)
    assert_equal(windowed, asked(input_audio=path, continuation=True, duration=6))


def test_joined_pieces_are_the_clip_for_a_melody(models, tune):
    assert_equal(models["stereo-melody"], asked(input_audio=tune))


def test_streams_beside_each_other_and_other_requests_get_their_own_bits(models):
    model = models["text"]
    requests = [asked(seed=seed, duration=1 + seed % 3) for seed in range(8)]
    alone = [model.generate(request).wavs[0] for request in requests]

    def run(index):
        request = requests[index]
        return streamed(model, request)[0] if index % 2 else model.generate(request).wavs[0]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8)))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_a_generation_does_not_wait_for_that_of_another_stream(models):
    model = models["text"]
    with model.stream(asked(duration=300)) as first, ThreadPoolExecutor(1) as pool:
        [job] = first._jobs
        waiting = pool.submit(lambda: first.generation)
        until(lambda: job.admitted)
        assert model.generate(asked()).wavs
        assert not job.done()
        job.cancel()
        with pytest.raises(CancelledError):
            waiting.result()


def test_the_first_piece_comes_before_the_clip_is_decoded(models):
    with models["text"].stream(asked(duration=20)) as stream:
        [job] = stream._jobs
        next(iter(stream))
        assert not job.done()


def test_a_generation_needs_no_piece_and_completes_those_that_are_left(models):
    model = models["stereo"]
    [expected] = model.generate(asked()).wavs
    for taken in range(3):
        with model.stream(asked()) as stream:
            for _ in range(taken):
                next(iter(stream))
            assert torch.equal(stream.generation.wavs[0], expected)


def test_changing_a_piece_does_not_change_the_generation(models):
    [expected] = models["text"].generate(asked()).wavs
    with models["text"].stream(asked()) as stream:
        for piece in stream:
            piece.wav.zero_()
        assert torch.equal(stream.generation.wavs[0], expected)


# --- when codes arrive ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """A model with windows of 3 s whose engine is stepped by the test, not by a thread."""
    folder = tmp_path_factory.mktemp("by_hand")
    tiny_checkpoints.write_checkpoint(folder, "stereo", 3)
    model = MusicGen.load(folder, "cpu")
    model.loop.close(wait=True)
    model.loop.submit = model.engine.submit
    return model


@settings(deadline=None, max_examples=8)
@given(
    frames=st.integers(1, 240),
    neighbours=st.integers(0, 2),
    ahead=st.lists(st.integers(0, 80), min_size=5, max_size=5),
)
def test_when_codes_arrive_does_not_change_the_bits(by_hand, frames, neighbours, ahead):
    """`ahead[i]`: steps that the engine takes before piece i is asked for, needed or not.

    A code that is not yet decoded is -1, which no codebook has: reading one would raise.
    """
    engine = by_hand.engine

    def stepping_wait(futures, timeout, return_when):
        enough = any if return_when == FIRST_COMPLETED else all
        while not enough(future.done() for future in futures):
            engine.step()
        return wait_for_futures(futures, timeout, return_when)

    request = asked(duration=frames * FRAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "wait", stepping_wait)
        [expected] = by_hand.generate(request).wavs
        clips = [by_hand._clips(asked(seed=seed), Timings())[0] for seed in range(neighbours)]
        others = [engine.submit(clip) for clip in clips]
        with by_hand.stream(request) as stream:
            pieces = iter(stream)
            wavs = []
            for steps in ahead:
                for _ in range(steps):
                    engine.step()
                wavs += [piece.wav for piece in [next(pieces, None)] if piece]
            wavs += [piece.wav for piece in pieces]
    for other in others:
        other.cancel()
    engine.step()
    assert torch.equal(torch.cat(wavs, dim=-1), expected)


def test_a_part_of_the_codes_is_given_when_it_is_final_and_not_before(by_hand):
    """Only the frames up to `Slot.final` are known; one more would hold a code that is not."""
    engine = by_hand.engine
    [clip] = by_hand._clips(asked(duration=2), Timings())
    [codes] = engine.generate([clip])
    job, given_after = engine.submit(clip), []
    for stop in range(1, 100):
        part = job.part(0, stop)
        while not part.done():
            engine.step()
        assert torch.equal(part.result(), codes[:, :stop])
        given_after.append(job.done_steps)
    delay = max(engine.lm.config.delays)
    assert given_after == [stop + delay for stop in range(1, 100)]
    job.cancel()
    engine.step()


# --- leaving early, failures ----------------------------------------------------------------------


def test_a_stream_that_is_left_frees_its_slot_before_the_next_step(models, monkeypatch):
    model, begun, lock = models["text"], [], threading.Lock()
    steps = model.engine.decode_steps

    def noting(indices):
        with lock:
            begun.append(list(indices))
        steps(indices)

    monkeypatch.setattr(model.engine, "decode_steps", noting)
    with model.stream(asked(duration=60)) as other:
        next(iter(other))
        with model.stream(asked(duration=300, seed=8)) as stream:
            next(iter(stream))
        with lock:
            seen = len(begun)
        until(lambda: len(begun) > seen + 5)
        # The engine may have been about to begin a step when the stream was left.
        assert {len(indices) for indices in begun[seen + 1 :]} == {1}
    assert list(stream) == []
    with pytest.raises(CancelledError):
        _ = stream.generation


def test_an_error_of_the_caller_passes_and_cancels(models):
    seen = []

    def play():
        with models["text"].stream(asked(duration=300)) as stream:
            seen.extend(stream._jobs)
            next(iter(stream))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        play()
    assert [job.cancelled() for job in seen] == [True]


def test_a_cancelled_request_ends_its_stream(models):
    request = cancellation.Cancellation()
    token = cancellation.current.set(request)
    try:
        with models["text"].stream(asked(duration=300)) as stream:
            next(iter(stream))
            request.cancel()
            with pytest.raises(CancelledError):
                list(stream)
    finally:
        cancellation.current.reset(token)
    assert all(job.cancelled() for job in stream._jobs)


@pytest.mark.parametrize("streams", [True, False])
def test_a_request_that_is_cancelled_while_it_waits_for_a_slot_ends_at_once(
    checkpoints, monkeypatch, streams
):
    monkeypatch.setenv("MUSICGEN_SLOTS", "1")
    model, request = MusicGen.load(checkpoints["text"], "cpu"), cancellation.Cancellation()
    longest = asked(duration=300)

    def wait_for_a_slot():
        cancellation.current.set(request)
        if not streams:
            return model.generate(asked())
        with model.stream(asked()) as stream:
            return list(stream)

    with model.stream(longest) as first, ThreadPoolExecutor(1) as pool:
        next(iter(first))
        second = pool.submit(copy_context().run, wait_for_a_slot)
        until(lambda: len(model.engine._waiting) == 1)
        request.cancel()
        with pytest.raises(CancelledError):
            second.result()
        assert not first._jobs[0].done()


@pytest.mark.parametrize("part", ["engine.decode_steps", "codec.render_piece"])
def test_a_failure_is_a_decode_error_and_the_next_request_works(models, monkeypatch, part):
    model = models["stereo"]
    [expected] = model.generate(asked()).wavs
    owner, name = part.split(".")

    def fail(*_):
        raise RuntimeError("broken")

    with model.stream(asked(duration=60)) as stream, monkeypatch.context() as patch:
        next(iter(stream))
        patch.setattr(getattr(model, owner), name, fail)
        with pytest.raises(DecodeError, match="because of a server error"):
            list(stream)
    assert torch.equal(streamed(model, asked())[0], expected)


def test_a_generation_is_right_after_a_piece_has_failed(models, monkeypatch):
    model = models["text"]
    [expected] = model.generate(asked()).wavs
    with model.stream(asked()) as stream:
        next(iter(stream))
        with monkeypatch.context() as patch:
            patch.setattr(model.codec, "render_piece", None)
            with pytest.raises(DecodeError):
                list(stream)
        assert torch.equal(stream.generation.wavs[0], expected)


def test_a_stream_of_several_clips_is_refused(models):
    with pytest.raises(InputError, match="clips=2: a stream has one clip"):
        models["text"].stream(asked(clips=2))


def test_a_request_that_does_not_fit_is_refused_before_anything_runs(models, tune):
    with (
        pytest.raises(InputError, match="duration=2"),
        models["text"].stream(asked(input_audio=tune, continuation=True)),
    ):
        raise AssertionError("not reached")


# --- memory, stages, diffusion, levels ------------------------------------------------------------


def test_pieces_wait_for_the_budget_of_renderings(models, monkeypatch):
    """A stream holds memory of the budget for one piece at a time."""
    model = models["stereo"]
    [expected] = model.generate(asked(duration=5)).wavs
    largest = model.renderers.memory(100, ENCODEC)
    budget = Budget(largest)
    monkeypatch.setattr(model.renderers, "budget", budget)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: streamed(model, asked(duration=5))[0], range(4)))
    assert all(torch.equal(wav, expected) for wav in found)
    with model.stream(asked(duration=5)) as stream:
        pieces = iter(stream)
        next(pieces)
        assert budget._free == largest  # nothing is held between two pieces


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_clip_is_freed_with_its_last_reference(models, taken):
    """Not by a later garbage collection: clips of many requests would add up until then."""
    model = models["text"]
    gc.disable()
    try:
        with model.stream(asked()) as stream:
            pieces = iter(stream)
            for _ in range(taken):
                next(pieces)
            wav = weakref.ref(stream.generation.wavs[0])
        assert wav() is not None
        del stream, pieces
        assert wav() is None
        wav = weakref.ref(model.generate(asked()).wavs[0])
        assert wav() is None
    finally:
        gc.enable()


def test_the_stages_of_a_stream_are_those_of_a_request(models):
    timings = Timings()
    with models["text"].stream(asked(), timings) as stream:
        list(stream)
        assert stream.generation
    assert set(timings.seconds) == {"audio", "conditioning", "waiting", "decode", "codec"}


def test_with_diffusion_the_pieces_are_encodecs_and_the_generation_is_diffusions(diffusing):
    by_encodec, by_diffusion = asked(), asked(multi_band_diffusion=True)
    joined, generation = streamed(diffusing, by_diffusion)
    assert torch.equal(joined, diffusing.generate(by_encodec).wavs[0])
    [expected] = diffusing.generate(by_diffusion).wavs
    assert torch.equal(generation.wavs[0], expected)
    assert not torch.equal(joined, expected)


def test_a_preview_is_the_wav_file_of_the_strategy_clip(models, tmp_path):
    request = asked(normalization_strategy="clip", output_format="wav")
    with models["stereo"].stream(request) as stream:
        pcm = b"".join(preview(piece.wav) for piece in stream)
        [path] = save(stream.generation, tmp_path / "a.wav")
    raw = path.read_bytes()
    assert raw[raw.index(b"data") + 8 :][: len(pcm)] == pcm
    assert len(pcm) == 2 * 2 * 2 * stream.sample_rate


def test_a_preview_silences_what_is_not_finite_and_cuts_peaks():
    wav = torch.tensor([[0.5, float("nan"), float("inf"), 2.0, -2.0], [0.25, 0, 0, -0.5, 1e-12]])
    levelled = normalize(wav, "clip", 32000)
    expected = (levelled * 32767).round().to(torch.int16).T.contiguous()
    assert preview(wav) == expected.numpy().tobytes()
