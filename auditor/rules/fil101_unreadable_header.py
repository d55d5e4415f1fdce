"""FIL101."""

from __future__ import annotations

from auditor.filerule import HeaderRule
from auditor.finding import Severity
from auditor.header import Flaw


class UnreadableHeader(HeaderRule):
    """The header of a shard cannot be read.

    ## What it checks
    The first eight bytes are a length of at most 100 000 000 that leaves room for an object; the header is UTF-8;
    it is a JSON object of name -> {dtype, shape, data_offsets}; ``__metadata__`` occurs once and maps strings to
    strings; integers are unsigned 64-bit; nothing but white space follows.

    Stricter than the reference reader: entries written as JSON arrays, shapes of more than 64 axes, names of more
    than 65 536 bytes, more than 400 000 tensors or metadata keys in one file, values nested more than 100 deep
    and more than 1 MiB under unknown keys are refused as well.

    ## Why it matters
    Without the header no tensor of the shard can be found.  The message names the first byte that no header may
    have.

    ## What engines do
    All refuse the file: "Error while deserializing header", most often as the last line of a long traceback that
    does not name the shard.  Readers that go through a plain JSON parser accept some of what the reference reader
    refuses, and then disagree about the tensors.

    ## Fix
    None in place.  Most often the file is a pointer of a large-file store, an error page or a half-written
    download: fetch it again.

    ## References
    https://github.com/huggingface/safetensors#format
    """

    code, title, severity = "FIL101", "unreadable header", Severity.ERROR
    flaw = Flaw.HEADER
