"""A journal read backwards: the plan that takes its repair back."""

from __future__ import annotations

from auditor.finding import Safety
from repair.content import Content, Mapped, Reader, Stored
from repair.frame import TEXT
from repair.journal import Journal
from repair.patch import FileState, Patch, Plan, TextPatch


def reversed_plan(journal: Journal, reader: Reader) -> Plan:
    """New bytes become old ones; ``reader`` reads the journal's file.  DamagedJournalError when it is not whole.

    The bytes stay in the journal: a plan of gigabytes needs memory for its addresses only.
    """
    reason = f"takes back entry {journal.number}"
    patches: list[Patch] = []
    texts: list[TextPatch] = []
    files: dict[str, FileState] = {}
    for place, record in journal.placed():
        subject = journal.head.subjects[record.file]
        if record.kind != TEXT and record.old is not None and subject.state is not None:
            length = len(record.old)
            new = Stored(reader, place, length)
            old: Content = Stored(reader, place + length, length) if record.table is None else Mapped(new, record.table)
            files[subject.name] = subject.state
            patches.append(Patch(subject.name, record.offset, old, new, record.tensor, record.rule, reason))
        else:
            texts.append(TextPatch(subject.name, record.new, record.old, record.rule, reason, Safety.EXACT))
    return Plan(tuple(patches), tuple(texts), (), files)
