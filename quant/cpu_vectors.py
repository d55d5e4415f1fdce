"""Sixteen elements at once, spelt out for LLVM.

Blocks are sixteen long, and a loop of sixteen is unrolled before it could become vector code: six times slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
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


@intrinsic
def decode(typing, stored, byte, values, at, factor):  # type: ignore[no-untyped-def]
    """Sixteen E2M1 codes of ``stored``, from index ``byte`` on, times ``factor``, into float32 ``values`` from ``at``.

    A magnitude becomes the exponent and the first bit of the mantissa of a float32.  All but 0 and 0.5 are then
    right; those two come out as 0.5 and 0.75, and x + x - 1 mends them.  Nothing is checked.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        source = context.make_array(signature.args[0])(context, builder, args[0])
        pair = ir.VectorType(_INDEX, 2)
        packed = builder.load(builder.bitcast(builder.gep(source.data, [args[1]]), pair.as_pointer()), align=1)
        words = builder.shuffle_vector(packed, packed, _lanes(*[0] * 8, *[1] * 8))
        codes = builder.lshr(words, _lanes(*range(0, 32, 4), *range(0, 32, 4)))
        magnitude = builder.shl(builder.and_(codes, _lanes(*[7] * _WIDE)), _lanes(*[22] * _WIDE))
        pointer, vector = _pointer(context, builder, signature.args[2:], args[2:])
        rough = builder.bitcast(builder.add(magnitude, _lanes(*[126 << 23] * _WIDE)), vector)
        one = ir.Constant(vector, [1.0] * _WIDE)
        mended = builder.fsub(builder.fadd(rough, rough), one)
        size = builder.select(builder.fcmp_ordered("<", rough, one), mended, rough)
        sign = builder.shl(builder.and_(codes, _lanes(*[8] * _WIDE)), _lanes(*[28] * _WIDE))
        value = builder.bitcast(builder.or_(builder.bitcast(size, sign.type), sign), vector)
        none = ir.Constant(vector, ir.Undefined)
        every = builder.shuffle_vector(builder.insert_element(none, args[4], _INDEX(0)), none, _lanes(*[0] * _WIDE))
        builder.store(builder.fmul(value, every), pointer, align=4)
        return context.get_dummy_value()

    return types.void(stored, types.intp, values, types.intp, types.float32), code


@intrinsic
def squares(typing, values, at):  # type: ignore[no-untyped-def]
    """The sum in float64 of the squares of sixteen floats of ``values`` from index ``at`` on, as a balanced tree."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, _ = _pointer(context, builder, signature.args, args)
        held = builder.load(pointer, align=4)
        if signature.args[0].dtype == types.float32:
            held = builder.fpext(held, ir.VectorType(ir.DoubleType(), _WIDE))
        total = builder.fmul(held, held)
        for half in (8, 4, 2):
            low, high = _lanes(*range(half)), _lanes(*range(half, 2 * half))
            total = builder.fadd(builder.shuffle_vector(total, total, low), builder.shuffle_vector(total, total, high))
        return builder.fadd(builder.extract_element(total, _INDEX(0)), builder.extract_element(total, _INDEX(1)))

    return types.float64(values, types.intp), code
