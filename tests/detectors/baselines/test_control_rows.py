"""Controls: what they measure, by hand and by what must not change it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dia.core.settings import SettingsError
from dia.data import phantoms
from dia.detectors import METHODS
from dia.detectors.baselines.controls import Centred, ControlSettings, LengthSettings


@pytest.fixture(scope="module")
def normals():
    return phantoms.load("train", size=64, n=24, seed=3).images


def fitted(name, images, **changes):
    cls = METHODS[f"control:{name}"]
    return cls(cls.Settings(**{"weights": "none", **changes}), seed=1, device="cpu").fit(images)


def test_the_less_detail_an_image_has_the_higher_is_its_score(normals):
    detector = fitted("detail", normals, size=64)
    shown = phantoms.load("test", size=64, n=8, seed=5).images
    levels = [np.asarray(gaussian_filter(shown, (0, s, s, 0)), np.uint8) for s in (0, 2, 6)]
    plain, soft, softer = (detector.score(x) for x in levels)
    assert (plain < soft).all()
    assert (soft < softer).all()


def test_detail_is_the_view_of_the_default(normals):
    default = METHODS["dia+"]
    views = default.Settings(weights="none", size=64, views=("cells", "detail"), map_size=64)
    joined = default(views, seed=1, device="cpu").fit(normals)
    module, x = joined.module(), torch.from_numpy(normals[:5]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        numbers = module.seen(x)[1]["detail"]
    ours = fitted("detail", normals, size=64).score(normals[:5])
    np.testing.assert_allclose(ours, numbers, rtol=0.01)  # it learns the channels of a few normals fewer


def test_length_compares_with_no_normal(normals):
    shown = phantoms.load("test", size=64, n=6, seed=5)
    one, other = fitted("length", normals, size=96), fitted("length", 255 - normals, size=96)
    scores, maps, _ = one.detect(shown)
    np.testing.assert_array_equal(scores, other.score(shown))
    with torch.inference_mode():
        x = one.module().squares(torch.from_numpy(shown.images).permute(0, 3, 1, 2))
        coarse = one.backbone_(x).coarse
    by_hand = np.sqrt((coarse.numpy().astype(float) ** 2).sum(1))
    np.testing.assert_allclose(scores, by_hand.max((1, 2)), rtol=1e-5)
    assert maps.shape == (6, 64, 64)
    assert (maps.max((1, 2)) <= scores * (1 + 1e-5)).all()


def test_centre_is_nearest_in_the_middle_by_hand():
    _, near = Centred(3, 5)(torch.zeros(2, 1, 3, 5, dtype=torch.uint8))
    root = np.sqrt
    row = [-2 / 2.5, -1 / 2.5, 0, -1 / 2.5, -2 / 2.5]
    beside = [-root(5) / 2.5, -root(2) / 2.5, -1 / 2.5, -root(2) / 2.5, -root(5) / 2.5]
    np.testing.assert_allclose(near, np.tile([beside, row, beside], (2, 1, 1)), rtol=1e-6)


def test_to_centre_all_images_are_alike(normals):
    detector = METHODS["control:centre"]().fit(normals)
    scores, maps, _ = detector.detect(normals)
    assert set(scores) == {0.0}
    assert (maps == maps[0]).all()
    assert (detector.p_values(scores) == 1).all()


def test_settings_that_cannot_be():
    for wrong in ({"size": 100}, {"weights": ""}, {"weights": "lite1", "backbone": "resnet18"}):
        with pytest.raises(SettingsError):
            ControlSettings(**wrong)
    assert LengthSettings().size == 320
