"""Regular expressions from files, matched in time that grows with the name and not with the malice of the pattern.

Python's `re` backtracks: one pattern from a configuration file could hold a scan for hours.  Here a safe subset
becomes one automaton for all patterns of a list, determinised as names are read and bounded by a budget of steps.
Lookaheads are understood at the very start of a pattern; back-references, lookbehinds, flags and word boundaries
are not, and such a pattern is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from auditor.expression import Node, Parser, RefusedError, lookaheads

MAX_PATTERN = 2_000  # characters
BUDGET = 4_000_000  # steps spent on building the automaton's tables
MAX_NAME = 2_000  # longer names match nothing


class Automaton:
    """Many patterns, each matched from the start of a name as `re.match` does, all in one walk.

    ``refused``: pattern index -> why it is never matched.  With ``boundary`` a match counts only where it ends at
    a dot or at the end of the name.
    """

    def __init__(self, patterns: Sequence[str], *, boundary: bool = False) -> None:
        self.refused: dict[int, str] = {}
        self._boundary = boundary
        self._nodes: list[Node] = []
        self._rules: list[tuple[int, list[tuple[bool, int]]]] = []  # pattern, (wanted, accept tag) conditions
        self._tags: dict[int, int] = {}  # accepting node -> tag
        starts: list[int] = []
        for number, text in enumerate(patterns):
            try:
                starts += self._compile(number, text)
            except (RefusedError, re.error, RecursionError) as error:
                self.refused[number] = str(error) or "not a pattern"
        self._budget = BUDGET
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
        self._rules.append((number, conditions))
        return starts

    def matches(self, name: str) -> Iterator[int]:
        """Indices of the patterns that match, ascending.  Raises RefusedError when the patterns cost too much."""
        if len(name) > MAX_NAME:
            return
        bounded, free = self._walk(name)
        for number, conditions in self._rules:
            *ahead, (_, tag) = conditions
            if tag in bounded and all((other in free) is wanted for wanted, other in ahead):
                yield number

    def _walk(self, name: str) -> tuple[set[int], set[int]]:
        state: int = self._start
        bounded: set[int] = set()
        free: set[int] = set()
        last = len(name)
        for at in range(last + 1):
            anywhere, at_end = self._accepts[state]
            tags = at_end if at == last else anywhere
            if tags:
                free |= tags
                if not self._boundary or at == last or name[at] == "." or (at and name[at - 1] == "."):
                    bounded |= tags
            if at == last or not self._sets[state]:
                break
            following = self._tables[state].get(name[at])
            state = self._step(state, name[at]) if following is None else following
        return bounded, free

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
