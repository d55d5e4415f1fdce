"""A configuration or an index may hold any JSON value at any key: no rule and no dialect fails on one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from auditor import jsonfile
from auditor.audit import Depth
from auditor.engine import scan
from tests.forge import make
from tests.layouts import LAYOUTS
from tests.raw import raw

VALUES: list[Any] = [
    None, True, -1, 10**30, float("nan"), float("inf"), "re:(", [], [2, 2], [None], [[2], {}], {"x": {"y": []}},
]  # fmt: skip
LAYOUT_OF_DIALECT = [
    "kv-modelopt", "modelopt-mixed", "ct-nvfp4", "ct-fp8-block", "deepseek-v4", "gpt-oss-mxfp4",
    "quark-nvfp4", "int-gptq", "int-bnb-nf4", "modelopt-nvfp4-old",
]  # fmt: skip
Path_ = tuple[str, ...]  # file, and keys from the outermost to the innermost


class Asked(dict[str, Any]):
    """A JSON object that notes which of its keys are asked for."""

    log: ClassVar[set[Path_]] = set()
    at: Path_ = ()

    def _noted(self, key: str) -> Path_:
        here = (*self.at, key)
        self.log.add(here)
        child = super().get(key)
        if isinstance(child, Asked):
            child.at = here
        return here

    def get(self, key: str, default: Any = None) -> Any:
        self._noted(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._noted(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._noted(str(key))
        return super().__contains__(key)

    def items(self) -> Any:
        for key in self:
            self._noted(key)
        return super().items()

    def values(self) -> Any:
        self.items()
        return super().values()


def odd_checkpoint(root: Path, layout: str) -> None:
    """A checkpoint of the layout in two shards, with what makes rules ask the configuration about it."""
    model = make(layout).copy()
    layer = "model.layers.0.self_attn"
    for name in (f"{layer}.k_proj.k_scale", f"{layer}.v_proj.v_scale"):
        model.tensors[name] = raw("F32", np.array([0.1, 0.0]))
    model.config.setdefault("text_config", {"model_type": "x"})
    model.config["tie_word_embeddings"] = True
    model.write(root, 2)


def asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path_]:
    """Every key that a scan asks for or that is there, by file and path."""
    log: ClassVar[set[Path_]] = set()
    monkeypatch.setattr(Asked, "log", log)
    true = jsonfile.load

    def load(path: Path, *limit: int) -> Any:
        content: Any = true(path, *limit)
        content.at = (path.name,)
        content.items()
        return content

    with monkeypatch.context() as patch:
        patch.setattr(jsonfile, "_unique", Asked)
        patch.setattr(jsonfile, "load", load)
        scan(root, depth=Depth.SCALARS, jobs=1)
    tables = (("quantized_layers", 1), ("weight_map", 0))  # of many entries that are all alike
    for table, kept in tables:
        inner = sorted({path[path.index(table) + 1] for path in log if table in path[:-1]})
        log = {path for path in log if table not in path or path[-1] == table or set(path) & set(inner[:kept])}
    return sorted(path for path in log if len(path) > 1)


def replaced(content: Any, keys: Path_, value: Any) -> Any:
    """The content with another value at a path; objects on the way that are not there are made."""
    if not keys:
        return value
    inner = content if isinstance(content, dict) else {}
    return {**inner, keys[0]: replaced(inner.get(keys[0]), keys[1:], value)}


def wrong(root: Path, paths: list[Path_], values: list[Any]) -> Iterator[str]:
    """What a scan failed on, each value alone at each key."""
    for file, *keys in paths:
        true = (root / file).read_text()
        for value in values:
            (root / file).write_text(json.dumps(replaced(json.loads(true), tuple(keys), value)))
            for error in scan(root, depth=Depth.SCALARS, jobs=1).errors:
                yield f"{file}: {'.'.join(keys)} = {value!r}: {error}"
        (root / file).write_text(true)


@pytest.mark.parametrize("layout", LAYOUT_OF_DIALECT)
def test_any_value_at_any_key(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd_checkpoint(tmp_path, layout)
    paths = asked(tmp_path, monkeypatch)
    assert ("config.json", "num_key_value_heads") in paths
    assert ("config.json", "text_config", "num_key_value_heads") in paths
    assert list(wrong(tmp_path, paths, VALUES)) == []


def test_every_dialect_is_tried() -> None:
    def methods(names: Iterable[str]) -> set[str]:
        return {make(name).config.get("quantization_config", {}).get("quant_method", "") for name in names}

    assert methods(LAYOUTS) == methods(LAYOUT_OF_DIALECT)
