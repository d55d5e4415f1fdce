"""How far the writing of a new checkpoint is, told by several threads; and the word to stop, told to them."""

from __future__ import annotations

import threading

from auditor.measure import Progress
from quant.errors import RepairError


class Meter:
    """Counts bytes; ``done`` of ``total`` are there already.  ``progress`` is called by one thread at a time."""

    def __init__(self, total: int, done: int = 0, progress: Progress | None = None) -> None:
        self._total, self._done, self._progress = total, done, progress
        self._lock = threading.Lock()
        self._stopped = False

    def tick(self, more: int) -> None:
        """So many bytes more are written; RepairError once `stop` was called, so that no thread goes on for nothing."""
        with self._lock:
            if self._stopped:
                raise RepairError("stopped, because another shard failed")
            self._done += more
            if self._progress:
                self._progress(self._done, self._total)

    def stop(self) -> None:
        """Have every thread stop at its next piece."""
        with self._lock:
            self._stopped = True
