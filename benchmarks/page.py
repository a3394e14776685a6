"""Draws the tables of docs/performance.md from `results/*.json`, between their marks. Nothing is typed."""

from __future__ import annotations

import json
from typing import Any

from common import HERE, RESULTS

from dia.evaluate.ledger import update_section

PAGE = HERE.parent / "docs" / "performance.md"


def cell(value: Any) -> str:
    """A number to three or four digits, or the text."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def table(made: dict[str, Any]) -> str:
    """Rows and ratios of one benchmark as Markdown."""
    rows = made["rows"]
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(cell(v) for v in row.values()) + " |" for row in rows]
    lines += ["", *(f"- {name}: **{value:.3f}**" for name, value in made["ratios"].items())]
    if "operators" in made:
        for what, found in made["operators"].items():
            shares = ", ".join(f"{o['operator']} {o['share']:.0%}" for o in found)
            lines.append(f"- operators, {what}: {shares}")
    where = made["environment"]
    lines.append(f"\n*{where['device']}, {made['threads']} threads, commit {where['commit']}*")
    return "\n".join(lines)


def main() -> None:
    """Writes every table that has a result."""
    for path in sorted(RESULTS.glob("*.json")):
        update_section(PAGE, path.stem, table(json.loads(path.read_text())))
        print(path.stem)


if __name__ == "__main__":
    main()
