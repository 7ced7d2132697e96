"""One request at a time uses the device; long work yields it between its pieces."""

import contextvars
import threading
from concurrent.futures import CancelledError

import pytest
import torch
from gate import until
from torch import nn

from musicgen.runtime.cancellation import Cancellation, current
from musicgen.runtime.device_lock import DeviceLock


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_the_lock_is_granted_in_the_order_of_requests():
    device_lock, seen, threads = DeviceLock(), [], []

    def take(name):
        with device_lock:
            seen.append(name)

    with device_lock:
        for name in range(20):
            threads.append(in_thread(lambda name=name: take(name)))
            until(lambda name=name: len(device_lock._queue) == name + 2, pause=0.001)
    for thread in threads:
        thread.join()
    assert seen == list(range(20))


def test_long_work_lets_short_work_in_between_its_pieces():
    device_lock, module, seen = DeviceLock(), nn.Identity(), []
    device_lock.yield_before(module)
    waiting = threading.Event()

    def short():
        waiting.set()
        with device_lock:
            seen.append("short")

    with device_lock:
        module(torch.ones(1))
        thread = in_thread(short)
        waiting.wait()
        until(lambda: len(device_lock._queue) == 2)
        seen.append("first half")
        module(torch.ones(1))
        seen.append("second half")
    thread.join()
    assert seen == ["first half", "short", "second half"]


def test_a_module_called_without_the_lock_does_not_wait():
    device_lock, module = DeviceLock(), nn.Identity()
    device_lock.yield_before(module)
    assert in_thread(lambda: module(torch.ones(1))).join(timeout=60) is None
    with device_lock:
        thread = in_thread(lambda: module(torch.ones(1)))
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_failure_releases_the_lock():
    device_lock = DeviceLock()
    with pytest.raises(ZeroDivisionError), device_lock:
        _ = 1 / 0
    with device_lock:
        pass


def test_long_work_of_a_cancelled_request_ends_before_its_next_piece():
    device_lock, module, cancellation = DeviceLock(), nn.Identity(), Cancellation()
    device_lock.yield_before(module)

    def work():
        current.set(cancellation)
        with device_lock:
            module(torch.ones(1))
            cancellation.cancel()
            module(torch.ones(1))

    with pytest.raises(CancelledError):
        contextvars.copy_context().run(work)
    with device_lock:
        pass
