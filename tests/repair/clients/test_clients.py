"""Damaged exports read by the programs that serve them: before a repair from the source, and after it.

Every comparison is of logits on the same 96 tokens.  ``distance`` is the norm of a difference relative to the
reference's.  The reference is the sound export; the source is the unquantised model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("compressed_tensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from auditor.finding import Safety  # noqa: E402
from auditor.formats.base import Role  # noqa: E402
from tests.repair.clients.serving import LLAMA, by_transformers, distance, layers, logits, lose, poke, repair  # noqa: E402
from tests.repair.restoring import EXPORTS  # noqa: E402

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def unquantised() -> np.ndarray:
    return logits(transformers.AutoModelForCausalLM.from_pretrained(LLAMA, dtype=torch.float32))


def by_modelopt(root: Path) -> np.ndarray:
    """modelopt's own dequantisation of every layer, in a plain transformers model."""
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    from safetensors.torch import load_file

    stored = load_file(root / "model.safetensors")
    state = {name: x for name, x in stored.items() if x.dtype == torch.bfloat16}
    for name, layer in layers(root).items():
        codes, scale = stored[layer.codes.name], stored[layer.scales.name]
        shape = torch.Size((codes.shape[0], codes.shape[1] * 2))
        tensor = NVFP4QTensor(shape, torch.float32, codes)
        wide = stored[f"{name}.weight_scale_2"]
        state[f"{name}.weight"] = tensor.dequantize(scale=scale, double_scale=wide, block_sizes={-1: 16})
    config = transformers.AutoConfig.from_pretrained(LLAMA)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    return logits(model)


@pytest.mark.parametrize("dequantise", [True, False])
def test_nan_blocks_in_compressed_tensors(tmp_path, unquantised, dequantise, record_property):
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llmc_llama_nvfp4", root)
    reference = by_transformers(root, dequantise)
    of = layers(root)
    edits = lose(of["model.layers.0.mlp.down_proj"], [5, 900], 0x7F)
    edits += lose(of["model.layers.1.self_attn.q_proj"], [0, 77, 1000], 0xFF)
    poke(root, edits)
    assert np.isnan(by_transformers(root, dequantise)).any()
    assert repair(root) == 2
    after = by_transformers(root, dequantise)
    np.testing.assert_array_equal(after, reference)
    record_property("distance from the source", distance(after, unquantised))


def test_silent_damage_in_compressed_tensors(tmp_path, unquantised, record_property):
    """Zero scales over lost codes: no NaN, and wrong.  Restored, the logits are nearer to the unquantised model's."""
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llmc_llama_nvfp4", root)
    reference = by_transformers(root, dequantise=True)
    for name, layer in layers(root).items():
        if name.endswith(("down_proj", "v_proj", "o_proj")):
            poke(root, lose(layer, list(range(0, layer.scales.size, 3)), 0x00))
    before = by_transformers(root, dequantise=True)
    assert repair(root) == 6
    after = by_transformers(root, dequantise=True)
    np.testing.assert_array_equal(after, reference)
    was, now = distance(before, unquantised), distance(after, unquantised)
    record_property("distance from the source, before -> after", f"{was:.4f} -> {now:.4f}")
    print(f"\nzero scales: {was:.4f} -> {now:.4f}")
    assert now < 0.5 * was


def test_an_overflowed_scale_in_modelopt(tmp_path, unquantised, record_property):
    """A real export whose global scale was too small: 430 NaN blocks in o_proj, put into the sound export."""
    pytest.importorskip("modelopt")
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llama_nvfp4", root)
    reference = by_modelopt(root)
    hurt = EXPORTS / "llama_nvfp4_v0440_amax_small_legacycast"
    (theirs,) = layers(hurt).values()
    mine, raw = layers(root)[theirs.name], (hurt / "model.safetensors").read_bytes()
    sound = (root / "model.safetensors").read_bytes()
    for role in (Role.CODES, Role.SCALES, Role.GLOBAL):
        ref = theirs.parts[role]
        poke(root, [(mine.parts[role].start, raw[ref.start : ref.start + ref.nbytes])])
    assert np.isnan(by_modelopt(root)).any()
    assert repair(root) == 1
    np.testing.assert_array_equal(by_modelopt(root), reference)
    assert (root / "model.safetensors").read_bytes() == sound
    record_property("distance from the source", distance(reference, unquantised))


def test_hidden_damage_in_modelopt(tmp_path, unquantised, record_property):
    """A fused set whose members have different global scales, as a server reads it: with one scale for all."""
    pytest.importorskip("modelopt")
    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llama_nvfp4", root)
    reference = by_modelopt(root)
    of = layers(root)
    ours = [of[f"model.layers.{n}.mlp.{leaf}"] for n in (0, 1) for leaf in ("gate_proj", "up_proj")]
    for gate, up in (ours[:2], ours[2:]):
        wide = np.frombuffer((root / "model.safetensors").read_bytes()[up.global_scale.start :][:4], np.float32)[0]
        poke(root, [(up.global_scale.start, np.float32(wide * np.float32(2.5)).tobytes())])
        assert gate.global_scale is not None
    before = by_modelopt(root)
    assert repair(root) == 2
    after = by_modelopt(root)
    np.testing.assert_array_equal(after, reference)
    was, now = distance(before, unquantised), distance(after, unquantised)
    record_property("distance from the source, before -> after", f"{was:.4f} -> {now:.4f}")
    print(f"\nglobal scales apart: {was:.4f} -> {now:.4f}")
    assert now < was


def test_a_guess_beside_what_the_source_gives(tmp_path, unquantised, record_property):
    """Every seventh block of the MLPs lost under NaN: zeroed without the source, restored with it."""
    pytest.importorskip("modelopt")
    found = {}
    for way in ("guess", "source"):
        root = tmp_path / way
        shutil.copytree(EXPORTS / "llama_nvfp4", root)
        for name, layer in layers(root).items():
            if ".mlp." in name:
                poke(root, lose(layer, list(range(0, layer.scales.size, 7)), 0x7F))
        assert np.isnan(by_modelopt(root)).all()
        assert repair(root, LLAMA if way == "source" else None, Safety.GUESS) == 6
        found[way] = distance(by_modelopt(root), unquantised)
    record_property("distance from the source", f"guess {found['guess']:.4f}, source {found['source']:.4f}")
    print(f"\nlost blocks: guess {found['guess']:.4f}, source {found['source']:.4f}")
    assert found["source"] < 0.75 * found["guess"]


def test_torchao_reads_a_restored_layer(tmp_path):
    """torchao's dequantisation of the repaired bytes equals ours, and is finite where it was NaN."""
    pytest.importorskip("torchao")
    from safetensors.torch import load_file
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    root = tmp_path / "export"
    shutil.copytree(EXPORTS / "llama_nvfp4", root)
    name = "model.layers.1.self_attn.o_proj"
    poke(root, lose(layers(root)[name], [1, 2, 3], 0x7F))

    def read(folder: Path):
        stored = load_file(folder / "model.safetensors")
        codes, scale, wide = (stored[f"{name}.{leaf}"] for leaf in ("weight", "weight_scale", "weight_scale_2"))
        return NVFP4Tensor(codes, scale, 16, torch.float32, per_tensor_scale=wide).dequantize(torch.float32)

    assert torch.isnan(read(root)).any()
    assert repair(root) == 1
    assert torch.equal(read(root), read(EXPORTS / "llama_nvfp4"))
