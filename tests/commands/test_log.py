"""What the commands show of Cog's log."""

import io
import json

from musicgen.commands import log


class Terminal(io.StringIO):
    def isatty(self):
        return True


def line(message, target="coglet::prediction", level="INFO", **fields):
    return json.dumps({"level": level, "target": target, "fields": {"message": message, **fields}})


def shown(make, *lines, target=None):
    target = target or io.StringIO()
    with log.read_by(make(target)) as stream:
        print(*lines, sep="\n", file=stream)
    return target.getvalue()


BARS = [
    line("seed: 1", source="Stderr"),
    line("\rdecode:  47%|██  | 47/100", source="Stderr"),
    line("\rdecode: 100%|████| 100/100", source="Stderr"),
    line("Prediction worker completed", prediction_id="a"),
]


def test_a_bar_moves_on_a_terminal_and_is_shown_once_elsewhere():
    assert shown(log.Predictions, *BARS) == "seed: 1\ndecode: 100%|████| 100/100\n"
    moving = shown(log.Predictions, *BARS, target=Terminal())
    assert moving == "seed: 1\ndecode:  47%|██  | 47/100\rdecode: 100%|████| 100/100\n"


def test_lines_that_are_not_cogs_do_not_end_the_log():
    lines = ["{not JSON", "[1]", '{"target": "coglet::prediction"}', BARS[0]]
    assert shown(log.Predictions, *lines) == "seed: 1\n"
    assert shown(log.Requests, *lines[:2]) == "{not JSON\n[1]\n"


def test_a_request_is_one_line_with_id_seconds_and_outcome():
    failed = "Prediction failed: Async prediction failed: InputError: seed=1: no"
    text = shown(
        log.Requests,
        line("Starting prediction", prediction_id="a"),
        line("seed: 7", prediction_id="a", source="Stderr"),
        line("\rdecode:  47%|██  | 47/100", prediction_id="a", source="Stderr"),
        line("worker::coglet::bridge::codec::large_frame [info] Large frame being encoded"),
        line("Prediction worker completed", prediction_id="a"),
        line("Starting prediction", prediction_id="b"),
        line("Prediction failed", prediction_id="b", error=failed),
        line("Starting prediction", prediction_id="c"),
        line("Prediction cancelled", prediction_id="c"),
    )
    rows = [row.partition(" ")[2] for row in text.splitlines()]
    assert rows == [
        "a succeeded after 0.0 s, seed 7",
        "b failed after 0.0 s: seed=1: no",
        "c cancelled after 0.0 s",
    ]


def test_warnings_and_tracebacks_are_shown_and_deprecations_are_not():
    lines = [
        line("predict() is deprecated; use run() instead", "coglet::predictor", "WARN"),
        line("Stripped unknown input fields", "coglet::service", "WARN"),
        line("Setup complete", "coglet"),
        line("the kernels do not compile", "coglet::setup", source="Stderr"),
        "Traceback (most recent call last):",
    ]
    assert shown(log.Requests, *lines).splitlines() == [
        "Stripped unknown input fields",
        "the kernels do not compile",
        "Traceback (most recent call last):",
    ]


def test_an_id_cannot_control_the_terminal_or_write_a_line():
    name = "a\x1b[2J\nfake"
    text = shown(
        log.Requests,
        line("Starting prediction", prediction_id=name),
        line("odd\x1b]0;title", prediction_id=name, source="Stderr"),
        line("Prediction failed", prediction_id=name, error="InputError: b\x9b2J"),
    )
    assert len(text.splitlines()) == 2
    assert text.replace("\n", "").isprintable()
