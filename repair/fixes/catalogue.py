"""Which fix mends which finding, and in which order.

Order matters where fixes meet in the same bytes: lost blocks are zeroed before scales are harmonised, or a lost zero
tensor would become the set's amax; activation scales are filled before a set is made equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from auditor.finding import Finding
from repair.fixes import (
    config,
    dead_scale,
    fp8,
    fused_input,
    harmonise,
    index,
    input_scale,
    nan_scale,
    old_bias,
    rewritten,
    zero_tensor,
)
from repair.fixes.desk import Desk
from repair.fixes.proposal import Left, Proposal

Mend = Callable[[Finding, Desk], Iterator[Proposal | Left]]


class Entry(NamedTuple):
    """A rule's fix.  ``asked``: made only when the rule is named with --include."""

    code: str
    mend: Mend
    asked: bool = False


ORDER: tuple[Entry, ...] = (
    Entry("GLB101", zero_tensor.fix),
    Entry("SCL101", nan_scale.fix),
    Entry("SCL104", zero_tensor.saturated),
    Entry("SCL103", dead_scale.minus_zero),
    Entry("SCL102", dead_scale.zero_scale),
    Entry("SCL106", dead_scale.nan_e8m0),
    Entry("SCL107", dead_scale.smallest_e8m0, asked=True),
    Entry("SCL109", dead_scale.lost_block),
    Entry("WGT102", fp8.zero_weight),
    Entry("SCL108", fp8.zero_weight),
    Entry("WGT101", fp8.overflowed),
    Entry("CFG106", old_bias.fix, asked=True),
    Entry("GLB102", harmonise.fix),
    Entry("ACT101", input_scale.fix),
    Entry("ACT105", input_scale.fix),
    Entry("ACT104", input_scale.fix, asked=True),
    Entry("ACT106", fused_input.pre_quant),
    Entry("ACT102", fused_input.fix),
    Entry("KVC101", rewritten.kv_scale, asked=True),
    Entry("FMT108", rewritten.upcast),
    Entry("FMT109", rewritten.one_number),
    Entry("FMT106", rewritten.unswizzled),
    Entry("FMT107", rewritten.transposed),
    Entry("ACT103", rewritten.missing_input),
    Entry("KVC102", rewritten.kv_partner, asked=True),
    Entry("KVC103", rewritten.shared_values),
    Entry("FIL106", index.fix),
    Entry("FIL107", index.fix),
    Entry("FIL108", index.fix),
    Entry("FIL110", index.fix),
    Entry("FIL114", index.fix),
    Entry("CFG108", config.garbled_names),
    Entry("CFG102", config.excluded),
    Entry("CFG103", config.not_excluded),
    Entry("CFG107", config.tied),
    Entry("CFG101", config.no_activations),
)
RANK = {entry.code: number for number, entry in enumerate(ORDER)}
ENTRIES = {entry.code: entry for entry in ORDER}
