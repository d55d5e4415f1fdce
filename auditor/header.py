"""A shard's header: its tensors' addresses, and every rule of the format that it breaks.

`headertext` reads the grammar; here the entries are laid out over the file.  Only tensors whose bytes can
be read safely, each byte once, become TensorRefs.  Limits: the format's own README and its Rust reader.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.headertext import Entry, HeaderSyntaxError, HeaderText, read_text
from auditor.tensorref import DTYPE_BITS, TensorRef

MAX_HEADER = 100_000_000  # bytes; larger headers are refused by every reader
PROBLEMS_KEPT = 50  # per flaw; all are counted
_WORD = (1 << 64) - 1


class Flaw(enum.Enum):
    """What kind of rule of the file format a header breaks."""

    HEADER = "header"  # the header cannot be read at all
    LENGTH = "length"  # the file is shorter or longer than its header says
    TENSOR = "tensor"  # one tensor's entry contradicts itself or its neighbours
    DUPLICATE = "duplicate"  # a name occurs twice
    FOREIGN = "foreign"  # a key that the format does not have


class Problem(NamedTuple):
    """One violation: which rule, which tensor ("" for the file), at which absolute offset."""

    flaw: Flaw
    tensor: str
    offset: int
    message: str


@dataclass
class Header:
    """What one shard's header says.  ``tensors`` holds only those whose bytes can be read safely.

    ``problems`` keeps the first PROBLEMS_KEPT of each flaw, ``counts`` counts all.
    """

    tensors: list[TensorRef] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    data_start: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[Flaw] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)  # tensor -> why its bytes cannot be read
    refused: str = ""  # why the header as a whole could not be read

    def report(self, flaw: Flaw, tensor: str, offset: int, message: str) -> None:
        """Count a violation, and keep it when it is among the first of its kind."""
        self.counts[flaw] += 1
        if self.counts[flaw] <= PROBLEMS_KEPT:
            self.problems.append(Problem(flaw, tensor, offset, message))


def parse(raw: bytes, shard: str, file_size: int) -> Header:
    """The header of a shard whose first bytes are ``raw`` (the 8-byte length included).

    ``raw`` must hold the whole header when the length is legal (see `header_length`); ``file_size`` is the
    size of the file in bytes.  Never raises: violations are `problems`.
    """
    header = Header()
    length, problem = header_length(raw[:8], file_size)
    if problem:
        header.refused = problem.message
        header.report(problem.flaw, "", problem.offset, problem.message)
        return header
    header.data_start = 8 + length
    try:
        text = read_text(raw if len(raw) == 8 + length else raw[: 8 + length])
    except HeaderSyntaxError as error:
        header.refused = f"offset {error.at}: {error.message}"
        header.report(Flaw.HEADER, error.tensor, error.at, error.message)
        return header
    header.metadata = text.metadata
    _take_notes(text, header)
    _Layout(header, shard, file_size).place(sorted(text.entries.values()))
    return header


def header_length(first: bytes, file_size: int) -> tuple[int, Problem | None]:
    """Length of the header in bytes, from the file's first eight, and what is wrong with it."""
    if len(first) < 8:
        return 0, Problem(Flaw.HEADER, "", 0, f"the file holds {file_size} bytes, too few for the header's length")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        return 0, Problem(Flaw.HEADER, "", 0, f"header length {length} is over the format's limit of {MAX_HEADER}")
    if 8 + length > file_size:
        over = f"header length {length} reaches past the end of the file ({file_size} bytes)"
        return 0, Problem(Flaw.LENGTH, "", 0, over)
    if length < 2:
        return 0, Problem(Flaw.HEADER, "", 0, f"header length {length} is too short for a JSON object")
    return length, None


def _take_notes(text: HeaderText, header: Header) -> None:
    for flaw, notes, count in (
        (Flaw.DUPLICATE, text.repeated, text.repeats),
        (Flaw.FOREIGN, text.foreign, text.foreigners),
    ):
        for note in notes:
            header.report(flaw, note.tensor, note.at, note.what)
        if count:
            header.counts[flaw] = count


class _Layout:
    """Lays entries over a file, in the order of their bytes."""

    def __init__(self, header: Header, shard: str, file_size: int) -> None:
        self.header, self.shard, self.file_size = header, shard, file_size
        self.held = file_size - header.data_start
        self.sizes: dict[tuple[str, tuple[int, ...]], int | str] = {}

    def place(self, entries: list[Entry]) -> None:
        """Turn entries into TensorRefs; what contradicts itself or overlaps is named and kept out of reach."""
        header, data_start, held = self.header, self.header.data_start, self.held
        covered, beyond = 0, 0
        first_beyond: Entry | None = None
        for number, entry in enumerate(entries, 1):
            begin, end, name, dtype, shape, at = entry
            why = self._fault(entry, covered)
            if why:
                header.unreadable[name] = why if len(header.unreadable) < PROBLEMS_KEPT else "its header entry is wrong"
                header.report(Flaw.TENSOR, name, at, why)
                end = min(end, entries[number].begin) if number < len(entries) else end  # not to blame the next one
            elif end > held:
                beyond += 1
                first_beyond = first_beyond or entry
                header.unreadable[name] = "its data lies past the end of the file"
            else:
                header.tensors.append(TensorRef(name, dtype, shape, self.shard, data_start + begin, end - begin))
            if covered < begin <= entry.end:
                hole = f"{begin - covered} bytes before it (from {data_start + covered}) belong to no tensor"
                header.report(Flaw.TENSOR, name, at, hole)
            covered = max(covered, end)
        if first_beyond is not None:
            self._truncated(covered, beyond, len(entries), first_beyond)
        elif covered != held:
            self._mismatch(covered)

    def _fault(self, entry: Entry, covered: int) -> str:
        if entry.begin > entry.end:
            return f"data_offsets {entry.begin}..{entry.end} run backwards"
        key = (entry.dtype, entry.shape)
        size = self.sizes.get(key)
        if size is None:
            if len(self.sizes) > 4096:
                self.sizes.clear()
            size = self.sizes[key] = stored_size(*key)
        if isinstance(size, str):
            return size
        if size != entry.end - entry.begin:
            needs = f"shape {_short(entry.shape)} of {entry.dtype} needs {size} bytes"
            return f"{needs}, data_offsets {entry.begin}..{entry.end} give {entry.end - entry.begin}"
        if entry.begin < covered:
            return f"bytes {entry.begin}..{entry.end} overlap the tensor before it, which ends at {covered}"
        return ""

    def _truncated(self, covered: int, beyond: int, total: int, first: Entry) -> None:
        due = self.header.data_start + covered
        self.header.report(
            Flaw.LENGTH,
            "",
            self.file_size,
            f"the file is truncated: it holds {self.file_size} bytes, its header describes {due};"
            f" {beyond} of {total} tensors cannot be read, the first {first.name[:200]!r} from offset"
            f" {self.header.data_start + first.begin}",
        )

    def _mismatch(self, covered: int) -> None:
        due = self.header.data_start + covered
        if covered > self.held:  # only entries that are wrong anyway reach past the end
            message = f"the file holds {self.file_size} bytes, its header describes {due}"
        else:
            message = f"{self.file_size - due} bytes after the last tensor, from offset {due}, belong to none"
        self.header.report(Flaw.LENGTH, "", min(due, self.file_size), message)


def stored_size(dtype: str, shape: tuple[int, ...]) -> int | str:
    """Bytes that a tensor needs, or what is wrong with its dtype and shape."""
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        return f"dtype {dtype[:40]!r} is unknown"
    total = 1
    for factor in (*shape, bits):  # in this order, and refused at the first overflow, as other readers do
        total *= factor
        if total > _WORD:
            return f"shape {_short(shape)} of {dtype} overflows 64 bits"
    if total % 8:
        return f"shape {_short(shape)} of {dtype} is not a whole number of bytes"
    return total // 8


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, ... {len(shape)} axes]"


__all__ = ["Flaw", "Header", "Problem", "header_length", "parse", "stored_size"]
