"""FIL103."""

from __future__ import annotations

from auditor.filerule import HeaderRule
from auditor.finding import Severity
from auditor.header import Flaw


class WrongEntry(HeaderRule):
    """A tensor's entry in the header contradicts itself or its neighbours.

    ## What it checks
    The dtype is one that the format knows; shape times dtype gives a whole number of bytes, fits 64 bits and equals
    the length of data_offsets; the offsets run forwards; sorted by offset, tensors lie end to end without a hole
    or an overlap.

    ## Why it matters
    Such a tensor means different bytes to different readers, or none.  It is not read further, and is listed as
    skipped.

    ## What engines do
    The reference reader refuses the whole file for a single such entry ("invalid offset for tensor",
    "overflow computing buffer size").  Readers of their own trust shape or offsets, whichever they look at first.

    ## Fix
    None in place: which half of the entry is right is not in the file.  Export the shard again.

    ## References
    https://github.com/huggingface/safetensors#format
    """

    code, title, severity = "FIL103", "contradictory header entry", Severity.ERROR
    flaw = Flaw.TENSOR
