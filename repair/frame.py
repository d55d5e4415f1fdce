"""The journal's grammar: header, records, seal and mark as bytes, each with a checksum over all before it.

    "AUDITJNL" version:u32 length:u32 header:JSON                          sha256
    record*    kind:u8 file:u32 offset:u64 old:u32 new:u32 tensor:u16 rule:u16, then those bytes   blake2b-16
               kind 3: the new bytes are a table of 256, which gives a new byte for each old one
               the checksum is over what comes before the old bytes, and the sha256 of old and new
    "AUDITEND" records:u64 end:u64 chain:16                                blake2b-16
    mark       24 zero bytes until the repair is complete, then "COMPLETE" blake2b-16

All numbers are little-endian.  A record's checksum covers the one before it, so records cannot be dropped,
swapped or taken from another journal.  The file's length is fixed once sealed: the mark overwrites zeros.
Versions 1 and 2 have checksums over the old and new bytes themselves, version 1 has no records of kind 3.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from auditor.interrupted import COMPLETE, MARK_BYTES
from repair.refusals import DamagedJournalError

MAGIC, VERSION = b"AUDITJNL", 3
KNOWN = (1, 2, 3)  # versions that are read
TABLES, DIGESTS = 2, 3  # since which version there are such
HEAD = struct.Struct("<8sII")
RECORD = struct.Struct("<BIQIIHH")
SEAL = struct.Struct("<8sQQ16s")
END = b"AUDITEND"
SUM = 16
SEAL_BYTES = SEAL.size + SUM
PATCH, TEXT, MAPPED = 1, 2, 3  # kinds of records
TABLE = 256  # bytes
ABSENT = 0xFFFFFFFF  # as the length of a text: the file is not there
MAX_NAME = 0xFFFF
Raw = bytes | memoryview
MAX_HEAD = 64 << 20


class Record(NamedTuple):
    """One range of a shard (``offset`` absolute), or one text file (``offset`` 0, None when it is not there).

    ``table``: of a range whose every new byte is the table's entry for the old one; it is kept instead of ``new``.
    ``digest``: sha256 of ``old`` where that is known.
    """

    kind: int
    file: int  # place in the header's list of files
    offset: int
    old: bytes | None
    new: bytes | None
    tensor: str
    rule: str
    table: bytes | None = None
    digest: bytes = b""


def through(table: bytes, raw: bytes) -> bytes:
    """Each byte of ``raw`` through a ``table`` of 256."""
    return bytes(bytearray(raw).translate(table))  # copies and all faster than bytes' own


def checksum(*parts: Raw) -> bytes:
    """blake2b of the parts together, 16 bytes."""
    made = hashlib.blake2b(digest_size=SUM)
    for part in parts:
        made.update(part)
    return made.digest()


def head(text: bytes) -> bytes:
    """The header and its sha256."""
    raw = HEAD.pack(MAGIC, VERSION, len(text)) + text
    return raw + hashlib.sha256(raw).digest()


def pack(record: Record, chain: bytes) -> tuple[bytes, ...]:
    """A record in pieces: what describes it, its old bytes, its new ones, the checksum over them and ``chain``."""
    tensor, rule = (name.encode("utf-8", "backslashreplace")[:MAX_NAME] for name in (record.tensor, record.rule))
    new = record.new if record.table is None else record.table
    lengths = (ABSENT if content is None else len(content) for content in (record.old, new))
    fixed = RECORD.pack(record.kind, record.file, record.offset, *lengths, len(tensor), len(rule))
    body = (fixed + tensor + rule, record.old or b"", new or b"")
    return (*body, _sum(VERSION, chain, *body, record.digest))


def _sum(version: int, chain: bytes, about: Raw, old: Raw, new: Raw, digest: bytes = b"") -> bytes:
    """The checksum of a record.  ``about``: what comes before its bytes; ``digest``: sha256 of ``old`` if known."""
    if version < DIGESTS:
        return checksum(chain, about, old, new)
    return checksum(chain, about, digest or hashlib.sha256(old).digest(), hashlib.sha256(new).digest())


class Shape(NamedTuple):
    """The fixed part of a record: where its bytes lie."""

    kind: int
    file: int
    offset: int
    old: int | None
    new: int | None
    tensor: int
    rule: int

    @property
    def body(self) -> int:
        """Bytes that follow the fixed part, without the checksum."""
        return self.tensor + self.rule + (self.old or 0) + (self.new or 0)


def shape(fixed: bytes) -> Shape:
    """The fixed part, read."""
    kind, file, offset, old, new, tensor, rule = RECORD.unpack(fixed)
    known = (None if old == ABSENT else old, None if new == ABSENT else new)
    return Shape(kind, file, offset, *known, tensor, rule)


def proven(version: int, at: Shape, fixed: bytes, rest: memoryview, chain: bytes) -> bytes:
    """The checksum of a record from its bytes (checksum last); DamagedJournalError when it does not hold."""
    names = at.tensor + at.rule
    old, new, made = rest[names : names + (at.old or 0)], rest[names + (at.old or 0) : -SUM], bytes(rest[-SUM:])
    if _sum(version, chain, fixed + bytes(rest[:names]), old, new) != made:
        raise DamagedJournalError("a record's checksum does not hold")
    return made


def unpack(at: Shape, rest: memoryview) -> Record:
    """A record from what follows its fixed part."""
    parts, start = [], 0
    for cut in (at.tensor, at.rule, at.old or 0, at.new or 0):
        parts.append(bytes(rest[start : start + cut]))
        start += cut
    tensor, rule = (part.decode("utf-8", "replace") for part in parts[:2])
    old = None if at.old is None else parts[2]
    new = None if at.new is None else parts[3]
    if at.kind == MAPPED and old is not None and new is not None:
        return Record(at.kind, at.file, at.offset, old, through(new, old), tensor, rule, new)
    return Record(at.kind, at.file, at.offset, old, new, tensor, rule)


def seal(records: int, end: int, chain: bytes) -> bytes:
    """What closes the records."""
    raw = SEAL.pack(END, records, end, chain)
    return raw + checksum(chain, raw)


def read_seal(raw: bytes, size: int) -> tuple[int, int, bytes]:
    """Number of records, where they end, the last checksum; DamagedJournalError when the seal does not hold."""
    magic, records, end, chain = SEAL.unpack(raw[: SEAL.size])
    if magic != END or checksum(chain, raw[: SEAL.size]) != raw[SEAL.size :]:
        raise DamagedJournalError("its seal does not hold")
    if end + SEAL_BYTES + MARK_BYTES != size:
        raise DamagedJournalError(f"it holds {size} bytes where {end + SEAL_BYTES + MARK_BYTES} were written")
    return records, end, chain


def mark(sealed: bytes) -> bytes:
    """The completion mark of the journal with this seal."""
    return COMPLETE + checksum(sealed, COMPLETE)
