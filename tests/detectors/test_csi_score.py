"""The CSI score by hand, and the detectors that use it: each image alone, and the same after saving."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dia.amplify.contrast import AmplifySettings, encoder_input
from dia.amplify.shifts import SHIFTS
from dia.core.errors import DataError
from dia.core.modelfiles import write_sums
from dia.core.running import loop
from dia.core.training import seed_step
from dia.data.imageset import subsample
from dia.detectors import dia as csi
from dia.detectors.base import Detector
from dia.detectors.dia import CSI, DIA, CSISettings, DIASettings, normality
from dia.dissolve import DissolverSettings
from dia.features.untrained import as_tensor


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


def test_scoring_leaves_the_callers_random_numbers_alone(fitted):
    detector, x = fitted
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    detector.score(x)
    assert torch.equal(torch.rand(3), expected)


def test_the_weights_of_the_score_come_from_training(fitted, make_images):
    detector, x = fitted
    train = make_images(24, 16, 18, x.shape[-1])
    z, s = detector._projections(train)
    detector._fit_bank(train)
    torch.testing.assert_close(detector.lambda_ * z.norm(dim=-1).mean(1), torch.ones(4))
    torch.testing.assert_close(detector.mu_ * s.mean(1), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(detector.bank_.norm(dim=-1), torch.ones(4, 24))
    # of its own training images, the mean normality is 1 (projections) + 1 (shifts) by these weights
    assert float(-detector.score(train).mean()) == pytest.approx(2, rel=1e-3)


def test_a_search_in_parts_finds_the_same_neighbour(monkeypatch):
    torch.manual_seed(0)
    z, bank = torch.randn(2, 5, 3), torch.randn(2, 23, 3)
    rest = torch.zeros(2, 5), bank, torch.ones(2), torch.ones(2)
    whole = normality(z, *rest)
    monkeypatch.setattr(csi, "_BANK", 4)
    torch.testing.assert_close(normality(z, *rest), whole)


def test_one_pass_over_all_views_scores_as_one_view_at_a_time(fitted, monkeypatch):
    detector, x = fitted
    whole = detector.score(x)
    monkeypatch.setattr(csi, "_ROWS", 1)  # one image per pass
    np.testing.assert_allclose(detector.score(x), whole, rtol=1e-3, atol=1e-4)
    k_shifts, shift = SHIFTS[detector.s.amplify.shift]
    inputs = encoder_input(x, detector.s.amplify)
    z = torch.zeros(k_shifts, len(x), detector.bank_.shape[-1])
    s = torch.zeros(k_shifts, len(x))
    with torch.inference_mode():
        for k in range(k_shifts):
            for sample in range(detector.s.samples):
                with torch.random.fork_rng():
                    seed_step(detector.seed, sample)
                    draws = detector.augment_.draw(1)
                    _, projected, logits = detector.encoder_(detector.augment_(shift(inputs, k), draws))
                z[k] += projected / detector.s.samples
                s[k] += logits[:, k] / detector.s.samples
        expected = -normality(z, s, detector.bank_, detector.lambda_, detector.mu_)
    np.testing.assert_allclose(whole, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_a_bank_above_its_size_holds_evenly_spaced_normals(make_images):
    x = make_images(30, 16, 16, 1)
    detector = CSI(replace(SETTINGS["csi"], bank_size=7), seed=1, device="cpu").fit(x)
    assert detector.bank_.shape[1] == 7
    assert np.isfinite(detector.score(x)).all()
    assert subsample(x, 30) is x
    np.testing.assert_array_equal(subsample(x, 4), x[[0, 9, 19, 29]])


def test_too_little_room_for_the_dissolved_bank_trains_on_fewer_images_and_says_so(make_images, tmp_path):
    x = make_images(60, 16, 16, 1)
    per_image = 2 * 2 * 16 * 16
    long = replace(AMPLIFY, steps=14)  # longer than two epochs
    s = replace(SETTINGS["dia"], amplify=long, bank_gb=25 * per_image / 2**30)
    with pytest.warns(UserWarning, match="25 of 48 images"):
        DIA(s, seed=1, device="cpu").fit(x, workdir=tmp_path)
    (bank,) = tmp_path.glob("bank-*/bank.npy")
    assert np.load(bank, mmap_mode="r").shape == (2, 2, 25, 16, 16, 1)
    with pytest.raises(DataError, match="room for 3 images"):
        DIA(replace(s, bank_gb=3 * per_image / 2**30), seed=1, device="cpu").fit(x, workdir=tmp_path)


def test_a_memory_map_scores_as_the_array_it_maps(make_images, tmp_path):
    x = make_images(40, 16, 16, 1)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    scores = [CSI(SETTINGS["csi"], seed=1, device="cpu").fit(images).score(x) for images in (x, mapped)]
    np.testing.assert_array_equal(*scores)


def test_training_precision_follows_its_setting(make_images, tmp_path, monkeypatch):
    x = make_images(24, 16, 16, 1)
    monkeypatch.setattr(loop, "bf16_is_fast", lambda device: True)
    scores = {}
    for precision in ("32", "bf16", "auto"):
        s = replace(SETTINGS["csi"], amplify=replace(AMPLIFY, precision=precision))
        scores[precision] = CSI(s, seed=1, device="cpu").fit(x).score(x)
    np.testing.assert_array_equal(scores["auto"], scores["bf16"])
    assert not np.array_equal(scores["32"], scores["bf16"])
    np.testing.assert_allclose(scores["32"], scores["bf16"], rtol=0.1, atol=0.1)


# --- draws of each image's own ------------------------------------------------------------------------


def own(kind, **changes):
    return replace(SETTINGS[kind], score_draws="own", **changes)


def test_own_draws_differ_between_images_and_shifts_and_flip(make_images):
    x = make_images(24, 16, 16, 1)
    detector = CSI(own("csi", samples=40), seed=1, device="cpu").fit(x)
    flat = torch.zeros(4 * 24, 1, 16, 16)
    flat[..., :8] = 1  # left half bright: a mirrored view is bright on the right
    views = torch.stack([view(flat) for view in detector._own_views(as_tensor(x))])  # (40, K·N, 1, 16, 16)
    assert len({v.numpy().tobytes() for v in views[0]}) == len(views[0])
    right = (views[..., 8:].mean((-3, -2, -1)) > views[..., :8].mean((-3, -2, -1))).float().mean()
    assert 0.4 < float(right) < 0.6  # of 3,840 draws; crops keep the sides apart


def test_own_draws_belong_to_the_pixels_not_to_the_batch(make_images):
    x = make_images(24, 16, 16, 1)
    detector = CSI(own("csi", samples=3), seed=1, device="cpu").fit(x)
    whole, order = detector.score(x), np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(detector.score(x[order]), whole[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(detector.score(x, batch=1), whole, rtol=1e-3, atol=1e-4)
    shared = CSI(replace(SETTINGS["csi"], samples=3), seed=1, device="cpu").fit(x)
    assert not np.allclose(shared.score(x), whole, rtol=1e-3)


def test_a_model_of_other_settings_than_there_are_now_says_fit_it_again(make_images, tmp_path):
    detector = CSI(SETTINGS["csi"], seed=1, device="cpu").fit(make_images(24, 16, 16, 1))
    folder = detector.save(tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["amplify"]["augment"]["colour"] = "matrix"  # as saved before it was mended
    (folder / "config.json").write_text(json.dumps(config))
    write_sums(folder)
    with pytest.raises(DataError, match=r"old: AugmentSettings has no setting colour; .* fit it again$"):
        Detector.load(folder)
