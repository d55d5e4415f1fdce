"""Counts as people read them."""

from __future__ import annotations


def number(count: int) -> str:
    """A count with thin groups: 1 034 000."""
    return f"{count:,}".replace(",", " ")


def plural(count: int, noun: str) -> str:
    """The count and its noun: 1 tensor, 2 tensors."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"
