"""Amax, quantise and pack in Numba, pinned to the definitions in ``rounding`` by property tests.

Weights are read as words: magnitude = (word & mask) << shift is a float32 pattern, times ``factor`` for float16.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from quant import blocks, threads
from quant.floats import LAYOUT, Floats, Word, flat_words, round_to

_F = np.float32
_GRAIN = 1 << 20  # elements per task, about a millisecond
_MAX = _F(448)
_SUBNORMAL = _F(2.0**-6)  # below, E4M3 is a fixed-point number with unit 2^-9
_MAGIC = _F(1.5 * 2**23)
# Adding and subtracting 1.5 · 2^23 · step rounds to a multiple of step, ties to even: E2M1 has steps 0.5, 1, 2.
_HALVES, _ONES, _TWOS = _F(1.5 * 2**22), _F(1.5 * 2**23), _F(1.5 * 2**24)


def block_amax(w: Floats, block: int) -> NDArray[np.float32]:
    """See ``rounding.block_amax``."""
    word, flat = flat_words(w)
    out = np.empty((*w.shape[:-1], w.shape[-1] // block), np.float32)
    bits = out.reshape(-1).view(np.uint32)
    mask, shift, factor, _ = LAYOUT[word]
    threads.run(
        lambda first, last: _block_amax(flat, mask, shift, block, first, last, bits), bits.size, _GRAIN // block
    )
    if factor != 1:
        out *= factor
    return out


@nb.njit(nogil=True, cache=True)
def _block_amax(flat, mask, shift, block, first, last, bits):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        part = flat[b * block : (b + 1) * block]  # a view: an index that starts at 0 is one that vectorises
        top = part[0] & mask
        for j in range(block):
            top = max(top, part[j] & mask)
        bits[b] = np.uint32(top) << shift


def pack_fp4(
    w: Floats, step: NDArray[np.float32], block: int, rule: int, bounds: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """See ``rounding.pack_fp4``; ``bounds``: the seven thresholds of the rule."""
    word, flat = flat_words(w)
    out = np.empty((*w.shape[:-1], w.shape[-1] // 2), np.uint8)
    target, each = out.reshape(-1), step.reshape(-1)
    threads.run(
        lambda first, last: _pack_fp4(flat, *LAYOUT[word], each, block, rule, bounds, first, last, target),
        each.size,
        _GRAIN // block,
    )
    return out


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _pack_fp4(  # type: ignore[no-untyped-def]
    flat, mask, shift, factor, sign, step, block, rule, bounds, first, last, out
):
    bits = np.empty(16, np.uint32)
    a = bits.view(np.float32)
    code = np.empty(16, np.uint8)
    t0, t1, t2, t3, t4, t5, t6 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5], bounds[6]
    for start in range(first * block, last * block, 16):
        scale = step[start // block]
        live = scale != np.float32(0)
        part, target = flat[start : start + 16], out[start // 2 : start // 2 + 8]
        for j in range(16):
            bits[j] = (np.uint32(part[j]) & mask) << shift
        for j in range(16):
            ratio = (a[j] * factor) / scale if live else np.float32(0)
            n = (np.uint8(ratio > t0) + np.uint8(ratio > t1)) + (np.uint8(ratio > t2) + np.uint8(ratio > t3))
            n += (np.uint8(ratio > t4) + np.uint8(ratio > t5)) + np.uint8(ratio > t6)
            negative = np.uint8((np.uint32(part[j]) >> sign) & np.uint32(1))
            if rule == 0:
                negative &= np.uint8(ratio > np.float32(0))
            elif rule == 2:
                negative |= np.uint8(a[j] == np.float32(0))
            code[j] = np.uint8(n) | (negative << np.uint8(3))
        for j in range(8):
            target[j] = code[2 * j] | (code[2 * j + 1] << np.uint8(4))


def encode_e4m3(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """See ``rounding.encode_scales``; a negative value keeps its sign."""
    out = np.empty(x.shape, np.uint8)
    flat, target = np.ascontiguousarray(x).reshape(-1).view(np.uint32), out.reshape(-1)
    threads.run(lambda first, last: _encode_e4m3(flat, first, last, target), flat.size, _GRAIN)
    return out


@nb.njit(nogil=True, cache=True)
def _encode_e4m3(flat, first, last, out):  # type: ignore[no-untyped-def]
    bits = np.empty(64, np.uint32)
    x = bits.view(np.float32)
    scaled = np.empty(64, np.float32)
    low = scaled.view(np.uint32)
    for start in range(first, last, 64):
        n = min(64, last - start)
        part, target = flat[start : start + n], out[start : start + n]
        for j in range(n):
            bits[j] = part[j] & np.uint32(0x7FFFFFFF)
        for j in range(64):
            x[j] = min(x[j], _MAX)
            scaled[j] = x[j] * np.float32(512) + _MAGIC
        for j in range(n):
            # The carry of the rounding runs into the exponent, as it should; 120 << 3 takes the bias off.
            normal = ((bits[j] + np.uint32(0x7FFFF) + ((bits[j] >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - (
                np.uint32(960)
            )
            code = low[j] & np.uint32(15) if x[j] < _SUBNORMAL else normal
            target[j] = np.uint8(code) | np.uint8((part[j] >> np.uint32(24)) & np.uint32(0x80))


def encode_fp8(w: Floats, step: NDArray[np.float32], block: blocks.Block, word: Word) -> NDArray[np.uint8]:
    """See ``rounding.encode_fp8``: the quotients of a few rows at a time, then the E4M3 encoder."""
    blocks.require_fit(step.shape, w.shape, block)
    stored, flat = flat_words(w)
    columns, out = w.shape[-1], np.empty(w.shape, np.uint8)
    if not out.size:
        return out
    index = blocks.scale_rows(step.shape, w.shape, block)
    steps = np.ascontiguousarray(step).reshape(-1, step.shape[-1])
    target = out.reshape(-1)

    def part(first: int, last: int) -> None:
        ratio = np.empty((last - first, columns), np.float32)
        _quotients(flat, *LAYOUT[stored], steps, index, block[-1] or columns, first, ratio)
        rounded = round_to(ratio, word).reshape(-1).view(np.uint32)
        _encode_e4m3(rounded, 0, rounded.size, target[first * columns : last * columns])

    threads.run(part, index.size, max(1, _GRAIN // columns))
    return out


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _quotients(flat, mask, shift, factor, sign, steps, index, width, first, ratio):  # type: ignore[no-untyped-def]
    bits = ratio.view(np.uint32)
    columns = ratio.shape[1]
    for r in range(ratio.shape[0]):
        part = flat[(first + r) * columns : (first + r + 1) * columns]
        for j in range(columns):
            bits[r, j] = (np.uint32(part[j]) & mask) << shift
        for start in range(0, columns, width):
            scale = steps[index[first + r], start // width]
            for j in range(start, min(start + width, columns)):
                ratio[r, j] = (ratio[r, j] * factor) / scale if scale != np.float32(0) else np.float32(0)
        for j in range(columns):
            bits[r, j] |= ((np.uint32(part[j]) >> sign) & np.uint32(1)) << np.uint32(31)


def block_losses(w: Floats, step: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """See ``rounding.block_losses``."""
    word, flat = flat_words(w)
    out = np.empty(step.shape, np.float32)
    each, target = step.reshape(-1), out.reshape(-1)
    threads.run(
        lambda first, last: _block_losses(flat, *LAYOUT[word][:3], each, block, first, last, target),
        each.size,
        _GRAIN // block,
    )
    return out


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _block_losses(flat, mask, shift, factor, step, block, first, last, out):  # type: ignore[no-untyped-def]
    bits = np.empty(block, np.uint32)
    a, square = bits.view(np.float32), np.empty(block, np.float32)
    for b in range(first, last):
        part = flat[b * block : (b + 1) * block]
        for j in range(block):
            bits[j] = (np.uint32(part[j]) & mask) << shift
        for j in range(block):
            w = a[j] * factor
            ratio = min(w / step[b], np.float32(6))
            magic = _HALVES if ratio < np.float32(2) else (_ONES if ratio < np.float32(4) else _TWOS)
            err = w - ((ratio + magic) - magic) * step[b]
            square[j] = err * err
        total = np.float32(0)
        for j in range(block // 2):
            total += square[j] + square[j + block // 2]
        out[b] = total
