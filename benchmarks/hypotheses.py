"""Small registered experiments: each a hypothesis, what would kill it, and a run on development data alone.

A line of `results/hypotheses.jsonl` is one variant of one experiment on one set, judged by `val` or by
lesions, with one seed; a line that is there is not made again. Verdicts follow from the lines by a rule fixed
beforehand (`hypotheses_page.py`). No test split is read.

    python benchmarks/hypotheses.py --data ../shared/data

runs what is missing (an hour of one core from nothing) and draws `docs/findings.md` between its marks, and
`docs/figures/hypotheses.png`; --page only draws.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, parser
from hypotheses_experiments import EXPERIMENTS, Experiment
from hypotheses_page import draw, figure, page
from hypotheses_parts import Development
from sklearn.metrics import roc_auc_score

from dia.evaluate.ledger import Ledger, append_line, environment, update_section
from dia.evaluate.protocol import EXPLORE, LESIONS, VAL

LEDGER = HERE.parent / "results/hypotheses.jsonl"
PAGE = HERE.parent / "docs/findings.md"
FIGURE = HERE.parent / "docs/figures/hypotheses.png"
IDENTITY = ("experiment", "revision", "variant", "dataset", "by", "seed")
REQUIRED = ("experiment", "variant", "dataset", "by", "seed", "auroc", "protocol", "data_sha256")


def difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """AUROC of scores a minus that of b on the same images, and its standard error.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988: from how each image fares against the other class.
    """

    def fares(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bad, good = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])

        def below(x: np.ndarray, of: np.ndarray) -> np.ndarray:
            return (np.searchsorted(of, x) + np.searchsorted(of, x, side="right")) / (2 * len(of))

        return below(scores[labels == 1], good), 1 - below(scores[labels == 0], bad)

    (bad_a, good_a), (bad_b, good_b) = fares(a), fares(b)
    bad, good = bad_a - bad_b, good_a - good_b
    error = (bad.var(ddof=1) / len(bad) + good.var(ddof=1) / len(good)) ** 0.5
    return float(bad.mean()), float(error)


def missing(experiment: Experiment, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Units (set, what judges, seed) of which the ledger lacks a variant that is compared."""
    there = {tuple(r[k] for k in IDENTITY) for r in rows}
    wanted = {v for pair in experiment.pairs for v in pair}
    return [
        unit
        for unit in experiment.units()
        if any((experiment.name, experiment.revision, v, *unit) not in there for v in wanted)
    ]


def run(experiment: Experiment, d: Development, seed: int, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of one unit. Seconds count what was trained for a variant, also if that was found."""
    labels, scores, lines = d.judged.labels, {}, []
    assert labels is not None
    began, earlier = time.perf_counter(), d.stages.earlier
    for variant, found, said in experiment.run(d, seed):
        seconds = time.perf_counter() - began + d.stages.earlier - earlier
        scores[variant] = found
        against = {b: difference(labels, found, scores[b]) for v, b in experiment.pairs if v == variant}
        lines.append({
            "experiment": experiment.name, "revision": experiment.revision, "variant": variant,
            "dataset": d.name, "by": d.by, "seed": seed, "auroc": float(roc_auc_score(labels, found)),
            "against": against, "said": said, "seconds": round(seconds, 2), "protocol": EXPLORE,
            "n": len(labels), "data_sha256": d.data_hash, **facts,
        })  # fmt: skip
        began, earlier = time.perf_counter(), d.stages.earlier
    return lines


def explore(
    experiments: Sequence[Experiment],
    data: str,
    work: Path,
    ledger: Path,
    *,
    judges: Sequence[str] = (VAL, LESIONS),
    until: float = math.inf,
) -> None:
    """Runs what the ledger lacks, and appends it unit by unit; starts none after `until` (monotonic)."""
    facts = {k: v for k, v in environment().items() if k in ("commit", "versions")}
    there = Ledger(ledger, REQUIRED)
    for experiment in experiments:
        for name, by, seed in missing(experiment, there.rows()):
            if time.monotonic() > until:
                return
            if by not in judges:
                continue
            done = {tuple(r[k] for k in IDENTITY) for r in there.rows()}
            lines = run(experiment, Development(name, by, data, work), seed, facts)
            for line in lines:
                if tuple(line[k] for k in IDENTITY) not in done:
                    append_line(ledger, json.dumps(line, allow_nan=False).encode() + b"\n")
            best = ", ".join(f"{line['variant']} {line['auroc']:.3f}" for line in lines)
            print(f"{experiment.name} {name} by {by}, seed {seed}: {best}", flush=True)


def main() -> None:
    """Runs what is missing, and draws."""
    p = parser(__doc__)
    names = [e.name for e in EXPERIMENTS]
    p.add_argument("--data", default="../shared/data", help="folder of the sample sets")
    p.add_argument("--experiments", nargs="+", default=names, choices=names, help="to run; all by default")
    p.add_argument("--by", nargs="+", default=[VAL, LESIONS], choices=[VAL, LESIONS], help="what judges")
    p.add_argument("--minutes", type=float, default=600, help="starts nothing after so many")
    p.add_argument("--work", type=Path, default=Path(".work"), help="keeps what was trained")
    p.add_argument("--page", action="store_true", help="draw from the results there are")
    a = p.parse_args()
    if not a.page:
        torch.set_num_threads(1)
        until = time.monotonic() + 60 * a.minutes
        chosen = [e for e in EXPERIMENTS if e.name in a.experiments]
        explore(chosen, a.data, a.work, LEDGER, judges=a.by, until=until)
    rows = Ledger(LEDGER, REQUIRED).rows()
    update_section(PAGE, "HYPOTHESES", page(EXPERIMENTS, rows))
    draw(figure(EXPERIMENTS, rows), FIGURE)


if __name__ == "__main__":
    main()
