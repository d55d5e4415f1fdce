"""Run a compiled kernel on all cores, the same way every time.

The kernels release the interpreter lock, so plain threads do; unlike a parallel loop inside Numba they may be
started from several threads at once.  The cut into parts depends on the size of the work alone, never on the
number of cores, so a sum over parts comes out the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="quant")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: a child makes its own pool
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run(work: Callable[[int, int], T], count: int, grain: int) -> list[T]:
    """``work(first, last)`` for each part of at most ``grain`` of ``range(count)``, results in order.

    ``work`` must not call ``run`` itself: it would wait for the thread it occupies.
    """
    parts = [(first, min(first + grain, count)) for first in range(0, count, grain)]
    if len(parts) < 2 or cores() == 1:
        return [work(first, last) for first, last in parts]
    return list(_pool().map(lambda part: work(*part), parts))
