"""EfficientNet-Lite in the place of every method's own network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import fresh, needs_libraries

from dia.core.errors import DataError
from dia.core.settings import SettingsError
from dia.data import phantoms
from dia.detectors import Detector
from dia.detectors.peers.mirrored import Bottleneck, Cloner, PatchTeacher, Student, Students
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.detectors.saving import module_tensors
from dia.features import package
from dia.features.networks import backbone, normalised, restored
from dia.features.package import published

WIDTHS = [16, 24, 40, 112, 320]
QUICK = {"efficientad": {"steps": 2, "statistics": 2, "teacher_out_channels": 64}}
TAKES = sorted(m for m, cls in METHODS.items() if cls.pretrained and m not in ("dia", "csi", "dia+"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (24, 32, 32, 1), np.uint8)


def test_it_gives_the_maps_of_the_network_it_is_made_of():
    x = torch.rand(2, 3, 64, 96)
    lite, standing = published("lite0").eval(), backbone("resnet18", "lite0")
    maps = backbone("resnet50", "lite0", features_only=True)
    with torch.no_grad():
        fine, middle, coarse, pooled = lite((x - 0.5) / 0.5)
        made = maps(normalised(x))
        torch.testing.assert_close(standing(normalised(x)), pooled, rtol=1e-4, atol=1e-4)
        for got, wanted in zip(made[2:], (fine, middle, coarse), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert maps.feature_info.channels() == [m.shape[1] for m in made] == WIDTHS
    assert [96 // m.shape[-1] for m in made] == maps.feature_info.reduction() == [2, 4, 8, 16, 32]
    with pytest.raises(DataError, match="cannot stand for vit"):
        backbone("vit_tiny_patch16_224", "lite0")


def test_a_saved_one_needs_no_package(monkeypatch):
    kept = module_tensors(backbone("resnet18", "lite0", features_only=True, out_indices=(1, 2)), "n.")
    monkeypatch.setattr(package, "package_file", lambda name: pytest.fail("the package was asked"))
    again, x = (
        restored("resnet18", kept, "n.", features_only=True, out_indices=(1, 2)),
        torch.rand(1, 3, 32, 32),
    )
    assert [m.shape[1] for m in again(x)] == [24, 40]


def test_what_is_built_around_it_has_its_sides_and_widths():
    side = 96
    maps = [torch.rand(2, c, side // s, side // s) for c, s in zip(WIDTHS, (2, 4, 8, 16, 32), strict=True)]
    shapes = [m.shape for m in maps]
    assert [m.shape for m in Student(WIDTHS[1:4])(Bottleneck(WIDTHS[1:4])(maps[1:4]))] == shapes[1:4]
    assert [m.shape for m in Cloner(WIDTHS)(torch.rand(2, 3, side, side))] == shapes
    assert [m.shape for m in Students(WIDTHS)(maps)] == shapes[1:]
    teacher = PatchTeacher(
        backbone("resnet18", "lite0", features_only=True, out_indices=(1, 2)), normalised, 8
    )
    assert teacher(torch.rand(3, side, side)).shape == (1, 64, side // 4 - 8, side // 4 - 8)


@pytest.mark.parametrize("method", TAKES)
def test_every_method_takes_it_and_comes_back_from_its_folder_without_the_package(
    method, images, tmp_path, monkeypatch
):
    cls = METHODS[method]
    s = replace(settings(cls.Settings, "cpu"), weights="lite0", **QUICK.get(method, {}))
    fitted = cls(s, device="cpu").fit(images)
    assert fitted.weights_source().startswith("lite0 (EfficientNet-Lite, ImageNet, sha256 ")
    before, few = fitted.settings_hash(), images[: 1 if method == "efficientad" else 4]
    scores = fitted.score(few)
    fitted.save(tmp_path / "m")
    monkeypatch.setattr(package, "package_file", lambda name: pytest.fail("the package was asked"))
    again = Detector.load(tmp_path / "m")
    np.testing.assert_allclose(again.score(few), scores, rtol=1e-5)
    assert again.settings_hash() == before


def test_a_length_in_steps_takes_the_place_of_epochs():
    """Both trainings, ours and anomalib's: a step more changes weights, other epochs do not."""
    x = phantoms.load("train", size=32, n=24, seed=1).images
    for method in ("kdad", "fastflow"):
        needs_libraries(method)
        scores = {}
        for steps, epochs in ((3, 1), (3, 9), (4, 1)):
            detector = fresh(method, steps=steps, epochs=epochs).fit(x)
            scores[steps, epochs] = detector.score(x[:4])
        np.testing.assert_array_equal(scores[3, 1], scores[3, 9])
        assert not np.array_equal(scores[3, 1], scores[4, 1])
    with pytest.raises(SettingsError, match="steps must be at least 2"):
        fresh("kdad", steps=1)
