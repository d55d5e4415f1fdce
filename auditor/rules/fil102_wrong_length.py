"""FIL102."""

from __future__ import annotations

from auditor.filerule import HeaderRule
from auditor.finding import Severity
from auditor.header import Flaw


class WrongLength(HeaderRule):
    """A shard is shorter or longer than its header says.

    ## What it checks
    The file ends exactly where its last tensor ends: 8 bytes + header + the largest end of data_offsets.

    ## Why it matters
    A shorter file is a download or a copy that stopped: the tensors past its end are gone.  A longer one holds
    bytes that no tensor owns: two writers, a header that was rewritten wrongly, or something hidden.

    ## What engines do
    The reference reader refuses both ("incomplete metadata, file not fully covered").  Readers that map the file
    themselves serve a truncated shard until the first access past its end kills the process.

    ## Fix
    None in place: fetch or export the shard again.  Bytes after the last tensor may be cut off once it is known
    that nothing needs them.

    ## References
    https://github.com/huggingface/safetensors#format
    """

    code, title, severity = "FIL102", "file length contradicts the header", Severity.ERROR
    flaw = Flaw.LENGTH
