"""DIA, the paper's detector: contrastive learning against dissolved copies, scored as CSI.

Knows dissolver, bank and encoder. Source: Shi et al., "Dissolving Is Amplifying: Towards Fine-Grained
Anomaly Detection", ECCV 2024. Nothing is dissolved when scoring.

Deviations from the released code: images are dissolved in the range the diffusion model was trained on;
training has a fixed length and never looks at test images; small presets draw t from a grid, dissolved
once (`live=False`), where the paper dissolves anew at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..amplify.learning import AmplifySettings
from ..dissolve import Dissolver, DissolverSettings
from ..dissolve.bank import DissolvedBank, LiveDissolving
from .base import Stages
from .csi import CSI


@dataclass(frozen=True)
class DIASettings:
    """DIA as published.

    Args:
        dissolver: the diffusion model.
        amplify: encoder and contrastive training.
        ts: diffusion steps from which t is drawn for each batch and shift.
        live: dissolve during training instead of once before it; the same views, slower.
        samples: seeded augmentations averaged per shift when scoring.
    """

    dissolver: DissolverSettings = field(default_factory=DissolverSettings)
    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    ts: tuple[int, ...] = (30, 53, 76, 99)
    live: bool = False
    samples: int = 10


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
            path = stages.path("bank", key, list(self.s.ts), images)
            views = DissolvedBank.build(images, dissolver, self.s.ts, path / "bank.npy")
        self._fit_encoder(images, stages, views, key)

    def _save_parts(self, folder: Path) -> None:
        self.dissolver_.save(folder / "dissolver")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        self._restore_dissolver(folder)

    def _restore_dissolver(self, folder: Path) -> None:
        self.dissolver_ = Dissolver.load(folder / "dissolver", device=self.device)
