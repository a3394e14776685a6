"""`dia+`: what it refuses, how normals are judged without themselves, what its score is, what comes back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.core.settings import SettingsError
from dia.data import phantoms
from dia.data.imageset import ImageSet
from dia.detectors import Detector, DIAPlus
from dia.detectors.dia import CSI, CSISettings
from dia.detectors.diaplus import PLACE, VIEWS, WHOLE, DIAPlusSettings
from dia.detectors.places import greatest
from dia.detectors.presets import PRESETS, settings
from dia.dissolve import DissolverSettings
from dia.features.untrained import as_tensor

TINY = DIAPlusSettings(size=64, place_size=64, map_size=64)
DIFFUSION = DissolverSettings(size=32, widths=(8, 16), steps=2, batch=8)
GAIN = replace(TINY, views=("pooled", "detail", "gain"), ts=(40, 80), dissolver=DIFFUSION)
VECTORS = replace(TINY, views=("coarse", "pooled", "shape"), places=False, symmetries="none")  # learn nothing


def fit(s, images, **kwargs):
    return DIAPlus(s, device="cpu", **kwargs).fit(images)


@pytest.fixture(scope="session", autouse=True)
def few():
    """Places count beside the whole from few normals on here, for the sake of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dia.detectors.diaplus._FROM", 20)
        yield


@pytest.fixture(scope="session")
def normals():
    return phantoms.load("train", size=32, n=40).images


@pytest.fixture(scope="session")
def others():
    return phantoms.load("test", size=32, n=24).images


@pytest.fixture(scope="session")
def fitted(normals):
    return fit(TINY, normals)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def gained(normals, workdir):
    return DIAPlus(GAIN, device="cpu").fit(normals[:24], workdir=workdir)


@pytest.fixture
def rows(monkeypatch):
    """Images that have gone through the U-Net, counted."""
    seen, forward = [], UNet2DModel.forward

    def counted(self, sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DModel, "forward", counted)
    return seen


@pytest.fixture
def own_scores(monkeypatch):
    """The scores of the normals of each fit, in their order; a calibration keeps them sorted."""
    seen, of = [], DIAPlus._fit_normals

    def kept(self, *args):
        seen.append(of(self, *args))
        return seen[-1]

    monkeypatch.setattr(DIAPlus, "_fit_normals", kept)
    return seen


def comes_back(detector, images, folder):
    """Whether the loaded model scores as the saved one, to the bit."""
    loaded = Detector.load(detector.save(folder), device="cpu")
    before, after = detector.detect(images, dissolved=True), loaded.detect(images, dissolved=True)
    assert np.isfinite(before.score).all()
    assert np.isfinite(before.heatmap).all()
    assert np.array_equal(after.score, before.score)
    assert np.array_equal(after.heatmap, before.heatmap)
    assert (after.dissolved is None) == (before.dissolved is None)
    if before.dissolved is not None:
        assert np.array_equal(after.dissolved, before.dissolved)
    assert np.array_equal(loaded.p_values(after.score), detector.p_values(before.score))
    assert loaded.threshold(0.1) == detector.threshold(0.1)
    assert loaded.s == detector.s
    return loaded


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": ()}, "views must be some of cells, standardised"),
        ({"views": ("pooled", "contrast")}, "views must be some of"),
        ({"views": ("pooled", "pooled")}, "once each"),
        ({"views": ("detail",)}, "views must hold others than detail, gain"),
        ({"views": ("detail", "gain"), "dissolver": DIFFUSION}, "views must hold others than detail, gain"),
        ({"views": ("pooled", "gain")}, "gain needs a dissolver"),
        (
            {"views": ("pooled", "gain"), "dissolver": DissolverSettings(kind="identity")},
            "gain needs a dissolver",
        ),
        ({"whole": False, "places": False}, "whole or places must be true"),
        ({"size": 100}, "size must be a multiple of 32"),
        ({"place_size": 80}, "place_size must be a multiple of 32"),
        ({"map_size": 48}, "map_size must be a multiple of 32"),
        ({"size": 16}, "size"),
        ({"place_size": 4128}, "place_size"),
        ({"neighbours": 0}, "neighbours"),
        ({"bank_size": 1}, "bank_size"),
        ({"margin": -0.1}, "margin"),
        ({"ts": ()}, "ts must not be empty"),
        ({"ts": (1000,)}, "ts"),
        ({"weights": ""}, "weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        replace(DIAPlusSettings(), **values)


@pytest.mark.parametrize(
    ("longer", "side"),
    [(100, 100), (200, 128), (256, 256), (1500, 1024), (2048, 2048), (9000, 4096)],
)
def test_places_are_sought_in_the_largest_square_that_an_image_fills(longer, side):
    detector = DIAPlus()
    detector.shape_ = (longer // 2, longer, 1)
    assert detector._place_side == side


def test_the_preset_trains_no_diffusion_model_and_says_what_is_idle():
    assert DIAPlus().s == DIAPlusSettings() == settings(DIAPlusSettings, "cpu")
    for preset in PRESETS:
        s = settings(DIAPlusSettings, preset)
        assert s.dissolver.kind == "none"
        assert replace(s, dissolver=DissolverSettings(kind="none")) == DIAPlusSettings()
        assert s.idle() == ("dissolver", "ts")
    assert settings(DIAPlusSettings, "gpu").dissolver.widths == (64, 128, 256)  # if it is chosen
    assert not {"dissolver", "ts"} & set(GAIN.idle())
    assert set(DIAPlusSettings(whole=False).idle()) > {"views", "neighbours", "symmetries", "margin"}
    assert set(DIAPlusSettings(places=False).idle()) - {"dissolver", "ts"} == {"margin"}
    assert DIAPlusSettings(views=("pooled", "gain"), whole=False).views  # which are not looked at


# --- few, equal and repeated normals ------------------------------------------------------------------------


def test_five_normals_are_enough_and_four_are_not(normals, others, tmp_path):
    with pytest.raises(DataError, match=r"^4 normal images to fit on; at least 5 are needed$"):
        fit(TINY, normals[:4])
    few = fit(TINY, normals[:5])
    assert few.n_train_ == few.n_calibration_ == 5
    assert few.threshold() == float("inf")
    assert np.isfinite(few.threshold(0.2))
    p = few.p_values(few.score(others))
    assert p.min() >= 1 / 6
    assert (few.predict(others) == 1).all()
    comes_back(few, others, tmp_path / "run")


@pytest.mark.parametrize("grey", [None, 7])
def test_normals_that_are_all_one_image_break_nothing(normals, others, grey):
    images = np.repeat(normals[:1], 12, 0) if grey is None else np.full_like(normals[:12], grey)
    detector = fit(TINY, images)
    assert np.isfinite(detector.calibration_.scores).all()
    assert np.abs(detector.calibration_.scores).max() < 0.1  # they are all as usual
    found = detector.detect(np.concatenate([others, images[:1]]))
    assert np.isfinite(found.score).all()
    assert np.isfinite(found.heatmap).all()
    assert found.score[:-1].min() > found.score[-1]


@pytest.mark.parametrize("twice", [8, 40])
def test_a_copy_among_the_normals_counts_once_and_is_told(normals, others, twice):
    """A copy would judge its own image, and new ones would all be flagged."""
    with pytest.warns(UserWarning, match=rf"{twice} of the {40 + twice} normals are copies of others"):
        detector = fit(TINY, np.concatenate([normals, normals[:twice]]))
    plain = fit(TINY, normals)
    assert (detector.n_train_, detector.n_calibration_) == (40, 40)
    np.testing.assert_array_equal(detector.calibration_.scores, plain.calibration_.scores)
    np.testing.assert_array_equal(detector.score(others), plain.score(others))


def test_slices_of_one_volume_set_no_threshold(normals, others):
    one = ImageSet(normals, volumes=["v.nii"] * 40)
    with pytest.warns(UserWarning, match="slices of one volume"):
        detector = fit(TINY, one)
    assert (detector.n_train_, detector.n_calibration_, detector.n_effective_) == (40, 1, 1)
    assert detector.threshold() == float("inf")
    two = fit(TINY, ImageSet(normals, volumes=["v.nii"] * 20 + ["w.nii"] * 20))
    assert (two.n_calibration_, two.n_effective_) == (40, 2)


def test_a_normal_itself_is_less_anomalous_than_any_other_image(normals, others):
    detector = fit(replace(TINY, places=False), normals)  # places are compared with no single normal
    assert detector.score(normals).max() < detector.calibration_.scores.min()
    assert (detector.p_values(detector.score(normals)) == 1).all()
    assert detector.score(normals).max() < detector.score(others).min()


def test_more_normals_than_the_bank_holds_are_judged_by_those_in_it(normals, others, tmp_path):
    detector = fit(replace(TINY, bank_size=10, symmetries="none", neighbours=50), normals)
    assert detector.n_train_ == 40
    assert detector.n_calibration_ == len(detector.calibration_.scores) == 10
    assert {len(bank.bank) for bank in detector.banks_.values()} == {10}
    loaded = comes_back(detector, others, tmp_path / "run")
    assert loaded.n_calibration_ == 10


# --- leave one out ------------------------------------------------------------------------------------------


def test_a_normals_own_score_is_that_of_a_detector_fitted_without_it(normals, own_scores):
    fit(TINY, normals)
    own, left = own_scores[0], range(0, 40, 4)
    without = [fit(TINY, np.delete(normals, i, 0)).score(normals[i : i + 1])[0] for i in left]
    assert spearmanr(own[left], without)[0] > 0.5
    assert abs(np.mean(own[left] - without)) < 0.75  # of deviations: neither flattered nor doomed


def test_new_normals_are_not_flagged_more_often_than_they_should():
    new = phantoms.load("train", size=32, n=220).images
    p, contours = [], []
    for start in (0, 40, 80):
        detector = fit(TINY, new[start : start + 40])
        found = detector.detect(new[120:])
        p.append(detector.p_values(found.score))
        contours.append(found.heatmap.max((1, 2)) > detector.heat_.level(0.1))
        own = detector.heatmap(new[start : start + 40]).max((1, 2))
        assert len(detector.heat_.peaks) == 40
        assert detector.heat_.peaks.mean() > own.mean()  # each is measured by others
    assert np.mean(np.concatenate(p) <= 0.1) < 0.3
    assert np.median(np.concatenate(p)) > 0.3
    assert np.mean(contours) < 0.3


def test_heatmaps_of_normals_are_looked_at_whether_or_not_their_places_fit_in_memory(normals, monkeypatch):
    monkeypatch.setattr("dia.detectors.diaplus._BYTES", 1)  # Gaussians of two of them
    heat = fit(TINY, normals).heat_
    assert len(heat.peaks) == 40
    assert np.isfinite([heat.usual, *heat.peaks]).all()


def test_p_values_are_those_of_the_normals_own_scores(fitted, own_scores, normals, others):
    again = fit(TINY, normals)
    assert np.array_equal(np.sort(own_scores[0]), again.calibration_.scores)
    assert np.array_equal(again.calibration_.scores, fitted.calibration_.scores)  # a fit repeats
    p = fitted.p_values(fitted.score(others))
    assert p.min() >= 1 / 41
    assert p.max() <= 1


def in_volumes(images, names):
    return ImageSet(images, np.zeros(len(images), int), volumes=tuple(names))


def test_slices_of_a_volume_do_not_judge_one_another(normals, own_scores):
    twice, names = np.repeat(normals[:20], 2, 0), [f"v{i // 2:02}" for i in range(40)]
    twice[1::2, 0, 0] ^= 1  # next to copies, as neighbouring slices are
    made = [fit(VECTORS, images).medians_ for images in (normals[:20], in_volumes(twice, names), twice)]
    alone, of_volumes, _ = own_scores
    assert np.ptp(alone) > 1
    np.testing.assert_allclose(of_volumes, np.repeat(alone, 2), atol=0.1)  # as if there were one of each
    for name, median in made[1].items():
        assert median == pytest.approx(made[0][name], rel=0.05)
        assert made[2][name] < 0.5 * median  # without volumes each is found in the other


def test_slices_of_the_one_volume_there_is_judge_one_another(normals, own_scores):
    for images in (normals, in_volumes(normals, ["a"] * 40)):
        fit(VECTORS, images)
    assert np.array_equal(*own_scores)
    assert np.ptp(own_scores[0]) > 1


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ([*range(9)], ["a"] * 8 + ["b"]),  # one normal is all that judges the others
        ([0, 0, 0, 0, 1], [None] * 5),  # and here they equal one another
    ],
)
def test_gaussians_of_one_image_break_nothing(normals, others, which, names):
    detector = fit(TINY, in_volumes(normals[which], names))
    assert np.isfinite(detector.calibration_.scores).all()
    assert np.isfinite(detector.score(others)).all()


# --- the score ----------------------------------------------------------------------------------------------


def test_places_do_not_count_beside_the_whole_where_normals_are_few(normals, others, monkeypatch):
    monkeypatch.setattr("dia.detectors.diaplus._FROM", 21)
    scores = [fit(s, normals[:20]).score(others) for s in (TINY, replace(TINY, places=False))]
    np.testing.assert_array_equal(*scores)
    assert (fit(replace(TINY, whole=False), normals[:20]).score(others) != scores[0]).any()


def test_the_score_is_the_whole_or_the_most_unusual_place_less_the_margin(fitted, normals, others):
    module = fitted.module()
    vectors, numbers, oddest, places, copies = module.seen(as_tensor(others))
    assert torch.equal(oddest, greatest(places))
    whole = module.evidence({name: module.banks[name](v) for name, v in vectors.items()}, numbers)
    assert copies == []
    scales, scores = fitted.scales_, {}
    z = ((whole - scales[WHOLE].median) / scales[WHOLE].spread).numpy()
    place = ((oddest - scales[PLACE].median) / scales[PLACE].spread).numpy()
    assert (place - 1 > z).any()
    assert (place - 1 < z).any()
    for name, s in {
        "both": TINY,
        "whole": replace(TINY, places=False),
        "place": replace(TINY, whole=False),
    }.items():
        scores[name] = fit(s, normals).score(others)
    np.testing.assert_allclose(scores["both"], np.maximum(z, place - 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores["whole"], z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores["place"], place, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lesions_of_phantoms_score_higher_and_are_where_the_heatmap_says(seed):
    train, test = phantoms.load("train", n=60, seed=seed), phantoms.load("test", n=40, seed=seed)
    found = fit(DIAPlusSettings(), train).detect(test)
    assert roc_auc_score(test.labels, found.score) > 0.6
    assert roc_auc_score(test.masks.ravel(), found.heatmap.ravel()) > 0.8


def test_the_heatmap_is_greatest_where_something_was_put(make_images):
    images = make_images(24, 96, 80) // 4 + 60
    detector = fit(replace(TINY, size=128, place_size=128), images)
    marked = make_images(2, 96, 80, seed=9) // 4 + 60
    marked[0, 70:78, 14:22] = 255
    marked[1, 12:20, 60:68] = 255
    before, after = detector.heatmap(images[:2]), detector.heatmap(marked)
    assert after.shape == (2, 96, 80)
    for heatmap, y, x in zip(after, (74, 16), (18, 64), strict=True):
        place = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert np.hypot(place[0] - y, place[1] - x) < 12
    assert after.max() > before.max()


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_changes_nothing(fitted, others, batch):
    whole, parts = fitted.detect(others), fitted.detect(others, batch=batch)
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-3)
    np.testing.assert_allclose(parts.heatmap, whole.heatmap, atol=1e-2)


def test_mirrored_normals_count_where_normals_are_of_either_side(make_images):
    upright = make_images(30, 32)
    upright[:, ::4, :16] = 0  # stripes on the left, as no mirrored copy has them
    either = upright.copy()
    either[::2] = either[::2, :, ::-1]
    s = replace(TINY, views=("shape", "pooled"), places=False)
    sizes = {}
    for name, images in {"upright": upright, "either": either}.items():
        detector = fit(s, images)
        sizes[name] = {len(bank.bank) for bank in detector.banks_.values()}
        assert len(detector.calibration_.scores) == 30
    assert sizes == {"upright": {30}, "either": {60}}
    told = fit(replace(s, symmetries="mirrored"), upright)
    assert told.score(upright[:, :, ::-1]).max() < told.calibration_.scores.min()


# --- images and backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (28, 28, 3), (64, 64, 3), (96, 80, 1), (9, 40, 1), (300, 300, 3)]
)
def test_images_of_any_shape_and_colour(make_images, shape, tmp_path):
    images = make_images(6, *shape)
    detector = fit(replace(TINY, place_size=None), images)
    loaded = comes_back(detector, make_images(3, *shape, seed=1), tmp_path / "run")
    assert (loaded.places_.overview is not None) == (max(shape) > 255)
    assert loaded.heatmap(images[:2]).shape == (2, *shape[:2])
    assert loaded.features(images[:2]).shape == (2, 1280)


def test_images_of_another_shape_are_refused(fitted, make_images):
    with pytest.raises(DataError, match=r"fitted on \(32, 32, 1\)"):
        fitted.score(make_images(2, 28))


@pytest.mark.parametrize(
    "values",
    [
        {
            "size": 32,
            "place_size": 288,
            "map_size": 96,
        },  # a map of 36 places, whose covariances are not 32×32
        {"weights": "none"},
        {"backbone": "lite2", "weights": "none", "views": ("cells", "standardised", "coarse", "pooled")},
        {"symmetries": "mirrored", "neighbours": 3},
        {"places": False},
        {"whole": False, "views": ("pooled",)},
    ],
    ids=str,
)
def test_whatever_is_fitted_comes_back(normals, others, values, tmp_path):
    comes_back(fit(replace(TINY, **values), normals[:10]), others[:4], tmp_path / "run")


def test_the_model_says_where_its_weights_are_from(fitted):
    assert fitted.weights_source().startswith("lite0 (EfficientNet-Lite, ImageNet, sha256 ")
    assert DIAPlus(replace(TINY, weights="none"), seed=3).weights_source() == "none (random, seed 3)"
    assert "not a medical device" in fitted._card()
    assert (
        "fitted on 40 normal images of 32×32×1, calibrated on 40 of them, each judged without"
        in fitted._card()
    )


def test_a_resnet_or_our_own_encoder_may_be_the_backbone(normals, others, make_images, tmp_path):
    pytest.importorskip("timm")
    s = CSISettings(AmplifySettings(size=32, width=4, stem="patch", steps=2, batch=4), samples=1)
    run = CSI(s, device="cpu").fit(make_images(24, 32, 32)).save(tmp_path / "csi")
    of_resnet = fit(replace(TINY, backbone="resnet18", weights="none", size=32, place_size=32), normals[:6])
    of_run = fit(replace(TINY, weights=f"dia:{run}"), normals[:10])
    run.rename(tmp_path / "elsewhere")  # the fitted model needs it no more
    for name, detector in {"resnet": of_resnet, "run": of_run}.items():
        comes_back(detector, others[:4], tmp_path / name)


# --- dissolving ---------------------------------------------------------------------------------------------


def test_gain_keeps_two_dissolvers_and_gives_copies(gained, others, tmp_path):
    found = gained.detect(others, dissolved=True)
    assert found.dissolved.shape == (24, 2, 32, 32, 1)
    assert found.dissolved.dtype == np.uint8
    exact = gained.dissolver_.dissolve(others, GAIN.ts, rounded=False).swapaxes(0, 1)
    assert np.abs(found.dissolved - exact).max() < 0.52
    loaded = comes_back(gained, others, tmp_path / "run")
    assert sorted(f.name for f in (tmp_path / "run").iterdir() if f.is_dir()) == ["dissolver", "dissolver-2"]
    assert len(loaded.dissolvers_) == 2
    assert gained.detect(others[:2]).dissolved is None


def test_an_image_is_dissolved_once_at_each_t_by_each_dissolver(gained, others, rows):
    gained.detect(others, dissolved=True)
    assert sum(rows) == len(others) * len(GAIN.ts) * 2


def test_each_half_of_the_normals_is_judged_by_the_dissolver_of_the_other(normals, workdir, monkeypatch):
    trained, judged = [], []
    plain, dissolvers = DIAPlus._fit_plain, DIAPlus._fit_dissolvers

    def fit_plain(self, asked, images, stages):
        trained.append({x.tobytes() for x in images})
        return plain(self, asked, images, stages)

    def fit_dissolvers(self, images, folds, stages):
        found = dissolvers(self, images, folds, stages)
        judged.extend({x.tobytes() for x in images[part]} for part in found)
        return found

    monkeypatch.setattr(DIAPlus, "_fit_plain", fit_plain)
    monkeypatch.setattr(DIAPlus, "_fit_dissolvers", fit_dissolvers)
    DIAPlus(GAIN, device="cpu").fit(normals[:24], workdir=workdir)
    everything = {x.tobytes() for x in normals[:24]}
    assert len(trained) == len(judged) == 2
    for own, seen in zip(judged, trained, strict=True):
        assert not own & seen
        assert own | seen == everything
    assert judged[0] | judged[1] == everything


def test_dissolvers_found_in_the_workdir_score_as_those_made_there(gained, normals, others, workdir, rows):
    found = DIAPlus(GAIN, device="cpu").fit(normals[:24], workdir=workdir)
    assert sum(rows) == 24 * len(GAIN.ts) * 2  # nothing is trained again
    assert np.array_equal(found.score(others), gained.score(others))
    assert found.fit_seconds_ > 0


@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
def test_a_dissolver_without_gain_gives_copies_and_changes_no_score(
    fitted, normals, others, workdir, rows, kind, tmp_path
):
    s = replace(TINY, dissolver=replace(DIFFUSION, kind=kind), ts=(40, 80))
    detector = DIAPlus(s, device="cpu").fit(normals, workdir=workdir)
    rows.clear()
    np.testing.assert_allclose(detector.score(others), fitted.score(others), atol=1e-3)
    assert sum(rows) == 0  # nobody asked for copies
    found = detector.detect(others, dissolved=True)
    assert found.dissolved.shape == (24, 2, 32, 32, 1)
    assert sum(rows) == (len(others) * 2 if kind == "diffusion" else 0)
    loaded = comes_back(detector, others[:4], tmp_path / "run")
    assert len(loaded.dissolvers_) == 1


def test_every_view_at_once(normals, others, workdir, tmp_path):
    s = replace(GAIN, views=VIEWS)
    detector = DIAPlus(s, device="cpu").fit(normals[:24], workdir=workdir)
    assert set(detector.scales_) == {*VIEWS, WHOLE, PLACE}
    comes_back(detector, others[:4], tmp_path / "run")


def test_what_draws_from_the_pixels_cannot_be_exported(normals):
    noise = replace(TINY, dissolver=DissolverSettings(kind="noise"))
    assert "noise" in fit(noise, normals[:6]).cannot_export()
    assert (
        fit(replace(noise, dissolver=DissolverSettings(kind="gaussian")), normals[:6]).cannot_export() == ""
    )


def test_features_are_the_backbones_of_each_image(fitted, others):
    features = fitted.features(others)
    assert features.shape == (24, 1280)
    with torch.inference_mode():
        module = fitted.module()
        x = module.measuring.small(as_tensor(others[3:4]))
        alone = module.measuring.backbone(x).pooled[0]
    np.testing.assert_allclose(features[3], alone, rtol=1e-3, atol=1e-4)
