"""Transformaly: what the student is fed, what stays frozen, both likelihoods, and fits that repeat."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from dia.detectors import Transformaly
from dia.detectors.peers.pretrained import Learner
from dia.detectors.peers.transformaly import (
    LogLikelihood,
    TransformalySettings,
    _errors,
    _gaussian,
    _tokens,
)
from dia.features.networks import backbone

pytest.importorskip("timm")

TINY = TransformalySettings(backbone="vit_tiny_patch16_224", size=32, epochs=2, batch=8, lr=1e-3)
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module", params=[1, 3])
def fitted(request, make_images):
    images = make_images(24, 28, 36, request.param)
    return Transformaly(TINY, seed=2, device="cpu").fit(images), make_images(9, 28, 36, request.param, seed=5)


@pytest.fixture(scope="module")
def teacher():
    return backbone(TINY.backbone, "none", seed=2, img_size=32)


@pytest.fixture
def start(teacher):
    """A detector as it is before training."""
    detector = Transformaly(TINY, seed=2, device="cpu")
    detector.where_, detector.frozen_ = torch.device("cpu"), teacher
    detector.trained_ = detector._untrained()
    return detector


# --- teacher and student -------------------------------------------------------------------------------


def test_the_tokens_between_blocks_are_those_of_the_teachers_own_forward_pass(teacher):
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        for block in teacher.blocks
    ]
    with torch.no_grad():
        last = teacher.forward_features(X)
    for hook in hooks:
        hook.remove()
    between = _tokens(teacher, X)
    assert len(between) == 13
    for i, (given_, made) in enumerate(seen):
        torch.testing.assert_close(between[i], given_)
        torch.testing.assert_close(between[i + 1], made)
    torch.testing.assert_close(teacher.norm(between[-1]), last)


def test_each_block_of_the_student_is_fed_with_the_teachers_tokens_not_its_own(teacher, start):
    student, fed = start.trained_, []
    for block in student:
        block.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
    between = _tokens(teacher, X)
    errors = _errors(between, student)
    assert len(fed) == len(errors) == 12
    for i, x in enumerate(fed):
        assert x is between[i]
    with torch.no_grad():
        expected = (student[4](between[4]) - between[5]).square().mean((1, 2))
    torch.testing.assert_close(errors[4], expected)
    assert errors[4].shape == (3,)


def test_the_teachers_own_blocks_make_no_error(teacher):
    for error in _errors(_tokens(teacher, X), teacher.blocks):
        assert error.abs().max() < 1e-10


def test_a_random_student_is_not_its_random_teacher(start):
    for ours, theirs in zip(start.trained_, start.frozen_.blocks, strict=True):
        assert not torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight)
    again = start._untrained().state_dict()
    assert all(torch.equal(v, again[k]) for k, v in start.trained_.state_dict().items())


def test_the_loss_is_the_sum_over_blocks_of_the_mean_error(start, normals):
    x = torch.from_numpy(normals).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1  # in [−1, 1]
    student, between = start.trained_, _tokens(start.frozen_, x)
    s = replace(TINY, batch=24)
    learner = Learner(student, start._loss, normals, s, 0, *start.normalisation).train()
    parts = [((student[i](between[i]) - between[i + 1]) ** 2).mean() for i in range(12)]
    loss = learner.training_step(0, 0)
    torch.testing.assert_close(loss, torch.stack(parts).sum(), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in start.frozen_.parameters())
    assert not any(part.training for part in start.frozen_.modules())
    assert all(block.mlp.fc2.weight.grad.abs().sum() > 0 for block in student)
    (group,) = learner.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in student.parameters()}


def test_fitting_lowers_the_students_errors(fitted, start):
    detector, x = fitted
    assert (detector._spaces(x)[1].mean(0) < start._spaces(x)[1].mean(0)).all()


# --- the score -----------------------------------------------------------------------------------------


def likelihood(of, x):
    """The log-likelihood of rows under the Gaussian of others."""
    return LogLikelihood(**_gaussian(of))(torch.from_numpy(x)).numpy()


@given(st.integers(1, 5), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_a_gaussian_is_scipys_whatever_the_scale(d, seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, d)) @ rng.normal(size=(d, d)) * scale + rng.normal(size=d)
    ours, y = _gaussian(x), x[:5] + 0.1 * scale
    spread = np.outer(ours["deviation"], ours["deviation"])
    covariance = np.cov(x.T, bias=True).reshape(d, d) + 1e-6 * np.eye(d) * spread
    z = (y - x.mean(0)) / ours["deviation"]  # scipy's own at unit scale
    expected = (
        multivariate_normal(np.zeros(d), covariance / spread).logpdf(z) - np.log(ours["deviation"]).sum()
    )
    found = LogLikelihood(**ours)(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-4, atol=1e-4)


def test_the_score_is_minus_both_likelihoods(fitted, make_images):
    detector, x = fitted
    channels = x.shape[-1]
    images = make_images(24, 28, 36, channels)
    held = max(round(0.2 * 24), 4)
    train = images[np.sort(np.random.default_rng([2, 1]).permutation(24)[held:])]
    classes, errors = detector._spaces(train)
    assert errors.shape == (len(train), 10)
    pca = PCA(0.9, whiten=True, svd_solver="full").fit(classes)
    new_classes, new_errors = detector._spaces(x)
    first = likelihood(pca.transform(classes), pca.transform(new_classes))
    second = likelihood(errors, new_errors)
    np.testing.assert_allclose(detector.score(x), -(first + second), rtol=1e-4)
    # 90 % of the variance, and no more components than that takes
    kept = np.cumsum(PCA().fit(classes).explained_variance_ratio_)[pca.n_components_ - 2 : pca.n_components_]
    assert kept[-1] >= 0.9
    assert pca.n_components_ == 1 or kept[0] < 0.9
    assert detector.fitted_["whiten"].shape == (192, pca.n_components_)


def test_the_errors_are_those_of_the_inner_blocks(fitted):
    detector, x = fitted
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1) / 255
    small = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True) * 2 - 1
    with torch.no_grad():
        every = _errors(_tokens(detector.frozen_, small), detector.trained_)
        last = detector.frozen_.forward_features(small)[:, 0]
    classes, errors = detector._spaces(x)
    np.testing.assert_allclose(errors, torch.stack(every[1:11], 1), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(classes, last, rtol=1e-3, atol=1e-4)
