from __future__ import annotations

import io

import pytest

from reports.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_quick_scan_shows_nothing(clock):
    out = Terminal()
    bar = progress.Progress(out)
    clock[0] += 0.9
    bar(50, 100)
    bar.clear()
    assert out.getvalue() == ""


def test_a_slow_scan_shows_bytes_rate_and_time_left(clock):
    out = Terminal()
    bar = progress.Progress(out)
    clock[0] += 2
    bar(500_000_000, 2_000_000_000)
    assert out.getvalue() == "\r[######------------------]  25 %  500 MB of 2.00 GB  250 MB/s  0:06 left"
    bar(600_000_000, 2_000_000_000)  # too soon for another line
    assert out.getvalue().count("\r") == 1
    bar.clear()
    assert out.getvalue().endswith("\r" + " " * 72 + "\r")


def test_the_next_checkpoint_has_its_own_clock(clock):
    out = Terminal()
    bar = progress.Progress(out)
    clock[0] += 5
    bar.begin()
    bar(1, 2)
    assert out.getvalue() == ""


def test_only_a_terminal_is_written_to():
    assert progress.watch(True, io.StringIO()) is None
    assert progress.watch(False, Terminal()) is None
    assert progress.watch(True, Terminal()) is not None


def test_a_line_without_bytes():
    assert progress.line(0, 0, 0) == "[########################] 100 %  0 B of 0 B  0 B/s"


def test_a_stream_that_went_away_stops_nothing(clock):
    out = Terminal()
    bar = progress.Progress(out)
    out.write = lambda text: (_ for _ in ()).throw(BrokenPipeError())  # type: ignore[method-assign]
    clock[0] += 2
    bar(1, 2)
    clock[0] += 2
    bar(2, 2)
