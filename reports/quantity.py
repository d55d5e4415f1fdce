"""Numbers as people read them."""

from __future__ import annotations

from repair.wording import number, plural

__all__ = ["duration", "number", "plural", "share", "size"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int) -> str:
    """A number of bytes in decimal units, three digits: 999 B, 1.02 kB, 34.5 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{count} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {_UNITS[unit]}"


def share(part: int, whole: int) -> str:
    """A percentage that says 100 % only for all of it, and 0 % only for nothing."""
    if not whole or part >= whole:
        return "100 %"
    percent = 100 * part / whole
    if part and percent < 0.1:
        return "< 0.1 %"
    return f"{min(percent, 99.9):.1f} %"


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where needed: 0:07, 12:30, 1:02:03."""
    whole = max(0, int(seconds + 0.5))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
