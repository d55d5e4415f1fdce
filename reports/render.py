"""Which module writes which format; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from reports.layout import plain
from reports.report import Report


def content(name: str, reports: Sequence[Report]) -> str | bytes:
    """The reports in a format of `reports.settings.FORMATS`, as text, or bytes for a binary format.

    Tables are neither coloured nor folded.  Raises UsageError when a format's package is missing.
    """
    if name in {"table", "full", "plain"}:
        from reports import text

        lines = {"table": text.table, "full": text.full, "plain": text.names}[name](reports)
        return "".join(plain(line) + "\n" for line in lines)
    if name in {"json", "jsonl"}:
        from reports import jsonfile

        return jsonfile.render(reports) if name == "json" else jsonfile.render_lines(reports)
    if name == "csv":
        from reports import csvfile

        return csvfile.render(reports)
    if name == "parquet":
        from reports import parquet

        return parquet.render(reports)
    if name == "markdown":
        from reports import markdown

        return markdown.render(reports)
    if name == "sarif":
        from reports import sarif

        return sarif.render(reports)
    if name == "github":
        from reports import github

        return github.render(reports)
    if name == "junit":
        from reports import junit

        return junit.render(reports)
    raise ValueError(f"unknown format {name!r}")
