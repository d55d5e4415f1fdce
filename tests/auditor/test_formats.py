"""The table of layouts."""

from __future__ import annotations

import pytest

from auditor.formats.base import Role, all_formats, block_shape, ceil_div
from tests.layouts import LAYOUTS

# Recognised, but made elsewhere in the tests than in the forge's table.
ELSEWHERE = {
    "ct-mxfp6", "fused-fp8-block", "fused-fp8-channel", "modelopt-3d-fp8", "modelopt-3d-mx", "modelopt-3d-w4a8",
    "torchao",
}  # fmt: skip


def test_names_are_unique_and_sorted() -> None:
    names = [fmt.name for fmt in all_formats()]
    assert names == sorted(set(names))


def test_the_forge_makes_every_format() -> None:
    labels = {label for layout in LAYOUTS.values() for label in layout.labels}
    for fmt in all_formats():
        assert {fmt.name, *fmt.names.values()} & (labels | ELSEWHERE), fmt.name


def test_every_format_has_codes_and_scales_under_different_names() -> None:
    for fmt in all_formats():
        assert {Role.CODES, Role.SCALES} <= set(fmt.parts)
        assert fmt.parts[Role.CODES].required
        assert fmt.parts[Role.SCALES].required
        suffixes = [part.suffix for part in fmt.parts.values()]
        assert len(set(suffixes)) == len(suffixes)
        assert (fmt.scheme is None) == bool(fmt.unaudited)
        assert all(part.usual is None or part.usual <= part.dtypes for part in fmt.parts.values())


@pytest.mark.parametrize(
    ("codes", "scales", "block"),
    [
        ((256, 384), (2, 3), (128, 128)),
        ((192, 208), (2, 2), (128, 128)),
        ((128, 128), (1, 1), (128, 128)),
        ((1, 1), (1, 1), (128, 128)),
        ((256, 256), (2, 1, 2, 1), (128, 128)),
        ((3, 256, 256), (3, 2, 2), (128, 128)),
        ((128, 128), (2, 2), (64, 64)),
        ((8, 64), (8, 2), (1, 32)),
        ((8, 64), (2, 8), None),
        ((8, 64), (8,), None),
        ((64,), (2,), None),
        ((3, 256, 256), (2, 2, 2), None),
        ((4096, 4096), (1, 1), None),
    ],
)
def test_block_shape(codes: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, int] | None) -> None:
    assert block_shape(codes, scales) == block


def test_ceil_div() -> None:
    assert [ceil_div(n, 128) for n in (0, 1, 128, 129)] == [0, 1, 1, 2]
    assert ceil_div(7, 0) == 1
