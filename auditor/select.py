"""Which rules are on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from auditor.rule import Rule
from quant.errors import UsageError

ALL = "ALL"  # the prefix of every code


def select(rules: Sequence[Rule], on: Iterable[str] = (), off: Iterable[str] = ()) -> tuple[Rule, ...]:
    """The rules that are on, in the order given.

    ``on``, ``off``: code prefixes in any case, or ALL.  The longest prefix that fits a code decides; on a tie
    the rule is off.  Without ``on`` every rule is on that ``off`` does not name.  Raises UsageError for a
    prefix that fits no rule.
    """
    wanted = _prefixes(on, rules) or {""}
    unwanted = _prefixes(off, rules)
    return tuple(r for r in rules if _longest(r.code, wanted) > _longest(r.code, unwanted))


def matches(code: str, prefix: str) -> bool:
    """Whether a code prefix, in any case, or ALL fits the code."""
    return code.startswith(_normal(prefix))


def check(prefixes: Iterable[str], rules: Sequence[Rule]) -> None:
    """Raise UsageError for the first prefix that fits no rule, with the codes that look like it."""
    _prefixes(prefixes, rules)


def _prefixes(words: Iterable[str], rules: Sequence[Rule]) -> set[str]:
    found = set()
    for word in words:
        prefix = _normal(word)
        if not word.strip() or not any(r.code.startswith(prefix) for r in rules):
            raise UsageError(f"no rule starts with {word.strip()!r}{_near(prefix, rules)}")
        found.add(prefix)
    return found


def _normal(word: str) -> str:
    prefix = word.strip().upper()
    return "" if prefix == ALL else prefix


def _longest(code: str, prefixes: set[str]) -> int:
    """Length of the longest prefix that fits, -1 when none does."""
    return max((len(p) for p in prefixes if code.startswith(p)), default=-1)


def _near(prefix: str, rules: Sequence[Rule]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(prefix, [r.code for r in rules], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else "; `audit explain` lists the rules"
