"""The learning curves' figure and section, drawn from the ledgers alone. Measures nothing.

A configuration is a method with preset, size and number of steps; its runs differ in data set and seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from common import HERE
from curves_pace import SIZES, table
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dia.detectors import TRIVIAL
from dia.evaluate.benchmark import current_lines
from dia.evaluate.ledger import Ledger, update_section
from dia.evaluate.paper import paper_table

PAGE = HERE.parent / "docs/findings.md"
FIGURE = HERE.parent / "docs/figures/curves.png"
RUNS = HERE.parent / "results/runs.jsonl"
PUBLISHED, FIXED = "csi", "mahalanobis"  # scores: the paper's, and the one fixed for all sets beforehand
LOOKS: dict[str, dict[str, Any]] = {
    "csi": {"label": "published score", "color": "#111111", "linewidth": 2.2},
    "cosine": {"label": "cosine alone", "color": "#0072b2"},
    "norm": {"label": "norm alone", "color": "#56b4e9"},
    "shift": {"label": "shift alone", "color": "#e69f00"},
    "mahalanobis": {"label": "Mahalanobis", "color": "#d55e00", "linewidth": 2.2},
    "mahalanobis, unrotated": {"label": "Mahalanobis, unrotated", "color": "#d55e00", "linestyle": "--"},
    "neighbours": {"label": "nearest neighbours", "color": "#009e73"},
}
COLUMNS = 4  # of the figure
Point = tuple[int, str]  # step and score


class Configuration(NamedTuple):
    """What the runs of a row of the figure have in common."""

    method: str
    preset: str
    size: int
    steps: int

    def __str__(self) -> str:
        return f"{self.method}, {self.preset} at {self.size} px, {self.steps} steps"

    @property
    def rank(self) -> tuple[int, int, str, str]:
        """Its place in tables and figure: methods that trained alike follow each other."""
        return self.size, self.steps, self.preset, self.method


class Run(NamedTuple):
    """One training: what its ledger lines say, by step and score."""

    test: dict[Point, float]
    val: dict[Point, float]  # empty where the set has no labelled validation split
    steps_an_epoch: float
    train_seconds: float  # of all steps

    @property
    def last(self) -> int:
        """Its last step."""
        return max(step for step, _ in self.test)

    @property
    def steps(self) -> list[int]:
        """Of its snapshots, ascending."""
        return sorted({step for step, _ in self.test})


class Selection(NamedTuple):
    """Test AUROCs of one run, by how the snapshot and its score were chosen."""

    published: float  # the last step, the published score
    fixed: float  # the last step, Mahalanobis
    by_epoch: float  # the published score where it is greatest on the test set
    by_both: float  # the greatest there is
    by_val: float | None  # where the greatest on `val` is


def selection(run: Run) -> Selection:
    """What each choice comes to; of equals on `val` the later step counts."""
    by_val = None
    if run.val:
        by_val = run.test[max(run.val, key=lambda p: (run.val[p], p[0]))]
    return Selection(
        run.test[run.last, PUBLISHED],
        run.test[run.last, FIXED],
        max(run.test[step, PUBLISHED] for step in run.steps),
        max(run.test.values()),
        by_val,
    )


Runs = dict[Configuration, dict[str, dict[int, Run]]]  # by configuration, data set, seed


def runs_of(rows: Iterable[Mapping[str, Any]]) -> Runs:
    """The ledger's runs; of one made anew with other data or another revision, the later."""
    lines: dict[tuple[Any, ...], dict[tuple[str, str], dict[Point, Mapping[str, Any]]]] = {}
    for r in rows:
        key = (Configuration(r["method"], r["preset"], r["size"], r["steps"]), r["dataset"], r["seed"])
        made = r["settings_hash"], r["data_sha256"]
        points = lines.get(key, {}).get(made, {})
        lines[key] = {made: points | {(r["step"], r["score"]): r}}
    found: Runs = {}
    for (configuration, dataset, seed), by_identity in sorted(
        lines.items(), key=lambda i: (i[0][0].rank, i[0])
    ):
        (points,) = by_identity.values()
        if configuration.steps not in {step for step, _ in points}:
            continue  # torn by a kill: it will be made again
        last = points[configuration.steps, PUBLISHED]
        run = Run(
            {p: r["auroc_test"] for p, r in points.items()},
            {p: r["auroc_val"] for p, r in points.items() if r["auroc_val"] is not None},
            last["step"] / last["epoch"],
            last["train_seconds"],
        )
        found.setdefault(configuration, {}).setdefault(dataset, {})[seed] = run
    return found


class Beside(NamedTuple):
    """What the benchmark's ledger says of a data set."""

    best: tuple[str, float] | None  # untrained row with the greatest mean test AUROC
    shorter: dict[tuple[str, str], list[float]]  # test AUROC over seeds, by method and preset


def beside(ledger: Path, runs: Runs) -> dict[str, Beside]:
    """By data set, of current lines."""
    rows = [r for r in Ledger(ledger).rows() if "protocol" not in r]
    found = {}
    for dataset in dict.fromkeys(map(_images, _sets(runs))) | dict.fromkeys(_sets(runs)):
        by: dict[tuple[str, str], list[float]] = {}
        for preset in dict.fromkeys(["cpu", *(c.preset for c in runs)]):
            methods = [*TRIVIAL, *(c.method for c in runs)]
            for r in current_lines(rows, preset, datasets=[dataset], methods=methods):
                by.setdefault((r["method"], preset), []).append(r["auroc"])
        means = [(m, fmean(v)) for (m, preset), v in by.items() if m in TRIVIAL and preset == "cpu"]
        found[dataset] = Beside(max(means, key=lambda pair: pair[1], default=None), by)
    for dataset in found:  # at 128 px the benchmark has no rows
        found[dataset] = found[dataset]._replace(best=found[_images(dataset)].best)
    return found


def _images(dataset: str) -> str:
    """The set that holds the same images as this one, at the benchmark's resolution."""
    return dataset.removesuffix("-128")


# --- figure -----------------------------------------------------------------------------------------------


def figure(runs: Runs, others: Mapping[str, Beside]) -> Figure:
    """A panel for each configuration and data set: test AUROC of each score over steps."""
    cells = [(c, dataset, of) for c, by_set in runs.items() for dataset, of in by_set.items()]
    columns = min(len(cells), COLUMNS)
    rows = -(-len(cells) // columns)
    made = Figure(figsize=(max(3.1 * columns, 9) + 0.4, 2.55 * rows + 1.0), layout="constrained")
    panels = made.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in panels.flat[len(cells) :]:
        ax.set_visible(False)
    for ax, (configuration, dataset, of) in zip(panels.flat, cells, strict=False):
        _panel(ax, configuration, dataset, of, others[dataset].best)
    for row in panels:
        row[0].set_ylabel("test AUROC", fontsize=9)
    keys = [Line2D([], [], **look) for look in LOOKS.values()]
    keys.append(Line2D([], [], color="#666666", linestyle=":", label="best untrained row"))
    keys.append(Line2D([], [], color="#aa4499", linestyle="-.", label="the paper's value"))
    made.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return made


def _panel(
    ax: Any, configuration: Configuration, dataset: str, by_seed: Mapping[int, Run], best: Any
) -> None:
    of = list(by_seed.values())
    steps = sorted(set.intersection(*(set(run.steps) for run in of)))
    for score, look in LOOKS.items():
        values = np.array([[run.test[step, score] for step in steps] for run in of])  # (seeds, steps)
        mean = values.mean(0)
        ax.plot(steps, mean, **({"linewidth": 1.3} | look))
        if len(of) > 1:
            sd = values.std(0, ddof=1)
            ax.fill_between(steps, mean - sd, mean + sd, color=look["color"], alpha=0.1, linewidth=0)
    if best:
        ax.axhline(best[1], color="#666666", linestyle=":")
    if paper := _paper(configuration, dataset):
        ax.axhline(paper[0], color="#aa4499", linestyle="-.")
    seeds = f"{len(of)} seed{'s' * (len(of) > 1)}"
    epoch = f"an epoch: {of[0].steps_an_epoch:.0f} steps"
    ax.set_title(f"{dataset}\n{configuration}", fontsize=9)
    ax.text(0.02, 0.02, f"{seeds}, {epoch}", transform=ax.transAxes, fontsize=7, color="#555555")
    ax.set_xlabel("steps", fontsize=8)
    ax.set(xscale="log", xticks=steps, xticklabels=[str(s) for s in steps])
    ax.minorticks_off()
    ax.tick_params(labelsize=7)
    ax.grid(color="#d5d9de", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _sets(runs: Runs) -> list[str]:
    return list(dict.fromkeys(d for by_set in runs.values() for d in by_set))


def _paper(configuration: Configuration, dataset: str) -> tuple[float, float] | None:
    return paper_table()[configuration.method].aurocs.get(_images(dataset))


# --- text -------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds; the value alone of one."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def reached(runs: Runs, others: Mapping[str, Beside]) -> list[str]:
    """Markdown: what each configuration comes to at its last step, and what stands beside it."""
    lines = [
        "| data set | trained | seeds | published score | Mahalanobis | published score, the preset's own "
        "steps | best untrained row | paper |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for configuration, dataset, of in _cells(runs):
        paper, (best, shorter) = _paper(configuration, dataset), others[dataset]
        before = shorter.get((configuration.method, configuration.preset))
        cells = (
            dataset, configuration, len(of), spread([s.published for s in of]),
            spread([s.fixed for s in of]), spread(before) if before else "–",
            f"{best[1]:.3f} ({best[0]})" if best else "–",
            f"{paper[0]:.3f} ± {paper[1]:.2f}" if paper else "–",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def chosen(runs: Runs) -> list[str]:
    """Markdown: what choosing would have come to."""
    lines = [
        "| data set | trained | published score, last step | its best epoch **on test** (gain) "
        "| best epoch and score **on test** (gain over the published score, over Mahalanobis) "
        "| epoch and score chosen on `val` |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for configuration, dataset, of in _cells(runs):
        by_val = [s.by_val for s in of if s.by_val is not None]
        epoch, both, over = map(fmean, _gains(of))
        cells = (
            dataset, configuration, spread([s.published for s in of]),
            f"{spread([s.by_epoch for s in of])} (+{epoch:.3f})",
            f"{spread([s.by_both for s in of])} (+{both:.3f}, +{over:.3f})",
            spread(by_val) if by_val else "–",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _cells(runs: Runs) -> Iterable[tuple[Configuration, str, list[Selection]]]:
    for configuration, by_set in runs.items():
        for dataset, by_seed in by_set.items():
            yield configuration, dataset, [selection(run) for run in by_seed.values()]


def _gains(of: Sequence[Selection]) -> tuple[list[float], list[float], list[float]]:
    """Of each run: best epoch − last; best of all − last, published score; the same − Mahalanobis."""
    return (
        [s.by_epoch - s.published for s in of],
        [s.by_both - s.published for s in of],
        [s.by_both - s.fixed for s in of],
    )


def answers(runs: Runs, others: Mapping[str, Beside]) -> list[str]:
    """The questions, with what the runs answer."""
    return [*_compared(runs, others), *_gained(runs), *_growing(runs, others), *_longer(runs)]


def _compared(runs: Runs, others: Mapping[str, Beside]) -> list[str]:
    told, below, even, above, all_ = [], 0, 0, 0, 0
    for configuration, dataset, of in _cells(runs):
        if configuration.method != "dia":
            continue
        now, best = fmean(s.published for s in of), others[dataset].best
        if best:
            all_, above = all_ + 1, above + (now > best[1])
        if paper := _paper(configuration, dataset):
            below += now < paper[0]
            even += fmean(s.by_both for s in of) < paper[0]
            what = f"{dataset}, {configuration.size} px, {configuration.steps} steps"
            told.append(f"{what}: {now:.3f} against {paper[0]:.3f} ({now - paper[0]:+.3f})")
    if not told:
        return []
    return [
        "- **Does DIA, not chosen on the test set, reach its published numbers?** At the last step its "
        f"published score is below the paper's value in {below} of {len(told)} rows that have one: "
        f"{'; '.join(told)}. With epoch and score chosen on the test set it would still be in {even}. As it "
        f"is, it is above the set's best untrained row (the best on the test set) in {above} of {all_} rows."
    ]


def _gained(runs: Runs) -> list[str]:
    all_ = [run for by_set in runs.values() for by_seed in by_set.values() for run in by_seed.values()]
    of = [selection(run) for run in all_]
    epoch, both, over = map(_range, _gains(of))
    most = max(len(run.steps) for run in all_)
    said = [
        f"- **What does choosing on the test set add?** Over all {len(of)} runs, mean (least to greatest): "
        f"the epoch alone {epoch} to the published score; epoch and score together {both} to the published "
        f"score, or {over} to Mahalanobis, which was fixed beforehand. With no more than {most} snapshots a "
        "run these are lower bounds for code that looks after every epoch."
    ]
    pairs = [(s, s.by_val) for s in of if s.by_val is not None]
    if pairs:
        published = _range([v - s.published for s, v in pairs])
        fixed = _range([v - s.fixed for s, v in pairs])
        left = _range([s.by_both - v for s, v in pairs])
        said.append(
            f"- Epoch and score chosen on `val` instead ({len(pairs)} runs have one) change test AUROC by "
            f"{published} against the published score at the last step, and by {fixed} against Mahalanobis "
            f"there. The test set's own choice is {left} above that."
        )
    return said


def _growing(runs: Runs, others: Mapping[str, Beside]) -> list[str]:
    all_ = [run for by_set in runs.values() for by_seed in by_set.values() for run in by_seed.values()]
    told = [
        f"{look['label']} {_range([r.test[r.last, score] - r.test[r.steps[-2], score] for r in all_])}"
        for score, look in LOOKS.items()
    ]
    best = [max(run.steps, key=lambda step: run.test[step, PUBLISHED]) < run.last for run in all_]
    beyond = [
        fmean(s.published for s in of) - fmean(before)
        for c, dataset, of in _cells(runs)
        if (before := others[dataset].shorter.get((c.method, c.preset)))
    ]
    against = "" if not beyond else (
        " Against the benchmark's runs, of the preset's own steps, the published score changed by "
        f"{_range(beyond)} over the rows below."
    )  # fmt: skip
    return [
        f"- **Does more training help?** The last doubling of the steps changed: {'; '.join(told)}. In "
        f"{sum(best)} of {len(best)} runs the published score was greatest before the last step."
        f"{against}"
    ]


def _longer(runs: Runs) -> list[str]:
    """Trainings of other lengths that are otherwise the same, each with its whole cosine."""
    found: dict[tuple[str, str, str, int, int], dict[int, Selection]] = {}
    for c, by_set in runs.items():
        for dataset, by_seed in by_set.items():
            for seed, run in by_seed.items():
                found.setdefault((dataset, c.method, c.preset, c.size, seed), {})[c.steps] = selection(run)
    told = []
    for (dataset, method, _, size, seed), by_steps in sorted(found.items()):
        if len(by_steps) > 1:
            values = ", ".join(f"{s.published:.3f} ({steps})" for steps, s in sorted(by_steps.items()))
            gain = by_steps[max(by_steps)].published - by_steps[min(by_steps)].published
            told.append((f"{dataset}, {method}, {size} px, seed {seed}: {values}", gain))
    if not told:
        return []
    return [
        "- **And several times as many?** The published score at the end (after so many steps): "
        f"{'; '.join(line for line, _ in told)}. From the shortest to the longest it changed by "
        f"{_range([gain for _, gain in told])}."
    ]


def _range(values: Sequence[float]) -> str:
    """Mean, least and greatest, with their signs."""
    return f"{fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def not_done(runs: Runs) -> list[str]:
    """What the other presets would take, and what these runs took."""
    lines = table()
    alike = [by for c, by in runs.items() if c.method == "dia" and c.size == SIZES["cpu"]]
    of = [r for by in alike for s in by.values() for r in s.values()]
    if lines and of:
        epochs, seconds = [r.last / r.steps_an_epoch for r in of], [r.train_seconds / r.last for r in of]
        long = f"{min(epochs):.0f} to {max(epochs):.0f} epochs"
        took = f"{fmean(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) seconds a step"
        lines[-1] += (
            f" The runs of `dia` at {SIZES['cpu']} px above have {long} of their sets and took {took} on one "
            "core of a machine that did other work too."
        )
    return lines


def section(runs: Runs, others: Mapping[str, Beside]) -> str:
    """All between the marks."""
    return "\n".join(
        [
            *answers(runs, others),
            "",
            "![Test AUROC of each score over training steps](figures/curves.png)",
            "",
            "Test AUROC over steps; lines are means over seeds, bands their standard deviation.",
            "",
            *reached(runs, others),
            "",
            "Test AUROC at the last step, mean ± standard deviation over seeds. The preset's own steps and "
            "the untrained rows are of the [benchmark](results.md), whose images are up to 64 px large.",
            "",
            "Chosen on the test set instead, and on `val`:",
            "",
            *chosen(runs),
            "",
            "Gains are means over seeds of best − last.",
            "",
            *not_done(runs),
        ]
    )


def draw(ledger: Path) -> None:
    """Figure and section, of what the ledgers hold."""
    runs = runs_of(Ledger(ledger, ("protocol", "dataset", "method", "score")).rows())
    if not runs:
        raise SystemExit(f"{ledger} holds no whole run: make one without --page")
    others = beside(RUNS, runs)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure(runs, others).savefig(FIGURE, dpi=110, metadata={"Software": None}, facecolor="white")
    update_section(PAGE, "CURVES", section(runs, others))
