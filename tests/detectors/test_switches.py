"""Each switch of the method does what it says: t, shift loss, SimSiam, released range, score parts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dia.amplify import contrast
from dia.amplify.contrast import AmplifySettings
from dia.amplify.inputs import untrained_encoder
from dia.amplify.levels import cycled_beta, draw_levels
from dia.amplify.loss import contrastive_loss, simsiam_loss, targets
from dia.amplify.resident import learn
from dia.core.errors import DataError
from dia.core.training import seed_step
from dia.data.imageset import ImageSet
from dia.detectors.dia import DIA, DIASettings, normality
from dia.dissolve import Dissolver, DissolverSettings
from dia.dissolve.schedule import cosine_alphas_cumprod

TINY = AmplifySettings(size=16, width=4, steps=4, batch=6)


# --- t -------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["batch", "shift", "image"]),
    st.sampled_from(["uniform", "beta", "cycled"]),
    st.integers(1, 70),
)
def test_levels_lie_in_range_and_repeat_as_t_per_says(per, sampler, count):
    s = replace(TINY, t_per=per, t_sampler=sampler)
    level = draw_levels(count, 4, 6, s, epoch=7)
    assert level.shape == (4, 6)
    assert level.dtype == torch.int64
    assert 0 <= int(level.min()) <= int(level.max()) < count
    if per != "image":
        assert (level == level[:, :1]).all()
    if per == "batch":
        assert (level == level[0, 0]).all()


def test_the_default_draws_are_those_of_before_the_switch():
    torch.manual_seed(3)
    before = torch.randint(0, 70, (4,))
    torch.manual_seed(3)
    assert torch.equal(draw_levels(70, 4, 6, TINY, 0)[:, 0], before)


def histogram(s, epoch=0, n=40_000):
    torch.manual_seed(0)
    t = 30 + draw_levels(70, 1, n, replace(s, t_per="image"), epoch).flatten().numpy()
    return t


def test_t_is_uniform_over_30_to_99():
    t = histogram(TINY)
    assert t.min() == 30
    assert t.max() == 99
    counts = np.bincount(t - 30, minlength=70)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.7), (1.7, 1.0)])
def test_t_follows_the_published_formula_of_its_beta(a, b):
    # t = ⌊100·(.3 + .7·U)⌋, U ~ Beta(a, b)
    t = histogram(replace(TINY, t_sampler="beta", t_beta=(a, b)))
    edges = stats.beta(a, b).cdf(np.arange(71) / 70)
    counts = np.bincount(t - 30, minlength=70)
    assert stats.chisquare(counts, np.diff(edges) * len(t)).pvalue > 1e-3


def test_the_cycled_beta_is_the_official_one():
    assert [cycled_beta(e) for e in (0, 1, 14)] == [(20, 2), (20, 3.2), (20, pytest.approx(18.8))]
    assert [cycled_beta(e) for e in (15, 28, 29)] == [(pytest.approx(18.8), 20), (3.2, 20), (2, 20)]
    for epoch in range(60):
        assert cycled_beta(epoch) == cycled_beta(epoch + 30)
        assert cycled_beta(epoch) == cycled_beta(59 - epoch)[::-1]  # its mirror image
    s = replace(TINY, t_sampler="cycled")
    for epoch in (0, 7, 15, 29):
        a, b = cycled_beta(epoch)
        t = histogram(s, epoch, 4000)
        deviation = 70 * (a * b / (a + b) ** 2 / (a + b + 1)) ** 0.5 / 4000**0.5
        assert t.mean() == pytest.approx(30 + 70 * a / (a + b) - 0.5, abs=5 * deviation + 0.05)


class Recording:
    """Dissolved views that note what was asked for."""

    ts = (10, 20, 30)

    def __init__(self, images):
        self.images, self.asked = images, []

    def take(self, index, flip, level):
        self.asked.append(level)
        return self.images[index]


@pytest.mark.parametrize(("per", "distinct"), [("batch", 1), ("shift", 3), ("image", 3)])
def test_training_asks_for_t_as_often_as_it_should(per, distinct, make_images, tmp_path):
    x = make_images(24)
    views = Recording(x)
    learn(x, views, replace(TINY, t_per=per, steps=8), seed=1, device="cpu", workdir=tmp_path)
    steps = np.array(views.asked).reshape(8, 4, 6)  # step, shift, image
    assert 1 < len(np.unique(steps)) <= 3
    assert max(len(np.unique(step)) for step in steps) == distinct
    assert (np.ptp(steps, axis=2) > 0).any() == (per == "image")


# --- losses --------------------------------------------------------------------------------------------


def module_of(s, images, dissolved=None):
    return contrast.ContrastiveTraining(images, dissolved, s, seed=1)


@pytest.mark.parametrize("taught", [True, False])
def test_dissolved_rows_are_taught_the_shift_or_not(taught, make_images):
    b, k = 3, 4
    s = replace(TINY, dissolved_in_shift=taught, batch=b)
    m = module_of(s, make_images(), Recording(make_images()))
    g = torch.Generator().manual_seed(0)
    z, logits = torch.randn(3 * k * b, 8, generator=g), torch.randn(3 * k * b, k, generator=g)
    # the plain loop: rows are (view, shift, image)
    total, rows = 0.0, 0
    for v in range(3 if taught else 2):
        for shift in range(k):
            for i in range(b):
                row = [float(c) for c in logits[(v * k + shift) * b + i]]
                total -= row[shift] - math.log(sum(math.exp(c) for c in row))
                rows += 1
    expected = float(contrastive_loss(z, *targets(b, k), 0.5)) + total / rows
    assert float(m.loss(z, logits)) == pytest.approx(expected, rel=1e-5)
    moved = logits.clone()
    moved[2 * k * b :] += torch.randn(k * b, k, generator=g)
    assert (float(m.loss(z, moved)) != float(m.loss(z, logits))) is taught


def test_simsiam_by_hand():
    # two rows a view; predictions at 0°, 90° | 180°, 45° from the other view's projections
    z = torch.tensor([[1.0, 0], [0, 2], [3, 0], [0, 1]])
    p = torch.tensor([[2.0, 0], [1, 0], [-1, 0], [1, 1]])
    # cos(p0, z2) = 1, cos(p1, z3) = 0, cos(p2, z0) = −1, cos(p3, z1) = 1/√2
    assert float(simsiam_loss(p, z, 2)) == pytest.approx(-(1 + 0 - 1 + 2**-0.5) / 4, abs=1e-6)


def test_simsiam_takes_all_ordered_pairs_of_three_views():
    # one row a view: p = (0°, 90°, 45°), z = (0°, 45°, 90°), all ordered pairs v ≠ w of cos(p_v, z_w)
    p = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    z = torch.tensor([[2.0, 0], [1, 1], [0, 3]])
    r = 2**-0.5
    pairs = {(0, 1): r, (0, 2): 0, (1, 0): 0, (1, 2): 1, (2, 0): r, (2, 1): 1}
    assert float(simsiam_loss(p, z, 3)) == pytest.approx(-sum(pairs.values()) / 6, abs=1e-6)


def test_no_gradient_of_simsiam_flows_into_the_targets():
    z, p = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    simsiam_loss(p, z).backward()
    assert z.grad is None
    assert p.grad.norm() > 0


def test_the_simsiam_term_is_added_by_its_weight(make_images):
    x, b, k = make_images(), 3, 4
    torch.manual_seed(0)
    z, logits = torch.randn(3 * k * b, 128), torch.randn(3 * k * b, k)
    plain = float(module_of(replace(TINY, batch=b), x, Recording(x)).loss(z, logits))
    m = module_of(replace(TINY, batch=b, simsiam_weight=0.5), x, Recording(x))
    extra = float(simsiam_loss(m.predictor(z), z).detach())
    assert float(m.loss(z, logits)) == pytest.approx(plain + 0.5 * extra, rel=1e-5)


def test_the_predictor_trains_and_changes_no_first_weight(make_images, tmp_path):
    x = make_images()
    s = replace(TINY, simsiam_weight=1.0)
    for a, b in zip(
        module_of(s, x).encoder.parameters(),
        untrained_encoder((16, 16, 1), TINY, 1).parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
    torch.manual_seed(9)  # the caller's numbers play no part
    predictors = [module_of(s, x).predictor[0].weight for _ in range(2)]
    assert torch.equal(*predictors)
    optimizer = module_of(s, x).configure_optimizers()["optimizer"]
    encoder = sum(p.numel() for p in untrained_encoder((16, 16, 1), TINY, 1).parameters())
    assert (
        sum(p.numel() for g in optimizer.param_groups for p in g["params"])
        == encoder + 128 * 32 + 2 * 32 + 32 * 128 + 128
    )
    a, b = (
        learn(x, None, replace(TINY, simsiam_weight=w), seed=1, device="cpu", workdir=tmp_path / str(w))[0]
        for w in (0, 1)
    )
    assert not torch.equal(a.project[0].weight, b.project[0].weight)


# --- the released input range -------------------------------------------------------------------------


def test_released_gives_the_network_images_in_0_to_1(tiny_dissolver, make_images):
    x, t = make_images(3), 100
    u = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    a = float(cosine_alphas_cumprod()[t])
    folded = F.pixel_unshuffle(u, 2)
    with torch.inference_mode():
        noise = F.pixel_shuffle(tiny_dissolver.unet_(folded, t).sample, 2)
    # formula by hand; an image in [0, 1] cannot hold what falls below 0
    expected = ((1 / a) ** 0.5 * u - (1 / a - 1) ** 0.5 * noise).clamp(0, 1) * 255
    released = Dissolver(replace(tiny_dissolver.settings, input_range="released"), seed=1, device="cpu")
    released._adopt(tiny_dissolver.unet_, tiny_dissolver.scheduler_)
    y = released.dissolve(x, t)
    assert np.abs(y[..., 0] - expected[:, 0].numpy()).max() <= 0.51
    assert not np.array_equal(y, tiny_dissolver.dissolve(x, t))
    assert released.sha256() != tiny_dissolver.sha256()


def test_released_and_right_share_the_trained_model(make_images, tmp_path):
    x = make_images(24)
    d = DissolverSettings(size=16, widths=(8, 16), steps=3, batch=8)
    right = DIA(DIASettings(d, TINY, ts=(30, 99), samples=1), seed=1, device="cpu").fit(x, workdir=tmp_path)
    s = DIASettings(replace(d, input_range="released"), TINY, ts=(30, 99), samples=1)
    released = DIA(s, seed=1, device="cpu").fit(x, workdir=tmp_path)
    assert len(list(tmp_path.glob("dissolver-*"))) == 1
    assert len(list(tmp_path.glob("encoder-*"))) == 2
    assert released.dissolver_.settings.input_range == "released"
    again = released.load(released.save(tmp_path / "m"), device="cpu")
    assert np.array_equal(again.dissolver_.dissolve(x, 99), released.dissolver_.dissolve(x, 99))
    assert not np.array_equal(again.dissolver_.dissolve(x, 99), right.dissolver_.dissolve(x, 99))


# --- per-image t, resolutions -------------------------------------------------------------------------


def test_each_image_at_its_own_t(tiny_dissolver, make_images):
    x, t = make_images(5), np.array([30, 99, 30, 400, 0])
    each = tiny_dissolver.dissolve_each(x, t)
    for i, v in enumerate(t):
        assert np.abs(each[i].astype(int) - tiny_dissolver.dissolve(x[i : i + 1], int(v))[0]).max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("shape", [(28, 28), (64, 48), (100, 224), (224, 224)])
def test_any_image_at_any_resolution(size, shape):
    s = DissolverSettings(size=size, patch=2, widths=(8, 8), steps=1, batch=2)
    d = Dissolver(s, device="cpu")._adopt(*_network(s))
    x = np.random.default_rng(0).integers(0, 256, (1, *shape, 1), np.uint8)
    seen = []
    remove = d._remove
    d._remove = lambda z, t: seen.append(z.shape) or remove(z, t)
    y = d.dissolve(x, (30, 99))
    assert y.shape == (2, 1, *shape, 1)
    sides = [side * min(1, size / max(shape)) for side in shape]
    assert all(
        w <= seen[0][i + 2] < w + 4 for i, w in enumerate(map(round, sides))
    )  # padded to a multiple of 4


def _network(s):
    from diffusers import DDPMScheduler

    from dia.dissolve.dissolver import build_unet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(1, s), DDPMScheduler(beta_schedule="squaredcos_cap_v2")


# --- parts of the score -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("cosine", "norm", "shift"), [4.5, -0.25]),
        (("cosine", "norm"), [1.5, 0.5]),
        (("cosine",), [(1 + 2 / 5**0.5) / 2, 1 / 5**0.5]),
        (("norm",), [(2.5 + 5**0.5 / 4) / 2, (5**0.5 / 2 + 1.25) / 2]),
        (("shift",), [3.0, -0.75]),
        (("cosine", "shift"), [(1 + 2 / 5**0.5) / 2 + 3, 1 / 5**0.5 - 0.75]),
        (("norm", "shift"), [(2.5 + 5**0.5 / 4) / 2 + 3, (5**0.5 / 2 + 1.25) / 2 - 0.75]),
    ],
)
def test_the_parts_of_the_score_by_hand(parts, expected):
    # the bank of three, two images and weights of test_csi_score.test_normality_by_hand
    bank = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [[0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]])
    z = torch.tensor([[[3.0, 4.0], [2.0, -1.0]], [[-2.0, 1.0], [0.0, -5.0]]])
    s = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
    lambda_, mu = torch.tensor([0.5, 0.25]), torch.tensor([2.0, 0.5])
    torch.testing.assert_close(normality(z, s, bank, lambda_, mu, parts), torch.tensor(expected))


def test_score_parts_share_the_trained_encoder(make_images, tmp_path):
    x, d = make_images(24), DissolverSettings(kind="gaussian", size=16)
    scores = {}
    for parts in (("cosine",), ("norm",), ("shift",), ("cosine", "norm", "shift")):
        s = DIASettings(d, TINY, ts=(30,), samples=1, score_parts=parts)
        scores[parts] = DIA(s, seed=1, device="cpu").fit(x, workdir=tmp_path).score(x)
    assert len(list(tmp_path.glob("encoder-*"))) == 1
    assert (scores[("cosine",)] >= -1 - 1e-6).all()
    np.testing.assert_allclose(scores[("cosine",)], -1, atol=0.2)  # training normals near themselves
    assert len({tuple(v) for v in scores.values()}) == 4


# --- contamination ------------------------------------------------------------------------------------


@given(st.integers(5, 60), st.floats(0, 0.4), st.integers(0, 5))
def test_contamination_is_a_share_of_all_and_unmarked(n, share, seed):
    normals = ImageSet(np.zeros((n, 4, 4, 1), np.uint8))
    bad = ImageSet(
        np.arange(1, 51, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(4, 1).repeat(4, 2), np.ones(50)
    )
    mixed = normals.contaminated(bad, share, seed)
    values = mixed.images[n:, 0, 0, 0]
    assert len(values) == round(share / (1 - share) * n)
    assert abs(len(values) - share * len(mixed)) <= 0.5 + 1e-9 * n
    assert len(set(values)) == len(values)
    assert (values > 0).all()
    assert not mixed.anomalies().images.size
    assert mixed.normals() is mixed
    assert np.array_equal(mixed.images, normals.contaminated(bad, share, seed).images)


def test_too_few_anomalies_for_a_contamination():
    normals = ImageSet(np.zeros((10, 4, 4, 1), np.uint8))
    with pytest.raises(
        DataError, match=r"0\.5 of 10 normals takes 10 anomalous images with labels; there are 0"
    ):
        normals.contaminated(normals.anomalies(), 0.5)
    for share in (-0.1, 1.0):
        with pytest.raises(DataError, match=r"\[0, 1\)"):
            normals.contaminated(normals, share)
    assert normals.contaminated(normals.anomalies(), 0.0) is normals


def test_seeding_a_step_makes_the_cycle_repeatable():
    s = replace(TINY, t_sampler="cycled", t_per="image")
    draws = []
    for _ in range(2):
        seed_step(1, 5)
        draws.append(draw_levels(70, 4, 6, s, 3))
    assert torch.equal(*draws)
