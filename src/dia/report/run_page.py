"""One self-contained HTML page about one run: numbers, plots, pictures, limits.

Asks nothing of the network when opened. Draws what it is given; trains, scores and calibrates nothing. The
words and the style of the page are in `report.html.j2`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from skimage.measure import find_contours
from sklearn.metrics import roc_curve

from ..evaluate.learning_curve import Point, climbs
from ..evaluate.metrics import roc_band
from ..evaluate.verdict import Verdict
from ..evaluate.volume_scores import TOP_K, volume_metrics, volume_scores
from . import figures, render
from .constants import LIMITS
from .pictures import COLOURS, colour, scale_of
from .style import axes, environment, svg
from .table import Table, table

SHOWN = 8  # images of each kind
MARKS = {"good": "✓", "care": "!", "bad": "✗", "unknown": "?"}
SPOKEN = {"good": "speaks for it", "care": "with care", "bad": "speaks against it", "unknown": "not known"}
STRIP = (120, 20)  # of the small histogram of normals, in its own units
DETECTION = "Share of pasted lesions found, by kind, over size, for each contrast"
CURVE = "Image AUROC by the number of normals"
VOLUMES_SHOWN = 100
MAX_SIDE = 320  # pixels; larger images are reduced for the page
PIXELATED_UP_TO = 96  # sides up to this are enlarged with sharp pixels


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything the page shows. Sections without their data are left out.

    Args:
        title: title of the page.
        method: name of the detector.
        dataset: description of the images scored.
        scores: `(N,)` raw and finite, higher = more anomalous.
        names: N names.
        images: `(N, H, W, C)` uint8, C = 1 or 3.
        lead: first sentence, on what was trained on what.
        facts: (label, value) pairs about the run.
        metrics: as of `image_metrics` and `pixel_metrics`; None without labels.
        labels: `(N,)` 0 = normal, 1 = anomalous.
        verdict: what speaks for and against the result; None to leave it out.
        normal_scores: `(M,)` scores of the normals that the model was calibrated on.
        p_values: `(N,)` conformal p-values.
        threshold: images with a score above it are flagged; infinite if nothing can be.
        false_alarm_rate: rate in (0, 1) that the threshold promises, if it was set on normals.
        held_out: whether those were held out of training; else each was judged by the others.
        heatmaps: `(N, H, W)` raw, higher = more anomalous.
        masks: `(N, H, W)` bool.
        volumes: N names of the volume that an image is a slice of, None for other images; the slices of a
            volume follow each other.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        patients: N patients, for comparing alone; None where they are not known.
        dissolve_strip: rows of (caption, `(H, W, C)` uint8) pairs.
        comparison: dicts with `method`, `auroc`, `kind` ('ours', 'control' or 'trivial'), and if known
            `auroc_ci` and `pixel_auroc`.
        stress: measurements of `evaluate.stress.stress`, and a picture of the lesions as PNG.
        curve: of fits on fewer normals, `evaluate.learning_curve`.
        notes: plain sentences.
        context: plain sentences to be read with the AUROC.
    """

    title: str
    method: str
    dataset: str
    scores: np.ndarray
    names: Sequence[str]
    images: np.ndarray
    lead: str
    facts: Sequence[tuple[str, Any]] = ()
    metrics: Mapping[str, Any] | None = None
    labels: np.ndarray | None = None
    verdict: Verdict | None = None
    normal_scores: np.ndarray | None = None
    p_values: np.ndarray | None = None
    threshold: float | None = None
    false_alarm_rate: float | None = None
    held_out: bool = True
    heatmaps: np.ndarray | None = None
    masks: np.ndarray | None = None
    volumes: Sequence[str | None] | None = None
    units: np.ndarray | None = None
    patients: Sequence[str | None] | None = None
    dissolve_strip: Sequence[Sequence[tuple[str, np.ndarray]]] = ()
    comparison: Sequence[Mapping[str, Any]] = ()
    stress: tuple[Mapping[str, Any], bytes | None] | None = None
    curve: Sequence[Point] = ()
    notes: Sequence[str] = ()
    context: Sequence[str] = ()


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Writes the page as one HTML file.

    Args:
        path: the file, whose folder is made if absent.
        content: what the page shows.

    Returns:
        The path.
    """
    c, labels = content, content.labels
    scores = np.asarray(c.scores, dtype=float)
    flagged = None if c.threshold is None else scores > c.threshold
    both = labels is not None and len(np.unique(labels)) == 2
    scale = None if c.heatmaps is None else scale_of(c.heatmaps)

    def heat(i: int) -> str | None:
        if c.heatmaps is None or scale is None:
            return None
        return _png(_overlay(c.images[i], c.heatmaps[i], scale))

    strip = None if c.normal_scores is None else _Strip.of(np.asarray(c.normal_scores, float), scores)
    histogram = partial(_histogram, scores, labels, c.threshold)
    roc = partial(_roc, np.asarray(labels), scores, flagged, c.metrics or {}, c.units)
    of_volumes: dict[str, Any] = {}
    if labels is not None and c.volumes:
        of_volumes = volume_metrics(labels, scores, c.volumes, patients=c.patients or ())
    page = environment().get_template("report.html.j2")
    html = page.render(
        c=c,
        n=len(scores),
        n_anomalous=None if labels is None else int(np.sum(labels)),
        flagged=flagged,
        flag_counts=_flag_counts(flagged, labels),
        reachable=c.threshold is not None and math.isfinite(c.threshold),
        histogram=svg(histogram, "Histogram of scores" + ("" if labels is None else " by label")),
        roc=svg(roc, "ROC curve with its 95 % bootstrap interval") if both else None,
        volumes=None if c.volumes is None or not any(c.volumes) else _volumes(c, c.volumes, flagged),
        volume_metrics=of_volumes,
        top_k=TOP_K,
        shown=_chosen(scores, labels if both else None, c.threshold),
        strip=strip,
        marks=MARKS,
        spoken=SPOKEN,
        png=_png,
        heat=heat,
        outline=lambda i: "" if c.masks is None else _outline(c.masks[i]),
        sharp=max(c.images.shape[1:3]) <= PIXELATED_UP_TO,
        scale=scale,
        gradient=", ".join(mpl.colors.to_hex(COLOURS(t)) for t in np.linspace(0, 1, 9)),
        figures=figures,
        curves=c.stress and svg(partial(figures.detection_curves, c.stress[0]), DETECTION),
        normals_curve=c.curve and svg(partial(figures.normals_curve, c.curve), CURVE),
        climbs=climbs(c.curve) if c.curve else "",
        html=render.html,
        data_uri=_data_uri,
        limits=LIMITS,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8", errors="replace")  # file names may hold what UTF-8 cannot
    return path


@dataclass(frozen=True)
class Chosen:
    """Images that are shown together.

    Args:
        heading: over them.
        note: which they are, in words.
        images: their numbers.
        of: how many there are of the kind, those shown as border cases included.
    """

    heading: str
    note: str
    images: np.ndarray
    of: int


def _chosen(scores: np.ndarray, labels: np.ndarray | None, threshold: float | None) -> list[Chosen]:
    """The images to show: found, missed, false alarms, border cases; the ends of the ranking without labels.

    No image is shown twice.
    """
    rank = np.argsort(-scores, kind="stable")
    reachable = threshold is not None and math.isfinite(threshold)
    groups: list[tuple[str, str, np.ndarray]] = []
    after: list[tuple[str, str, np.ndarray]]
    border = np.array([], int)
    if threshold is not None and reachable:
        near = rank[np.argsort(np.abs(scores[rank] - threshold), kind="stable")]
        spread = max(float(np.std(scores)), 1e-12)
        border = near[np.abs(scores[near] - threshold) < 0.25 * spread][: min(SHOWN, len(rank) // 4)]
    if threshold is None or not reachable or labels is None:
        inner = rank[~np.isin(rank, border)]
        half = (len(inner) + 1) // 2
        groups = [("Most anomalous", "The highest scores.", inner[:half])]
        after = [("Least anomalous", "The lowest scores.", inner[half:][::-1])]
    else:
        high, sick = scores[rank] > threshold, labels[rank] == 1
        groups = [
            ("Found", "Labelled anomalous and flagged; the highest scores first.", rank[sick & high]),
            ("Missed", "Labelled anomalous and not flagged; the lowest scores, the clearest misses, first.",
             rank[sick & ~high][::-1]),
            ("False alarms", "Labelled normal and flagged; the highest scores first.",
             rank[~sick & high]),
        ]  # fmt: skip
        after = [
            ("Rightly not flagged", "Labelled normal and not flagged; the lowest scores first.",
             rank[~sick & ~high][::-1])
        ]  # fmt: skip
    border = border[np.argsort(-scores[border], kind="stable")]
    groups += [("Border cases", "Nearest to the threshold on either side: a little decides.", border), *after]
    shown = []
    for heading, note, found in groups:
        own = found if found is border else found[~np.isin(found, border)]
        shown.append(
            Chosen(heading, note, own[: SHOWN // 2 if heading.startswith("Rightly") else SHOWN], len(found))
        )
    return shown


@dataclass(frozen=True)
class _Strip:
    """The small histogram of the normals' scores that stands on each card, in units of `STRIP`.

    Args:
        path: SVG path of its bars.
        low: score at the left end.
        high: score at the right end.
        n: the number of normals.
        ordered: their scores, ascending.
    """

    path: str
    low: float
    high: float
    n: int
    ordered: np.ndarray

    @classmethod
    def of(cls, normals: np.ndarray, scores: np.ndarray) -> _Strip:
        """Makes it wide enough for the normals and for most of the images."""
        low = float(min(normals.min(), np.quantile(scores, 0.01)))
        high = float(max(normals.max(), np.quantile(scores, 0.95)))
        high = high if high > low else low + 1
        counts, edges = np.histogram(normals, 30, (low, high))
        width, height = STRIP
        x = (edges - low) / (high - low) * width
        y = height * (1 - counts / max(counts.max(), 1))
        bars = "".join(
            f"M{x[i]:.1f} {height}V{y[i]:.1f}H{x[i + 1]:.1f}V{height}Z" for i in np.flatnonzero(counts)
        )
        return cls(bars, low, high, len(normals), np.sort(normals))

    def at(self, score: float) -> float:
        """Returns the place of a score, from 0 to the width; one beyond an end stands at that end."""
        return STRIP[0] * min(max((score - self.low) / (self.high - self.low), 0), 1)

    def above(self, score: float) -> int:
        """Returns how many of the normals score lower."""
        return int(np.searchsorted(self.ordered, score, side="left"))


def _volumes(c: ReportContent, volumes: Sequence[str | None], flagged: np.ndarray | None) -> Table:
    """The scores, flagged slices and label of each volume, highest first."""
    places = map(str, range(len(c.scores)))
    found = sorted(volume_scores(zip(volumes, places, c.scores.tolist(), strict=True)), key=lambda v: -v.max)
    rows = []
    for v in found[:VOLUMES_SHOWN]:
        own, highest = [i for i, name in enumerate(volumes) if name == v.volume], int(v.max_slice)
        row = [v.volume, str(v.slices), f"{v.max:.4g}", f"{v.top_k_mean:.4g}"]
        if c.p_values is not None:
            row.append(f"{v.p_value(float(c.p_values[highest])):.2g}")
        if flagged is not None:
            row.append(str(flagged[own].sum()))
        if c.labels is not None:
            row.append("anomalous" if c.labels[own].any() else "normal")
        rows.append([*row, c.names[highest]])
    head = ["Volume", "Slices", "Highest slice", f"Mean of {TOP_K} highest"]
    optional = {"p": c.p_values, "Slices flagged": flagged, "Label": c.labels}
    return table([*head, *(k for k, v in optional.items() if v is not None), "Which slice"], rows)


def _flag_counts(flagged: np.ndarray | None, labels: np.ndarray | None) -> list[tuple[str, int, int]]:
    """(which images, flagged, of how many)."""
    if flagged is None:
        return []
    groups = {"images": np.ones(len(flagged), bool)}
    if labels is not None:
        groups = {"normal": labels == 0, "anomalous": labels == 1}
    return [(name, int(flagged[of].sum()), int(of.sum())) for name, of in groups.items() if of.any()]


def _overlay(image: np.ndarray, heatmap: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Heat in colour over the image in grey, the hotter the less transparent. uint8 RGB."""
    low, high = scale
    alpha = 0.8 * np.clip((heatmap - low) / max(high - low, 1e-9), 0, 1)[..., None]
    blend = image.mean(axis=-1, keepdims=True) * (1 - alpha) + colour(heatmap, scale) * alpha
    return np.asarray(blend.round().astype(np.uint8))


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


def _histogram(scores: np.ndarray, labels: np.ndarray | None, threshold: float | None) -> Figure:
    figure, ax = axes("score (higher = more anomalous)", "images")
    bins = np.histogram_bin_edges(scores, min(40, max(8, len(scores) // 5)))
    groups = [("all images", scores, "C1", "-")]
    if labels is not None:
        groups = [("normal", scores[labels == 0], "C1", "-"), ("anomalous", scores[labels == 1], "C0", "--")]
    for name, values, color, dash in groups:
        if len(values):  # dashes differ too, not colour alone
            ax.hist(values, bins, color=color, alpha=0.28)
            ax.hist(values, bins, histtype="step", color=color, linewidth=1.8, linestyle=dash, label=name)
    if threshold is not None and math.isfinite(threshold):
        ink = mpl.rcParams["text.color"]
        ax.axvline(threshold, color=ink, linewidth=1.4, linestyle=":", label=f"threshold {threshold:.4g}")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def _roc(
    labels: np.ndarray,
    scores: np.ndarray,
    flagged: np.ndarray | None,
    metrics: Mapping[str, Any],
    units: np.ndarray | None,
) -> Figure:
    figure, ax = axes("false positive rate", "true positive rate")
    grid, low, high = roc_band(labels, scores, units)
    fpr, tpr, _ = roc_curve(labels, scores)
    ax.plot([0, 1], [0, 1], color=mpl.rcParams["grid.color"], linewidth=1.2, linestyle="--")
    ax.fill_between(grid, low, high, color="C0", alpha=0.22, linewidth=0, label="95 % interval")
    name = f"AUROC {metrics['auroc']:.3f}" if "auroc" in metrics else "ROC"
    ax.plot(fpr, tpr, color="C0", linewidth=2, label=name)
    if flagged is not None and flagged.any():
        at, ink = [flagged[labels == c].mean() for c in (0, 1)], mpl.rcParams["text.color"]
        ax.plot(*at, "o", color=ink, markersize=6, label="at the threshold", clip_on=False)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    ax.legend(loc="lower right")
    return figure
