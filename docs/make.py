"""Writes docs/rules.md and docs/formats.md from the code that they describe.

python docs/make.py            write them
python docs/make.py --check    exit 1 when they are out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from auditor.formats.base import Format, all_formats
from auditor.rule import all_rules
from quant.scheme import GlobalScale
from reports import rulebook

HERE = Path(__file__).parent
CONVENTIONS = {
    GlobalScale.NONE: "code × scale",
    GlobalScale.MULTIPLY: "code × scale × global",
    GlobalScale.DIVIDE: "code × scale ÷ global",
}


def rules() -> str:
    """Every rule's page, after a table of all of them."""
    lines = ["# Rules", "", "Written by `docs/make.py` from the rules themselves; `audit explain CODE` prints one.", ""]
    lines += ["| code | severity | from depth | defect |", "|---|---|---|---|"]
    for rule in all_rules():
        title = rule.title[0].upper() + rule.title[1:]
        link = f"[{rule.code}](#{rule.code.lower()})"
        lines.append(f"| {link} | {rule.severity.label} | {rule.needs.label} | {title} |")
    for rule in all_rules():
        body = rulebook.page(rule.code).partition("\n")[2].replace("\n## ", "\n### ").strip()
        lines += ["", f'<a id="{rule.code.lower()}"></a>', "", f"## {rule.code}: {rule.title}", "", body]
    return "\n".join(lines) + "\n"


def formats() -> str:
    """Every layout: where its docstring stands, what its tensors are called."""
    lines = [
        "# Layouts",
        "",
        "Written by `docs/make.py` from `auditor/formats`.  A layout is recognised from tensors alone:",
    ]
    lines += ["names, dtypes and shapes.  What the configuration declares is compared afterwards.", ""]
    for fmt in all_formats():
        lines += [f"## {fmt.name}", "", *_facts(fmt), "", "| part | name ends in | dtype | |", "|---|---|---|---|"]
        for role, part in fmt.parts.items():
            name = f"*stem*`{part.suffix}`" if fmt.stemmed else f"`.{part.suffix}`"
            need = "required" if part.required else "optional"
            lines.append(f"| {role.value} | {name} | {', '.join(sorted(part.dtypes))} | {need} |")
        lines.append("")
    return "\n".join(lines)


def _facts(fmt: Format) -> list[str]:
    if fmt.unaudited:
        return [fmt.unaudited[0].upper() + fmt.unaudited[1:] + "."]
    rows, columns = fmt.block
    block = "tensor" if fmt.block == (0, 0) else f"{rows or 'column of'} × {columns or 'row'}"
    element, scale = fmt.element.name if fmt.element else "integer", fmt.scale.name if fmt.scale else "float"
    facts = [f"- codes {element}, scales {scale}, one per {block}", f"- value = {CONVENTIONS[fmt.global_scale]}"]
    if fmt.axis == -2:
        facts.append("- nibbles pair and blocks run along axis -2")
    if fmt.names:
        names = (f"`{name}` under `{method}`" for method, name in sorted(fmt.names.items()))
        facts.append("- called " + ", ".join(names))
    return facts


def main() -> int:
    """Write the files, or compare them."""
    made = {"rules.md": rules(), "formats.md": formats()}
    stale = [name for name, text in made.items() if not _same(HERE / name, text)]
    if "--check" in sys.argv:
        print("\n".join(f"docs/{name} is out of date: run python docs/make.py" for name in stale))
        return int(bool(stale))
    for name in stale:
        (HERE / name).write_text(made[name], encoding="utf-8")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
