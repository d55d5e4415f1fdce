"""What config.json and hf_quant_config.json say about the quantisation, parsed apart from the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from auditor.checkpoint import CONFIG, HF_QUANT_CONFIG, Checkpoint
from auditor.declaration import Activation, Algorithm, Family, Group, Problem
from auditor.dialects import located, read
from auditor.draft import Draft, shown
from auditor.jsonfile import Json
from auditor.patterns import Dialect, Matcher, ancestors, dialect_of

_UNAUDITED = (Family.PLAIN, Family.UNKNOWN, Family.INTEGER)


class Pattern(NamedTuple):
    """One entry of an ignore or exclude list, as stored, and where it came from."""

    text: str
    file: str
    key: str

    @property
    def mended(self) -> str:
        """The entry without control characters and the exporter's marker that came with them."""
        return mended(self.text)


@dataclass(frozen=True)
class Declared:
    """The declared quantisation.  ``method``: quant_method in lower case, "" when nothing is declared.

    ``algorithm`` is that of every layer that neither ``layers`` (MIXED_PRECISION's table) nor ``groups`` name.
    ``path`` leads to ``source``, the object in the file that holds the values.  ``exclude_keys``: where this method's
    loaders look for exclusions, the key that all of them read first.
    ``other`` is what the second file says, where both declare something: loaders differ in which they read.
    """

    method: str = ""
    summary: str = ""
    file: str = ""
    path: tuple[str, ...] = ()
    source: Json = field(default_factory=dict, repr=False, compare=False)
    producer: str = ""
    version: str = ""
    algorithm: Algorithm | None = None
    groups: tuple[Group, ...] = ()
    layers: Mapping[str, Algorithm] = field(default_factory=dict)
    mixed: bool = False
    exclude: tuple[Pattern, ...] = ()
    exclude_keys: tuple[str, ...] = ()
    kv_cache: str = ""
    weight_block_size: tuple[int, int] | None = None
    scale_fmt: str = ""
    expert_dtype: str = ""
    experts_only: bool = False
    problems: tuple[Problem, ...] = ()
    other: Declared | None = None

    def algo_for(self, module: str) -> Algorithm | None:
        """The algorithm declared for a module that is quantised; None when nothing is said about it.

        Exclusions are not looked at here: see `exclusion`.
        """
        return self._entry(module)[1]

    def entry_for(self, module: str) -> str | None:
        """The key of the table's entry, or of the group, that names the module; None where neither does."""
        return self._entry(module)[0]

    def activation_for(self, module: str) -> Activation:
        """How the module's inputs are declared to be quantised."""
        algorithm = self.algo_for(module)
        return algorithm.activation if algorithm else Activation.UNKNOWN

    def has_blocks_of_32(self, module: str) -> bool:
        """Whether an NVFP4 layer is declared with one scale per 32 weights, or nothing is known about it."""
        algorithm = self.algo_for(module)
        if algorithm is None or algorithm.family is Family.UNKNOWN:
            return True
        return algorithm.family is Family.NVFP4_32 or algorithm.group_size == 32

    def exclusion(self, module: str) -> Pattern | None:
        """The entry by which every loader takes the module as unquantised, None when there is none."""
        number = self._matcher.strict(module)
        return None if number is None else self.exclude[number]

    def may_be_excluded(self, module: str) -> bool:
        """Whether some loader might take the module as unquantised, or a pattern could not be evaluated."""
        return self._matcher.loose(module)

    def quantises(self, module: str) -> bool:
        """Whether the module is surely declared quantised, in a format that is audited: no list may exclude it."""
        algorithm = self.algo_for(module)
        return algorithm is not None and algorithm.family not in _UNAUDITED and not self.may_be_excluded(module)

    @property
    def together(self) -> tuple[Declared, ...]:
        """The declarations that are changed alike: this one, and the second file's where its method is the same."""
        return (self, self.other) if self.other is not None and self.other.method == self.method else (self,)

    @property
    def exclude_lists(self) -> tuple[str, ...]:
        """The keys of the lists that a further exclusion joins; none where what is there is not a list.

        An empty list stays empty beside a filled one: some loaders would then read it alone.
        """
        lists = [key for key in self.exclude_keys if isinstance(self.source.get(key), list)]
        first = [key for key in self.exclude_keys[:1] if self.source.get(key) is None]
        return tuple([key for key in lists if self.source[key]] or lists or first)

    @property
    def dialect(self) -> Dialect:
        """Whose rules of matching apply to the lists."""
        return dialect_of(self.method)

    @property
    def matcher(self) -> Matcher:
        """The exclusion list, ready to match; entries are mended first, so that one fault is told once."""
        return self._matcher

    @property
    def families(self) -> frozenset[Family]:
        """Every family that is declared for any layer."""
        every = [self.algorithm, *(g.algorithm for g in self.groups), *self.layers.values()]
        return frozenset(algorithm.family for algorithm in every if algorithm is not None)

    @cached_property
    def _entries(self) -> dict[str, tuple[str | None, Algorithm | None]]:
        return {}

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher([pattern.mended for pattern in self.exclude], self.dialect)

    @cached_property
    def _targets(self) -> tuple[list[Group], Matcher]:
        """Groups by number, and one matcher over all their targets but class names."""
        owners: list[Group] = []
        patterns: list[str] = []
        for group in self.groups:
            for target in group.targets:
                if not is_class(target):
                    owners.append(group)
                    patterns.append(target)
        dialect = Dialect.QUARK if self.method in ("quark", "fp8", "deepseek_v4_fp8") else self.dialect
        return owners, Matcher(patterns, dialect)

    @cached_property
    def _layer_matcher(self) -> tuple[list[tuple[str, Algorithm]], Matcher]:
        return list(self.layers.items()), Matcher([mended(name) for name in self.layers], Dialect.MODELOPT)

    def _entry(self, module: str) -> tuple[str | None, Algorithm | None]:
        known = self._entries.get(module)
        if known is None:
            known = self._entries[module] = self._find(module)
        return known

    def _find(self, module: str) -> tuple[str | None, Algorithm | None]:
        if self.layers or self.mixed:
            entries, matcher = self._layer_matcher
            for name in (module, *ancestors(module)):
                number = matcher.strict(name)
                if number is not None:
                    return entries[number]
            return None, None
        owners, targets = self._targets
        number = targets.strict(module)
        if number is not None:
            return owners[number].name, owners[number].algorithm
        for group in self.groups:
            if any(is_class(target) for target in group.targets):
                return group.name, group.algorithm
        if self.experts_only and "experts" not in module:
            return None, None
        return None, self.algorithm


def is_class(target: str) -> bool:
    """Whether a target is the name of a class of modules (Linear, torch.nn.Linear), not of a module."""
    last = target.rpartition(".")[2]
    return last.isidentifier() and last[0].isupper()


def mended(name: str) -> str:
    """A module's name without control characters and the exporter's marker that came with them."""
    head, mark, tail = name.partition(".\0")
    whole = head + "*" if mark and tail.endswith("*") else head
    return "".join(c for c in whole if c.isprintable()).strip()


def read_declared(checkpoint: Checkpoint) -> Declared:
    """The declaration of a checkpoint; never raises on a malformed one.

    config.json comes first, as in transformers, vLLM and SGLang; TensorRT-LLM reads hf_quant_config.json first.
    """
    drafts: list[Draft] = []
    problems: list[Problem] = []
    config = checkpoint.config or {}
    for key, value in located(config):
        if isinstance(value, dict) and value:
            drafts.append(read(CONFIG, key, value))
            break
        if not isinstance(value, dict):
            problems.append(Problem(CONFIG, key, f"is {shown(value)}, not an object"))
    beside = checkpoint.hf_quant_config
    if beside:
        drafts.append(read(HF_QUANT_CONFIG, "", {"quant_method": "modelopt", **_usable(beside)}))
        if not isinstance(beside.get("quantization", {}), dict):
            problems.append(Problem(HF_QUANT_CONFIG, "quantization", "is not an object"))
    if not drafts:
        return Declared(problems=tuple(problems))
    second = _frozen(drafts[1], [], None) if len(drafts) > 1 else None
    return _frozen(drafts[0], problems, second)


def _usable(content: Json) -> Json:
    return {key: value for key, value in content.items() if key != "quant_method" or isinstance(value, str)}


def _frozen(draft: Draft, problems: list[Problem], other: Declared | None) -> Declared:
    return Declared(
        method=draft.method,
        summary=_summary(draft),
        file=draft.file,
        path=draft.path,
        source=draft.source,
        producer=draft.producer,
        version=draft.version,
        algorithm=draft.algorithm,
        groups=tuple(draft.groups),
        layers=dict(draft.layers),
        mixed=draft.mixed,
        exclude=tuple(Pattern(pattern, draft.file, key) for pattern, key in draft.exclude),
        exclude_keys=draft.exclude_keys,
        kv_cache=draft.kv_cache,
        weight_block_size=draft.block,
        scale_fmt=draft.scale_fmt,
        expert_dtype=draft.expert_dtype,
        experts_only=draft.experts_only,
        problems=(*problems, *draft.problems),
        other=other,
    )


def _summary(draft: Draft) -> str:
    """One line for reports: what is declared, by whom, and in which file."""
    names = []
    if draft.mixed:
        names.append(f"mixed precision ({', '.join(sorted({a.name for a in draft.layers.values()})) or 'no layers'})")
    if draft.algorithm:
        names.append(draft.algorithm.name)
    names += sorted({group.algorithm.name for group in draft.groups})
    words = [f"{draft.method or 'unknown method'}: {', '.join(names[:6]) or 'no weights quantised'}"]
    sizes = {a.group_size for a in [draft.algorithm, *(g.algorithm for g in draft.groups)] if a and a.group_size}
    if len(sizes) == 1:
        words.append(f"groups of {sizes.pop()}")
    if draft.block:
        words.append(f"blocks of {draft.block[0]}x{draft.block[1]}")
    if draft.scale_fmt:
        words.append(f"scales {draft.scale_fmt}")
    if draft.kv_cache:
        words.append(f"KV cache {draft.kv_cache}")
    if draft.exclude:
        words.append(f"{len(draft.exclude)} exclusion{'s' if len(draft.exclude) > 1 else ''}")
    made = f"{draft.producer} {draft.version}".strip()
    return ", ".join(words) + (f"; written by {made}" if made else "") + f" ({draft.file})"


__all__ = ["Activation", "Algorithm", "Declared", "Family", "Group", "Pattern", "Problem", "mended", "read_declared"]
