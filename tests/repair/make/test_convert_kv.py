"""KV-cache scales under the names of the other layout; what else a cache may have is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quant.errors import RepairError
from tests import forge
from tests.raw import Raw, raw
from tests.repair.make.test_convert import CT, F32, MODELOPT, converted, findings, tensors


def kv(root: Path) -> dict[str, Raw]:
    return {n: t for n, t in tensors(root).items() if n.endswith((".k_scale", ".v_scale"))}


def test_kv_scales(tmp_path):
    model = forge.make("modelopt-nvfp4").copy()
    scales = {f"model.layers.{n}.self_attn.{s}_proj.{s}_scale": 0.013 + n / 7 for n in range(2) for s in "kv"}
    model.tensors.update({name: raw("F32", F32(value)) for name, value in scales.items()})
    for one in model.quantization():
        one["kv_cache_quant_algo"] = "FP8"
    converted(model.write(tmp_path / "src"), tmp_path / "ct", CT)
    moved = {name.replace(f".{name[-7]}_proj", ""): raw("F32", F32(value), (1,)) for name, value in scales.items()}
    assert kv(tmp_path / "ct") == moved
    told = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (told["num_bits"], told["type"], told["dynamic"]) == (8, "float", False)
    converted(tmp_path / "ct", tmp_path / "back", MODELOPT)
    assert kv(tmp_path / "back") == {name: raw("F32", F32(value)) for name, value in scales.items()}
    beside = json.loads((tmp_path / "back" / "hf_quant_config.json").read_text())
    assert beside["quantization"]["kv_cache_quant_algo"] == "FP8"
    assert findings(tmp_path / "ct") == findings(tmp_path / "back") == set()


def test_other_kv_caches_are_refused(tmp_path):
    model = forge.make("modelopt-nvfp4").copy()
    for one in model.quantization():
        one["kv_cache_quant_algo"] = "NVFP4"
    with pytest.raises(RepairError, match="a KV cache of NVFP4 is not converted"):
        converted(model.write(tmp_path / "a"), tmp_path / "new", CT)
    model = forge.make("modelopt-nvfp4").copy()
    model.tensors["model.layers.0.self_attn.k_proj.k_bias"] = raw("F32", np.zeros(8))
    with pytest.raises(RepairError, match="k_bias of a KV cache is not converted"):
        converted(model.write(tmp_path / "b"), tmp_path / "new", CT)
