"""Processes that import librosa at once do not break Numba's cache of its functions."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from gate import until
from groove import groove

LIBROSA = Path(importlib.util.find_spec("librosa").origin)
IMPORT = "from musicgen.runtime.librosa_import import librosa; librosa()"
FIND = (
    "import sys; from pathlib import Path; from musicgen.page import loops;"
    "loops.find(Path(sys.argv[1]), 120.0)"
)
ROUNDS = 2


def found(file, cache):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", FIND, str(file)], env=environment)


def test_a_process_waits_until_another_has_imported_librosa():
    with LIBROSA.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-c", IMPORT])
        waiting = f"-> FLOCK  ADVISORY  WRITE {process.pid} "
        until(
            lambda: waiting in Path("/proc/locks").read_text() or process.poll() is not None,
            pause=0.01,
        )
        assert process.poll() is None, "it did not wait"
    assert process.wait() == 0


@pytest.mark.full
def test_processes_that_fill_the_cache_together_find_loops(tmp_path):
    soundfile.write(tmp_path / "a.wav", groove(120), 32000, subtype="PCM_16")
    for _ in range(ROUNDS):
        cache = tmp_path / "cache"
        processes = [found(tmp_path / "a.wav", cache) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
        assert found(tmp_path / "a.wav", cache).wait() == 0
        shutil.rmtree(cache)
