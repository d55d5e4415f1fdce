"""One regular expression from a file, parsed into states; a safe subset of what Python's `re` accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MAX_NODES = 20_000  # states of all patterns of one automaton together
MAX_REPEAT = 64  # the largest bound in {m,n}


class RefusedError(ValueError):
    """A pattern lies outside the subset that is matched here, or costs too much."""


class Node(NamedTuple):
    """One state.  ``kind``: char (``test`` holds a one-character pattern), split, bol, eol or accept."""

    kind: str
    test: str
    to: tuple[int, ...]


_CLASSES = frozenset("dDwWsS")
_LITERALS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class Parser:
    """Recursive descent over one pattern; every method returns (entry, exits that still point nowhere)."""

    def __init__(self, text: str, nodes: list[Node]) -> None:
        self.text, self.nodes, self.at, self.depth = text, nodes, 0, 0

    def add(self, kind: str, test: str = "", to: tuple[int, ...] = ()) -> int:
        if len(self.nodes) >= MAX_NODES:
            raise RefusedError("too many states")
        self.nodes.append(Node(kind, test, to))
        return len(self.nodes) - 1

    def link(self, exits: Iterable[int], to: int) -> None:
        for node in exits:
            self.nodes[node] = self.nodes[node]._replace(to=(*self.nodes[node].to, to))

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def alternation(self) -> tuple[int, list[int]]:
        self.depth += 1
        if self.depth > 20:
            raise RefusedError("groups nest too deeply")
        branches = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.sequence())
        self.depth -= 1
        if len(branches) == 1:
            return branches[0]
        entry = self.add("split", to=tuple(start for start, _ in branches))
        return entry, [node for _, exits in branches for node in exits]

    def sequence(self) -> tuple[int, list[int]]:
        entry = self.add("split")
        exits = [entry]
        while self.peek() not in ("", "|", ")"):
            start, ends = self.repeated()
            self.link(exits, start)
            exits = ends
        return entry, exits

    def repeated(self) -> tuple[int, list[int]]:
        begin = self.at
        piece = self.atom()
        low, high = self.bounds()
        if (low, high) == (1, 1):
            return piece
        if self.nodes[piece[0]].kind in ("bol", "eol"):
            raise RefusedError("a quantifier on an anchor")
        if self.peek() and self.peek() in "*+?{":
            if self.peek() != "?":
                raise RefusedError("a quantifier on a quantifier")
            self.at += 1  # a lazy quantifier matches the same names
        return self.copies(begin, piece, low, high)

    def copies(self, begin: int, piece: tuple[int, list[int]], low: int, high: int | None) -> tuple[int, list[int]]:
        """The piece ``low`` to ``high`` times (None: without end); copies are parsed again from ``begin``."""
        end = self.at
        entry = self.add("split")
        exits, skipped = [entry], []
        for count in range(max(low, 1 if high is None else high)):
            if count:
                self.at = begin
                piece = self.atom()
            if count >= low:
                gate = self.add("split")
                self.link(exits, gate)
                exits = [gate]
                skipped.append(gate)
            self.link(exits, piece[0])
            exits = piece[1]
        if high is None:
            loop = self.add("split", to=(piece[0],))
            self.link(exits, loop)
            exits = [loop]
        self.at = end
        return entry, [*exits, *skipped]

    def bounds(self) -> tuple[int, int | None]:
        mark = self.peek()
        if mark and mark in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        found = re.compile(r"\{(\d{1,4})(?:(,)(\d{0,4}))?\}").match(self.text, self.at)
        if not found:
            return 1, 1
        self.at = found.end()
        low = int(found[1])
        high = low if not found[2] else int(found[3]) if found[3] else None
        if low > MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT) or high == 0:
            raise RefusedError(f"a repeat outside 0..{MAX_REPEAT}")
        return low, high

    def atom(self) -> tuple[int, list[int]]:
        mark = self.peek()
        self.at += 1
        if mark == "(":
            return self.group()
        if mark == "[":
            return self.char(self.bracket())
        if mark == "\\":
            return self.escape()
        if mark == ".":
            return self.char(".")
        if mark in "^$":
            node = self.add("bol" if mark == "^" else "eol")
            return node, [node]
        if mark in "*+?":
            raise RefusedError("a quantifier without anything to repeat")
        return self.char(re.escape(mark))

    def char(self, test: str) -> tuple[int, list[int]]:
        node = self.add("char", test)
        return node, [node]

    def group(self) -> tuple[int, list[int]]:
        if self.peek() == "?":
            named = re.compile(r"\?(?::|P<\w+>)").match(self.text, self.at)
            if not named:
                raise RefusedError("a lookaround, flag or other group that is not at the start")
            self.at = named.end()
        piece = self.alternation()
        if self.peek() != ")":
            raise RefusedError("an unclosed group")
        self.at += 1
        return piece

    def bracket(self) -> str:
        found = re.compile(r"\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL).match(self.text, self.at)
        if not found:
            raise RefusedError("an unclosed character class")
        self.at = found.end()
        if "[" in found[0] or "--" in found[0] or "&&" in found[0] or "||" in found[0] or "~~" in found[0]:
            raise RefusedError("a nested character class")
        return "[" + found[0]

    def escape(self) -> tuple[int, list[int]]:
        letter = self.peek()
        self.at += 1
        if letter in _CLASSES and letter:
            return self.char("\\" + letter)
        if letter in _LITERALS:
            return self.char(re.escape(_LITERALS[letter]))
        if letter in ("A", "Z"):
            node = self.add("bol" if letter == "A" else "eol")
            return node, [node]
        if not letter or letter.isalnum():
            raise RefusedError(f"the escape \\{letter}")
        return self.char(re.escape(letter))


def lookaheads(text: str) -> tuple[list[tuple[bool, str]], str]:
    """Leading lookaheads as (wanted, inner pattern), and the rest of the pattern."""
    found: list[tuple[bool, str]] = []
    text = text.removeprefix("^") if text.startswith("^(?") else text
    while text.startswith(("(?=", "(?!")):
        depth, at = 0, 0
        while at < len(text):
            if text[at] == "\\":
                at += 1
            elif text[at] == "(":
                depth += 1
            elif text[at] == ")":
                depth -= 1
                if not depth:
                    break
            at += 1
        if depth:
            raise RefusedError("an unclosed group")
        found.append((text[2] == "=", text[3:at]))
        text = text[at + 1 :]
    if found and ("|" in text or any("[" in inner for _, inner in found)):
        raise RefusedError("a lookahead beside alternatives")
    return found, text
