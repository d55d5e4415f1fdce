"""How each family of loaders matches the module names in ignore, exclude and target lists.

The same list means different things to different loaders: modelopt's is read as globs, substrings or prefixes,
compressed-tensors' as exact names and ``re:`` expressions.  So a name is asked about twice.  ``strict``: every loader
takes the module as listed.  ``loose``: at least one loader might.  Rules that blame a file for listing a module ask
strictly, rules that blame it for not listing one ask loosely.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence

from auditor.automaton import MAX_PATTERN, Automaton
from auditor.expression import RefusedError

MAX_GLOBS = 5_000
_SPECIAL = re.compile(r"[*?\[]")
_REGEX = re.compile(r"[*?\[\]()|+^$\\{}]")
# Prefixes by which wrappers (vision-language models, older code) name the same modules.
_WRAPPERS = ("model.", "language_model.", "backbone.", "module.", "thinker.", "text_model.", "transformer.")
# A server's fused module, and the stored ones it is made of; a list may name either.
_FUSED_NAMES = {
    "q_proj": ("qkv_proj",), "k_proj": ("qkv_proj",), "v_proj": ("qkv_proj",),
    "gate_proj": ("gate_up_proj",), "up_proj": ("gate_up_proj",), "w1": ("w13", "gate_up_proj"),
    "w3": ("w13", "gate_up_proj"), "q_a_proj": ("fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"), "in_proj_qkv": ("in_proj_qkvz",),
    "in_proj_z": ("in_proj_qkvz",), "in_proj_b": ("in_proj_ba",), "in_proj_a": ("in_proj_ba",),
}  # fmt: skip


class Dialect(enum.Enum):
    """Whose rules of matching apply."""

    MODELOPT = "modelopt"  # vLLM: exact, substring, glob; SGLang: glob, parts; TensorRT-LLM: glob
    COMPRESSED_TENSORS = "compressed-tensors"  # exact, re: expressions, class names
    QUARK = "quark"  # exact, re: expressions, globs
    TRANSFORMERS = "transformers"  # an expression up to a module boundary, or a suffix; vLLM: exact


def dialect_of(method: str) -> Dialect:
    """The dialect of a quant_method."""
    known = {"modelopt": Dialect.MODELOPT, "compressed-tensors": Dialect.COMPRESSED_TENSORS, "quark": Dialect.QUARK}
    return known.get(method, Dialect.TRANSFORMERS)


def unwrapped(name: str) -> str:
    """The name without the prefixes by which wrappers differ: model.language_model.layers.0 is layers.0."""
    while name.startswith(_WRAPPERS):
        name = name[name.index(".") + 1 :]
    return name


def ancestors(name: str) -> Iterable[str]:
    """The name and every module around it, innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def glob(pattern: str) -> str:
    """A shell pattern, as fnmatch reads it, written as an expression that must reach the end of the name."""
    parts = []
    at = 0
    while at < len(pattern):
        char, at = pattern[at], at + 1
        end = pattern.find("]", at + 1 + pattern.startswith("!", at)) if char == "[" else -1
        if end >= 0:
            inside = pattern[at:end].replace("\\", "\\\\")
            parts.append("[" + ("^" + inside[1:] if inside.startswith("!") else inside.replace("^", "\\^", 1)) + "]")
            at = end + 1
        elif char == "*":
            parts.append("" if parts and parts[-1] == ".*" else ".*")
        else:
            parts.append("." if char == "?" else re.escape(char))
    return "".join(parts) + "$"


class Matcher:
    """One list of patterns.  ``refused``: index -> why that pattern is never matched (it then matches loosely)."""

    def __init__(self, patterns: Sequence[str], dialect: Dialect) -> None:
        self.patterns = tuple(patterns)
        self.dialect = dialect
        self.refused: dict[int, str] = {}
        self._exact: dict[str, int] = {}
        self._bare: dict[str, int] = {}  # without wrappers
        self._plain: list[tuple[int, str]] = []
        expressions: dict[int, str] = {}
        for number, pattern in enumerate(self.patterns):
            self._sort(number, pattern, expressions)
        self._numbers = list(expressions)
        self._automaton = Automaton(list(expressions.values()), boundary=dialect is Dialect.TRANSFORMERS)
        for local, reason in self._automaton.refused.items():
            self.refused[self._numbers[local]] = reason
        self._strict: dict[str, int | None] = {}
        self._outer: dict[str, tuple[int, ...]] = {}

    def _sort(self, number: int, pattern: str, expressions: dict[int, str]) -> None:
        if len(pattern) > MAX_PATTERN:
            self.refused[number] = f"longer than {MAX_PATTERN} characters"
            return
        if pattern.startswith("re:") and self.dialect in (Dialect.COMPRESSED_TENSORS, Dialect.QUARK):
            expressions[number] = pattern.removeprefix("re:")
            return
        self._exact.setdefault(pattern, number)
        if self.dialect is Dialect.TRANSFORMERS and _REGEX.search(pattern):
            expressions[number] = pattern
        elif self.dialect in (Dialect.MODELOPT, Dialect.QUARK) and _SPECIAL.search(pattern):
            self._sort_glob(number, pattern, expressions)
        else:
            self._bare.setdefault(unwrapped(pattern), number)
            self._plain.append((number, pattern))

    def _sort_glob(self, number: int, pattern: str, expressions: dict[int, str]) -> None:
        self._bare.setdefault(unwrapped(pattern.rstrip("*").rstrip(".")), number)
        if len(expressions) >= MAX_GLOBS:
            self.refused[number] = f"one of more than {MAX_GLOBS} wildcards"
        else:
            expressions[number] = glob(pattern)

    def strict(self, name: str) -> int | None:
        """Index of a pattern by which every loader of this dialect takes the module as listed, else None."""
        if name not in self._strict:
            self._strict[name] = min(self._all_strict(name), default=None)
        return self._strict[name]

    def _all_strict(self, name: str) -> Iterable[int]:
        if name in self._exact:
            yield self._exact[name]
        yield from self._expressions(name)
        if self.dialect in (Dialect.MODELOPT, Dialect.TRANSFORMERS):
            yield from self._around(name.rpartition(".")[0])

    def _around(self, parent: str) -> tuple[int, ...]:
        """Entries that are equal to a module around another, innermost first."""
        known = self._outer.get(parent)
        if known is None:
            known = tuple(self._exact[outer] for outer in ancestors(parent) if outer in self._exact)
            self._outer[parent] = known
        return known

    def _expressions(self, name: str) -> list[int]:
        if not self._numbers:
            return []
        try:
            return [self._numbers[local] for local in self._automaton.matches(name)]
        except RefusedError as error:
            for number in self._numbers:
                self.refused.setdefault(number, str(error))
            return []

    def loose(self, name: str) -> bool:
        """Whether some loader might take the module as listed: also by substring, wrapper, parent or fused name."""
        if self.refused or self.strict(name) is not None:
            return True
        parent, _, leaf = name.rpartition(".")
        names = [name, *(f"{parent}.{fused}" for fused in _FUSED_NAMES.get(leaf, ()))]
        for one in names:
            if self.strict(one) is not None:
                return True
            if any(outer in self._bare for outer in ancestors(unwrapped(one))):
                return True
        if self.dialect is Dialect.MODELOPT:
            return any(pattern in name for _, pattern in self._plain if pattern)
        if self.dialect is Dialect.TRANSFORMERS:
            return any(name.endswith(pattern) for _, pattern in self._plain if pattern)
        return False

    def used(self, names: Iterable[str]) -> set[int]:
        """Indices of the patterns that match at least one of these module names, or one around them."""
        every: dict[str, None] = {}
        for name in names:
            while name and name not in every:
                every[name] = None
                name = name.rpartition(".")[0]
        found: set[int] = set()
        wanted = len(set(self.patterns)) - len(self.refused)
        for name in every:
            found.update(self._all_strict(name))
            number = self._bare.get(unwrapped(name))
            if number is not None:
                found.add(number)
            if len(found) >= wanted:
                return found
        rest = [(number, pattern) for number, pattern in self._plain if number not in found and pattern]
        if rest and self.dialect in (Dialect.MODELOPT, Dialect.TRANSFORMERS):
            text = "\n".join(every) + "\n"
            found.update(n for n, p in rest if (p if self.dialect is Dialect.MODELOPT else p + "\n") in text)
        return found
