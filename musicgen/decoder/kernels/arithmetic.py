"""Functions of numbers and of numbers in memory, compiled for the CPU's operations."""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math

import numba
import numpy as np

from musicgen.decoder.kernels.intrinsics import (
    float_of_bits,
    float_of_half,
    float_pointer,
    half_of_float,
    half_pointer,
    int_pointer,
)

jit = numba.njit(nogil=True, error_model="numpy")
# Becomes a part of its caller before that is compiled: LLVM then optimizes all within it once less.
jit_inline = numba.njit(nogil=True, error_model="numpy", inline="always")
# Sums may be reordered; NaN and infinity keep their meaning. How is LLVM's choice, which may differ
# between the copies of a function that it compiles: alone, and within its callers. A process that
# compiles would then use another copy than one that loads the code from numba's cache. Inlined
# functions have one copy.
jit_fast = numba.njit(
    nogil=True, error_model="numpy", forceinline=True, fastmath={"contract", "reassoc", "nsz"}
)
jit_contract = numba.njit(nogil=True, error_model="numpy", forceinline=True, fastmath={"contract"})


@jit
def floats(address, count):
    return numba.carray(float_pointer(address), (count,))


@jit
def integers(address, count):
    return numba.carray(int_pointer(address), (count,))


@jit
def halves(address, count):
    return numba.carray(half_pointer(address), (count,))


@jit
def same(value):
    return value


# Bytes of a number in memory -> array of numbers at an address, number as float32, and back.
STORED = {4: (floats, same, same), 2: (halves, float_of_half, half_of_float)}


@jit_contract
def exp(x):
    """e ** x for x <= 88, to about one unit in the last place; below -87 it is e ** -87."""
    x = max(x, np.float32(-87.0))
    power = np.float32(math.floor(x * np.float32(1.44269504) + np.float32(0.5)))
    # x = power * log(2) + r; log(2) in two parts, of which the first has few bits.
    r = (x - power * np.float32(0.693359375)) + power * np.float32(2.12194440e-4)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * float_of_bits((np.int32(power) + np.int32(127)) << np.int32(23))


@jit_contract
def erf(x):
    """The error function to about one unit in the last place.

    The polynomials are least-squares fits of erf(x) / x - 1 by x ** 2 up to 1, and of
    log(1 - erf(x)) by x between 1 and 4.
    """
    size = min(abs(x), np.float32(4.0))
    t = size * size
    p = np.float32(7.88911129e-05)
    p = p * t + np.float32(-8.02083872e-04)
    p = p * t + np.float32(5.18953521e-03)
    p = p * t + np.float32(-2.68544443e-02)
    p = p * t + np.float32(1.12836003e-01)
    p = p * t + np.float32(-3.76126260e-01)
    p = p * t + np.float32(1.28379166e-01)
    near = size + size * p
    q = np.float32(-2.16870267e-05)
    q = q * size + np.float32(4.41338547e-04)
    q = q * size + np.float32(-4.20457311e-03)
    q = q * size + np.float32(2.52082869e-02)
    q = q * size + np.float32(-1.08418629e-01)
    q = q * size + np.float32(-6.33219838e-01)
    q = q * size + np.float32(-1.12957847)
    q = q * size + np.float32(1.88046033e-04)
    far = np.float32(1.0) - exp(q)
    value = near if size < np.float32(1.0) else far
    return value if x >= np.float32(0.0) else -value
