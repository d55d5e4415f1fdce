from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from quant.errors import UsageError
from reports import output


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "report.txt"
    output.to_file("first\n", path)
    os.chmod(path, 0o640)
    output.to_file("sécond\n", path)
    assert path.read_text("utf-8") == "sécond\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["report.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.txt"
    output.to_file(b"old", path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        output.to_file(b"new", path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.txt"]


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        output.to_file("x", tmp_path / "gone" / "report.txt")
    with pytest.raises(UsageError, match="cannot write"):
        output.to_file("x", tmp_path)


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    output.to_file("new", link)
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_device_is_written_to():
    output.to_file("x", Path("/dev/null"))


def test_what_a_stream_cannot_encode_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    output.to_stream("a é 漢 \ud800\n", stream)
    assert raw.getvalue() == b"a \xe9 \\u6f22 \\ud800\n"
