"""Regular expressions from files, matched in time that grows with the name and not with the malice of the pattern.

Python's `re` backtracks: one pattern from a configuration file could hold a scan for hours.  Here a safe subset
becomes one automaton for all patterns of a list, determinised as names are read and bounded by a budget of steps.
Lookaheads are understood at the very start of a pattern; back-references, lookbehinds, flags and word boundaries
are not, and such a pattern is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from auditor.expression import Node, Parser, RefusedError, lookaheads

MAX_PATTERN = 2_000  # characters
BUDGET = 4_000_000  # steps spent on building the automaton's tables
MAX_NAME = 2_000  # longer names match nothing


_KEPT_DEPTH = 24  # names with more dots than any model's are walked from their start


class _Walk(NamedTuple):
    """How far a name was walked, and what was accepted before that place."""

    state: int
    at: int
    bounded: frozenset[int]
    free: frozenset[int]


class Automaton:
    """Many patterns, each matched from the start of a name as `re.match` does, all in one walk.

    ``refused``: pattern index -> why it is never matched.  With ``boundary`` a match counts only where it ends at
    a dot or at the end of the name.
    """

    def __init__(self, patterns: Sequence[str], *, boundary: bool = False) -> None:
        self.refused: dict[int, str] = {}
        self._boundary = boundary
        self._nodes: list[Node] = []
        self._rules: dict[int, tuple[int, tuple[tuple[bool, int], ...]]] = {}  # tag -> pattern, (wanted, tag) ahead
        self._tags: dict[int, int] = {}  # accepting node -> tag
        starts: list[int] = []
        for number, text in enumerate(patterns):
            try:
                starts += self._compile(number, text)
            except (RefusedError, re.error, RecursionError) as error:
                self.refused[number] = str(error) or "not a pattern"
        self._budget = BUDGET
        self._parents: dict[str, _Walk] = {}
        self._tests: dict[str, re.Pattern[str]] = {}
        self._ids: dict[tuple[int, ...], int] = {}
        self._sets: list[tuple[int, ...]] = []
        self._tables: list[dict[str, int]] = []
        self._accepts: list[tuple[frozenset[int], frozenset[int]]] = []  # anywhere, at the end of the name
        self._start = self._state(starts, at_start=True)

    def _compile(self, number: int, text: str) -> list[int]:
        if len(text) > MAX_PATTERN:
            raise RefusedError(f"longer than {MAX_PATTERN} characters")
        size, tags = len(self._nodes), dict(self._tags)
        conditions: list[tuple[bool, int]] = []
        starts = []
        try:
            ahead, rest = lookaheads(text)
            for wanted, part in [*ahead, (True, rest)]:
                parser = Parser(part, self._nodes)
                entry, exits = parser.alternation()
                if parser.at != len(part):
                    raise RefusedError("an unopened group")
                final = parser.add("accept")
                parser.link(exits, final)
                tag = len(self._tags)
                self._tags[final] = tag
                conditions.append((wanted, tag))
                starts.append(entry)
            for node in self._nodes[size:]:
                if node.kind == "char":
                    re.compile(node.test)
        except (RefusedError, re.error, RecursionError):
            del self._nodes[size:]
            self._tags = tags
            raise
        *ahead_tags, (_, last) = conditions
        self._rules[last] = (number, tuple(ahead_tags))
        return starts

    def matches(self, name: str) -> list[int]:
        """Indices of the patterns that match, ascending.  Raises RefusedError when the patterns cost too much."""
        if len(name) > MAX_NAME:
            return []
        bounded, free = self._walk(name)
        found = []
        for tag in bounded:
            number, ahead = self._rules.get(tag, (-1, ()))
            if number >= 0 and all((other in free) is wanted for wanted, other in ahead):
                found.append(number)
        return sorted(found)

    def _walk(self, name: str) -> tuple[frozenset[int], frozenset[int]]:
        """Tags accepted on the way: those that end at a boundary, and all.  Walks of common parents are kept."""
        cut = name.rfind(".") + 1
        walk = _Walk(self._start, 0, frozenset(), frozenset())
        if cut > 0 and name.count(".") <= _KEPT_DEPTH:
            parent = name[:cut]
            known = self._parents.get(parent)
            if known is None:
                above = parent.rfind(".", 0, cut - 1) + 1
                known = self._onward(self._parents.get(parent[:above], walk), parent)
                self._parents[parent] = known
            walk = known
        walk = self._onward(walk, name)
        tags = self._accepts[walk.state][1]
        return walk.bounded | tags, walk.free | tags

    def _onward(self, walk: _Walk, name: str) -> _Walk:
        """The walk continued to just before the end of ``name``, where acceptance depends on what follows."""
        state, start, bounded, free = walk
        tables, accepts, boundary = self._tables, self._accepts, self._boundary
        for at in range(start, len(name)):
            tags = accepts[state][0]
            char = name[at]
            if tags:
                free |= tags
                if not boundary or char == "." or (at and name[at - 1] == "."):
                    bounded |= tags
            following = tables[state].get(char)
            state = self._step(state, char) if following is None else following
        return _Walk(state, len(name), bounded, free)

    def _step(self, state: int, char: str) -> int:
        self._spend(len(self._sets[state]) + 1)
        after: list[int] = []
        for node in self._sets[state]:
            kind, test, to = self._nodes[node]
            if kind == "char":
                pattern = self._tests.get(test)
                if pattern is None:
                    pattern = self._tests[test] = re.compile(test)
                if pattern.match(char):
                    after += to
        following = self._tables[state][char] = self._state(after, at_start=False)
        return following

    def _state(self, nodes: Iterable[int], *, at_start: bool) -> int:
        anywhere = self._closure(nodes, at_start, at_end=False)
        key = tuple(sorted(anywhere))
        known = None if at_start else self._ids.get(key)
        if known is not None:
            return known
        ends = self._closure(anywhere, at_start, at_end=True)
        number = len(self._sets)
        if not at_start:
            self._ids[key] = number
        self._sets.append(key)
        self._tables.append({})
        self._accepts.append(
            (
                frozenset(self._tags[n] for n in anywhere if n in self._tags),
                frozenset(self._tags[n] for n in ends if n in self._tags),
            )
        )
        return number

    def _closure(self, nodes: Iterable[int], at_start: bool, *, at_end: bool) -> set[int]:
        seen: set[int] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            kind, _, to = self._nodes[node]
            if kind == "split" or (kind == "bol" and at_start) or (kind == "eol" and at_end):
                stack += to
        self._spend(len(seen))
        return seen

    def _spend(self, steps: int) -> None:
        self._budget -= steps
        if self._budget < 0:
            raise RefusedError("the patterns together cost too much to match")
