"""Pictures of the method: what the loss asks for, what training made of it, what dissolving takes away.

Draws what the loss, the encoder and the dissolver themselves say: masks come from `loss.targets`, views from
the training's own making of them. Trains and scores nothing, and knows labels only as two lots of images.

Figures are saved as `.png` or `.svg` by the name's ending, the same bytes for the same numbers. Colours
differ in lightness too, so that they hold in grey; lines differ in dashes and marks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

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
from ..detectors.base import Detector
from ..detectors.dia import DIA
from ..dissolve.bank import LiveDissolving
from .pictures import DISSOLVE_TS, sheet

EXCLUDED, NEGATIVE, POSITIVE = 0, 1, 2  # what a cell of the target matrix can be
COLOURS = ("#ffffff", "#cfc6ea", "#2f5fb3")  # of the three: white, lavender, blue, as in the poster
OUTLINE = "#c8201e"  # the poster's red, around the dissolved columns
MEANINGS = (
    "excluded: not in the denominator",
    "negative: pushed away from the anchor",
    "positive: pulled to the anchor",
)
NORMAL, ANOMALOUS = "#0060a8", "#c44e00"  # told apart by the colour-blind, and by dashes
WHITE, BLACK = "#ffffff", "#000000"  # of lines between groups of cells
BAND = (5.0, 95.0)  # percentiles of the normals
VIEWS = ("view 1", "view 2", "dissolved")

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dia",  # ids would be random otherwise
}
_NO_DATES = {".png": {"Software": None}, ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type"))}
_CHUNK = 64  # images dissolved at a time
_LEAST = 11  # points between the middles of two labels

P = ParamSpec("P")
R = TypeVar("R")


class Dissolves(Protocol):
    """What pictures ask of a dissolver."""

    def dissolve(self, images: np.ndarray, t: Sequence[int]) -> np.ndarray:
        """`(N, H, W, C)` uint8 at several t, `(len(t), N, H, W, C)` uint8."""


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws under this file's style, whatever the caller's."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return styled


@_styled
def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG or SVG, without dates or versions: the same figure gives the same file."""
    path = _picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=_NO_DATES[path.suffix.lower()])
    return path


def _picture(path: Path, endings: Sequence[str] = tuple(_NO_DATES)) -> Path:
    """The path, if it names a picture that can be written: before work is spent on it."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise DataError(f"{path}: the name of this picture must end in {' or '.join(endings)}")
    return path


# --- what the loss asks for ------------------------------------------------------------------------------


def target_cells(batch: int, shifts: int, exclude_own: bool = True, views: int = 3) -> np.ndarray:
    """What each row is to each anchor: `(2·K·B, views·K·B)` of EXCLUDED, NEGATIVE or POSITIVE.

    Args:
        batch: B images.
        shifts: K shifted instances of each.
        exclude_own: as in `loss.targets`, whose mask this is.
        views: 3 with dissolved views, 2 without (CSI).

    Raises:
        DataError: no image or no shift.
    """
    if min(batch, shifts) < 1:
        raise DataError(f"a target matrix needs at least one image and one shift, not {batch} and {shifts}")
    positive, excluded = targets(batch, shifts, views, exclude_own)
    cells = np.where(excluded.numpy(), EXCLUDED, NEGATIVE)
    cells[np.arange(len(cells)), positive.numpy()] = POSITIVE
    return cells


@_styled
def target_figure(
    batch: int = 2, shifts: int = 2, maskings: Sequence[bool] = (True,), views: int = 3
) -> Figure:
    """The target matrix, or several beside each other: one for each `exclude_own` of `maskings`."""
    n = len(maskings)
    rows, columns = target_cells(batch, shifts, views=views).shape
    side = 4.4 if n == 1 else 3.1  # inches
    figure = Figure(
        (n * (side + 0.9), side * rows / columns + (2.1 if n == 1 else 1.8)), dpi=200, layout="compressed"
    )
    for ax, exclude_own in zip(figure.subplots(1, n, squeeze=False)[0], maskings, strict=True):
        cells = target_cells(batch, shifts, exclude_own, views)
        edges = np.arange(columns + 1) - 0.5
        ax.pcolormesh(
            edges, edges[: rows + 1], cells, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=2.5,
            edgecolors="#9a9a9a", linewidth=min(0.6, side * 2 / columns),  # thin where cells are small
        )  # fmt: skip
        own = "left out" if exclude_own else "a negative"
        title = f"own dissolved copy {own}" if views == 3 else "without dissolved views"
        _frame(ax, rows, columns, shifts, batch, side, title, BLACK)
    axes = figure.axes[0]
    axes.set_ylabel("anchors: the undissolved rows", labelpad=44)
    handles = [
        Patch(facecolor=COLOURS[cell], edgecolor="#606060", label=MEANINGS[cell])
        for cell in (POSITIVE, NEGATIVE, EXCLUDED)
    ]
    _legend(figure, handles, views, n)
    return figure


def target_matrix(
    path: Path, batch: int = 2, shifts: int = 2, exclude_own: bool = True, *, views: int = 3
) -> Path:
    """Draws the target-similarity matrix, in the colours of the poster, from the mask the loss uses.

    Args:
        path: of the PNG or SVG.
        batch: B images.
        shifts: K shifted instances of each.
        exclude_own: leave each anchor's own dissolved copy out, or count it a negative.
        views: 3, or 2 for CSI.

    Raises:
        DataError: another ending, or no image or shift.
    """
    return save(target_figure(batch, shifts, (exclude_own,), views), _picture(path))


def target_matrices(path: Path, batch: int = 2, shifts: int = 2) -> Path:
    """As `target_matrix`, with both maskings side by side: own dissolved copy left out, and a negative."""
    return save(target_figure(batch, shifts, (True, False)), _picture(path))


def _frame(
    ax: Any, rows: int, columns: int, shifts: int, batch: int, side: float, title: str, ink: str
) -> None:
    """Labels of view, shift and image on top and left, lines between them, dissolved columns outlined.

    Args:
        ax: with cells of 1×1 around whole numbers.
        rows: how many rows, and
        columns: columns of cells, in the order of `loss.py`.
        shifts: K.
        batch: B.
        side: width of the axes in inches, about: labels that would touch are left out.
        title: above the labels.
        ink: of the lines between groups.
    """
    many = shifts * batch
    levels: list[tuple[str, int, Callable[[int], str]]] = [
        ("image", 1, lambda i: chr(ord("a") + i % batch)),  # more than 26 have no room
        ("shift", batch, lambda i: str(i % shifts)),
        ("view", many, lambda i: VIEWS[i]),
    ]
    levels = [level for level in levels if level[1] * side * 72 / columns >= _LEAST]
    away = 4
    for name, size, label in levels:
        for i in range(columns // size):
            middle = (i + 0.5) * size - 0.5
            ax.annotate(
                label(i), (middle, 1), (0, away), ("data", "axes fraction"), "offset points", ha="center"
            )
            if i < rows // size:
                ax.annotate(
                    label(i), (0, middle), (-away, 0), ("axes fraction", "data"), "offset points",
                    ha="right", va="center", rotation=90 if name == "view" else 0,
                )  # fmt: skip
        ax.annotate(name, (0, 1), (-5, away), "axes fraction", "offset points", ha="right", color="#606060")
        away += 13
    ax.set_title(title, pad=away + 4)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    for i in range(1, columns // many):
        ax.axvline(i * many - 0.5, color=ink, linewidth=1.2)
        if i < rows // many:
            ax.axhline(i * many - 0.5, color=ink, linewidth=1.2)
    if columns == 3 * many:
        corner = (2 * many - 0.5, -0.5)
        # edged as the lines are where cells can be dark: in grey, red is as dark as they
        edge = [(ink, 4.6)] if ink == WHITE else []
        for colour, width in [*edge, (OUTLINE, 2.6)]:
            box = Rectangle(corner, many, 2 * many, fill=False, edgecolor=colour, linewidth=width)
            ax.add_patch(box).set(clip_on=False, zorder=5)


def _legend(figure: Figure, handles: list[Any], views: int, columns: int) -> None:
    if views == 3:
        label = "dissolved copies: the new negatives"
        handles = [*handles, Patch(facecolor="none", edgecolor=OUTLINE, linewidth=2.2, label=label)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


# --- what training made of it ----------------------------------------------------------------------------


def pair_masks(batch: int, shifts: int, exclude_own: bool = True) -> dict[str, np.ndarray]:
    """Which cells of the anchors' rows `(2·K·B, 3·K·B)` are positives, negatives, own dissolved copies.

    Own copies are the cells that the two maskings treat differently; they are among the negatives unless
    `exclude_own`.
    """
    cells, kept = target_cells(batch, shifts, exclude_own), target_cells(batch, shifts, False)
    own = (target_cells(batch, shifts, True) == EXCLUDED) & (kept != EXCLUDED)
    return {"positive": cells == POSITIVE, "negative": cells == NEGATIVE, "own": own}


def with_dissolver(detector: Detector) -> DIA:
    """The detector, if it has what these pictures are of: a fitted dissolver.

    Raises:
        DataError: it has not.
    """
    if not isinstance(detector, DIA) or (
        hasattr(detector, "encoder_") and not hasattr(detector, "dissolver_")
    ):
        raise DataError(f"{detector.method} has no dissolver to draw; fit dia or dia+")
    if not hasattr(detector, "dissolver_"):
        raise DataError(f"{detector.method} is not fitted; call fit() or load a fitted model first")
    return detector


def similarities(detector: Detector, images: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities of one batch's projections, before training and after it.

    The rows are those the loss would see: augmented views × shifts × images, dissolved live. Before is the
    encoder as the detector's seed began it. Both normalise by the statistics of this batch, as they do in
    training: an untrained encoder has no others.

    Args:
        detector: a fitted `dia`, or `dia+` with the view `contrast`, which stays as it is.
        images: `(B, H, W, C)` uint8, the batch.
        seed: of the augmentation, flips and t.

    Returns:
        Two `(3·K·B, 3·K·B)` float64 in [−1, 1], ordered as in `loss.py`.

    Raises:
        DataError: a detector without dissolver or encoder, or images it was not fitted for.
    """
    detector = with_dissolver(detector)
    if not hasattr(detector, "encoder_"):
        raise DataError(f"{detector.method} has no encoder to draw; fit dia, or dia+ with the view contrast")
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != tuple(detector.shape_):
        raise DataError(f"a batch must be (B, {', '.join(map(str, detector.shape_))}), not {images.shape}")
    s = detector.s.amplify
    live = LiveDissolving(images, detector.dissolver_, detector.s.ts)
    rows = training_rows(images, live, s, seed=seed)
    before = untrained_encoder(detector.shape_, s, detector.seed)
    rows = rows.to(detector.where_)
    return _cosines(before.to(detector.where_), rows), _cosines(detector.encoder_, rows)


@torch.no_grad()
def _cosines(encoder: Encoder, rows: Tensor) -> np.ndarray:
    encoder = copy.deepcopy(encoder).train()  # a copy: its running statistics move
    z = F.normalize(encoder(rows)[1].double(), dim=1)
    return (z @ z.T).clamp(-1, 1).cpu().numpy()


@_styled
def similarity_figure(
    before: np.ndarray, after: np.ndarray, shifts: int, batch: int, exclude_own: bool = True
) -> Figure:
    """Two matrices of `similarities` side by side in one scale of colours, with their means under them."""
    rows, masks = len(before), pair_masks(batch, shifts, exclude_own)
    low = np.floor(min(before.min(), after.min()) * 10) / 10
    own = "left out" if exclude_own else "among them"
    figure = Figure((7.8, 4.8), dpi=200, layout="compressed")
    axes = figure.subplots(1, 2)
    for ax, title, matrix in zip(axes, ("before training", "after training"), (before, after), strict=True):
        image = ax.imshow(matrix, cmap="cividis", vmin=min(low, 0.9), vmax=1, interpolation="none")
        _frame(ax, rows, rows, shifts, batch, 2.9, title, WHITE)
        mean = {name: matrix[: len(mask)][mask] for name, mask in masks.items()}
        lines = [
            f"positives: {_mean(mean['positive'])}",
            f"negatives: {_mean(mean['negative'])}",
            f"own dissolved copies, {own}: {_mean(mean['own'])}",
        ]
        ax.set_xlabel("mean similarity to the anchor\n" + "\n".join(lines), linespacing=1.5)
    figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, label="cosine similarity")
    _legend(figure, [], 3, 1)
    return figure


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f}".replace("-", "−") if len(values) else "–"


def similarity_before_after(
    path: Path, detector: Detector, images: np.ndarray, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws the measured similarities of one batch before and after training, in one scale of colours.

    Args:
        path: of the PNG or SVG.
        detector: as above.
        images: `(B, H, W, C)` uint8, the batch; B = 2 to 4 is easily read.
        seed: of the augmentation, flips and t.

    Returns:
        `before` and `after` as `similarities` has them, and for each the means that are printed:
        `before_positive`, `before_negative`, `before_own`, `after_positive`, … `()` (NaN of no pair).

    Raises:
        DataError: as `similarities`, and for another ending of the name.
    """
    path = _picture(path)
    before, after = similarities(detector, images, seed=seed)
    s = detector.s.amplify
    shifts, exclude_own = SHIFTS[s.shift][0], s.exclude_own
    save(similarity_figure(before, after, shifts, len(images), exclude_own), path)
    numbers = {"before": before, "after": after}
    for name, mask in pair_masks(len(images), shifts, exclude_own).items():
        for when, matrix in (("before", before), ("after", after)):
            chosen = matrix[: len(mask)][mask]
            numbers[f"{when}_{name}"] = np.asarray(chosen.mean() if len(chosen) else np.nan)
    return numbers


# --- what dissolving takes away --------------------------------------------------------------------------


def dissolve_strips(
    path: Path,
    dissolver: Dissolves,
    normal_images: np.ndarray,
    anomalous_images: np.ndarray,
    ts: Sequence[int] = DISSOLVE_TS,
) -> Path:
    """Draws each image and its dissolved copies in a row, normal ones first.

    Args:
        path: of the PNG; these are pixels, there is no SVG of them.
        dissolver: fitted.
        normal_images: `(N, H, W, C)` uint8, and
        anomalous_images: `(M, H, W, C)` uint8; one of the two may be empty.
        ts: diffusion steps, a column each, in this order.

    Raises:
        DataError: another ending, no image, shapes that differ, no t, or what the dissolver refuses.
    """
    path, ts = _picture(path, (".png",)), _steps(ts)
    lots = [x for x in (normal_images, anomalous_images) if len(x)]
    if not lots or len({x.shape[1:] for x in lots}) > 1:
        shapes = f"{normal_images.shape} and {anomalous_images.shape}"
        raise DataError(f"strips need normal and anomalous images of one size, not {shapes}")
    images = np.concatenate(lots)
    columns = [("image", images)]
    columns += [(f"t = {t}", d) for t, d in zip(ts, dissolver.dissolve(images, ts), strict=True)]
    rows = [f"normal {i + 1}" for i in range(len(normal_images))]
    rows += [f"anomalous {i + 1}" for i in range(len(anomalous_images))]
    return sheet(path, columns, rows)


def residuals(dissolver: Dissolves, images: np.ndarray, ts: Sequence[int]) -> np.ndarray:
    """Root mean square of x − D_t(x) over pixels and channels, in grey levels: `(N, len(ts))` float64.

    Args:
        dissolver: fitted.
        images: `(N, H, W, C)` uint8.
        ts: diffusion steps.

    Raises:
        DataError: no t, or what the dissolver refuses.
    """
    ts, out = _steps(ts), np.empty((len(images), len(ts)))
    for start in range(0, len(images), _CHUNK):
        x = images[start : start + _CHUNK]
        for j, dissolved in enumerate(dissolver.dissolve(x, ts)):
            removed = x.astype(np.float64) - dissolved
            out[start : start + _CHUNK, j] = np.sqrt((removed**2).mean((1, 2, 3)))
    return out


@_styled
def residual_figure(numbers: dict[str, np.ndarray]) -> Figure:
    """The curves of `residual_energy`'s numbers; and again as differences from the normals' median.

    The second panel is there because the curves rise by far more than they differ.
    """
    n, ts = numbers, numbers["ts"]
    figure = Figure((6.4, 5.6), dpi=200, layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    names = [f"normal: {BAND[0]:g}–{BAND[1]:g} % of {_images(n['normal'])}", "normal: median"]
    for ax, zero in zip(axes, (0 * n["normal_median"], n["normal_median"]), strict=True):
        low, high = n["normal_low"] - zero, n["normal_high"] - zero
        ax.fill_between(ts, low, high, color=NORMAL, alpha=0.2, linewidth=0, label=names[0])
        # the band at each t that was measured, which is all there is of it where that is one
        ax.vlines(ts, low, high, color=NORMAL, alpha=0.5, linewidth=1)
        ax.plot(ts, n["normal_median"] - zero, "o-", color=NORMAL, linewidth=2, markersize=5, label=names[1])
        if len(n["anomalous"]):
            ax.plot(
                ts, n["anomalous_median"] - zero, "s--", color=ANOMALOUS, linewidth=2, markersize=5.5,
                label=f"anomalous: median of {_images(n['anomalous'])}", markerfacecolor="white",
                markeredgewidth=1.6,
            )  # fmt: skip
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set(title="What dissolving takes away", ylabel="RMS of x − Dₜ(x), grey levels (0–255)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False, loc="best")
    axes[1].set(xlabel="diffusion step t", ylabel="the same, less\nthe normals' median")
    figure.align_ylabels(axes)
    return figure


def _images(values: np.ndarray) -> str:
    return f"{len(values)} image{'s' * (len(values) != 1)}"


def residual_energy(
    path: Path,
    dissolver: Dissolves,
    normals: np.ndarray,
    anomalous: np.ndarray,
    ts: Sequence[int] = DISSOLVE_TS,
) -> dict[str, np.ndarray]:
    """Draws how much dissolving changes images over t: the normals' band and median, the anomalous' median.

    Args:
        path: of the PNG or SVG.
        dissolver: fitted.
        normals: `(N, H, W, C)` uint8, at least one.
        anomalous: `(M, H, W, C)` uint8; their curve is left out where M = 0.
        ts: diffusion steps, in any order.

    Returns:
        `ts` `(T,)` ascending; `normal` `(N, T)` and `anomalous` `(M, T)`, each image's `residuals` in grey
        levels; `normal_low`, `normal_median`, `normal_high` `(T,)`, the 5th, 50th and 95th percentile; and
        `anomalous_median` `(T,)`, NaN where M = 0.

    Raises:
        DataError: another ending, no normal image, no t, or what the dissolver refuses.
    """
    path, ts = _picture(path), sorted(set(_steps(ts)))
    if not len(normals):
        raise DataError("the residuals' band needs at least one normal image")
    of_normals, of_anomalous = residuals(dissolver, normals, ts), residuals(dissolver, anomalous, ts)
    low, median, high = np.percentile(of_normals, [BAND[0], 50, BAND[1]], axis=0)
    numbers = {
        "ts": np.array(ts),
        "normal": of_normals,
        "anomalous": of_anomalous,
        "normal_low": low,
        "normal_median": median,
        "normal_high": high,
        "anomalous_median": np.median(of_anomalous, axis=0) if len(anomalous) else np.full(len(ts), np.nan),
    }
    save(residual_figure(numbers), path)
    return numbers


def _steps(ts: Sequence[int]) -> list[int]:
    if not len(ts):
        raise DataError("at least one diffusion step t is needed")
    return [int(t) for t in ts]
