"""FMT111."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.audit import Depth
from auditor.context import Context
from auditor.finding import Finding, Severity
from auditor.formats.swapped import MARKERS
from auditor.layer import split
from auditor.rule import CheckpointRule

_ENDINGS = tuple(MARKERS)


class SwappedNibbles(CheckpointRule):
    """The checkpoint is of an image-model tool that packs nibbles the other way round.

    ## What it checks
    Marker tensors such as `comfy_quant` beside a packed weight.

    ## Why it matters
    In these files the high nibble is the even index and block scales are swizzled for the kernel.  Everything
    this tool would compute from such codes, and every repair, would be wrong: they are reported, and refused.

    ## What engines do
    LLM servers do not load them.

    ## Fix
    None.

    ## References
    ComfyUI and BFL NVFP4 files
    """

    code, title, severity, needs = "FMT111", "nibbles of an image-model file", Severity.WARNING, Depth.HEADERS

    def check(self, ctx: Context) -> Iterator[Finding]:
        """One finding per module that is marked."""
        for ref in ctx.checkpoint.tensors.values():
            if not ref.name.endswith(_ENDINGS):
                continue
            module, leaf = split(ref.name)
            if leaf in MARKERS:
                yield self.finding(
                    ref, f"{leaf}: swapped nibbles and swizzled scales; not checked further", layer=module
                )
