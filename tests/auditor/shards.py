"""Files made by hand: shards, indices and small checkpoints, sound or broken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from auditor.audit import Audit, Depth
from auditor.engine import scan
from auditor.finding import Finding
from auditor.tensorref import DTYPE_BITS

Spec = tuple[str, list[int]]  # dtype, shape


def entries(tensors: Mapping[str, Spec], start: int = 0) -> dict[str, Any]:
    """Header entries of tensors laid end to end."""
    table: dict[str, Any] = {}
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS[dtype]
        for length in shape:
            size *= length
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size // 8]}
        start += size // 8
    return table


def file_bytes(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A shard: 8-byte length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def sound(tensors: Mapping[str, Spec], fill: int = 0x38) -> bytes:
    """A sound shard whose every data byte is ``fill``."""
    table = entries(tensors)
    size = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    return file_bytes({"__metadata__": {"format": "pt"}} | table, bytes([fill]) * size)


def layer(name: str) -> dict[str, Spec]:
    """The tensors of one NVFP4 layer of 4 rows and 32 columns."""
    return {
        f"{name}.weight": ("U8", [4, 16]),
        f"{name}.weight_scale": ("F8_E4M3", [4, 2]),
        f"{name}.weight_scale_2": ("F32", []),
        f"{name}.input_scale": ("F32", []),
    }


def write_sharded(root: Path, shards: Mapping[str, Iterable[str]], **index: Any) -> None:
    """Shards of NVFP4 layers with the index that belongs to them; ``index`` replaces its parts."""
    weight_map: dict[str, str] = {}
    total = 0
    for file, layers in shards.items():
        tensors = {name: spec for stem in layers for name, spec in layer(stem).items()}
        (root / file).write_bytes(sound(tensors))
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries(tensors).values())
    write_index(root, **({"weight_map": weight_map, "metadata": {"total_size": total}} | index))


def write_index(root: Path, **content: Any) -> None:
    """model.safetensors.index.json."""
    (root / "model.safetensors.index.json").write_text(json.dumps(content))


def read_index(root: Path) -> dict[str, Any]:
    """What model.safetensors.index.json holds."""
    content: dict[str, Any] = json.loads((root / "model.safetensors.index.json").read_text())
    return content


def file_findings(path: Path, depth: Depth = Depth.HEADERS) -> list[Finding]:
    """Findings of the rules about files; no rule may have raised."""
    audit = scan(path, depth=depth)
    assert audit.errors == ()
    return file_rules(audit)


def file_rules(audit: Audit) -> list[Finding]:
    """Those findings of an audit that are about files."""
    return [f for f in audit.findings if f.code.startswith("FIL")]


def codes(path: Path, depth: Depth = Depth.HEADERS) -> list[str]:
    """Codes of the findings about files, each once."""
    return sorted({f.code for f in file_findings(path, depth)})
