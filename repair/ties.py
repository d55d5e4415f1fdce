"""Which patches of a plan belong to one repair: a plan file of which a part was taken away is not carried out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from repair.patch import Patch, Plan

if TYPE_CHECKING:
    from repair.build import Built

_Key = tuple[str, str]  # rule, and layer or tensor


def ties(built: Built, plan: Plan) -> list[int]:
    """A number for each patch of the plan, the same for patches that only make sense together.

    Together are those of one repair: of its rule, in any of its layers; bytes that two repairs write tie these, too.
    """
    roles = built.desk.ctx.recognised.roles
    groups = _Groups()
    for repair in built.repairs:
        groups.join([(repair.rule, name) for name in (repair.tensor, *repair.layers)])

    def keys(patch: Patch) -> Iterator[_Key]:
        known = roles.get(patch.tensor)
        for rule in patch.rule.split("+"):
            yield rule, patch.tensor
            if known:
                yield rule, known[0].name

    for patch in plan.patches:
        groups.join(list(keys(patch)))
    numbers: dict[_Key, int] = {}
    return [numbers.setdefault(groups.first(next(keys(patch))), len(numbers)) for patch in plan.patches]


class _Groups:
    """Keys that were joined, directly or through others."""

    def __init__(self) -> None:
        self._before: dict[_Key, _Key] = {}

    def first(self, key: _Key) -> _Key:
        """The key that stands for its group."""
        before = self._before
        while (above := before.setdefault(key, key)) != key:
            before[key] = key = before[above]  # half as far the next time
        return key

    def join(self, keys: list[_Key]) -> None:
        """Make one group of the groups of these keys."""
        first = self.first(keys[0])
        for key in keys[1:]:
            self._before[self.first(key)] = first
