"""Errors against the source, before and after, held against float64 arithmetic that shares no code with them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from auditor.audit import Depth
from auditor.engine import examine
from auditor.finding import Safety
from repair.apply import apply
from repair.build import Repair, SourceFixes, build, plan
from repair.effect import Effect
from repair.fixes.desk import Options
from repair.layerchange import SOURCE, by_layer, measure_against
from tests.repair.restoring import EXPORTS

Tensors = dict[str, tuple[list[int], bytes]]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, byte >> 3 & 15, byte & 7
    if byte & 0x7F == 0x7F:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def tensors(root: Path) -> Tensors:
    found: Tensors = {}
    for path in root.glob("*.safetensors"):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                low, high = entry["data_offsets"]
                found[name] = entry["shape"], raw[start + low : start + high]
    return found


def weights(known: Tensors, module: str) -> NDArray[np.float64]:
    """An NVFP4 weight, float64 [N, K]."""
    (n, half), codes = known[f"{module}.weight"]
    packed = np.frombuffer(codes, np.uint8).reshape(n, half)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, 2 * half)
    scales = np.array([e4m3(b) for b in known[f"{module}.weight_scale"][1]]).reshape(n, -1).repeat(16, axis=1)
    return E2M1[nibbles] * scales * float(np.frombuffer(known[f"{module}.weight_scale_2"][1], np.float32)[0])


def bf16(known: Tensors, module: str) -> NDArray[np.float64]:
    shape, raw = known[f"{module}.weight"]
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(shape)


def relative(source: NDArray[np.float64], stored: NDArray[np.float64]) -> float | None:
    squared = float(((source - stored) ** 2).sum())
    if squared == 0:
        return 0.0
    held = float((source**2).sum())
    return math.sqrt(squared / held) if math.isfinite(squared) and held else None


def hurt(root: Path, name: str, at: int, new: bytes) -> None:
    for path in root.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        entry = json.loads(raw[8:start]).get(name)
        if entry is not None:
            at += start + entry["data_offsets"][0]
            raw[at : at + len(new)] = new
            path.write_bytes(raw)


@pytest.mark.parametrize(
    ("export", "also"),
    [
        ("qwen3moe_nvfp4_zero_expert", "model.layers.1.mlp.experts.2.down_proj"),
        ("llama_nvfp4_zero_weight", "model.layers.1.self_attn.v_proj"),
    ],
)
def test_errors_are_against_the_source(export: str, also: str, tmp_path: Path) -> None:
    root, whole = tmp_path / "export", EXPORTS / f"{export}__source"
    shutil.copytree(EXPORTS / export, root)
    hurt(root, f"{also}.weight_scale", 5, b"\x7f\x7f")  # lost blocks in a sound layer
    hurt(root, f"{also}.weight", 40, b"\x77" * 8 + bytes(8))
    before, source = tensors(root), tensors(whole)
    ctx, audit = examine(root, depth=Depth.FULL)
    theirs = SourceFixes(whole, "auto", ctx)
    built = build(ctx, audit.findings, Options(Safety.GUESS), theirs)
    made = plan(built)
    apply(root, made)
    ctx.close()
    theirs.close()
    after = tensors(root)
    rows = [row for row in by_layer(built, made) if row.layer in {layer.name for layer in ctx.layers}]
    assert also in {row.layer for row in rows}
    assert len(rows) > 1
    for row in rows:
        (effect,) = row.effects
        assert effect.of == SOURCE
        # float32 sums of chunks against float64 sums: equal but for rounding
        want = relative(bf16(source, row.layer), weights(before, row.layer))
        assert (effect.before is None) == (want is None)
        assert effect.before == pytest.approx(want, rel=1e-9) if want is not None else True
        assert effect.after == pytest.approx(relative(bf16(source, row.layer), weights(after, row.layer)), rel=1e-6)


def test_repairs_without_the_source_are_measured_against_it(tmp_path: Path) -> None:
    """What is shown of a layer that the source has is the distance to it, however the layer is mended."""
    export, module = "llama_nvfp4_zero_weight", "model.layers.1.self_attn.v_proj"
    root, whole = tmp_path / "export", EXPORTS / f"{export}__source"
    shutil.copytree(EXPORTS / export, root)
    ctx, _ = examine(root, depth=Depth.FULL)
    theirs = SourceFixes(whole, "auto", ctx)
    built = build(ctx, [], Options(), theirs)
    layer = next(layer for layer in ctx.layers if layer.name == module)
    built.desk.overlay.put(layer.scales, 0, b"\x38", "SCL101", "a test", Safety.EXACT)
    effect = Effect(module, "the stored weights", 1.0, 0.5)
    built.repairs.append(Repair("SCL101", layer.scales.name, Safety.EXACT, "", 1, "", (module,), (effect,)))
    measure_against(built, theirs)
    ((shown,),) = (repair.effects for repair in built.repairs)
    made = plan(built)
    before, source = tensors(root), bf16(tensors(whole), module)
    apply(root, made)
    assert shown.of == SOURCE
    assert shown.before == pytest.approx(relative(source, weights(before, module)), rel=1e-6)
    assert shown.after == pytest.approx(relative(source, weights(tensors(root), module)), rel=1e-6)
    ctx.close()
    theirs.close()
