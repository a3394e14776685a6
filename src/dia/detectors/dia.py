"""CSI and DIA: contrastive learning on shifted instances, for DIA against dissolved copies too; their score.

Knows dissolver, bank and encoder. Nothing is dissolved when scoring. Sources: Tack et al., "CSI: Novelty
Detection via Contrastive Learning on Distributionally Shifted Instances", NeurIPS 2020, eqs. 5–8; Shi et al.,
"Dissolving Is Amplifying: Towards Fine-Grained Anomaly Detection", ECCV 2024.

normality(x) = 1/K Σ_k [ max_m ⟨z_k, z̄_{k,m}⟩·λ_k + s_k[k]·μ_k ], with z_k the mean projection and s_k the
mean shift logits of shift k over seeded augmentations, z̄_{k,m} the L2-normalised z_k of the m-th training
normal, λ_k = 1/mean‖z_k‖ and μ_k = 1/mean s_k[k] over training. The score is −normality. `score_parts` takes
some of its three parts: the greatest cosine, the norm ‖z_k‖·λ_k, which multiplies it, and the shift term.

Deviations: by default an augmentation is one draw shared by all images; `score_draws: own` is the published
way, a draw for each image and shift, with flips, here seeded by the image's pixels. Images are dissolved in
the range the diffusion model was trained on, training has a fixed length and never looks at test images, and
small presets draw t from a grid, dissolved once (`live: false`).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from ..amplify.augment import Augment, Draws
from ..amplify.contrast import Dissolved
from ..amplify.encoder import Encoder
from ..amplify.inputs import as_input, build_encoder
from ..amplify.resident import learn
from ..amplify.shifts import SHIFTS
from ..core.errors import DataError
from ..core.processes import choose_device, is_main, of_all
from ..core.training import seed_step, used_indices
from ..data.imageset import ImageSet, subsample
from ..dissolve import DissolverSettings, Dissolving, load_dissolver, make_dissolver
from ..dissolve.bank import DissolvedBank, LiveDissolving
from ..dissolve.controls import Control
from ..dissolve.matching import matched
from ..dissolve.settings import STRENGTHS
from ..features.untrained import measured, passes
from .base import MIN_NORMALS, Detector
from .presets import PARTS, CSISettings, DIASettings, Part
from .saving import StageCache, load_module, module_tensors

_ROWS = 256  # views per forward pass: more go slower on a CPU
_BANK = 8192  # normals per product of the search
Views = Sequence[Callable[[Tensor], Tensor]]  # each augments all shifted images at once


class Normality(nn.Module):
    """The score: minus the normality.

    Args:
        detector: with an encoder and a bank.
    """

    bank: Tensor
    lambda_: Tensor
    mu: Tensor

    def __init__(self, detector: CSI):
        super().__init__()
        self.s, self.encoder, self.views_of = detector.s, detector.encoder_, detector._views_of()
        for name, values in (("bank", detector.bank_), ("lambda_", detector.lambda_), ("mu", detector.mu_)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Scores `(N, C, H, W)` uint8, `(N,)` float64."""
        a = self.s.amplify
        z, s = projections(self.encoder, as_input(x, a), a.shift, self.views_of(x))
        return (-normality(z, s, self.bank, self.lambda_, self.mu, self.s.score_parts).double(),)


class CSI(Detector):
    """Contrastive learning on shifted instances: the baseline DIA builds on."""

    method = "csi"
    family = "contrastive"
    paper = "Tack et al., CSI, NeurIPS 2020"
    Settings: ClassVar[type] = CSISettings
    encoder_: Encoder

    @property
    def _contrast(self) -> Any:
        """The settings of contrastive training."""
        return self.s

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self._fit_encoder(images, stages, None, "none")
        self._fit_bank(images)

    def _fit_encoder(
        self, images: np.ndarray, stages: StageCache, dissolved: Dissolved | None, dissolver_hash: str
    ) -> None:
        a = self._contrast.amplify
        self._check_contrast()
        ts = list(dissolved.ts) if dissolved else []
        path = stages.path("encoder", a, ts, dissolver_hash, self.seed, images)

        def make() -> float:
            self.encoder_, seconds = learn(
                images, dissolved, a, seed=self.seed, device=self.device, workdir=path,
                resume=stages.resume, progress=stages.progress,
            )  # fmt: skip
            if is_main():
                save_file(module_tensors(self.encoder_, ""), path / "encoder.safetensors")
            return seconds

        stages.part(path, make, lambda: self._restore_encoder(load_file(path / "encoder.safetensors"), ""))
        self._ready()

    def _check_contrast(self) -> None:
        """Refuses settings of contrastive training before hours of it, not after."""
        self._contrast.amplify.check_installed()
        self._contrast.amplify.stem_of(self.shape_)

    def _ready(self) -> None:
        self.where_ = choose_device(self.device)
        self.encoder_ = self.encoder_.to(self.where_).eval()
        self.augment_ = Augment(self._contrast.amplify.augment, self.shape_[2], scoring=True)

    @torch.inference_mode()
    def _projections(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns mean projections `(K, N, D)` and mean logits of the right shift `(K, N)`."""
        a, views_of = self._contrast.amplify, self._views_of()
        parts = [
            projections(self.encoder_, as_input(x, a), a.shift, views_of(x))
            for x in passes(images, self._at_once(), self.where_)
        ]
        z, logits = zip(*parts, strict=True)
        return torch.cat(z, 1), torch.cat(logits, 1)

    def _at_once(self) -> int:
        """Returns as many images as fill a pass of the encoder with all their shifts and samples."""
        return max(_ROWS // (SHIFTS[self._contrast.amplify.shift][0] * self.s.samples), 1)

    def _views_of(self) -> Callable[[Tensor], Views]:
        """Returns the function from `(N, C, H, W)` uint8 to the views over which projections are averaged."""
        if self.s.score_draws == "own":
            return self._own_views
        draws = []
        with self._forked():
            for sample in range(self.s.samples):
                seed_step(self.seed, sample)
                draws.append(self.augment_.draw(1))
        shared = [partial(self.augment_, draws=d) for d in draws]
        return lambda x: shared

    def _forked(self) -> Any:
        """Keeps the caller's random numbers as they are, on this detector's device too."""
        return torch.random.fork_rng(devices=[self.where_] if self.where_.type == "cuda" else [])

    def _own_views(self, x: Tensor) -> Views:
        """Draws the views of `(N, C, H, W)` uint8 images, each image's by its pixels."""
        k, n, drawn, flips = SHIFTS[self._contrast.amplify.shift][0], self.s.samples, [], []
        with self._forked():
            for image in x.permute(0, 2, 3, 1).cpu().contiguous().numpy():
                seed_step(self.seed, zlib.crc32(image.tobytes()))
                by_turn = [self.augment_.draw(k) for _ in range(n)]  # each sample has its order of the jitter
                drawn.append(Draws(*map(torch.cat, zip(*by_turn, strict=True))))
                flips.append(torch.rand(n * k) < 0.5)

        def by_sample(of_images: Sequence[Tensor]) -> Tensor:  # (N, n·K, …) to (n, K·N, …)
            t = torch.stack(list(of_images), 1)
            return t.view(n, k * len(x), *t.shape[2:])

        draws, flip = [by_sample(parts) for parts in zip(*drawn, strict=True)], by_sample(flips)

        def view(rows: Tensor, i: int) -> Tensor:
            mirrored = torch.where(flip[i].to(rows.device)[:, None, None, None], rows.flip(-1), rows)
            return self.augment_(mirrored, Draws(*(t[i] for t in draws)))

        return [partial(view, i=i) for i in range(n)]

    def _features(self, images: np.ndarray) -> np.ndarray:
        """Returns penultimate features of each shifted image, `(K, N, D)` float32."""
        k_shifts, shift = SHIFTS[self._contrast.amplify.shift]

        def of(x: Tensor) -> Tensor:
            x = as_input(x, self._contrast.amplify)
            h = self.encoder_(torch.cat([shift(x, k) for k in range(k_shifts)]))[0]
            return h.view(k_shifts, len(x), -1).transpose(0, 1).float()

        return measured(of, images, max(_ROWS // k_shifts, 1), self.where_).swapaxes(0, 1)

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Returns penultimate features of the encoder, all shifts side by side: `(N, K·D)` float32."""
        return np.concatenate(list(self._features(self._check(images))), axis=1)

    def _fit_bank(self, images: np.ndarray) -> None:
        z, s = self._projections(subsample(images, self.s.bank_size))
        norms = z.norm(dim=-1, keepdim=True)
        self.bank_ = z / norms.clamp(min=1e-12)  # (K, M, D)
        self.lambda_ = 1 / norms[..., 0].mean(1)  # (K,)
        self.mu_ = 1 / s.mean(1) if len(s) > 1 else 0 * s[:, 0]  # one shift teaches its head nothing

    def _module(self) -> nn.Module:
        return Normality(self)

    def cannot_export(self) -> str:
        """Returns the reason where each image has draws of its own, which no graph can hold."""
        own = "score_draws own draws from the pixels and cannot be exported; "
        shared = "fit with --settings.score_draws shared"
        return own + shared if self.s.score_draws == "own" else ""

    def _tensors(self) -> dict[str, np.ndarray]:
        bank = {"bank": self.bank_, "lambda": self.lambda_, "mu": self.mu_}
        return module_tensors(self.encoder_, "encoder.") | {k: v.cpu().numpy() for k, v in bank.items()}

    def _restore_encoder(self, tensors: dict[str, np.ndarray], prefix: str = "encoder.") -> None:
        self.encoder_ = build_encoder(self.shape_, self._contrast.amplify)
        load_module(self.encoder_, tensors, prefix)
        self._ready()

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self._restore_encoder(tensors)
        bank = (torch.from_numpy(tensors[k]).to(self.where_) for k in ("bank", "lambda", "mu"))
        self.bank_, self.lambda_, self.mu_ = bank


def projections(encoder: Encoder, x: Tensor, shift: str, views: Views) -> tuple[Tensor, Tensor]:
    """Averages projections and logits over views, in one forward pass.

    Args:
        encoder: as trained.
        x: `(N, C, S, S)` in [0, 1].
        shift: the name of the shifted instances.
        views: each augments all shifted images at once.

    Returns:
        Mean projections `(K, N, D)`, and mean logits of the right shift `(K, N)`.
    """
    k_shifts, shifted = SHIFTS[shift]
    rows = torch.cat([shifted(x, k) for k in range(k_shifts)])
    _, z, logits = encoder(torch.cat([view(rows) for view in views]))
    z = z.view(len(views), k_shifts, x.shape[0], -1).mean(0)
    of_shift = logits.view(len(views), k_shifts, x.shape[0], k_shifts).mean(0)
    return z, of_shift.diagonal(dim1=0, dim2=2).T


def normality(
    z: Tensor, s: Tensor, bank: Tensor, lambda_: Tensor, mu: Tensor, parts: Collection[Part] = PARTS
) -> Tensor:
    """Computes the normality of one batch: (greatest cosine)·(‖z‖·λ) + (s·μ), its mean over the shifts.

    Args:
        z: mean projections `(K, N, D)`.
        s: mean logits of the right shift `(K, N)`.
        bank: projections of training normals, of norm 1, `(K, M, D)`.
        lambda_: weight of the norm, `(K,)`.
        mu: weight of the shift term, `(K,)`.
        parts: which of the three parts count; the others are left out.

    Returns:
        `(N,)`.
    """
    shift = s * mu[:, None] if "shift" in parts else torch.zeros_like(s)
    norm = z.norm(dim=-1)
    if "cosine" not in parts:
        return (shift + norm * lambda_[:, None] * ("norm" in parts)).mean(0)
    products = (torch.bmm(z, part.transpose(1, 2)).amax(2) for part in bank.split(_BANK, 1))
    nearest = torch.stack(list(products)).amax(0)  # (K, N)
    scale = lambda_[:, None] if "norm" in parts else 1 / norm.clamp(min=1e-12)
    return (nearest * scale + shift).mean(0)


class DIA(CSI):
    """Dissolving Is Amplifying."""

    method = "dia"
    family = "contrastive"
    paper = "Shi et al., Dissolving Is Amplifying, ECCV 2024"
    Settings: ClassVar[type] = DIASettings
    dissolver_: Dissolving

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self._check_contrast()
        if self.s.dissolver.kind == "none":
            self._fit_encoder(images, stages, None, "none")
        else:
            self._fit_amplified(images, self._fit_dissolver(images, reference, self.s.ts, stages), stages)
        self._fit_bank(images)

    def _fit_dissolver(
        self, images: np.ndarray, reference: np.ndarray, ts: tuple[int, ...], stages: StageCache
    ) -> Dissolving:
        """Makes the dissolver; a `matched` control removes as much of `reference` as diffusion at `ts`."""
        self.facts_ = {k: v for k, v in self.facts_.items() if k != "matched"}
        asked = self.s.dissolver
        if not asked.matched:
            return self._fit_plain(asked, images, stages)
        like = self._fit_plain(replace(asked, kind="diffusion", matched=False), images, stages)
        found = of_all(matched(asked, like, reference, ts))[0]  # machines differ in the last digits
        name = STRENGTHS[asked.kind]
        levels = {"wanted": round(found.wanted, 4), "reached": round(found.reached, 4)}
        self.facts_["matched"] = {name: getattr(found.settings, name)} | levels
        return self._fit_plain(found.settings, images, stages)

    def _fit_plain(self, d: DissolverSettings, images: np.ndarray, stages: StageCache) -> Dissolving:
        self.dissolver_ = dissolver = make_dissolver(d, seed=self.seed, device=self.device)
        if isinstance(dissolver, Control):
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

    def _fit_amplified(self, images: np.ndarray, dissolver: Dissolving, stages: StageCache) -> None:
        """Trains the encoder against live copies, or against a bank of as many as `bank_gb` has space for."""
        key, c = dissolver.sha256(), self._contrast
        if c.live:
            return self._fit_encoder(images, stages, LiveDissolving(images, dissolver, c.ts), key)
        index = self._trained_on(len(images))
        most = int(c.bank_gb * 2**30) // (2 * len(c.ts) * int(np.prod(images.shape[1:])))
        if len(index) > most:
            if most < MIN_NORMALS:
                raise DataError(f"bank_gb {c.bank_gb} has room for {most} images; raise it")
            fewer = f"the encoder trains on {most} of {len(images)} images"
            warnings.warn(f"{fewer}, for which bank_gb {c.bank_gb:g} has room", stacklevel=2)
            images = subsample(images, most)
            index = self._trained_on(len(images))
        path = stages.path("bank", key, list(c.ts), images, index)
        bank = DissolvedBank.build(images, dissolver, c.ts, path / "bank.npy", index)
        self._fit_encoder(images, stages, bank, key)

    def _trained_on(self, n: int) -> np.ndarray:
        """Returns which of n images training will look at: fewer than all where it is short."""
        a = self._contrast.amplify
        return used_indices(n, a.batch, self.seed, a.length(n), a.batches(n))

    def _save_parts(self, folder: Path) -> None:
        if hasattr(self, "dissolver_"):
            self.dissolver_.save(folder / "dissolver")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        self._restore_dissolver(folder)

    def _restore_dissolver(self, folder: Path) -> None:
        if self.s.dissolver.kind != "none":
            self.dissolver_ = load_dissolver(folder / "dissolver", device=self.device)
