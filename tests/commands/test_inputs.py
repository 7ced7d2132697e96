"""Inputs on a command line: their values, and messages for values that would be refused."""

import pytest
import sounds

from musicgen.commands import inputs, schema, server
from musicgen.errors import MusicGenError


@pytest.fixture(scope="module", params=server.PREDICTORS)
def fields(request):
    return inputs.read_fields(schema.openapi(server.source(request.param).read_text()))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("duration=4", ("duration", 4)),
        ("temperature=0.8", ("temperature", 0.8)),
        ("continuation=True", ("continuation", True)),
        ("continuation_end=null", ("continuation_end", None)),
        ("output_format=wav", ("output_format", "wav")),
        ("prompt=4", ("prompt", "4")),
        ("prompt=a=b", ("prompt", "a=b")),
        ("prompt=", ("prompt", "")),
        ("prompt=@home feeling", ("prompt", "@home feeling")),
        ("input_audio=https://host/a.mp3", ("input_audio", "https://host/a.mp3")),
        ("input_audio=data:,x", ("input_audio", "data:,x")),
    ],
)
def test_values_have_the_type_of_their_field(fields, item, expected):
    assert inputs.parse(item, fields) == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("duration", "write -i NAME=VALUE"),
        ("promt=x", "there is no input 'promt'. Did you mean prompt?"),
        ("size=3", "there is no input 'size'. The inputs are prompt, input_audio, duration"),
        ("duration=four", "duration='four': not an integer. Send an integer, 1 to 300."),
        ("duration=2.5", "not an integer"),
        ("duration=", "not an integer"),
        ("duration=null", "not an integer"),
        ("duration=0", "duration=0: below the minimum of 1. Send an integer, 1 to 300."),
        ("duration=400", "above the maximum of 300"),
        ("temperature=0,8", "not a number. Send a number, 0 or more."),
        ("temperature=nan", "not a number"),
        ("continuation=yes", "not a boolean. Send true or false."),
        ("output_format=flac", "not one of the choices. Send wav or mp3."),
        (
            "input_audio=nowhere.mp3",
            "not an address. Send an http(s) address",
        ),
    ],
)
def test_a_bad_value_is_refused_with_the_fix(fields, item, message):
    with pytest.raises(MusicGenError) as caught:
        inputs.parse(item, fields)
    assert message in str(caught.value)


def test_a_file_is_sent_as_a_data_uri(fields, tmp_path):
    (tmp_path / "a b=c.wav").write_bytes(b"sound")
    name, path = inputs.parse(f"input_audio=@{tmp_path}/a b=c.wav", fields)
    assert path == tmp_path / "a b=c.wav"
    sent = inputs.encode({name: path, "prompt": "@x"})
    assert sent["input_audio"].startswith("data:audio/")
    assert sent["prompt"] == "@x"


def test_a_file_that_cannot_be_read_is_named(fields, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hum.mp3").touch()
    for text, message in (
        ("hum.mp3", "a file is sent with @. Write input_audio=@hum.mp3."),
        ("@hmu.mp3", f"input_audio='@hmu.mp3': no such file or directory (in {tmp_path})"),
        (f"@{tmp_path}", "is a directory"),
    ):
        with pytest.raises(MusicGenError) as caught:
            inputs.parse(f"input_audio={text}", fields)
        assert message in str(caught.value)


def test_errors_name_the_users_file_instead_of_the_servers_copy(tmp_path):
    message = "input_audio='data:...': holds no audio. Send an audio file."
    values = {"input_audio": tmp_path / "it's.md", "prompt": "x"}
    named = f"input_audio=@{tmp_path}/it's.md: holds no audio. Send an audio file."
    assert inputs.name_own_file(message, values) == named
    assert inputs.name_own_file("duration=3: too short", values) == "duration=3: too short"


def test_a_file_that_is_not_audio_is_refused_before_it_is_sent(tmp_path):
    (tmp_path / "notes.mp3").write_text("not music")
    with pytest.raises(MusicGenError) as caught:
        inputs.check_files({"input_audio": tmp_path / "notes.mp3", "prompt": "x"})
    assert str(caught.value).startswith(f"input_audio=@{tmp_path}/notes.mp3: cannot be read as")


@pytest.mark.parametrize("extension", sounds.CODECS)
def test_audio_of_every_format_is_sent_under_any_name(extension, tmp_path):
    path = sounds.write(tmp_path / f"a.{extension}", sounds.melody(1.0, sounds.RATES[extension]))
    for suffix in ("", ".wav", ".mp3", ".md"):
        path = path.rename(tmp_path / f"b{suffix}")
        inputs.check_files({"input_audio": path})


def test_the_help_lists_every_input_with_values_default_and_description(fields):
    text = inputs.describe(fields)
    for field in fields.values():
        assert f"  {field.name}  (" in text
        assert field.description.split(".")[0][:40] in text
    assert "duration  (an integer, 1 to 300; default: 8)" in text
    assert "wav or mp3; default: " in text
