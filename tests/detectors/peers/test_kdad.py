"""KDAD: the cloner's plan, loss, score and gradients by hand; a frozen teacher; fits that repeat."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from dia.core.settings import SettingsError, replaced
from dia.detectors import KDAD, Detector
from dia.detectors.peers import kdad
from dia.detectors.peers.backbones import backbone, to_input
from dia.detectors.peers.kdad import (
    Distillation,
    KDADSettings,
    cloner_of,
    disagreement,
    pooled,
    steepness,
)
from dia.detectors.presets import settings

pytest.importorskip("timm")

TINY = KDADSettings(size=32, epochs=2, batch=8)
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module", params=[1, 3])
def fitted(request, make_images):
    images = make_images(24, 28, 36, request.param)
    return KDAD(TINY, seed=2, device="cpu").fit(images), make_images(9, 28, 36, request.param, seed=5)


@pytest.fixture(scope="module")
def square(normals):
    """A detector of images of the networks' own size, which are not resized."""
    return KDAD(TINY, seed=1, device="cpu").fit(normals)


@pytest.fixture(scope="module")
def teacher():
    return backbone("vgg16", "none", seed=2, features_only=True)


# --- teacher and cloner --------------------------------------------------------------------------------


def test_the_cloner_is_as_planned_without_batch_norm_before_pools():
    letters = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    made = []
    for layer in cloner_of(0):
        made.append(letters[type(layer)])
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
            made[-1] += f" {layer.out_channels}"
        if isinstance(layer, nn.MaxPool2d):
            assert layer.kernel_size == layer.stride == 2
    thin = ["conv 16", "norm", "relu"]
    blocks = ((1, 16), (1, 128), (2, 256), (2, 512), (2, 512))
    expected = [part for n, wide in blocks for part in (*thin * n, f"conv {wide}", "relu", "pool")]
    assert made == expected


def test_cloner_and_teacher_are_compared_where_their_shapes_agree(teacher):
    cloner = cloner_of(0).eval()
    theirs, ours = pooled(teacher, X), pooled(cloner, X)
    shapes = [(3, 128, 8, 8), (3, 256, 4, 4), (3, 512, 2, 2), (3, 512, 1, 1)]
    assert [tuple(f.shape) for f in theirs] == [tuple(f.shape) for f in ours] == shapes


def test_the_teachers_outputs_are_those_of_its_own_forward_pass_after_the_pools(teacher):
    before = teacher(X)  # of six outputs the second to fifth are those before a pool, the last is after it
    theirs = pooled(teacher, X)
    for made, wanted in zip(theirs, before[1:5], strict=True):
        torch.testing.assert_close(made, nn.functional.max_pool2d(wanted, 2))
    torch.testing.assert_close(theirs[-1], before[5])


def test_a_random_teacher_tells_images_apart_up_to_its_last_pool(teacher, make_images):
    x = to_input(make_images(24, 32, 32, 1), 32)
    for output in pooled(teacher, x):
        varies = output.std(0).flatten(1).amax(1) > 1e-6
        assert varies.float().mean() > 0.8  # of the channels
        assert output.std(0).mean() > 0.02 * output.mean()


def test_the_cloner_is_random_by_seed_and_leaves_the_callers_random_numbers():
    torch.manual_seed(7)
    a, drawn = cloner_of(3), torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(2))
    assert torch.equal(a[0].weight, cloner_of(3)[0].weight)
    assert not torch.equal(a[0].weight, cloner_of(4)[0].weight)


def test_only_the_cloner_learns(fitted):
    detector, _ = fitted
    for name, value in backbone("vgg16", "none", seed=2, features_only=True).state_dict().items():
        assert torch.equal(value, detector.teacher_.state_dict()[name]), name
    for name, value in cloner_of(2).state_dict().items():
        assert not torch.equal(value, detector.cloner_.state_dict()[name]), name
    for network in (detector.teacher_, detector.cloner_):
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(part.training for part in network.modules())


# --- loss and score ------------------------------------------------------------------------------------


def test_the_disagreement_by_hand():
    # two images; one layer of two channels at two places, one of two values
    a = [
        torch.tensor([[[3.0, 0.0], [4.0, 0.0]], [[0, 2.0], [0, 0]]])[:, :, None],
        torch.tensor([[1.0, 0], [0, 2]]),
    ]
    b = [
        torch.tensor([[[4.0, 0.0], [3.0, 0.0]], [[0, 1.0], [0, 0]]])[:, :, None],
        torch.tensor([[0.0, 1], [0, 2]]),
    ]
    # first image: cosines 24/25 and 0, mean squares (1 + 1)/4 and 1; second: 1 and 1, 1/4 and 0
    expected = torch.tensor([0.04 + 1 + 0.01 * (0.5 + 1), 0.01 * 0.25])
    torch.testing.assert_close(disagreement(a, b, 0.01), expected)
    torch.testing.assert_close(disagreement(a, b, 0.0), torch.tensor([1.04, 0.0]))


def test_an_output_is_one_vector_not_one_at_each_place():
    a = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    b = torch.tensor([10.0, 1.0]).view(1, 1, 1, 2)  # at each place, the same direction
    torch.testing.assert_close(disagreement([a], [b], 0.0), torch.tensor([1 - 20 / 101]))


def test_training_takes_four_pools_and_scoring_the_last_three(square, normals):
    x = to_input(normals[:8], 32)
    theirs, ours = pooled(square.teacher_, x), pooled(square.cloner_, x)
    with torch.no_grad():
        of_three = disagreement(theirs[1:], ours[1:], 0.01)
        of_four = disagreement(theirs, ours, 0.01)
    np.testing.assert_allclose(square.score(normals[:8]), of_three, rtol=1e-4)
    assert not np.allclose(of_three, of_four, rtol=1e-2)

    learner = Distillation(partial(pooled, square.teacher_), deepcopy(square.cloner_), normals[:8], TINY, 0)
    learner.cloner.requires_grad_(True)
    loss = learner.eval().training_step(0, 0)  # one batch of all eight
    torch.testing.assert_close(loss, of_four.mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.cloner.parameters())
    (group,) = learner.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.cloner.parameters()}
    assert group["lr"] == 1e-3


def test_checkpoints_do_not_hold_the_teacher(teacher, normals):
    learner = Distillation(partial(pooled, teacher), cloner_of(0), normals, TINY, 0)
    assert all(name.startswith("cloner.") for name in learner.state_dict())


# --- heatmap -------------------------------------------------------------------------------------------


def test_steepness_by_hand():
    x = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]], [[[4.0, 0.0]], [[0.0, 0.0]]]])  # (2, 2, 1, 2)
    _, steep = steepness(lambda x: (x[:, 0] ** 2 - 3 * x[:, 1]).sum((1, 2)), x)
    torch.testing.assert_close(steep, torch.tensor([[[2 + 3.0, 4 + 3]], [[8 + 3, 0 + 3]]]))
    with torch.no_grad():
        assert torch.equal(steepness(lambda x: x.square().sum((1, 2, 3)), x)[1], (2 * x.abs()).sum(1))


def test_a_small_step_up_the_gradient_raises_the_score_by_the_heatmaps_sum(square, normals):
    x, small = to_input(normals[:4], 32), 1e-3
    given = x.clone().requires_grad_(True)
    square._prepared().of_input(given).sum().backward()
    up = small * given.grad.sign()
    of_input = square._prepared().of_input
    with torch.no_grad():
        rise = (of_input(x + up) - of_input(x - up)) / (2 * small)
    torch.testing.assert_close(steepness(of_input, x)[1].sum((1, 2)), rise, rtol=0.05, atol=0)
    plain = KDAD(replace(TINY, sigma=0.0), device="cpu")
    vars(plain).update({k: v for k, v in vars(square).items() if k != "settings"})
    np.testing.assert_allclose(plain.heatmap(normals[:4]).sum((1, 2)), rise, rtol=0.05)


def test_the_heatmap_is_smoothed_by_a_width_of_4_at_a_side_of_128(square, normals):
    steep = steepness(square._prepared().of_input, to_input(normals[:3], 32))[1].numpy()
    heat = square.heatmap(normals[:3])
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, gaussian_filter(steep, (0, 1, 1)), rtol=1e-3, atol=1e-9)
    assert not np.allclose(heat, gaussian_filter(steep, (0, 1.2, 1.2)), rtol=1e-2)


# --- as a detector -------------------------------------------------------------------------------------


def test_a_fit_with_the_same_seed_scores_alike_and_is_found_again(normals, square, tmp_path, monkeypatch):
    def fit(seed, s=TINY):
        return KDAD(s, seed=seed, device="cpu").fit(normals, workdir=tmp_path)

    seeds, real = set(), Distillation.training_step

    def training_step(self, *args):
        seeds.add(self.seed)
        return real(self, *args)

    monkeypatch.setattr(Distillation, "training_step", training_step)
    a = fit(1)
    assert seeds == {1}  # of the batches
    assert np.array_equal(a.score(normals), square.score(normals))
    monkeypatch.setattr(Distillation, "training_step", lambda *_: pytest.fail("trained again"))
    found = fit(1, replace(TINY, sigma=1.0))
    assert np.array_equal(found.score(normals), a.score(normals))
    assert not np.allclose(found.heatmap(normals), a.heatmap(normals))


def test_a_teacher_from_a_file_is_that_file_and_loads_when_it_is_gone(normals, tmp_path):
    path = tmp_path / "vgg.pth"
    state = backbone("vgg16", "none", seed=8, features_only=True).state_dict()
    torch.save({k.replace("features_", "features."): v for k, v in state.items()}, path)
    detector = KDAD(replace(TINY, weights=str(path), epochs=1), device="cpu").fit(normals)
    assert detector.weights_source().startswith(f"{path} (sha256 ")
    for name, value in state.items():
        assert torch.equal(detector.teacher_.state_dict()[name], value)
    detector.save(tmp_path / "model")
    path.unlink()
    loaded = Detector.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.score(normals), detector.score(normals))


def test_equal_images_do_not_break_it(normals):
    detector = KDAD(replace(TINY, epochs=1), device="cpu").fit(np.full_like(normals, 7))
    assert np.isfinite(detector.score(normals)).all()
    assert np.isfinite(detector.heatmap(normals)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 31), ("epochs", 0), ("batch", 1), ("lr", 0.0), ("value_weight", -1.0), ("sigma", -1.0),
     ("weights", ""), ("weights", "dia:runs/x"), ("precision", "16")],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"^{name} "):
        replaced(TINY, {name: value})


def test_presets():
    paper, cpu = (settings(KDADSettings, preset) for preset in ("paper", "cpu"))
    assert (paper.weights, paper.lr, paper.batch, paper.value_weight, paper.sigma, paper.precision) == (
        "imagenet", 1e-3, 64, 0.01, 4.0, "32",
    )  # fmt: skip
    assert (cpu.weights, cpu.size) == ("none", 64)
    assert KDAD(paper).weights_source() == "imagenet (vgg16.tv_in1k via timm)"
    assert (kdad.TRAINED, kdad.SCORED) == (4, 3)
