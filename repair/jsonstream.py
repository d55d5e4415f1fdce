"""A JSON object read piece by piece: its long lists entry by entry, so that its size is no matter."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from auditor.jsonfile import DuplicateKeyError
from quant.errors import RepairError
from repair.handle import Handle

_STEP = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """Reads one JSON object from an open file.  RepairError, naming file and offset, for anything else."""

    def __init__(self, file: Handle, most: int) -> None:
        """``most``: characters that one value, or one entry of a list, may take."""
        self._file, self._most = file, most
        self._size = file.status().size
        self._at = 0  # bytes read so far
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._start = "", 0
        self._json = json.JSONDecoder(object_pairs_hook=_unique)

    def members(self, lists: frozenset[str]) -> Iterator[tuple[str, Any]]:
        """(key, value) of the object; of a key in ``lists`` one pair per entry of its list, then (key, None)."""
        self._expect("{")
        seen: set[str] = set()
        first = True
        while not self._took("}"):
            if not first:
                self._expect(",")
            first = False
            key = self._value()
            if not isinstance(key, str) or key in seen:
                raise self.error(f"key {str(key)[:80]!r} occurs twice or is no string")
            seen.add(key)
            self._expect(":")
            if key in lists:
                for entry in self._entries():
                    yield key, entry
                yield key, None
            else:
                yield key, self._value()
        if self._peek():
            raise self.error("more text after the object")

    def _entries(self) -> Iterator[Any]:
        self._expect("[")
        first = True
        while not self._took("]"):
            if not first:
                self._expect(",")
            first = False
            entry = self._value()
            if not isinstance(entry, dict):
                raise self.error("an entry is not an object")
            yield entry

    def _value(self) -> Any:
        self._peek()
        want = 2 * _STEP
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._start)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except DuplicateKeyError as error:
                raise self.error(str(error)) from None
            except ValueError as error:
                if self._done:
                    raise self.error(f"not valid JSON: {error}") from None
            else:
                # A number at the end of what was read may go on.
                if self._done or end < len(self._buffer):
                    self._start = end
                    return value
            if len(self._buffer) - self._start > self._most:
                raise self.error(f"one entry is longer than {self._most} characters")
            self._fill(want)
            want *= 2

    @property
    def _done(self) -> bool:
        return self._at >= self._size

    def _fill(self, want: int) -> None:
        """Have ``want`` characters before us, or all that are left."""
        parts = [self._buffer[self._start :]]
        have = len(parts[0])
        self._start = 0
        while have < want and not self._done:
            length = min(_STEP, self._size - self._at)
            try:
                parts.append(self._text.decode(self._file.read(self._at, length), self._at + length >= self._size))
            except UnicodeDecodeError:
                raise self.error("not UTF-8") from None
            self._at += length
            have += len(parts[-1])
        self._buffer = "".join(parts)

    def _peek(self) -> str:
        while True:
            found = _SPACE.match(self._buffer, self._start)
            self._start = found.end() if found else self._start
            if self._start < len(self._buffer) or self._done:
                return self._buffer[self._start : self._start + 1]
            self._fill(_STEP)

    def _took(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._start += 1
        return True

    def _expect(self, char: str) -> None:
        if not self._took(char):
            raise self.error(f"expected {char!r}, found {self._peek()!r}")

    def error(self, what: str) -> RepairError:
        """To be raised: the file, about where, and what is wrong."""
        return RepairError(f"{self._file.name}: before offset {self._at}: {what}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise DuplicateKeyError("a key occurs twice in one object")
    return table
