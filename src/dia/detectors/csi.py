"""CSI, and the score DIA shares with it. Knows the encoder; nothing of dissolving.

Source: Tack et al., "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
Instances", NeurIPS 2020, eqs. 5–8; as used by "Dissolving Is Amplifying", ECCV 2024.

normality(x) = 1/K Σ_k [ max_m ⟨z_k, z̄_{k,m}⟩·λ_k + s_k[k]·μ_k ], with z_k the mean projection and s_k the
mean shift logits of shift k over seeded augmentations, z̄_{k,m} the L2-normalised z_k of the m-th training
normal, λ_k = 1/mean‖z_k‖ and μ_k = 1/mean s_k[k] over training. The score is −normality.

Deviation: each of the seeded augmentations is one draw shared by all images, so that an image's score
does not depend on which others are scored with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from ..amplify.augment import Augment
from ..amplify.encoder import Encoder
from ..amplify.learning import AmplifySettings, Dissolved, build_encoder, encoder_input, learn
from ..amplify.shifts import SHIFTS
from ..training import choose_device, seed_step
from .base import Detector, Stages, load_module, module_tensors

_CHUNK = 256


@dataclass(frozen=True)
class CSISettings:
    """CSI: contrastive learning on shifted instances, without dissolved views.

    Args:
        amplify: encoder and training.
        samples: seeded augmentations averaged per shift when scoring.
    """

    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    samples: int = 10


class CSI(Detector):
    """Contrastive learning on shifted instances: the baseline DIA builds on."""

    method = "csi"
    Settings: ClassVar[type] = CSISettings
    encoder_: Encoder

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        self._fit_encoder(images, stages, None, "none")
        self._fit_bank(images)

    def _fit_encoder(
        self, images: np.ndarray, stages: Stages, dissolved: Dissolved | None, dissolver_hash: str
    ) -> None:
        a = self.s.amplify
        self.where_ = choose_device(self.device)
        ts = list(dissolved.ts) if dissolved else []
        path = stages.path("encoder", a, ts, dissolver_hash, self.seed, images)

        def make() -> float:
            self.encoder_, seconds = learn(
                images,
                dissolved,
                a,
                seed=self.seed,
                device=self.device,
                workdir=path,
                resume=stages.resume,
                progress=stages.progress,
            )
            save_file(module_tensors(self.encoder_, ""), path / "encoder.safetensors")
            return seconds

        def load() -> None:
            self.encoder_ = build_encoder(self.shape_, a)
            load_module(self.encoder_, load_file(path / "encoder.safetensors"), "")

        stages.part(path, make, load)
        self._ready()

    def _ready(self) -> None:
        self.where_ = choose_device(self.device)
        self.encoder_ = self.encoder_.to(self.where_).eval()
        channels = 3 if self.s.amplify.rgb else self.shape_[2]
        self.augment_ = Augment(self.s.amplify.augment, channels, scoring=True)

    @torch.inference_mode()
    def _projections(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean projections z `(K, N, D)` and mean logits of the right shift `(K, N)` over the samples."""
        k_shifts, shift = SHIFTS[self.s.amplify.shift]
        z_parts, s_parts = [], []
        for start in range(0, len(images), _CHUNK):
            x = encoder_input(images[start : start + _CHUNK], self.s.amplify).to(self.where_)
            zs, ss = [], []
            for k in range(k_shifts):
                z_sum, s_sum = 0.0, 0.0
                for sample in range(self.s.samples):
                    with torch.random.fork_rng(devices=[]):
                        seed_step(self.seed, sample)
                        view = self.augment_(shift(x, k))
                    _, z, logits = self.encoder_(view)
                    z_sum, s_sum = z_sum + z, s_sum + logits[:, k]
                zs.append(z_sum / self.s.samples)
                ss.append(s_sum / self.s.samples)
            z_parts.append(torch.stack(zs))
            s_parts.append(torch.stack(ss))
        return torch.cat(z_parts, 1), torch.cat(s_parts, 1)

    def _fit_bank(self, images: np.ndarray) -> None:
        z, s = self._projections(images)
        norms = z.norm(dim=-1, keepdim=True)
        self.bank_ = z / norms.clamp(min=1e-12)  # (K, M, D)
        self.lambda_ = 1 / norms[..., 0].mean(1)  # (K,)
        self.mu_ = 1 / s.mean(1) if len(s) > 1 else 0 * s[:, 0]  # one shift teaches its head nothing

    def _score(self, images: np.ndarray) -> np.ndarray:
        z, s = self._projections(images)
        return -normality(z, s, self.bank_, self.lambda_, self.mu_).double().cpu().numpy()

    def _tensors(self) -> dict[str, np.ndarray]:
        bank = {"bank": self.bank_, "lambda": self.lambda_, "mu": self.mu_}
        return module_tensors(self.encoder_, "encoder.") | {k: v.cpu().numpy() for k, v in bank.items()}

    def _restore_encoder(self, tensors: dict[str, np.ndarray]) -> None:
        self.encoder_ = build_encoder(self.shape_, self.s.amplify)
        load_module(self.encoder_, tensors, "encoder.")
        self._ready()

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self._restore_encoder(tensors)
        self.bank_, self.lambda_, self.mu_ = (
            torch.from_numpy(tensors[k]).to(self.where_) for k in ("bank", "lambda", "mu")
        )


def normality(z: Tensor, s: Tensor, bank: Tensor, lambda_: Tensor, mu: Tensor) -> Tensor:
    """The CSI score of one batch: z `(K, N, D)`, s `(K, N)`, bank `(K, M, D)`, weights `(K,)` to `(N,)`."""
    nearest = torch.bmm(z, bank.transpose(1, 2)).amax(2)  # (K, N)
    return (nearest * lambda_[:, None] + s * mu[:, None]).mean(0)
