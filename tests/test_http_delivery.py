"""Features that only predict.py has, over HTTP: uploads with a key, Multi-Band Diffusion."""

import numpy as np
import plain_http
import pytest
import storage
import tiny_checkpoints
from cog_client import content, samples
from tags import read_by_others

KEY = "sésame-0xC0FFEE"


@pytest.fixture(scope="module")
def bucket():
    """(URL of a storage server with the bucket `songs`, proxy in front of it)."""
    with storage.storage_server("songs") as url, storage.fault_proxy(url) as proxy:
        yield url, proxy


def diffusing(folder, kind):
    """The folder, with a checkpoint that has Multi-Band Diffusion."""
    folder.mkdir()
    tiny_checkpoints.write_checkpoint(folder, kind)
    tiny_checkpoints.write_diffusion(folder)
    return folder


@pytest.fixture(scope="module")
def server(start_server, bucket, tmp_path_factory):
    """A server with diffusion that uploads through the proxy."""
    return start_server(
        "predict",
        diffusing(tmp_path_factory.mktemp("weights") / "stereo-melody", "stereo-melody"),
        UPLOAD_BUCKET="songs",
        UPLOAD_KEY=KEY,
        STORAGE_EMULATOR_HOST=bucket[1].url,
    )


def stored(bucket, name):
    """(properties, bytes) of an object, read without the proxy."""
    response = plain_http.get(f"{bucket[0]}/storage/v1/b/songs/o/songs%2F{name}?alt=media")
    assert response.status_code == 200
    facts = plain_http.get(f"{bucket[0]}/storage/v1/b/songs/o/songs%2F{name}").json()
    return facts, response.content


@pytest.mark.parametrize("output_format", ["mp3", "wav"])
def test_the_object_in_the_bucket_is_the_file(server, bucket, output_format):
    inputs = {"duration": 1, "seed": 3, "output_format": output_format}
    inline = server.predict(**inputs)["output"]
    output = server.predict(**inputs, song_id=42, key=KEY)["output"]
    name = f"42.{output_format}"
    facts, raw = stored(bucket, name)
    assert raw == content(inline["audio"])[1]
    assert facts["contentType"] == content(inline["audio"])[0].replace("x-wav", "wav")
    made = read_by_others(raw)
    assert facts["metadata"] == {
        "comment": made.words,
        "software": made.software,
        "digital_source_type": made.source,
        "musicgen": made.record,
        "seed": "3",
        "duration": "1.0",
        "sample_rate": "32000",
        "channels": "2",
        "output_format": output_format,
        "model": "stereo-melody",
    }
    assert output["gcs_uri"] == f"gs://songs/songs/{name}"
    assert output["song_id"] == 42
    assert plain_http.get(output["audio"]).content == raw
    assert "upload_error" not in output


def test_the_same_id_again_replaces_the_object(server, bucket):
    for seed in (1, 2):
        server.predict(duration=1, seed=seed, song_id=7, key=KEY)
    assert stored(bucket, "7.mp3")[0]["metadata"]["seed"] == "2"


@pytest.mark.parametrize("key", [None, "", "wrong", "sesame-0xC0FFEE", "🔑" * 1000])
def test_without_the_right_key_nothing_runs(server, key):
    inputs = {"song_id": 8, **({} if key is None else {"key": key})}
    answer = server.post(**inputs).json()
    assert answer["status"] == "failed"
    assert "InputError: key=" in answer["error"]
    assert "seed:" not in answer["logs"]


def test_a_key_without_a_song_id_is_ignored(server):
    assert "gcs_uri" not in server.predict(duration=1, key="whatever")["output"]


def test_the_audio_survives_a_failed_upload(server, bucket):
    bucket[1].inject([403] * 10)
    output = server.predict(duration=1, seed=3, song_id=9, key=KEY)["output"]
    bucket[1].inject([])
    assert "gcs_uri" not in output
    assert "storage.objects.create" in output["upload_error"]
    assert content(output["audio"]) == content(
        server.predict(duration=1, seed=3)["output"]["audio"]
    )


def test_a_transient_fault_is_retried(server, bucket):
    bucket[1].inject([503, 503])
    assert "gcs_uri" in server.predict(duration=1, song_id=10, key=KEY)["output"]


def test_the_key_is_never_revealed(server, bucket):
    """Neither in an answer, nor in the log, nor in a request to the storage server."""
    answers = [
        server.post(duration=1, song_id=11, key=KEY).text,
        server.post(duration=1, song_id=11, key=KEY + "x").text,
        server.post(duration=1, continuation=True, song_id=11, key=KEY).text,
    ]
    log = server.log.read_text()
    for text in (*answers, log, str(bucket[1].seen)):
        assert "C0FFEE" not in text


def test_diffusion_over_http(server):
    check_diffusion(server)


@pytest.mark.full
def test_diffusion_of_a_mono_model_over_http(start_server, tmp_path):
    check_diffusion(start_server("predict", diffusing(tmp_path / "text", "text")))


def check_diffusion(server):
    inputs = {"duration": 1, "seed": 3, "output_format": "wav"}
    plain = server.predict(**inputs)["output"]
    diffused = server.predict(**inputs, multi_band_diffusion=True)
    again = server.predict(**inputs, multi_band_diffusion=True)["output"]
    wav, _ = samples(diffused["output"]["audio"])
    assert wav.shape == samples(plain["audio"])[0].shape
    assert np.isfinite(wav).all()
    assert diffused["output"] == again
    assert diffused["output"]["audio"] != plain["audio"]
    assert "diffusion band 4/4" in diffused["logs"]


def test_diffusion_without_its_weights_is_refused_before_any_work(predict_server):
    answer = predict_server.post(multi_band_diffusion=True).json()
    assert "multi_band_diffusion=True" in answer["error"]
    assert "mbd_musicgen_32khz.th" in answer["error"]
    assert "scripts/weights pull" in answer["error"]
    assert "seed:" not in answer["logs"]
