"""Cut real exports down to what the tests of restoring need: ``python make_cuts.py FOLDER_OF_EXPORTS``.

Bytes of the tensors that are kept are the exporter's own.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
LAYER = r"model\.layers\.1\."
MOE = LAYER + r"(self_attn\.|mlp\.experts\.[01]\.)(?!.*norm)"
DOWN = LAYER + r"mlp\.down_proj\."
O_PROJ = LAYER + r"self_attn\.o_proj\."
ATTENTION = LAYER + r"self_attn\."
CUTS = {
    "llama_nvfp4": ".",
    "llama_nvfp4__source": ".",
    "llmc_llama_nvfp4": ".",
    "llama_nvfp4_zero_weight": ATTENTION,
    "llama_nvfp4_zero_weight__source": ATTENTION,
    "llama_nvfp4_zero_blocks__source": DOWN,
    "llama_nvfp4_static_zero_blocks": DOWN,
    "llama_nvfp4_mse_zero_blocks": DOWN,
    "llama_nvfp4_zero_blocks": DOWN,
    "llama_nvfp4_v0440_tiny_blocks": DOWN,
    "llama_nvfp4_v0440_tiny_blocks__source": DOWN,
    "llama_nvfp4_tiny_blocks": DOWN,
    "llama_nvfp4_mse": ATTENTION,
    "llama_nvfp4_static_max": ATTENTION,
    "llama_nvfp4_v0440_amax_small_legacycast": O_PROJ,
    "llama_nvfp4_awq_lite": ATTENTION,
    "llama_w4a8_nvfp4_fp8": ATTENTION,
    "llama_fp8": ATTENTION,
    "llama_fp8_pc_pt": ATTENTION,
    "llama_fp8_pb_wo": LAYER + r"(mlp\.down_proj|self_attn)\.",
    "llama_mxfp4": ATTENTION,
    "llama_mxfp8": ATTENTION,
    "llmc_llama_fp8": ATTENTION,
    "llmc_llama_fp8_block": ATTENTION,
    "llmc_llama_mxfp4": ATTENTION,
    "llmc_llama_mxfp8": ATTENTION,
    "llmc_llama_nvfp4_mse": O_PROJ,
    "ctconv_llama_nvfp4": ATTENTION,
    "quark_llama_nvfp4": ATTENTION,
    "quark_llama_mxfp4": ATTENTION,
    "qwen3moe_nvfp4": MOE,
    "qwen3moe_nvfp4__source": MOE,
    "qwen3moe_nvfp4_mse": MOE,
    "qwen3moe_nvfp4_dead_experts": MOE,
    "qwen3moe_nvfp4_zero_expert": LAYER + r"mlp\.experts\.[23]\.",
    "qwen3moe_nvfp4_zero_expert__source": LAYER + r"mlp\.experts\.[23]\.",
    "qwen3moe_fp8": LAYER + r"mlp\.experts\.[01]\.",
}


def cut(source: Path, target: Path, keep: str) -> None:
    """Copy the tensors whose names begin with a match of ``keep``, and the configuration."""
    kept: dict[str, tuple[dict[str, object], bytes]] = {}
    for shard in sorted(source.glob("*.safetensors")):
        raw = shard.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__" and re.match(keep, name):
                first, last = entry["data_offsets"]
                kept[name] = (entry, raw[8 + length + first : 8 + length + last])
    at, header = 0, {}
    for name, (entry, data) in kept.items():
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.mkdir(exist_ok=True)
    body = b"".join(data for _, data in kept.values())
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    for file in ("config.json", "hf_quant_config.json"):
        if (source / file).exists():
            shutil.copyfile(source / file, target / file)


if __name__ == "__main__":
    for name, keep in CUTS.items():
        cut(Path(sys.argv[1]) / name, HERE / name, keep)
