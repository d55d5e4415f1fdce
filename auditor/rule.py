"""What a rule is, and the list of all of them.

A rule's class docstring is its page: the first line states the defect, the sections that follow are
``## What it checks``, ``## Why it matters``, ``## What engines do``, ``## Fix`` and ``## References``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from auditor.audit import Depth
from auditor.finding import RELATED_KEPT, Finding, Place, Remedy, Severity

if TYPE_CHECKING:
    from auditor.context import Context
    from auditor.groups import FusedSet
    from auditor.layer import QuantizedLayer
    from auditor.tensorref import TensorRef


class Rule:
    """What all rules share: a code, a title that states the defect, a default severity, a page."""

    code: ClassVar[str]
    title: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[Depth] = Depth.SCALES  # the shallowest depth at which the rule can speak
    whole: ClassVar[bool] = False  # needs the whole checkpoint: silent when a single shard was named

    @classmethod
    def page(cls) -> str:
        """The rule's page in Markdown: its class docstring, dedented."""
        return inspect.cleandoc(cls.__doc__ or "")

    def finding(
        self,
        ref: TensorRef,
        message: str,
        *,
        count: int = 1,
        places: Sequence[Place] = (),
        related: Sequence[str] = (),
        fix: Remedy | None = None,
        severity: Severity | None = None,
        layer: str = "",
    ) -> Finding:
        """A finding of this rule about a stored tensor."""
        return Finding(
            code=self.code,
            title=self.title,
            severity=self.severity if severity is None else severity,
            tensor=ref.name,
            shard=ref.shard,
            message=message,
            count=count,
            places=tuple(places),
            related=tuple(related[:RELATED_KEPT]),
            fix=fix,
            layer=layer,
        )

    def file_finding(
        self,
        file: str,
        message: str,
        *,
        tensor: str | None = None,
        count: int = 1,
        places: Sequence[Place] = (),
        related: Sequence[str] = (),
        fix: Remedy | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of this rule about a file; ``tensor`` names one inside it where that is known."""
        return Finding(
            code=self.code,
            title=self.title,
            severity=self.severity if severity is None else severity,
            tensor=tensor or file,
            shard=file,
            message=message,
            count=count,
            places=tuple(places),
            related=tuple(related[:RELATED_KEPT]),
            fix=fix,
        )


class LayerRule(Rule):
    """A rule about one quantised layer."""

    def applies(self, layer: QuantizedLayer) -> bool:
        """Whether the rule has anything to say about this kind of layer."""
        return True

    def check(self, layer: QuantizedLayer, ctx: Context) -> Iterator[Finding]:
        """The defects of one layer."""
        raise NotImplementedError


class GroupRule(Rule):
    """A rule about layers that a server fuses into one: q/k/v, gate/up and the like."""

    def check(self, group: FusedSet, ctx: Context) -> Iterator[Finding]:
        """The defects of one fused set."""
        raise NotImplementedError


class CheckpointRule(Rule):
    """A rule about the checkpoint as a whole: files, index, configuration, peers."""

    def check(self, ctx: Context) -> Iterator[Finding]:
        """The defects of the checkpoint."""
        raise NotImplementedError


@cache
def all_rules() -> tuple[Rule, ...]:
    """One instance of every rule under ``auditor.rules``, sorted by code."""
    import auditor.rules as package

    found: dict[str, Rule] = {}
    for module in pkgutil.iter_modules(package.__path__):
        namespace = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        for value in namespace.values():
            if isinstance(value, type) and issubclass(value, Rule) and "code" in vars(value):
                if value.code in found and type(found[value.code]) is not value:
                    raise RuntimeError(f"two rules share the code {value.code}")
                found[value.code] = value()
    return tuple(found[code] for code in sorted(found))
