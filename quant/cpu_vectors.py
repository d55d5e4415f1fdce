"""Sixteen elements at once, spelt out for LLVM.

Blocks are sixteen long, and a loop of sixteen is unrolled before it could become vector code: six times slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

_WIDE = 16
_INDEX = ir.IntType(32)


def _pointer(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """The address of sixteen elements of the array ``args[0]`` from index ``args[1]`` on, and their type."""
    held = kinds[0]
    array = context.make_array(held)(context, builder, args[0])
    vector = ir.VectorType(context.get_data_type(held.dtype), _WIDE)
    return builder.bitcast(builder.gep(array.data, [args[1]]), vector.as_pointer()), vector


def _lanes(*numbers: int) -> Any:
    return ir.Constant(ir.VectorType(_INDEX, len(numbers)), list(numbers))


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _spread(builder: Any, number: Any, vector: Any) -> Any:
    """A number in all lanes."""
    none = ir.Constant(vector, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(none, number, _INDEX(0)), none, _lanes(*[0] * _WIDE))


def _signed(builder: Any, codes: Any, bit: int, rough: Any, least: float) -> Any:
    """``rough`` with magnitudes below ``least`` mended, x + x - least, and the sign that is ``bit`` of the codes."""
    one = ir.Constant(rough.type, [least] * _WIDE)
    mended = builder.fsub(builder.fadd(rough, rough), one)
    size = builder.select(builder.fcmp_ordered("<", rough, one), mended, rough)
    sign = builder.shl(builder.and_(codes, _lanes(*[1 << bit] * _WIDE)), _lanes(*[31 - bit] * _WIDE))
    return builder.bitcast(builder.or_(builder.bitcast(size, sign.type), sign), rough.type)


def _e2m1(builder: Any, codes: Any) -> Any:
    """Sixteen E2M1 codes, in the low bits of 32-bit words, as float32.

    A magnitude becomes the exponent and the first bit of the mantissa of a float32.  All but 0 and 0.5 are then
    right; those two come out as 0.5 and 0.75, and x + x - 1 mends them.
    """
    vector = ir.VectorType(ir.FloatType(), _WIDE)
    magnitude = builder.shl(builder.and_(codes, _lanes(*[7] * _WIDE)), _lanes(*[22] * _WIDE))
    rough = builder.bitcast(builder.add(magnitude, _lanes(*[126 << 23] * _WIDE)), vector)
    return _signed(builder, codes, 3, rough, 1.0)


@intrinsic
def decode(typing, stored, byte, values, at, factor):  # type: ignore[no-untyped-def]
    """Sixteen E2M1 codes of ``stored``, from index ``byte`` on, times ``factor``, into float32 ``values`` from ``at``.

    Nothing is checked.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        source = _data(context, builder, signature.args[0], args[0])
        pair = ir.VectorType(_INDEX, 2)
        packed = builder.load(builder.bitcast(builder.gep(source, [args[1]]), pair.as_pointer()), align=1)
        words = builder.shuffle_vector(packed, packed, _lanes(*[0] * 8, *[1] * 8))
        value = _e2m1(builder, builder.lshr(words, _lanes(*range(0, 32, 4), *range(0, 32, 4))))
        pointer, vector = _pointer(context, builder, signature.args[2:], args[2:])
        builder.store(builder.fmul(value, _spread(builder, args[4], vector)), pointer, align=4)
        return context.get_dummy_value()

    return types.void(stored, types.intp, values, types.intp, types.float32), code


def _e4m3(builder: Any, codes: Any) -> Any:
    """Sixteen E4M3 codes, in 32-bit words, as float32: the magnitude is the top of a float32's but for 0 to 7.

    Those come out as 2^-7 (1 + m / 8), and x + x - 2^-6 mends them.  0x7F and 0xFF become NaN.
    """
    vector = ir.VectorType(ir.FloatType(), _WIDE)
    magnitude = builder.and_(codes, _lanes(*[0x7F] * _WIDE))
    rough = builder.add(builder.shl(magnitude, _lanes(*[20] * _WIDE)), _lanes(*[120 << 23] * _WIDE))
    lost = builder.icmp_unsigned("==", magnitude, _lanes(*[0x7F] * _WIDE))
    rough = builder.bitcast(builder.select(lost, _lanes(*[0x7FC00000] * _WIDE), rough), vector)
    return _signed(builder, codes, 7, rough, 2.0**-6)


@intrinsic
def decode_e4m3(typing, stored, byte, values, at, factor):  # type: ignore[no-untyped-def]
    """Sixteen E4M3 codes, as `decode`."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, _ = _pointer(context, builder, signature.args, args)
        value = _e4m3(builder, builder.zext(builder.load(pointer, align=1), ir.VectorType(_INDEX, _WIDE)))
        pointer, vector = _pointer(context, builder, signature.args[2:], args[2:])
        builder.store(builder.fmul(value, _spread(builder, args[4], vector)), pointer, align=4)
        return context.get_dummy_value()

    return types.void(stored, types.intp, values, types.intp, types.float32), code


@intrinsic
def decode_across(typing, stored, byte, factors, first, values, at, pitch):  # type: ignore[no-untyped-def]
    """Sixteen bytes, two E2M1 codes each: low halves into float32 ``values`` from ``at``, high ones ``pitch`` later.

    Each is multiplied by its own of the ``factors``, from index ``first`` on.  Nothing is checked.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, _ = _pointer(context, builder, signature.args[:1], args[:2])
        words = builder.zext(builder.load(pointer, align=1), ir.VectorType(_INDEX, _WIDE))
        pointer, _ = _pointer(context, builder, signature.args[2:], args[2:])
        factor = builder.load(pointer, align=4)
        for codes, into in ((words, args[5]), (builder.lshr(words, _lanes(*[4] * _WIDE)), builder.add(*args[5:7]))):
            pointer, _ = _pointer(context, builder, signature.args[4:], (args[4], into))
            builder.store(builder.fmul(_e2m1(builder, codes), factor), pointer, align=4)
        return context.get_dummy_value()

    return types.void(stored, types.intp, factors, types.intp, values, types.intp, types.intp), code


def _fold(builder: Any, total: Any, join: Any) -> Any:
    """All lanes together, as a balanced tree."""
    for half in (8, 4, 2):
        low, high = _lanes(*range(half)), _lanes(*range(half, 2 * half))
        total = join(builder.shuffle_vector(total, total, low), builder.shuffle_vector(total, total, high))
    return join(builder.extract_element(total, _INDEX(0)), builder.extract_element(total, _INDEX(1)))


class _Sums:
    """Lanes of float64 in registers: squared differences, squares of either side, products, the largest square."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.vector = ir.VectorType(ir.DoubleType(), _WIDE)
        zero = ir.Constant(self.vector, [0.0] * _WIDE)
        self.lanes = [cgutils.alloca_once_value(builder, zero) for _ in range(5)]  # type: ignore[no-untyped-call]

    def add(self, w: Any, v: Any) -> tuple[Any, Any]:
        """Sixteen float32 of each side; the squares of their differences and those of ``v``."""
        build = self.builder
        a, b = build.fpext(w, self.vector), build.fpext(v, self.vector)
        d = build.fsub(a, b)
        squared = build.fmul(d, d)
        # Products of float32 are exact in float64: fused or not, the sum is the same.
        products = [build.fmul(x, y, flags=("contract",)) for x, y in ((a, a), (b, b), (a, b))]
        for held, value in zip(self.lanes, (squared, *products), strict=False):
            build.store(build.fadd(build.load(held), value, flags=("contract",)), held)
        build.store(self.larger(squared, build.load(self.lanes[4])), self.lanes[4])
        return squared, products[1]

    def larger(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", one, other), one, other)

    def put(self, sums: Any) -> None:
        """Add the lanes to five float64 at a pointer; the last becomes the larger one."""
        build = self.builder
        for at, held in enumerate(self.lanes):
            join = self.larger if at == 4 else build.fadd
            place = build.gep(sums, [_INDEX(at)])
            build.store(join(_fold(build, build.load(held), join), build.load(place)), place)


@intrinsic
def errors(typing, w, v, groups, part, held, sums):  # type: ignore[no-untyped-def]
    """``groups`` times sixteen float32 of two sides: sums of each sixteen's squared differences into ``part``.

    Those of the squares of v go into ``held``, unless that is None.  ``sums``, float64 [5], grow by the squared
    differences, squares of w and of v, and products; the last becomes the largest squared difference.  A NaN shows in
    the sums, not in the largest.  Nothing is checked.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        total = _Sums(builder)
        kinds = signature.args
        rooms = [_data(context, builder, kinds[k], args[k]) for k in (3, 4) if isinstance(kinds[k], types.Array)]
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.shl(loop.index, loop.index.type(4))
            pointers = [_pointer(context, builder, kinds[k:], (args[k], at))[0] for k in (0, 1)]
            both = total.add(*(builder.load(pointer, align=4) for pointer in pointers))
            for room, squares_ in zip(rooms, both, strict=False):
                builder.store(_fold(builder, squares_, builder.fadd), builder.gep(room, [loop.index]))
        total.put(_data(context, builder, kinds[5], args[5]))
        return context.get_dummy_value()

    return types.void(w, v, types.intp, part, held, sums), code


@intrinsic
def errors_across(typing, w, v, tall, pitch, at, part, held, sums):  # type: ignore[no-untyped-def]
    """Sixteen columns, from ``at`` on, of ``tall`` lines ``pitch`` apart: sums down each column.

    Squared differences go into ``part`` and squares of v into ``held``, both from ``at`` on; ``sums`` as in `errors`.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        total = _Sums(builder)
        kinds = signature.args
        with cgutils.for_range(builder, args[2]) as loop:
            here = builder.add(args[4], builder.mul(loop.index, args[3]))
            pointers = [_pointer(context, builder, kinds[k:], (args[k], here))[0] for k in (0, 1)]
            total.add(*(builder.load(pointer, align=4) for pointer in pointers))
        for k, lanes in ((5, total.lanes[0]), (6, total.lanes[2])):
            pointer, _ = _pointer(context, builder, kinds[k:], (args[k], args[4]))
            builder.store(builder.load(lanes), pointer, align=8)
        total.put(_data(context, builder, kinds[7], args[7]))
        return context.get_dummy_value()

    return types.void(w, v, types.intp, types.intp, types.intp, part, held, sums), code


@intrinsic
def squares(typing, values, at):  # type: ignore[no-untyped-def]
    """The sum in float64 of the squares of sixteen floats of ``values`` from index ``at`` on, as a balanced tree."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, _ = _pointer(context, builder, signature.args, args)
        held = builder.load(pointer, align=4)
        if signature.args[0].dtype == types.float32:
            held = builder.fpext(held, ir.VectorType(ir.DoubleType(), _WIDE))
        return _fold(builder, builder.fmul(held, held), builder.fadd)

    return types.float64(values, types.intp), code
