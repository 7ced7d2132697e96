"""What the page reads out of schemas, prompts, logs and audio."""

import json

import httpx
import numpy as np
import pytest
import soundfile
import sounds

from musicgen.commands.server import ROOT
from musicgen.page import analysis, client, takes
from musicgen.page.progress import Progress, Webhooks, read

RATE = 32000


def contract(predictor):
    return json.loads((ROOT / "tests" / "contract" / f"{predictor}.openapi.json").read_text())


@pytest.mark.parametrize("predictor", ["predict", "songstarter"])
def test_every_input_of_the_contract_is_a_field(predictor):
    from musicgen.page import fields

    document = contract(predictor)
    properties = document["components"]["schemas"]["Input"]["properties"]
    found = {field.name: field for field in fields.read(document)}
    assert set(found) == set(properties)
    assert (found["duration"].default, found["duration"].bounds) == (8, "1 to 300.")
    assert found["output_format"].choices == ("wav", "mp3")
    assert found["input_audio"].kind == "audio"


def test_what_is_empty_is_not_sent_and_what_is_secret_is_not_kept():
    from musicgen.page import fields

    listed = fields.read(contract("predict"))
    typed = {"prompt": "", "duration": 4.0, "seed": "7", "song_id": "x", "key": "sesame"}
    settings = fields.settings(listed, [typed.get(field.name) for field in listed])
    sent = fields.sent(listed, settings)
    assert sent == {"duration": 4, "seed": 7, "song_id": "x", "key": "sesame"}
    assert "sesame" not in str(fields.kept(listed, settings))


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
def test_key_and_tempo_are_read_out_of_a_prompt(prompt, key, tempo):
    assert takes.asked_key(prompt) == key
    assert takes.asked_tempo(prompt) == tempo


def test_the_last_bar_of_the_logs_is_the_progress():
    logs = "seed: 1\n\rdecode:  47%|████▋     | 472/1012 [00:01<00:01, 471.72step/s]"
    logs += "\rdecode:  98%|█████████▊| 992/1012 [00:02<00:00, 471.72step/s]"
    assert read(logs) == Progress("decode", 992, 1012, "00:00")
    assert read("seed: 1\n") is None


def test_webhooks_need_the_secret_in_their_address():
    hooks = Webhooks("http://127.0.0.1:5000")
    hooks.logs["mine"] = ""
    event = {"id": "mine", "logs": "seed: 1"}
    root = hooks.address.rpartition("/")[0]
    assert httpx.post(f"{root}/guessed", json=event).status_code == 404
    assert hooks.logs == {"mine": ""}
    assert httpx.post(hooks.address, json=event).is_success
    assert httpx.post(hooks.address, json={"id": "another's", "logs": "x"}).is_success
    assert hooks.logs == {"mine": "seed: 1"}


def test_librosa_hears_key_and_level_of_a_known_melody(tmp_path):
    melody = sounds.melody(4.0, RATE)
    heard = analysis.hear(sounds.write(tmp_path / "tune.wav", melody, RATE))
    assert heard.seconds == 4
    assert "C major" in heard.keys[:2]
    quieter = analysis.hear(sounds.write(tmp_path / "quiet.wav", melody / 2, RATE))
    assert heard.lufs - quieter.lufs == pytest.approx(6.02, abs=0.1)
    assert analysis.similarity(heard.chroma, quieter.chroma) > 0.99
    up = np.roll(heard.chroma, 6, axis=0)
    assert analysis.similarity(heard.chroma, up) < 0.3


def test_silence_has_no_tempo_key_or_level(tmp_path):
    soundfile.write(tmp_path / "nothing.wav", np.zeros((RATE, 2)), RATE)
    heard = analysis.hear(tmp_path / "nothing.wav")
    assert (heard.tempo, heard.keys, heard.lufs) == (0, (), float("-inf"))


def test_a_server_that_is_not_there_is_told_in_one_line():
    server = client.Server("http://127.0.0.1:9")
    with pytest.raises(client.MusicGenError, match=r"has no /openapi\.json"):
        server.document()
    with pytest.raises(client.RefusedError, match="did not answer"):
        server.predict("x", {}, "http://127.0.0.1:9")
