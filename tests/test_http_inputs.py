"""Inputs as other languages and careless clients send them, over HTTP."""

import base64

import plain_http
import pytest
from cog_client import samples
from web import web_server

from musicgen.request import MAX_PROMPT


def test_whole_numbers_may_come_as_floats(predict_server):
    """JSON Schema counts 42.0 as an integer, and so do many JSON writers."""
    whole = predict_server.predict(duration=1, seed=42, top_k=250, classifier_free_guidance=3)
    given = {"duration": 1.0, "seed": 42.0, "top_k": 250.0, "classifier_free_guidance": 3.0}
    floats = predict_server.predict(**given)
    assert floats["output"] == whole["output"]
    assert str(floats["output"]["seed"]) == "42"


def test_songstarter_logs_a_whole_seed(songstarter_server):
    answer = songstarter_server.predict(duration=1, seed=42.0)
    assert "seed: 42\n" in answer["logs"] + "\n"


@pytest.mark.parametrize("length", [MAX_PROMPT + 1, 5_000_000])
def test_a_long_prompt_is_refused_at_once(predict_server, length):
    error = predict_server.error(duration=1, prompt="a " * (length // 2 + 1))
    assert "prompt='a a a a a a a a a a ...': out of range. Send at most 10,000" in error
    assert predict_server.predict(duration=1, prompt="a " * (MAX_PROMPT // 2))


@pytest.mark.parametrize(
    ("place", "reason"),
    [("whole/none.wav?X-Amz-Signature=S3CR3T", "HTTP 404"), ("half/a.wav", "the connection broke")],
)
def test_a_failed_download_names_the_input_and_hides_the_urls_secrets(
    predict_server, place, reason
):
    with web_server({"a.wav": bytes(1000)}) as web:
        url = f"{web.url}/{place}".replace("//", "//user7:hunter2@", 1)
        error = predict_server.error(duration=1, input_audio=url)
    assert "input_audio='http://127.0.0.1/" in error
    assert f"could not be fetched ({reason})" in error
    log = predict_server.log.read_text() if predict_server.log else ""
    for secret in ("user7", "hunter2", "S3CR3T"):
        assert secret not in error
        assert secret not in log


@pytest.mark.parametrize("uri", ["data:audio/wav;base64,abc", "data:audio/wav;base64,%%%"])
def test_a_broken_data_uri_names_the_input(predict_server, uri):
    error = predict_server.error(duration=1, input_audio=uri)
    assert "input_audio='" in error


@pytest.mark.parametrize(
    ("place", "shown"), [("/whole/my%20notes.txt", "my notes.txt"), (None, "data:...")]
)
def test_an_error_about_a_file_has_the_senders_name_for_it(predict_server, place, shown):
    text = b"no audio" * 100
    with web_server({"my notes.txt": text, "my%20notes.txt": text}) as web:
        uri = (
            web.url + place
            if place
            else f"data:audio/mpeg;base64,{base64.b64encode(text).decode()}"
        )
        error = predict_server.error(duration=1, input_audio=uri)
    assert f"input_audio='{shown}': cannot be read as audio" in error
    assert "musicgen-input" not in error


def test_a_file_by_url_is_the_file(predict_server, tmp_path):
    import sounds

    path = sounds.stairs(tmp_path / "a.wav")
    with web_server({"a.wav": path.read_bytes()}) as web:
        answer = predict_server.predict(
            duration=2,
            input_audio=f"{web.url}/whole/a.wav",
            continuation=True,
            continuation_end=1,
            output_format="wav",
        )
    wav, rate = samples(answer["output"]["audio"])
    assert wav.shape[1] == 2 * rate


def test_null_is_refused_by_name(predict_server):
    """Cog's validation ignores `nullable`; docs/clients.md says to leave such fields out."""
    body = {"input": {"duration": 1, "seed": None}}
    response = plain_http.post(f"{predict_server.url}/predictions", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][-1] == "seed"
