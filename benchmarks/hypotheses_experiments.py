"""The experiments of `hypotheses.py`, each with what it claims and what would kill that, fixed before it ran.

A comparison is at equal training and equal score: Mahalanobis distance of penultimate features, or distance
to the nearest normal, unless the score is what is asked about. Knows development data; no test split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypotheses_parts import (
    MAHALANOBIS,
    NEIGHBOUR,
    TS,
    Development,
    blur,
    distances,
    matched_blurs,
    patches,
    standardised,
)
from hypotheses_training import altered, as_unit, student
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dia.calibrate import Calibration
from dia.detectors import TRIVIAL, DIAPlus
from dia.detectors.csi import Part, normality
from dia.detectors.residual import joined, nearest
from dia.detectors.trivial import TrivialSettings
from dia.evaluate.protocol import LESIONS, VAL
from dia.evaluate.selection import pasted

VAL_SETS = ("pneumoniamnist", "breastmnist")
ALL_SETS = (*VAL_SETS, "sarscov2ct", "kvasirseg_patches")
PATCHES = 8192  # local features kept to compare with
LEARNED = 2000  # altered normals of which a student learns the scores

Found = tuple[str, np.ndarray, dict[str, object]]  # variant, scores of the judged images, what else to say
Run = Callable[[Development, int], Iterator[Found]]


@dataclass(frozen=True)
class Experiment:
    """One hypothesis.

    Args:
        name: of the experiment.
        hypothesis: one sentence.
        kills: the criterion in words.
        claim: pairs (variant, baseline): each is claimed to be better by more than `least` on `val`.
        run: yields the variants, baselines before what is compared with them.
        beside: pairs that are shown too and decide nothing.
        least: what the mean difference in AUROC over seeds and sets, judged by `val`, must exceed.
        seeds: by what judges.
        by: what judges.
        revision: raised where it is made differently than before.
        why: it was, in a sentence.
    """

    name: str
    hypothesis: str
    kills: str
    claim: tuple[tuple[str, str], ...]
    run: Run
    beside: tuple[tuple[str, str], ...] = ()
    least: float = 0.02
    seeds: tuple[int, ...] = (0, 1)
    by: tuple[str, ...] = (VAL, LESIONS)
    revision: int = 1
    why: str = ""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All that are compared, those of the claim first."""
        return self.claim + self.beside

    def units(self) -> list[tuple[str, str, int]]:
        """(set, what judges, seed): `val` first, with all seeds; lesions with the first seed alone."""
        val = [(name, VAL, seed) for seed in self.seeds for name in VAL_SETS if VAL in self.by]
        return val + [(name, LESIONS, self.seeds[0]) for name in ALL_SETS[::-1] if LESIONS in self.by]


def score(d: Development, seed: int) -> Iterator[Found]:
    """Scores of one encoder."""
    parts: dict[str, tuple[Part, ...]] = {
        "published": ("cosine", "norm", "shift"),
        "cosine": ("cosine",),
        "shift head": ("shift",),
    }
    for name, pretext in (("csi", "csi"), ("dia", "diffusion")):
        e = d.encoder(pretext, seed)
        e._fit_bank(d.images)
        z, s = e._projections(d.judged.images)
        for label, used in parts.items():
            scores = -normality(z, s, e.bank_, e.lambda_, e.mu_, used).double().numpy()
            yield f"{name} {label}", scores, {}
        fitted, judged = e._features(d.images), e._features(d.judged.images)
        by_shift = distances(fitted, judged, MAHALANOBIS)
        yield f"{name} mahalanobis", by_shift.sum(0), {}
        yield f"{name} mahalanobis, unshifted", by_shift[0], {}
        yield f"{name} mahalanobis, worst shift", by_shift.max(0), {}
        yield f"{name} nearest", distances(fitted, judged, NEIGHBOUR).sum(0), {}


def pretexts(*names: tuple[str, str]) -> Run:
    """Encoders of several pretexts (label, pretext), by Mahalanobis and by the nearest normal."""

    def run(d: Development, seed: int) -> Iterator[Found]:
        for label, pretext in names:
            scores = d.by_features(pretext, seed, MAHALANOBIS)
            told = d.accuracy.get((pretext, seed))
            yield label, scores, {} if told is None else {"accuracy": round(told, 3)}
            yield f"{label}, nearest", d.by_features(pretext, seed, NEIGHBOUR), {}

    return run


def residuals(d: Development, _: int) -> Iterator[Found]:
    """What diffusion takes away, beside blurs that take as much."""
    dissolver = d.dissolver()
    some = d.images[np.linspace(0, len(d.images) - 1, min(len(d.images), 256)).astype(int)]
    sigmas = matched_blurs(some, list(dissolver.dissolve(some, TS, rounded=False)))
    blurred = d.energies(lambda x: np.stack([blur(x, s) for s in sigmas]))
    dissolved = d.energies(lambda x: dissolver.dissolve(x, TS, rounded=False))
    both = tuple(np.concatenate(parts, 1) for parts in zip(blurred, dissolved, strict=True))
    yield "blur", by_energies(blurred), {"sigmas": [round(s, 3) for s in sigmas]}
    yield "diffusion", by_energies(dissolved), {}
    yield "both", by_energies(both), {}


def resolutions(d: Development, _: int) -> Iterator[Found]:
    """Dissolving at one working size, at half of it, and at both; images at most 64 px."""
    d = d.at(64)
    found = {}
    for size in (32, 16):
        dissolver = d.dissolver("diffusion", size)
        found[size] = d.energies(lambda x, f=dissolver: f.dissolve(x, TS, rounded=False))
        yield f"{size} px", by_energies(found[size]), {}
    both = tuple(np.concatenate(parts, 1) for parts in zip(*found.values(), strict=True))
    yield "both", by_energies(both), {}


def by_energies(energies: Sequence[np.ndarray]) -> np.ndarray:
    """Distance to the nearest normal in standardised energies, those of normals first."""
    fitted, judged = standardised(*energies)
    return nearest(judged, fitted, 1)


def augmentation(d: Development, seed: int) -> Iterator[Found]:
    """Strong or gentle augmentation, chosen from normals and lesions pasted into them; judged by labels."""
    held = d.normals.images[d.rest]
    lesions = pasted(d.normals.images, d.rest, 11)  # (K, n, H, W, C)
    flat = lesions.reshape(-1, *lesions.shape[2:])
    labels = np.repeat([0, 1], [len(held), len(flat)])
    scores, by_lesions, apart = {}, {}, {}
    for name, pretext in (("strong", "csi"), ("gentle", "gentle")):
        scores[name] = d.by_features(pretext, seed, MAHALANOBIS)
        normal, pasted_ = (d.by_features(pretext, seed, MAHALANOBIS, x) for x in (held, flat))
        by_lesions[name] = float(roc_auc_score(labels, np.r_[normal, pasted_]))
        apart[name] = float(np.median(pasted_) / np.median(normal))
        yield name, scores[name], {"lesion_auroc": by_lesions[name], "ratio": apart[name]}
    for rule, values in (("lesion AUROC", by_lesions), ("ratio", apart)):
        chosen = max(values, key=lambda k: values[k])
        other = next(k for k in values if k != chosen)
        yield f"rejected by {rule}", scores[other], {"is": other}
        yield f"chosen by {rule}", scores[chosen], {"is": chosen}


def local(d: Development, seed: int) -> Iterator[Found]:
    """Patches of intermediate features beside the pooled ones, all by the nearest normal, unshifted."""
    for name, pretext in (("csi", "csi"), ("dia", "diffusion")):
        e = d.encoder(pretext, seed)
        pooled = [e._features(x)[0] for x in (d.images, d.judged.images)]
        yield f"{name} pooled", nearest(pooled[1], pooled[0], 1), {}
        fitted, judged = patches(e, d.images), patches(e, d.judged.images)
        width = fitted.shape[-1]
        kept, looked = standardised(fitted.reshape(-1, width), judged.reshape(-1, width))
        draw = np.random.default_rng([seed, 6])
        kept = kept[draw.permutation(len(kept))[:PATCHES]]
        far = quick_nearest(looked, kept).reshape(judged.shape[:2])
        yield f"{name} patches, greatest", far.max(1), {}
        yield f"{name} patches, mean", far.mean(1), {}


def quick_nearest(x: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Euclidean distance of each `(N, D)` row to the nearest of `(M, D)`, by matrix products."""
    squares = (bank**2).sum(1)
    parts = []
    for start in range(0, len(x), 2048):
        rows = x[start : start + 2048]
        parts.append((rows**2).sum(1) + (squares - 2 * rows @ bank.T).min(1))
    return np.sqrt(np.maximum(np.concatenate(parts), 0))


ROWS = ("hog", "statistics", "spectrum", "pixels-normalised")


def fusion(d: Development, seed: int) -> Iterator[Found]:
    """Untrained rows by the nearest normal, and the encoder's view, joined in three ways.

    Half of the normals that nothing was fitted on, drawn by the seed, set the scale.
    """
    held = np.random.default_rng([seed, 5]).permutation(d.rest)[: max(len(d.rest) // 2, 2)]
    normals = d.normals.images[np.sort(held)]
    views: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for row in ROWS:
        detector = TRIVIAL[f"trivial:{row}"](TrivialSettings(neighbours=1))
        detector._fit(d.images, normals, d.stages)
        views[row] = detector._score(normals), detector._score(d.judged.images)
        yield row, views[row][1], {}
    encoder = tuple(d.by_features("diffusion", seed, MAHALANOBIS, x) for x in (normals, d.judged.images))
    yield "encoder", encoder[1], {}
    for suffix, joint in (("", views), (" + encoder", views | {"encoder": encoder})):
        z = np.column_stack([standard_log(n, x) for n, x in joint.values()])
        p = np.column_stack([Calibration.of(n).evidence(x) for n, x in joint.values()])
        yield f"harmonic mean of p{suffix}", joined(p), {}
        yield f"greatest{suffix}", z.max(1), {}
        yield f"mean{suffix}", z.mean(1), {}


def distillation(d: Development, seed: int) -> Iterator[Found]:
    """`dia+`, and a small network that learned its scores of altered normals; both timed on one thread."""
    teacher = DIAPlus(seed=0, device="cpu").fit(d.normals, workdir=d.work / d.name, resume=True)
    found = {}
    for name, score in (("teacher", teacher._score), ("student", None)):
        if score is None:
            images = altered(d.images, LEARNED, seed)
            network = student(images, teacher._score(images), seed)

            def score(x: np.ndarray, network: torch.nn.Module = network) -> np.ndarray:
                chunks = (as_unit(x[i : i + 256]) for i in range(0, len(x), 256))
                return np.concatenate([network(c).numpy() for c in chunks])

        began = time.perf_counter()
        found[name] = score(d.judged.images)
        pace = len(d.judged) / (time.perf_counter() - began)
        likeness = {"spearman": float(spearmanr(found["teacher"], found[name]).statistic)}
        yield name, found[name], {"images_per_second": round(pace, 1)} | likeness


def standard_log(normals: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Log distances, standardised by those of held-out normals."""
    logs = np.log(normals + 1e-9)
    return (np.log(scores + 1e-9) - logs.mean()) / max(logs.std(), 1e-9)


def _criterion(words: str, least: float = 0.02) -> str:
    return f"{words}: mean difference over seeds and sets on val not above {least:g}"


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "score",
        "Mahalanobis distance on penultimate features beats the published CSI score of the same encoder.",
        _criterion("csi or dia, Mahalanobis against published"),
        (("csi mahalanobis", "csi published"), ("dia mahalanobis", "dia published")),
        score,
        tuple(
            (f"{name} {label}", f"{name} published")
            for name in ("csi", "dia")
            for label in (
                "cosine", "shift head", "nearest", "mahalanobis, unshifted", "mahalanobis, worst shift",
            )
        ),
    ),
    Experiment(
        "dissolved-negatives",
        "Negatives dissolved by diffusion make better features than blurred ones, and than none.",
        _criterion("diffusion against none or against Gaussian blur"),
        (("diffusion", "none"), ("diffusion", "gaussian")),
        pretexts(("none", "csi"), ("gaussian", "gaussian"), ("diffusion", "diffusion")),
        (
            ("gaussian", "none"),
            ("diffusion, nearest", "none, nearest"),
            ("diffusion, nearest", "gaussian, nearest"),
        ),
    ),
    Experiment(
        "levels",
        "Telling which t dissolved an image teaches better features than one class of dissolved negatives.",
        _criterion("levels against dia"),
        (("levels", "dia"),),
        pretexts(("untrained", "untrained"), ("dia", "diffusion"), ("levels", "levels")),
        (("levels, nearest", "dia, nearest"), ("levels", "untrained"), ("dia", "untrained")),
    ),
    Experiment(
        "residual",
        "Residual energies of dissolving tell more than those of blurs that take as much from normals.",
        _criterion("diffusion against matched blur"),
        (("diffusion", "blur"),),
        residuals,
        (("both", "blur"), ("both", "diffusion")),
        seeds=(0,),
    ),
    Experiment(
        "resolutions",
        "Residual energies of dissolving at two resolutions tell more than at one.",
        _criterion("16 and 32 px against 32 px"),
        (("both", "32 px"),),
        resolutions,
        (("16 px", "32 px"),),
        seeds=(0,),
    ),
    Experiment(
        "augmentation",
        "Of strong and gentle augmentation, lesions pasted into held-out normals choose the better.",
        _criterion("chosen against rejected, by lesion AUROC", 0.0),
        (("chosen by lesion AUROC", "rejected by lesion AUROC"),),
        augmentation,
        (("chosen by ratio", "rejected by ratio"), ("gentle", "strong")),
        least=0.0,
        by=(VAL,),
    ),
    Experiment(
        "lesion-negatives",
        "Telling synthetic lesions apart teaches better features than telling t, and than no training.",
        _criterion("lesions against levels or against untrained, by the nearest normal"),
        (("lesions, nearest", "levels, nearest"), ("lesions, nearest", "untrained, nearest")),
        pretexts(*((p, p) for p in ("untrained", "levels")), ("dia", "diffusion"), ("lesions", "lesions")),
        (
            *(("lesions", other) for other in ("levels", "untrained", "dia")),
            ("lesions, nearest", "dia, nearest"),
        ),
        revision=2,
        why="Lesions became larger, and made after the augmentation: training told the first as by chance.",
    ),
    Experiment(
        "patches",
        "Local features of the encoder, the farthest patch, tell more than its pooled features.",
        _criterion("csi or dia, greatest patch distance against pooled"),
        (("csi patches, greatest", "csi pooled"), ("dia patches, greatest", "dia pooled")),
        local,
        (("csi patches, mean", "csi pooled"), ("dia patches, mean", "dia pooled")),
    ),
    Experiment(
        "fusion",
        "The mean of standardised log distances joins untrained rows better than harmonic p-values.",
        _criterion("mean against harmonic mean"),
        (("mean", "harmonic mean of p"),),
        fusion,
        (("greatest", "harmonic mean of p"), ("mean", "hog"), ("mean", "statistics"), ("mean", "spectrum")),
    ),
    Experiment(
        "fusion-encoder",
        "The encoder of dia adds to a fusion of untrained rows.",
        _criterion("mean with the encoder against mean without"),
        (("mean + encoder", "mean"),),
        fusion,
        (("harmonic mean of p + encoder", "harmonic mean of p"), ("mean", "encoder")),
    ),
    Experiment(
        "distillation",
        "A small network that learns the scores of dia+ on altered normals can stand for it.",
        _criterion("student against teacher", -0.02),
        (("student", "teacher"),),
        distillation,
        least=-0.02,
        by=(VAL,),
    ),
)  # fmt: skip
