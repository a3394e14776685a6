"""Numerical safety: images and sets on which a quotient, a logarithm or a matrix could fail."""

from dataclasses import replace

import numpy as np
import pytest

from dia.amplify import contrast
from dia.amplify.contrast import AmplifySettings
from dia.core.errors import TrainingError
from dia.data.imageset import ImageSet
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
SETS = {
    "constant": np.full_like(NOISE, 7),
    "black, in colour": np.zeros((24, 16, 16, 3), np.uint8),
    "all the same": np.repeat(NOISE[:1], 24, 0),
    "smallest": NOISE[:, :8, :8],
    "a strip": NOISE.reshape(24, 8, 32, 1),
}
SMALL = {
    "msc": {"size": 32, "epochs": 1}, "kdad": {"size": 32, "epochs": 1}, "uniad": {"size": 64, "epochs": 1},
    "transformaly": {"size": 32, "epochs": 1},
}  # fmt: skip
OURS = [m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra]


def tiny(method):
    s = settings(METHODS[method].Settings)
    if hasattr(s, "amplify"):
        s = replace(s, amplify=AmplifySettings(size=16, width=4, stem="patch", steps=2, batch=4))
    if hasattr(s, "dissolver"):
        dissolver = DissolverSettings(size=16, widths=(8, 16), steps=2, batch=4)
        s = replace(s, dissolver=dissolver)
    if hasattr(s, "samples"):
        s = replace(s, samples=1)
    return replace(s, **SMALL.get(method, {}))


@pytest.mark.parametrize("method", [*OURS, *(pytest.param(m, marks=pytest.mark.slow) for m in SMALL)])
@pytest.mark.parametrize("images", SETS.values(), ids=SETS)
def test_scores_and_heatmaps_are_finite(method, images):
    if method in SMALL:
        pytest.importorskip("timm")
    detector = METHODS[method](tiny(method), device="cpu").fit(images)
    others = np.random.default_rng(1).integers(0, 256, images.shape, dtype=np.uint8)[:5]
    asked = np.concatenate([images[:2], others, np.zeros_like(others[:1]), np.full_like(others[:1], 255)])
    assert np.isfinite(detector.score(asked)).all()
    assert np.isfinite(detector.calibration_.scores).all()
    maps = detector.heatmap(asked[:3])
    assert maps is None or np.isfinite(maps).all()


def test_a_loss_that_is_not_finite_names_the_step_and_the_images(monkeypatch, tmp_path):
    real = contrast.ContrastiveTraining.training_step

    def training_step(self, batch, index):
        return real(self, batch, index) * (float("inf") if self.global_step == 1 else 1)

    monkeypatch.setattr(contrast.ContrastiveTraining, "training_step", training_step)
    names = [f"scan{i}.png" for i in range(len(NOISE))]
    csi = METHODS["csi"](tiny("csi"), device="cpu")
    with pytest.raises(
        TrainingError, match=r"became inf at step 1 .*this batch: (scan\d+\.png, ){3}scan\d+\.png$"
    ):
        csi.fit(ImageSet(NOISE, names=names), workdir=tmp_path)
    assert not list(tmp_path.rglob("done.json"))
