"""A progress line on stderr: bytes, rate, time left."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import TextIO

from reports.layout import cells
from reports.quantity import duration, size

PATIENCE = 1.0  # seconds before anything is shown
_EVERY = 0.1  # seconds between two lines
_BAR = 24


class Progress:
    """Shows how far a scan is, once it has lasted a second; may be called from several threads.

    ``begin`` starts a checkpoint, a call says (bytes done, bytes in all), ``clear`` takes the line away.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._shown = 0  # columns to clear
        self.begin()

    def begin(self) -> None:
        """A new checkpoint: the clock starts again."""
        self._start = time.monotonic()
        self._next = self._start + PATIENCE

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _EVERY
            self._show(line(done, total, now - self._start))

    def clear(self) -> None:
        """Leave an empty line behind."""
        with self._lock:
            if self._shown:
                self._write("\r" + " " * self._shown + "\r")
                self._shown = 0

    def _show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self._shown))
        self._shown = max(self._shown, cells(text))

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # nobody watches any more; the scan goes on
            self._next = float("inf")


def line(done: int, total: int, seconds: float) -> str:
    """`[#####-------] 42 %  1.2 GB of 2.9 GB  1.1 GB/s  0:02 left`."""
    part = min(1.0, done / total) if total else 1.0
    filled = int(part * _BAR)
    rate = done / seconds if seconds > 0 else 0.0
    left = f"  {duration((total - done) / rate)} left" if rate else ""
    bar = "#" * filled + "-" * (_BAR - filled)
    return f"[{bar}] {int(part * 100):3d} %  {size(done)} of {size(total)}  {size(int(rate))}/s{left}"


def watch(wanted: bool, stream: TextIO | None = None) -> Progress | None:
    """A progress line when it is wanted and stderr is a terminal, else None."""
    stream = stream or sys.stderr
    return Progress(stream) if wanted and stream.isatty() else None
