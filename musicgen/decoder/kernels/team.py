"""The threads of one decoder: they run a program together, and sleep between programs."""

# `enter` is compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from musicgen.decoder.kernels.intrinsics import void_pointer
from musicgen.decoder.kernels.program import Operation, work

# The mailbox: int64 that all threads share. First a mutex and two condition variables of the C
# library, whose sizes depend on the system and are at most LOCK numbers each.
LOCK = 16
MUTEX, START, DONE = 0, LOCK, 2 * LOCK
GENERATION, FINISHED, HELPERS, PROGRAM, LENGTH, COUNTERS, SCRATCH, SCRATCH_BYTES = range(
    3 * LOCK, 3 * LOCK + 8
)
CLOSED = -1  # a generation

_int, _address = types.int32, types.int64
_init_mutex = types.ExternalFunction("pthread_mutex_init", _int(_address, _address))
_init_condition = types.ExternalFunction("pthread_cond_init", _int(_address, _address))
_lock = types.ExternalFunction("pthread_mutex_lock", _int(_address))
_unlock = types.ExternalFunction("pthread_mutex_unlock", _int(_address))
_wait = types.ExternalFunction("pthread_cond_wait", _int(_address, _address))
_wake_all = types.ExternalFunction("pthread_cond_broadcast", _int(_address))


def _sources() -> str:
    """A hash of all compiled code: numba itself checks only the file of the function it caches."""
    names = ("intrinsics.py", "arithmetic.py", "layout.py", "program.py", "team.py")
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def _compile(sources: str) -> Callable[[Any, int], None]:
    def enter(box, member):
        """Member 0 runs the program in the mailbox; each other member helps until the end."""
        _ = sources  # makes the hash part of the key of numba's cache
        base = box.ctypes.data
        mutex, start, done = base + 8 * MUTEX, base + 8 * START, base + 8 * DONE
        if member < 0:
            _init_mutex(mutex, 0)
            _init_condition(start, 0)
            _init_condition(done, 0)
            return
        seen = 0
        while True:
            _lock(mutex)
            if member == 0:
                box[GENERATION] += 1
                box[FINISHED] = 0
                _wake_all(start)
            else:
                while box[GENERATION] == seen:
                    _wait(start, mutex)
            seen = box[GENERATION]
            _unlock(mutex)
            if seen == CLOSED:
                return
            program = numba.carray(void_pointer(box[PROGRAM]), (box[LENGTH],), Operation)
            size = box[SCRATCH_BYTES]
            scratch = numba.carray(
                void_pointer(box[SCRATCH] + member * size), (size // 4,), np.float32
            )
            work(program, box[COUNTERS], scratch)
            _lock(mutex)
            if member == 0:
                while box[FINISHED] < box[HELPERS]:
                    _wait(done, mutex)
                _unlock(mutex)
                return
            box[FINISHED] += 1
            _wake_all(done)
            _unlock(mutex)

    signature = types.void(types.int64[::1], types.int64)
    try:
        made: Callable[[Any, int], None] = numba.njit(signature, nogil=True, cache=True)(enter)
    except RuntimeError:  # no cache folder is writable: compile again at each start
        made = numba.njit(signature, nogil=True)(enter)
    return made


_enter = _compile(_sources())


class Team:
    """`threads` threads, of which the caller of `run` is one."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._box = np.zeros(3 * LOCK + 8, np.int64)
        self._scratch = np.zeros(0, np.float32)
        self._counters = np.zeros(0, np.int64)
        self._lock = threading.Lock()
        self._box[HELPERS] = threads - 1
        _enter(self._box, -1)
        for member in range(1, threads):
            name = f"decode helper {member}"
            threading.Thread(
                target=_enter, args=(self._box, member), name=name, daemon=True
            ).start()
        # Not at exit: a daemon thread may not return to an interpreter that is being finalized.
        weakref.finalize(self, _close, self._box).atexit = False

    def run(self, program: Any, scratch: int) -> None:
        """Run a program, with `scratch` float32 of memory for each thread."""
        with self._lock:
            self._reserve(len(program), scratch)
            box = self._box
            box[PROGRAM], box[LENGTH] = program.ctypes.data, len(program)
            _enter(box, 0)

    def _reserve(self, operations: int, scratch: int) -> None:
        # Threads write to their own pages, so that no two share a line of a cache.
        size = -(-4 * scratch // 4096) * 4096
        if size * self.threads > self._scratch.nbytes:
            self._scratch = np.zeros(size * self.threads // 4, np.float32)
        if 2 * operations > len(self._counters):
            self._counters = np.zeros(2 * operations, np.int64)
        self._counters[: 2 * operations] = 0
        box = self._box
        box[SCRATCH], box[SCRATCH_BYTES] = self._scratch.ctypes.data, size
        box[COUNTERS] = self._counters.ctypes.data


def _close(box: Any) -> None:
    box[PROGRAM], box[LENGTH] = 0, 0
    box[GENERATION] = CLOSED - 1
    _enter(box, 0)
