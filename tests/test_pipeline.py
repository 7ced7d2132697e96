"""A request's audio equals audiocraft's, and does not depend on other requests."""

import gc
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
import soundfile
import sounds
import tiny_checkpoints
import torch

from musicgen.errors import DecodeError, InputError, MusicGenError
from musicgen.pipeline import MusicGen
from musicgen.request import Request
from musicgen.runtime.devices import resolve_device
from musicgen.runtime.timings import Timings

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"


@pytest.fixture(scope="module")
def references(checkpoints):
    return {kind: oracle.load(folder) for kind, folder in checkpoints.items()}


@pytest.fixture(
    scope="module",
    params=[3, pytest.param(30, marks=pytest.mark.full)],
    ids="windows of {} s".format,
)
def windowed(request, tmp_path_factory):
    """The window's seconds, and kind -> (our model, audiocraft's) with windows of that length."""
    folder, window = tmp_path_factory.mktemp("windows"), request.param
    for kind in ("text", "melody"):
        tiny_checkpoints.write_checkpoint(folder / kind, kind, window)
    return window, {
        kind: (MusicGen.load(folder / kind, "cpu"), oracle.load(folder / kind))
        for kind in ("text", "melody")
    }


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
        extend_stride=18 * reference.max_duration / 30,
    )
    with oracle.unshifted, torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(request.seed)
        return run(reference)[0]


def assert_same_sound(wav, reference):
    """Equal codes give equal sound except for the last bits; one wrong code differs by far more."""
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


@pytest.mark.parametrize("windows", [1.07, 1.39])
def test_a_melody_longer_than_the_window_equals_audiocraft(windowed, tmp_path, windows):
    """audiocraft separates all of it; sound after the window can still change the window's end."""
    window, models = windowed
    wav = sounds.melody(windows * window, 32000)
    path = sounds.write(tmp_path / "a.flac", wav, 32000)
    [melody] = [torch.from_numpy(soundfile.read(path, dtype=np.float32)[0].T)]
    request = Request(prompt=PROMPT, duration=1, seed=7, input_audio=path)
    model, reference = models["melody"]
    expected = reference_wav(
        reference, request, lambda r: r.generate_with_chroma([PROMPT], [melody], 32000)
    )
    assert_same_sound(model.generate(request).wavs[0], expected)


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


def test_several_windows_equal_audiocraft(windowed):
    window, models = windowed
    model, reference = models["text"]
    request = Request(prompt=PROMPT, duration=window + 1, seed=7)
    expected = reference_wav(reference, request, lambda r: r.generate([PROMPT]))
    assert_same_sound(model.generate(request).wavs[0], expected)


@pytest.mark.parametrize("windows", [0.23, 1.5])
def test_windows_tile_the_melody_as_audiocraft(windowed, tmp_path, monkeypatch, windows):
    """Without separation: audiocraft separates every window's tiled melody, ours tiles one stem."""
    window, models = windowed
    model, reference = models["melody"]
    wav = sounds.melody(windows * window, 32000)
    wav[:, wav.shape[1] // 3 : wav.shape[1] // 2] = 0
    path = sounds.write(tmp_path / "a.flac", wav, 32000)
    chroma = reference.lm.condition_provider.conditioners["self_wav"]
    monkeypatch.setattr(chroma, "_get_stemmed_wav", lambda wav, _: wav)
    monkeypatch.setattr(model.conditioner.melody, "separate", lambda wav: wav)
    request = Request(prompt=PROMPT, duration=window + 1, seed=7, input_audio=path)
    expected = reference_wav(
        reference,
        request,
        lambda r: r.generate_with_chroma([PROMPT], [torch.from_numpy(wav)], 32000),
    )
    assert_same_sound(model.generate(request).wavs[0], expected)


def test_an_audio_prompt_longer_than_a_window_is_continued(windowed, tmp_path):
    window, models = windowed
    wav = sounds.melody(window + 1.0, 32000, 1)
    path = sounds.write(tmp_path / "a.wav", wav, 32000)
    request = Request(duration=window + 3, seed=7, input_audio=path, continuation=True)
    model = models["text"][0]
    made = model.generate(request).wavs[0]
    assert made.shape == (1, (window + 3) * 32000)
    prompt = model.codec.encode(torch.from_numpy(wav))
    rendered = model.codec.decode(prompt[None], [0])[0]
    assert torch.allclose(made[:, : window * 32000], rendered[:, : window * 32000], atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{}, {"input_audio": True}, {"input_audio": True, "continuation": True}]
)
def test_the_same_seed_gives_the_same_bits_alone_and_with_other_clips(models, tune, fields):
    if fields:
        fields = {**fields, "input_audio": tune, "continuation_end": 1, "duration": 2}
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
        {"classifier_free_guidance": 6},
        {"top_k": 5},
        {"top_p": 0.5},
        {"temperature": 0.5},
        {"seed": 8},
        {"input_audio": tune},
    ]
    wavs = [generate(models["stereo-melody"], **fields).wavs[0] for fields in variants]
    assert len({wav.numpy().tobytes() for wav in wavs}) == len(variants)


def test_slice_applies_to_melodies_too(models, tmp_path):
    wav = np.concatenate([sounds.melody(2.0), sounds.melody(2.0) * 0, sounds.melody(1.0)], axis=1)
    whole = sounds.write(tmp_path / "whole.wav", wav)
    part = sounds.write(tmp_path / "part.wav", sounds.melody(2.0))
    model = models["melody"]
    sliced = generate(model, input_audio=whole, continuation_end=2).wavs[0]
    assert torch.equal(sliced, generate(model, input_audio=part).wavs[0])


def test_top_k_above_the_codebook_size_has_no_effect(models):
    wavs = [generate(models["text"], top_k=top_k).wavs[0] for top_k in (0, 2048, 5000)]
    assert torch.equal(wavs[0], wavs[1])
    assert torch.equal(wavs[0], wavs[2])


def test_stereo_models_give_two_different_channels(models):
    wav = generate(models["stereo"]).wavs[0]
    assert wav.shape == (2, 32000)
    assert not torch.equal(wav[0], wav[1])


def refused(model, monkeypatch, **fields):
    """The error of a request that is refused before any network runs: calling one would fail."""
    monkeypatch.setattr(model.loop, "submit", None)
    monkeypatch.setattr(model.codec, "encode", None)
    monkeypatch.setattr(type(model.conditioner), "__call__", None)
    with pytest.raises(InputError) as caught:
        generate(model, **fields)
    return str(caught.value)


def test_melody_for_a_model_without_melody_is_refused(models, monkeypatch, tune):
    message = refused(models["text"], monkeypatch, input_audio=tune)
    assert "no melody conditioning" in message
    assert "continuation=true" in message


@pytest.mark.parametrize("fields", [{"duration": 3}, {"duration": 2}, {"continuation_end": 1}])
def test_an_audio_prompt_as_long_as_the_result_is_refused(models, monkeypatch, tune, fields):
    message = refused(models["text"], monkeypatch, input_audio=tune, continuation=True, **fields)
    assert message.startswith("duration=")
    assert "duration includes the prompt" in message


def test_an_audio_prompt_must_leave_one_frame_to_generate(models, tmp_path):
    """0.99 s is 49.5 frames, which the codec rounds up to the whole second. 0.97 s leaves one."""
    model = models["text"]
    for seconds, served in ((0.99, False), (0.97, True)):
        path = sounds.write(tmp_path / f"{seconds}.wav", sounds.melody(seconds, 32000), 32000)
        if served:
            assert generate(model, input_audio=path, continuation=True).wavs[0].shape == (1, 32000)
        else:
            with pytest.raises(InputError, match="duration=1"):
                generate(model, input_audio=path, continuation=True)


def test_an_audio_prompt_of_all_frames_but_one_is_served_at_any_duration(models, tmp_path):
    """4.98 s are 249 frames; 159360 / 32000 * 50 in floating point is a little more."""
    path = sounds.write(tmp_path / "a.wav", sounds.melody(4.98, 32000), 32000)
    wav = generate(models["text"], input_audio=path, continuation=True, duration=5).wavs[0]
    assert wav.shape == (1, 5 * 32000)


def test_one_sample_of_melody_or_audio_prompt_is_served(models, tmp_path):
    path = sounds.write(tmp_path / "a.wav", np.full((1, 1), 0.5, np.float32), 32000)
    for continuation in (False, True):
        wav = generate(models["stereo-melody"], input_audio=path, continuation=continuation).wavs[0]
        assert torch.isfinite(wav).all()


def test_seed_and_stages_are_reported(models, caplog):
    with caplog.at_level(logging.INFO, "musicgen"):
        timings = Timings()
        generation = models["text"].generate(Request(duration=1, seed=0), timings)
    assert "seed: 0" in caplog.text
    assert "precision" not in caplog.text
    assert generation.precision == "exact"
    stages = {"audio", "conditioning", "waiting", "decode", "codec"}
    assert set(timings.seconds) == stages
    metrics = timings.metrics(generation.total_duration)
    assert set(metrics) == {*(f"seconds.{stage}" for stage in stages), "real_time_factor"}
    assert metrics["real_time_factor"] > 0
    assert generation.duration == 1.0


def test_the_fast_mode_is_loaded_on_request_and_reported(checkpoints, caplog):
    with caplog.at_level(logging.INFO, "musicgen"):
        model = MusicGen.load(checkpoints["text"], "cpu", precision="fast")
        generation = model.generate(Request(duration=1, seed=0))
    assert "precision fast" in caplog.text
    assert "precision: fast" in caplog.text
    assert generation.precision == "fast"
    assert model.engine.lm.heads.itemsize == 1
    assert model.engine.state.cache.keys.dtype == torch.float16


def test_an_interrupted_request_leaves_the_next_one_alone(models, monkeypatch):
    model = models["text"]
    expected = generate(model).wavs[0]

    class Cancelled(BaseException):
        pass

    def cancel(*_):
        raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr("musicgen.streaming.tqdm.update", cancel)
        with pytest.raises(Cancelled):
            generate(model)
    assert torch.equal(generate(model).wavs[0], expected)


@pytest.mark.parametrize("part", ["prefill", "step"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory.*shorter"),
        (ZeroDivisionError(), "because of a server error, not because of your request"),
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


def test_requests_from_many_threads_get_the_same_bits_as_alone(models, tune):
    model = models["stereo-melody"]
    variants = [{"seed": seed, "input_audio": audio} for seed in range(4) for audio in (None, tune)]
    alone = [generate(model, **fields).wavs[0] for fields in variants]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda fields: generate(model, **fields).wavs[0], variants))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_an_unreferenced_model_ends_its_thread(checkpoints):
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
