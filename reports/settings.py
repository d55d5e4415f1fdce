"""Settings from `audit.toml`, or from `[tool.audit]` of `pyproject.toml`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from auditor.audit import Depth
from auditor.finding import Finding, Severity
from auditor.select import matches
from quant.errors import UsageError
from reports import belonging

FILES = ("audit.toml", "pyproject.toml")  # looked for in the working directory, the first one found counts
_LOOKED = 16 << 20  # bytes of a pyproject.toml that are looked through for our name
DEPTHS = tuple(d.label for d in Depth)
SEVERITIES = tuple(s.label for s in reversed(Severity))
FAIL_ON = (*SEVERITIES, "never")
FORMATS = ("table", "full", "plain", "json", "jsonl", "csv", "parquet", "markdown", "sarif", "github", "junit")
COLORS = ("auto", "always", "never")

_CHOICES = {
    "depth": DEPTHS,
    "min-severity": SEVERITIES,
    "fail-on": FAIL_ON,
    "format": FORMATS,
    "color": COLORS,
}
_SWITCHES = ("strict", "quiet", "no-progress")
_PATHS = ("output", "baseline")
KEYS = (*_CHOICES, *_SWITCHES, *_PATHS, "select", "ignore", "jobs")


class Excuse(NamedTuple):
    """Findings that are excused: a code prefix, a glob of tensor names, and why."""

    code: str
    tensor: str = "*"
    reason: str = ""

    def covers(self, finding: Finding) -> bool:
        """Whether the finding is one of them; the glob is compared in the same case, to the whole name."""
        return matches(finding.code, self.code) and fnmatchcase(finding.tensor, self.tensor)


class Settings(NamedTuple):
    """What a settings file says; None where it says nothing.  Paths are relative to the file's folder.

    ``source``: the file, "" for none; ``unheeded``: why a file that was found is not obeyed.
    """

    source: str = ""
    unheeded: str = ""
    depth: str | None = None
    min_severity: str | None = None
    fail_on: str | None = None
    format: str | None = None
    color: str | None = None
    strict: bool | None = None
    quiet: bool | None = None
    no_progress: bool | None = None
    output: Path | None = None
    baseline: Path | None = None
    jobs: int | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exceptions: tuple[Excuse, ...] = ()

    def excuses(self, finding: Finding) -> bool:
        """Whether an ignore entry with a tensor covers the finding."""
        return any(e.covers(finding) for e in self.exceptions)


def load(path: Path | None = None, folder: Path = Path(), read: Iterable[str | Path] = ()) -> Settings:
    """The settings in ``path``, or else in the first settings file of ``folder``; empty without one.

    A file that nobody named is not obeyed, nor parsed, where it belongs to a checkpoint, one of ``read`` or another:
    who made the checkpoint has no say in how it is judged.

    Raises UsageError that names file and key when a file named cannot be read, or a key or value is wrong.
    """
    if path is not None:
        table = _table(path)
        if table is None:
            raise UsageError(f"{path} has no table [tool.audit]")
        return parse(table, path)
    for name in FILES:
        found = folder / name
        if not found.is_file() or (name != FILES[0] and not _mentions(found)):
            continue
        if checkpoint := belonging.owner(found, read):
            where = f"{found} lies in a checkpoint ({checkpoint})"
            return Settings(unheeded=f"{where}: not obeyed unless --config names it")
        if (table := _table(found)) is not None:
            return parse(table, found)
    return Settings()


def _mentions(path: Path) -> bool:
    """Whether a pyproject.toml may hold settings of ours; of those that do not, neither size nor place matters."""
    try:
        with path.open("rb") as file:
            return b"audit" in file.read(_LOOKED)
    except OSError:
        return False


def _table(path: Path) -> Mapping[str, object] | None:
    """The file's settings; None when it is a pyproject.toml without any."""
    import tomllib

    from repair.given import content

    try:
        stored: Mapping[str, object] = tomllib.loads(content(path, "settings").decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"settings {path} is not TOML: {error}") from None
    if path.name != "pyproject.toml":
        return stored
    tool = stored.get("tool")
    table = tool.get("audit") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.audit is not a table")
    return table


def parse(table: Mapping[str, object], path: Path) -> Settings:
    """Settings from a parsed table of the file at ``path``; raises UsageError that names the wrong key."""
    values: dict[str, object] = {}
    for key, value in table.items():
        values[key.replace("-", "_")] = _value(key, value, path)
    codes, exceptions = _ignored(table.get("ignore", []), path)
    values |= {"ignore": codes, "exceptions": exceptions}
    return Settings(source=str(path), **values)  # type: ignore[arg-type]  # _value checked each


def _value(key: str, value: object, path: Path) -> object:
    if key not in KEYS:
        from reports.rulebook import near

        raise UsageError(f"{path}: unknown key {key!r}{near(key, list(KEYS))}")
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise _wrong(path, key, value, f"one of {', '.join(_CHOICES[key])}")
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            raise _wrong(path, key, value, "true or false")
    elif key in _PATHS:
        if not isinstance(value, str) or not value:
            raise _wrong(path, key, value, "a file name")
        return path.parent / value
    elif key == "jobs":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(path, key, value, "a number from 1 on")
    elif key == "select":
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise _wrong(path, key, value, "a list of code prefixes")
        return tuple(value)
    return value


def _ignored(entries: object, path: Path) -> tuple[tuple[str, ...], tuple[Excuse, ...]]:
    """Plain code prefixes, and the entries that name a tensor."""
    if not isinstance(entries, list):
        raise _wrong(path, "ignore", entries, "a list of code prefixes and tables")
    codes, exceptions = [], []
    for entry in entries:
        if isinstance(entry, str):
            codes.append(entry)
            continue
        excuse = _exception(entry, path)
        if excuse.tensor == "*":
            codes.append(excuse.code)
        else:
            exceptions.append(excuse)
    return tuple(codes), tuple(exceptions)


def _exception(entry: object, path: Path) -> Excuse:
    if not isinstance(entry, dict):
        raise _wrong(path, "ignore", entry, "a list of code prefixes and tables")
    for key, value in entry.items():
        if key not in {"code", "tensor", "reason"}:
            raise UsageError(f"{path}: unknown key {key!r} in an ignore entry, which has code, tensor and reason")
        if not isinstance(value, str):
            raise _wrong(path, f"ignore.{key}", value, "text")
    if not entry.get("code"):
        raise UsageError(f"{path}: an ignore entry lacks its code")
    return Excuse(**entry)


def _wrong(path: Path, key: str, value: object, wanted: str) -> UsageError:
    return UsageError(f"{path}: {key} = {str(value)[:80]!r} is not {wanted}")
