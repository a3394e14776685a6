"""DIA, the paper's detector: contrastive learning against dissolved copies, scored as CSI.

Knows dissolver, bank and encoder. Source: Shi et al., "Dissolving Is Amplifying: Towards Fine-Grained
Anomaly Detection", ECCV 2024. Nothing is dissolved when scoring.

Deviations from the released code: images are dissolved in the range the diffusion model was trained on;
training has a fixed length and never looks at test images; small presets draw t from a grid, dissolved
once (`live=False`), where the paper dissolves anew at every step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..amplify.learning import AmplifySettings, trained_on
from ..data.imageset import DataError
from ..dissolve import Dissolver, DissolverSettings
from ..dissolve.bank import DissolvedBank, LiveDissolving
from ..training import is_main
from .base import MIN_NORMALS, Stages
from .csi import CSI, spread


@dataclass(frozen=True)
class DIASettings:
    """DIA as published.

    Args:
        dissolver: the diffusion model.
        amplify: encoder and contrastive training.
        ts: diffusion steps from which t is drawn for each batch and shift.
        live: dissolve during training instead of once before it; the same views, slower.
        samples: seeded augmentations averaged per shift when scoring.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        bank_gb: room on disk for the dissolved copies; where it is too small for all images that training
            asks for, the encoder trains on fewer images, evenly spaced.
    """

    dissolver: DissolverSettings = field(default_factory=DissolverSettings)
    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    ts: tuple[int, ...] = (30, 53, 76, 99)
    live: bool = False
    samples: int = 10
    bank_size: int = 16384
    bank_gb: float = 16.0


class DIA(CSI):
    """Dissolving Is Amplifying."""

    method = "dia"
    Settings: ClassVar[type] = DIASettings

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        dissolver = self._fit_dissolver(images, stages)
        self._fit_amplified(images, dissolver, stages)
        self._fit_bank(images)

    def _fit_dissolver(self, images: np.ndarray, stages: Stages) -> Dissolver:
        d = self.s.dissolver
        path = stages.path("dissolver", d, self.seed, images)
        self.dissolver_ = Dissolver(d, seed=self.seed, device=self.device)

        def make() -> float:
            self.dissolver_.fit(images, workdir=path, resume=stages.resume, progress=stages.progress)
            if is_main():
                self.dissolver_.save(path / "model")
            return self.dissolver_.fit_seconds_

        def load() -> None:
            self.dissolver_ = Dissolver.load(path / "model", device=self.device)

        stages.part(path, make, load)
        return self.dissolver_

    def _fit_amplified(self, images: np.ndarray, dissolver: Dissolver, stages: Stages) -> None:
        views: LiveDissolving | DissolvedBank
        key = dissolver.sha256()
        if self.s.live:
            views = LiveDissolving(images, dissolver, self.s.ts)
        else:
            index = trained_on(len(images), self.s.amplify, self.seed)
            room = int(self.s.bank_gb * 2**30) // (2 * len(self.s.ts) * int(np.prod(images.shape[1:])))
            if len(index) > room:
                if room < MIN_NORMALS:
                    raise DataError(f"bank_gb {self.s.bank_gb} has room for {room} images; raise it")
                warnings.warn(
                    f"the encoder trains on {room} of {len(images)} images, for which bank_gb "
                    f"{self.s.bank_gb:g} has room",
                    stacklevel=2,
                )
                images = spread(images, room)
                index = trained_on(len(images), self.s.amplify, self.seed)
            path = stages.path("bank", key, list(self.s.ts), images, index)
            views = DissolvedBank.build(images, dissolver, self.s.ts, path / "bank.npy", index)
        self._fit_encoder(images, stages, views, key)

    def _save_parts(self, folder: Path) -> None:
        self.dissolver_.save(folder / "dissolver")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        self._restore_dissolver(folder)

    def _restore_dissolver(self, folder: Path) -> None:
        self.dissolver_ = Dissolver.load(folder / "dissolver", device=self.device)
