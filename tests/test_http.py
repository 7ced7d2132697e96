"""Both predictors behind the real Cog server, as HTTP clients see them."""

import re

import numpy as np
import plain_http
import pytest
import sounds
from cog_client import content, data_uri, samples
from image_label import assert_contract
from web import web_server

from musicgen.request import MAX_PROMPT

PROMPT = "lofi chill, warm piano, C minor, 80 bpm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """3 s of a melody in every format."""
    folder = tmp_path_factory.mktemp("sounds")
    for extension, rate in sounds.RATES.items():
        sounds.write(folder / f"tune.{extension}", sounds.melody(3.0, rate))
    (folder / "broken.wav").write_bytes(b"RIFF and then nothing")
    (folder / "empty.wav").write_bytes(b"")
    sounds.write_picture(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def tune_uri(folder):
    return data_uri(folder / "tune.wav")


@pytest.fixture
def server(request):
    """The server of the predictor that the test is parametrized with."""
    return request.getfixturevalue(f"{request.param}_server")


both = pytest.mark.parametrize("server", ["predict", "songstarter"], indirect=True)


@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_served_schema_is_the_contract(request, predictor):
    server = request.getfixturevalue(f"{predictor}_server")
    assert_contract(plain_http.get(f"{server.url}/openapi.json").json(), predictor)


def test_predict_returns_the_object(predict_server, served_model):
    output = predict_server.predict(prompt=PROMPT, duration=2, seed=7)["output"]
    kind, raw = content(output.pop("audio"))
    assert kind == "audio/mpeg"
    assert len(raw) == pytest.approx(2 * 320_000 / 8, rel=0.1)
    assert output == {
        "seed": 7,
        "duration": 2.0,
        "sample_rate": 32000,
        "channels": 2,
        "output_format": "mp3",
        "model": served_model,
    }


def test_songstarter_returns_four_different_wavs(songstarter_server):
    output = songstarter_server.predict(prompt=PROMPT, duration=2, seed=7)["output"]
    assert len(output) == len(set(output)) == 4
    for uri in output:
        wav, rate = samples(uri)
        assert content(uri)[0] in ("audio/wav", "audio/x-wav")
        assert (rate, wav.shape) == (32000, (2, 64000))
        assert 0.01 < np.abs(wav).max() < 0.9


def test_defaults_are_those_of_the_contract(predict_server):
    output = predict_server.predict()["output"]
    assert (output["duration"], output["output_format"]) == (8.0, "mp3")
    assert 0 <= output["seed"] < 2**32


@both
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"prompt": PROMPT},
        {"prompt": PROMPT, "melody": True},
        {"melody": True},
        {
            "prompt": PROMPT,
            "melody": True,
            "continuation": True,
            "continuation_end": 1,
            "duration": 2,
        },
    ],
    ids=["nothing", "text", "text and melody", "melody", "continuation"],
)
def test_the_same_request_gives_the_same_bytes(server, tune_uri, inputs):
    inputs = {"duration": 1, "seed": 0, "output_format": "wav", **inputs}
    if inputs.pop("melody", False):
        inputs["input_audio"] = tune_uri
    assert server.predict(**inputs)["output"] == server.predict(**inputs)["output"]


def test_clip_i_of_songstarter_is_the_clip_of_predict_with_seed_plus_i(
    predict_server, songstarter_server
):
    clips = songstarter_server.predict(prompt=PROMPT, duration=1, seed=5)["output"]
    for index, clip in enumerate(clips):
        alone = predict_server.predict(
            prompt=PROMPT, duration=1, seed=5 + index, output_format="wav"
        )
        assert content(alone["output"]["audio"])[1] == content(clip)[1]


@pytest.mark.parametrize("seed", [None, -1])
def test_a_drawn_seed_is_returned_and_reproduces(predict_server, seed):
    inputs = {"duration": 1, "output_format": "wav"}
    first = predict_server.predict(**inputs, **({} if seed is None else {"seed": seed}))
    assert f"seed: {first['output']['seed']}" in first["logs"]
    again = predict_server.predict(**inputs, seed=first["output"]["seed"])
    assert first["output"] == again["output"]


def test_songstarter_logs_the_seed(songstarter_server):
    assert "seed: 9" in songstarter_server.predict(duration=1, seed=9)["logs"]


def test_the_metrics_say_the_precision(predict_server, songstarter_server):
    for server in (predict_server, songstarter_server):
        answer = server.predict(duration=1, seed=1)
        assert answer["metrics"]["precision"] == "exact"


@pytest.mark.parametrize("extension", sounds.RATES)
@pytest.mark.parametrize("continuation", [False, True])
def test_every_audio_format_serves_as_melody_and_as_audio_prompt(
    predict_server, folder, extension, continuation
):
    uri = data_uri(folder / f"tune.{extension}", "application/octet-stream")
    seconds = 4 if continuation else 1
    output = predict_server.predict(
        input_audio=uri, continuation=continuation, duration=seconds, output_format="wav"
    )["output"]
    assert samples(output["audio"])[0].shape == (2, seconds * 32000)


def test_input_by_http(predict_server, folder, tune_uri):
    inputs = {"duration": 1, "seed": 3}
    with web_server({"tune.wav": (folder / "tune.wav").read_bytes()}) as web:
        url = f"{web.url}/whole/tune.wav"
        fetched = predict_server.predict(input_audio=url, **inputs)["output"]
        assert predict_server.error(input_audio=f"{web.url}/whole/missing.wav", **inputs)
    assert fetched == predict_server.predict(input_audio=tune_uri, **inputs)["output"]


# (inputs, what the error says)
BAD = [
    ({"continuation": True}, "continuation=True: there is no input_audio to continue"),
    ({"continuation_start": 1}, "continuation_start=1: no input_audio to cut"),
    ({"continuation_end": 1}, "continuation_end=1: no input_audio to cut"),
    ({"audio": "tune.wav", "continuation_end": 0}, "continuation_end=0: .*empty or reversed"),
    (
        {"audio": "tune.wav", "continuation_start": 2, "continuation_end": 1},
        "continuation_end=1: .*Send a value above 2",
    ),
    (
        {"audio": "tune.wav", "continuation_start": 3},
        "continuation_start=3: starts past the end of input_audio, which is 3.00 s long",
    ),
    (
        {"audio": "tune.wav", "continuation": True, "duration": 3},
        r"duration=3: .*Send a duration above 3.00 or continuation_end=2\.",
    ),
    ({"audio": "broken.wav"}, "input_audio=.*cannot be read as audio.*Send an audio file"),
    ({"audio": "empty.wav"}, "input_audio=.*cannot be read as audio"),
    ({"audio": "picture.png"}, "input_audio=.*cannot be read as audio"),
    ({"input_audio": "/etc/passwd"}, "input_audio='/etc/passwd': not a file.*URL"),
    ({"input_audio": "file:///etc/passwd"}, "input_audio='file:///etc/passwd': not a file"),
    ({"input_audio": ""}, "input_audio='': not a file"),
]


@both
def test_bad_inputs_are_one_clear_error_each_and_the_server_goes_on(server, folder):
    for inputs, message in BAD:
        inputs = dict(inputs)
        if "audio" in inputs:
            inputs["input_audio"] = data_uri(folder / inputs.pop("audio"))
        error = server.error(**inputs)
        assert error == error.splitlines()[0]
        assert re.search(f"InputError: {message}", error), error
    assert server.predict(duration=1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"song_id": 3}, "song_id=3: .*UPLOAD_BUCKET is not set; UPLOAD_KEY is not set"),
        ({"song_id": 3, "key": "k"}, "song_id=3: .*UPLOAD_BUCKET is not set"),
    ],
)
def test_song_id_without_a_bucket_is_refused_before_any_work(predict_server, inputs, message):
    answer = predict_server.post(**inputs).json()
    assert re.search(message, answer["error"])
    assert "seed:" not in answer["logs"]


@both
@pytest.mark.parametrize(
    "inputs",
    [
        {"duration": 0},
        {"duration": 301},
        {"duration": "x"},
        {"duration": 1.5},
        {"continuation_start": -1},
        {"continuation_end": -2},
        {"normalization_strategy": "loud"},
        {"output_format": "ogg"},
        {"top_k": -1},
        {"top_p": 1.1},
        {"temperature": -1},
        {"classifier_free_guidance": -1},
        {"seed": -2},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_the_schema_is_enforced(server, inputs):
    response = server.post(**inputs)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "input", *inputs]


NUMBERS = [
    {"seed": 2**32 - 1},
    {"top_k": 0},
    {"top_k": 5000},
    {"classifier_free_guidance": 0},
    {"top_p": 1},
    {"classifier_free_guidance": 1},
    {"temperature": 0},
    {"continuation_end": -1},
]
PROMPTS = [
    {"prompt": text} for text in ("", "   ", "piano " * (MAX_PROMPT // 6), "🎹 ピアノ, طبلة, ß")
]
STRATEGIES = [{"normalization_strategy": name} for name in ("loudness", "clip", "peak", "rms")]
# For songstarter, whose four clips take longer, several values are in one request.
TOGETHER = [
    one | two | prompt | strategy
    for one, two, prompt, strategy in zip(
        NUMBERS[::2], NUMBERS[1::2], PROMPTS, STRATEGIES, strict=True
    )
]


@pytest.mark.parametrize(
    ("server", "inputs"),
    [
        *(("predict", inputs) for inputs in NUMBERS + PROMPTS + STRATEGIES),
        *(("songstarter", inputs) for inputs in TOGETHER),
    ],
    ids=lambda value: str(value)[:40],
    indirect=["server"],
)
def test_values_at_the_bounds_are_served(server, inputs):
    output = server.predict(**{"duration": 1, "output_format": "wav", **inputs})["output"]
    wav, _ = samples(output[0] if isinstance(output, list) else output["audio"])
    assert wav.shape == (2, 32000)
    assert np.isfinite(wav).all()
    assert np.abs(wav).max() <= 0.892


def test_end_past_the_file_is_the_end(predict_server, tune_uri):
    inputs = {"input_audio": tune_uri, "duration": 1, "seed": 1}
    late = predict_server.predict(**inputs, continuation_end=99)
    assert "continuation_end=99 is past the end" in late["logs"]
    whole = predict_server.predict(**inputs)
    heard, expected = (samples(answer["output"]["audio"])[0] for answer in (late, whole))
    assert np.array_equal(heard, expected)  # the files' tags differ


def test_progress_and_metrics_are_reported(predict_server):
    answer = predict_server.predict(duration=1)
    assert "decode: 100%" in answer["logs"]
    assert set(answer["metrics"]["seconds"]) >= {
        "audio",
        "conditioning",
        "waiting",
        "decode",
        "codec",
        "output",
    }
    assert answer["metrics"]["real_time_factor"] > 0
