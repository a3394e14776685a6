"""Draws the tables and the first lines of docs/performance.md from `results/*.json`."""

from __future__ import annotations

import json
from typing import Any

from dia.benchmark.ledger import update_section

from ..common import HERE, RESULTS

PAGE = HERE.parent / "docs" / "performance.md"
# what the page says first: benchmark, ratio, words
HEADLINES = (
    ("train_step", "paper encoder, 28 px: whole / bare", "training step of the paper's encoder: {:.2f} of "
     "the rate of its bare forward and backward"),
    ("train_step", "cpu preset, 64 px grey: whole / bare", "step of the `cpu` preset: {:.2f} of that"),
    ("train_step", "cpu preset, 64 px grey: reference / whole", "{:.0f} times faster than the official order "
     "of work with the same encoder, batch and size"),
    ("fit", "reference, as many steps as dia / dia", "a whole `dia` fit: {:.0f} times faster than as many "
     "steps of the reference (whose time is extrapolated)"),
    ("score", "dia: memory / bare", "scoring with `dia` from memory: {:.2f} of the bare encoder's rate"),
    ("score", "dia: files / limit", "from PNG files: {:.2f} of the smaller of decoder's and encoder's rate"),
    ("dissolve", "cpu preset, 64 px: dissolve / bare", "dissolving: {:.2f} of the bare U-Net's rate"),
    ("scale", "peak memory, longest / shortest stream", "peak memory of scoring a million images: {:.2f} of "
     "that of ten thousand"),
)  # fmt: skip


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
    where = made["environment"]
    lines.append(f"\n*{where['device']}, {made['threads']} threads, commit {where['commit']}*")
    return "\n".join(lines)


def main() -> None:
    """Writes every table that the page has a place for."""
    text = PAGE.read_text()
    for path in sorted(RESULTS.glob("*.json")):
        if f"<!-- {path.stem}:begin -->" in text:
            update_section(PAGE, path.stem, table(json.loads(path.read_text())))
            print(path.stem)
    found = {name: RESULTS / f"{name}.json" for name, _, _ in HEADLINES}
    ratios = {name: json.loads(p.read_text())["ratios"] for name, p in found.items() if p.exists()}
    lines = [f"- {words.format(ratios[b][key])}" for b, key, words in HEADLINES if key in ratios.get(b, {})]
    update_section(PAGE, "SPEED", "\n".join(lines))


if __name__ == "__main__":
    main()
