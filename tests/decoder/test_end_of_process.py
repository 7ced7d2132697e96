"""Errors say whether memory was missing; a process that cannot decode any more ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicgen.decoder import faults


def test_errors_of_allocators_are_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert faults.is_exhausted(caught.value)
    assert faults.is_exhausted(MemoryError())
    assert faults.is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    for status in ("CUBLAS_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"):
        assert faults.is_exhausted(RuntimeError(f"CUDA error: {status} when calling `create`"))
    assert not faults.is_exhausted(RuntimeError("shapes differ"))
    assert not faults.is_exhausted(ValueError("out of memory"))


ROOT = Path(__file__).resolve().parents[2]
# Decode threads with real engines of a tiny decoder, one after the other; each argument runs after
# the warm-up of its engine.
SERVING = """
import logging
import sys
import torch
from benchmarks.work import random_state_dict
from musicgen.decoder.clip import Clip, Conditions
from musicgen.decoder.engine import Engine
from musicgen.decoder.lm import LM
from musicgen.decoder.loop import Loop
from musicgen.decoder.sampling import Sampling
from musicgen.decoder.weights import LMConfig

logging.basicConfig()
config = LMConfig(dim=64, num_heads=4, num_layers=1, ffn_dim=64, n_q=4, card=64,
                  delays=(0, 1, 2, 3), cross_attention=True)
state = random_state_dict(config)

def decode(seed):
    cross = torch.zeros(2, 1, 64)
    return loop.submit(Clip(5, seed, Sampling(), [Conditions(cross=cross)])).exception()

def fail(error, bad=lambda length: True):
    step = lm.step
    def broken(x, rows, *arguments):
        slots = [loop.engine._slots[row // 2] for row in rows.tolist()]
        if any(bad(slot.job.clip.length) for slot in slots):
            raise error
        return step(x, rows, *arguments)
    lm.step = broken

for code in sys.argv[1:]:
    lm = LM.from_audiocraft(config, state, device="cpu", dtype=torch.float32)
    loop = Loop(Engine(lm, max_length=20, stride=10, slots=2))
    exec(code)
    print([type(decode(seed)).__name__ for seed in range(12)])
    loop.close(wait=True)
"""


def serve(*broken):
    """A process that decodes twelve clips in sequence with each of some broken engines."""
    command = [sys.executable, "-W", "ignore", "-c", SERVING, *broken]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_that_cannot_decode_any_more_ends_with_a_message():
    ended = serve("fail(RuntimeError('broken'))")
    assert ended.returncode == faults.CANNOT_COMPUTE, ended.stderr
    assert "3 decode steps and a trial have failed (RuntimeError('broken'))" in ended.stderr
    assert ended.stdout == ""


LACK_OF_MEMORY = "fail(MemoryError())"
A_CLIP_THAT_ALWAYS_FAILS = "fail(RuntimeError('broken'), lambda length: length == 5)"
REFUSED_REQUESTS = """
def decode(seed):
    try: loop.submit(Clip(5, seed, Sampling(), []))
    except ValueError as exc: return exc
"""


def test_a_process_that_can_decode_goes_on():
    ended = serve(LACK_OF_MEMORY, A_CLIP_THAT_ALWAYS_FAILS, REFUSED_REQUESTS)
    assert ended.returncode == 0, ended.stderr
    errors = ["MemoryError", "RuntimeError", "ValueError"]
    assert ended.stdout.splitlines() == [str([error] * 12) for error in errors]


# A thread in PyTorch which calls Python, as for a subclass of Tensor.
PYTORCH = """
import threading
import time
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from musicgen.decoder import daemon

class Python(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        began.set()
        return function(*arguments, **(options or {}))

began, closed = threading.Event(), threading.Event()
"""
RUNS = """
def run():
    with Python():
        while not closed.is_set():
            torch.ones(1) + 1

daemon.start("busy", run, closed.set)
began.wait()
"""
# What a model that is deleted leaves its threads to do.
FREES = """
class Model:
    def __del__(self):
        end = time.monotonic() + 0.5
        with Python():
            while time.monotonic() < end:
                torch.ones(1) + 1

def start(model):
    daemon.start("busy", lambda: closed.wait() and model, closed.set)

start(Model())
closed.set()
began.wait()
"""


@pytest.mark.parametrize("work", [RUNS, FREES], ids=["runs", "frees"])
def test_a_process_ends_well_while_a_thread_is_in_pytorch(work):
    """With a plain daemon thread most such processes abort."""
    done = subprocess.run([sys.executable, "-c", PYTORCH + work], cwd=ROOT, check=False)
    assert done.returncode == 0
