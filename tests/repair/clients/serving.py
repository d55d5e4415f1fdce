"""What the tests with real clients share: damage, a repair as the command does it, logits, and small exports.

Every comparison is of logits on the same 96 tokens.  ``distance`` is the norm of a difference relative to the
reference's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from auditor.audit import Depth
from auditor.checkpoint import open_checkpoint
from auditor.engine import examine
from auditor.finding import Safety
from auditor.layer import QuantizedLayer, recognise
from repair import build
from repair.apply import apply
from repair.fixes.desk import Options
from tests.repair.restoring import EXPORTS

LLAMA = EXPORTS / "llama_nvfp4__source"
TOKENS = torch.arange(96).mul(37).remainder(250).reshape(2, 48)


def layers(root: Path) -> dict[str, QuantizedLayer]:
    """The layers of a checkpoint by name."""
    return {one.name: one for one in recognise(open_checkpoint(root).tensors.values()).layers}


def poke(root: Path, edits: list[tuple[int, bytes]]) -> None:
    """Bytes written into the one shard, at offsets of the file."""
    with open(root / "model.safetensors", "r+b") as file:
        for at, new in edits:
            file.seek(at)
            file.write(new)


def lose(layer: QuantizedLayer, places: list[int], scale: int, codes: int = 0x77) -> list[tuple[int, bytes]]:
    """Blocks as an exporter loses them: codes 7 under a scale that is NaN or zero."""
    edits = [(layer.codes.start + 8 * place, bytes([codes]) * 8) for place in places]
    return edits + [(layer.scales.start + place, bytes([scale])) for place in places]


def repair(root: Path, source: Path | None = LLAMA, risk: Safety = Safety.EXACT) -> int:
    """Plan, write, verify, as the command does; how many repairs."""
    ctx, audit = examine(str(root), depth=Depth.FULL)
    theirs = build.SourceFixes(source, "auto", ctx) if source else None
    built = build.build(ctx, audit.findings, Options(risk), theirs)
    apply(root, build.plan(built))
    built.desk.overlay.close()
    if theirs is not None:
        theirs.close()
    ctx.close()
    return len(built.repairs)


def logits(model: Any) -> np.ndarray:
    """Logits of 96 tokens in float64."""
    with torch.no_grad():
        return model.eval()(TOKENS).logits.float().numpy().astype(np.float64)


def distance(x: np.ndarray, reference: np.ndarray) -> float:
    """The norm of the difference relative to the reference's."""
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def by_transformers(root: Path, dequantise: bool) -> np.ndarray:
    """Through transformers and compressed-tensors: decompressed while loading, or by its own hooks."""
    if dequantise:
        more = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
        return logits(transformers.AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, **more))
    return logits(transformers.AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16))


def by_compressed_tensors(root: Path) -> np.ndarray:
    """compressed-tensors' own decompression of every NVFP4 layer, in a plain transformers model.

    transformers 5.23 leaves the global scales out where it decompresses experts itself.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    config = json.loads((root / "config.json").read_text())
    quantised = config.pop("quantization_config")
    compressor = BaseCompressor.get_value_from_registry(quantised["format"])
    scheme = QuantizationScheme.model_validate(quantised["config_groups"]["group_0"])
    stored = load_file(root / "model.safetensors")
    state = {name: x for name, x in stored.items() if x.dtype == torch.bfloat16}
    for name in layers(root):
        of = {key: stored[f"{name}.{key}"] for key in ("weight_packed", "weight_scale", "weight_global_scale")}
        of["weight_scale"] = of["weight_scale"].float()
        state[f"{name}.weight"] = compressor.decompress(of, scheme)["weight"].float()
    plain = root.with_name(f"{root.name} dequantised")
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(config))
    save_file(state, plain / "model.safetensors", {"format": "pt"})
    found = logits(transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32))
    shutil.rmtree(plain)
    return found


def by_fine_grained(root: Path) -> np.ndarray:
    """transformers' own dequantisation of every block-FP8 layer, in a plain model; its loader wants accelerate."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    stored = load_file(root / "model.safetensors")
    state = {name: x for name, x in stored.items() if x.dtype == torch.bfloat16}
    for name in layers(root):
        codes, scales = stored[f"{name}.weight"], stored[f"{name}.weight_scale_inv"]
        state[f"{name}.weight"] = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(LLAMA), dtype=torch.float32
    )
    model.load_state_dict(state)
    return logits(model)
