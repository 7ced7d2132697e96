"""Together, requests never hold more memory than the budget; none waits for a later one."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import copy_context

import pytest
from gate import until

from musicgen.runtime.budget import Budget
from musicgen.runtime.cancellation import Cancellation, current


def test_what_is_held_at_once_stays_within_the_total():
    budget, lock = Budget(100), threading.Lock()
    held, most = 0, 0

    def use(size):
        nonlocal held, most
        with budget.take(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            with lock:
                held -= min(size, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [10, 60, 100, 250, 30, 1, 99] * 200))
    assert 0 < most <= 100
    with budget.take(100):
        pass


def test_a_large_request_is_served_before_a_later_small_one():
    budget, order, release = Budget(100), [], threading.Event()

    def use(name, size):
        with budget.take(size):
            order.append(name)
            if name == "first":
                release.wait()

    threads = []
    for waiting, (name, size) in enumerate([("first", 60), ("large", 80), ("small", 10)]):
        threads.append(threading.Thread(target=use, args=(name, size)))
        threads[-1].start()
        until(lambda: order == ["first"] and len(budget._queue) == waiting)  # noqa: B023
    release.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "large", "small"]


def test_a_cancelled_request_leaves_the_queue():
    budget, cancellation = Budget(100), Cancellation()

    def use():
        current.set(cancellation)
        with budget.take(50):
            raise AssertionError("nothing was free")

    with budget.take(100), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(copy_context().run, use)
        until(lambda: len(budget._queue) == 1)
        cancellation.cancel()
        with pytest.raises(CancelledError):
            waiting.result()
    with budget.take(100):
        pass


def test_a_failure_gives_back_what_it_held():
    budget = Budget(100)
    with pytest.raises(ZeroDivisionError), budget.take(100):
        _ = 1 / 0
    with budget.take(100):
        pass
