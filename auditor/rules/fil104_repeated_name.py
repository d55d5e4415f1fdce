"""FIL104."""

from __future__ import annotations

from auditor.filerule import HeaderRule
from auditor.finding import Severity
from auditor.header import Flaw


class RepeatedName(HeaderRule):
    """A name occurs twice in one header.

    ## What it checks
    Tensor names and metadata keys, after JSON escapes are resolved: "a" and "\\\\u0061" are one name.

    ## Why it matters
    Two entries of one name are two tensors of which one is invisible.  Which one depends on the reader.

    ## What engines do
    The reference reader and Python's JSON parser let the last one win without a word; this tool reads that one too.
    Others keep the first, or refuse.

    ## Fix
    None in place: which of the two was meant is not in the file.  Export the shard again.

    ## References
    https://github.com/huggingface/safetensors#format ("duplicate keys are disallowed")
    """

    code, title, severity = "FIL104", "name occurs twice in a header", Severity.ERROR
    flaw = Flaw.DUPLICATE
