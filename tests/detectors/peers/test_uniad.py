"""UniAD: its mask, queries, jitter, map and score by hand; a frozen network; fits that resume and repeat."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dia.core.settings import SettingsError, replaced
from dia.detectors import UniAD
from dia.detectors.peers import uniad
from dia.detectors.peers.pretrained import Learner
from dia.detectors.peers.uniad import (
    Rebuilder,
    UniADSettings,
    _anomaly_map,
    _features,
    _greatest_mean,
    _jittered,
    _neighbour_mask,
)
from dia.features.networks import backbone, to_input

pytest.importorskip("timm")

TINY = UniADSettings(
    backbone="resnet18", size=32, width=32, layers=2, neighbours=1, epochs=2, batch=8, lr=1e-3
)
HIDDEN_OF_5 = (0, 1, 2, 4, 5, 6, 8, 9, 10)  # of a 4×4 grid, the 3×3 tokens about row 1, column 1


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module", params=[(1, "resnet18"), (3, "tf_efficientnet_b4")])
def fitted(request, make_images):
    channels, name = request.param
    detector = UniAD(replace(TINY, backbone=name), seed=2, device="cpu")
    return detector.fit(make_images(24, 28, 36, channels)), make_images(9, 28, 36, channels, seed=5)


@pytest.fixture
def rebuilder():
    torch.manual_seed(0)
    return Rebuilder(channels=12, grid=4, width=16, layers=2, neighbours=3)


def changed(before, after):
    """Which of the tokens `(1, T, D)` are not as before."""
    return set(torch.nonzero((before - after).abs().amax((0, 2)) > 1e-6).flatten().tolist())


# --- the mask ------------------------------------------------------------------------------------------


def test_the_mask_hides_a_square_about_each_token():
    mask = _neighbour_mask(4, 3)
    assert mask.shape == (16, 16)
    assert mask[0].nonzero().flatten().tolist() == [0, 1, 4, 5]  # a corner
    assert mask[2].nonzero().flatten().tolist() == [1, 2, 3, 5, 6, 7]  # an edge: no row's end meets the next
    assert tuple(mask[5].nonzero().flatten().tolist()) == HIDDEN_OF_5
    assert torch.equal(mask, mask.T)
    assert torch.equal(_neighbour_mask(3, 1), torch.eye(9, dtype=torch.bool))
    published = _neighbour_mask(14, 7).sum(1)
    assert (published[0], published[7 * 14 + 7], published.max()) == (16, 49, 49)


@pytest.mark.parametrize("neighbours", [1, 3, 5, 7])
def test_every_token_sees_another_where_settings_allow_it(neighbours):
    assert not _neighbour_mask(neighbours + 1, neighbours).all(1).any()
    assert _neighbour_mask(neighbours, neighbours).all(1).any()
    allowed = replace(TINY, size=16 * (neighbours + 1), neighbours=neighbours)
    with pytest.raises(SettingsError, match=r"^size must be above 16 · neighbours"):
        replaced(allowed, {"size": 16 * neighbours})


@pytest.mark.parametrize("training", [True, False])
def test_neither_encoder_nor_decoder_attends_to_neighbours(rebuilder, training):
    rebuilder.train(training)
    x, other = torch.randn(2, 1, 16, 16)
    mask, layer = rebuilder.mask, rebuilder.decoder[0]
    near = set(HIDDEN_OF_5)
    with torch.no_grad():
        for attends, itself in (
            (lambda x: rebuilder.encoder[0](x, src_mask=mask), {5}),  # past the attention, by the residual
            (lambda x: layer(x, other, mask), set()),
            (lambda x: layer(other, x, mask), set()),
        ):
            y = x.clone()
            y[:, 5] += 1
            assert changed(attends(x), attends(y)) == set(range(16)) - near | itself


def test_the_whole_transformer_hands_its_mask_to_every_layer(rebuilder):
    seen = []
    for layer in rebuilder.encoder:
        layer.register_forward_pre_hook(lambda _, __, given: seen.append(given["src_mask"]), with_kwargs=True)
    for layer in rebuilder.decoder:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    rebuilder(torch.randn(1, 12, 4, 4))
    assert len(seen) == 4
    assert all(torch.equal(mask, _neighbour_mask(4, 3)) for mask in seen)


def test_without_an_encoder_a_tokens_own_features_and_its_neighbours_do_not_reach_it(rebuilder):
    rebuilder.encoder, rebuilder.decoder = nn.ModuleList(), rebuilder.decoder[:1]
    f = torch.randn(1, 12, 4, 4)
    g = f.clone()
    g[:, :, 1, 1] += 1
    with torch.no_grad():
        before, after = (rebuilder(v).flatten(2).transpose(1, 2) for v in (f, g))
    assert changed(before, after) == set(range(16)) - set(HIDDEN_OF_5)


# --- queries, jitter, training -------------------------------------------------------------------------


def test_each_decoder_layer_has_a_query_of_its_own_and_hears_the_layer_before(rebuilder):
    given = []
    for layer in rebuilder.decoder:
        layer.register_forward_hook(lambda _, took, made: given.append((*took, made)))
    rebuilder(torch.randn(3, 12, 4, 4)).square().mean().backward()
    (memory, before, _, first), (same_memory, previous, _, _) = given
    assert before is memory is same_memory
    assert previous is first
    queries = [layer.query for layer in rebuilder.decoder]
    assert all(query.shape == (16, 16) for query in queries)
    assert not torch.equal(*queries)
    for query in queries:
        assert (query.grad.abs().amax(1) > 0).all()  # of every token
    assert all(p.grad is not None for p in rebuilder.parameters())


def test_the_transformer_tells_places_apart(rebuilder):
    f = torch.ones(1, 12, 4, 4)
    encoded = []
    rebuilder.encoder[0].register_forward_pre_hook(lambda _, given: encoded.append(given[0]))
    rebuilder(f)
    assert encoded[0][0].std(0).min() > 0


def test_the_jitter_is_as_strong_as_each_token(monkeypatch):
    torch.manual_seed(0)
    f = torch.randn(4, 64, 8, 8) * torch.linspace(0.1, 10, 8)
    noise = _jittered(f, 20.0) - f
    # E‖ε‖² = C σ² = 20² ‖f‖² / C
    relative = noise.square().sum(1) / f.square().sum(1)
    torch.testing.assert_close(relative.mean((0, 1)), torch.full((8,), 400 / 64), rtol=0.1, atol=0)
    assert noise.mean().abs() < 0.05 * noise.std()


def learner_of(features, rebuilder, images, seed=0, **changes):
    """The training, where the frozen network gives `features` of a batch."""
    detector = UniAD(replace(TINY, **changes), device="cpu")
    detector.frozen_ = lambda x: [features(x)]
    return detector.learner(rebuilder, detector._loss, images, detector.s, seed)


def test_training_rebuilds_the_features_without_their_jitter(normals):
    f = torch.randn(8, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    learner = learner_of(lambda x: f, nn.Identity(), normals)
    expected = 400 * f.square().sum(1).mean() / 16**2  # what is left is the noise
    assert float(learner.training_step(0, 0)) == pytest.approx(float(expected), rel=0.2)
    learner = learner_of(lambda x: f, nn.Identity(), normals, jitter=0.0)
    assert float(learner.training_step(0, 0)) == 0
    learner.network.register_forward_hook(lambda _, __, made: 0 * made)
    torch.testing.assert_close(learner.training_step(0, 0), f.square().mean())


@pytest.mark.parametrize(("clip", "low", "high"), [(0.1, 0.099, 0.1001), (1e9, 0.11, np.inf)])
def test_gradients_are_clipped_together(normals, monkeypatch, clip, low, high):
    norms = []

    def after_step(self):
        norms.append(float(torch.stack([p.grad.norm() for p in self.network.parameters()]).norm()))

    monkeypatch.setattr(Learner, "after_step", after_step)
    UniAD(replace(TINY, clip=clip, precision="32"), device="cpu").fit(normals)
    assert len(norms) == 4
    assert low < max(norms) < high


def test_jitter_and_batches_come_from_seed_and_step(normals):
    def losses(seed):
        f = torch.ones(8, 12, 2, 2)
        learner = learner_of(lambda x: f * (1 + x.mean()), nn.Identity(), normals, seed)
        return [learner.training_step(0, 0).item() for _ in range(2)]

    (first, again), (other, _) = losses(0), losses(1)
    assert first == again != other


def test_the_optimiser_is_that_of_the_paper(rebuilder, normals):
    optimiser = learner_of(None, rebuilder, normals, lr=1e-4).configure_optimizers()
    assert isinstance(optimiser, torch.optim.AdamW)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-4)
    assert {id(p) for p in group["params"]} == {id(p) for p in rebuilder.parameters()}


def test_the_published_transformer():
    model = Rebuilder(272, 14, 256, 4, 7)
    assert model.encoder[0].self_attn.num_heads == model.decoder[0].of_memory.num_heads == 8
    assert model.encoder[0].linear1.out_features == model.decoder[0].feedforward[0].out_features == 1024
    assert (len(model.encoder), len(model.decoder), model.mask.shape) == (4, 4, (196, 196))


# --- features, map and score ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "reductions"),
    [("tf_efficientnet_b4", [24, 32, 56, 160], [2, 4, 8, 16]),
     ("resnet18", [64, 128, 256, 512], [4, 8, 16, 32])],
)  # fmt: skip
def test_features_are_four_stages_on_one_grid(name, channels, reductions, make_images):
    network = backbone(name, "none", **UniAD(replace(TINY, backbone=name))._options())
    assert network.feature_info.channels() == channels
    assert network.feature_info.reduction() == reductions
    x = to_input(make_images(6, 64, 64, 1), 64)
    f, maps = _features(network, x), network(x)
    assert f.shape == (6, sum(channels), 4, 4)
    at = reductions.index(16)
    start = sum(channels[:at])
    torch.testing.assert_close(f[:, start : start + channels[at]], maps[at])  # is of the grid's size
    # the others keep their means, but for the borders that antialiasing weighs anew
    first = f[:, : channels[0]].mean((0, 2, 3))
    torch.testing.assert_close(first, maps[0].mean((0, 2, 3)), rtol=0.1, atol=0.05)
    tells = f.std(0).amax((1, 2)) > 1e-6  # random networks' features differ between images
    assert tells.float().mean() > 0.9


def test_map_and_score_by_hand():
    f = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    rebuilt = f.clone()
    rebuilt[0, :, 0, 0] += torch.tensor([3.0, -4.0])
    heat = _anomaly_map(rebuilt, f)
    assert heat.shape == (1, 32, 32)
    torch.testing.assert_close(heat[0, :8, :8], torch.full((8, 8), 5.0))
    torch.testing.assert_close(heat[0, 24:].abs().max(), torch.tensor(0.0), atol=1e-6, rtol=0)
    # along a side, 8 pixels of 1 and 8 that fall linearly, .75 in the mean
    torch.testing.assert_close(_greatest_mean(heat), torch.tensor([5 * (0.5 + 0.5 * 0.75) ** 2]))
    two = torch.cat([heat, 2 * heat.flip(-1)])
    torch.testing.assert_close(_greatest_mean(two), torch.tensor([3.828125, 7.65625]))


def test_scores_and_heatmaps_are_of_the_features_without_jitter(fitted, monkeypatch):
    detector, x = fitted
    monkeypatch.setattr(uniad, "_jittered", lambda *_: pytest.fail("jittered"))
    with torch.no_grad():
        f = _features(detector.frozen_, to_input(x, 32))
        heat = _anomaly_map(detector.trained_(f), f)
    np.testing.assert_allclose(detector.score(x), _greatest_mean(heat), rtol=1e-3)
    shown = detector.heatmap(x)
    assert shown.shape == (9, 28, 36)
    assert shown.dtype == np.float32
    assert (shown.std((1, 2)) > 0).all()
    small = nn.functional.interpolate(heat[:, None], (28, 36), mode="bilinear", antialias=True)[:, 0]
    np.testing.assert_allclose(shown, small, rtol=1e-3)
    alone = np.concatenate([detector.heatmap(x[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, shown, rtol=1e-3)
