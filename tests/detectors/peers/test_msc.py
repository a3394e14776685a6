"""MSC: its loss, views and score by hand; what is frozen stays so; fits that resume, save and repeat."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dia.amplify.augment import AugmentSettings
from dia.detectors import MSC
from dia.detectors.peers import msc
from dia.detectors.peers.msc import MeanShifted, MSCSettings, _blurred, _features
from dia.features.networks import MEAN, STD, backbone

pytest.importorskip("timm")

TINY = MSCSettings(backbone="resnet18", size=32, epochs=2, batch=8, lr=0.05)
STILL = AugmentSettings(jitter=(0, 0, 0, 0), grey_p=0, crop=(1, 1), ratio=(1, 1))


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module", params=[1, 3])
def fitted(request, make_images):
    detector = MSC(TINY, seed=2, device="cpu").fit(make_images(24, 28, 36, request.param))
    return detector, make_images(9, 28, 36, request.param, seed=5)


def module(images, seed=0, **changes):
    network = backbone("resnet18", "none", seed=seed)
    centre = _features(network, images, 32).mean(0)
    return MeanShifted(network, centre, images, replace(TINY, **changes), seed)


# --- formulas ------------------------------------------------------------------------------------------


def test_the_score_is_the_sum_of_the_two_smallest_squared_distances(normals):
    detector = MSC(TINY, device="cpu").fit(normals)
    phi = _features(detector.network_, normals[:5], TINY.size)
    squared = (phi[:, None].double() - detector.bank_[None].double()).square().sum(2)
    expected = squared.sort(1).values[:, :2].sum(1).numpy()
    np.testing.assert_allclose(detector.score(normals[:5]), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("angular", [False, True])
def test_the_loss_is_nt_xent_about_the_centre(normals, angular):
    learner = module(normals, angular=angular, temperature=0.25)
    torch.manual_seed(0)
    phi = torch.nn.functional.normalize(torch.randn(6, 5), dim=1)  # two views of three images
    learner.centre = c = torch.full((5,), 0.2)
    v = (phi - c) / (phi - c).norm(dim=1, keepdim=True)
    expected = 0.0
    for a in range(6):
        others = [r for r in range(6) if r != a]
        s = {r: float(v[a] @ v[r]) / 0.25 for r in others}
        expected += (np.log(sum(np.exp(list(s.values())))) - s[(a + 3) % 6]) / 6
    if angular:
        first, second = ((phi[i : i + 3] - c).square().sum(1) for i in (0, 3))
        expected += float((first + second).mean())
    assert float(learner.loss(phi)) == pytest.approx(expected, rel=1e-5)


def test_the_centre_is_the_mean_unit_feature_before_training(normals):
    detector = MSC(TINY, seed=3, device="cpu", holdout=0.2).fit(normals)
    held = max(round(0.2 * len(normals)), 4)
    trained_on = np.sort(np.random.default_rng([3, 1]).permutation(len(normals))[held:])
    untrained = backbone("resnet18", "none", seed=3)
    before = _features(untrained, normals[trained_on], 32)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(len(before)))
    torch.testing.assert_close(detector.centre_, before.mean(0))
    after = _features(detector.network_, normals[trained_on], 32)
    torch.testing.assert_close(detector.bank_, after)
    assert not torch.allclose(before, after, atol=1e-4)


# --- what is frozen ------------------------------------------------------------------------------------


def test_only_the_last_two_layers_learn_and_batch_norm_keeps_its_statistics(fitted):
    detector, _ = fitted
    before = backbone("resnet18", "none", seed=2).state_dict()
    after = detector.network_.state_dict()
    for name, value in before.items():
        learns = name.startswith(("layer3.", "layer4.")) and "running" not in name and "num_" not in name
        assert torch.equal(value, after[name]) != learns, name
    assert not any(p.requires_grad for p in detector.network_.parameters())


def test_no_gradient_reaches_the_frozen_layers_in_training_mode(normals):
    learner = module(normals).train()
    assert learner.training
    assert not any(part.training for part in learner.network.modules())
    learner.loss(
        torch.nn.functional.normalize(learner.network(learner.views(np.arange(4))), dim=1)
    ).backward()
    with_gradient = {n.split(".")[0] for n, p in learner.network.named_parameters() if p.grad is not None}
    assert with_gradient == {"layer3", "layer4"}
    optimised = {id(p) for group in learner.configure_optimizers().param_groups for p in group["params"]}
    layers = (learner.network.layer3, learner.network.layer4)
    assert optimised == {id(p) for layer in layers for p in layer.parameters()}


# --- views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_the_image_or_its_mirror_where_nothing_else_is_changed(make_images, monkeypatch, channels):
    x = make_images(12, 32, 32, channels)
    monkeypatch.setattr(msc, "_BLUR_P", 0.0)
    learner = module(x, augment=STILL)
    torch.manual_seed(1)
    views = learner.views(np.arange(12))
    shown = views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    plain = torch.from_numpy(x).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).repeat(2, 1, 1, 1) / 255
    same, mirrored = (((shown - p).abs().amax((1, 2, 3)) < 1e-3) for p in (plain, plain.flip(-1)))
    assert bool((same | mirrored).all())
    assert 4 <= int(mirrored.sum()) <= 20
    assert bool((mirrored[:12] != mirrored[12:]).any())  # each view for itself


def test_about_half_of_the_views_are_blurred():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 1), dtype=np.uint8)
    learner = module(noise, augment=STILL)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msc, "_SIDE", 32)  # as strong as at full size
        rough = learner.views(np.arange(32)).var((1, 2, 3))
    assert 16 <= int((rough < 0.9 * rough.max()).sum()) <= 48


def test_a_blur_by_its_own_width_keeps_constants_and_smooths_more_when_wider():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 24, 24).repeat(3, 1, 1, 1)
    y = _blurred(x, torch.tensor([1e-4, 0.8, 2.0]), 2.0)
    torch.testing.assert_close(y[0], x[0])
    assert y[0].var() > y[1].var() > y[2].var()
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(_blurred(flat, torch.tensor([2.0]), 2.0), flat)
    assert _blurred(x[:0], torch.empty(0), 2.0).shape == (0, 1, 24, 24)
