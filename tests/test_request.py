"""Every rule between fields is checked before anything runs, and its error says how to fix it."""

from pathlib import Path

import pytest

from musicgen.audio import resolve_slice
from musicgen.errors import InputError
from musicgen.request import MAX_PROMPT, Request

AUDIO = Path("a.wav")


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_given_seed_is_used_as_it_is(seed):
    assert Request(seed=seed).seed == seed


@pytest.mark.parametrize("given", [{}, {"seed": -1}], ids=str)
def test_without_a_seed_one_is_drawn_in_range(given):
    drawn = {Request(**given).seed for _ in range(50)}
    assert len(drawn) > 40
    assert all(0 <= value < 2**32 for value in drawn)


def test_clips_have_consecutive_seeds_that_wrap():
    request = Request(seed=2**32 - 2)
    assert [request.clip_seed(i) for i in range(4)] == [2**32 - 2, 2**32 - 1, 0, 1]


@pytest.mark.parametrize("prompt", [None, "", "  ", "\n\t"])
def test_a_blank_prompt_is_none(prompt):
    assert Request(prompt=prompt).prompt is None


def test_a_request_is_frozen():
    with pytest.raises(AttributeError):
        Request().seed = 3


@pytest.mark.parametrize("end", [None, -1])
def test_no_end_is_the_end_of_the_file(end):
    assert Request(input_audio=AUDIO, continuation_end=end).continuation_end is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"continuation": True}, "continuation=True: there is no input_audio.*Send input_audio"),
        ({"continuation_start": 2}, "continuation_start=2: no input_audio to cut"),
        ({"continuation_end": 3}, "continuation_end=3: no input_audio to cut"),
        ({"input_audio": "/etc/passwd"}, "input_audio='/etc/passwd': not a file.*URL"),
        ({"input_audio": ""}, "input_audio='': not a file"),
        ({"input_audio": AUDIO, "continuation_start": -1}, "continuation_start=-1: out of range"),
        ({"input_audio": AUDIO, "continuation_end": -2}, "continuation_end=-2: out of range"),
        (
            {"input_audio": AUDIO, "continuation_end": 0},
            "continuation_end=0: .*empty or reversed.*above 0",
        ),
        (
            {"input_audio": AUDIO, "continuation_start": 3, "continuation_end": 3},
            "continuation_end=3: .*start=3 is empty",
        ),
        (
            {"input_audio": AUDIO, "continuation_start": 5, "continuation_end": 3},
            "continuation_end=3: .*above 5",
        ),
        ({"duration": 0}, "duration=0"),
        ({"duration": float("nan")}, "duration=nan"),
        ({"duration": float("inf")}, "duration=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 1.5}, "top_p=1.5: .*0 to 1"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"classifier_free_guidance": -1}, "classifier_free_guidance=-1"),
        ({"seed": -2}, "seed=-2: .*4294967295"),
        ({"seed": 2**32}, "seed=4294967296"),
        (
            {"normalization_strategy": "loud"},
            "normalization_strategy='loud': .*loudness, clip, peak, rms",
        ),
        ({"output_format": "ogg"}, "output_format='ogg': .*wav, mp3"),
        ({"prompt": 3}, "prompt=3: not a text"),
        ({"duration": "8"}, "duration='8': not a number"),
        ({"seed": None}, "seed=None: not a number"),
        ({"seed": "7"}, "seed='7': not a number"),
        ({"input_audio": AUDIO, "continuation_end": "3"}, "continuation_end='3': not a number"),
        ({"clips": 0}, "clips=0: .*1 or more"),
    ],
)
def test_invalid_fields_and_combinations_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Request(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 0},
        {"top_k": 5000},
        {"top_p": 1},
        {"temperature": 0},
        {"classifier_free_guidance": 0},
        {"duration": 300},
        {"prompt": "🎹 ピアノ " * 1_400},
    ],
)
def test_values_at_the_bounds_are_accepted(fields):
    Request(**fields)


@pytest.mark.parametrize(
    ("start", "end", "length", "expected"),
    [(0, None, 4, (0, 4)), (1, 3, 4, (1, 3)), (1, 9, 4, (1, 4)), (3.5, None, 4, (3.5, 4))],
)
def test_slices(start, end, length, expected):
    assert resolve_slice(start, end, length) == expected


@pytest.mark.parametrize(
    ("frames", "start", "message"),
    [
        (400, 0, r"duration=8: .*prompt of 8.00 s.*above 8.00 or continuation_end=7\."),
        (400, 3, r"continuation_end=10\."),
        (500, 0, r"prompt of 10.00 s or more.*continuation_end=7\."),
    ],
)
def test_an_audio_prompt_that_fills_the_duration_is_refused(frames, start, message):
    request = Request(input_audio=AUDIO, continuation=True, continuation_start=start)
    with pytest.raises(InputError, match=message):
        request.check_audio_prompt(frames, 50)


def test_no_slice_is_suggested_if_none_is_short_enough():
    with pytest.raises(InputError, match=r"above 1\.00\.$"):
        Request(input_audio=AUDIO, continuation=True, duration=1).check_audio_prompt(50, 50)


def test_an_audio_prompt_one_frame_shorter_is_accepted():
    Request(input_audio=AUDIO, continuation=True).check_audio_prompt(399, 50)


@pytest.mark.parametrize("field", ["top_k", "seed", "clips"])
def test_a_whole_number_sent_as_a_float_is_that_number(field):
    value = getattr(Request(**{field: 42.0}), field)
    assert value == 42
    assert isinstance(value, int)
    with pytest.raises(InputError, match=f"{field}=1.5: not a whole number"):
        Request(**{field: 1.5})
    with pytest.raises(InputError, match=f"{field}=nan: not a whole number"):
        Request(**{field: float("nan")})


def test_a_prompt_too_long_to_be_meant_is_refused_without_quoting_it():
    Request(prompt="a" * MAX_PROMPT)
    with pytest.raises(InputError, match=r"prompt='a{20}\.\.\.': .*at most 10,000") as caught:
        Request(prompt="a" * (MAX_PROMPT + 1))
    assert len(str(caught.value)) < 200
