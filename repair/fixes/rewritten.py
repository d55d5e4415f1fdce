"""Repairs that change a shard's header: FMT106 to FMT109, ACT103, KVC102, KVC103.

A tensor gets another dtype, shape or size, or is added, so the shard is written anew: with --out DIR only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from auditor.finding import Finding, Safety
from auditor.formats.base import ceil_div
from auditor.probes import decode_floats
from auditor.rules.act103_missing_input_scale import example, name_of
from auditor.rules.fmt108_scale_dtype import in_f32
from auditor.rules.kvc102_lonely_kv_scale import partner
from auditor.scalars import faulty
from auditor.shapes import is_swizzled, is_transposed
from auditor.tensorref import TensorRef
from repair.content import Computed
from repair.fixes import layouts
from repair.fixes.desk import Desk, float_bytes
from repair.fixes.input_scale import choose, divides
from repair.fixes.proposal import Edit, Left, NewTensor, Proposal

Result = Iterator[Proposal | Left]


def _proposal(finding: Finding, desk: Desk, safety: Safety, reason: str, change: str, *tensors: NewTensor) -> Result:
    layer = desk.layer(finding)
    for made in tensors:
        if made.beside and (made.name in desk.tensors or desk.ref(made.name) is not None):
            yield Left(finding.code, finding.tensor, f"there is a {made.name} already, of another dtype or layout")
            return
    yield Proposal(
        finding.code, finding.tensor, safety, reason, len(tensors), change, tensors, (layer.name,) if layer else ()
    )  # fmt: skip


def upcast(finding: Finding, desk: Desk) -> Result:
    """FMT108: the same numbers in F32.

    A per-tensor scale that is its fused set's, rounded to the narrower dtype, becomes the set's own.
    """
    ref = desk.ref(finding.tensor)
    if ref is None or ref.dtype not in ("BF16", "F16", "F64"):
        yield Left(finding.code, finding.tensor, "not stored as a float: no number to write in F32")
        return
    now = desk.current(ref)
    values = np.asarray(decode_floats(now.raw, ref.dtype), np.float64)
    narrow, lost = in_f32(values)
    if lost:
        yield Left(finding.code, finding.tensor, f"{lost} of {values.size} values would become 0 or infinite in F32")
        return
    exact = np.array_equal(narrow.astype(np.float64), values, equal_nan=True)
    reason = "F32 holds every value of it" if exact else "rounded to the nearest F32"
    raw, safety = narrow.tobytes(), Safety.EXACT if exact else Safety.BOUNDED
    if (shared := _set_value(desk, ref, now.raw)) is not None:
        raw, safety, reason = shared, Safety.EXACT, "it is the fused set's scale, rounded to that dtype"
    yield from _proposal(
        finding, desk, safety, reason, f"{ref.dtype} -> F32", now._replace(dtype="F32", raw=raw)
    )  # fmt: skip


def _set_value(desk: Desk, ref: TensorRef, raw: bytes) -> bytes | None:
    """The F32 bytes of a fused sibling's scale that becomes these when it is rounded to the stored dtype."""
    layer, role = desk.ctx.recognised.roles.get(ref.name, (None, None))
    group = desk.ctx.fused.get(layer.name) if layer else None
    if group is None or role is None or ref.size != 1:
        return None
    for member in group.members:
        other = member.get(role)
        if other is not None and other.dtype == "F32" and other.size == 1:
            held = desk.raw(other)
            rounded = float_bytes(float(np.frombuffer(held, np.float32)[0]), ref.dtype)
            if raw == rounded or (ref.dtype == "BF16" and raw == held[2:]):  # nearest, or cut off
                return held
    return None


def one_number(finding: Finding, desk: Desk) -> Result:
    """FMT109: a scalar of shape [] becomes [1]."""
    ref = desk.ref(finding.tensor)
    if ref is None or ref.shape or finding.fix is None:
        yield Left(finding.code, finding.tensor, "several numbers where one is expected: they belong to something else")
        return
    made = desk.current(ref)._replace(shape=(1,))
    yield from _proposal(finding, desk, Safety.EXACT, "the bytes are the same", "shape [] -> [1]", made)


def unswizzled(finding: Finding, desk: Desk) -> Result:
    """FMT106: the kernel's order undone, the padding cropped."""
    layer = desk.layer(finding)
    if layer is None or not is_swizzled(layer):
        return
    codes, ref, unit = layer.codes.shape, layer.scales, layer.format.block[1] // 2
    rows, columns = codes[-2], ceil_div(codes[-1], unit)
    shape = (*codes[:-2], rows, columns)
    plain = layouts.unswizzled(desk.fetch(ref), math.prod(codes[:-2]), rows, columns)
    made = NewTensor(ref.name, ref.dtype, shape, b"", ref, lazy=plain)
    change = f"shape {list(ref.shape)} -> {list(shape)}"
    yield from _proposal(finding, desk, Safety.EXACT, "the shape proves the kernel's layout", change, made)


def transposed(finding: Finding, desk: Desk) -> Result:
    """FMT107: packed bytes [K/2, N] become [N, K/2]."""
    layer = desk.layer(finding)
    if layer is None or not is_transposed(layer):
        return
    ref = layer.codes
    turned = layouts.turned(desk.fetch(ref), *ref.shape)
    made = NewTensor(ref.name, ref.dtype, (ref.shape[1], ref.shape[0]), b"", ref, lazy=turned)
    change = f"shape {list(ref.shape)} -> {list(made.shape)}"
    yield from _proposal(finding, desk, Safety.EXACT, "the scales fit the transposed codes only", change, made)


def missing_input(finding: Finding, desk: Desk) -> Result:
    """ACT103: the fused set's activation scale, else by policy the peers' largest (smallest divisor)."""
    layer = desk.layer(finding)
    model = example(layer, desk.ctx) if layer else None  # its shape and dtype, and what it is called
    if layer is None or model is None:
        yield Left(finding.code, finding.tensor, "no layer of its layout has one to go by")
        return
    choice = choose(layer, model.dtype, (math.inf if divides(layer) else 0.0,), desk)
    if isinstance(choice, str):
        yield Left(finding.code, finding.tensor, choice)
        return
    raw, value, safety, reason = choice
    group = desk.ctx.fused.get(layer.name)
    for sibling in group.members if group else ():  # one that lacked it, too, has its own by now
        made = desk.tensors.get(name_of(sibling, model, desk.ctx))
        if made is not None and sibling is not layer:
            raw, value, reason = made.raw, decode_floats(made.raw, made.dtype)[0], f"{reason}; as {sibling.leaf} has it"
    made = NewTensor(name_of(layer, model, desk.ctx), model.dtype, model.shape, raw, layer.codes, beside=True)
    yield from _proposal(finding, desk, safety, reason, f"added: {value:.6g}", made)


def kv_partner(finding: Finding, desk: Desk) -> Result:
    """KVC102: 1.0 for the scale that is missing; only on request, since calibration is lost."""
    ref, name = desk.ref(finding.tensor), partner(finding.tensor)
    raw = float_bytes(1.0, ref.dtype) if ref else None
    if ref is None or raw is None or not name:
        yield Left(finding.code, finding.tensor, "no constant stands for what is missing: calibrate again")
        return
    made = NewTensor(name, ref.dtype, ref.shape, raw * ref.size, ref, beside=True)
    reason = "calibration is lost: the constant of a cast cache"
    yield from _proposal(finding, desk, Safety.GUESS, reason, f"added: {made.name} = 1", made)


def shared_values(finding: Finding, desk: Desk) -> Result:
    """KVC103: k_proj's tensors under v_proj's name, too."""
    layer = desk.layer(finding)
    if layer is None:
        return
    parent = layer.module.removesuffix(".k_proj")
    tensors = [
        NewTensor(f"{parent}.v_proj{leaf}", ref.dtype, ref.shape, b"", ref, True, Computed(ref.nbytes, desk.fetch(ref)))
        for ref in layer.parts.values()
        for leaf in (ref.name.removeprefix(layer.module),)
    ]
    reason = "keys and values share one projection"
    yield from _proposal(finding, desk, Safety.EXACT, reason, f"{len(tensors)} tensors copied to v_proj", *tensors)


def kv_scale(finding: Finding, desk: Desk) -> Result:
    """KVC101: unusable values become 1.0 in place; only on request, since calibration is lost."""
    ref = desk.ref(finding.tensor)
    raw = float_bytes(1.0, ref.dtype) if ref else None
    if ref is None or raw is None or finding.fix is None:
        yield Left(finding.code, finding.tensor, "not a scalar: nothing says what it should be", finding.count)
        return
    values = desk.values(ref)
    bad = [i for i, value in enumerate(values) if faulty(value)]
    edits = [Edit(ref, i * ref.itemsize, raw) for i in bad]
    if edits:
        reason = "calibration is lost: the constant of a cast cache"
        change = f"{values[bad[0]]:.6g} -> 1"
        yield Proposal(finding.code, finding.tensor, Safety.GUESS, reason, len(bad), change, edits)
