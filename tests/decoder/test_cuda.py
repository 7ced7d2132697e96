"""The decoder's use of CUDA, with its calls replaced: what is called, and what errors do."""

import threading
from types import SimpleNamespace

import pytest
import torch
from tiny_lm import MAX_LENGTH, STRIDE, clip, engine_lm, oracle_lm, tiny_config

from musicgen.decoder import cuda, faults, kernels
from musicgen.decoder import engine as engines
from musicgen.decoder.clip import Window
from musicgen.decoder.graph import Graphed
from musicgen.decoder.job import Job
from musicgen.decoder.loop import Loop

CUDA = torch.device("cuda")


class FakeEvent:
    def __init__(self, blocking=False):
        self.blocking = blocking

    def record(self):
        pass

    def synchronize(self):
        pass


class FakeStream:
    def __init__(self, device=None, priority=0):
        self.priority = priority

    def wait_stream(self, other):
        pass


@pytest.fixture
def lm():
    config = tiny_config(num_layers=1)
    return engine_lm(oracle_lm(config), config)


def engine(lm, **options):
    return engines.Engine(
        lm, max_length=MAX_LENGTH, stride=STRIDE, slots=2, max_prefix=16, **options
    )


def lost(*arguments, **keywords):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_cudnn_neither_attends_nor_is_undeterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        cuda.configure_backends()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cudnn.deterministic
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_an_engine_on_cuda_configures_the_backends(lm, monkeypatch):
    calls = []
    monkeypatch.setattr(cuda, "configure_backends", lambda: calls.append(1))
    engine(lm)
    assert not calls  # settings of the process, and a CPU needs none
    monkeypatch.setattr(engines.State, "empty", lambda *args: SimpleNamespace())
    lm.device = CUDA
    engine(lm)
    assert calls == [1]


def test_the_host_waits_asleep_for_events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    assert cuda.event().blocking


def test_decode_and_capture_streams_have_a_high_priority(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: FakeStream())
    cuda.capture_stream.cache_clear()
    try:
        assert cuda.decode_stream(CUDA).priority == cuda.capture_stream().priority == -1
    finally:
        cuda.capture_stream.cache_clear()


def test_codes_are_recorded_for_the_stream_of_the_thread_that_reads_them(lm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "reader's stream")
    recorded = []
    codes = SimpleNamespace(device=CUDA, record_stream=recorded.append)
    job = Job(clip(lm.config), [Window(0, 20)], SimpleNamespace(device=CUDA, config=lm.config))
    job.finish(codes)
    assert job.result() is codes
    assert recorded == ["reader's stream"]


def failing_capture(monkeypatch, error):
    """Make every capture fail after the warm-up runs, and return a counter of `function` calls."""

    def capture(self):
        self.function()
        raise error

    monkeypatch.setattr(Graphed, "_capture", capture)
    counter = torch.zeros(())
    return counter, Graphed(lambda: counter.add_(1), changed=[counter])


def test_a_capture_that_fails_leaves_an_eager_step_and_an_error_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(cuda, "context_works", lambda device: True)
    counter, step = failing_capture(monkeypatch, RuntimeError("operation not permitted"))
    for _ in range(3):
        step()
    assert counter.item() == 3  # the run of the failed capture is undone
    assert step.eager
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "capture failed" in caplog.text


@pytest.mark.parametrize("works", [True, False])
def test_a_capture_that_fails_for_memory_or_a_lost_context_is_an_error(monkeypatch, works):
    monkeypatch.setattr(cuda, "context_works", lambda device: works)
    error = torch.OutOfMemoryError("full") if works else RuntimeError("illegal address")
    _, step = failing_capture(monkeypatch, error)
    with pytest.raises(type(error)):
        step()


def test_graphs_can_be_switched_off(lm, monkeypatch):
    assert not engine(lm).decode_steps.eager
    monkeypatch.setenv("MUSICGEN_GRAPHS", "0")
    assert engine(lm).decode_steps.eager


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "check", lambda *arguments: None)
    shape = kernels.Shape(dim=64, ffn_dim=128, head_dim=16, outputs=1024)
    assert kernels.choose(CUDA, torch.float16, shape, 2) is kernels.TRITON
    monkeypatch.setenv("MUSICGEN_KERNELS", "torch")
    assert kernels.choose(CUDA, torch.float16, shape, 2) is kernels.TORCH


@pytest.mark.parametrize(
    ("error", "works"),
    [
        (None, True),
        (torch.OutOfMemoryError("full"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("illegal address"), False),
    ],
)
def test_a_context_is_lost_if_a_small_allocation_fails_for_another_reason_than_memory(
    monkeypatch, error, works
):
    def synchronize(device):
        if error:
            raise error

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    assert cuda.context_works(CUDA) == works


def test_a_process_without_a_working_context_ends(monkeypatch, caplog):
    codes = []
    monkeypatch.setattr(faults.os, "_exit", codes.append)
    monkeypatch.setattr(cuda, "context_works", lambda device: False)
    cuda.exit_if_context_is_lost(torch.device("cpu"))
    assert codes == []
    cuda.exit_if_context_is_lost(CUDA)
    assert codes == [70]
    assert "no longer works" in caplog.text


def test_the_decode_thread_tests_the_context_after_an_error_only(lm, monkeypatch):
    tested = []
    monkeypatch.setattr(cuda, "exit_if_context_is_lost", tested.append)
    made = engine(lm)
    loop = Loop(made)
    try:
        loop.submit(clip(lm.config)).result()
        assert tested == []
        monkeypatch.setattr(made, "decode_steps", lost)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            loop.submit(clip(lm.config)).result()
    finally:
        loop.close(wait=True)
    assert tested == [lm.device]


def test_a_stream_that_cannot_be_made_is_an_error_of_the_start(lm, monkeypatch):
    """It once left the constructor waiting without end."""
    monkeypatch.setattr(Loop, "_stream", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Loop(engine(lm))


def test_waiting_clips_fail_if_the_decode_thread_ends(lm, monkeypatch):
    entered = threading.Event()

    def end():
        entered.wait()
        raise SystemExit

    loop = Loop(engine(lm))
    monkeypatch.setattr(loop, "_step", end)
    job = loop.submit(clip(lm.config))
    entered.set()
    with pytest.raises(SystemExit):
        job.result()
    with pytest.raises(RuntimeError, match="decode thread has ended"):
        loop.submit(clip(lm.config))


def test_an_engine_says_which_operations_its_steps_use(lm, monkeypatch):
    steps = engine(lm).decode_steps
    steps.chosen = {1: kernels.TRITON, 2: kernels.TRITON}
    steps.captured = {
        1: (None, SimpleNamespace(eager=False)),
        2: (None, SimpleNamespace(eager=False)),
    }
    assert steps.description == "Triton kernels, CUDA graphs"
    steps.chosen[2] = kernels.TORCH
    steps.captured[2][1].eager = True
    assert steps.description == (
        "Triton kernels (1 clips), PyTorch operations (2 clips), no CUDA graphs"
    )


def test_kernels_of_all_batch_sizes_are_compiled_in_parallel_and_once(lm, monkeypatch):
    rows, both = [], threading.Barrier(2)

    def choose(device, dtype, shape, count):
        rows.append(count)
        if count > 2:  # the kernels of one clip are compiled for the warm-up
            both.wait()  # for the other thread
        return kernels.TORCH

    monkeypatch.setattr(kernels, "choose", choose)
    made = engines.Engine(
        lm, max_length=MAX_LENGTH, stride=STRIDE, slots=4, max_prefix=16, capture=True, eager=True
    )
    made.decode_steps.ops = None
    monkeypatch.setattr(made, "decode_trial", lambda: made.decode_steps._choose_ops(1))
    monkeypatch.setattr(type(made.decode_steps), "__call__", lambda steps, indices: None)
    made.warm_up()
    assert sorted(rows) == [2, 4, 8]


def test_a_cpu_engine_says_so_after_its_warm_up(lm):
    made = engine(lm)
    made.warm_up()
    assert made.decode_steps.description == "CPU operations"
