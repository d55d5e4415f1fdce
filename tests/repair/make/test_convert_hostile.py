"""Whatever the tensors of a layer look like: it is converted, or refused by name, and never anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from auditor.layer import recognise
from quant.errors import ToolError
from repair.make.layouts import Layout
from tests import forge
from tests.raw import Raw
from tests.repair.make.test_convert import converted, tensors

CT, MODELOPT = Layout.COMPRESSED_TENSORS, Layout.MODELOPT
NAMES = {
    "modelopt-nvfp4": CT, "modelopt-fp8": CT, "modelopt-fp8-channel": CT, "modelopt-fp8-block-rank4": CT,
    "modelopt-3d-gpt-oss": CT, "modelopt-3d-per-expert": CT, "ct-nvfp4": MODELOPT, "ct-fp8": MODELOPT,
    "deepseek-fp8": MODELOPT, "kv-modelopt": CT, "kv-ct": MODELOPT,
}  # fmt: skip


def variants(tensor: Raw) -> dict[str, Raw | None]:
    """Another dtype over the same bytes, other shapes, half of it, nothing of it."""
    found: dict[str, Raw | None] = {"gone": None, "empty": Raw(tensor.dtype, (0,), b"")}
    width = len(tensor.data) // max(1, tensor.size)
    for dtype, size in (("U8", 1), ("F8_E4M3", 1), ("I8", 1), ("BF16", 2), ("F16", 2), ("F32", 4), ("F64", 8)):
        if dtype != tensor.dtype and len(tensor.data) % size == 0:
            last = tensor.shape[-1] * width // size if tensor.shape else 0
            shape = (*tensor.shape[:-1], last) if last else ((len(tensor.data) // size,) if tensor.shape else None)
            if shape is not None:
                count = 1
                for length in shape:
                    count *= length
                if count * size == len(tensor.data):
                    found[dtype] = Raw(dtype, shape, tensor.data)
    found["flat"] = Raw(tensor.dtype, (tensor.size,), tensor.data)
    found["[1, ...]"] = Raw(tensor.dtype, (1, *tensor.shape), tensor.data)
    found["[..., 1, 1]"] = Raw(tensor.dtype, (*tensor.shape, 1, 1), tensor.data)
    found["turned"] = Raw(tensor.dtype, tensor.shape[::-1], tensor.data)
    if tensor.shape and tensor.shape[0] % 2 == 0:
        half = (tensor.shape[0] // 2, *tensor.shape[1:])
        found["half"] = Raw(tensor.dtype, half, tensor.data[: len(tensor.data) // 2])
    if tensor.shape and tensor.shape[0] > 1:
        found["one row less"] = Raw(
            tensor.dtype, (tensor.shape[0] - 1, *tensor.shape[1:]), tensor.data[len(tensor.data) // tensor.shape[0] :]
        )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_part_in_every_wrong_way(tmp_path, name):
    whole = forge.make(name)
    made = next((one for one in whole.layers if one.transposed), whole.layers[-1])
    parts = [part for part in (made.codes, made.scales, made.global_scale, made.input_scale) if part]
    parts += [n for n in whole.tensors if n.endswith(("k_scale", f"{made.name}_bias"))][:2]
    ends = set()
    for part in parts:
        for what, tensor in variants(whole.tensors[part]).items():
            model = whole.copy()
            if tensor is None:
                del model.tensors[part]
            else:
                model.tensors[part] = tensor
            ends.add(_tried(model.write(tmp_path / "src"), tmp_path, NAMES[name], f"{part}: {what}"))
            shutil.rmtree(tmp_path / "src")
    assert "refused" in ends


def _tried(source: Path, root: Path, layout: Layout, note: str) -> str:
    why = ""
    try:
        converted(source, root / "new", layout)
    except ToolError as error:
        why = str(error)
    if why:
        assert "\n" not in why, note
        shutil.rmtree(root / "new.incomplete", ignore_errors=True)
        (root / "new.incomplete.lock").unlink(missing_ok=True)
        assert not (root / "new").exists(), note
        return "refused"
    assert len(tensors(root / "new")) > 1, note
    shutil.rmtree(root / "new")
    return "made"


@pytest.mark.parametrize("leaf", ["weight", "weight_scale"])
def test_a_tensor_without_its_partner(tmp_path, leaf):
    model = forge.make("modelopt-nvfp4").copy()
    del model.tensors[f"model.layers.1.mlp.down_proj.{leaf}"]
    with pytest.raises(ToolError, match=r"model\.layers\.1\.mlp\.down_proj\.\w+: .* belongs to no weight"):
        converted(model.write(tmp_path / "src"), tmp_path / "new", CT)


def test_the_variants_reach_the_layers():
    """Some of the damage is still recognised as a layer: shapes are checked where the work is done, too."""
    model = forge.make("modelopt-nvfp4")
    part = model.layers[-1].scales
    half = variants(model.tensors[part])["one row less"]
    assert half is not None
    model = model.copy()
    model.tensors[part] = half
    refs = []
    from auditor.tensorref import TensorRef

    for name, tensor in model.tensors.items():
        refs.append(TensorRef(name, tensor.dtype, tensor.shape, "m", 0, len(tensor.data)))
    assert model.layers[-1].name in {layer.name for layer in recognise(refs).layers}
