"""Chooses among detectors without labels, by how well each tells pasted lesions from normal images.

Nested splits of normals alone. The normals fall into five blocks; in each split three are fitted on, lesions
pasted into the fourth choose, and lesions pasted into the fifth say what the choice is worth, on images that
had no part in it. Which of the candidates is best at disease this cannot say; see docs/howto/choose.md.

Knows detectors and lesions; trains through `Detector.fit`; knows no labels and draws nothing.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from ..core.errors import DataError
from ..data.imageset import ImageSet, group_by_volume
from ..data.lesions import KINDS, VERSION, paste
from ..detectors.base import MIN_NORMALS
from ..detectors.presets import PRESETS
from ..detectors.registry import detector_class, wanted_settings
from ..detectors.residual import evidence, joined
from ..detectors.saving import fingerprint

BLOCKS = 5
SIZES = (0.08, 0.32)  # of the lesions, uniform in the logarithm
CONTRASTS = (0.1, 0.8)
PARTS = ("inner", "outer")
MOST = 300  # images of a part: bounds time and memory


@dataclass(frozen=True)
class Candidate:
    """A detector to choose from.

    Args:
        method: a name of the registry.
        preset: `cpu`, `gpu` or `paper`.
        changes: values of settings by dotted name.
    """

    method: str
    preset: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that is shown: the method, and what differs from its defaults."""
        words = [self.preset] * (self.preset != "cpu")
        for key, value in self.changes.items():
            is_list = isinstance(value, list | tuple)
            words.append(f"{key}={'(' + ' '.join(map(str, value)) + ')' if is_list else value}")
        return self.method + (f" [{', '.join(words)}]" if words else "")

    def settings(self) -> Any:
        """Returns the method's settings with the changes."""
        return wanted_settings(self.method, self.preset, self.changes)


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of the normals to fit on, to choose by (`inner`) and to judge the choice by (`outer`)."""

    fit: np.ndarray
    inner: np.ndarray
    outer: np.ndarray


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """A candidate's scores in one split; the pasted ones `(K, n)`, a row for each kind."""

    calibration: np.ndarray
    inner: np.ndarray
    inner_pasted: np.ndarray
    outer: np.ndarray
    outer_pasted: np.ndarray
    seconds: float

    def aurocs(self, part: str) -> np.ndarray:
        """Returns the AUROC of pasted against unpasted images of a part, by kind `(K,)`."""
        normal, with_lesion = getattr(self, part), getattr(self, f"{part}_pasted")
        labels = np.repeat([0, 1], len(normal))
        return np.array([roc_auc_score(labels, np.r_[normal, scores]) for scores in with_lesion])


def splits(n: int, count: int, seed: int, volumes: Sequence[str | None] = ()) -> list[Split]:
    """Draws nested splits of normals; no image judges two of them, and volumes stay whole.

    Args:
        n: normals.
        count: splits, 1 to 5.
        seed: of the draw.
        volumes: the n images' volumes, grouped; empty if there are none.

    Returns:
        The splits.

    Raises:
        DataError: more than five splits, or too few normals to fit on.
    """
    if not 1 <= count <= BLOCKS:
        raise DataError(f"there are 1 to {BLOCKS} splits, not {count}")
    units = group_by_volume(n, volumes)
    blocks: list[list[int]] = [[] for _ in range(BLOCKS)]
    start = 0
    for i in np.random.default_rng([seed, 3]).permutation(len(units)):
        unit = np.array(units[i]).tolist()  # lies in the block where its middle lies
        blocks[min(int((start + len(unit) / 2) * BLOCKS / n), BLOCKS - 1)] += unit
        start += len(unit)
    made = []
    for k in range(count):
        outer, inner, *rest = (np.sort(np.array(blocks[(k + i) % BLOCKS], int)) for i in range(BLOCKS))
        made.append(Split(np.sort(np.concatenate(rest)), _spread(inner), _spread(outer)))
    fewest = min(len(s.fit) for s in made)
    if fewest < MIN_NORMALS or min(len(p) for s in made for p in (s.inner, s.outer)) < 2:
        raise DataError(
            f"{n} normal images{' in whole volumes' * any(volumes)} are too few to choose by: splits fit on "
            f"{fewest}, at least {MIN_NORMALS} are needed"
        )
    return made


def _spread(index: np.ndarray) -> np.ndarray:
    return index[np.linspace(0, len(index) - 1, min(len(index), MOST)).round().astype(int)]


def pasted(normals: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Pastes a lesion of every kind into each of the normals at `index`.

    Size and contrast are drawn for each image and kind, by its place among all normals.

    Args:
        normals: `(N, H, W, C)` uint8.
        index: `(n,)`, which of them.
        seed: of places, sizes and contrasts.

    Returns:
        `(K, n, H, W, C)` uint8, for K kinds.
    """
    out = []
    for k, kind in enumerate(KINDS):
        draw = np.random.default_rng([seed, 4, k]).uniform(size=(2, len(normals)))[:, index]
        sizes, contrasts = (
            low * (high / low) ** u for (low, high), u in zip((SIZES, CONTRASTS), draw, strict=True)
        )
        out.append(paste(normals[index], kind, sizes, contrasts, seed=seed)[0])
    return np.stack(out)


@dataclass(eq=False)
class Pasted:
    """Normals, their split and its lesions, which are pasted once for all candidates, when first needed."""

    normals: ImageSet
    split: Split
    seed: int

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Images with lesions `(K, n, H, W, C)`, by part."""
        return {p: pasted(self.normals.images, getattr(self.split, p), self.seed) for p in PARTS}


def measure(
    candidate: Candidate, lesions: Pasted, *, workdir: Path, device: str = "auto", progress: bool = False
) -> CandidateScores:
    """Fits a candidate in a split and scores both other parts; an earlier measurement is read back.

    Args:
        candidate: the detector to fit.
        lesions: the normals, their split and its lesions.
        device: of the detector.
        workdir: keeps scores and finished stages.
        progress: show progress bars.

    Returns:
        The candidate's scores.
    """
    normals, split, seed = lesions.normals, lesions.split, lesions.seed
    detector = detector_class(candidate.method)(candidate.settings(), seed=seed, device=device)
    key = fingerprint(
        VERSION, detector.settings_hash(), seed, normals.sha256(), [p.tolist() for p in vars(split).values()]
    )
    path = workdir / "select" / f"{key}.npz"
    if not path.exists():
        start = time.perf_counter()
        detector.fit(normals.subset(split.fit), workdir=workdir, resume=True, progress=progress)
        made: dict[str, Any] = {"calibration": detector.calibration_.scores}
        for part in PARTS:
            made[part] = detector.score(normals.images[getattr(split, part)])
            made[f"{part}_pasted"] = np.stack([detector.score(x) for x in lesions.parts[part]])
        made["seconds"] = time.perf_counter() - start
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}")
        np.savez_compressed(new, **made)
        new.replace(path)
    with np.load(path) as kept:
        return CandidateScores(**{**kept, "seconds": float(kept["seconds"])})


def fused(members: Sequence[CandidateScores]) -> CandidateScores:
    """Fuses candidates of one split by the harmonic mean of their smoothed conformal p-values."""

    def join(name: str) -> np.ndarray:
        shape = getattr(members[0], name).shape
        columns = [evidence(getattr(m, name).ravel(), m.calibration) for m in members]
        return joined(np.column_stack(columns)).reshape(shape)

    arrays = {f.name: join(f.name) for f in fields(CandidateScores) if f.name != "seconds"}
    return CandidateScores(**arrays, seconds=sum(m.seconds for m in members))


def _interval(v: np.ndarray) -> list[float] | None:
    """Student's 95 % interval of the mean over splits; None for one split. It counts the splits alone."""
    if len(v) < 2:
        return None
    half = float(student.ppf(0.975, len(v) - 1)) * float(v.std(ddof=1)) / len(v) ** 0.5
    return [float(v.mean()) - half, float(v.mean()) + half]


def choose(scored: Mapping[str, Sequence[CandidateScores]], families: Mapping[str, str]) -> dict[str, Any]:
    """Chooses the best candidate, and estimates what the choice is worth.

    Args:
        scored: by candidate, its scores in each split.
        families: the candidates' families.

    Returns:
        `rows`, best first: `name`, `family`, lesion AUROC `inner` (mean over kinds and splits) with
        `inner_ci` over splits, `outer`, `by_kind`, `behind` (how far below the first) with `behind_ci`
        (paired by split), `seconds` a split; the `choice`; `like_it`, those whose `behind_ci` holds 0;
        `best_of` each family; `estimate` with `estimate_ci`: the outer lesion AUROC of what each split's
        inner part alone would have chosen, which no choosing has flattered.
    """
    names = list(scored)
    by_kind = np.array([[r.aurocs("inner") for r in runs] for runs in scored.values()])
    inner = by_kind.mean(2)  # (candidates, splits)
    outer = np.array([[r.aurocs("outer").mean() for r in runs] for runs in scored.values()])
    order = np.argsort(-inner.mean(1), kind="stable")
    rows = []
    for i in order:
        row = {"name": names[i], "family": families[names[i]]}
        for key, values in {
            "inner": inner[i],
            "outer": outer[i],
            "behind": inner[order[0]] - inner[i],
        }.items():
            row |= {key: float(values.mean()), f"{key}_ci": _interval(values)}
        row["by_kind"] = dict(zip(KINDS, by_kind[i].mean(0).tolist(), strict=True))
        row["seconds"] = float(np.mean([r.seconds for r in scored[names[i]]]))
        rows.append(row)
    worth = outer[inner.argmax(0), np.arange(inner.shape[1])]
    best_of: dict[str, str] = {}
    for row in rows:
        best_of.setdefault(row["family"], row["name"])
    return {
        "choice": rows[0]["name"],
        "estimate": float(worth.mean()),
        "estimate_ci": _interval(worth),
        "chosen_by_split": [names[i] for i in inner.argmax(0)],
        "like_it": [r["name"] for r in rows[1:] if r["behind_ci"] is None or r["behind_ci"][0] <= 0],
        "best_of": best_of,
        "rows": rows,
    }


def measure_all(
    candidates: Sequence[Candidate],
    normals: Mapping[str, ImageSet],
    count: int,
    *,
    seed: int = 0,
    fuse: int = 0,
    device: str = "auto",
    workdir: Path,
    progress: bool = False,
    on_run: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Measures candidates and their fusions in every split, and chooses; failed candidates are left out.

    Args:
        candidates: of different names.
        normals: by preset, the same images.
        count: splits, 1 to 5.
        seed: of splits, detectors and lesions.
        fuse: fusions of two to so many candidates are candidates too; none below 2.
        device: of the detectors.
        workdir: keeps finished scores and stages.
        progress: show progress bars.
        on_run: called before each fit with the candidate's name and the split.

    Returns:
        The result of `choose`, with reasons of `failed` candidates and the `members` of fusions, by name.

    Raises:
        DataError: too few normals, or no candidate that could be measured.
    """
    scored: dict[str, list[CandidateScores]] = {c.name: [] for c in candidates}
    failed: dict[str, str] = {}
    parts = {preset: splits(len(x), count, seed, x.volumes) for preset, x in normals.items()}
    for k in range(count):
        lesions = {preset: Pasted(x, parts[preset][k], seed) for preset, x in normals.items()}
        for candidate in (c for c in candidates if c.name not in failed):
            if on_run is not None:
                on_run(candidate.name, k)
            own = lesions[candidate.preset]
            try:
                made = measure(candidate, own, workdir=workdir, device=device, progress=progress)
                scored[candidate.name].append(made)
            except (DataError, RuntimeError) as error:
                failed[candidate.name] = " ".join(str(error).split())[:200]
    scored = {name: runs for name, runs in scored.items() if name not in failed}
    if not scored:
        raise DataError(f"no candidate could be measured; the first: {next(iter(failed.values()), 'none')}")
    families = {c.name: detector_class(c.method).family for c in candidates}
    alone, members = list(scored), dict[str, tuple[str, ...]]()
    for names in (n for size in range(2, fuse + 1) for n in combinations(alone, size)):
        name, of = " & ".join(names), {families[n] for n in names}
        members[name] = names
        families[name] = of.pop() if len(of) == 1 else "several families"
        scored[name] = [fused(runs) for runs in zip(*(scored[n] for n in names), strict=True)]
    return choose(scored, families) | {"failed": failed, "members": members}


def candidates(
    methods: Sequence[str], presets: Sequence[str], vary: Mapping[str, Mapping[str, Sequence[Any]]]
) -> list[Candidate]:
    """Returns all combinations of methods, presets and the values to try.

    Args:
        methods: names of methods.
        presets: names of presets.
        vary: by method and dotted name of a setting, the values to try.

    Raises:
        DataError: an unknown method, preset or setting, or values of a method that is not in `methods`.
    """
    if unknown := [p for p in presets if p not in PRESETS]:
        raise DataError(f"--presets: no preset {unknown[0]}; there are: {', '.join(PRESETS)}")
    if unasked := [m for m in vary if m not in methods]:
        raise DataError(f"--vary: {unasked[0]} is not among --methods; add it there")
    made = [
        Candidate(method, preset, dict(zip(vary.get(method, {}), values, strict=True)))
        for method, preset in product(dict.fromkeys(methods), dict.fromkeys(presets))
        for values in product(*vary.get(method, {}).values())
    ]
    if not made:
        raise DataError("--methods: name at least one; `dia methods` lists them")
    for candidate in made:
        candidate.settings()  # refuses wrong values before anything is fitted
    return made


def fit_command(data: str, candidate: Candidate) -> str:
    """Returns the command line that fits a candidate on all normals.

    Args:
        data: the path or name of the data.
        candidate: what to fit.
    """
    words = ["dia", "fit", data, "--method", candidate.method]
    words += ["--preset", candidate.preset] if candidate.preset != "cpu" else []
    for name, value in candidate.changes.items():
        words += [f"--settings.{name}", json.dumps(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def warning(result: Mapping[str, Any]) -> str:
    """Returns what a reader must know of the result of `choose`, in plain words."""
    families = result["best_of"]
    said = "Pasted lesions are not disease: this ranks candidates by what they see of generated changes. "
    if len(families) == 1:
        return said + (
            "All candidates are of one family. Even there it agreed only weakly with the truth where labels "
            "are known (docs/howto/choose.md): it is better than nothing, and no measure of how many "
            "anomalies are found."
        )
    listed = "; ".join(f"{family}: {name}" for family, name in families.items())
    return said + (
        f"The candidates are of {len(families)} families, and across families this ranking misleads: a "
        "method that sees pasted lesions best can be at chance on real anomalies. Do not take the first for "
        f"the best method; at most for the best of its family ({listed}), and decide between families on a "
        "few labelled images. How often it went wrong where labels are known: docs/howto/choose.md."
    )
