"""Small checkpoints and plans over them, for the tests of this room."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from repair.content import Computed, Mapped, Spool, digest
from repair.osfs import REAL, Fs
from repair.patch import Patch, Plan, TextPatch, plan_for
from tests.repair.memory import ROOT, Disk, MemoryFs

Spec = tuple[int, int]  # offset in the data section, length
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def shard(nbytes: int, seed: int = 0, name: str = "w") -> bytes:
    """A safetensors file with one U8 tensor of random bytes."""
    header = json.dumps({name: {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(nbytes)


def data_start(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def other(raw: bytes, seed: int = 1) -> bytes:
    """As long, and no byte the same."""
    key = random.Random(seed)
    return bytes(byte ^ key.randrange(1, 256) for byte in raw)


def patch(name: str, raw: bytes, spec: Spec, seed: int = 1) -> Patch:
    at = data_start(raw) + spec[0]
    old = raw[at : at + spec[1]]
    assert len(old) == spec[1]
    new = other(old, seed) if len(old) < 5000 else bytes(b ^ 0x5A for b in old[:4096]) + old[4096:][::-1]
    return Patch(name, at, old, new, "w", "SCL101", "a test")


class Case:
    """Files, and the plan to be carried out over them."""

    def __init__(self, specs: dict[str, Sequence[Spec]], sizes: dict[str, int], texts: Sequence[TextPatch] = ()):
        self.files = {name: shard(size, seed) for seed, (name, size) in enumerate(sizes.items())}
        self.files.update({t.file: t.old for t in texts if t.old is not None})
        self.files["tokenizer.json"] = b"{}"
        self.patches = [patch(name, self.files[name], spec) for name, of in specs.items() for spec in of]
        self.texts = list(texts)

    def disk(self) -> Disk:
        disk = Disk()
        root = disk.new(0o40755)
        disk.names[ROOT] = disk.durable[ROOT] = root.number
        for name, content in self.files.items():
            disk.put(ROOT / name, content)
        return disk

    def on_disk(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (root / name).write_bytes(content)
        return root

    def plan(self, root: Path = ROOT, fs: Fs = REAL) -> Plan:
        return plan_for(root, self.patches, self.texts, (), fs)

    def plan_on(self, disk: Disk) -> Plan:
        return self.plan(ROOT, MemoryFs(disk))

    def after(self) -> dict[str, bytes]:
        """What every file holds once the plan is carried out."""
        done = {name: bytearray(raw) for name, raw in self.files.items()}
        for p in self.patches:
            done[p.file][p.offset : p.end] = p.new if isinstance(p.new, bytes) else p.new.piece(0, p.length)
        for t in self.texts:
            done.pop(t.file, None)
            if t.new is not None:
                done[t.file] = bytearray(t.new)
        return {name: bytes(raw) for name, raw in done.items()}


def lazily(case: Case) -> Case:
    """The same plan with bytes that are computed, or lie in a spool."""
    spool = Spool()
    case.patches = [
        Patch(p.file, p.offset, spool.add(p.old), Computed(p.length, _slice(p.new)), p.tensor, p.rule)
        for p in case.patches
    ]
    return case


def rescaled(case: Case, hashed: bool = False) -> Case:
    """The same places, each old byte through a table that gives some of them the same new one."""
    spool, patches = Spool(), []
    for number, p in enumerate(case.patches):
        table = bytes(byte // (2 + number) for byte in range(256))
        old = p.old
        if hashed and isinstance(old, bytes):
            old = replace(spool.add(old), sha256=digest(old))
        patches.append(Patch(p.file, p.offset, old, Mapped(old, table), p.tensor, p.rule))
    case.patches = patches
    return case


def _slice(content: bytes) -> Callable[[int, int], bytes]:
    return lambda start, length: content[start : start + length]


def partly(case: Case) -> Case:
    """Rescaled but for the last place."""
    last = case.patches[-1]
    rescaled(case).patches[-1] = last
    return case


CONFIG_TEXT = TextPatch(CONFIG, b'{"a": 1}\n', b'{"a": 2, "b": [3]}\n', "CFG101")
MADE = TextPatch(INDEX, None, b'{"weight_map": {}}', "IDX101")
GONE = TextPatch("generation_config.json", b"{ bad", None, "CFG102")
LONG = TextPatch(INDEX, b"x" * 9000, b"y" * 12000, "IDX102")
A, B, C = "a.safetensors", "b.safetensors", "c.safetensors"
MB = 1 << 20


def cases() -> dict[str, Case]:
    """Every kind of plan that a repair can be, by name."""
    return {
        "one byte": Case({A: [(5, 1)]}, {A: 64}),
        "first and last byte": Case({A: [(0, 1), (63, 1)]}, {A: 64}),
        "whole data section": Case({A: [(0, 64)]}, {A: 64}),
        "neighbours": Case({A: [(0, 4), (4, 4), (8, 1)]}, {A: 64}),
        "many bytes": Case({A: [(7 * i, 1) for i in range(12)]}, {A: 128}),
        "scattered lengths": Case({A: [(0, 3), (10, 17), (100, 60)]}, {A: 256}),
        "a page across": Case({A: [(4000, 300)]}, {A: 8192}),
        "two shards": Case({A: [(1, 2)], B: [(3, 4)]}, {A: 64, B: 64}),
        "three shards": Case({A: [(1, 2)], B: [(3, 4), (9, 1)], C: [(0, 8)]}, {A: 64, B: 64, C: 64}),
        "second shard only": Case({B: [(3, 4)]}, {A: 64, B: 64}),
        "config alone": Case({}, {A: 64}, [CONFIG_TEXT]),
        "index made": Case({}, {A: 64}, [MADE]),
        "text removed": Case({}, {A: 64}, [GONE]),
        "long index": Case({}, {A: 64}, [LONG]),
        "three texts": Case({}, {A: 64}, [CONFIG_TEXT, MADE, GONE]),
        "shard and config": Case({A: [(1, 2)]}, {A: 64}, [CONFIG_TEXT]),
        "shards and texts": Case({A: [(1, 2)], B: [(3, 4)]}, {A: 64, B: 64}, [CONFIG_TEXT, MADE, GONE]),
        "one megabyte": Case({A: [(11, MB)]}, {A: MB + 64}),
        "megabytes and a byte": Case({A: [(3, 2 * MB + 17)], B: [(0, 1)]}, {A: 2 * MB + 64, B: 64}),
        "computed and spooled": lazily(Case({A: [(1, 2), (30, 9)], B: [(3, 4)]}, {A: 64, B: 64}, [CONFIG_TEXT])),
        "page-sized computed": lazily(Case({A: [(0, 4096), (5000, 4096)]}, {A: 16384})),
        "rescaled": rescaled(Case({A: [(1, 20), (30, 9)], B: [(3, 4)]}, {A: 64, B: 64}, [CONFIG_TEXT])),
        "rescaled beside others": partly(Case({A: [(0, 9), (9, 30), (50, 2)]}, {A: 64})),
        "rescaled, by hash": rescaled(Case({A: [(0, 4096), (5000, 4096)]}, {A: 16384}), hashed=True),
        "rescaled megabytes": rescaled(Case({A: [(3, MB + 17)], B: [(0, 1)]}, {A: MB + 64, B: 64}), hashed=True),
        "empty header tail": Case({A: [(0, 1)], B: [(0, 1)]}, {A: 1, B: 1}),
    }
