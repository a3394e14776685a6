"""What two methods marked in test images: the default, and the best other one that has heatmaps.

Fits both anew with the settings and the seed of their lines in the ledger, which finished stages of
`dia benchmark` make short. Which images are shown is a rule, not a choice. Images of data sets whose licence
does not let them be passed on, or is not verified, are not shown.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...benchmark.results import BenchmarkResults, Row
from ...benchmark.runner import Paths
from ...benchmark.runs import images_sha256
from ...core.errors import DataError
from ...data import datasets
from ...data.datasets import CATALOG
from ...data.formats.mark import save_marked
from ...data.imageset import ImageSet
from ...detectors import Detector
from ...detectors.registry import DEFAULT, detector_class, wanted_settings
from ...evaluate.metrics import image_metrics
from ...features.shared import sharing
from ..pictures import overlay, scale_of
from .standing import standing

_HEIGHT = 192  # of a picture in pixels, at least; small images are enlarged by a whole factor
_GAP = 6
_NEAR = 0.01  # AUROC that a fit on another machine may differ by
RULE = (  # of the default's scores
    "highest-scored anomalous image", "second-highest anomalous image", "highest-scored normal image",
    "lowest-scored anomalous image",
)  # fmt: skip


class Picture(NamedTuple):
    """A test image beside both heatmaps: a file, the same as a data URI, its size and what it shows."""

    file: Path
    uri: str
    size: tuple[int, int]
    words: str


class OfSet(NamedTuple):
    """The pictures of a data set, and where its images are from."""

    dataset: str
    pictures: tuple[Picture, ...]
    source: str


@dataclass(frozen=True)
class Pictures:
    """All pictures of a page.

    Args:
        default: name of the row whose scores choose the images.
        names: the rows whose heatmaps are shown, left to right.
        sets: by data set.
        left_out: a sentence on each data set without pictures.
    """

    default: str
    names: tuple[str, ...]
    sets: tuple[OfSet, ...]
    left_out: tuple[str, ...]


def draw_pictures(
    out: Path,
    results: BenchmarkResults,
    data_root: str | None,
    side: int | None,
    work: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Pictures | None:
    """Fits both methods on each data set, and writes the pictures as `marked-SET-NUMBER.png`.

    Args:
        out: a folder, made if it is absent.
        results: results of the benchmark.
        data_root: folder of known data sets.
        side: the longer side in pixels at which the images of the runs were read.
        work: finished stages of `dia benchmark`; without it, the fits begin anew.
        say: called with remarks for the user.

    Returns:
        The pictures; None where the results have no default.
    """
    rows = [s.row for s in standing(results, {}).methods]
    default = next((r for r in rows if r.method == DEFAULT), None)
    if default is None:
        say(f"no pictures: no row of {DEFAULT}, whose scores choose the images")
        return None
    other = next((r for r in rows if r.method != DEFAULT and _has_heatmaps(r)), None)
    shown = [default, *([other] if other else [])]
    made, left_out = list[OfSet](), list[str]()
    for d in results.datasets:
        try:
            made.append(_of_set(out, d, [r for r in shown if d in r.cells], data_root, side, work, say))
        except DataError as error:
            left_out.append(f"{d}: no pictures, as {error}.")
            say(left_out[-1])
    return Pictures(default.name, tuple(r.name for r in shown), tuple(made), tuple(left_out))


def chosen(labels: np.ndarray, scores: np.ndarray) -> dict[int, str]:
    """Chooses images by `RULE`.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous; both occur.
        scores: `(N,)` of the default.

    Returns:
        What each is, by its number; an image that is two things is shown once, as the first of them.

    Example:
        >>> list(chosen(np.array([0, 1, 1, 1, 0]), np.array([0.1, 0.9, 0.2, 0.8, 0.5])))
        [1, 3, 4, 2]
    """
    order = np.argsort(-scores, kind="stable")
    anomalous, normal = order[labels[order] == 1], order[labels[order] == 0]
    picks = [(0, anomalous[:1]), (1, anomalous[1:2]), (2, normal[:1]), (3, anomalous[-1:])]
    found = dict[int, str]()
    for rule, of in picks:
        for i in of:
            found.setdefault(int(i), RULE[rule])
    return found


def why_not_shown(dataset: str) -> str:
    """Returns why no image of a data set is shown; empty where its licence allows it.

    Args:
        dataset: its name.

    Returns:
        The reason.

    Example:
        >>> why_not_shown("breastmnist"), why_not_shown("aptos2019")
        ('', 'its licence (rules of the competition) does not let its images be passed on')
    """
    if dataset not in CATALOG:
        return "it is not in the catalogue, and nothing says that its images may be passed on"
    licence = CATALOG[dataset].licence
    if "to be verified" in licence:
        return f"its licence ({licence}) is not verified, so that its images are not passed on"
    if licence.startswith(("CC ", "that of this package", "research and educational use")):
        return ""
    return f"its licence ({licence}) does not let its images be passed on"


def _has_heatmaps(row: Row) -> bool:
    try:
        return detector_class(row.method).has_heatmaps()
    except DataError:
        return False


def _of_set(
    out: Path,
    dataset: str,
    rows: list[Row],
    data_root: str | None,
    side: int | None,
    work: Path | None,
    say: Callable[[str], None],
) -> OfSet:
    if reason := why_not_shown(dataset):
        raise DataError(reason)
    if not rows or rows[0].method != DEFAULT:
        raise DataError(f"{DEFAULT} has no run on it")
    test = datasets.load(dataset, "test", data_root, max_size=side)
    normals = datasets.load_training(dataset, data_root, max_size=side)
    of_rows = [_scored(r, dataset, normals, test, work, say) for r in rows]
    known, slug, pictures = CATALOG[dataset], re.sub(r"[^A-Za-z0-9_.-]+", "_", dataset), list[Picture]()
    labels, scales = np.asarray(test.labels), [scale_of(maps) for _, maps in of_rows]
    for number, (i, what) in enumerate(chosen(labels, of_rows[0][0]).items(), 1):
        mask = None if test.masks is None or not test.masks[i].any() else test.masks[i]
        heat = [(maps[i], scale) for (_, maps), scale in zip(of_rows, scales, strict=True)]
        canvas = _beside(test.images[i], heat, mask)
        places = [
            f"place {1 + int((scores > scores[i]).sum())} by {r.name}"
            for r, (scores, _) in zip(rows, of_rows, strict=True)
        ]
        path = out / f"marked-{slug}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_marked(canvas, path)
        uri = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
        words = f"{what[0].upper()}{what[1:]}: of {len(test)} images {', '.join(places)}"
        pictures.append(Picture(path, uri, canvas.size, words))
    return OfSet(dataset, tuple(pictures), f"{known.citation}; licence {known.licence}.")


def _scored(
    row: Row, dataset: str, normals: ImageSet, test: ImageSet, work: Path | None, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores `(N,)` and heatmaps `(N, H, W)` of the row's first run, made again."""
    line = row.cells[dataset].runs[0]
    if images_sha256(normals.sha256(), test.sha256()) != line["data_sha256"]:
        raise DataError("the runs are of other images than those at hand")
    detector = _detector(line)
    paths = None if work is None else Paths("", "", str(work)).shared_maps()
    with sharing(paths):
        detector.fit(normals, workdir=work and work / datasets.name_of(dataset), resume=work is not None)
        found = detector.detect(test, heatmaps=True)
    if found.heatmap is None or test.labels is None:
        raise DataError(f"{row.name} has no heatmaps on it")
    auroc = image_metrics(test.labels, found.score, n_boot=2)["auroc"]
    if abs(auroc - line["auroc"]) > _NEAR:
        say(f"{dataset}: {row.name} fitted anew has AUROC {auroc:.3f}, in the ledger {line['auroc']:.3f}")
    return found.score, found.heatmap


def _detector(line: Mapping[str, Any]) -> Detector:
    """Returns the detector of a line, not fitted."""
    if line["weights_kind"] in ("dia", "file"):
        raise DataError(
            f"{line['method']} starts from weights of kind {line['weights_kind']}, not at hand here"
        )
    settings = wanted_settings(line["method"], line["preset"], line["settings"])
    return detector_class(line["method"])(settings, seed=line["seed"], holdout=line["holdout"])


def _beside(
    image: np.ndarray, heat: list[tuple[np.ndarray, tuple[float, float]]], mask: np.ndarray | None
) -> Image.Image:
    """Returns the image and its heatmaps side by side, all with the outline of the mask."""
    factor = max(-(-_HEIGHT // image.shape[0]), 1)
    large = image.repeat(factor, 0).repeat(factor, 1)
    h, w = large.shape[:2]
    parts = [np.broadcast_to(large, (h, w, 3))]
    for heatmap, scale in heat:
        smooth = Image.fromarray(heatmap.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR)
        parts.append(overlay(large, np.asarray(smooth), scale))
    if mask is not None:
        inside = mask.repeat(factor, 0).repeat(factor, 1).astype(float)
        parts = [
            overlay(part, inside, (2, 3), level=0.5) for part in parts
        ]  # below its scale: the line alone
    canvas = Image.new("RGB", (len(parts) * (w + _GAP) - _GAP, h), (128, 128, 128))
    for i, part in enumerate(parts):
        canvas.paste(Image.fromarray(np.ascontiguousarray(part, np.uint8)), (i * (w + _GAP), 0))
    return canvas
