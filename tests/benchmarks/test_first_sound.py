"""The benchmark of the first sound: its figures, and a run against real servers."""

import json

import pytest

from benchmarks import first_sound
from benchmarks.first_sound import Listened

# Pieces that begin at 0, 0.5, 1, 2 and 4 s of the clip.
BEGINS = [0.0, 0.5, 1.0, 2.0, 4.0]


def test_music_ahead_of_playback_is_measured_before_each_piece():
    fast = Listened([1.0, 1.1, 1.2, 1.5, 2.0], BEGINS, 2.5)
    assert fast.ahead() == pytest.approx([0.4, 0.8, 1.5, 3.0])
    assert fast.start_without_gaps == fast.first == 1.0


def test_a_slow_clip_is_heard_without_gaps_from_a_later_start():
    slow = Listened([1.0, 2.0, 3.0, 5.0, 9.0], BEGINS, 9.5)
    assert slow.ahead() == pytest.approx([-0.5, -1.0, -2.0, -4.0])
    assert slow.start_without_gaps == 5.0


def test_a_clip_of_one_piece_is_never_behind():
    assert Listened([1.0], [0.0], 1.2).ahead() == [0, 0, 0, 0]


def test_a_run_prints_a_line_for_each_number_of_callers_and_json(checkpoints, capsys):
    first_sound.main([1, 2], checkpoints["text"], 2)
    _, head, one, two, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert head.startswith("callers")
    for line, row in zip((one, two), document["results"], strict=True):
        assert int(line.split()[0]) == row["callers"]
        assert 0 < row["first_s"] <= row["first_worst_s"] < row["complete_s"]
        assert row["first_s"] <= row["start_without_gaps_s"] < row["complete_s"]
        assert len(row["ahead_s"]) == 4
        assert row["whole_s"] > 0
