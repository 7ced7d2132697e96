"""Texts of callers cannot write lines of their own into the log, or control a terminal."""

import logging
import subprocess
import sys

import pytest

from musicgen.runtime.printable import printable
from musicgen.serving.logs import OneLine


@pytest.mark.parametrize(
    "text", ["a\nb", "a\rb", "a\x1b[2Jb", "a\x9b2Jb", "a\u2028b", "a\u202eb", "a\x85b", "a\0b"]
)
def test_a_text_stays_on_one_line(text):
    shown = printable(f"seed: {text}")
    assert len(shown.splitlines()) == 1
    assert shown.startswith("seed: a\\")
    assert shown.isprintable()
    record = logging.LogRecord("musicgen", logging.INFO, "", 0, "%s", (text,), None)
    assert OneLine("%(message)s").format(record) == printable(text)


@pytest.mark.parametrize("text", ["warm piano, 80 bpm", "日本\u3000の音楽", "Zoë \xa0 🎹"])
def test_other_texts_are_unchanged(text):
    assert printable(text) == text


def test_a_server_writes_a_traceback_on_lines_of_its_own():
    code = """
import logging
from musicgen.serving.logs import log_to_stderr
log_to_stderr()
try:
    raise ValueError("x")
except ValueError:
    logging.getLogger("musicgen").exception("failed on %s", "a\\nb")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *rest = done.stderr.splitlines()
    assert first == "failed on a\\nb"
    assert rest[-1] == "ValueError: x"
