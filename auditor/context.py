"""What a rule may look at: layers, statistics, declared configuration, and a few bytes on demand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from auditor.audit import Depth
from auditor.blocks import BlockReport, Kind, Under, classify
from auditor.checkpoint import Checkpoint
from auditor.declared import Declared
from auditor.finding import PLACES_KEPT, Place
from auditor.groups import FusedSet, expert_key, fused_sets
from auditor.layer import QuantizedLayer, Recognised
from auditor.measure import Measured, Spans, covered, extend
from auditor.probes import ByteStats, CodeStats, FloatStats, Hits, decode_floats
from auditor.source import LocalFile
from auditor.tensorref import FLOAT_DTYPES, TensorRef
from quant.codes import E4M3, E8M0
from quant.errors import CheckpointError

if TYPE_CHECKING:
    from auditor.peers import Projection

Stamp = tuple[int, int, int, int]  # device, inode, size, time of last change in nanoseconds


@dataclass
class Context:
    """One scan's evidence.  Statistics are None where the depth did not reach the tensor or reading failed."""

    checkpoint: Checkpoint
    recognised: Recognised
    declared: Declared
    depth: Depth
    measured: Measured
    _files: dict[str, LocalFile] = field(default_factory=dict)
    _blocks: dict[tuple[str, frozenset[Kind]], BlockReport | None] = field(default_factory=dict)
    _values: dict[str, list[float] | None] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of the shards, before anything was read
    sound_amaxes: dict[str, list[float]] = field(default_factory=dict)  # kept by `peers`: a set is asked for often
    projections: dict[str, Projection] = field(default_factory=dict)  # kept by `peers`, too
    _asked: dict[str, Spans] = field(default_factory=dict)  # by shard: read on demand, of tensors not measured

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that were read, each counted once however often a rule asked for it."""
        beyond = 0
        for shard, asked in self._asked.items():
            between = self.measured.between.get(str(self.checkpoint.shards[shard].path), [])
            beyond += covered([*asked, *between]) - covered(between)
        return self.measured.bytes_read + beyond

    @property
    def layers(self) -> Sequence[QuantizedLayer]:
        """Every quantised layer, in file order."""
        return self.recognised.layers

    @cached_property
    def groups(self) -> Sequence[FusedSet]:
        """Every fused set of two or more quantised layers."""
        return tuple(fused_sets(self.recognised.layers))

    @cached_property
    def fused(self) -> dict[str, FusedSet]:
        """The first fused set a layer belongs to, by the layer's name."""
        known: dict[str, FusedSet] = {}
        for group in self.groups:
            for layer in group.members:
                known.setdefault(layer.name, group)
        return known

    @cached_property
    def peers(self) -> dict[str, tuple[QuantizedLayer, ...]]:
        """For every expert's layer, by name: the same projection of all experts beside it, itself included."""
        sets: dict[tuple[str, str], list[QuantizedLayer]] = {}
        for layer in self.layers:
            key = expert_key(layer.name)
            if key is not None:
                sets.setdefault(key, []).append(layer)
        known: dict[str, tuple[QuantizedLayer, ...]] = {}
        for members in map(tuple, sets.values()):
            known.update(dict.fromkeys((layer.name for layer in members), members))
        return known

    def byte_stats(self, ref: TensorRef | None) -> ByteStats | None:
        """Statistics of E4M3 or E8M0 scales."""
        stats = self.measured.stats.get(ref.name) if ref is not None else None
        return stats if isinstance(stats, ByteStats) else None

    def float_stats(self, ref: TensorRef | None) -> FloatStats | None:
        """Statistics of a float tensor."""
        stats = self.measured.stats.get(ref.name) if ref is not None else None
        return stats if isinstance(stats, FloatStats) else None

    def code_stats(self, ref: TensorRef | None) -> CodeStats | None:
        """Statistics of quantised weights; present at full depth only."""
        stats = self.measured.stats.get(ref.name) if ref is not None else None
        return stats if isinstance(stats, CodeStats) else None

    def scalar(self, ref: TensorRef | None) -> float | None:
        """The value of a one-element tensor that was read, whatever its dtype."""
        values = self.values(ref)
        return values[0] if values is not None and len(values) == 1 else None

    def values(self, ref: TensorRef | None) -> list[float] | None:
        """All values of a small tensor that was read: float, E4M3 or E8M0 dtype.  Not to be changed by the caller."""
        if ref is None:
            return None
        if ref.name not in self._values:
            self._values[ref.name] = self._decoded(ref)
        return self._values[ref.name]

    def recall(self, earlier: Context, tensors: Iterable[str]) -> None:
        """Take over what an earlier scan decoded of tensors that are the same since, and what follows from names."""
        self._values.update((name, earlier._values[name]) for name in tensors if name in earlier._values)
        if self.recognised is earlier.recognised:
            self.__dict__.update((n, v) for n, v in earlier.__dict__.items() if n in ("groups", "fused", "peers"))

    def _decoded(self, ref: TensorRef) -> list[float] | None:
        stats = self.measured.stats.get(ref.name)
        if isinstance(stats, FloatStats) and stats.size == 1 and stats.high > 0:
            return [stats.high]  # one positive number
        raw = self.raw(ref)
        if raw is None:
            return None
        if ref.dtype in FLOAT_DTYPES:
            return [float(v) for v in decode_floats(raw, ref.dtype)]
        table = {"F8_E4M3": E4M3, "F8_E8M0": E8M0, "U8": E8M0}.get(ref.dtype)
        return [float(table.values[code]) for code in raw] if table else None

    def raw(self, ref: TensorRef | None) -> bytes | None:
        """The bytes of a small tensor, when this depth reads it."""
        if ref is None:
            return None
        stats = self.measured.stats.get(ref.name)
        if isinstance(stats, FloatStats):
            return stats.raw
        return self.read(ref, 0, ref.nbytes) if isinstance(stats, ByteStats) and ref.nbytes <= 4096 else None

    def blocks(self, layer: QuantizedLayer, *kinds: Kind) -> BlockReport | None:
        """Scales of these kinds by the codes under them; None where the shapes of the parts do not agree."""
        key = (layer.name, frozenset(kinds))
        if key not in self._blocks:
            geometry = layer.geometry()
            report = None
            if geometry is not None:
                report = classify(self.read, layer, geometry, key[1])
            self._blocks[key] = report
        return self._blocks[key]

    def live_zero_scales(self, layer: QuantizedLayer) -> Hits:
        """Zero block scales over codes that are not zero: none where there is no zero, or the shapes do not agree."""
        stats = self.byte_stats(layer.scales)
        report = self.blocks(layer, Kind.ZERO) if stats is not None and stats.zeros.count else None
        return report.hits(Kind.ZERO, Under.SEVENS, Under.OTHER) if report else Hits()

    def places(self, ref: TensorRef, flat: Iterable[int]) -> tuple[Place, ...]:
        """The first few of these flat element indices as places, with the bytes that are stored there."""
        width = ref.itemsize
        known = self.float_stats(ref)
        kept = known.raw if known is not None else None
        found = []
        for index in list(flat)[:PLACES_KEPT]:
            raw = self.read(ref, index * width, width) if kept is None else kept[index * width : (index + 1) * width]
            found.append(Place(ref.unravel(index), ref.start + index * width, "0x" + raw[::-1].hex().upper()))
        return tuple(found)

    def read(self, ref: TensorRef, at: int, length: int) -> bytes:
        """``length`` bytes of a tensor, beginning ``at`` bytes into it."""
        if at < 0 or at + length > ref.nbytes:
            raise CheckpointError(f"{ref.shard}: {ref.name}: bytes {at}..{at + length} lie outside the tensor")
        if ref.name not in self.measured.stats:
            extend(self._asked.setdefault(ref.shard, []), ref.start + at, ref.start + at + length)
        return self._file(ref.shard).read(ref.start + at, length)

    def announce(self, ref: TensorRef, ranges: Iterable[tuple[int, int]]) -> None:
        """Have the system fetch (first byte, length) of a tensor all at once, before they are read one by one."""
        for at, length in ranges:
            if at >= 0 and at + length <= ref.nbytes:
                self._file(ref.shard).announce(ref.start + at, length)

    def _file(self, shard: str) -> LocalFile:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= 64:  # stay far from the limit on open files
                self._files.pop(next(iter(self._files))).close()
            file = self._files[shard] = LocalFile(self.checkpoint.shards[shard].path)
        return file

    def close(self) -> None:
        """Close the files that were opened on demand."""
        for file in self._files.values():
            file.close()
        self._files.clear()
