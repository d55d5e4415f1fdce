"""CFG106."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Remedy, Safety, Severity
from auditor.layer import QuantizedLayer
from auditor.rule import CheckpointRule

_FIRST_GOOD = (0, 14, 0)  # release of 2026-02-25
_LAST_BAD = (0, 13, 0)  # release of 2025-12-16, the only one with the old bias
_CHANGED = 20260109  # day of the change; nightly builds carry theirs
ROOM = 252  # the largest byte to which 2 can be added without reaching 255, which is NaN


class OldExponentBias(CheckpointRule):
    """MXFP4 scales written by a compressed-tensors that counted exponents from 125.

    ## What it checks
    The version that config.json names, when the checkpoint holds `mxfp4-pack-quantized` layers.  Release 0.13.0
    (16 December 2025) and the nightly builds from its first MXFP4 support (October 2025) to 8 January 2026 stored
    `floor(log2(scale)) + 125`; release 0.14.0 (25 February 2026) and nightly builds from 10 January 2026 store
    `+ 127`, as the OCP MX specification says.  Nothing in the tensors tells the two apart.

    ## Why it matters
    The bytes are legal and every weight is read four times too small.

    ## What engines do
    Kernels read 2^(byte - 127).  vLLM carried a workaround (+2 on load) for a few days in January 2026 and
    dropped it; other engines never had one.

    ## Fix
    Add 2 to every scale byte and write the new version, on request (`--include CFG106`).  The version is the only
    evidence, and someone may have mended the bytes without it, so this is a *guess*.  Refused where a byte is above
    252: it was never counted from 125, or it is NaN.

    ## References
    compressed-tensors#538, vllm#31926
    """

    code, title, severity = "CFG106", "exponent bias of 125", Severity.ERROR
    needs = Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """At most one finding, on config.json."""
        declared = ctx.declared
        if declared.method != "compressed-tensors":
            return
        layers = [layer for layer in ctx.layers if layer.format.name == "ct-mxfp4"]
        verdict = is_old(declared.version)
        if not layers or verdict is False:
            return
        if verdict is None:
            if not declared.version:
                return
            message = f"version {declared.version!r} may have counted MXFP4 exponents from 125"
        else:
            message = (
                f"compressed-tensors {declared.version} counted MXFP4 exponents from 125: weights read 4x too small"
            )
        yield self.file_finding(
            declared.file,
            f"{message} ({len(layers)} layers)",
            count=len(layers),
            related=[layer.scales.name for layer in layers],
            fix=Remedy(Safety.GUESS, "add 2 to every scale byte, on request") if _room(layers, ctx) else None,
            severity=Severity.ERROR if verdict else Severity.WARNING,
        )


def _room(layers: Iterable[QuantizedLayer], ctx: Context) -> bool:
    """Whether 2 can be added to every scale byte, as far as they were read."""
    known = (ctx.byte_stats(layer.scales) for layer in layers)
    return all(stats is None or (stats.high <= ROOM and not stats.nan.count) for stats in known)


def is_old(version: str) -> bool | None:
    """Whether this version wrote the old bias; None when the version does not tell."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(.*)", version)
    if not found:
        return None
    release = (int(found[1]), int(found[2]), int(found[3] or 0))
    nightly = re.search(r"(?:a|dev|alpha)[._]?(20\d{6})", found[4])
    if nightly and release <= _FIRST_GOOD:
        day = int(nightly[1])
        return None if day == _CHANGED else day < _CHANGED
    if release >= _FIRST_GOOD:
        return False
    return True if release <= _LAST_BAD else None
