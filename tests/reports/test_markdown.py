from __future__ import annotations

from hypothesis import given, settings
from markdown_it import MarkdownIt

from reports import markdown
from reports.escape import short, visible
from tests.reports.audits import AUDITS, CLEAN, FULL, NAN, seen

EXPECTED = """\
## Audit of `models/demo-NVFP4`

**2 errors, 1 warning, 1 info**

| Severity | Code | Tensor | Finding | Count | Fix |
| --- | --- | --- | --- | ---: | --- |
"""


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of the tables in a Markdown text, as a reader shows them."""
    found: list[list[str]] = []
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    for at, token in enumerate(tokens):
        if token.type == "tr_open":
            found.append([])
        elif token.type == "td_open":
            children = tokens[at + 1].children or []
            found[-1].append(
                "".join(c.content for c in children if c.type != "html_inline").replace("\xa0", " ").strip()
            )
    return [row for row in found if row]


def test_the_report_reads_well():
    text = markdown.render([seen(FULL)])
    assert text.startswith(EXPECTED)
    assert rows(text)[1][2:5] == [NAN.tensor, NAN.message, "12"]
    assert "- Skipped: 2 tensors: an integer format \\(INT4 or INT8\\) is not audited" in text


def test_a_clean_checkpoint_has_no_table():
    assert "|" not in markdown.render([seen(CLEAN)])
    assert "**No findings.**" in markdown.render([seen(CLEAN)])


@settings(max_examples=100)
@given(AUDITS)
def test_every_finding_is_one_row_of_six_cells(audit):
    found = rows(markdown.render([seen(audit)]))
    assert len(found) == len(audit.findings)
    for row, finding in zip(found, audit.findings, strict=True):
        assert len(row) == 6
        assert row[1] == finding.code
        assert row[2] == short(finding.tensor).strip()
        assert row[3] == visible(finding.message).strip()
