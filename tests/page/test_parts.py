"""The page's parts: fields from schemas, keys from prompts, progress from logs, measurements."""

import http.client
import json
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import plain_http
import pytest
import soundfile
import sounds

from musicgen.commands.inputs import read_fields
from musicgen.commands.server import ROOT
from musicgen.page import analysis, prompts, words
from musicgen.page.progress import Progress, Webhooks, read

RATE = 32000


def contract(predictor):
    return json.loads((ROOT / "tests" / "contract" / f"{predictor}.openapi.json").read_text())


@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_every_input_of_the_contract_is_a_field(predictor):
    document = contract(predictor)
    properties = document["components"]["schemas"]["Input"]["properties"]
    found = read_fields(document)
    assert set(found) == set(properties)
    assert (found["duration"].default, found["duration"].bounds) == (8, "1 to 300")
    assert found["output_format"].choices == ("wav", "mp3")
    assert found["input_audio"].kind == "audio"


def test_empty_fields_are_not_sent_and_secrets_are_not_stored():
    from musicgen.page import fields

    listed = list(read_fields(contract("predict")).values())
    typed = {"prompt": "", "duration": 4.0, "seed": "7", "song_id": "x", "key": "sesame"}
    settings = fields.settings(listed, [typed.get(field.name) for field in listed])
    sent = fields.api_inputs(listed, settings)
    assert sent == {"duration": 4, "seed": 7, "song_id": "x", "key": "sesame"}
    assert "sesame" not in str(fields.without_secrets(listed, settings))


@pytest.mark.parametrize(
    ("prompt", "key", "tempo"),
    [
        ("lofi, C minor, 80 bpm", "C minor", 80),
        ("Bbm, 120BPM", "A# minor", 120),
        ("in f# MAJOR", "F# major", None),
        ("Am", "A minor", None),
        ("Cb major", "B major", None),
        ("I am happy, A modern beat", None, None),
        ("I am sad, D minor", "D minor", None),
    ],
)
def test_key_and_tempo_are_found_in_a_prompt(prompt, key, tempo):
    assert prompts.key(prompt) == key
    assert prompts.tempo(prompt) == tempo


@pytest.mark.parametrize(
    ("prompt", "tempo", "key", "written"),
    [
        ("", "124", "A minor", "124 bpm, A minor"),
        ("house", "124", "A minor", "house, 124 bpm, A minor"),
        ("Cm, 80 BPM, slow", "124", "A minor", "A minor, 124 bpm, slow"),
        ("soul, C minor, 80 bpm", None, "C minor", "soul, C minor"),
        ("C minor, soul, 80 bpm", "80", None, "soul, 80 bpm"),
    ],
)
def test_tempo_and_key_are_written_into_a_prompt(prompt, tempo, key, written):
    assert prompts.with_key(prompts.with_tempo(prompt, tempo), key) == written


def test_names_of_files_say_the_music_the_key_and_the_tempo():
    stem = prompts.file_stem("lofi chill, warm piano, C minor, 80 bpm")
    assert stem == "lofi-chill-C-minor-80bpm"
    assert prompts.file_stem("../../etc: 日本", "") == "etc-日本"
    assert prompts.file_stem("lofi, 80 bpm", "rainy / street") == "rainy-street"
    assert prompts.file_stem("") == ""


def test_bars_have_four_beats_and_a_loop_one_more():
    assert prompts.seconds_of_bars(4, 120) == 9
    assert prompts.seconds_of_bars(4, 124) == 9
    assert prompts.seconds_of_bars(2, 80) == 7


def test_unknown_inputs_have_the_words_of_the_schema():
    known = read_fields(contract("predict"))
    assert words.label(known["classifier_free_guidance"]) == "Strictness"
    other = replace(known["top_k"], name="number_of_cats", description="Cats.")
    assert (words.label(other), words.hint(other)) == ("Number of cats", "Cats. 0 or more.")


def test_the_last_bar_of_the_logs_is_the_progress():
    logs = "seed: 1\n\rdecode:  47%|████▋     | 472/1012 [00:01<00:01, 471.72step/s]"
    logs += "\rdecode:  98%|█████████▊| 992/1012 [00:02<00:00, 471.72step/s]"
    assert read(logs) == Progress("decode", 992, 1012, "00:00")
    assert read("seed: 1\n") is None


EVENT = {"id": "mine", "logs": "seed: 1"}


@pytest.fixture
def hooks():
    hooks = Webhooks("http://127.0.0.1:5000", {"mine": ""})
    return hooks


def post_raw(hooks, path, headers, body=b""):
    """The status of a request that announces a body with `headers` and sends `body`."""
    host, port = hooks.address.split("/")[2].split(":")
    with closing(http.client.HTTPConnection(host, int(port))) as connection:
        connection.putrequest("POST", path)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status


def test_webhooks_keep_the_logs_of_own_predictions(hooks):
    assert plain_http.post(hooks.address, json=EVENT).is_success
    assert plain_http.post(hooks.address, json={"id": "another's", "logs": "x"}).is_success
    assert hooks.logs == {"mine": "seed: 1"}


def test_webhooks_answer_a_wrong_path_before_the_body_is_sent(hooks):
    """Ten gigabytes are announced and not sent: a server that reads them would wait."""
    assert post_raw(hooks, "/guessed", {"Content-Length": str(10 << 30)}) == 404
    assert plain_http.post(f"{hooks.address}x", json=EVENT).status_code == 404
    assert hooks.logs == {"mine": ""}


def test_webhooks_refuse_bodies_that_are_too_large_unannounced_or_no_events(hooks):
    path = urlsplit(hooks.address).path
    assert post_raw(hooks, path, {"Content-Length": str(10 << 30)}) == 413
    assert post_raw(hooks, path, {}) == 411
    assert post_raw(hooks, path, {"Content-Length": "-1"}) == 411
    for body in (b"no JSON", b"[]", b"{}"):
        assert post_raw(hooks, path, {"Content-Length": str(len(body))}, body) == 400
    assert hooks.logs == {"mine": ""}


def test_webhooks_stop_waiting_for_a_sender_that_stalls(hooks, monkeypatch):
    monkeypatch.setattr(hooks.handler, "timeout", 0.2)
    path = urlsplit(hooks.address).path
    with pytest.raises(http.client.RemoteDisconnected):
        post_raw(hooks, path, {"Content-Length": "100"}, b"a part")


def test_key_and_loudness_of_a_known_melody_are_measured(tmp_path):
    melody = sounds.melody(4.0, RATE)
    heard = analysis.measure(sounds.write(tmp_path / "tune.wav", melody, RATE))
    assert heard.seconds == 4
    assert "C major" in heard.keys[:2]
    quieter = analysis.measure(sounds.write(tmp_path / "quiet.wav", melody / 2, RATE))
    assert heard.lufs - quieter.lufs == pytest.approx(6.02, abs=0.1)
    assert analysis.similarity(heard.chroma, quieter.chroma) > 0.99
    up = np.roll(heard.chroma, 6, axis=0)
    assert analysis.similarity(heard.chroma, up) < 0.3


def test_silence_has_no_tempo_key_or_level(tmp_path):
    soundfile.write(tmp_path / "nothing.wav", np.zeros((RATE, 2)), RATE)
    heard = analysis.measure(tmp_path / "nothing.wav")
    assert (heard.tempo, heard.keys, heard.lufs) == (0, (), float("-inf"))
