"""Requests become the audio that audiocraft would make of them, and only their own."""

import gc
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
import soundfile
import sounds
import torch

from musicgen.errors import DecodeError, InputError, MusicGenError
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from musicgen.runtime.devices import resolve_device
from musicgen.runtime.timings import Timings

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    """3 s of melody as a file."""
    folder = tmp_path_factory.mktemp("tune")
    return sounds.write(folder / "tune.wav", sounds.melody(3.0, 32000), 32000)


@pytest.fixture(scope="module")
def references(checkpoints):
    return {kind: oracle.load(folder) for kind, folder in checkpoints.items()}


def generate(model, **fields):
    return model.generate(Request(**{"duration": 1, "seed": 7, "prompt": PROMPT, **fields}))


def reference_wav(reference, request, run):
    """wav [C, N] of audiocraft with the request's settings and the same random numbers."""
    reference.set_generation_params(
        duration=request.duration,
        top_k=request.top_k,
        top_p=request.top_p,
        temperature=request.temperature,
        cfg_coef=request.classifier_free_guidance,
    )
    with oracle.unshifted, torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(request.seed)
        return run(reference)[0]


def assert_same_sound(wav, reference):
    """Equal codes give equal sound but for the last bits; one other code would be far off."""
    assert wav.shape == reference.shape
    assert float((wav - reference).abs().max()) < 1e-4 * float(reference.abs().max())


@pytest.mark.parametrize("kind", ["text", "melody", "stereo", "stereo-melody"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0},
        {"top_k": 0},
        {"top_p": 0.6},
        {"classifier_free_guidance": 1, "temperature": 1.3},
    ],
    ids=["default", "greedy", "all", "top_p", "free"],
)
def test_text_equals_audiocraft(models, references, kind, settings):
    request = Request(prompt=PROMPT, duration=1, seed=7, **settings)
    reference = reference_wav(references[kind], request, lambda r: r.generate([PROMPT]))
    assert_same_sound(models[kind].generate(request).wavs[0], reference)


@pytest.mark.parametrize("kind", ["text", "stereo-melody"])
def test_no_prompt_equals_audiocraft(models, references, kind):
    request = Request(duration=1, seed=7)
    reference = reference_wav(references[kind], request, lambda r: r.generate_unconditional(1))
    assert_same_sound(models[kind].generate(request).wavs[0], reference)


@pytest.mark.parametrize("kind", ["melody", "stereo-melody"])
def test_melody_equals_audiocraft(models, references, kind, tune):
    request = Request(prompt=PROMPT, duration=1, seed=7, input_audio=tune)
    melody = torch.from_numpy(sounds.melody(3.0, 32000))
    reference = reference_wav(
        references[kind], request, lambda r: r.generate_with_chroma([PROMPT], [melody], 32000)
    )
    assert_same_sound(models[kind].generate(request).wavs[0], reference)


@pytest.mark.parametrize("seconds", [32.0, 41.7])
def test_a_melody_longer_than_the_window_equals_audiocraft(models, references, tmp_path, seconds):
    """audiocraft separates all of it; what lies behind the window can still change its end."""
    wav = sounds.melody(seconds, 32000)
    path = sounds.write(tmp_path / "a.flac", wav, 32000)
    [melody] = [torch.from_numpy(soundfile.read(path, dtype=np.float32)[0].T)]
    request = Request(prompt=PROMPT, duration=1, seed=7, input_audio=path)
    reference = reference_wav(
        references["melody"],
        request,
        lambda r: r.generate_with_chroma([PROMPT], [melody], 32000),
    )
    assert_same_sound(models["melody"].generate(request).wavs[0], reference)


@pytest.mark.parametrize("kind", ["text", "stereo", "stereo-melody"])
def test_continuation_equals_audiocraft(models, references, kind, tmp_path):
    wav = torch.from_numpy(sounds.melody(2.0, 32000))
    soundfile.write(tmp_path / "a.wav", wav.numpy().T, 32000, subtype="FLOAT")
    request = Request(
        prompt=PROMPT,
        duration=2,
        seed=7,
        input_audio=tmp_path / "a.wav",
        continuation=True,
        continuation_end=1,
    )
    reference = reference_wav(
        references[kind],
        request,
        lambda r: r.generate_continuation(wav[:, :32000], 32000, [PROMPT]),
    )
    assert_same_sound(models[kind].generate(request).wavs[0], reference)


def test_windows_beyond_30_s_equal_audiocraft(models, references):
    request = Request(prompt=PROMPT, duration=31, seed=7)
    reference = reference_wav(references["text"], request, lambda r: r.generate([PROMPT]))
    assert_same_sound(models["text"].generate(request).wavs[0], reference)


@pytest.mark.parametrize("seconds", [7.0, 45.0])
def test_windows_tile_the_melody_as_audiocraft(models, references, tmp_path, monkeypatch, seconds):
    """Separation aside: audiocraft separates every window's tiled melody, ours tiles one stem."""
    wav = sounds.melody(seconds, 32000)
    wav[:, 100000:150000] = 0
    path = sounds.write(tmp_path / "a.flac", wav, 32000)
    chroma = references["melody"].lm.condition_provider.conditioners["self_wav"]
    monkeypatch.setattr(chroma, "_get_stemmed_wav", lambda wav, _: wav)
    monkeypatch.setattr(models["melody"].conditioner.melody, "separate", lambda wav: wav)
    request = Request(prompt=PROMPT, duration=31, seed=7, input_audio=path)
    reference = reference_wav(
        references["melody"],
        request,
        lambda r: r.generate_with_chroma([PROMPT], [torch.from_numpy(wav)], 32000),
    )
    assert_same_sound(models["melody"].generate(request).wavs[0], reference)


def test_a_prompt_longer_than_a_window_is_continued(models, tmp_path):
    path = sounds.write(tmp_path / "a.wav", sounds.melody(31.0, 32000, 1), 32000)
    request = Request(duration=33, seed=7, input_audio=path, continuation=True)
    model = models["text"]
    wav = model.generate(request).wavs[0]
    assert wav.shape == (1, 33 * 32000)
    prompt = model.codec.encode(torch.from_numpy(sounds.melody(31.0, 32000, 1)))
    rendered = model.codec.decode(prompt[None], [0])[0]
    assert torch.allclose(wav[:, : 30 * 32000], rendered[:, : 30 * 32000], atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"audio": True}, {"audio": True, "continuation": True}])
def test_the_same_seed_gives_the_same_bits_alone_and_among_others(models, tune, fields):
    if fields:
        fields = {**fields, "audio": tune, "end": 1, "duration": 2}
    model = models["stereo-melody"]
    alone = generate(model, **fields).wavs[0]
    [first, second, *_] = generate(model, **fields, clips=4).wavs
    assert torch.equal(alone, first)
    assert not torch.equal(first, second)
    assert torch.equal(second, generate(model, **{**fields, "seed": 8}).wavs[0])


def test_temperature_0_ignores_the_seed(models):
    wavs = [generate(models["text"], temperature=0, seed=seed).wavs[0] for seed in (1, 2)]
    assert torch.equal(*wavs)


def test_settings_and_prompts_change_the_result(models, tune):
    variants = [
        {},
        {"prompt": "techno"},
        {"prompt": None},
        {"cfg_coef": 6},
        {"top_k": 5},
        {"top_p": 0.5},
        {"temperature": 0.5},
        {"seed": 8},
        {"audio": tune},
    ]
    wavs = [generate(models["stereo-melody"], **fields).wavs[0] for fields in variants]
    assert len({wav.numpy().tobytes() for wav in wavs}) == len(variants)


def test_slice_applies_to_melodies_too(models, tmp_path):
    wav = np.concatenate([sounds.melody(2.0), sounds.melody(2.0) * 0, sounds.melody(1.0)], axis=1)
    whole = sounds.write(tmp_path / "whole.wav", wav)
    part = sounds.write(tmp_path / "part.wav", sounds.melody(2.0))
    model = models["melody"]
    sliced = generate(model, audio=whole, end=2).wavs[0]
    assert torch.equal(sliced, generate(model, audio=part).wavs[0])


def test_top_k_above_the_codebook_is_all_of_it(models):
    wavs = [generate(models["text"], top_k=top_k).wavs[0] for top_k in (0, 2048, 5000)]
    assert torch.equal(wavs[0], wavs[1])
    assert torch.equal(wavs[0], wavs[2])


def test_stereo_models_give_two_different_channels(models):
    wav = generate(models["stereo"]).wavs[0]
    assert wav.shape == (2, 32000)
    assert not torch.equal(wav[0], wav[1])


def refused(model, monkeypatch, **fields):
    """The error of a request, made sure to come before anything is generated."""
    monkeypatch.setattr(model.loop, "submit", None)
    monkeypatch.setattr(model, "conditioner", None)
    with pytest.raises(InputError) as caught:
        generate(model, **fields)
    return str(caught.value)


def test_melody_for_a_model_without_melody_is_refused(models, monkeypatch, tune):
    message = refused(models["text"], monkeypatch, audio=tune)
    assert "no melody conditioning" in message
    assert "continuation=true" in message


@pytest.mark.parametrize("fields", [{"duration": 3}, {"duration": 2}, {"end": 1}])
def test_a_prompt_as_long_as_the_result_is_refused(models, monkeypatch, tune, fields):
    message = refused(models["text"], monkeypatch, audio=tune, continuation=True, **fields)
    assert message.startswith("duration=")
    assert "duration includes the prompt" in message


def test_a_prompt_one_frame_short_of_the_result_is_refused_or_served(models, tmp_path):
    """0.99 s is 49.5 frames: the codec makes 50 of it, all of the second. 0.97 s leaves one."""
    model = models["text"]
    for seconds, served in ((0.99, False), (0.97, True)):
        path = sounds.write(tmp_path / f"{seconds}.wav", sounds.melody(seconds, 32000), 32000)
        if served:
            assert generate(model, audio=path, continuation=True).wavs[0].shape == (1, 32000)
        else:
            with pytest.raises(InputError, match="duration=1"):
                generate(model, audio=path, continuation=True)


def test_a_prompt_of_all_frames_but_one_is_served_at_any_duration(models, tmp_path):
    """4.98 s are 249 frames; 159360 / 32000 * 50 in floating point is a little more."""
    path = sounds.write(tmp_path / "a.wav", sounds.melody(4.98, 32000), 32000)
    wav = generate(models["text"], audio=path, continuation=True, duration=5).wavs[0]
    assert wav.shape == (1, 5 * 32000)


def test_one_sample_of_melody_or_prompt_is_served(models, tmp_path):
    path = sounds.write(tmp_path / "a.wav", np.full((1, 1), 0.5, np.float32), 32000)
    for continuation in (False, True):
        wav = generate(models["stereo-melody"], audio=path, continuation=continuation).wavs[0]
        assert torch.isfinite(wav).all()


def test_seed_and_stages_are_reported(models, caplog):
    with caplog.at_level(logging.INFO, "musicgen"):
        timings = Timings()
        generation = models["text"].generate(Request(duration=1, seed=0), timings)
    assert "seed: 0" in caplog.text
    stages = {"audio", "conditioning", "waiting", "decode", "codec"}
    assert set(timings.seconds) == stages
    metrics = timings.metrics(generation.total_duration)
    assert set(metrics) == {*(f"seconds.{stage}" for stage in stages), "real_time_factor"}
    assert metrics["real_time_factor"] > 0
    assert generation.duration == 1.0


def test_an_interrupted_request_leaves_the_next_one_alone(models, monkeypatch):
    model = models["text"]
    expected = generate(model).wavs[0]

    class Cancelled(BaseException):
        pass

    def cancel(*_):
        raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr("musicgen.pipeline.tqdm.update", cancel)
        with pytest.raises(Cancelled):
            generate(model)
    assert torch.equal(generate(model).wavs[0], expected)


@pytest.mark.parametrize("part", ["prefill", "step"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory.*shorter"),
        (ZeroDivisionError(), "not by the request's fault"),
    ],
    ids=["memory", "other"],
)
def test_an_error_of_the_decode_loop_is_one_message_and_the_next_request_works(
    models, monkeypatch, part, error, message
):
    model = models["stereo-melody"]
    expected = generate(model).wavs[0]

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(model.engine.lm, part, fail)
        with pytest.raises(DecodeError, match=message):
            generate(model)
    assert torch.equal(generate(model).wavs[0], expected)


def test_requests_from_many_threads_get_what_they_get_alone(models, tune):
    model = models["stereo-melody"]
    variants = [{"seed": seed, "audio": audio} for seed in range(4) for audio in (None, tune)]
    alone = [generate(model, **fields).wavs[0] for fields in variants]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda fields: generate(model, **fields).wavs[0], variants))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_a_model_that_nobody_holds_ends_its_thread(checkpoints):
    model = MusicGen.load(checkpoints["text"], "cpu")
    thread = model.loop._thread
    assert thread.is_alive()
    del model
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_device(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("MUSICGEN_DEVICE", "cpu")
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setenv("MUSICGEN_DEVICE", "toaster")
    with pytest.raises(MusicGenError, match="MUSICGEN_DEVICE='toaster'"):
        resolve_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(MusicGenError, match="set MUSICGEN_DEVICE=cpu"):
        resolve_device("cuda")


def test_weights_come_from_the_environment(checkpoints, monkeypatch):
    monkeypatch.setenv("MUSICGEN_WEIGHTS", str(checkpoints["text"]))
    assert MusicGen.load(device="cpu").name == "text"
