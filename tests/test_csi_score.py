"""The CSI score by hand, and the detectors that use it: each image alone, and the same after saving."""

import numpy as np
import pytest
import torch

from dia.amplify.learning import AmplifySettings
from dia.detectors.base import Detector
from dia.detectors.csi import CSI, CSISettings, normality
from dia.detectors.dia import DIA, DIASettings
from dia.dissolve import DissolverSettings


def test_normality_by_hand():
    # two shifts, a bank of three unit vectors for each, two images
    bank = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [[0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]])
    z = torch.tensor([[[3.0, 4.0], [2.0, -1.0]], [[-2.0, 1.0], [0.0, -5.0]]])
    s = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
    lambda_, mu = torch.tensor([0.5, 0.25]), torch.tensor([2.0, 0.5])
    # image 0: shift 0: products 3, 4, 5.0 → 5·0.5 + 2·2 = 6.5; shift 1: 1, 2, −1 → 2·0.25 + 4·0.5 = 2.5
    # image 1: shift 0: 2, −1, 0.4 → 2·0.5 − 1·2 = −1;         shift 1: −5, 0, −3 → 0 + 1·0.5 = 0.5
    torch.testing.assert_close(normality(z, s, bank, lambda_, mu), torch.tensor([4.5, -0.25]))


AMPLIFY = AmplifySettings(size=16, width=4, steps=3, batch=8)
DISSOLVER = DissolverSettings(size=16, widths=(8, 16), steps=3, batch=8)
SETTINGS = {
    "csi": CSISettings(AMPLIFY, samples=2),
    "dia": DIASettings(DISSOLVER, AMPLIFY, ts=(30, 99), samples=2),
    "dia live": DIASettings(DISSOLVER, AMPLIFY, ts=(30, 99), samples=2, live=True),
}


@pytest.fixture(scope="module", params=[("csi", 1), ("csi", 3), ("dia", 1), ("dia live", 3)])
def fitted(request, make_images):
    name, channels = request.param
    cls = CSI if name == "csi" else DIA
    detector = cls(SETTINGS[name], seed=2, device="cpu")
    return detector.fit(make_images(24, 16, 18, channels)), make_images(9, 16, 18, channels, seed=5)


def test_scores_do_not_depend_on_batch_size(fitted):
    detector, x = fitted
    whole = detector.score(x)
    assert whole.shape == (9,)
    assert whole.dtype == np.float64
    assert np.ptp(whole) > 1e-3
    for batch in (1, 4):
        np.testing.assert_allclose(detector.score(x, batch=batch), whole, rtol=1e-3, atol=1e-4)


def test_scores_do_not_depend_on_order_or_on_earlier_scoring(fitted):
    detector, x = fitted
    whole, order = detector.score(x), np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(detector.score(x[order]), whole[order], rtol=1e-3, atol=1e-4)
    torch.manual_seed(123)  # the caller's random numbers play no part
    assert np.array_equal(detector.score(x), whole)


def test_scoring_leaves_the_callers_random_numbers_alone(fitted):
    detector, x = fitted
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    detector.score(x)
    assert torch.equal(torch.rand(3), expected)


def test_saved_and_loaded_scores_alike(fitted, tmp_path):
    detector, x = fitted
    loaded = Detector.load(detector.save(tmp_path / "model"), device="cpu")
    assert type(loaded) is type(detector)
    assert loaded.settings == detector.settings
    assert np.array_equal(loaded.score(x), detector.score(x))
    assert loaded.threshold(0.4) == detector.threshold(0.4)
    if isinstance(detector, DIA):
        before, after = (d.dissolver_.dissolve(x, 99) for d in (detector, loaded))
        assert np.array_equal(before, after)


def test_the_weights_of_the_score_come_from_training(fitted, make_images):
    detector, x = fitted
    train = make_images(24, 16, 18, x.shape[-1])
    z, s = detector._projections(train)
    detector._fit_bank(train)
    torch.testing.assert_close(detector.lambda_ * z.norm(dim=-1).mean(1), torch.ones(4))
    torch.testing.assert_close(detector.mu_ * s.mean(1), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(detector.bank_.norm(dim=-1), torch.ones(4, 24))
    # of its own training images, the mean normality is 1 (projections) + 1 (shifts) by these weights
    assert float(-detector._score(train).mean()) == pytest.approx(2, rel=1e-3)


def test_a_fit_with_the_same_seed_scores_alike(make_images):
    x = make_images(24)
    scores = [CSI(SETTINGS["csi"], seed=s, device="cpu").fit(x).score(x) for s in (0, 0, 1)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])
