"""KDAD: the cloner's plan, loss, score and gradients by hand; a frozen teacher; fits that repeat."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from dia.detectors import KDAD
from dia.detectors.peers.kdad import KDADSettings, _cloner_of, _disagreement, _pooled, _steepness
from dia.detectors.peers.pretrained import Learner
from dia.features.networks import to_input

pytest.importorskip("timm")

TINY = KDADSettings(size=32, epochs=2, batch=8)
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module")
def square(normals):
    """A detector of images of the networks' own size, which are not resized."""
    return KDAD(TINY, seed=1, device="cpu").fit(normals)


@pytest.fixture(scope="module")
def teacher(square):
    return square.frozen_


# --- teacher and cloner --------------------------------------------------------------------------------


def test_the_cloner_is_as_planned_without_batch_norm_before_pools():
    letters = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    made = []
    for layer in _cloner_of(0):
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
    cloner = _cloner_of(0).eval()
    theirs, ours = _pooled(teacher, X), _pooled(cloner, X)
    shapes = [(3, 128, 8, 8), (3, 256, 4, 4), (3, 512, 2, 2), (3, 512, 1, 1)]
    assert [tuple(f.shape) for f in theirs] == [tuple(f.shape) for f in ours] == shapes


def test_the_teachers_outputs_are_those_of_its_own_forward_pass_after_the_pools(teacher):
    before = teacher(X)  # of six outputs the second to fifth are those before a pool, the last is after it
    theirs = _pooled(teacher, X)
    for made, wanted in zip(theirs, before[1:5], strict=True):
        torch.testing.assert_close(made, nn.functional.max_pool2d(wanted, 2))
    torch.testing.assert_close(theirs[-1], before[5])


def test_a_random_teacher_tells_images_apart_up_to_its_last_pool(teacher, make_images):
    x = to_input(make_images(24, 32, 32, 1), 32)
    for output in _pooled(teacher, x):
        varies = output.std(0).flatten(1).amax(1) > 1e-6
        assert varies.float().mean() > 0.8  # of the channels
        assert output.std(0).mean() > 0.02 * output.mean()


def test_the_cloner_is_random_by_seed_and_leaves_the_callers_random_numbers():
    torch.manual_seed(7)
    a, drawn = _cloner_of(3), torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(2))
    assert torch.equal(a[0].weight, _cloner_of(3)[0].weight)
    assert not torch.equal(a[0].weight, _cloner_of(4)[0].weight)


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
    torch.testing.assert_close(_disagreement(a, b, 0.01), expected)
    torch.testing.assert_close(_disagreement(a, b, 0.0), torch.tensor([1.04, 0.0]))


def test_an_output_is_one_vector_not_one_at_each_place():
    a = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    b = torch.tensor([10.0, 1.0]).view(1, 1, 1, 2)  # at each place, the same direction
    torch.testing.assert_close(_disagreement([a], [b], 0.0), torch.tensor([1 - 20 / 101]))


def test_training_takes_four_pools_and_scoring_the_last_three(square, normals):
    x = to_input(normals[:8], 32)
    theirs, ours = _pooled(square.frozen_, x), _pooled(square.trained_, x)
    with torch.no_grad():
        of_three = _disagreement(theirs[1:], ours[1:], 0.01)
        of_four = _disagreement(theirs, ours, 0.01)
    np.testing.assert_allclose(square.score(normals[:8]), of_three, rtol=1e-4)
    assert not np.allclose(of_three, of_four, rtol=1e-2)

    learner = Learner(deepcopy(square.trained_), square._loss, normals[:8], TINY, 0)
    learner.network.requires_grad_(True)
    loss = learner.eval().training_step(0, 0)  # one batch of all eight
    torch.testing.assert_close(loss, of_four.mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.network.parameters())
    (group,) = learner.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.network.parameters()}
    assert group["lr"] == 1e-3


# --- heatmap -------------------------------------------------------------------------------------------


def test_steepness_by_hand():
    x = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]], [[[4.0, 0.0]], [[0.0, 0.0]]]])  # (2, 2, 1, 2)
    _, steep = _steepness(lambda x: (x[:, 0] ** 2 - 3 * x[:, 1]).sum((1, 2)), x)
    torch.testing.assert_close(steep, torch.tensor([[[2 + 3.0, 4 + 3]], [[8 + 3, 0 + 3]]]))
    with torch.no_grad():
        assert torch.equal(_steepness(lambda x: x.square().sum((1, 2, 3)), x)[1], (2 * x.abs()).sum(1))


def test_a_small_step_up_the_gradient_raises_the_score_by_the_heatmaps_sum(square, normals):
    x, small = to_input(normals[:4], 32), 1e-3
    given = x.clone().requires_grad_(True)
    square._prepared().of_input(given).sum().backward()
    up = small * given.grad.sign()
    of_input = square._prepared().of_input
    with torch.no_grad():
        rise = (of_input(x + up) - of_input(x - up)) / (2 * small)
    torch.testing.assert_close(_steepness(of_input, x)[1].sum((1, 2)), rise, rtol=0.05, atol=0)
    plain = KDAD(replace(TINY, sigma=0.0), device="cpu")
    vars(plain).update({k: v for k, v in vars(square).items() if k != "settings"})
    np.testing.assert_allclose(plain.heatmap(normals[:4]).sum((1, 2)), rise, rtol=0.05)


def test_the_heatmap_is_smoothed_by_a_width_of_4_at_a_side_of_128(square, normals):
    steep = _steepness(square._prepared().of_input, to_input(normals[:3], 32))[1].numpy()
    heat = square.heatmap(normals[:3])
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, gaussian_filter(steep, (0, 1, 1)), rtol=1e-3, atol=1e-9)
    assert not np.allclose(heat, gaussian_filter(steep, (0, 1.2, 1.2)), rtol=1e-2)
