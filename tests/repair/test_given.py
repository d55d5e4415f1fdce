from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.errors import UsageError
from repair import given


def test_a_file_comes_back_whole_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"x" * given.SMALL)
    assert given.content(path, "settings") == path.read_bytes()
    path.write_bytes(b"x" * (given.SMALL + 1))
    with pytest.raises(UsageError, match=r"settings .*a\.toml: 65537 bytes; none is longer than 65536"):
        given.content(path, "settings")
    assert len(given.content(path, "baseline", 1 << 20)) == given.SMALL + 1


def test_what_could_go_on_for_ever_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(UsageError, match=f"cannot read recipe .*not a regular file but {kind}"):
            given.content(path, "recipe")
    with pytest.raises(UsageError, match=r"cannot read recipe .*No such file"):
        given.content(tmp_path / "gone", "recipe")
