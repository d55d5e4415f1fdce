"""What a shard waits for when it is written happens behind the next one: the disk is slower than the writer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from repair.handle import Handle, closed_on_error


class Settling:
    """Carries out one step after the other, in their order, on a thread of its own; or at once, where it is off.

    What a step raises is raised by the next call, or at the end of the block; no step follows one that failed.
    """

    def __init__(self, on: bool) -> None:
        """``on``: behind; else every step is done when `then` returns."""
        self._thread = ThreadPoolExecutor(1) if on else None
        self._last: Future[None] | None = None

    def then(self, file: Handle, step: Callable[[], None]) -> None:
        """Do ``step`` once the one before is done, then close ``file``.  At most one waits: its bytes are memory."""

        def closing() -> None:
            with file:
                step()

        with closed_on_error(file):
            self._wait()
        if self._thread is None:
            closing()
        else:
            self._last = self._thread.submit(closing)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
