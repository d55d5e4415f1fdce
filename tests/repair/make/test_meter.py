"""Progress is the same whatever thread tells it; once stopped, no thread goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from quant.errors import RepairError
from repair.make.meter import Meter


def test_every_byte_is_told_once():
    told = []
    meter = Meter(1100, 100, lambda done, total: told.append((done, total)))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: meter.tick(10), range(100)))
    assert told == [(100 + 10 * n, 1100) for n in range(1, 101)]


def test_stopped():
    meter = Meter(10)
    meter.tick(3)
    meter.stop()
    with pytest.raises(RepairError, match="another shard failed"):
        meter.tick(1)
