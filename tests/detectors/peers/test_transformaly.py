"""Transformaly: what the student is fed, what stays frozen, both likelihoods, and fits that repeat."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from dia.core.settings import SettingsError, replaced
from dia.detectors import Detector, Transformaly
from dia.detectors.peers.backbones import backbone
from dia.detectors.peers.transformaly import (
    Gaussian,
    Imitation,
    LogLikelihood,
    TransformalySettings,
    block_errors,
    student_of,
    tokens,
)
from dia.detectors.presets import settings

timm = pytest.importorskip("timm")

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
    between = tokens(teacher, X)
    assert len(between) == 13
    for i, (given_, made) in enumerate(seen):
        torch.testing.assert_close(between[i], given_)
        torch.testing.assert_close(between[i + 1], made)
    torch.testing.assert_close(teacher.norm(between[-1]), last)


def test_each_block_of_the_student_is_fed_with_the_teachers_tokens_not_its_own(teacher):
    student, fed = student_of(TINY, 2), []
    for block in student:
        block.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
    between = tokens(teacher, X)
    errors = block_errors(between, student)
    assert len(fed) == len(errors) == 12
    for i, x in enumerate(fed):
        assert x is between[i]
    with torch.no_grad():
        expected = (student[4](between[4]) - between[5]).square().mean((1, 2))
    torch.testing.assert_close(errors[4], expected)
    assert errors[4].shape == (3,)


def test_the_teachers_own_blocks_make_no_error(teacher):
    for error in block_errors(tokens(teacher, X), teacher.blocks):
        assert error.abs().max() < 1e-10


def test_a_random_student_is_not_its_random_teacher(teacher):
    student = student_of(TINY, 2)
    for ours, theirs in zip(student, teacher.blocks, strict=True):
        assert not torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight)
    again = student_of(TINY, 2).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in student.state_dict().items())


def test_the_loss_is_the_sum_over_blocks_of_the_mean_error(teacher, normals):
    student = student_of(TINY, 2)
    learner = Imitation(partial(tokens, teacher), student, normals, replace(TINY, batch=24), 0)
    x = torch.from_numpy(normals).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1  # in [−1, 1]
    between = tokens(teacher, x)
    with torch.no_grad():
        parts = [((student[i](between[i]) - between[i + 1]) ** 2).mean() for i in range(12)]
        loss = learner.training_step(0, 0)
    torch.testing.assert_close(loss, torch.stack(parts).sum(), rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_teacher_and_every_block_of_the_student_learns(teacher, normals):
    learner = Imitation(partial(tokens, teacher), student_of(TINY, 2), normals, TINY, 0).train()
    learner.training_step(0, 0).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(part.training for part in teacher.modules())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for b in learner.student for p in [b.mlp.fc2.weight]
    )
    assert not any(name.startswith("teacher") for name in learner.state_dict())
    (group,) = learner.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.student.parameters()}


def test_fitting_changes_the_student_alone_and_lowers_its_errors(fitted, teacher):
    detector, x = fitted
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, detector.teacher_.state_dict()[name]), name
    start = student_of(TINY, 2)
    assert not torch.equal(start[3].mlp.fc1.weight, detector.student_[3].mlp.fc1.weight)
    assert not any(p.requires_grad for p in detector.student_.parameters())
    trained = detector._spaces(x)[1].mean(0)
    detector_before = Transformaly(TINY, seed=2, device="cpu")
    detector_before.teacher_, detector_before.student_ = teacher, start.eval()
    detector_before.where_ = torch.device("cpu")
    assert (trained < detector_before._spaces(x)[1].mean(0)).all()


# --- the score -----------------------------------------------------------------------------------------


def likelihood(of, x):
    """The log-likelihood of rows under the Gaussian of others."""
    return LogLikelihood(Gaussian.of(of))(torch.from_numpy(x)).numpy()


@given(st.integers(1, 5), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_a_gaussian_is_scipys_whatever_the_scale(d, seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, d)) @ rng.normal(size=(d, d)) * scale + rng.normal(size=d)
    ours, y = Gaussian.of(x), x[:5] + 0.1 * scale
    spread = np.outer(ours.deviation, ours.deviation)
    covariance = np.cov(x.T, bias=True).reshape(d, d) + 1e-6 * np.eye(d) * spread
    z = (y - x.mean(0)) / ours.deviation  # scipy's own at unit scale
    expected = multivariate_normal(np.zeros(d), covariance / spread).logpdf(z) - np.log(ours.deviation).sum()
    found = LogLikelihood(ours)(torch.from_numpy(y)).numpy()
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
    assert detector.whiten_.shape == (192, pca.n_components_)


def test_the_errors_are_those_of_the_inner_blocks(fitted):
    detector, x = fitted
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1) / 255
    small = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True) * 2 - 1
    with torch.no_grad():
        every = block_errors(tokens(detector.teacher_, small), detector.student_)
        last = detector.teacher_.forward_features(small)[:, 0]
    classes, errors = detector._spaces(x)
    np.testing.assert_allclose(errors, torch.stack(every[1:11], 1), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(classes, last, rtol=1e-3, atol=1e-4)


def test_equal_images_do_not_break_it(normals):
    detector = Transformaly(TINY, device="cpu").fit(np.full_like(normals, 7))
    assert np.isfinite(detector.score(normals)).all()


# --- as a detector -------------------------------------------------------------------------------------


def test_a_teacher_from_a_file_is_that_file_and_loads_when_it_is_gone(normals, tmp_path):
    path = tmp_path / "vit.pth"
    torch.manual_seed(8)
    state = timm.create_model(TINY.backbone, img_size=32).state_dict()
    torch.save(state, path)
    detector = Transformaly(replace(TINY, weights=str(path), epochs=1), device="cpu").fit(normals)
    assert torch.equal(detector.teacher_.blocks[5].attn.qkv.weight, state["blocks.5.attn.qkv.weight"])
    detector.save(tmp_path / "model")
    path.unlink()
    loaded = Detector.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.score(normals), detector.score(normals))


def test_a_fit_with_the_same_seed_scores_alike_and_is_found_again(normals, tmp_path):
    def fit(seed, folder, s=TINY):
        return Transformaly(s, seed=seed, device="cpu").fit(normals, workdir=tmp_path / folder)

    a, b, c = fit(0, "a"), fit(0, "b"), fit(1, "a")
    assert np.array_equal(a.score(normals), b.score(normals))
    assert not np.allclose(a.score(normals), c.score(normals))
    found = fit(0, "a", replace(TINY, variance=0.5))
    for name, value in a.student_.state_dict().items():
        assert torch.equal(value, found.student_.state_dict()[name])
    assert found.whiten_.shape[1] < a.whiten_.shape[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("backbone", "resnet18"), ("size", 40), ("size", 16), ("epochs", 0), ("batch", 0), ("lr", 0.0),
     ("variance", 1.0), ("bank_size", 2), ("weights", ""), ("weights", "dia:runs/x"), ("precision", "16")],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"^{name} "):
        replaced(TINY, {name: value})


def test_presets():
    paper, cpu = (settings(TransformalySettings, preset) for preset in ("paper", "cpu"))
    assert (paper.backbone, paper.weights, paper.size) == ("vit_base_patch16_384", "imagenet", 384)
    assert (paper.lr, paper.epochs, paper.variance) == (1e-4, 30, 0.9)
    assert (cpu.backbone, cpu.weights, cpu.size) == ("vit_tiny_patch16_224", "none", 64)
