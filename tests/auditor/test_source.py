"""Local files: only regular ones, only bytes that are there, never a hang."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from auditor.source import LocalFile, opened
from quant.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(range(256)))
    return file


def test_bytes_are_read_at_any_offset(path: Path) -> None:
    with opened(path) as file:
        assert (file.name, file.size) == ("x.bin", 256)
        assert file.read(10, 3) == b"\x0a\x0b\x0c"
        buffer = bytearray(4)
        file.read_into(252, memoryview(buffer))
        assert buffer == b"\xfc\xfd\xfe\xff"
        assert file.read(256, 0) == b""


def test_bytes_past_the_end_are_an_error_that_names_the_place(path: Path) -> None:
    with opened(path) as file:
        with pytest.raises(CheckpointError, match="past its end"):
            file.read(250, 7)
        with pytest.raises(CheckpointError, match=r"x.bin: the file ended at offset 256"):
            file.read_into(250, memoryview(bytearray(7)))


def test_no_memory_is_taken_for_bytes_that_are_not_there(path: Path) -> None:
    with opened(path) as file, pytest.raises(CheckpointError):
        file.read(0, 1 << 60)


def test_a_file_that_shrinks_is_an_error(path: Path) -> None:
    with opened(path) as file:
        os.truncate(path, 100)
        with pytest.raises(CheckpointError, match="ended at offset 100"):
            file.read(0, 256)


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, readv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: read(fd, min(length, 7), offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: readv(fd, [buffers[0][:5]], offset))
    with opened(path) as file:
        assert file.read(3, 200) == bytes(range(3, 203))


def test_an_input_output_error_names_the_offset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with opened(path) as file:
        with pytest.raises(CheckpointError, match="reading at offset 5: Input/output error"):
            file.read(5, 5)
        with pytest.raises(CheckpointError, match="reading at offset 5: Input/output error"):
            file.read_into(5, memoryview(bytearray(5)))


def test_what_is_not_a_regular_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for name, words in (
        ("pipe", "not a regular file but a named pipe"),
        ("folder", "not a regular file but a folder"),
        ("zero", "not a regular file but a device"),
        ("loop", "cannot be opened"),
        ("gone", "cannot be opened: No such file"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(CheckpointError, match=words):
            LocalFile(tmp_path / name)


def test_a_pipe_put_in_place_of_the_file_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    sound = os.stat(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: sound)
        with pytest.raises(CheckpointError, match="named pipe"):
            LocalFile(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_may_not_be_read_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        LocalFile(path)


def test_links_are_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "x"
    link.symlink_to("../x.bin")
    with opened(link) as file:
        assert file.size == 256


def test_closing_twice_is_safe(path: Path) -> None:
    file = LocalFile(path)
    file.close()
    file.close()
    with pytest.raises(CheckpointError):
        file.read(0, 1)
