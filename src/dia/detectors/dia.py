"""DIA, the paper's detector: contrastive learning against dissolved copies, scored as CSI.

Knows dissolver, bank and encoder. Source: Shi et al., "Dissolving Is Amplifying: Towards Fine-Grained
Anomaly Detection", ECCV 2024. Nothing is dissolved when scoring.

Deviations from the released code: images are dissolved in the range the diffusion model was trained on;
training has a fixed length and never looks at test images; small presets draw t from a grid, dissolved
once (`live=False`), where the paper dissolves anew at every step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..amplify.contrast import AmplifySettings, trained_on
from ..core.errors import DataError
from ..core.processes import is_main, of_all
from ..core.settings import require
from ..data.imageset import subsample
from ..dissolve import DissolverSettings, Dissolving, load_dissolver, make_dissolver
from ..dissolve.bank import DissolvedBank, LiveDissolving
from ..dissolve.base import T_MAX
from ..dissolve.controls import StandIn
from ..dissolve.matching import matched
from .base import MIN_NORMALS
from .csi import CSI, PARTS, Part, check_scoring
from .saving import Stages


@dataclass(frozen=True)
class DIASettings:
    """DIA as published.

    Args:
        dissolver: the diffusion model, or what stands in for it.
        amplify: encoder and contrastive training.
        ts: diffusion steps from which t is drawn, ascending; `amplify.t_per` and `t_sampler` say how.
        live: dissolve during training instead of once before it; the same views, slower.
        samples: seeded augmentations averaged per shift when scoring.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        bank_gb: room on disk for the dissolved copies; where it is too small for all images that training
            asks for, the encoder trains on fewer images, evenly spaced.
        score_parts: which of `cosine`, `norm` and `shift` make the score; all three as published.
        score_draws: of the seeded augmentations, `shared` by all images or each image's `own`; see `csi`.
    """

    dissolver: DissolverSettings = field(default_factory=DissolverSettings)
    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    ts: tuple[int, ...] = (30, 53, 76, 99)
    live: bool = False
    samples: int = 10
    bank_size: int = 16384
    bank_gb: float = 16.0
    score_parts: tuple[Part, ...] = PARTS
    score_draws: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        check_scoring(self)
        check_dissolved(self)


def check_dissolved(s: Any) -> None:
    """What settings of training against dissolved copies must fulfil."""
    rising = all(a < b for a, b in pairwise(s.ts))
    require(
        bool(s.ts) and rising and s.ts[0] >= 0 and s.ts[-1] < T_MAX,
        "ts", f"must be ascending diffusion steps in 0–{T_MAX - 1}, not {list(s.ts)}",
    )  # fmt: skip
    require(s.bank_gb > 0, "bank_gb", f"must be above 0, not {s.bank_gb}")


class DIA(CSI):
    """Dissolving Is Amplifying."""

    method = "dia"
    family = "contrastive"
    paper = "Shi et al., Dissolving Is Amplifying, ECCV 2024"
    Settings: ClassVar[type] = DIASettings
    dissolver_: Dissolving

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        self._contrast.amplify.check_installed()
        self._contrast.amplify.stem_of(self.shape_)  # before hours of training, not after
        if self.s.dissolver.kind == "none":
            self._fit_encoder(images, stages, None, "none")
        else:
            self._fit_amplified(images, self._fit_dissolver(images, spare, self.s.ts, stages), stages)
        self._fit_bank(images)

    def _fit_dissolver(
        self, images: np.ndarray, spare: np.ndarray, ts: tuple[int, ...], stages: Stages
    ) -> Dissolving:
        """What dissolves; a control with `matched` removes as much of `spare` as diffusion does at `ts`."""
        self.facts_ = {k: v for k, v in self.facts_.items() if k != "matched"}
        asked = self.s.dissolver
        if not asked.matched:
            return self._fit_plain(asked, images, stages)
        like = self._fit_plain(replace(asked, kind="diffusion", matched=False), images, stages)
        found = of_all(matched(asked, like, spare, ts))[0]  # machines differ in the last digits
        self.facts_["matched"] = found.facts()
        self.dissolver_ = make_dissolver(found.settings, seed=self.seed, device=self.device)
        return self.dissolver_

    def _fit_plain(self, d: DissolverSettings, images: np.ndarray, stages: Stages) -> Dissolving:
        dissolver = make_dissolver(d, seed=self.seed, device=self.device)
        self.dissolver_ = dissolver
        if isinstance(dissolver, StandIn):
            return dissolver
        # the range in which it will dissolve changes nothing in its training
        path = stages.path("dissolver", replace(d, input_range="right"), self.seed, images)

        def make() -> float:
            dissolver.fit(images, workdir=path, resume=stages.resume, progress=stages.progress)
            if is_main():
                dissolver.save(path / "model")
            return dissolver.fit_seconds_

        def load() -> None:
            self.dissolver_ = load_dissolver(path / "model", device=self.device)
            self.dissolver_.settings = d

        stages.part(path, make, load)
        return self.dissolver_

    def _fit_amplified(self, images: np.ndarray, dissolver: Dissolving, stages: Stages) -> None:
        views: LiveDissolving | DissolvedBank
        key, c = dissolver.sha256(), self._contrast
        if c.live:
            views = LiveDissolving(images, dissolver, c.ts)
        else:
            index = trained_on(len(images), c.amplify, self.seed)
            room = int(c.bank_gb * 2**30) // (2 * len(c.ts) * int(np.prod(images.shape[1:])))
            if len(index) > room:
                if room < MIN_NORMALS:
                    raise DataError(f"bank_gb {c.bank_gb} has room for {room} images; raise it")
                warnings.warn(
                    f"the encoder trains on {room} of {len(images)} images, for which bank_gb "
                    f"{c.bank_gb:g} has room",
                    stacklevel=2,
                )
                images = subsample(images, room)
                index = trained_on(len(images), c.amplify, self.seed)
            path = stages.path("bank", key, list(c.ts), images, index)
            views = DissolvedBank.build(images, dissolver, c.ts, path / "bank.npy", index)
        self._fit_encoder(images, stages, views, key)

    def _save_parts(self, folder: Path) -> None:
        if hasattr(self, "dissolver_"):
            self.dissolver_.save(folder / "dissolver")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        self._restore_dissolver(folder)

    def _restore_dissolver(self, folder: Path) -> None:
        if self.s.dissolver.kind != "none":
            self.dissolver_ = load_dissolver(folder / "dissolver", device=self.device)
