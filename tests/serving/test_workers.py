"""Requests run in worker threads; a cancelled one has cleaned up before its caller continues."""

import asyncio
import contextvars
import threading
from concurrent.futures import CancelledError, Future

import pytest

from musicgen.runtime.cancellation import Cancellation, current
from musicgen.serving.workers import Workers

name = contextvars.ContextVar("name")


def test_a_worker_thread_has_the_context_of_its_caller():
    async def call(workers, value):
        name.set(value)
        return await workers.run(lambda: (name.get(), threading.get_ident()))

    async def main():
        workers = Workers()
        return await asyncio.gather(*(call(workers, value) for value in range(16)))

    found = asyncio.run(main())
    assert [value for value, _ in found] == list(range(16))
    assert threading.get_ident() not in {thread for _, thread in found}


def test_an_exception_reaches_the_caller():
    async def main():
        await Workers().run(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_cancelled_call_ends_after_its_function_has():
    job, begun, ended = Future(), threading.Event(), threading.Event()

    def work():
        try:
            with current.get().covers([job]):
                begun.set()
                job.result()
        finally:
            ended.set()

    async def main():
        task = asyncio.create_task(Workers().run(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended.is_set()

    assert asyncio.run(main())
    assert job.cancelled()


def test_a_request_cancelled_early_goes_no_further():
    cancellation, job = Cancellation(), Future()
    cancellation.cancel()
    with pytest.raises(CancelledError), cancellation.covers([job]):
        raise AssertionError("got further")
    assert job.cancelled()


def test_a_failed_request_cancels_its_jobs():
    job = Future()
    with pytest.raises(ZeroDivisionError), Cancellation().covers([job]):
        _ = 1 / 0
    assert job.cancelled()
