"""Probes against definitions written element by element, over every byte value and every way to cut."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from auditor.finding import PLACES_KEPT
from auditor.probes import RAW_KEPT, ByteStats, CodeStats, FloatStats, Hits, Probe, Stats, decode_floats, measure

FLOATS: dict[str, Any] = {"F16": "<f2", "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8"}
EVERY_BYTE = bytes(range(256))


def in_pieces(probe: Probe, raw: bytes, cuts: list[int], dtype: str = "U8", unit: int = 0, inner: int = 1) -> Stats:
    """Statistics of ``raw`` measured in pieces that begin at ``cuts``, merged front to back."""
    edges = [0, *sorted(cuts), len(raw)]
    data = np.frombuffer(raw, np.uint8)
    pieces = [measure(probe, data[a:b], a, dtype, unit, inner) for a, b in pairwise(edges)]
    for later in pieces[1:]:
        pieces[0].merge(later)  # type: ignore[arg-type]
    return pieces[0]


def places(flags: list[bool]) -> Hits:
    where = [i for i, flag in enumerate(flags) if flag]
    return Hits(len(where), tuple(where[:PLACES_KEPT]))


def e4m3_by_definition(raw: bytes) -> ByteStats:
    """Element by element, with ml_dtypes as the judge of what a byte means."""
    values = np.frombuffer(raw, ml_dtypes.float8_e4m3fn).astype(np.float64)
    nan = [math.isnan(v) for v in values]
    live = [byte for byte, v in zip(raw, values, strict=True) if v > 0]
    return ByteStats(
        size=len(raw),
        low=min(live, default=256),
        high=max(live, default=-1),
        zeros=places([byte == 0 for byte in raw]),
        nan=places(nan),
        negative=places([math.copysign(1, v) < 0 and not n for v, n in zip(values, nan, strict=True)]),
        minus_zeros=sum(v == 0 and math.copysign(1, v) < 0 for v in values),
        saturated=int(np.count_nonzero(values == 448)),
        near_top=int(np.count_nonzero((values >= 320) & (values <= 416))),
        subnormal=int(np.count_nonzero((values > 0) & (values < 2.0**-6))),
        checksum=checksum(raw),
    )


def e8m0_by_definition(raw: bytes) -> ByteStats:
    live = [byte for byte in raw if byte not in (0, 255)]
    return ByteStats(
        size=len(raw),
        low=min(live, default=256),
        high=max(live, default=-1),
        zeros=places([byte == 0 for byte in raw]),
        nan=places([byte == 255 for byte in raw]),
        checksum=checksum(raw),
    )


def checksum(raw: bytes) -> int:
    return sum(int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)) % 2**64


def floats_by_definition(raw: bytes, dtype: str) -> FloatStats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signalling NaNs
        values = [float(v) for v in np.frombuffer(raw, FLOATS[dtype]).astype(np.float64)]
    good = [v for v in values if v > 0 and math.isfinite(v)]
    return FloatStats(
        size=len(values),
        nan=places([math.isnan(v) for v in values]),
        inf=places([math.isinf(v) for v in values]),
        zeros=places([v == 0 for v in values]),
        negative=places([-math.inf < v < 0 for v in values]),
        low=min(good, default=math.inf),
        high=max(good, default=0.0),
        raw=raw if len(raw) <= RAW_KEPT else None,
    )


EIGHTHS = st.lists(st.integers(0, 40).map(lambda n: 8 * n), max_size=4)


@given(
    raw=st.binary(max_size=320) | st.lists(st.sampled_from(b"\0\x01\x08\x38\x79\x7a\x7e\x7f\x80\xff")).map(bytes),
    cuts=EIGHTHS,
)
def test_e4m3_scales_however_they_are_cut(raw: bytes, cuts: list[int]) -> None:
    cuts = [cut for cut in cuts if cut <= len(raw)]
    assert in_pieces(Probe.E4M3_SCALES, raw, cuts) == e4m3_by_definition(raw)
    assert in_pieces(Probe.E8M0_SCALES, raw, cuts) == e8m0_by_definition(raw)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_alone_and_among_ordinary_ones(byte: int) -> None:
    for raw in (bytes([byte]), b"\x38" * 100 + bytes([byte]) * 3 + b"\x40" * 30):
        assert in_pieces(Probe.E4M3_SCALES, raw, []) == e4m3_by_definition(raw)
        assert in_pieces(Probe.E8M0_SCALES, raw, []) == e8m0_by_definition(raw)


@pytest.mark.parametrize("cut", range(0, 257, 8))
def test_every_cut_of_all_bytes(cut: int) -> None:
    assert in_pieces(Probe.E4M3_SCALES, EVERY_BYTE, [cut]) == e4m3_by_definition(EVERY_BYTE)
    assert in_pieces(Probe.E8M0_SCALES, EVERY_BYTE, [cut]) == e8m0_by_definition(EVERY_BYTE)


def test_only_the_first_places_are_kept_but_all_are_counted() -> None:
    stats = in_pieces(Probe.E4M3_SCALES, b"\x38" * 8 + b"\x7f" * 4 + b"\xff" * 100, [8, 16])
    assert isinstance(stats, ByteStats)
    assert stats.nan == Hits(104, tuple(range(8, 8 + PLACES_KEPT)))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_sixteen_bit_value(dtype: str) -> None:
    raw = np.arange(1 << 16, dtype="<u2").tobytes()
    for at in range(0, len(raw), 8192):
        piece = raw[at : at + 8192]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = in_pieces(Probe.FLOATS, piece, [64, 4096], dtype)
        assert got == floats_by_definition(piece, dtype)


@given(data=st.data(), dtype=st.sampled_from(sorted(FLOATS)), cuts=EIGHTHS)
def test_floats_however_they_are_cut(data: st.DataObject, dtype: str, cuts: list[int]) -> None:
    width = np.dtype(FLOATS[dtype]).itemsize
    ends = {"F16": b"\x00\x7c", "BF16": b"\x80\x7f", "F32": b"\x00\x00\x80\x7f", "F64": b"\0\0\0\0\0\0\xf0\x7f"}[dtype]
    flipped = ends[:-1] + b"\xff"
    element = st.binary(min_size=width, max_size=width) | st.sampled_from(
        [ends, flipped, bytes(width), b"\xff" * width]
    )
    raw = b"".join(data.draw(st.lists(element, max_size=40)))
    cuts = [cut for cut in cuts if cut <= len(raw)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_pieces(Probe.FLOATS, raw, cuts, dtype) == floats_by_definition(raw, dtype)
        finite = in_pieces(Probe.FINITE, raw, cuts, dtype)
    expected = floats_by_definition(raw, dtype)
    assert isinstance(finite, FloatStats)
    assert (finite.nan, finite.inf, finite.size) == (expected.nan, expected.inf, expected.size)


def test_a_float_tensor_is_kept_whole_up_to_a_size() -> None:
    kept = in_pieces(Probe.FLOATS, bytes(RAW_KEPT), [64, RAW_KEPT // 2], "F32")
    dropped = in_pieces(Probe.FLOATS, bytes(RAW_KEPT + 4), [64, RAW_KEPT // 2], "F32")
    assert isinstance(kept, FloatStats)
    assert isinstance(dropped, FloatStats)
    assert kept.raw == bytes(RAW_KEPT)
    assert dropped.raw is None


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_decoded_floats_are_exact(dtype: str) -> None:
    raw = np.array([0.0, -0.0, 1.5, -2.25, 6.103515625e-05, 240.0], FLOATS[dtype]).tobytes()
    assert decode_floats(raw, dtype).tolist() == np.frombuffer(raw, FLOATS[dtype]).astype(np.float64).tolist()


@given(raw=st.binary(max_size=300) | st.lists(st.sampled_from(b"\x7b\x7c\x7d\x7f\xfc\xff\0")).map(bytes), cuts=EIGHTHS)
def test_fp8_weights(raw: bytes, cuts: list[int]) -> None:
    cuts = [cut for cut in cuts if cut <= len(raw)]
    for probe, kind in ((Probe.E4M3_CODES, ml_dtypes.float8_e4m3fn), (Probe.E5M2_CODES, ml_dtypes.float8_e5m2)):
        values = np.frombuffer(raw, kind).astype(np.float64)
        expected = CodeStats(len(raw), places(np.isnan(values).tolist()), places(np.isinf(values).tolist()))
        assert in_pieces(probe, raw, cuts) == expected


def sevens_by_definition(codes: NDArray[np.uint8]) -> Hits:
    """``codes``: uint8 [rows, unit, inner]."""
    rows, unit, inner = codes.shape
    flags = [all(codes[r, k, i] == 0x77 for k in range(unit)) for r in range(rows) for i in range(inner)]
    return places(flags)


@settings(max_examples=60)
@given(data=st.data(), unit=st.sampled_from([8, 16]), inner=st.sampled_from([1, 1, 3, 8]), rows=st.integers(1, 9))
def test_fp4_blocks_of_sevens(data: st.DataObject, unit: int, inner: int, rows: int) -> None:
    block = st.sampled_from([b"\x77" * unit, b"\x77" * (unit - 1) + b"\x76", bytes(unit), b"\xff" * unit])
    blocks = data.draw(st.lists(block, min_size=rows * inner, max_size=rows * inner))
    codes = np.frombuffer(b"".join(blocks), np.uint8).reshape(rows, inner, unit).transpose(0, 2, 1)
    raw = np.ascontiguousarray(codes).tobytes()
    cuts = data.draw(st.lists(st.integers(0, rows).map(lambda r: r * unit * inner), max_size=3))
    stats = in_pieces(Probe.FP4_CODES, raw, cuts, "U8", unit, inner)
    assert stats == CodeStats(len(raw), sevens=sevens_by_definition(codes))


def test_codes_of_unknown_geometry_are_counted_only() -> None:
    assert in_pieces(Probe.FP4_CODES, b"\x77" * 64, []) == CodeStats(64)
