"""One request at a time uses the device, and long work hands it on between its pieces."""

import contextvars
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from torch import nn

from musicgen.cancellation import Cancellation, current
from musicgen.turns import Turns


def until(condition):
    while not condition():
        time.sleep(0.001)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_turns_go_to_whoever_asked_first():
    turns, seen, threads = Turns(), [], []

    def take(name):
        with turns:
            seen.append(name)

    with turns:
        for name in range(20):
            threads.append(in_thread(lambda name=name: take(name)))
            until(lambda name=name: len(turns._queue) == name + 2)
    for thread in threads:
        thread.join()
    assert seen == list(range(20))


def test_long_work_lets_short_work_in_between_its_pieces():
    turns, module, seen = Turns(), nn.Identity(), []
    turns.share(module)
    waiting = threading.Event()

    def short():
        waiting.set()
        with turns:
            seen.append("short")

    with turns:
        module(torch.ones(1))
        thread = in_thread(short)
        waiting.wait()
        until(lambda: len(turns._queue) == 2)
        seen.append("first half")
        module(torch.ones(1))
        seen.append("second half")
    thread.join()
    assert seen == ["first half", "short", "second half"]


def test_a_module_that_runs_without_a_turn_waits_for_nobody():
    turns, module = Turns(), nn.Identity()
    turns.share(module)
    assert in_thread(lambda: module(torch.ones(1))).join(timeout=60) is None
    with turns:
        thread = in_thread(lambda: module(torch.ones(1)))
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_failure_hands_the_turn_on():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        _ = 1 / 0
    with turns:
        pass


def test_long_work_of_a_cancelled_request_ends_at_its_next_piece():
    turns, module, cancellation = Turns(), nn.Identity(), Cancellation()
    turns.share(module)

    def work():
        current.set(cancellation)
        with turns:
            module(torch.ones(1))
            cancellation.cancel()
            module(torch.ones(1))

    with pytest.raises(CancelledError):
        contextvars.copy_context().run(work)
    with turns:
        pass
