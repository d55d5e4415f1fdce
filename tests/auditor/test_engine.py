"""Running rules: executors, progress, faults, single shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from auditor.audit import Depth
from auditor.context import Context
from auditor.engine import _natural, scan
from auditor.finding import Finding, Severity
from auditor.groups import FusedSet
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule, GroupRule, LayerRule, Rule, all_rules
from quant.errors import CheckpointError
from tests.audits import audited, bad
from tests.damages.harness import set_scale
from tests.forge import make
from tests.raw import raw, stored


class BrokenLayerRule(LayerRule):
    """It raises."""

    code, title, severity = "XXX101", "broken", Severity.ERROR

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        if layer.leaf == "o_proj":
            raise ZeroDivisionError("by zero")
        yield self.finding(layer.codes, "seen")


class BrokenGroupRule(GroupRule):
    """It raises after a finding."""

    code, title, severity = "XXX102", "broken", Severity.ERROR

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        yield self.finding(group.members[0].codes, "half a verdict")
        raise MemoryError("too much")


class UnreadableRule(CheckpointRule):
    """It reads outside a tensor, as when a file shrinks."""

    code, title, severity = "XXX103", "unreadable", Severity.ERROR

    def check(self, ctx: Context) -> Iterator[Finding]:
        raise CheckpointError("the file shrank")
        yield


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    model = make("modelopt-nvfp4").copy()
    set_scale(model, "model.layers.1.mlp.down_proj.weight_scale", 3, 0x7F)
    return model.write(tmp_path, 3)


def test_a_rule_that_raises_is_noted_and_the_others_go_on(damaged: Path) -> None:
    audit = scan(damaged, rules=[BrokenLayerRule(), *all_rules()])
    assert [(e.rule, e.error) for e in audit.errors] == [("XXX101", "ZeroDivisionError: by zero")] * 2
    assert {e.where for e in audit.errors} == {f"model.layers.{i}.self_attn.o_proj" for i in range(2)}
    assert sum(f.code == "XXX101" for f in audit.findings) == 12
    assert ("SCL101", "model.layers.1.mlp.down_proj.weight_scale") in bad(audit)


def test_findings_of_a_call_that_raises_are_dropped(damaged: Path) -> None:
    audit = scan(damaged, rules=[BrokenGroupRule()])
    assert not audit.findings
    assert {e.error for e in audit.errors} == {"MemoryError: too much"}


def test_a_file_that_changes_while_it_is_read_is_skipped_not_sound(damaged: Path) -> None:
    audit = scan(damaged, rules=[UnreadableRule()])
    assert not audit.errors
    assert [s.reason for s in audit.skipped] == ["the file shrank"]


@pytest.mark.parametrize("depth", list(Depth), ids=lambda d: d.label)
def test_any_executor_gives_the_same_audit(damaged: Path, depth: Depth) -> None:
    alone = scan(damaged, depth=depth, jobs=1)
    with ThreadPoolExecutor(3) as threads:
        assert scan(damaged, depth=depth, executor=threads).findings == alone.findings
    assert scan(damaged, depth=depth, jobs=4).findings == alone.findings
    assert scan(damaged, depth=depth, jobs=1).bytes_read == alone.bytes_read


def test_units_travel_to_other_processes(damaged: Path) -> None:
    with ProcessPoolExecutor(1) as processes:
        audit = scan(damaged, depth=Depth.FULL, executor=processes)
    assert audit.findings == scan(damaged, depth=Depth.FULL).findings


@pytest.mark.parametrize("depth", [Depth.SCALARS, Depth.SCALES, Depth.FULL], ids=lambda d: d.label)
def test_progress_rises_to_the_total(damaged: Path, depth: Depth) -> None:
    calls: list[tuple[int, int]] = []
    scan(damaged, depth=depth, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1] > 0


def test_full_depth_reads_every_byte_once(tmp_path: Path) -> None:
    audit = scan(make("modelopt-nvfp4").write(tmp_path), depth=Depth.FULL)
    assert all(row.read for row in audit.tensors)
    assert not audit.unread
    assert audit.checked == audit.tensor_count
    assert audit.bytes_read == audit.bytes_held


def test_scale_depth_reads_scales_and_nothing_else(tmp_path: Path) -> None:
    audit = scan(make("modelopt-nvfp4").write(tmp_path))
    scales = [row for row in audit.tensors if "scale" in row.name]
    headers = audit.bytes_held - sum(row.nbytes for row in audit.tensors)
    assert audit.bytes_read <= 1.02 * (headers + sum(row.nbytes for row in scales)) + 512 * len(scales)
    assert {row.name for row in audit.tensors if row.read} == {row.name for row in scales}
    assert sum(audit.unread.values()) == len(audit.tensors) - len(scales)
    assert audit.checked == len(scales)


@pytest.mark.parametrize("depth", list(Depth), ids=lambda d: d.label)
@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "int-gptq", "int-bnb-nf4", "gpt-oss-mxfp4"])
def test_every_tensor_is_checked_or_unread_or_skipped(layout: str, depth: Depth, tmp_path: Path) -> None:
    """Integers, a shard that ends early and a file that is no shard among them."""
    model = make(layout).copy()
    model.tensors["model.step"] = raw("I64", np.zeros(3))
    model.write(tmp_path, 3)
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    gone = len(stored(second))
    os.truncate(first, first.stat().st_size - 40)
    second.write_bytes(b"")
    audit = scan(tmp_path, depth=depth)
    assert audit.tensor_count == len(model.tensors) - gone
    assert audit.checked + sum(audit.unread.values()) + audit.tensors_skipped == audit.tensor_count
    assert 1 <= audit.tensors_skipped < len(audit.skipped)
    assert depth > Depth.HEADERS or audit.checked == 0


def test_bytes_that_rules_ask_for_again_count_once(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4").copy()
    for layer in model.layers:
        model.fill(layer.scales, 0x7F)
    model.write(tmp_path)
    assert audited(tmp_path, Depth.FULL).bytes_read == audited(tmp_path).bytes_held


def test_rules_can_be_chosen(damaged: Path) -> None:
    rules: list[Rule] = [rule for rule in all_rules() if rule.code == "GLB101"]
    assert not scan(damaged, rules=rules).findings
    assert not scan(damaged, rules=[]).findings


def test_findings_come_severest_first_then_by_code_then_in_natural_order(tmp_path: Path) -> None:
    model = make("modelopt-nvfp4-moe").copy()
    for expert in (5, 2, 0):
        set_scale(model, f"model.layers.0.mlp.experts.{expert}.up_proj.weight_scale", 0, 0x7F)
        set_scale(model, f"model.layers.0.mlp.experts.{expert}.up_proj.weight_scale", 1, 0x00)
    found = [(f.severity, f.code, f.tensor) for f in scan(model.write(tmp_path)).findings]
    assert [code for _, code, _ in found] == ["SCL101"] * 3 + ["SCL102"] * 3
    assert [tensor.split(".")[5] for *_, tensor in found] == ["0", "2", "5"] * 2


def test_natural_order() -> None:
    names = ["a.10.b", "a.2.b", "a.b", "a.2.a", "a.99999999999.b", "a.²"]
    assert sorted(names, key=_natural)[:3] == ["a.2.a", "a.2.b", "a.10.b"]


def test_a_shard_alone_is_not_judged_as_a_whole(damaged: Path) -> None:
    for shard in damaged.glob("*.safetensors"):
        audit = scan(shard)
        holds = any(row.name == "model.layers.1.mlp.down_proj.weight_scale" for row in audit.tensors)
        assert bad(audit) <= {("SCL101", "model.layers.1.mlp.down_proj.weight_scale")}
        assert holds or not bad(audit)


def test_there_is_one_rule_for_each_code() -> None:
    codes = [rule.code for rule in all_rules()]
    assert codes == sorted(set(codes))
    assert all(rule.title and rule.page().startswith(rule.page().splitlines()[0]) for rule in all_rules())
