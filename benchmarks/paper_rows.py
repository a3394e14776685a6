"""Draws the rows of `csi` and `dia` next to the paper's, by data set and direction, in docs/results.md.

Runs of the `cpu` preset are of `results/as-published.jsonl`, those of the paper's own encoder and length of
`results/accelerator.jsonl`; both judge an encoder by every score at some steps. A row's result is the last
step. Beside it stands what choosing on the test set, as the released code does, would have made of the same
runs: the best of the steps judged, and what the best of some thirty would be by the spread of the late ones,
mean + 2.04 standard deviations. Measures nothing.

    python benchmarks/paper_rows.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from encoder_scores import PUBLISHED

from dia.benchmark.ledger import Ledger, update_section
from dia.benchmark.published import OTHER, UNKNOWN, paper_table

ROOT = Path(__file__).parents[1]
LEDGER, LONG = ROOT / "results/as-published.jsonl", ROOT / "results/accelerator.jsonl"
PAGE = ROOT / "docs/results.md"
REQUIRED = ("dataset", "method", "score", "settings_hash")  # text in every line
EPOCHS = 2.04  # standard deviations by which the best of thirty independent values exceeds their mean
SETS = {
    "pneumoniamnist": ("PneumoniaMNIST", "normal lungs"),
    "breastmnist": ("BreastMNIST", "normal and benign"),
    "breastmnist-0": ("BreastMNIST", "malignant"),
    "sarscov2ct": ("SARS-CoV-2 CT", "non-COVID"),
    "sarscov2ct-covid": ("SARS-CoV-2 CT", "COVID"),
}
SHOWN = ("cosine", "norm", "shift", "mahalanobis")


class Row(NamedTuple):
    """Runs of one method on one set in one way; AUROCs by seed, step and score."""

    name: str
    dataset: str
    method: str
    aurocs: Mapping[tuple[int, int, str], float]

    @property
    def steps(self) -> int:
        """The number of steps that were judged."""
        return len({step for _, step, _ in self.aurocs})

    def has(self, score: str) -> bool:
        """Returns whether it was judged by a score."""
        return any(name == score for _, _, name in self.aurocs)

    def late(self, score: str) -> list[float]:
        """Returns the values of all seeds from half of training on."""
        half = max(step for _, step, _ in self.aurocs) / 2
        return [v for (_, step, name), v in self.aurocs.items() if name == score and step >= half]

    def last(self, score: str) -> list[float]:
        """Returns the value of each seed's last step."""
        end: dict[int, int] = defaultdict(int)
        for seed, step, _ in self.aurocs:
            end[seed] = max(end[seed], step)
        return [self.aurocs[seed, step, score] for seed, step in sorted(end.items())]

    def best(self, score: str) -> list[float]:
        """Returns the value of each seed's best step."""
        of: dict[int, list[float]] = defaultdict(list)
        for (seed, _, name), v in self.aurocs.items():
            if name == score:
                of[seed].append(v)
        return [max(v) for _, v in sorted(of.items())]


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def gathered(lines: Iterable[Mapping[str, Any]], name: Any, auroc: str) -> list[Row]:
    """Rows of ledger lines, in the order of `SETS`."""
    of: dict[tuple[str, str, str], dict[tuple[int, int, str], float]] = defaultdict(dict)
    for r in lines:
        of[r["dataset"], r["method"], name(r)][r["seed"], r["step"], r["score"]] = r[auroc]
    order = [*SETS, *sorted({d for d, _, _ in of} - set(SETS))]
    return [
        Row(n, d, m, of[d, m, n]) for d, m, n in sorted(of, key=lambda k: (order.index(k[0]), k[1], k[2]))
    ]


def table(rows: list[Row], first: str) -> str:
    """Markdown."""
    head = ["data set", "normal is", "method", first, "seeds", "last step", "best on test", "mean + 2.04 sd"]
    made = [[*head, "paper", *SHOWN], ["---"] * 4 + ["---:"] * (len(head) - 3 + len(SHOWN))]
    for row in rows:
        title, normal = SETS.get(row.dataset, (row.dataset, "as usual"))
        late = row.late(PUBLISHED) if row.steps > 1 else []
        estimate = f"{fmean(late) + EPOCHS * stdev(late):.3f}" if len(late) > 1 else "–"
        best = spread(row.best(PUBLISHED))[:5] if row.steps > 1 else "–"
        last = row.last(PUBLISHED)
        made.append([
            *(title, normal, row.method, row.name, str(len(last)), spread(last), best, estimate),
            published(row.method, row.dataset),
            *(spread(row.last(s))[:5] if row.has(s) else "–" for s in SHOWN),
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in made)


def published(method: str, dataset: str) -> str:
    """The paper's value, and whether it is of this direction."""
    value, sure = paper_table()[method].printed_for(dataset.removesuffix("-128"))
    return "–" if value is None else f"{value[0]:.3f}{ {OTHER: ' ⇄', UNKNOWN: ' ?'}.get(sure, '') }"


def section() -> str:
    """Returns the text between the marks."""
    rows = Ledger(LEDGER, REQUIRED).rows()
    made = gathered(rows, lambda r: r["code"], "auroc_test")
    text = [
        "`cpu` preset, 180 steps, before and after augmentation, flips and epochs became the paper's:", "",
        table(made, "code"), "",
    ]  # fmt: skip
    long = Ledger(LONG, ("job", "score")).rows()
    if long:
        ends: dict[tuple[Any, ...], int] = defaultdict(int)
        for r in long:
            ends[r["job"], r["key"], r["steps"]] = max(ends[r["job"], r["key"], r["steps"]], r["step"])

        def way(r: Mapping[str, Any]) -> str:
            end = ends[r["job"], r["key"], r["steps"]]
            cut = "" if r["steps"] == r["whole"] else f" (cut from {r['whole']:,d})"
            state = (
                f"{r['steps']:,d} steps{cut}"
                if end == r["steps"]
                else f"unfinished: {end:,d} of {r['steps']:,d}"
            )
            return f"{r['preset']}, {r['input_range']} range, U-Net {r['unet']}, {r['size']} px, {state}"

        text += [
            "The paper's encoder (width 64, LARS, batch 32), all normals, judged as it went:", "",
            table(gathered(long, way, "auroc"), "training"), "",
        ]  # fmt: skip
    text += [
        "*best on test*: of the steps judged, the mean over seeds; *mean + 2.04 sd*: of the published "
        "score's late values (from half of training on), what the best of some thirty epochs is worth. "
        "*paper*: ⇄ most likely of the other direction, ? direction unknown. cosine to mahalanobis: other "
        "scores of the same encoders, last step.",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    update_section(PAGE, "PAPER", section())
