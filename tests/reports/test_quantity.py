from __future__ import annotations

import pytest

from reports import quantity


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (34_349, "34.3 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"),
     (1_015_000_000, "1.01 GB"), (9_994_999, "9.99 MB"), (9_995_000, "10.0 MB"), (99_950, "100 kB")],
)  # fmt: skip
def test_sizes_have_three_digits(count, text):
    assert quantity.size(count) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "100 %"),
        (0, 9, "0.0 %"),
        (1, 10**9, "< 0.1 %"),
        (999_999, 10**6, "99.9 %"),
        (5, 5, "100 %"),
        (6, 5, "100 %"),
    ],
)
def test_a_share_says_all_only_for_all(part, whole, text):
    assert quantity.share(part, whole) == text


def test_counts_and_times():
    assert quantity.plural(1, "tensor") == "1 tensor"
    assert quantity.plural(92_400, "tensor") == "92 400 tensors"
    assert quantity.duration(0.4) == "0:00"
    assert quantity.duration(750) == "12:30"
    assert quantity.duration(3723) == "1:02:03"
