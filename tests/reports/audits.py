"""Audits made by hand: one that has everything, one that is clean, and a strategy for hostile ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import strategies as st

from auditor.audit import Audit, Depth, InternalError, LayerRow, TensorRow
from auditor.finding import Finding, Place, Remedy, Safety, Severity, Skipped
from reports.report import Choice, Report

SHARD = "model-00001-of-00002.safetensors"
EXPERT = "model.layers.12.mlp.experts.127.gate_proj"

NAN = Finding(
    code="SCL101",
    title="NaN block scale",
    severity=Severity.ERROR,
    tensor=f"{EXPERT}.weight_scale",
    shard=SHARD,
    message="12 of 4 096 block scales are NaN; the codes under them are lost",
    count=12,
    places=(Place((0, 5), 123456, "0x7F"), Place((3, 1), 123999, "0xFF")),
    fix=Remedy(Safety.GUESS, "zero the codes and the scale"),
    layer=EXPERT,
)
FUSED = Finding(
    code="GLB102",
    title="fused projections disagree on the global scale",
    severity=Severity.ERROR,
    tensor=f"{EXPERT}.weight_scale_2",
    shard=SHARD,
    message="fused set gate_proj/up_proj: gate_proj 2.81248e-05, up_proj 7.9678e-05; ratio up to 2.833",
    places=(Place((), 96, "0x37EBECCF"),),
    related=("model.layers.12.mlp.experts.127.up_proj.weight_scale_2",),
    fix=Remedy(Safety.BOUNDED, "take the larger scale and rescale the block scales"),
    layer=EXPERT,
)
ZERO = Finding(
    code="ACT101",
    title="unusable activation scale",
    severity=Severity.WARNING,
    tensor="model.layers.3.mlp.experts.1.down_proj.input_scale",
    shard="model-00002-of-00002.safetensors",
    message="input_scale is 0: 1/x is infinite",
    places=(Place((), 4096, "0x00000000"),),
    fix=Remedy(Safety.EXACT, "the peers' largest scale"),
)
LOOK = Finding("CFG110", "odd pattern", Severity.INFO, "config.json", "config.json", "pattern 'lm_hed' matches nothing")

FULL = Audit(
    checkpoint="models/demo-NVFP4",
    depth=Depth.SCALES,
    formats=("modelopt-nvfp4", "modelopt-fp8"),
    shards=(SHARD, "model-00002-of-00002.safetensors"),
    bytes_held=1_015_000_000,
    bytes_read=84_300_000,
    tensor_count=1034,
    checked=520,
    findings=(FUSED, NAN, ZERO, LOOK),
    skipped=(
        Skipped("model.layers.0.mlp.up_proj.qweight", "an integer format (INT4 or INT8) is not audited"),
        Skipped("model.layers.1.mlp.up_proj.qweight", "an integer format (INT4 or INT8) is not audited"),
        Skipped("model-00003-of-00003.safetensors", "permission denied"),
    ),
    errors=(),
    unread=Counter({"not read at depth scales": 512}),
    tensors=(
        TensorRow(f"{EXPERT}.weight", SHARD, "U8", (64, 32), 200_000, 2048, EXPERT, "modelopt-nvfp4", "codes", False),
        TensorRow("model.norm.weight", SHARD, "BF16", (64,), 300_000, 128, "", "", "", False),
    ),
    layers=(
        LayerRow(
            EXPERT, "modelopt-nvfp4", SHARD, f"{EXPERT}.weight", 64, 64, 2.8e-5, float("nan"), 256, 0.5, 448.0, 1, 12,
            3, 0, 9.807,
        ),
        LayerRow(
            "lm_head", "modelopt-fp8", SHARD, "lm_head.weight", 64, 64, None, None, None, None, None, None, None,
            None, None, None,
        ),
    ),
    declared="modelopt NVFP4",
)  # fmt: skip
CLEAN = replace(FULL, findings=(), skipped=(), checked=1034)
FAULTY = replace(FULL, errors=(InternalError("SCL101", EXPERT, "KeyError: 'weight'"),))


def seen(audit: Audit, **choice: object) -> Report:
    """The audit as a report that shows everything, unless ``choice`` says otherwise."""
    return Choice(**choice).report(audit)  # type: ignore[arg-type]


# Text that a file may hold: anything, with the troublemakers of every output format made likely.
TROUBLE = "|`*_[]<>&\"'\\#@:/%,;=+-~!$(){} \n\r\t\x00\x1b\x7f\x85\u202e\u2066\u200b\u2028\ud800"
ATTACKS = ("=cmd|' /C calc'!A0", "::error::x", "[bold red]x[/]", "]]>", "<script>", "\x1b]0;x\x07", "a\\|b", "", " ")
NASTY = st.one_of(st.text(max_size=40), st.text(alphabet="a.0é漢" + TROUBLE, max_size=40), st.sampled_from(ATTACKS))
PLACES = st.builds(
    Place,
    index=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    offset=st.integers(0, 10**13),
    old=st.sampled_from(["0x7F", "0x00000000", ""]),
)
FINDINGS = st.builds(
    Finding,
    code=st.sampled_from(["SCL101", "GLB102", "XYZ999"]),
    title=NASTY,
    severity=st.sampled_from(Severity),
    tensor=NASTY,
    shard=NASTY,
    message=NASTY,
    count=st.integers(1, 10**9),
    places=st.lists(PLACES, max_size=2).map(tuple),
    related=st.lists(NASTY, max_size=2).map(tuple),
    fix=st.none() | st.builds(Remedy, safety=st.sampled_from(Safety), note=NASTY),
    layer=NASTY,
)
AUDITS = st.builds(
    lambda checkpoint, findings, skipped, errors: replace(
        FULL, checkpoint=checkpoint, findings=tuple(findings), skipped=tuple(skipped), errors=tuple(errors)
    ),
    checkpoint=NASTY,
    findings=st.lists(FINDINGS, max_size=4),
    skipped=st.lists(st.builds(Skipped, NASTY, NASTY), max_size=2),
    errors=st.lists(st.builds(InternalError, NASTY, NASTY, NASTY), max_size=1),
)
