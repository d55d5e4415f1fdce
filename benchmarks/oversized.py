"""Hostile checkpoints of up to 100 MB: small on disk, and meant to cost memory and time out of proportion."""

from __future__ import annotations

from pathlib import Path

from benchmarks.hostile import INDEX, SHARD, Case, case, healthy, shard

CASES: dict[str, Case] = {}


def _fill(root: Path, unit: bytes, size: int = 100_000_000) -> None:
    with (root / SHARD).open("wb") as file:
        file.write(size.to_bytes(8, "little") + unit * (size // len(unit)) + unit[: size % len(unit)])


@case(CASES)
def header_of_brackets(root: Path) -> None:
    _fill(root, b"[")


@case(CASES)
def header_of_nested_objects(root: Path) -> None:
    _fill(root, b'{"a":')


@case(CASES)
def header_of_one_string(root: Path) -> None:
    with (root / SHARD).open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little") + b'{"' + b"\xc3\xa9" * 49_999_998 + b'":')


@case(CASES)
def header_of_spaces(root: Path) -> None:
    with (root / SHARD).open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little") + b"{" + b" " * 99_999_998 + b"}")


@case(CASES)
def header_of_metadata(root: Path) -> None:
    pairs = b",".join(b'"%d":""' % i for i in range(8_000_000))
    (root / SHARD).write_bytes(shard(b'{"__metadata__":{' + pairs[:99_000_000].rpartition(b",")[0] + b"}}"))


def _tiny_tensors(root: Path, count: int, form: bytes, size: int = 0) -> None:
    """A shard of ``count`` tensors of one byte or none; ``form`` takes number, begin and end."""
    text = b",".join(form % (i, i * size, i * size + size) for i in range(count))
    (root / SHARD).write_bytes(shard(b"{" + text[:99_999_000].rpartition(b"},")[0] + b"}}", bytes(count * size)))


@case(CASES)
def two_million_tensors(root: Path) -> None:
    _tiny_tensors(root, 2_000_000, b'"%d":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}', 1)


@case(CASES)
def as_many_tensors_as_are_read(root: Path) -> None:
    _tiny_tensors(root, 400_000, b'"m%d.weight":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}', 1)


@case(CASES)
def two_million_unusual_entries(root: Path) -> None:
    _tiny_tensors(root, 1_700_000, b'"%d":{"shape":[0],"data_offsets":[%d,%d],"dtype":"U8"}')


@case(CASES)
def two_million_wrong_entries(root: Path) -> None:
    _tiny_tensors(
        root, 390_000, b'"model.layers.%d.weight_scale":{"dtype":"F32","shape":[1,1,3],"data_offsets":[%d,%d]}'
    )


@case(CASES)
def one_module_of_codes(root: Path) -> None:
    """No name has a dot: whatever looks at a tensor's whole module for each tensor never ends."""
    _tiny_tensors(root, 300_000, b'"%dweight":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[%d,%d]}', 1)


@case(CASES)
def one_module_of_layers(root: Path) -> None:
    pair = b'"%d_blocks":{"dtype":"U8","shape":[1,1,0,16],"data_offsets":[0,0]}'
    other = b'"%d_scales":{"dtype":"U8","shape":[1,1,0],"data_offsets":[0,0]}'
    text = b",".join(form % i for i in range(150_000) for form in (pair, other))
    (root / SHARD).write_bytes(shard(b"{" + text + b"}"))


@case(CASES)
def one_set_of_experts(root: Path) -> None:
    form = b'"m.experts.%d.gate_proj.weight":{"dtype":"U8","shape":[0,16],"data_offsets":[0,0]}'
    scale = b'"m.experts.%d.gate_proj.weight_scale":{"dtype":"F8_E4M3","shape":[0,2],"data_offsets":[0,0]}'
    number = b'"m.experts.%d.gate_proj.weight_scale_2":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b",".join(one % i for i in range(100_000) for one in (form, scale, number))
    (root / SHARD).write_bytes(shard(b"{" + text + b"}"))


@case(CASES)
def index_of_items(root: Path) -> None:
    healthy(root)
    (root / INDEX).write_bytes(b'{"weight_map":{' + b",".join(b'"%d":"a"' % i for i in range(780_000)) + b"}}")


@case(CASES)
def index_of_files(root: Path) -> None:
    healthy(root)
    (root / INDEX).write_bytes(b'{"weight_map":{' + b",".join(b'"%d":"%d"' % (i, i) for i in range(780_000)) + b"}}")


@case(CASES)
def index_of_one_wide_string(root: Path) -> None:
    healthy(root)
    (root / INDEX).write_bytes('{"weight_map":{"😀'.encode() + b"x" * 99_000_000 + b'":"a"}}')


@case(CASES)
def config_of_brackets(root: Path) -> None:
    healthy(root)
    (root / "config.json").write_bytes(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}")
