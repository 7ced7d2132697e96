"""Result files exist until they are sent; old leftovers are removed."""

import contextvars
import os
import threading
import time
from collections import deque
from concurrent.futures import CancelledError

import pytest
from gate import until

from musicgen.runtime.cancellation import Cancellation, current
from musicgen.serving import result_files as module
from musicgen.serving.result_files import LEFTOVER_SECONDS, ResultFiles, sweep


def test_a_failed_prediction_leaves_nothing_and_other_results_stay(monkeypatch):
    result_files = ResultFiles()
    with result_files.folder() as first:
        (first / "a.wav").write_bytes(b"a")

    def fail():
        with result_files.folder() as folder:
            (folder / "b.wav").write_bytes(b"b")
            raise KeyboardInterrupt

    with result_files.folder() as running:
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert sorted(first.parent.glob("tmp*")) == sorted([first, running])
        monkeypatch.setattr(module, "KEEP_SECONDS", -1.0)
        with result_files.folder() as last:
            assert sorted(first.parent.glob("tmp*")) == sorted([running, last])


def test_a_cancelled_prediction_leaves_nothing():
    result_files, cancellation = ResultFiles(), Cancellation()

    def cancelled():
        current.set(cancellation)
        with result_files.folder() as folder:
            (folder / "a.wav").write_bytes(b"a")
            cancellation.cancel()

    with pytest.raises(CancelledError):
        contextvars.copy_context().run(cancelled)
    with result_files.folder() as only:
        assert list(only.parent.glob("tmp*")) == [only]


class Guard:
    """A lock that knows whether a thread waits for it."""

    def __init__(self):
        self.lock, self.wanted = threading.Lock(), False

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.wanted = True
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


def test_predictions_that_sweep_at_the_same_time_remove_no_new_result():
    """The second sweeps between the look of the first at the oldest result and its removal."""
    result_files, guard = ResultFiles(), Guard()
    with result_files.folder() as old, result_files.folder() as new:
        pass
    second = threading.Thread(target=result_files._sweep)

    class Returned(deque):
        def __getitem__(self, index):
            oldest = super().__getitem__(index)
            if second.ident is None:
                second.start()
                until(lambda: guard.wanted or not second.is_alive(), pause=0.001)
            return oldest

    now = time.monotonic()
    result_files._lock = guard
    result_files._returned = Returned([(now - module.KEEP_SECONDS - 1, old), (now, new)])
    result_files._sweep()
    second.join()
    assert not old.exists()
    assert new.exists()


def test_only_old_leftovers_are_removed(tmp_path):
    inputs, cog = tmp_path / "inputs", tmp_path / "cog"
    for name in ("old", "new", "used"):
        for part in ("inputs", "outputs"):
            (cog / name / part).mkdir(parents=True)
    (cog / "used" / "outputs" / "a.wav").write_bytes(b"a")
    inputs.mkdir()
    for name in ("old.wav", "new.wav"):
        (inputs / name).write_bytes(b"a")
    (inputs / "cache").mkdir()
    then = time.time() - LEFTOVER_SECONDS - 1
    for path in (cog / "old", cog / "used", inputs / "old.wav", inputs / "cache"):
        os.utime(path, (then, then))
    sweep(inputs, cog)
    assert sorted(path.name for path in inputs.iterdir()) == ["cache", "new.wav"]
    assert sorted(path.name for path in cog.iterdir()) == ["new", "used"]
    assert (cog / "used" / "outputs" / "a.wav").exists()
    assert sorted(path.name for path in (cog / "new").iterdir()) == ["inputs", "outputs"]


def test_a_missing_folder_is_not_an_error(tmp_path):
    sweep(tmp_path / "none", tmp_path / "neither")


def test_a_new_prediction_removes_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COG_FOLDER", tmp_path)
    monkeypatch.setattr(module, "LEFTOVER_SECONDS", -1.0)
    (tmp_path / "pred_1" / "inputs").mkdir(parents=True)
    with ResultFiles().folder():
        assert not any(tmp_path.iterdir())
