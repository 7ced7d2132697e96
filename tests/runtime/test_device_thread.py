"""Device work runs in one thread, in the order of requests; long work lets shorter go first."""

import contextvars
import gc
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch
from gate import Gate, until
from torch import nn

from musicgen.request import Request
from musicgen.runtime.cancellation import Cancellation, current
from musicgen.runtime.device_thread import DeviceThread

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.fixture
def device():
    made = DeviceThread(CPU)
    yield made
    made.close()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as made:
        yield made


@pytest.fixture
def held(device, pool):
    """Work of cost 0 that runs until the gate is opened; it has no pieces."""
    gate = Gate()
    running = pool.submit(device.run, gate.pass_through)
    gate.arrived()
    yield gate
    gate.open()
    running.result()


def queued(device, pool, function, cost=0.0):
    """The future of work that waits for the device."""
    before = len(device._waiting)
    future = pool.submit(device.run, function, cost)
    until(lambda: len(device._waiting) == before + 1, pause=0.001)
    return future


def test_work_runs_in_one_thread_in_the_order_of_requests(device, pool, held):
    seen = []

    def work(name):
        seen.append((name, threading.current_thread()))
        return name

    futures = [queued(device, pool, lambda name=name: work(name)) for name in range(20)]
    held.open()
    assert [future.result() for future in futures] == list(range(20))
    assert seen == [(name, device._thread) for name in range(20)]


def test_work_has_the_context_of_its_caller(device, pool):
    name = contextvars.ContextVar("name")

    def call(value):
        name.set(value)
        return device.run(name.get)

    calls = [pool.submit(contextvars.copy_context().run, call, value) for value in range(16)]
    assert [future.result() for future in calls] == list(range(16))


def long_work(device, pool, cost, between):
    """The future of work with 3 pieces; `between[i]()` is called before piece i."""
    module = nn.Identity()
    device.yield_before(module)

    def work():
        for before in between:
            before()
            module(torch.ones(1))

    return pool.submit(device.run, work, cost)


def test_long_work_lets_much_shorter_work_run_between_its_pieces(device, pool):
    seen, futures = [], []

    def arrive():
        for name, cost in (("long", 100), ("half", 50), ("short", 49), ("shorter", 1)):
            work = lambda name=name: seen.append(name)  # noqa: E731
            futures.append(queued(device, pool, work, cost))

    between = (lambda: seen.append("first"), arrive, lambda: seen.append("third"))
    long_work(device, pool, 100, between).result()
    seen.append("end")
    for future in futures:
        future.result()
    # One between two pieces; what is not shorter by half waits.
    assert seen[:4] == ["first", "short", "third", "shorter"]
    assert [name for name in seen if name != "end"][4:] == ["long", "half"]


def test_work_that_interrupts_can_be_interrupted(device, pool):
    seen, futures = [], []

    def short():
        futures.append(queued(device, pool, lambda: seen.append("short"), 1))

    def middle():
        pieces = (short, lambda: seen.append("middle"))
        module = nn.Identity()
        device.yield_before(module)
        for before in pieces:
            before()
            module(torch.ones(1))

    def arrive():
        futures.append(queued(device, pool, middle, 10))

    long_work(device, pool, 100, (arrive, lambda: seen.append("long"))).result()
    for future in futures:
        future.result()
    assert seen == ["short", "middle", "long"]


def test_interrupting_work_sees_no_setting_of_the_interrupted(device, pool):
    """Diffusion yields within autocast and inference mode, which are settings of the thread."""
    module, futures = nn.Identity(), []
    device.yield_before(module)

    def settings():
        return torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()

    def work():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            futures.append(queued(device, pool, settings))
            module(torch.ones(1))
            return settings()

    assert device.run(work, 100) == (True, True)
    assert futures[0].result() == (False, False)


def test_a_module_called_in_another_thread_does_not_wait(device, held):
    module = nn.Identity()
    device.yield_before(module)
    module(torch.ones(1))


def test_an_error_reaches_the_caller_of_the_work_alone(device, pool):
    failed = []

    def fail():
        failed.append(queued(device, pool, lambda: 1 / 0))

    long_work(device, pool, 100, (fail, list)).result()
    with pytest.raises(ZeroDivisionError):
        failed[0].result()
    assert device.run(lambda: 3) == 3


def test_work_that_calls_the_device_thread_runs_at_once(device):
    assert device.run(lambda: device.run(lambda: 3)) == 3


def test_long_work_of_a_cancelled_request_ends_before_its_next_piece(device):
    module, cancellation = nn.Identity(), Cancellation()
    device.yield_before(module)

    def work():
        module(torch.ones(1))
        cancellation.cancel()
        module(torch.ones(1))

    def request():
        current.set(cancellation)
        device.run(work)

    with pytest.raises(CancelledError):
        contextvars.copy_context().run(request)
    assert device.run(lambda: 3) == 3


def test_a_request_cancelled_while_it_waits_ends_at_once_and_never_begins(device, pool, held):
    cancellation, begun = Cancellation(), []

    def request():
        current.set(cancellation)
        device.run(lambda: begun.append(1))

    waiting = pool.submit(contextvars.copy_context().run, request)
    until(lambda: len(device._waiting) == 1, pause=0.001)
    cancellation.cancel()
    with pytest.raises(CancelledError):
        waiting.result()
    held.open()
    device.run(list)
    assert begun == []


def test_nothing_of_finished_work_stays_in_memory(device):
    result = device.run(lambda: torch.ones(3))
    reference = weakref.ref(result)
    del result
    device.run(list)  # the thread has left the work before
    gc.collect()
    assert reference() is None


def test_the_thread_ends_when_it_is_closed(device):
    device.run(list)
    device.close()
    device._thread.join()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError(CUBLAS)])
def test_work_without_memory_runs_again_with_an_empty_cache(monkeypatch, error):
    calls, device = [], DeviceThread(CUDA)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))

    def work():
        calls.append("run")
        if len(calls) == 1:
            raise error
        return "wav"

    assert device.run(work) == "wav"
    assert calls == ["run", "emptied", "run"]
    device.close()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_other_errors_and_other_devices_are_not_retried(kind):
    calls, device = [], DeviceThread(torch.device(kind))

    def work():
        calls.append("run")
        raise RuntimeError("shape mismatch" if kind == "cuda" else "out of memory")

    with pytest.raises(RuntimeError):
        device.run(work)
    assert calls == ["run"]
    device.close()


def test_all_device_work_of_requests_runs_in_the_device_thread(models, tune, monkeypatch):
    model, threads = models["stereo-melody"], set()

    def observe(owner, name):
        function = getattr(owner, name)

        def observed(*arguments, **keywords):
            threads.add(threading.current_thread().name)
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, observed)

    observe(model.codec, "encode")
    observe(model.codec, "decode")
    observe(model.conditioner.text, "encoder")
    observe(model.conditioner.melody, "separate")
    model.generate(Request(prompt="piano", input_audio=tune, duration=0.5))
    model.generate(Request(input_audio=tune, continuation=True, continuation_end=1, duration=2))
    assert threads == {"device"}
