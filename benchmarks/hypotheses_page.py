"""Verdicts, tables and the figure of `hypotheses.py`, from the lines of its ledger alone.

The rule, the same for all: of each claimed pair, the difference in AUROC on the same images is averaged over
seeds, then over sets, as `val` judges. Not above the experiment's `least`: killed. Above, and the 95 %
interval above 0: survived. Otherwise undecided. A hypothesis is killed with any of its pairs, and survives
with all. Knows lines; trains and reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from hypotheses_experiments import Experiment
from matplotlib.figure import Figure

from dia.evaluate.protocol import LESIONS, VAL

SURVIVED, KILLED, UNDECIDED = "survived", "killed", "undecided"
NAMES = {"pneumoniamnist": "Pneumonia", "breastmnist": "Breast", "sarscov2ct": "SARS-CoV-2",
         "kvasirseg_patches": "Kvasir"}  # fmt: skip
INK, COLOURS = "#444444", {SURVIVED: "#1b7837", KILLED: "#b2182b", UNDECIDED: "#777777"}


@dataclass(frozen=True)
class Paired:
    """A difference in AUROC, its standard error, and those of each set."""

    mean: float
    error: float
    by_set: Mapping[str, tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, normal."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


def lines_of(e: Experiment, rows: Iterable[Mapping[str, Any]], by: str) -> list[Mapping[str, Any]]:
    """An experiment's lines of its present revision; of a run made twice the later one."""
    found = [r for r in rows if (r["experiment"], r["revision"], r["by"]) == (e.name, e.revision, by)]
    return list({(r["variant"], r["dataset"], r["seed"]): r for r in found}.values())


def paired(lines: Sequence[Mapping[str, Any]], variant: str, baseline: str) -> Paired | None:
    """The mean over sets of the means over seeds; None without lines.

    A set's variance is that of its images, which all its seeds share (the mean over seeds), plus that of the
    mean over seeds. Sets are independent.
    """
    by_set: dict[str, list[tuple[float, float]]] = {}
    for r in lines:
        if r["variant"] == variant and baseline in r["against"]:
            by_set.setdefault(r["dataset"], []).append(tuple(r["against"][baseline]))
    if not by_set:
        return None
    means = {}
    for name, found in by_set.items():
        values = [d for d, _ in found]
        over_seeds = variance(values) / len(values) if len(values) > 1 else 0.0
        means[name] = fmean(values), (fmean(s**2 for _, s in found) + over_seeds) ** 0.5
    error = sum(s**2 for _, s in means.values()) ** 0.5 / len(means)
    return Paired(fmean(d for d, _ in means.values()), error, means)


def verdict(e: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """By the rule above; undecided where a pair, a set or a seed is missing."""
    lines = lines_of(e, rows, VAL)
    wanted = {(name, seed) for name, by, seed in e.units() if by == VAL}
    found = []
    for variant, baseline in e.claim:
        there = {(r["dataset"], r["seed"]) for r in lines if r["variant"] == variant}
        p = paired(lines, variant, baseline)
        if p is None or not wanted <= there:
            found.append(UNDECIDED)
        elif p.mean <= e.least:
            found.append(KILLED)
        else:
            found.append(SURVIVED if p.interval[0] > 0 else UNDECIDED)
    if KILLED in found:
        return KILLED
    return UNDECIDED if UNDECIDED in found else SURVIVED


def page(experiments: Sequence[Experiment], rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of all experiments that have lines: the overview, then a section each."""
    shown = [e for e in experiments if any(r["experiment"] == e.name for r in rows)]
    out = [
        "| experiment | hypothesis | verdict | difference by val [95 %] | by lesions |",
        "|---|---|---|---|--:|",
    ]
    for e in shown:
        val, lesions = (lines_of(e, rows, by) for by in (VAL, LESIONS))
        pairs = [(paired(val, *pair), paired(lesions, *pair)) for pair in e.claim]
        out.append(
            f"| [{e.name}](#{e.name}) | {e.hypothesis} | **{verdict(e, rows)}** "
            f"| {'<br>'.join(_with_interval(v) for v, _ in pairs)} "
            f"| {'<br>'.join(_signed(p.mean if p else None) for _, p in pairs)} |"
        )
    out += ["", "![Differences in AUROC by experiment and set](figures/hypotheses.png)", ""]
    for e in shown:
        out += ["", *_section(e, rows)]
    return "\n".join(out)


def _section(e: Experiment, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    out = [
        f"### {e.name}", "",
        f"{e.hypothesis} **{verdict(e, rows).capitalize()}.** *Killed by:* {e.kills}.", "",
        "| variant | against | " + " | ".join(f"{NAMES[n]}, {by}" for n, by in _columns(e, rows))
        + " | by val [95 %] | by lesions [95 %] |",
        "|---|---|" + "--:|" * len(_columns(e, rows)) + "---|---|",
    ]  # fmt: skip
    lines = {by: lines_of(e, rows, by) for by in (VAL, LESIONS)}
    against: dict[str, list[str]] = {}
    for variant, baseline in e.pairs:
        against.setdefault(baseline, [])
        against.setdefault(variant, []).append(baseline)
    for variant, baselines in against.items():
        cells = []
        for name, by in _columns(e, rows):
            values = [r["auroc"] for r in lines[by] if (r["variant"], r["dataset"]) == (variant, name)]
            cells.append(_aurocs(values))
        for i, baseline in enumerate(baselines or [""]):
            first = [f"**{variant}**" if (variant, baseline) in e.claim else variant, baseline or "–"]
            ps = [paired(lines[by], variant, baseline) if baseline else None for by in (VAL, LESIONS)]
            shown = cells if i == 0 else [""] * len(cells)
            out.append("| " + " | ".join([*first, *shown, *map(_with_interval, ps)]) + " |")
    own = [r for by in lines for r in lines[by]]
    seeds = {by: len({r["seed"] for r in lines[by]}) for by in lines if lines[by]}
    said = ", ".join(f"{n} seed{'s' * (n > 1)} by {by}" for by, n in seeds.items())
    minutes = sum(r["seconds"] for r in own) / 60
    return [
        *out,
        "",
        f"{said[:1].upper()}{said[1:]}; {minutes:.0f} minutes of one core, with all training it used.",
        *_said(e, own),
        *_before(e, rows),
    ]


def _before(e: Experiment, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What earlier revisions found, whose lines stay."""
    out: list[str] = []
    for revision in range(1, e.revision):
        old = lines_of(replace(e, revision=revision), rows, VAL)
        found = [f"{a} against {b} {_with_interval(paired(old, a, b))}" for a, b in e.claim]
        out += ["", f"{e.why} Revision {revision} by val: {'; '.join(found)}."] * bool(old)
    return out


def _said(e: Experiment, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the lines say beside their numbers: choices, and widths of blurs."""
    out = []
    for by in (VAL, LESIONS):
        chosen: dict[tuple[str, str], list[str]] = {}
        of = [r for r in lines if r["by"] == by]
        for r in of:
            if r["variant"].startswith("chosen"):
                chosen.setdefault((r["variant"], r["dataset"]), []).append(r["said"]["is"])
        out += [f"{v[:1].upper()}{v[1:]} on {NAMES[n]}: {', '.join(c)}." for (v, n), c in chosen.items()]
        told: dict[str, list[float]] = {}
        for r in of:
            if "accuracy" in r["said"]:
                told.setdefault(r["variant"], []).append(r["said"]["accuracy"])
        for v, a in told.items():
            out.append(
                f"Accuracy of the pretext {v} at the end of training, by {by}: {min(a):.2f}–{max(a):.2f}."
            )
        widths = [
            (NAMES[r["dataset"]], r["said"]["sigmas"])
            for r in lines
            if r["by"] == by and "sigmas" in r["said"]
        ]
        if widths:
            listed = "; ".join(f"{n} {', '.join(f'{s:.2g}' for s in sigmas)}" for n, sigmas in widths)
            out.append(f"σ in pixels of the blurs, by {by}: {listed}.")
    return ["", *out] if out else []


def _columns(e: Experiment, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    there = {(r["dataset"], by) for by in (VAL, LESIONS) for r in lines_of(e, rows, by)}
    return [(n, by) for by in (VAL, LESIONS) for n in NAMES if (n, by) in there]


def _aurocs(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{fmean(values):.3f}" + (f" ± {variance(values) ** 0.5:.3f}" if len(values) > 1 else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _with_interval(p: Paired | None) -> str:
    return "–" if p is None else f"{p.mean:+.3f} [{p.interval[0]:+.3f}, {p.interval[1]:+.3f}]"


# --- the figure -------------------------------------------------------------------------------------------


def figure(experiments: Sequence[Experiment], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Differences of the claimed pairs: means with intervals by `val`, and each set's by both judges."""
    pairs = [(e, pair) for e in experiments for pair in e.claim if lines_of(e, rows, VAL)]
    made = Figure(figsize=(9, 0.52 * len(pairs) + 1.7), layout="constrained")
    ax = made.add_subplot()
    marks = dict(zip(NAMES, "osD^", strict=True))
    for y, (e, pair) in enumerate(pairs):
        colour = COLOURS[verdict(e, rows)]
        val, lesions = (paired(lines_of(e, rows, by), *pair) for by in (VAL, LESIONS))
        if val is not None:
            ax.plot(val.interval, (y, y), color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
            ax.plot([val.mean] * 2, (y - 0.3, y + 0.3), color=colour, linewidth=2.5)
        for p, filled, shift in ((val, True, 0.14), (lesions, False, -0.14)):
            for name, (mean, _) in (p.by_set if p else {}).items():
                ax.plot(mean, y - shift, marks[name], color=colour, markersize=6,
                        markerfacecolor=colour if filled else "white")  # fmt: skip
        if e.least:
            ax.plot([e.least] * 2, (y - 0.4, y + 0.4), color=INK, linewidth=1, linestyle=":")
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(pairs)), [f"{e.name}: {a}\nagainst {b}" for e, (a, b) in pairs], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("difference in AUROC (right of 0: as claimed)")
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    for name, mark in marks.items():
        ax.plot([], [], mark, color=INK, label=NAMES[name])
    ax.plot([], [], "o", color=INK, markerfacecolor="white", label="by lesions (filled: val)")
    for word, colour in COLOURS.items():
        ax.plot([], [], color=colour, linewidth=3, label=word)
    ax.plot([], [], color=INK, linestyle=":", label="must be exceeded")
    made.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return made


def draw(made: Figure, path: Path) -> None:
    """Writes it, the same bytes for the same lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=130, metadata={"Software": None})
