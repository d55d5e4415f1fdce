"""NVFP4 as Quark writes it: modelopt's names, with the activation scale called input_scale_2."""

from __future__ import annotations

from dataclasses import replace

from auditor.formats.base import F32, SCALARISH, Part, Role
from auditor.formats.modelopt_nvfp4 import W4A16

FORMAT = replace(
    W4A16,
    name="quark-nvfp4",
    parts={**W4A16.parts, Role.INPUT: Part("input_scale_2", SCALARISH, usual=F32, scalar=True)},
    absent=frozenset(),
    fits=None,
)
