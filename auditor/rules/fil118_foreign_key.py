"""FIL118."""

from __future__ import annotations

from auditor.filerule import HeaderRule
from auditor.finding import Severity
from auditor.header import Flaw


class ForeignKey(HeaderRule):
    """A header holds a key that the format does not have.

    ## What it checks
    Entries have dtype, shape and data_offsets and nothing else; ``__metadata__`` is an object, not null.

    ## Why it matters
    It does no harm to the tensors.  It shows that the file was written by something other than the usual library,
    and that stricter readers may refuse it.

    ## What engines do
    The reference reader ignores unknown keys and takes null metadata for none.

    ## Fix
    None needed.

    ## References
    https://github.com/huggingface/safetensors#format
    """

    code, title, severity = "FIL118", "unknown key in a header", Severity.INFO
    flaw = Flaw.FOREIGN
