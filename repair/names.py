"""Which tensors of an unquantised checkpoint, and which of their rows, a quantised layer was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from auditor.layer import QuantizedLayer
from quant.errors import RepairError
from repair.names_matrix import Matrix, Region, inner, misfit, say
from repair.names_spelling import has_text, likeness, spellings, split
from repair.names_tables import BLENDED, FUSED, HALVES, STACKED, TEXT_PREFIXES, synonyms
from repair.source_codes import Grid, grid

Accept = Callable[[Matrix], bool]


@dataclass
class Names:
    """Finds a layer's source.  ``ours``: every module name of the quantised checkpoint -> the layer, None for floats.

    ``matrices``: the source's weights by module name.  ``interleaved``: fused 3-D gate and up rows alternate.
    """

    ours: Mapping[str, QuantizedLayer | None]
    matrices: Mapping[str, Matrix]
    heights: Mapping[str, int]  # output rows of our modules, floats included
    interleaved: bool = False
    _tails: dict[str, list[Matrix]] = field(default_factory=dict)
    _misfits: list[str] = field(default_factory=list)  # seen while one layer was looked up
    _text: tuple[bool, bool] = (False, False)  # whether our names, the source's names have a text model's prefix

    def __post_init__(self) -> None:
        """Sort the source's names by their last parts."""
        for matrix in self.matrices.values():
            self._tails.setdefault(split(matrix.name)[1], []).append(matrix)
        self._text = has_text(self.ours), has_text(self.matrices)

    def regions(self, layer: QuantizedLayer) -> tuple[Region, ...]:
        """The rows that make up the layer, in order; together they cover every expert's rows exactly once.

        Raises RepairError naming the layer and the source tensors when nothing fits, when several do, or when
        shapes do not agree.
        """
        shape = grid(layer)
        self._misfits.clear()
        ways = (self._whole, self._experts, self._part, self._split_source)
        try:
            found = next((regions for way in ways if (regions := way(layer, shape))), [])
        except RepairError as error:
            raise RepairError(f"{layer.codes.name}: {error}") from None
        if not found and self._misfits:
            raise RepairError(f"{layer.codes.name}: {self._misfits[0]}")
        if not found:
            reason = self._blended(layer.name) or "the source has no tensor of this name or of one that it maps to"
            raise RepairError(f"{layer.codes.name}: {reason}")
        if sum(len(region.into) for region in found) != shape.experts * shape.rows:
            named = ", ".join(sorted({region.matrix.ref.name for region in found}))
            raise RepairError(f"{layer.codes.name}: {named} do not make up its {shape.rows} rows")
        return tuple(found)

    def find(self, name: str, accept: Accept, wanted: str) -> Matrix | None:
        """The source matrix of this module name, or of its one renamed likeness; None when there is none.

        ``accept`` looks at shapes; ``wanted`` says them in words.  RepairError, naming both sides, where the same
        name has another shape, or where several renamed ones fit.
        """
        exact = self.matrices.get(name)
        if exact is not None:
            if not accept(exact):
                raise RepairError(misfit(wanted, exact))
            return exact
        near = {m.name: m for spelling in spellings(name) for m in self._tails.get(split(spelling)[1], ())}
        free = [m for m in near.values() if m.name not in self.ours and self._kin(name, m.name)]
        fitting = [m for m in free if accept(m)]
        if not fitting:
            self._misfits += [misfit(wanted, m) for m in free]
            return None
        best = max(likeness(name, m.name) for m in fitting)
        chosen = [m for m in fitting if likeness(name, m.name) == best]
        if len(chosen) > 1:
            named = " and ".join(sorted(m.ref.name for m in chosen)[:2])
            raise RepairError(f"ambiguous: the source's {named} fit equally well")
        return chosen[0]

    def _blended(self, name: str) -> str:
        """Why a name is not found: one side keeps what the other splits in an order that no shape tells; or nothing."""
        parent, _, leaf = name.rpartition(".")
        for fused, parts in BLENDED.items():
            others = (fused,) if leaf in parts else sorted(parts) if leaf == fused else ()
            for other in others:
                tails = {split(spelling)[1] for spelling in spellings(f"{parent}.{other}")}
                held = next((m for tail in sorted(tails) for m in self._tails.get(tail, ())), None)
                if held is not None:
                    whole = held.ref.name if other == fused else "it"
                    return (
                        f"ambiguous: the source has {held.ref.name}; only the model knows the order of rows in {whole}"
                    )
        return ""

    def _kin(self, name: str, other: str) -> bool:
        """Whether two prefixes may mean one model: a text model's never means another's beside it."""
        mine, theirs = (split(n)[0] in TEXT_PREFIXES for n in (name, other))
        return mine == theirs or not (self._text[1] if mine else self._text[0])

    def _whole(self, layer: QuantizedLayer, shape: Grid) -> list[Region]:
        """The same weight under the same name, or one that only its prefix or a synonym tells apart."""
        if len(layer.codes.shape) == 2 and layer.format.axis == -1:
            return self._plain(layer.name, shape, 0, range(shape.rows))
        found = self.find(layer.name, lambda m: self._slabs(m, shape), say(shape))
        if found is None:
            return []
        turned = self._turned(found, shape)
        everything = range(shape.rows)
        return [Region(found, e, turned, everything, e, everything) for e in range(shape.experts)]

    def _plain(self, name: str, shape: Grid, expert: int, into: range) -> list[Region]:
        found = self.find(name, lambda m: m.shape == (len(into), shape.columns), say(shape, len(into)))
        return [Region(found, 0, False, range(len(into)), expert, into)] if found else []

    def _experts(self, layer: QuantizedLayer, shape: Grid) -> list[Region]:
        """A fused 3-D tensor from a source that keeps each expert's matrices apart."""
        if len(layer.codes.shape) == 2 and layer.format.axis == -1:
            return []
        head, _, leaf = layer.name.rpartition(".")
        found: list[Region] = []
        for e in range(shape.experts):
            for part, into in self._cuts(leaf, shape.rows):
                apart = self._plain(f"{head}.{e}.{part}", shape, e, into)
                found += apart or self._third(f"{head}.{part}", shape, e, into)
        return found

    def _third(self, name: str, shape: Grid, expert: int, into: range) -> list[Region]:
        """One expert's slab of a 3-D tensor that holds one part of a fused one."""
        part = Grid(shape.experts, len(into), shape.columns)
        if part.rows == shape.rows:
            return []
        found = self.find(name, lambda m: self._slabs(m, part, expert), say(part))
        return [Region(found, expert, self._turned(found, part), range(part.rows), expert, into)] if found else []

    def _cuts(self, leaf: str, rows: int) -> Iterator[tuple[str, range]]:
        """The parts of a fused 3-D tensor and the rows of each."""
        parts = next((fused.parts for fused in FUSED if fused.name == leaf), (leaf,))
        for number, part in enumerate(parts):
            yield part, self._rows(number, len(parts), rows)

    def _rows(self, number: int, count: int, rows: int) -> range:
        high = rows // count
        if self.interleaved:
            return range(number, rows, count)
        return range(number * high, (number + 1) * high)

    def _part(self, layer: QuantizedLayer, shape: Grid) -> list[Region]:
        """One matrix cut out of a fused one: an expert's slab of a 3-D tensor, half of gate_up, a part of qkv."""
        if len(layer.codes.shape) != 2 or layer.format.axis != -1:
            return []
        parent, _, leaf = layer.name.rpartition(".")
        head, _, number = parent.rpartition(".")
        if number.isdecimal() and head.endswith("experts"):
            return self._slab(head, int(number), leaf, shape)
        if leaf.isdecimal():
            return self._stacked(parent, int(leaf), shape)
        for fused in FUSED:
            for spelling in (leaf, *synonyms(leaf)):
                if spelling in fused.parts:
                    found = self._stripe(parent, fused.name, fused.parts, fused.parts.index(spelling), shape)
                    if found:
                        return found
        return []

    def _slab(self, head: str, expert: int, leaf: str, shape: Grid) -> list[Region]:
        for spelling in (leaf, *synonyms(leaf)):
            single = self.find(f"{head}.{spelling}", lambda m: self._slabs(m, shape, expert), say(shape))
            if single is not None:
                turned = self._turned(single, shape)
                return [Region(single, expert, turned, range(shape.rows), 0, range(shape.rows))]
            for fused in FUSED:
                if fused.name in HALVES and spelling in fused.parts:
                    found = self._half(head, expert, fused.name, fused.parts.index(spelling), shape)
                    if found:
                        return found
        return []

    def _stacked(self, parent: str, expert: int, shape: Grid) -> list[Region]:
        """An expert's layer from a 2-D matrix of all experts [E * inner, hidden], where it may lie transposed."""
        head, _, leaf = parent.rpartition(".")
        if leaf not in STACKED:
            return []
        found = self.find(f"{head}.{STACKED[leaf]}", lambda m: inner(m, shape, expert) > 0, say(shape))
        if found is None:
            return []
        if shape.rows == shape.columns:
            raise RepairError(f"ambiguous: an expert of the source's {found.ref.name} is square")
        high = inner(found, shape, expert)
        slabs = replace(found, shape=(found.shape[0] // high, high, found.shape[1]))
        everything = range(shape.rows)
        return [Region(slabs, expert, high != shape.rows, everything, 0, everything)]

    def _half(self, head: str, expert: int, fused: str, number: int, shape: Grid) -> list[Region]:
        double = Grid(shape.experts, shape.rows * 2, shape.columns)
        found = self.find(f"{head}.{fused}", lambda m: self._slabs(m, double, expert), say(double))
        if found is None:
            return []
        turned = self._turned(found, double)
        rows = self._rows(number, 2, double.rows)
        return [Region(found, expert, turned, rows, 0, range(shape.rows))]

    def _stripe(self, parent: str, fused: str, parts: tuple[str, ...], index: int, shape: Grid) -> list[Region]:
        heights = [shape.rows if n == index else self._height(parent, p) for n, p in enumerate(parts)]
        if fused in HALVES:
            heights = [shape.rows] * len(parts)
        if 0 in heights:
            return []
        total = sum(heights)
        found = self.find(f"{parent}.{fused}", lambda m: m.shape == (total, shape.columns), say(shape, total))
        if found is None:
            return []
        first = sum(heights[:index])
        return [Region(found, 0, False, range(first, first + shape.rows), 0, range(shape.rows))]

    def _height(self, parent: str, leaf: str) -> int:
        return next((self.heights[n] for n in spellings(f"{parent}.{leaf}") if n in self.heights), 0)

    def _split_source(self, layer: QuantizedLayer, shape: Grid) -> list[Region]:
        """A fused 2-D matrix from a source that keeps its parts apart."""
        parent, _, leaf = layer.name.rpartition(".")
        parts = next((fused.parts for fused in FUSED if fused.name == leaf), ())
        found: list[Region] = []
        first = 0
        for part in parts:
            one = self.find(f"{parent}.{part}", lambda m: len(m.shape) == 2 and m.shape[1] == shape.columns, say(shape))
            if one is None:
                return []
            rows = range(one.shape[0])
            found.append(Region(one, 0, False, rows, 0, range(first, first + len(rows))))
            first += len(rows)
        return found

    def _slabs(self, matrix: Matrix, shape: Grid, expert: int = 0) -> bool:
        """Whether a 3-D source holds slabs of these rows and columns, either way round."""
        sides = {(shape.rows, shape.columns)}
        if matrix.layer is None:  # what is quantised is seen with its rows first
            sides.add((shape.columns, shape.rows))
        if len(matrix.shape) != 3 or expert >= matrix.shape[0] or matrix.shape[1:] not in sides:
            return False
        return shape.experts in (1, matrix.shape[0])

    def _turned(self, matrix: Matrix, shape: Grid) -> bool:
        """Whether the slabs of a 3-D source are stored [K, N].

        Square slabs do not say so themselves; then those of the other projection do.
        """
        if matrix.layer is not None:
            return False
        if shape.rows != shape.columns:
            return matrix.shape[1:] == (shape.columns, shape.rows)
        parent, _, leaf = matrix.name.rpartition(".")
        other = self.matrices.get(f"{parent}.{'gate_up_proj' if leaf == 'down_proj' else 'down_proj'}")
        if other is None or len(other.shape) != 3 or other.shape[1] == other.shape[2]:
            raise RepairError(f"ambiguous: the slabs of the source's {matrix.ref.name} are square")
        # gate_up is [2I, H] or [H, 2I] and down [H, I] or [I, H]: the square one's side is H.
        side = 2 if leaf == "down_proj" else 1
        return other.shape[side] != shape.rows
