"""Figures of the method: cells against the masks of the loss, numbers against plain loops."""

import copy

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from dia.amplify.contrast import AmplifySettings
from dia.amplify.loss import targets
from dia.core.errors import DataError
from dia.data.imageset import ImageSet
from dia.detectors.baselines.images import Brightness
from dia.detectors.dia import CSI, DIA, CSISettings, DIASettings
from dia.dissolve import DissolverSettings
from dia.report.method_figures import (
    EXCLUDED,
    NEGATIVE,
    POSITIVE,
    illustrate,
    removed_energy,
    similarities,
    target_cells,
)

AMPLIFY = AmplifySettings(size=16, width=4, steps=6, batch=8, precision="32")
DISSOLVER = DissolverSettings(size=16, widths=(8, 16), steps=3, batch=8, precision="32")
SETTINGS = DIASettings(DISSOLVER, AMPLIFY, ts=(30, 99), samples=1)


@pytest.fixture(scope="module")
def detector(make_images):
    return DIA(SETTINGS, seed=2, device="cpu").fit(make_images(24))


@pytest.fixture(scope="module")
def labelled(make_images):
    return ImageSet(make_images(9, seed=7), np.array([0, 1, 0, 0, 1, 0, 0, 1, 0]))


@pytest.mark.parametrize("exclude_own", [True, False])
@pytest.mark.parametrize(("batch", "shifts"), [(1, 1), (2, 2), (3, 4)])
def test_cells_are_the_masks_of_the_loss(batch, shifts, exclude_own):
    cells = target_cells(batch, shifts, exclude_own)
    positive, excluded = (t.tolist() for t in targets(batch, shifts, 3, exclude_own))
    assert cells.shape == (2 * shifts * batch, 3 * shifts * batch)
    for a, row in enumerate(cells.tolist()):
        for r, cell in enumerate(row):
            assert cell == (POSITIVE if positive[a] == r else EXCLUDED if excluded[a][r] else NEGATIVE)


def test_similarities_are_cosines_and_change_nothing(detector, make_images, monkeypatch):
    x = make_images(3, seed=8)
    state = {k: v.clone() for k, v in detector.encoder_.state_dict().items()}
    before, after = similarities(detector, x, seed=4)
    for matrix in (before, after):
        assert matrix.shape == (3 * 4 * 3, 3 * 4 * 3)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        np.testing.assert_allclose(matrix.diagonal(), 1, atol=1e-12)
        assert np.linalg.eigvalsh(matrix).min() > -1e-9  # a Gram matrix
    assert np.abs(before - after).max() > 0.01
    assert all(torch.equal(v, state[k]) for k, v in detector.encoder_.state_dict().items())
    np.testing.assert_allclose(similarities(detector, x, seed=4), (before, after), atol=1e-6)
    one = copy.deepcopy(detector.encoder_)
    torch.nn.init.zeros_(one.project[-1].weight)
    torch.nn.init.ones_(one.project[-1].bias)  # every projection is the same
    monkeypatch.setattr(detector, "encoder_", one)
    before, after = similarities(detector, x, seed=4)
    np.testing.assert_allclose(after, 1)
    assert before.min() < 0.999


def test_the_removed_energy_by_hand():
    class Sets:  # two of four pixels change, by 6 and by −8: √((36 + 64) / 4) = 5
        def dissolve(self, images, t):
            out = images.copy()
            out[:, 0, 0] += 6
            out[:, 1, 1] -= 8
            return np.stack([images, out])

    x = np.full((3, 2, 2, 1), 50, np.uint8)
    np.testing.assert_allclose(removed_energy(Sets(), x, [0, 1]), [[0, 5]] * 3)


def test_all_figures_of_a_detector(detector, labelled, tmp_path):
    made = []
    for again, size in (("a", 10), ("b", 20)):
        with mpl.rc_context({"font.size": size}):  # not the caller's style
            paths = illustrate(tmp_path / again, detector, labelled, ts=[50, 400], count=2, form="svg")
        made.append({p.name: p.read_bytes() for p in paths})
    assert made[0] == made[1]
    assert list(made[0]) == ["target_matrices.svg", "similarity.svg", "residual_energy.svg", "strips.png"]
    strips = np.asarray(Image.open(tmp_path / "a" / "strips.png").convert("L"))
    assert strips.shape[0] == 22 + 4 * 132  # two normal and two anomalous images, 16 px enlarged 8 times
    cells = strips[22:, -3 * 132 :][:528, :396].reshape(4, 132, 3, 132)[:, :128:8, :, :128:8]
    shown = cells[:, :, 0]
    own = labelled.images[..., 0]
    which = [[np.array_equal(image, x) for x in own].index(True) for image in shown]
    assert labelled.labels[which].tolist() == [0, 0, 1, 1]
    dissolved = detector.dissolver_.dissolve(labelled.images[which], [50, 400])[..., 0]
    np.testing.assert_array_equal(cells[:, :, 1:].transpose(2, 0, 1, 3), dissolved)
    text = (tmp_path / "a" / "similarity.svg").read_text()
    for words in ("positives: ", "own dissolved copies, left out: ", ">view 1<", "after training"):
        assert words in text
    text = (tmp_path / "a" / "residual_energy.svg").read_text()
    for words in ("5–95 % of 6 images", "median of 3 images", "diffusion step t"):
        assert words in text


def test_without_an_encoder_or_anomalies_less_is_drawn(detector, make_images, tmp_path, monkeypatch):
    monkeypatch.delattr(detector, "encoder_")
    normal = ImageSet(make_images(3), np.zeros(3, int))
    paths = illustrate(tmp_path, detector, normal, ts=[50], count=1)
    assert [p.name for p in paths] == ["residual_energy.png", "strips.png"]
    assert all(Image.open(p).size[0] > 200 for p in paths)


def test_illustrate_says_what_it_cannot_draw(detector, labelled, tmp_path):
    x, out = labelled.images, tmp_path / "pictures"
    cases = [
        (CSI(CSISettings(AMPLIFY)), labelled, {}, "csi has no dissolver"),
        (Brightness(), labelled, {}, "trivial:brightness has no dissolver"),
        (DIA(SETTINGS), labelled, {}, "dia has no dissolver"),
        (detector, ImageSet(x), {}, "labelled normal"),
        (detector, ImageSet(x, np.ones(9, int)), {}, "labelled normal"),
        (detector, labelled, {"count": 0}, "count of at least 1"),
        (detector, labelled, {"ts": []}, "at least one diffusion step"),
        (detector, labelled, {"ts": [1000]}, "t must lie in"),
    ]
    for model, images, wrong, message in cases:
        with pytest.raises(DataError, match=message):
            illustrate(out, model, images, **wrong)
    assert not out.exists()
