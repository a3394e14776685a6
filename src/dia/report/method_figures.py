"""The four figures of `dia illustrate`: target matrix, similarities, dissolved strips, removed energy.

Each figure draws what the loss, the encoder and the dissolver themselves compute. Trains and scores nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ..amplify.encoder import Encoder
from ..amplify.inputs import untrained_encoder
from ..amplify.loss import targets
from ..amplify.resident import training_rows
from ..amplify.shifts import SHIFTS
from ..core.errors import DataError
from ..data.formats.mark import MARK
from ..data.imageset import ANOMALOUS, NORMAL, ImageSet
from ..detectors import Detector
from ..detectors.dia import DIA
from ..dissolve import Dissolving
from ..dissolve.bank import LiveDissolving
from .pictures import DISSOLVE_TS, dissolved_columns, sheet

FIGURES = ("target_matrices", "similarity", "strips", "residual_energy")  # the names of the files
EXCLUDED, NEGATIVE, POSITIVE = 0, 1, 2  # values of a cell of the target matrix
MEANINGS = {  # colours as in the paper's poster
    POSITIVE: ("#2f5fb3", "positive: pulled to the anchor"),
    NEGATIVE: ("#cfc6ea", "negative: pushed away from the anchor"),
    EXCLUDED: ("#ffffff", "excluded: not in the denominator"),
}
OUTLINE = "#c8201e"  # around the dissolved columns
BATCH = 4  # most images in the similarity matrix
MEASURED = 200  # most images of each class in the curves of removed energy
STYLE = {"font.size": 9, "axes.titlesize": 10, "svg.fonttype": "none", "svg.hashsalt": "dia"}


def illustrate(
    out: Path,
    detector: Detector,
    images: ImageSet,
    *,
    ts: Sequence[int] = DISSOLVE_TS,
    count: int = 4,
    seed: int = 0,
    form: Literal["png", "svg"] = "png",
) -> list[Path]:
    """Writes the figures of the method into a folder.

    Args:
        out: the folder, made if absent.
        detector: a fitted `dia` or `dia+`; the first two figures need an encoder.
        images: labelled images in the shape that was fitted, at least one of them normal.
        ts: diffusion steps in 0–999 of the strips and the curves.
        count: images of each class in the strips, and (up to 4) in the similarity matrix.
        seed: seed of the choice of images and of the augmentation.
        form: file format of all figures but the strips, which are always PNG.

    Returns:
        Those of `FIGURES` that there are.

    Raises:
        DataError: the detector has no dissolver, no image is labelled normal, or `count` or `ts` is empty.
    """
    if not isinstance(detector, DIA) or not hasattr(detector, "dissolver_"):
        raise DataError(
            f"{detector.method} has no dissolver to draw; fit dia, or dia+ with dissolver.kind diffusion"
        )
    if images.labels is None or not (images.labels == NORMAL).any():
        raise DataError("figures of the method need at least one image labelled normal; see --normal")
    if count < 1 or not ts:
        raise DataError("give a count of at least 1 and at least one diffusion step t")
    lots = []
    for label in (NORMAL, ANOMALOUS):
        index = np.random.default_rng([seed, label]).permutation(np.flatnonzero(images.labels == label))
        lots.append(images.images[index[:MEASURED]])
    normals, anomalies = lots
    normal, anomalous = normals[:count], anomalies[:count]
    rows = [f"normal {i + 1}" for i in range(len(normal))]
    rows += [f"anomalous {i + 1}" for i in range(len(anomalous))]
    x = np.concatenate([normal, anomalous])
    sheet(out / "strips.png", dissolved_columns(detector.dissolver_, x, ts), rows)
    with style.context(["default", STYLE]):
        figures = {}
        if hasattr(detector, "encoder_"):
            figures["target_matrices"] = _target_figure(batch=2, shifts=2)
            figures["similarity"] = _similarity_figure(detector, normal[:BATCH], seed)
        figures["residual_energy"] = _energy_figure(detector.dissolver_, normals, anomalies, sorted(set(ts)))
        dates = {"png": {"Software": MARK}, "svg": dict.fromkeys(("Creator", "Date"))}[form]
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.{form}", metadata=dates)  # no dates: the same figure, the same file
    return [*(out / f"{name}.{form}" for name in figures), out / "strips.png"]


def target_cells(batch: int, shifts: int, exclude_own: bool) -> np.ndarray:
    """The target matrix of the loss.

    Args:
        batch: number B of images.
        shifts: number K of shifted instances of each.
        exclude_own: whether an anchor's own dissolved copy is left out, else it is a negative.

    Returns:
        `(2·K·B, 3·K·B)` of EXCLUDED, NEGATIVE or POSITIVE.
    """
    positive, excluded = targets(batch, shifts, 3, exclude_own)
    cells = np.where(excluded.numpy(), EXCLUDED, NEGATIVE)
    cells[np.arange(len(cells)), positive.numpy()] = POSITIVE
    return cells


def _target_figure(batch: int, shifts: int) -> Figure:
    """Draws the target matrix twice: own dissolved copies left out, and as negatives."""
    figure = Figure((8, 4.4), dpi=200, layout="compressed")
    colours = ListedColormap([MEANINGS[cell][0] for cell in (EXCLUDED, NEGATIVE, POSITIVE)])
    for ax, exclude_own in zip(figure.subplots(1, 2), (True, False), strict=True):
        cells = target_cells(batch, shifts, exclude_own)
        ax.pcolormesh(cells, cmap=colours, vmin=-0.5, vmax=2.5, edgecolors="#9a9a9a", linewidth=0.5)
        _frame(ax, cells.shape, batch, shifts, "black")
        ax.set_title(f"own dissolved copy {'left out' if exclude_own else 'a negative'}")
    figure.axes[0].set_ylabel("anchors: the undissolved rows")
    _legend(figure, [Patch(fc=colour, ec="#606060", label=said) for colour, said in MEANINGS.values()])
    return figure


def _frame(ax: Any, shape: tuple[int, ...], batch: int, shifts: int, ink: str) -> None:
    """Names the views, and images a, b … at shifts 0, 1 …; outlines the dissolved columns in red."""
    many = batch * shifts
    small = [f"{chr(97 + i % batch)}{i // batch}" for i in range(many)] if many <= 4 else []
    for axis, cells in ((ax.xaxis, shape[1]), (ax.yaxis, shape[0])):
        views = np.arange(cells // many)
        axis.set_ticks((views + 0.5) * many, [("view 1", "view 2", "dissolved")[v] for v in views])
        axis.set_ticks(np.arange(len(small) * len(views)) + 0.5, small * len(views), minor=True)
    ax.tick_params(which="both", length=0, labeltop=True, labelbottom=False)
    ax.tick_params(which="major", pad=16 if small else 4)
    ax.tick_params(axis="y", which="major", labelrotation=90, pad=22 if small else 4)
    for label in ax.get_yticklabels():
        label.set_verticalalignment("center")
    ax.set(xlim=(0, shape[1]), ylim=(shape[0], 0), aspect="equal")
    for i in (1, 2):
        ax.axvline(i * many, color=ink, linewidth=1.2)
        ax.axhline(i * many, color=ink, linewidth=1.2)
    box = Rectangle((2 * many, 0), many, 2 * many, fill=False, edgecolor=OUTLINE, linewidth=2.6)
    ax.add_patch(box).set(clip_on=False, zorder=5)


def _legend(figure: Figure, patches: list[Patch]) -> None:
    label = "dissolved copies: the new negatives"
    patches.append(Patch(facecolor="none", edgecolor=OUTLINE, linewidth=2.2, label=label))
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False)


def similarities(detector: DIA, images: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities of one batch's projections, before training and after it.

    The rows are those the loss sees: augmented views × shifts × images, dissolved live. "Before" is the
    encoder as the detector's seed began it. Both normalise by the statistics of this batch, as in training.

    Args:
        detector: a fitted detector with dissolver and encoder, which stays as it is.
        images: `(B, H, W, C)` uint8 in the shape that was fitted.
        seed: seed of augmentation, flips and t.

    Returns:
        Two `(3·K·B, 3·K·B)` float64 in [−1, 1], ordered as in `amplify/loss.py`.
    """
    s = getattr(detector.s, "contrast", detector.s)
    live = LiveDissolving(images, detector.dissolver_, s.ts)
    rows = training_rows(images, live, s.amplify, seed=seed).to(detector.where_)
    before = untrained_encoder(detector.shape_, s.amplify, detector.seed).to(detector.where_)
    return _cosines(before, rows), _cosines(detector.encoder_, rows)


@torch.no_grad()
def _cosines(encoder: Encoder, rows: Tensor) -> np.ndarray:
    encoder = copy.deepcopy(encoder).train()  # a copy, as its running statistics change
    z = F.normalize(encoder(rows)[1].double(), dim=1)
    return (z @ z.T).clamp(-1, 1).cpu().numpy()


def _similarity_figure(detector: DIA, images: np.ndarray, seed: int) -> Figure:
    """Draws the similarities before and after in one colour scale, and prints the means of kinds of pairs."""
    amplify = getattr(detector.s, "contrast", detector.s).amplify
    batch, shifts, exclude_own = len(images), SHIFTS[amplify.shift][0], amplify.exclude_own
    cells, left_out, kept = (target_cells(batch, shifts, own) for own in (exclude_own, True, False))
    own = f"own dissolved copies, {'left out' if exclude_own else 'among them'}"
    masks = {"positives": cells == POSITIVE, "negatives": cells == NEGATIVE, own: left_out != kept}
    matrices = similarities(detector, images, seed=seed)
    low = min(0.9, np.floor(10 * np.min(matrices)) / 10)
    figure = Figure((7.8, 4.8), dpi=200, layout="compressed")
    axes = figure.subplots(1, 2)
    for ax, when, matrix in zip(axes, ("before", "after"), matrices, strict=True):
        mesh = ax.pcolormesh(matrix, cmap="cividis", vmin=low, vmax=1)
        _frame(ax, matrix.shape, batch, shifts, "white")
        ax.set_title(f"{when} training")
        of = {name: matrix[: len(mask)][mask] for name, mask in masks.items()}
        means = [f"{name}: {f'{v.mean():.2f}' if len(v) else '–'}" for name, v in of.items()]
        ax.set_xlabel("\n".join(["mean similarity to the anchor", *means]).replace("-", "−"), linespacing=1.5)
    figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.02, label="cosine similarity")
    _legend(figure, [])
    return figure


def removed_energy(dissolver: Dissolving, images: np.ndarray, ts: Sequence[int]) -> np.ndarray:
    """Root mean square of x − D_t(x) over pixels and channels.

    Args:
        dissolver: a fitted dissolver.
        images: `(N, H, W, C)` uint8.
        ts: T diffusion steps.

    Returns:
        `(N, T)` float64 in grey levels, 0–255.
    """
    removed = (images - d.astype(float) for d in dissolver.dissolve(images, ts))
    return np.stack([np.sqrt((r**2).mean((1, 2, 3))) for r in removed], axis=1)


def _energy_figure(
    dissolver: Dissolving, normals: np.ndarray, anomalies: np.ndarray, ts: Sequence[int]
) -> Figure:
    """Draws the removed energy over t, and as the curves rise by more than they differ, their difference."""
    normal, anomalous = (removed_energy(dissolver, x, ts) for x in (normals, anomalies))
    figure = Figure((6.4, 5.6), dpi=200, layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    low, median, high = np.percentile(normal, [5, 50, 95], axis=0)
    for ax, zero in zip(axes, (0, median), strict=True):
        band = f"normal: 5–95 % of {len(normal)} images"
        ax.fill_between(ts, low - zero, high - zero, color="#0060a8", alpha=0.2, linewidth=0, label=band)
        ax.vlines(ts, low - zero, high - zero, color="#0060a8", alpha=0.5, linewidth=1)
        ax.plot(ts, median - zero, "o-", color="#0060a8", linewidth=2, label="normal: median")
        if len(anomalous):
            label = f"anomalous: median of {len(anomalous)} images"
            ax.plot(ts, np.median(anomalous, axis=0) - zero, "s--", color="#c44e00", mfc="white", label=label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#dddddd", linewidth=0.6)
    axes[0].set(title="What dissolving takes away", ylabel="RMS of x − Dₜ(x), grey levels (0–255)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    axes[1].set(xlabel="diffusion step t", ylabel="the same, less\nthe normals' median")
    figure.align_ylabels(axes)
    return figure
