"""Dequantise and compare in Numba, and count scale codes, without making the dequantised weight.

Only the order of the float64 sums is left to the compiler: the same machine gives the same bits on any number of cores,
another one may differ in the last.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import blocks, threads
from quant import cpu_vectors as vectors
from quant.codes import E4M3
from quant.floats import LAYOUT, Floats, flat_words
from quant.metrics import ErrorSums
from quant.quantised import Quantised

_GRAIN = 1 << 20  # elements per task, about a millisecond
_E4M3 = E4M3.values
_CHUNK = 512  # elements widened at a time: stays in the first cache


def error(w: Floats, quantised: Quantised) -> ErrorSums:
    """See ``metrics.error``."""
    word, flat = flat_words(w)
    step, index, width = _row_steps(quantised, w.shape)
    columns = w.shape[-1]
    stored = np.ascontiguousarray(quantised.stored).reshape(-1)
    values = element_values(quantised)
    if not flat.size:
        return ErrorSums()

    def part(first: int, last: int) -> ErrorSums:
        sums = np.zeros(5, np.float64)
        args = (columns, width, values, quantised.scheme.packed, first, last, sums)
        _error(flat, LAYOUT[word], stored, step, index, *args)
        return ErrorSums((last - first) * columns, *(float(x) for x in sums))

    total = ErrorSums()
    for one in threads.run(part, index.size, max(1, _GRAIN // columns)):
        total += one
    return total


def element_values(quantised: Quantised) -> NDArray[np.float32]:
    """What each code means, as the kernels take it: nothing for E4M3, which they know by heart."""
    element = quantised.scheme.element
    return np.zeros(0, np.float32) if element is E4M3 else element.values.copy()


def _row_steps(quantised: Quantised, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.intp], int]:
    """Steps as a table of rows, the row each row of the weight uses, and elements per step."""
    block, step = quantised.scheme.block, quantised.steps()
    blocks.require_fit(step.shape, shape, block)
    width = block[-1] or shape[-1]
    return np.ascontiguousarray(step).reshape(-1, step.shape[-1]), blocks.scale_rows(step.shape, shape, block), width


@nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _add(w, v, n, d, sums):  # type: ignore[no-untyped-def]
    """Add ``n`` elements to the five sums; ``d`` is room for the differences.  Only the order of adding is free."""
    squared, source, result, product = 0.0, 0.0, 0.0, 0.0
    for j in range(n):
        a, b = np.float64(w[j]), np.float64(v[j])
        d[j] = a - b
        squared += d[j] * d[j]
        source += a * a
        result += b * b
        product += a * b
    sums[0] += squared
    sums[1] += source
    sums[2] += result
    sums[3] += product


@nb.njit(nogil=True, cache=True)
def _largest(bits, n, top):  # type: ignore[no-untyped-def]
    """The largest pattern of |d| so far: patterns order as magnitudes do, and NaN above all."""
    for j in range(n):
        top = max(top, bits[j] & np.int64(0x7FFFFFFFFFFFFFFF))
    return top


@nb.njit(nogil=True, cache=True)
def _widen(flat, layout, n, bits, w):  # type: ignore[no-untyped-def]
    mask, shift, factor, sign = layout
    if shift == np.uint32(16) and mask == np.uint32(0x7FFF):  # bfloat16: the upper half of a float32
        for j in range(n):
            bits[j] = np.uint32(flat[j]) << np.uint32(16)
        return
    for j in range(n):
        word = np.uint32(flat[j])
        bits[j] = ((word & mask) << shift) | (((word >> sign) & np.uint32(1)) << np.uint32(31))
    if factor != np.float32(1):
        for j in range(n):
            w[j] *= factor
        for j in range(n):  # float16's infinities and NaN now stand from 2^16 on
            size = bits[j] & np.uint32(0x7FFFFFFF)
            bits[j] |= np.uint32(0x7F800000) if size >= np.uint32(0x47800000) else np.uint32(0)


@nb.njit(nogil=True, cache=True)
def _decode_pairs(stored, step, first, n, width, v):  # type: ignore[no-untyped-def]
    """Values of ``n`` packed E2M1 codes (a multiple of 16, as ``width`` is) into ``v``, the first at ``first``."""
    each = width // 16
    at, left = first // width, each - first // 16 % each  # counted, not divided: a division costs as much as the rest
    for b in range(n // 16):
        vectors.decode(stored, 8 * b, v, 16 * b, step[at])  # type: ignore[call-arg]
        left -= 1
        if left == 0:
            at, left = at + 1, each


@nb.njit(nogil=True, cache=True)
def _decode_bytes(stored, values, step, first, n, width, v):  # type: ignore[no-untyped-def]
    """Values of ``n`` codes into ``v``; no ``values``: they are E4M3."""
    table = values if values.size else _E4M3
    if not values.size and not (n % 16 or width % 16 or first % 16):
        each = width // 16
        at, left = first // width, each - first // 16 % each
        for b in range(n // 16):
            vectors.decode_e4m3(stored, 16 * b, v, 16 * b, step[at])  # type: ignore[call-arg]
            left -= 1
            if left == 0:
                at, left = at + 1, each
        return
    for j in range(n):
        v[j] = table[stored[j]]
    done = 0
    while done < n:
        scale, end = step[(first + done) // width], min(n, (first + done) // width * width + width - first)
        for j in range(done, end):
            v[j] *= scale
        done = end


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _error(  # type: ignore[no-untyped-def]
    flat, layout, stored, step, index, columns, width, values, packed, first, last, sums
):
    bits, v, d = np.empty(_CHUNK, np.uint32), np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float64)
    w, size = bits.view(np.float32), d.view(np.int64)
    top = np.int64(0)
    for r in range(first, last):
        for c in range(0, columns, _CHUNK):
            n, start = min(_CHUNK, columns - c), r * columns + c
            _widen(flat[start : start + n], layout, n, bits, w)
            if packed:
                _decode_pairs(stored[start // 2 :], step[index[r]], c, n, width, v)
            else:
                _decode_bytes(stored[start:], values, step[index[r]], c, n, width, v)
            _add(w, v, n, d, sums)
            top = _largest(size, n, top)
    size[0] = top
    sums[4] = d[0]
