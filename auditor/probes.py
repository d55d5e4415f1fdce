"""What is counted in the bytes of a tensor: one pass over chunks, small results that add up.

A probe is made for a tensor, fed its bytes in order (or a part of them), and gives statistics that merge
with those of the other parts.  The common case, nothing wrong, costs a handful of vectorised passes over
a chunk that sits in the CPU's cache; the first hit makes that chunk, and only that one, go the slow way.
"""

from __future__ import annotations

import enum
import math
import struct
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auditor.finding import PLACES_KEPT

CHUNK = 512 << 10  # bytes handed to a probe at once; small enough for the second-level cache
RAW_KEPT = 16 << 10  # a float tensor up to this size is kept whole: per-tensor and per-expert scales

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_LOCAL = threading.local()  # one mask per worker thread
_FLOAT32 = struct.Struct("<f")


class Probe(enum.Enum):
    """What to look for in a tensor's bytes."""

    E4M3_SCALES = "e4m3 scales"
    E8M0_SCALES = "e8m0 scales"
    FLOATS = "floats"  # F16, BF16, F32, F64: every value's sign, zero, range
    FINITE = "finite"  # the same dtypes: NaN and infinity only
    E4M3_CODES = "e4m3 codes"
    E5M2_CODES = "e5m2 codes"
    FP4_CODES = "fp4 codes"


class Hits(NamedTuple):
    """A count and the first few places, as flat element indices, ascending."""

    count: int = 0  # type: ignore[assignment]  # a tuple's own method of that name is not missed
    first: tuple[int, ...] = ()

    def plus(self, other: Hits) -> Hits:
        """Both together; ``other`` comes from later in the tensor."""
        return Hits(self.count + other.count, (self.first + other.first)[:PLACES_KEPT]) if other[0] else self


NONE = Hits()


@dataclass(slots=True)
class ByteStats:
    """E4M3 or E8M0 scales.  ``low``/``high``: smallest and largest byte that is a positive finite scale."""

    size: int = 0
    low: int = 256
    high: int = -1
    zeros: Hits = NONE  # byte 0x00
    nan: Hits = NONE  # E4M3 0x7F and 0xFF, E8M0 255
    negative: Hits = NONE  # E4M3 with the sign bit, NaN apart
    minus_zeros: int = 0  # E4M3 0x80, which `negative` counts too
    saturated: int = 0  # E4M3 0x7E
    near_top: int = 0  # E4M3 0x7A to 0x7D
    subnormal: int = 0  # E4M3 0x01 to 0x07
    checksum: int = 0  # sum of the little-endian 64-bit words, modulo 2^64: equal bytes have equal sums

    def merge(self, other: ByteStats) -> None:
        """Add the statistics of a later part of the same tensor."""
        self.size += other.size
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.zeros, self.nan = self.zeros.plus(other.zeros), self.nan.plus(other.nan)
        self.negative = self.negative.plus(other.negative)
        self.minus_zeros += other.minus_zeros
        self.saturated += other.saturated
        self.near_top += other.near_top
        self.subnormal += other.subnormal
        self.checksum = (self.checksum + other.checksum) & (2**64 - 1)


@dataclass(slots=True)
class FloatStats:
    """A float tensor.  Under FINITE only ``size``, ``nan`` and ``inf`` are counted.

    ``low``/``high``: range of the finite positive values, inf and 0 when there are none.
    """

    size: int = 0
    nan: Hits = NONE
    inf: Hits = NONE
    zeros: Hits = NONE
    negative: Hits = NONE
    low: float = float("inf")
    high: float = 0.0
    raw: bytes | None = b""  # the tensor's bytes when it is small

    def merge(self, other: FloatStats) -> None:
        """Add the statistics of a later part of the same tensor."""
        self.size += other.size
        self.nan, self.inf = self.nan.plus(other.nan), self.inf.plus(other.inf)
        self.zeros, self.negative = self.zeros.plus(other.zeros), self.negative.plus(other.negative)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        whole = None if self.raw is None or other.raw is None else self.raw + other.raw
        self.raw = whole if whole is not None and len(whole) <= RAW_KEPT else None

    @property
    def bad(self) -> int:
        """How many values are NaN or infinite."""
        return self.nan.count + self.inf.count


@dataclass(slots=True)
class CodeStats:
    """Quantised weights: FP8 bytes that are NaN or infinite, FP4 blocks that are sixteen times +6."""

    size: int = 0  # bytes
    nan: Hits = NONE
    inf: Hits = NONE
    sevens: Hits = NONE  # FP4 blocks stored as 0x77 throughout, by block number

    def merge(self, other: CodeStats) -> None:
        """Add the statistics of a later part of the same tensor."""
        self.size += other.size
        self.nan, self.inf = self.nan.plus(other.nan), self.inf.plus(other.inf)
        self.sevens = self.sevens.plus(other.sevens)


Stats = ByteStats | FloatStats | CodeStats


def hits(mask: Mask, base: int) -> Hits:
    """How many are set in a mask, and the first places counted from ``base``."""
    count = int(np.count_nonzero(mask))
    if not count:
        return NONE
    # argmax-style search would stop early, flatnonzero is simple and only runs on a chunk with hits.
    return Hits(count, tuple(int(i) + base for i in np.flatnonzero(mask)[:PLACES_KEPT]))


def measure_one(raw: bytes, dtype: str) -> FloatStats | None:
    """As `measure` under FLOATS of a tensor of one float32 that is positive and finite; None of any other.

    Most tensors of a checkpoint are such: a scale per tensor.
    """
    if dtype != "F32" or len(raw) != 4:
        return None
    value: float = _FLOAT32.unpack(raw)[0]
    return FloatStats(1, low=value, high=value, raw=raw) if 0.0 < value < math.inf else None


def measure(probe: Probe, chunk: Bytes, at: int, dtype: str, unit: int, inner: int) -> Stats:
    """Statistics of ``chunk`` (uint8, 1-D), which begins ``at`` bytes into a tensor of ``dtype``.

    ``unit`` and ``inner`` are the packed codes' geometry (FP4_CODES only); ``at`` must then be a multiple of
    unit * inner, and of the item size for floats.
    """
    if probe is Probe.E4M3_SCALES:
        return _e4m3_scales(chunk, at)
    if probe is Probe.E8M0_SCALES:
        return _e8m0_scales(chunk, at)
    if probe in (Probe.FLOATS, Probe.FINITE):
        return _floats(chunk, at, dtype, probe is Probe.FLOATS)
    if probe is Probe.FP4_CODES:
        return _fp4(chunk, at, unit, inner)
    return _fp8(chunk, at, probe is Probe.E5M2_CODES)


def _e4m3_scales(chunk: Bytes, at: int) -> ByteStats:
    stats = ByteStats(size=chunk.size, checksum=_checksum(chunk))
    if not chunk.size:
        return stats
    low, high = _range(chunk)
    clean = high < 0x7F
    if not clean or low == 0:
        magnitude = chunk & 0x7F
        nan = magnitude == 0x7F
        stats.nan = hits(nan, at)
        stats.negative = hits((chunk >= 0x80) & ~nan, at)
        stats.minus_zeros = int(np.count_nonzero(chunk == 0x80)) if stats.negative.count else 0
        stats.zeros = hits(chunk == 0, at)
        positive = chunk[(chunk > 0) & (chunk < 0x7F)]
        low, high = (int(positive.min()), int(positive.max())) if positive.size else (256, -1)
    stats.low, stats.high = low, high
    if high >= 0x7A:
        finite = chunk if clean else np.where(chunk < 0x7F, chunk, 0)
        stats.saturated = _at_least(finite, 0x7E)
        stats.near_top = _at_least(finite, 0x7A) - stats.saturated
    if low < 8:
        stats.subnormal = int(np.count_nonzero((chunk > 0) & (chunk < 8)))
    return stats


def _range(chunk: Bytes) -> tuple[int, int]:
    """Smallest and largest byte."""
    return int(np.minimum.reduce(chunk)), int(np.maximum.reduce(chunk))


def _at_least(chunk: Bytes, byte: int) -> int:
    """How many bytes are ``byte`` or larger; the mask is kept per thread: allocating it costs more than filling it."""
    mask: Mask | None = getattr(_LOCAL, "mask", None)
    if mask is None or mask.size < chunk.size:
        mask = _LOCAL.mask = np.empty(max(chunk.size, CHUNK), np.bool_)
    return int(np.count_nonzero(np.greater_equal(chunk, byte, out=mask[: chunk.size])))


def _e8m0_scales(chunk: Bytes, at: int) -> ByteStats:
    stats = ByteStats(size=chunk.size, checksum=_checksum(chunk))
    if not chunk.size:
        return stats
    low, high = _range(chunk)
    if high == 255 or low == 0:
        stats.nan = hits(chunk == 255, at)
        stats.zeros = hits(chunk == 0, at)
        live = chunk[(chunk > 0) & (chunk < 255)]
        low, high = (int(live.min()), int(live.max())) if live.size else (256, -1)
    stats.low, stats.high = low, high
    return stats


def _checksum(chunk: Bytes) -> int:
    whole = chunk.size & ~7
    words = chunk[:whole].view("<u8")
    tail = int.from_bytes(chunk[whole:].tobytes(), "little")
    return (int(np.add.reduce(words, dtype=np.uint64)) + tail) & (2**64 - 1)


class _FloatBits(NamedTuple):
    code: str
    value: str
    magnitude: int  # mask that drops the sign
    infinity: int  # bits of +inf; larger magnitudes are NaN


_FLOAT_BITS = {
    "F16": _FloatBits("<u2", "<f2", 0x7FFF, 0x7C00),
    "BF16": _FloatBits("<u2", "", 0x7FFF, 0x7F80),
    "F32": _FloatBits("<u4", "<f4", 0x7FFFFFFF, 0x7F800000),
    "F64": _FloatBits("<u8", "<f8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def decode_floats(raw: bytes | Bytes, dtype: str) -> NDArray[np.float64]:
    """The values of a small float tensor as float64; exact for every dtype."""
    bits = _FLOAT_BITS[dtype]
    codes = np.frombuffer(raw, bits.code) if isinstance(raw, bytes) else raw.view(bits.code)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, which is all that is asked
        if dtype == "BF16":
            return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return codes.view(bits.value).astype(np.float64)


def _floats(chunk: Bytes, at: int, dtype: str, detail: bool) -> FloatStats:
    bits = _FLOAT_BITS[dtype]
    codes = chunk.view(bits.code)
    base = at // codes.itemsize
    stats = FloatStats(size=codes.size, raw=chunk.tobytes() if detail and chunk.size <= RAW_KEPT else None)
    if not codes.size:
        return stats
    magnitude = codes & codes.dtype.type(bits.magnitude)
    largest = int(magnitude.max())
    if largest >= bits.infinity:
        stats.nan = hits(magnitude > bits.infinity, base)
        stats.inf = hits(magnitude == bits.infinity, base)
    if detail:
        values = decode_floats(chunk, dtype)
        stats.zeros = hits(magnitude == 0, base)
        stats.negative = hits((codes > bits.magnitude) & (magnitude != 0) & (magnitude < bits.infinity), base)
        good = values[np.isfinite(values) & (values > 0)]
        if good.size:
            stats.low, stats.high = float(good.min()), float(good.max())
    return stats


def _fp8(chunk: Bytes, at: int, e5m2: bool) -> CodeStats:
    stats = CodeStats(size=chunk.size)
    if not chunk.size:
        return stats
    magnitude = chunk & 0x7F
    largest = int(magnitude.max())
    if e5m2 and largest >= 0x7C:
        stats.nan, stats.inf = hits(magnitude > 0x7C, at), hits(magnitude == 0x7C, at)
    elif not e5m2 and largest == 0x7F:
        stats.nan = hits(magnitude == 0x7F, at)
    return stats


def _fp4(chunk: Bytes, at: int, unit: int, inner: int) -> CodeStats:
    stats = CodeStats(size=chunk.size)
    if not unit or not chunk.size:
        return stats
    whole = chunk.size - chunk.size % (unit * inner)
    if inner > 1:
        mask = (chunk[:whole].reshape(-1, unit, inner) == 0x77).all(axis=1).reshape(-1)
    else:
        words = chunk[:whole].view("<u8") == 0x7777777777777777
        mask = words if unit == 8 else words.reshape(-1, unit // 8).all(axis=1)
    stats.sevens = hits(mask, at // unit)
    return stats
