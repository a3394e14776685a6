"""CSI, and DIA: contrastive learning on shifted instances, of DIA against dissolved copies too; their score.

Knows dissolver, bank and encoder. Nothing is dissolved when scoring. Sources: Tack et al., "CSI: Novelty
Detection via Contrastive Learning on Distributionally Shifted Instances", NeurIPS 2020, eqs. 5–8; Shi et al.,
"Dissolving Is Amplifying: Towards Fine-Grained Anomaly Detection", ECCV 2024.

normality(x) = 1/K Σ_k [ max_m ⟨z_k, z̄_{k,m}⟩·λ_k + s_k[k]·μ_k ], with z_k the mean projection and s_k the
mean shift logits of shift k over seeded augmentations, z̄_{k,m} the L2-normalised z_k of the m-th training
normal, λ_k = 1/mean‖z_k‖ and μ_k = 1/mean s_k[k] over training. The score is −normality. Its three parts
can be had alone (`score_parts`): the greatest cosine, the norm ‖z_k‖·λ_k, which multiplies it, and the shift
term, which is added.

Deviations: by default each of the seeded augmentations is one draw shared by all images; `score_draws: own`
is the published way, a draw for each image and shift, with random flips, here seeded by the image's pixels.
Either way an image's score does not depend on which others are scored with it. Of DIA's released code: images
are dissolved in the range the diffusion model was trained on; training has a fixed length and never looks at
test images; small presets draw t from a grid, dissolved once (`live=False`), where the paper dissolves anew
at every step.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from ..amplify import resident
from ..amplify.augment import Augment, Draws
from ..amplify.contrast import Dissolved, learn, trained_on
from ..amplify.encoder import Encoder
from ..amplify.inputs import as_input, build_encoder
from ..amplify.settings import AmplifySettings
from ..amplify.shifts import SHIFTS
from ..core.errors import DataError
from ..core.processes import choose_device, is_main, of_all
from ..core.settings import chosen, require
from ..core.training import seed_step
from ..data.imageset import ImageSet, subsample
from ..dissolve import DissolverSettings, Dissolving, load_dissolver, make_dissolver
from ..dissolve.bank import DissolvedBank, LiveDissolving
from ..dissolve.base import T_MAX
from ..dissolve.controls import Control
from ..dissolve.matching import matched
from ..dissolve.settings import STRENGTHS
from .base import MIN_NORMALS, Detector
from .features import as_tensor
from .saving import StageCache, load_module, module_tensors

Part = Literal["cosine", "norm", "shift"]
_ROWS = 256  # views per forward pass: more go slower on a CPU
_BANK = 8192  # normals per product of the search
PARTS: tuple[Part, ...] = ("cosine", "norm", "shift")


@dataclass(frozen=True)
class CSISettings:
    """CSI: contrastive learning on shifted instances, without dissolved views.

    Args:
        amplify: encoder and training.
        samples: seeded augmentations averaged per shift when scoring.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        score_parts: which of `cosine`, `norm` and `shift` make the score; all three as published.
        score_draws: of the seeded augmentations: one draw `shared` by all images and shifts; or each image's
            and shift's `own`, flipped at random, as published.
    """

    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    samples: int = 10
    bank_size: int = 16384
    score_parts: tuple[Part, ...] = PARTS
    score_draws: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        check_scoring(self)


def check_scoring(s: Any) -> None:
    """What settings with CSI's score must fulfil."""
    chosen(s, "score_draws")
    for name in ("samples", "bank_size"):
        require(getattr(s, name) >= 1, name, f"must be at least 1, not {getattr(s, name)}")
    known = set(s.score_parts) <= set(PARTS) and len(set(s.score_parts)) == len(s.score_parts)
    require(known and bool(s.score_parts), "score_parts", f"must be some of {', '.join(PARTS)}, once each")
    require(
        s.amplify.shift != "none" or set(s.score_parts) != {"shift"},
        "score_parts", "of shift alone needs shifts: choose another amplify.shift than none",
    )  # fmt: skip


class Normality(nn.Module):
    """The score: minus the normality, of some of its parts.

    Args:
        detector: fitted.
    """

    bank: Tensor
    lambda_: Tensor
    mu: Tensor

    def __init__(self, detector: CSI):
        super().__init__()
        s = detector.s
        self.shift, self.parts, self.settings = s.amplify.shift, s.score_parts, s.amplify
        self.encoder, self.of_each = detector.encoder_, None
        if s.score_draws == "own":
            self.of_each, self.views = detector._own_views, []
        else:
            self.views = detector._views()
        for name, values in (("bank", detector.bank_), ("lambda_", detector.lambda_), ("mu", detector.mu_)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        views = self.views if self.of_each is None else self.of_each(x)
        z, s = projections(self.encoder, as_input(x, self.settings), self.shift, views)
        return (-normality(z, s, self.bank, self.lambda_, self.mu, self.parts).double(),)


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
        a.check_installed()
        a.stem_of(self.shape_)
        self.where_ = choose_device(self.device)
        ts = list(dissolved.ts) if dissolved else []
        path = stages.path("encoder", a, ts, dissolver_hash, self.seed, images)

        def make() -> float:
            train = resident.learn if resident.fits(images, dissolved, a, self.device) else learn
            self.encoder_, seconds = train(
                images,
                dissolved,
                a,
                seed=self.seed,
                device=self.device,
                workdir=path,
                resume=stages.resume,
                progress=stages.progress,
            )
            if is_main():
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
        self.augment_ = Augment(self._contrast.amplify.augment, self.shape_[2], scoring=True)

    @torch.inference_mode()
    def _projections(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean projections z `(K, N, D)` and mean logits of the right shift `(K, N)` over the samples."""
        s, parts = self.s, []
        views = [] if s.score_draws == "own" else self._views()
        for x in self._tensors_of(images, self._at_once()):
            views = self._own_views(x) if s.score_draws == "own" else views
            parts.append(projections(self.encoder_, as_input(x, s.amplify), s.amplify.shift, views))
        z, logits = zip(*parts, strict=True)
        return torch.cat(z, 1), torch.cat(logits, 1)

    def _at_once(self) -> int:
        """As many as fill a pass of the encoder with all their shifts and samples."""
        return max(_ROWS // (SHIFTS[self._contrast.amplify.shift][0] * self.s.samples), 1)

    def _views(self) -> list[Callable[[Tensor], Tensor]]:
        """What each sample makes of `(N, C, S, S)` images, the same of each."""
        draws = []
        with self._forked():
            for sample in range(self.s.samples):
                seed_step(self.seed, sample)
                draws.append(self.augment_.draw(1))
        return [partial(self.augment_, draws=d) for d in draws]

    def _forked(self) -> Any:
        """Within it the caller's random numbers stay as they are, on this detector's device too."""
        return torch.random.fork_rng(devices=[self.where_] if self.where_.type == "cuda" else [])

    def _own_views(self, x: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """What each sample makes of the shifted `(N, C, H, W)` uint8 images: draws of each, by its pixels."""
        k, n, drawn, flips = SHIFTS[self._contrast.amplify.shift][0], self.s.samples, [], []
        images = x.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        with self._forked():
            for image in images:
                seed_step(self.seed, zlib.crc32(image.tobytes()))
                by_turn = [self.augment_.draw(k) for _ in range(n)]  # each sample has its order of the jitter
                drawn.append(Draws(*map(torch.cat, zip(*by_turn, strict=True))))
                flips.append(torch.rand(n * k) < 0.5)

        def by_sample(of_images: Sequence[Tensor]) -> Tensor:  # (N, n·K, …) to (n, K·N, …)
            t = torch.stack(list(of_images), 1)
            return t.view(n, k * len(images), *t.shape[2:])

        draws = [by_sample(parts) for parts in zip(*drawn, strict=True)]
        flip = by_sample(flips)

        def view(rows: Tensor, i: int) -> Tensor:
            mirrored = torch.where(flip[i].to(rows.device)[:, None, None, None], rows.flip(-1), rows)
            return self.augment_(mirrored, Draws(*(t[i] for t in draws)))

        return [partial(view, i=i) for i in range(n)]

    def _tensors_of(self, images: np.ndarray, step: int) -> Iterator[Tensor]:
        for start in range(0, len(images), step):
            yield as_tensor(images[start : start + step], self.where_)

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate features of each shifted image, `(K, N, D)` float32."""
        k_shifts, shift = SHIFTS[self._contrast.amplify.shift]
        parts = []
        for part in self._tensors_of(images, max(_ROWS // k_shifts, 1)):
            x = as_input(part, self._contrast.amplify)
            h = self.encoder_(torch.cat([shift(x, k) for k in range(k_shifts)]))[0]
            parts.append(h.view(k_shifts, len(x), -1).float().cpu().numpy())
        return np.concatenate(parts, 1)

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Penultimate features of the encoder, those of all shifts side by side: `(N, K·D)` float32."""
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
        """Draws of each image's own are no graph."""
        if self.s.score_draws == "own":
            return (
                "score_draws own draws from the pixels and cannot be exported; "
                "fit with --settings.score_draws shared"
            )
        return super().cannot_export()

    def _tensors(self) -> dict[str, np.ndarray]:
        bank = {"bank": self.bank_, "lambda": self.lambda_, "mu": self.mu_}
        return module_tensors(self.encoder_, "encoder.") | {k: v.cpu().numpy() for k, v in bank.items()}

    def _restore_encoder(self, tensors: dict[str, np.ndarray]) -> None:
        self.encoder_ = build_encoder(self.shape_, self._contrast.amplify)
        load_module(self.encoder_, tensors, "encoder.")
        self._ready()

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self._restore_encoder(tensors)
        self.bank_, self.lambda_, self.mu_ = (
            torch.from_numpy(tensors[k]).to(self.where_) for k in ("bank", "lambda", "mu")
        )


def projections(
    encoder: Encoder, x: Tensor, shift: str, views: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, Tensor]:
    """Mean projections `(K, N, D)` and mean logits of the right shift `(K, N)`, in one forward pass.

    Args:
        encoder: as trained.
        x: what it takes, `(N, C, S, S)` in [0, 1].
        shift: name of the shifted instances.
        views: what is averaged over: augmentations of all shifted images at once.
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
    """The CSI score of one batch: z `(K, N, D)`, s `(K, N)`, bank `(K, M, D)`, weights `(K,)` to `(N,)`.

    With `parts`, of the terms max⟨z, z̄⟩·λ + s·μ only those: (greatest cosine)·(‖z‖·λ) + (s·μ).
    """
    shift = s * mu[:, None] if "shift" in parts else torch.zeros_like(s)
    norm = z.norm(dim=-1)
    if "cosine" not in parts:
        return (shift + norm * lambda_[:, None] * ("norm" in parts)).mean(0)
    products = (torch.bmm(z, part.transpose(1, 2)).amax(2) for part in bank.split(_BANK, 1))
    nearest = torch.stack(list(products)).amax(0)  # (K, N)
    scale = lambda_[:, None] if "norm" in parts else 1 / norm.clamp(min=1e-12)
    return (nearest * scale + shift).mean(0)


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

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self._contrast.amplify.check_installed()
        self._contrast.amplify.stem_of(self.shape_)  # before hours of training, not after
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
        self.dissolver_ = make_dissolver(found.settings, seed=self.seed, device=self.device)
        return self.dissolver_

    def _fit_plain(self, d: DissolverSettings, images: np.ndarray, stages: StageCache) -> Dissolving:
        dissolver = make_dissolver(d, seed=self.seed, device=self.device)
        self.dissolver_ = dissolver
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
