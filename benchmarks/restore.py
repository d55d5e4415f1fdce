"""Damaged exports repaired with and without their source: ``python -m benchmarks.restore FOLDER_OF_EXPORTS``.

Prints a table in Markdown: the error against the source of all layers that either repair touches, as it is, after
``--risk guess`` without the source, and after ``--source``.  Nothing is written.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from auditor.audit import Depth
from auditor.context import Context
from auditor.engine import examine
from auditor.finding import Finding, Safety
from quant.errors import RepairError
from quant.metrics import ErrorSums
from repair import build
from repair.fixes.desk import Options
from repair.measure_error import layer_error
from repair.restore_pieces import Reader
from repair.source import Source

PAIRS = {
    "llama_nvfp4_nan_cases": "llama_nvfp4__source",
    "llama_nvfp4_qkv_split": "llama_nvfp4__source",
    "llama_nvfp4_v0440_amax_small_legacycast": "llama_nvfp4__source",
    "llama_nvfp4_v0440_tiny_blocks": "llama_nvfp4_v0440_tiny_blocks__source",
    "llama_nvfp4_zero_weight": "llama_nvfp4_zero_weight__source",
    "llama_nvfp4_static_max_zero_weight": "llama_nvfp4_zero_weight__source",
    "llama_fp8_zero_weight": "llama_nvfp4_zero_weight__source",
    "llmc_llama_nvfp4_nan_weight": "llama_nvfp4__source",
    "qwen3moe_nvfp4_dead_experts": "qwen3moe_nvfp4__source",
    "qwen3moe_nvfp4_zero_expert": "qwen3moe_nvfp4_zero_expert__source",
    "ctconv_qwen3moe_nvfp4_zero_expert": "qwen3moe_nvfp4_zero_expert__source",
}


def error(ctx: Context, names: set[str], source: Source, reader: Reader) -> ErrorSums:
    """The error of all these layers together."""
    layers = [layer for layer in ctx.layers if layer.name in names]
    return sum((layer_error(layer, source, reader) for layer in layers), start=ErrorSums())


def row(export: Path, original: Path) -> str:
    """One line of the table."""
    ctx, audit = examine(str(export), depth=Depth.FULL)
    theirs = build.SourceFixes(original, "auto", ctx)
    guessed = build.build(ctx, audit.findings, Options(Safety.GUESS))
    restored = build.build(ctx, audit.findings, Options(), theirs)
    names = {name for built in (guessed, restored) for repair in built.repairs for name in repair.layers}
    untouched = build.build(ctx, (), Options()).desk
    told = [error(ctx, names, theirs.source, desk) for desk in (untouched, guessed.desk, restored.desk)]
    rules = ", ".join(sorted({f.code for f in audit.findings if _concerns(f, ctx, names)}))
    theirs.close()
    ctx.close()
    return f"| `{export.name}` | {rules} | {len(names)} | " + " | ".join(_say(one) for one in told) + " |"


def _concerns(finding: Finding, ctx: Context, names: set[str]) -> bool:
    known = ctx.recognised.roles.get(finding.tensor)
    return known is not None and known[0].name in names


def _say(sums: ErrorSums) -> str:
    if math.isnan(sums.squared):
        return "NaN"
    if not math.isfinite(sums.sqnr):
        return "exact" if sums.squared == 0 else "lost"
    return f"{sums.sqnr:.2f} dB"


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print("| export | findings | layers | damaged | without source | with source |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, original in PAIRS.items():
        try:
            print(row(root / name, root / original))
        except RepairError as problem:
            print(f"| `{name}` | {problem} | | | | |")
