"""How well simple facts of the normals tell which method of the fair table is best on a set left out.

`python -m benchmarks.choice --ledger results/runs.jsonl --data-root ../shared/data` writes
results/choice.json and the table of docs/howto/choose.md. Test labels of the other sets make a rule; those of
the set left out judge it. We knew these sets when we thought of the rules, so the numbers flatter them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from dia.benchmark.grid import benchmark_grid
from dia.benchmark.ledger import Ledger, update_section
from dia.benchmark.results import CONTROL, TRIVIAL, benchmark_results, source_of
from dia.benchmark.runs import current_lines
from dia.core.errors import DataError
from dia.core.yamlfile import read_yaml
from dia.data.datasets import load_training
from dia.data.imageset import ImageSet, subsample
from dia.data.options import ReadOptions
from dia.detectors.presets import MAX_SIZE
from dia.report.benchmark.lines import RunsOf

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/howto/choose.md"
DEFAULT = "dia+"
LOOKED, SIDE, CELL = 200, 16, 4  # normals, side of their small copies, side of a place
COLOURED = 2.0  # grey levels between the channels of a pixel, in the mean over an image
LEAST = 1e-6  # of a share or a distance, so that logarithms are finite

# --- facts of the normals, which need no labels -----------------------------------------------------------


def facts_of(normals: ImageSet) -> dict[str, float]:
    """Measures what is known before any method is fitted.

    Args:
        normals: the training normals.

    Returns:
        The logarithm of their number; 1 for colour and 0 for grey; `alignment`; and `detail`.
    """
    some = subsample(normals.images, LOOKED)
    apart = np.ptp(some.astype(np.int16), axis=3).mean((1, 2))  # few grey scans have coloured marks
    grey = ImageSet(np.ascontiguousarray(some)).with_channels(1)
    small = grey.resized(SIDE, SIDE).images[..., 0].astype(float)
    return {
        "log number": float(np.log10(len(normals))), "colour": float(np.median(apart) > COLOURED),
        "alignment": alignment(small), "detail": detail(grey.images[..., 0].astype(float)),
    }  # fmt: skip


def alignment(small: np.ndarray) -> float:
    """How much nearer the normals are to each other at the same place than at the best other place.

    Args:
        small: `(N, S, S)`, N ≥ 2, S a multiple of `CELL`.

    Returns:
        log(mean distance of a place to the nearest other normal's same place / that to the nearest other
        place of another normal): below 0 where anatomy is framed alike.
    """
    n, side, _ = small.shape
    k = side // CELL
    places = small.reshape(n, k, CELL, k, CELL).swapaxes(2, 3).reshape(n * k * k, CELL * CELL)
    apart = cdist(places, places).reshape(n, k * k, n, k * k)
    apart[np.arange(n), :, np.arange(n), :] = np.inf
    nearest = apart.min(2)  # (N, places, places of others)
    own = np.eye(k * k, dtype=bool)
    same, other = nearest[:, own].mean(), np.where(own, np.inf, nearest).min(2).mean()
    return float(np.log(max(same, LEAST) / max(other, LEAST)))


def detail(grey: np.ndarray) -> float:
    """Returns the logarithm of the share of an image's variance that means of 2 × 2 pixels lose.

    Args:
        grey: `(N, H, W)`.
    """
    n, h, w = (s // d * d for s, d in zip(grey.shape, (1, 2, 2), strict=True))
    whole = grey[:, :h, :w]
    means = whole.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4))
    variance = whole.var((1, 2)).sum()
    lost = 1 - means.var((1, 2)).sum() / variance if variance else 0.0
    return float(np.log10(max(lost, LEAST)))


# --- rules -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """Methods on data sets: `(D, M)` test AUROCs, `(D, F)` facts, and the group of each set."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    aurocs: np.ndarray
    facts: np.ndarray
    groups: tuple[str, ...]

    def rows(self, which: np.ndarray) -> Table:
        """Returns the data sets of a `(D,)` mask."""
        names, groups = (
            tuple(np.array(of, dtype=object)[which].tolist()) for of in (self.datasets, self.groups)
        )
        return replace(
            self, datasets=names, aurocs=self.aurocs[which], facts=self.facts[which], groups=groups
        )


Rule = Callable[[Table, np.ndarray], int]  # of the other sets and the facts of one: a method's index


def best_elsewhere(others: Table, facts: np.ndarray) -> int:
    """The method with the best mean on the other sets."""
    return int(others.aurocs.mean(0).argmax())


def nearest_set(others: Table, facts: np.ndarray) -> int:
    """The best method of the set whose facts are nearest, each in standard deviations over the other sets."""
    spread = others.facts.std(0)
    apart = (others.facts - facts) / np.where(spread > 0, spread, 1)
    return int(others.aurocs[np.linalg.norm(apart, axis=1).argmin()].argmax())


def tree(others: Table, facts: np.ndarray) -> int:
    """The best method by mean on the side of one threshold of one fact; two sets at least on either side.

    The split is that with the best mean AUROC on the other sets; without any, as `best_elsewhere`.
    """
    found = []
    for f in range(others.facts.shape[1]):
        values = np.unique(others.facts[:, f])
        for threshold in (values[:-1] + values[1:]) / 2:
            low = others.facts[:, f] < threshold
            if 2 <= low.sum() <= len(low) - 2:
                sides = [others.aurocs[side].mean(0) for side in (low, ~low)]
                reached = sum(s.max() * n for s, n in zip(sides, (low.sum(), (~low).sum()), strict=True))
                found.append((reached, f, threshold, sides))
    if not found:
        return best_elsewhere(others, facts)
    _, f, threshold, sides = max(found, key=lambda split: split[0])
    return int(sides[0 if facts[f] < threshold else 1].argmax())


RULES: dict[str, Rule] = {
    "the best by mean on the other sets": best_elsewhere,
    "the best of the most similar set": nearest_set,
    "one threshold of one fact": tree,
}


def judged(table: Table, default: np.ndarray) -> dict[str, Any]:
    """Applies every rule to every set, made on the sets of all other groups.

    Args:
        table: of at least two groups.
        default: `(D,)` AUROCs of the default on the same sets.

    Returns:
        By name of a rule: `chosen` by data set, mean `auroc`, mean `regret` against the best of the table on
        each set, and `difference` from the default with its standard deviation over sets, `spread`.
    """
    best = table.aurocs.max(1)
    groups, found = np.array(table.groups), {}
    for name, rule in RULES.items():
        picked = [rule(table.rows(groups != g), facts) for g, facts in zip(groups, table.facts, strict=True)]
        found[name] = _measured(table.aurocs[np.arange(len(best)), picked], best, default) | {
            "chosen": {d: table.methods[i] for d, i in zip(table.datasets, picked, strict=True)}
        }
    of_default, oracle = _measured(default, best, default), _measured(best, best, default)
    return {f"always `{DEFAULT}`": of_default, **found, "the best of each set, by its labels": oracle}


def _measured(own: np.ndarray, best: np.ndarray, default: np.ndarray) -> dict[str, Any]:
    apart = own - default
    return {
        "auroc": float(own.mean()), "regret": float((best - own).mean()),
        "difference": float(apart.mean()), "spread": float(apart.std(ddof=1)),
    }  # fmt: skip


def worth_it(rules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the rules that beat the default by more than the spread over sets."""
    return [name for name in RULES if rules[name]["difference"] > rules[name]["spread"]]


# --- the ledger and the page -------------------------------------------------------------------------------


def aurocs_of(rows: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Selects the lines of a grid.

    Args:
        rows: of a ledger.
        grid: the content of a grid's file; of several kinds of weights the first counts.

    Returns:
        Mean AUROC over its seeds by method, by data set; without other directions, which are no new images.
    """
    settings, sizes = grid.get("settings"), grid.get("sizes")
    asked, _ = benchmark_grid(
        grid["datasets"], grid["methods"], grid["seeds"], grid["preset"],
        weights=(grid.get("weights") or [])[:1], settings=settings, sizes=sizes,
    )  # fmt: skip
    of_preset = current_lines(rows, grid["preset"], changes=settings, sizes=sizes)
    if not (lines := RunsOf(asked).lines(of_preset)):
        return {}
    results = benchmark_results(lines)
    return {r.method: {d: r.cells[d].mean for d in results.once if d in r.cells} for r in results.rows}


def table_of(
    aurocs: Mapping[str, Mapping[str, float]], facts: Mapping[str, Mapping[str, float]]
) -> tuple[Table | None, dict[str, list[str]]]:
    """Makes the largest whole table: sets with half the methods, then the methods that have all these sets.

    Args:
        aurocs: of the candidates, by method, by data set.
        facts: by data set; sets without are left out, as those that the default lacks.

    Returns:
        The table, None with fewer than four sets in three groups or two methods; and what is left out.
    """
    sets = {d: [m for m, own in aurocs.items() if d in own] for d in facts}
    kept = tuple(d for d, has in sets.items() if 2 * len(has) >= max(len(aurocs), 1))
    methods = tuple(m for m, own in aurocs.items() if all(d in own for d in kept))
    out = {
        "data sets": [d for d in facts if d not in kept],
        "candidates": [m for m in aurocs if m not in methods],
    }
    groups = tuple(map(source_of, kept))
    if len(kept) < 4 or len({*groups}) < 3 or len(methods) < 2:
        return None, out
    matrix = np.array([[aurocs[m][d] for m in methods] for d in kept])
    known = np.array([[*facts[d].values()] for d in kept])
    return Table(kept, methods, matrix, known, groups), out


def measure(
    aurocs: Mapping[str, Mapping[str, float]], facts: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Judges the rules for methods, and for the untrained rows apart.

    Args:
        aurocs: by method, by data set.
        facts: by data set.

    Returns:
        What results/choice.json holds of each.
    """
    facts = {d: own for d, own in facts.items() if d in aurocs.get(DEFAULT, {})}
    kinds = {
        "methods": {m: own for m, own in aurocs.items() if not m.startswith((TRIVIAL, CONTROL))},
        "untrained rows": {m: own for m, own in aurocs.items() if m.startswith(TRIVIAL)},
    }
    found: dict[str, Any] = {}
    for kind, own in kinds.items():
        table, left_out = table_of(own, facts)
        found[kind] = {"left out": left_out}
        if table is not None:
            default = np.array([aurocs[DEFAULT][d] for d in table.datasets])
            found[kind] |= {
                "data sets": dict(zip(table.datasets, table.groups, strict=True)),
                "candidates": table.methods,
                "rules": judged(table, default),
            }
    return found


def section(found: Mapping[str, Any]) -> str:
    """Returns the Markdown of the page: a table for methods and one for untrained rows, and what follows."""
    parts = []
    for kind, own in found["kinds"].items():
        if "rules" not in own:
            parts.append(
                f"Rules among {kind} are not measured: too few data sets have at least half of them."
            )
            continue
        sets, rules = own["data sets"], own["rules"]
        groups = len({*sets.values()})
        parts.append(f"{len(own['candidates'])} {kind}, {len(sets)} data sets in {groups} groups:")
        lines = [
            f"| choice | mean AUROC | below the best of each set | minus `{DEFAULT}` ± spread over sets |",
            "|---|--:|--:|--:|",
        ]
        for name, of in rules.items():
            numbers = f"{of['auroc']:.3f} | {of['regret']:.3f} | {of['difference']:+.3f} ± {of['spread']:.3f}"
            lines.append(f"| {name} | {numbers.replace('-', '−')} |")
        parts.append("\n".join(lines))
        parts += [
            f"Incomplete {what}, left out: {', '.join(names)}."
            for what, names in own["left out"].items()
            if names
        ]
        if worth := worth_it(rules):
            parts.append(f"Better than always `{DEFAULT}` by more than the spread: {'; '.join(worth)}.")
        else:
            parts.append(f"None of the rules is better than always `{DEFAULT}` by more than the spread.")
    return "\n\n".join(parts)


def main() -> None:
    """Measures, and draws the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ledger", default=str(ROOT / "results/runs.jsonl"))
    parser.add_argument("--data-root", default=str(ROOT / "../shared/data"))
    parser.add_argument("--grid", default=str(ROOT / "grids/table.yaml"))
    parser.add_argument("--out", default=str(ROOT / "results/choice.json"))
    parser.add_argument("--page", default=str(PAGE), help="a file with the marks CHOICE, or empty for none")
    options = parser.parse_args()
    grid = read_yaml(Path(options.grid))
    aurocs, facts = aurocs_of(Ledger(options.ledger).rows(), grid), {}
    for d in dict.fromkeys(d for own in aurocs.values() for d in own):
        try:
            reading = ReadOptions(max_size=MAX_SIZE[grid["preset"]])
            facts[d] = facts_of(load_training(d, options.data_root, reading))
        except DataError as error:
            print(f"left out: {error}")
    found = {"default": DEFAULT, "facts": facts, "kinds": measure(aurocs, facts)}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    if options.page:
        update_section(options.page, "CHOICE", section(found))
    print(section(found))


if __name__ == "__main__":
    main()
