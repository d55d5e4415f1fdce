"""Checkpoints that no exporter writes: each case makes one in an empty folder.

Every case must end in findings or in one CheckpointError, within seconds and within bounded memory.
Used by `benchmarks/fuzz.py` and by the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SHARD = "model.safetensors"
Case = Callable[[Path], None]

CASES: dict[str, Case] = {}  # all of them run in a few seconds


def case(registry: dict[str, Case]) -> Callable[[Case], Case]:
    """Register a maker under its function's name."""

    def register(make: Case) -> Case:
        registry[make.__name__] = make
        return make

    return register


def shard(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """The bytes of a shard: length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def nvfp4(name: str, at: int = 0) -> dict[str, Any]:
    """Header entries of one NVFP4 layer of 16 rows and 32 columns: 296 bytes from ``at``."""
    return {
        f"{name}.weight_scale_2": {"dtype": "F32", "shape": [], "data_offsets": [at, at + 4]},
        f"{name}.input_scale": {"dtype": "F32", "shape": [], "data_offsets": [at + 4, at + 8]},
        f"{name}.weight": {"dtype": "U8", "shape": [16, 16], "data_offsets": [at + 8, at + 264]},
        f"{name}.weight_scale": {"dtype": "F8_E4M3", "shape": [16, 2], "data_offsets": [at + 264, at + 296]},
    }


def healthy(root: Path) -> None:
    """A checkpoint of two shards with everything that belongs to it."""
    weight_map: dict[str, str] = {}
    for number, stems in enumerate((("gate_proj", "up_proj"), ("down_proj", "q_proj")), 1):
        entries: dict[str, Any] = {}
        for k, stem in enumerate(stems):
            entries |= nvfp4(f"model.layers.0.{stem}", 296 * k)
        file = f"model-{number:05}-of-00002.safetensors"
        layer = b"\x00\x00\x80\x3a" * 2 + bytes(range(256)) + b"\x38" * 32
        (root / file).write_bytes(shard({"__metadata__": {"format": "pt"}} | entries, layer * 2))
        weight_map |= dict.fromkeys(entries, file)
    (root / INDEX).write_text(json.dumps({"metadata": {"total_size": 1184}, "weight_map": weight_map}))
    quantized = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}
    (root / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantized}))
    old = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (root / "hf_quant_config.json").write_text(json.dumps(old))


def one(dtype: str, shape: list[int], size: int) -> dict[str, Any]:
    """One entry at the beginning of the data."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


@case(CASES)
def named_pipe(root: Path) -> None:
    healthy(root)
    os.mkfifo(root / "pipe.safetensors")


@case(CASES)
def named_pipe_as_config(root: Path) -> None:
    healthy(root)
    (root / "config.json").unlink()
    os.mkfifo(root / "config.json")


@case(CASES)
def folder_as_shard(root: Path) -> None:
    (root / SHARD).mkdir()


@case(CASES)
def folder_as_index(root: Path) -> None:
    healthy(root)
    (root / INDEX).unlink()
    (root / INDEX).mkdir()


@case(CASES)
def links(root: Path) -> None:
    healthy(root)
    (root / "loop.safetensors").symlink_to("loop.safetensors")
    (root / "zero.safetensors").symlink_to("/dev/zero")
    (root / "nowhere.safetensors").symlink_to("not/there")
    (root / "self.safetensors").symlink_to(".")


@case(CASES)
def endless_config(root: Path) -> None:
    healthy(root)
    (root / "hf_quant_config.json").unlink()
    (root / "hf_quant_config.json").symlink_to("/dev/zero")


@case(CASES)
def empty_files(root: Path) -> None:
    for name in (SHARD, INDEX, "config.json", "hf_quant_config.json"):
        (root / name).touch()


@case(CASES)
def odd_file_names(root: Path) -> None:
    for name in (b"\xff\xfe.safetensors", b"new\nline.safetensors", b"\x1b[31m.safetensors", b".safetensors"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(shard(nvfp4("m"), bytes(296)))


@case(CASES)
def odd_tensor_names(root: Path) -> None:
    names = ["", ".", "..", ".weight", "a..weight", "\0", "\u202e.weight", "x\n.weight", "/etc/passwd", "9" * 400]
    entries = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}
    (root / SHARD).write_bytes(shard(entries))


@case(CASES)
def paths_that_leave(root: Path) -> None:
    healthy(root)
    values = ["../../etc/passwd", "/etc/passwd", "a\0b.safetensors", "..", ".", "", "sub/x.safetensors", "~", 7, None]
    values += [["x.safetensors"], {"a": 1}, "x" * 300, "\\\\host\\share", "\u202ex.safetensors"]
    content = json.loads((root / INDEX).read_text())
    content["weight_map"] |= {f"t{i}": value for i, value in enumerate(values)}
    (root / INDEX).write_text(json.dumps(content))


@case(CASES)
def huge_numbers(root: Path) -> None:
    for i, length in enumerate((2**64 - 1, 2**63, 100_000_000, 100_000_001, 2**32)):
        (root / f"length{i}.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    entries = {f"t{i}": one("F32", [2**k], 2**k * 4) for i, k in enumerate((31, 61, 62, 63))}
    (root / "sizes.safetensors").write_bytes(shard(entries, bytes(64)))
    digits = b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}'
    (root / "digits.safetensors").write_bytes(shard(digits, b"\0"))
    (root / "config.json").write_text('{"quantization_config": {"group_size": ' + "9" * 5000 + "}}")


@case(CASES)
def json_of_other_kinds(root: Path) -> None:
    healthy(root)
    (root / INDEX).write_text('{"weight_map": [1, 2], "metadata": 3}')
    (root / "config.json").write_text("[" * 5000)
    (root / "hf_quant_config.json").write_text('{"quantization": {"quantization": [NaN, 1e999, -0]}, "a": 1, "a": 2}')


@case(CASES)
def index_numbers(root: Path) -> None:
    healthy(root)
    content = json.loads((root / INDEX).read_text())
    (root / INDEX).write_text(json.dumps(content | {"metadata": {"total_size": 1e300}}).replace("1e+300", "1e999"))


@case(CASES)
def shapes_of_nothing(root: Path) -> None:
    entries = nvfp4("m") | {"e": one("F32", [0], 0), "f": one("F4", [0, 7], 0), "z": one("BF16", [2**62, 0], 0)}
    empty = {name: {**e, "shape": [0, *e["shape"]], "data_offsets": [0, 0]} for name, e in nvfp4("empty").items()}
    blocks = {"x_blocks": one("U8", [0, 0, 0, 16], 0), "x_scales": one("U8", [0, 0, 0], 0)}
    (root / SHARD).write_bytes(shard(empty | blocks | entries, bytes(296)))


@case(CASES)
def sixty_axes(root: Path) -> None:
    deep = {}
    for name, entry in nvfp4("m").items():
        deep[name] = entry | {"shape": [1] * 58 + entry["shape"]}
    (root / SHARD).write_bytes(shard(deep, bytes(296)))


@case(CASES)
def shapes_that_disagree(root: Path) -> None:
    entries: dict[str, Any] = {}
    at = 0
    for i, (weights, scales) in enumerate(
        (([256], [32]), ([1, 256], [32, 1]), ([2, 2, 64], [32]), ([256, 1], [1, 32]))
    ):
        layer = nvfp4(f"m{i}", at)
        layer[f"m{i}.weight"]["shape"], layer[f"m{i}.weight_scale"]["shape"] = weights, scales
        entries |= layer
        at += 296
    (root / SHARD).write_bytes(shard(entries, bytes(range(256)) * 4 + bytes(160)))


@case(CASES)
def overlapping_tensors(root: Path) -> None:
    entries = {f"m{i}.weight": one("F8_E4M3", [1 << 20], 1 << 20) for i in range(2000)}
    (root / SHARD).write_bytes(shard(entries, bytes(1 << 20)))


@case(CASES)
def many_bad_entries(root: Path) -> None:
    entries = {f"m{i}.weight": one("F32", [7], i) for i in range(20_000)}
    (root / SHARD).write_bytes(shard(entries, bytes(20)))


@case(CASES)
def every_value_broken(root: Path) -> None:
    entries: dict[str, Any] = {}
    for i in range(300):
        entries |= nvfp4(f"model.layers.{i}.mlp.gate_proj", 296 * i)
    (root / SHARD).write_bytes(shard(entries, b"\xff" * (296 * 300)))


@case(CASES)
def one_module_of_codes(root: Path) -> None:
    """No name has a dot: whatever looks at a tensor's whole module for each tensor never ends."""
    entries = {f"{i}weight": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [i, i + 1]} for i in range(8_000)}
    (root / SHARD).write_bytes(shard(entries, bytes(8_000)))
