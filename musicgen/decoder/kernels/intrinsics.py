"""Instructions that numba lacks, emitted as LLVM IR: float16, vectors, atomics, plain addresses.

The central one is `tile`, the inner loop of every matrix product on the CPU. Weights are stored in
panels: PANEL outputs side by side for every step of the depth, [N / PANEL, D, PANEL]. `tile` keeps
the sums of a few rows with a panel, or with a part of it, in registers and walks through the depth
in order. Every output has one accumulator, so its bits do not depend on how many rows are
multiplied together.

Weights of int8 are multiplied with rows of int16. Their sums are integers, hence exact, and two
steps of the depth are one instruction: panels are [N / PANEL, D / 2, PANEL, 2].
"""

# Compiled by numba, from Python that has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# Those that numba compiles for; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may name another processor.
FEATURES = {
    feature[1:]
    for feature in (config.CPU_FEATURES or get_host_cpu_features()).split(",")
    if feature.startswith("+")
}
X86 = platform.machine().lower() in {"x86_64", "amd64"}
WIDE = "avx512f" in FEATURES
# With float16 weights, a step of the depth in a panel is one line of a cache, 64 bytes.
PANEL = 32
# The sums of a tile stay in registers, beside its weights: there are 16 registers of 8 numbers, or
# 32 of 16 with AVX-512. A tile of few rows has a whole panel: with less, there would be too few
# sums to add to while others wait for their last addition. A tile of more rows has a part of one.
FEW_ROWS = 12 if WIDE else 2
TILE_ROWS = 12 if WIDE else 6
PART = PANEL if WIDE else PANEL // 2
# Bytes by which weights are prefetched ahead of the arithmetic, and the cache that gets them: 3 is
# that of the first level, 2 of the second. The processor's own prefetching stops at the end of each
# page of 4 KiB.
AHEAD, LEVEL = (16384, 2) if WIDE else (4096, 3)
FUSED = not X86 or "fma" in FEATURES
HALF_LOADS = not X86 or "f16c" in FEATURES
# The instruction that multiplies pairs of int16 and adds the two products, and its int32 results.
# LLVM joins it with the addition to the sum where the processor can do both at once.
if "avx512bw" in FEATURES:
    PAIR_PRODUCTS, LANES = "llvm.x86.avx512.pmaddw.d.512", 16
else:
    PAIR_PRODUCTS, LANES = ("llvm.x86.avx2.pmadd.wd" if "avx2" in FEATURES else ""), 8

_FLOAT, _HALF = ir.FloatType(), ir.HalfType()
_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
ELEMENTS = {"float32": _FLOAT, "float16": _HALF}
# Bytes of a panel that are multiplied with 4 bytes of a row.
STEP_BYTES = {"float32": 4 * PANEL, "float16": 2 * PANEL, "int8": 2 * PANEL}


def _number(value: int):
    return ir.Constant(_INT64, value)


def _constant(kind, value):
    """A constant of a type, which may be a vector."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


def _like(kind, element):
    """The type of as many numbers of this element as `kind` has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _half_to_float(builder, bits):
    """Finite float16 numbers as float32, for processors without an instruction for it.

    The bits are moved to their places in a float32; a product with 2 ** 112 then corrects the
    exponent, also of subnormal numbers.
    """
    integers, floats = (_like(bits.type, element) for element in (_INT32, _FLOAT))
    wide = builder.zext(bits, integers)
    magnitude = builder.shl(
        builder.and_(wide, _constant(integers, 0x7FFF)), _constant(integers, 13)
    )
    sign = builder.shl(builder.and_(wide, _constant(integers, 0x8000)), _constant(integers, 16))
    value = builder.fmul(builder.bitcast(magnitude, floats), _constant(floats, 2.0**112))
    return builder.bitcast(builder.or_(builder.bitcast(value, integers), sign), floats)


def _float_to_half(builder, value):
    """The bits of the nearest float16 of finite float32 numbers, the inverse of `_half_to_float`.

    Numbers beyond float16's range become infinite.
    """
    integers, floats = (_like(value.type, element) for element in (_INT32, _FLOAT))
    bits = builder.bitcast(value, integers)
    sign = builder.lshr(builder.and_(bits, _constant(integers, 1 << 31)), _constant(integers, 16))
    magnitude = builder.and_(bits, _constant(integers, 0x7FFFFFFF))
    # The exponent's bias is 15, not 127. Half of the last place is added; on a tie the even number
    # is chosen.
    scaled = builder.sub(magnitude, _constant(integers, 112 << 23))
    odd = builder.and_(builder.lshr(scaled, _constant(integers, 13)), _constant(integers, 1))
    rounded = builder.add(scaled, builder.add(odd, _constant(integers, 0xFFF)))
    normal = builder.lshr(rounded, _constant(integers, 13))
    # Below 2**-14 all float16 are multiples of 2**-24, the last place of float32 from 0.5 to 1. So
    # adding 0.5 rounds, once.
    half = _constant(floats, 0.5)
    summed = builder.fadd(builder.bitcast(magnitude, floats), half)
    small = builder.sub(builder.bitcast(summed, integers), builder.bitcast(half, integers))
    is_small = builder.icmp_unsigned("<", magnitude, _constant(integers, (127 - 14) << 23))
    short = builder.select(is_small, small, normal)
    infinite = _constant(integers, 0x7C00)
    short = builder.select(builder.icmp_unsigned("<", short, infinite), short, infinite)
    return builder.trunc(builder.or_(short, sign), _like(value.type, _INT16))


def _load_weights(builder, kind, address, columns):
    """This many weights as a vector of float32."""
    by_bits = kind == "float16" and not HALF_LOADS
    vector = ir.VectorType(_INT16 if by_bits else ELEMENTS[kind], columns)
    size = STEP_BYTES[kind] // PANEL  # bytes of a weight
    loaded = builder.load(builder.inttoptr(address, vector.as_pointer()), align=size)
    if by_bits:
        return _half_to_float(builder, loaded)
    if kind == "float16":
        return builder.fpext(loaded, ir.VectorType(_FLOAT, columns))
    return loaded


def _pick(builder, first, second, places):
    """The elements of two joined vectors at these places."""
    return builder.shuffle_vector(
        first, second, ir.Constant(ir.VectorType(_INT32, len(places)), places)
    )


def _splat(builder, value, columns):
    """A vector of the same number in all columns."""
    undefined = ir.Constant(ir.VectorType(value.type, columns), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return _pick(builder, first, undefined, [0] * columns)


def _pair_products(builder, a, b):
    """The sums [LANES] of the products of each pair of int16 in a and b [2 LANES]."""
    integers = ir.VectorType(_INT32, LANES)
    if PAIR_PRODUCTS:
        kind = ir.FunctionType(integers, [a.type, b.type])
        function = cgutils.get_or_insert_function(builder.module, kind, PAIR_PRODUCTS)
        return builder.call(function, [a, b])
    products = []
    for parity in range(2):
        chosen = [_pick(builder, x, x, list(range(parity, 2 * LANES, 2))) for x in (a, b)]
        products.append(builder.mul(*(builder.sext(x, integers) for x in chosen)))
    return builder.add(*products)


def _prefetch(builder, address):
    byte = _INT8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, local, data = (ir.Constant(_INT32, value) for value in (0, LEVEL, 1))
    builder.call(prefetch, [builder.inttoptr(address, byte), read, local, data])


def _multiply_add(builder, x, weights, total):
    if not FUSED:
        return builder.fadd(builder.fmul(x, weights), total)
    kind = ir.FunctionType(x.type, [x.type] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{x.type.count}f32")
    return builder.call(fma, [x, weights, total])


def _int8_step(builder, columns, address, values, totals):
    """The totals of all rows, [columns] in pieces of LANES, after two steps of the depth."""
    pieces = range(columns // LANES)
    bytes_, shorts = (ir.VectorType(kind, 2 * LANES) for kind in (_INT8, _INT16))
    weights = []
    for piece in pieces:
        place = builder.add(address, _number(2 * LANES * piece))
        loaded = builder.load(builder.inttoptr(place, bytes_.as_pointer()), align=1)
        weights.append(builder.sext(loaded, shorts))
    results = []
    for value, row in zip(values, totals, strict=True):
        pair = builder.load(builder.inttoptr(value, _INT32.as_pointer()), align=4)
        x = builder.bitcast(_splat(builder, pair, LANES), shorts)
        results.append(
            [
                builder.add(total, _pair_products(builder, x, weight))
                for total, weight in zip(row, weights, strict=True)
            ]
        )
    return results


def _float_step(kind):
    def step(builder, columns, address, values, totals):
        """The totals of all rows, [columns] in one piece, after a step of the depth."""
        weights = _load_weights(builder, kind, address, columns)
        results = []
        for value, (total,) in zip(values, totals, strict=True):
            x = builder.load(builder.inttoptr(value, _FLOAT.as_pointer()), align=4)
            results.append([_multiply_add(builder, _splat(builder, x, columns), weights, total)])
        return results

    return step


def _add_int8(builder, columns, totals, place, weight_scales, x_scale):
    """Add the totals of a row, times the scales of both factors, to the sums at `place`."""
    floats = ir.VectorType(_FLOAT, LANES)
    x = builder.load(builder.inttoptr(x_scale, _FLOAT.as_pointer()), align=4)
    x = _splat(builder, x, LANES)
    for piece, total in enumerate(totals):
        offset = _number(4 * LANES * piece)
        sums, scales = (
            builder.inttoptr(builder.add(address, offset), floats.as_pointer())
            for address in (place, weight_scales)
        )
        scale = builder.fmul(builder.load(scales, align=4), x)
        earlier = builder.load(sums, align=4)
        result = _multiply_add(builder, builder.sitofp(total, floats), scale, earlier)
        builder.store(result, sums, align=4)


def _add_floats(builder, columns, totals, place, weight_scales, x_scale):
    """Add the totals of a row to the sums at `place`."""
    sums = builder.inttoptr(place, ir.VectorType(_FLOAT, columns).as_pointer())
    builder.store(builder.fadd(builder.load(sums, align=4), totals[0]), sums, align=4)


def _tile(builder, kind, rows, columns, arguments):
    """Emit the loop over the depth for a tile of this size; the block after it is left open."""
    x, stride, panel, scales, x_scales, scale_stride, sums, depth = arguments
    if kind == "int8":
        vector, advance, finish = ir.VectorType(_INT32, LANES), _int8_step, _add_int8
        steps, pieces = builder.lshr(depth, _number(1)), columns // LANES
    else:
        vector, advance, finish = ir.VectorType(_FLOAT, columns), _float_step(kind), _add_floats
        steps, pieces = depth, 1

    before = builder.block
    body, after = (builder.append_basic_block(name) for name in ("depth", "done"))
    firsts = [builder.add(x, builder.mul(stride, _number(row))) for row in range(rows)]
    builder.branch(body)

    builder.position_at_end(body)
    step = builder.phi(_INT64)
    step.add_incoming(_number(0), before)
    totals = [[builder.phi(vector) for _ in range(pieces)] for _ in range(rows)]
    address = builder.add(panel, builder.mul(step, _number(STEP_BYTES[kind])))
    _prefetch(builder, builder.add(address, _number(AHEAD)))
    # A step of x is a float32, or two int16.
    offset = builder.mul(step, _number(4))
    values = [builder.add(first, offset) for first in firsts]
    results = advance(builder, columns, address, values, totals)
    for phis, row in zip(totals, results, strict=True):
        for phi, result in zip(phis, row, strict=True):
            phi.add_incoming(_constant(vector, 0), before)
            phi.add_incoming(result, body)
    following = builder.add(step, _number(1))
    step.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, after)

    builder.position_at_end(after)
    for row, result in enumerate(results):
        place = builder.add(sums, _number(4 * PANEL * row))
        x_scale = builder.add(x_scales, builder.mul(scale_stride, _number(row)))
        finish(builder, columns, result, place, scales, x_scale)


def tile(kind: str):
    """The function tile(x, stride, panel, scales, x_scales, scale_stride, sums, depth, rows,
    columns) for these weights.

    It adds the product of x [rows, depth] with `columns` columns of a panel [depth, PANEL] to those
    of sums [rows, PANEL]; a product of int8 is first multiplied with scales [columns] and with the
    row's x_scale. `columns` is PANEL, for up to FEW_ROWS rows, or PART, for up to TILE_ROWS. x,
    panel, both scales and sums are addresses; the rows of x are `stride` bytes apart, their scales
    `scale_stride`.
    """
    sizes = {(rows, PANEL) for rows in range(1, FEW_ROWS + 1)}
    sizes |= {(rows, PART) for rows in range(1, TILE_ROWS + 1)}

    @intrinsic
    def function(
        context, x, stride, panel, scales, x_scales, scale_stride, sums, depth, rows, columns
    ):
        def generate(context, builder, signature, arguments):
            *arguments, rows, columns = arguments
            end = builder.append_basic_block("end")
            # Columns are multiples of 16, and there are fewer rows than that.
            switch = builder.switch(builder.add(rows, columns), end)
            for count, width in sorted(sizes):
                block = builder.append_basic_block(f"rows{count}")
                switch.add_case(_number(count + width), block)
                builder.position_at_end(block)
                _tile(builder, kind, count, width, arguments)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return function


def half_conversions(instructions: bool):
    """The functions float_of_half(bits) and half_of_float(value); bits are a uint16.

    `instructions` says whether the processor has instructions for them.
    """

    @intrinsic
    def float_of_half(context, bits):
        def generate(context, builder, signature, arguments):
            if not instructions:
                return _half_to_float(builder, arguments[0])
            return builder.fpext(builder.bitcast(arguments[0], _HALF), _FLOAT)

        return types.float32(types.uint16), generate

    @intrinsic
    def half_of_float(context, value):
        def generate(context, builder, signature, arguments):
            if not instructions:
                return _float_to_half(builder, arguments[0])
            return builder.bitcast(builder.fptrunc(arguments[0], _HALF), _INT16)

        return types.uint16(types.float32), generate

    return float_of_half, half_of_float


float_of_half, half_of_float = half_conversions(HALF_LOADS)


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


float_pointer, int_pointer, half_pointer, byte_pointer, int16_pointer, int32_pointer = map(
    _pointer_to,
    (types.float32, types.int64, types.uint16, types.int8, types.int16, types.int32),
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
