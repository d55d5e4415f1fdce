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


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The address of sixteen elements of the array ``args[0]`` from index ``args[1]`` on, and their type."""
    held = signature.args[0]
    array = context.make_array(held)(context, builder, args[0])
    vector = ir.VectorType(context.get_data_type(held.dtype), _WIDE)
    return builder.bitcast(builder.gep(array.data, [args[1]]), vector.as_pointer()), vector


def _lanes(*numbers: int) -> Any:
    return ir.Constant(ir.VectorType(_INDEX, len(numbers)), list(numbers))


@intrinsic
def scale(typing, values, at, factor):  # type: ignore[no-untyped-def]
    """Multiply sixteen float32 of ``values``, from index ``at`` on, by ``factor``, in place; nothing is checked."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, vector = _pointer(context, builder, signature, args)
        none = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(none, args[2], _INDEX(0))
        every = builder.shuffle_vector(one, none, _lanes(*[0] * _WIDE))
        builder.store(builder.fmul(builder.load(pointer, align=4), every), pointer, align=4)
        return context.get_dummy_value()

    return types.void(values, types.intp, types.float32), code


@intrinsic
def squares(typing, values, at):  # type: ignore[no-untyped-def]
    """The sum in float64 of the squares of sixteen floats of ``values`` from index ``at`` on, as a balanced tree."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, _ = _pointer(context, builder, signature, args)
        held = builder.load(pointer, align=4)
        if signature.args[0].dtype == types.float32:
            held = builder.fpext(held, ir.VectorType(ir.DoubleType(), _WIDE))
        total = builder.fmul(held, held)
        for half in (8, 4, 2):
            low, high = _lanes(*range(half)), _lanes(*range(half, 2 * half))
            total = builder.fadd(builder.shuffle_vector(total, total, low), builder.shuffle_vector(total, total, high))
        return builder.fadd(builder.extract_element(total, _INDEX(0)), builder.extract_element(total, _INDEX(1)))

    return types.float64(values, types.intp), code
