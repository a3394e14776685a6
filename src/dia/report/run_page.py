"""One self-contained HTML page about one run: numbers, plots, pictures, limits.

Asks nothing of the network when opened. Draws what it is given and trains, scores and calibrates nothing;
the words and the style of the page are in `report.html.j2`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from PIL import Image
from skimage.measure import find_contours
from sklearn.metrics import roc_curve

from ..evaluate.metrics import roc_band
from ..evaluate.volume_scores import TOP_K, volume_metrics, volume_scores
from . import figures
from .style import ANOMALOUS, GRID, INK, LIMITS, NORMAL, axes, environment, svg

SHOWN = 8  # images at each end of the ranking
VOLUMES_SHOWN = 100
MAX_SIDE = 320  # pixels; larger images are reduced for the page
PIXELATED_UP_TO = 96  # sides up to this are enlarged with sharp pixels
HEAT_PERCENTILES = (1.0, 99.9)  # of all heatmap pixels: the ends of the common colour scale
COLOURMAP = mpl.colormaps["inferno"]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything the page shows. Sections without their data are left out.

    Args:
        title: of the page.
        method: name of the detector.
        dataset: description of the images scored.
        scores: `(N,)` raw, higher = more anomalous.
        names: N names.
        images: `(N, H, W, C)` uint8, C = 1 or 3.
        lead: first sentence, what was trained on what; composed from method and dataset if empty.
        facts: (label, value) pairs about the run.
        metrics: of `image_metrics` and `pixel_metrics`; None without labels.
        labels: `(N,)` 0 = normal, 1 = anomalous.
        p_values: `(N,)` conformal p-values.
        threshold: images with a score above it are flagged; infinite if nothing can be.
        false_alarm_rate: what the threshold promises, in (0, 1), if it was set on held-out normal images.
        heatmaps: `(N, H, W)` raw, higher = more anomalous.
        masks: `(N, H, W)` bool.
        volumes: N names of the volume that an image is a slice of, None of those that are none; a volume's
            slices stand together.
        dissolve_strip: rows of (caption, `(H, W, C)` uint8) pairs.
        comparison: dicts with `method`, `auroc`, and if known `auroc_ci`, `pixel_auroc`, and
            `kind` ('ours', 'control' or 'trivial').
        stress: of `stress.stress`, where lesions were pasted; and a picture of them, PNG.
        notes: plain sentences.
        beside: plain sentences to be read with the AUROC.
        limits: the last words.

    Raises:
        ValueError: lengths or shapes that do not fit together, scores that are not finite.
    """

    title: str
    method: str
    dataset: str
    scores: np.ndarray
    names: Sequence[str]
    images: np.ndarray
    lead: str = ""
    facts: Sequence[tuple[str, Any]] = ()
    metrics: Mapping[str, Any] | None = None
    labels: np.ndarray | None = None
    p_values: np.ndarray | None = None
    threshold: float | None = None
    false_alarm_rate: float | None = None
    heatmaps: np.ndarray | None = None
    masks: np.ndarray | None = None
    volumes: Sequence[str | None] | None = None
    dissolve_strip: Sequence[Sequence[tuple[str, np.ndarray]]] = ()
    comparison: Sequence[Mapping[str, Any]] = ()
    stress: tuple[Mapping[str, Any], bytes | None] | None = None
    notes: Sequence[str] = ()
    beside: Sequence[str] = ()
    limits: str = LIMITS

    def __post_init__(self) -> None:
        n = len(self.scores)
        if not n or not np.isfinite(self.scores).all():
            raise ValueError(
                "a report needs at least one score, all of them finite: look at the images without"
            )
        for field in ("names", "images", "labels", "p_values", "heatmaps", "masks", "volumes"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise ValueError(f"{len(value)} {field} for {n} scores: pass one for each image")
        for field in ("heatmaps", "masks"):
            value = getattr(self, field)
            if value is not None and value.shape != self.images.shape[:3]:
                raise ValueError(f"{field} {value.shape} do not fit images {self.images.shape}: resize them")


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Write the page as one HTML file and return its path."""
    c = content
    scores = np.asarray(c.scores, dtype=float)
    labels = None if c.labels is None else np.asarray(c.labels)
    flagged = None if c.threshold is None else scores > c.threshold
    both = labels is not None and len(np.unique(labels)) == 2
    rank = np.argsort(-scores, kind="stable")
    scale = None if c.heatmaps is None else tuple(np.percentile(c.heatmaps, HEAT_PERCENTILES))
    # a set too small for both lists shows no image twice
    most, least = rank[:SHOWN][: (len(rank) + 1) // 2], rank[::-1][:SHOWN][: len(rank) // 2]

    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            c=c,
            n=len(scores),
            n_anomalous=None if labels is None else int((labels == 1).sum()),
            flagged=_flag_counts(flagged, labels),
            reachable=c.threshold is not None and math.isfinite(c.threshold),
            histogram=_histogram(scores, labels, c.threshold),
            roc=_roc(labels, scores, flagged, c.metrics or {}) if labels is not None and both else None,
            volumes=_volumes(c, scores, labels, flagged),
            strip=[[(caption, _png(image)) for caption, image in row] for row in c.dissolve_strip],
            ends=[
                (heading, [_card(c, i, flagged, scale) for i in which])
                for heading, which in (("Most anomalous", most), ("Least anomalous", least))
                if len(which)
            ],
            sharp=max(c.images.shape[1:3]) <= PIXELATED_UP_TO,
            scale=scale,
            percentiles=HEAT_PERCENTILES,
            gradient=", ".join(mpl.colors.to_hex(COLOURMAP(t)) for t in np.linspace(0, 1, 9)),
            stress=None if c.stress is None else _stress(*c.stress),
            comparison=sorted(map(_comparison_row, c.comparison), key=lambda r: -r["auroc"]),
        )
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", errors="replace")  # file names may hold what UTF-8 cannot
    return path


def _volumes(
    c: ReportContent, scores: np.ndarray, labels: np.ndarray | None, flagged: np.ndarray | None
) -> dict[str, Any] | None:
    """Of each volume, highest first: its scores, its slices above the threshold, its label."""
    if c.volumes is None or not any(c.volumes):
        return None
    slices: dict[str | None, list[int]] = {}
    for i, volume in enumerate(c.volumes):
        slices.setdefault(volume, []).append(i)
    rows = []
    places = map(str, range(len(scores)))
    for found in volume_scores(zip(c.volumes, places, scores.tolist(), strict=True)):
        own, highest = slices[found.volume], int(found.max_slice)
        p = None if c.p_values is None else found.p_value(float(c.p_values[highest]))
        rows.append(
            found._asdict()
            | {
                "max_slice": c.names[highest],
                "p": p,
                "flagged": None if flagged is None else int(flagged[own].sum()),
                "label": None if labels is None else ("normal", "anomalous")[int(labels[own].any())],
            }
        )
    rows.sort(key=lambda row: -row["max"])
    metrics = {} if labels is None else volume_metrics(labels, scores, c.volumes)
    return {"rows": rows[:VOLUMES_SHOWN], "all": len(rows), "top_k": TOP_K, "metrics": metrics}


def _stress(result: Mapping[str, Any], picture: bytes | None) -> dict[str, Any]:
    head, rows = figures.rows(result)
    return {
        "curves": figures.inline(result),
        "head": head,
        "rows": rows,
        "said": figures.sentences(result),
        "picture": None if picture is None else _data_uri(picture),
    }


def _flag_counts(flagged: np.ndarray | None, labels: np.ndarray | None) -> list[tuple[str, int, int]]:
    """(which images, flagged, of how many)."""
    if flagged is None:
        return []
    if labels is None:
        return [("images", int(flagged.sum()), len(flagged))]
    groups = [("normal", labels == 0), ("anomalous", labels == 1)]
    return [(name, int(flagged[of].sum()), int(of.sum())) for name, of in groups if of.any()]


def _comparison_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"auroc_ci": None, "pixel_auroc": None, "kind": "control", **row}


def _card(
    c: ReportContent, i: int, flagged: np.ndarray | None, scale: tuple[float, float] | None
) -> dict[str, Any]:
    """What the page tells of image `i`."""
    image = c.images[i]
    overlay = None if c.heatmaps is None or scale is None else _overlay(image, c.heatmaps[i], *scale)
    return {
        "name": c.names[i],
        "score": float(c.scores[i]),
        "p": None if c.p_values is None else float(c.p_values[i]),
        "flagged": None if flagged is None else bool(flagged[i]),
        "label": None if c.labels is None else ("normal", "anomalous")[int(c.labels[i])],
        "image": _png(image),
        "overlay": None if overlay is None else _png(overlay),
        "outline": "" if c.masks is None else _outline(c.masks[i]),
        "size": image.shape[:2],
    }


def _overlay(image: np.ndarray, heatmap: np.ndarray, low: float, high: float) -> np.ndarray:
    """Heat in colour over the image in grey, the hotter the less transparent. uint8 RGB."""
    heat = np.clip((heatmap - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    alpha = 0.8 * heat[..., None]
    grey = image.mean(axis=-1, keepdims=True)
    blend = grey * (1 - alpha) + 255 * COLOURMAP(heat)[..., :3] * alpha
    return np.round(blend).astype(np.uint8)


def _outline(mask: np.ndarray) -> str:
    """Border of a mask as SVG path data in pixels, sharp at any enlargement."""
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    # contours run through pixel centres of the padded mask: half a pixel back is the image's own frame
    return " ".join("M" + " L".join(f"{x - 0.5:g} {y - 0.5:g}" for y, x in line) + "Z" for line in lines)


def _png(image: np.ndarray) -> str:
    """(H, W, 1 or 3) uint8 as a data URI."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # only ever smaller
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _histogram(scores: np.ndarray, labels: np.ndarray | None, threshold: float | None) -> Markup:
    figure, ax = axes("score (higher = more anomalous)", "images")
    bins = np.histogram_bin_edges(scores, min(40, max(8, len(scores) // 5)))
    groups = [("all images", scores, NORMAL, "-")]
    if labels is not None:
        groups = [("normal", scores[labels == 0], NORMAL, "-")]
        groups += [("anomalous", scores[labels == 1], ANOMALOUS, "--")]
    for name, values, colour, dash in groups:
        if len(values):  # told apart by dashes too, not by colour alone
            ax.hist(values, bins, color=colour, alpha=0.28)
            ax.hist(values, bins, histtype="step", color=colour, linewidth=1.8, linestyle=dash, label=name)
    if threshold is not None and math.isfinite(threshold):
        ax.axvline(threshold, color=INK, linewidth=1.4, linestyle=":", label=f"threshold {threshold:.4g}")
    ax.legend(frameon=False, labelcolor=INK, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return svg(figure, "Histogram of scores" + ("" if labels is None else ", normal against anomalous"))


def _roc(
    labels: np.ndarray, scores: np.ndarray, flagged: np.ndarray | None, metrics: Mapping[str, Any]
) -> Markup:
    figure, ax = axes("false positive rate", "true positive rate")
    grid, low, high = roc_band(labels, scores)
    fpr, tpr, _ = roc_curve(labels, scores)
    ax.plot([0, 1], [0, 1], color=GRID, linewidth=1.2, linestyle="--")
    ax.fill_between(grid, low, high, color=ANOMALOUS, alpha=0.22, linewidth=0, label="95 % interval")
    name = f"AUROC {metrics['auroc']:.3f}" if "auroc" in metrics else "ROC"
    ax.plot(fpr, tpr, color=ANOMALOUS, linewidth=2, label=name)
    if flagged is not None and flagged.any():
        at = flagged[labels == 0].mean(), flagged[labels == 1].mean()
        ax.plot(*at, "o", color=INK, markersize=6, label="at the threshold", clip_on=False)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    ax.legend(frameon=False, labelcolor=INK, loc="lower right")
    return svg(figure, "ROC curve with its 95 % bootstrap interval")
