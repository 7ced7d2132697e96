"""Instructions that numba lacks, emitted as LLVM IR: float16, vectors, atomics, plain addresses.

The central one is `tile`, the inner loop of every matrix product on the CPU. Weights are stored in
panels: PANEL outputs side by side for every step of the depth, [N / PANEL, D, PANEL]. `tile` keeps
the sums of a few rows with one panel in registers and walks through the depth in order. Every
output has one accumulator, so its bits do not depend on how many rows are multiplied together.
"""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import platform

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = {name for name, present in llvm.get_host_cpu_features().items() if present}
X86 = platform.machine().lower() in {"x86_64", "amd64"}
WIDE = "avx512f" in FEATURES
# A panel fills two vector registers: more would be idle with one row, fewer wait for each other.
PANEL = 32 if WIDE else 16
# Rows whose sums fit the registers beside the weights: 16 registers, with AVX-512 32.
TILE_ROWS = 12 if WIDE else 6
# Bytes by which weights are prefetched ahead of the arithmetic. The processor's own prefetching
# stops at the end of each page of 4 KiB.
AHEAD = 4096
FUSED = not X86 or "fma" in FEATURES
HALF_LOADS = not X86 or "f16c" in FEATURES

_FLOAT, _HALF = ir.FloatType(), ir.HalfType()
_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_VECTOR = ir.VectorType(_FLOAT, PANEL)
ELEMENTS = {"float32": (_FLOAT, 4), "float16": (_HALF, 2)}  # type, bytes


def _number(value: int):
    return ir.Constant(_INT64, value)


def _half_to_float(builder, bits):
    """Finite float16 numbers as float32, for processors without an instruction for it.

    The bits are moved to their places in a float32; a product with 2 ** 112 then corrects the
    exponent, also of subnormal numbers.
    """
    integers = ir.VectorType(_INT32, PANEL)

    def constant(kind, value):
        return ir.Constant(ir.VectorType(kind, PANEL), [ir.Constant(kind, value)] * PANEL)

    wide = builder.zext(bits, integers)
    magnitude = builder.shl(builder.and_(wide, constant(_INT32, 0x7FFF)), constant(_INT32, 13))
    sign = builder.shl(builder.and_(wide, constant(_INT32, 0x8000)), constant(_INT32, 16))
    value = builder.fmul(builder.bitcast(magnitude, _VECTOR), constant(_FLOAT, 2.0**112))
    return builder.bitcast(builder.or_(builder.bitcast(value, integers), sign), _VECTOR)


def _load_weights(builder, kind, address):
    """PANEL weights as a vector of float32."""
    element, size = ELEMENTS[kind]
    if kind == "float16" and not HALF_LOADS:
        vector = ir.VectorType(_INT16, PANEL)
        bits = builder.load(builder.inttoptr(address, vector.as_pointer()), align=size)
        return _half_to_float(builder, bits)
    vector = ir.VectorType(element, PANEL)
    loaded = builder.load(builder.inttoptr(address, vector.as_pointer()), align=size)
    if kind == "float16":
        return builder.fpext(loaded, _VECTOR)
    return loaded


def _splat(builder, value):
    """A vector of PANEL times the same number."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(_INT32, PANEL), [0] * PANEL)
    )


def _prefetch(builder, address):
    byte = _INT8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, local, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
    builder.call(prefetch, [builder.inttoptr(address, byte), read, local, data])


def _multiply_add(builder, x, weights, total):
    if not FUSED:
        return builder.fadd(builder.fmul(x, weights), total)
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{PANEL}f32")
    return builder.call(fma, [x, weights, total])


def _tile(builder, kind, rows, arguments):
    """Emit the loop over the depth for this number of rows; the block after it is left open."""
    x, stride, panel, sums, depth = arguments

    def place(row):
        address = builder.add(sums, _number(4 * PANEL * row))
        return builder.inttoptr(address, _VECTOR.as_pointer())

    before = builder.block
    body, after = (builder.append_basic_block(name) for name in ("depth", "done"))
    firsts = [builder.add(x, builder.mul(stride, _number(row))) for row in range(rows)]
    builder.branch(body)

    builder.position_at_end(body)
    step = builder.phi(_INT64)
    step.add_incoming(_number(0), before)
    totals = [builder.phi(_VECTOR) for _ in range(rows)]
    zeros = ir.Constant(_VECTOR, [ir.Constant(_FLOAT, 0.0)] * PANEL)
    size = ELEMENTS[kind][1]
    address = builder.add(panel, builder.mul(step, _number(PANEL * size)))
    weights = _load_weights(builder, kind, address)
    _prefetch(builder, builder.add(address, _number(AHEAD)))
    offset = builder.mul(step, _number(4))
    results = []
    for total, first in zip(totals, firsts, strict=True):
        pointer = builder.inttoptr(builder.add(first, offset), _FLOAT.as_pointer())
        value = _splat(builder, builder.load(pointer, align=4))
        results.append(_multiply_add(builder, value, weights, total))
        total.add_incoming(zeros, before)
        total.add_incoming(results[-1], body)
    following = builder.add(step, _number(1))
    step.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, depth), body, after)

    builder.position_at_end(after)
    for row, result in enumerate(results):
        earlier = builder.load(place(row), align=4)
        builder.store(builder.fadd(earlier, result), place(row), align=4)


def tile(kind: str):
    """The function tile(x, stride, panel, sums, depth, rows) for this kind of weights.

    It adds the product of x [rows, depth] with a panel [depth, PANEL] to sums [rows, PANEL], for 1
    to TILE_ROWS rows. x, panel and sums are addresses; the rows of x are `stride` bytes apart.
    """

    @intrinsic
    def function(context, x, stride, panel, sums, depth, rows):
        def generate(context, builder, signature, arguments):
            end = builder.append_basic_block("end")
            switch = builder.switch(arguments[5], end)
            for count in range(1, TILE_ROWS + 1):
                block = builder.append_basic_block(f"rows{count}")
                switch.add_case(_number(count), block)
                builder.position_at_end(block)
                _tile(builder, kind, count, arguments[:5])
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return function


@intrinsic
def add_atomic(context, address, value):
    """Add to the int64 at an address; returns its value before. Orders memory between threads."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_atomic(context, address):
    """The int64 at an address, after all writes of the threads that changed it."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


def _pointer_to(element):
    @intrinsic
    def function(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), generate

    return function


float_pointer, int_pointer, half_pointer = map(
    _pointer_to, (types.float32, types.int64, types.uint16)
)


@intrinsic
def void_pointer(context, address):
    """An address as the pointer that `numba.carray` takes together with a dtype."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def float_of_bits(context, bits):
    """The float32 with the bits of an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate
