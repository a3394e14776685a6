"""`dia+`, its residual statistics and what all detectors share, on small images and brief trainings."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from sklearn.metrics import roc_auc_score

from dia.amplify.contrast import AmplifySettings
from dia.benchmark.ledger import Ledger
from dia.benchmark.runs import run
from dia.core.errors import DataError
from dia.data import phantoms
from dia.detectors import Blur, Detector, DIAPlus
from dia.detectors.diaplus import VIEWS, ContrastSettings, DIAPlusSettings
from dia.detectors.features import Shape, as_tensor, copies
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.detectors.residual import Residual, blur, joined
from dia.dissolve import DissolverSettings

TINY = DIAPlusSettings(
    dissolver=DissolverSettings(size=32, widths=(8, 16), steps=4, batch=8),
    contrast=ContrastSettings(AmplifySettings(width=4, stem="patch", steps=3, batch=4), ts=(40, 80)),
    residual_ts=(50, 200),
    blur_sigmas=(1.0, 3.0),
)


@pytest.fixture(scope="module")
def normals():
    return phantoms.load("train", size=32, n=40).images


@pytest.fixture(scope="module")
def fitted(normals):
    return DIAPlus(TINY, device="cpu").fit(normals)


def test_joined_is_the_harmonic_mean_of_p_values():
    p = np.array([[0.5, 0.1, 0.02], [1.0, 1.0, 1.0]])
    harmonic = 3 / (1 / p).sum(1)  # 3 / (2 + 10 + 50) = 0.0484
    assert joined(-np.log(p)) == pytest.approx(-np.log(harmonic))
    assert harmonic[0] == pytest.approx(3 / 62)


def parts_of(detector, images):
    module, x = detector.module(), as_tensor(images)
    return {name: values.numpy() for name, values in module.parts(x, module.residual(x)).items()}


def test_the_residual_map_is_greatest_where_something_was_put(normals):
    residual = Residual(blur((2.0, 6.0), 32, 32), 32, 32).fit(normals[:30])
    residual.calibrate(residual.measured(normals[30:]))
    marked = normals[:1].copy()
    marked[0, 10:13, 20:23] = 255
    heatmap = residual.heatmap(residual(as_tensor(marked)))[0]
    y, x = np.unravel_index(heatmap.argmax(), (32, 32))
    assert abs(y - 11) <= 2
    assert abs(x - 21) <= 2
    evidence = [residual.parts(torch.from_numpy(residual.measured(x)))[:, 0] for x in (marked, normals[30:])]
    assert evidence[0][0] > evidence[1].max()


@pytest.fixture
def rows(monkeypatch):
    """Images that have gone through the U-Net, counted."""
    seen, forward = [], UNet2DModel.forward

    def counted(self, sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DModel, "forward", counted)
    return seen


def test_an_image_is_dissolved_once_at_each_t_for_score_heatmap_and_copies(fitted, normals, rows):
    found = fitted.detect(normals, dissolved=True)
    assert sum(rows) == len(normals) * len(TINY.residual_ts)
    assert found.dissolved.shape == (len(normals), 2, *normals.shape[1:])
    assert np.array_equal(fitted.score(normals), found.score)
    assert np.array_equal(fitted.heatmap(normals), found.heatmap)
    exact = fitted.dissolver_.dissolve(normals, TINY.residual_ts, rounded=False).swapaxes(0, 1)
    assert np.abs(found.dissolved - exact).max() < 0.52


def test_a_fit_dissolves_each_normal_once_at_each_t(normals, rows, tmp_path):
    DIAPlus(TINY, device="cpu").fit(normals, workdir=tmp_path)  # the diffusion model is trained
    rows.clear()
    DIAPlus(TINY, device="cpu").fit(normals, workdir=tmp_path)  # and found
    assert sum(rows) == len(normals) * len(TINY.residual_ts)


def test_folders_of_0_1_had_the_settings_of_contrast_among_their_own(fitted, normals, tmp_path):
    folder = fitted.save(tmp_path / "run")
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= config["settings"].pop("contrast")
    config["settings"] |= {"samples": 4, "score_parts": ["cosine"], "score_draws": "shared"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = Detector.load(folder, device="cpu")
    assert loaded.s == fitted.s
    assert np.array_equal(loaded.score(normals), fitted.score(normals))


def test_a_stage_found_in_the_workdir_scores_as_the_one_made_there(normals, tmp_path):
    # wide enough that convolution weights are laid out channels-last in memory
    contrast = replace(TINY.contrast, amplify=replace(TINY.contrast.amplify, width=8))
    wide = replace(TINY, contrast=contrast, views=("shape", "contrast"))
    made = DIAPlus(wide, device="cpu").fit(normals, workdir=tmp_path)
    found = DIAPlus(wide, device="cpu").fit(normals, workdir=tmp_path)
    assert np.array_equal(found.score(normals), made.score(normals))
    assert found.fit_seconds_ > 0


def test_the_score_is_the_whole_or_the_most_unusual_place_less_the_margin(fitted, normals):
    parts = parts_of(fitted, normals)
    assert list(parts) == ["shape", "statistics", "dissolved", "whole", "place"]
    views = np.mean([parts[v] for v in TINY.views], axis=0)
    scale = fitted.scales_["whole"]
    assert np.allclose(parts["whole"], (views - scale.median) / scale.spread)
    assert np.allclose(fitted.score(normals), np.maximum(parts["whole"], parts["place"] - 2))
    alone = DIAPlus(replace(TINY, places=False), device="cpu").fit(normals)
    assert np.allclose(alone.score(normals), parts["whole"])
    places = DIAPlus(replace(TINY, whole=False), device="cpu").fit(normals)
    assert np.allclose(places.score(normals), parts["place"])
    assert places.features(normals).shape == (40, 1568)


def test_the_view_spectrum_is_the_untrained_row(normals):
    row = METHODS["trivial:spectrum"]().fit(normals)
    s = replace(TINY, views=("spectrum",), neighbours=3, places=False)
    detector = DIAPlus(s, device="cpu").fit(normals)
    by_rank = row.score(normals)[np.argsort(detector.score(normals))]
    assert (np.diff(by_rank) >= -1e-6 * by_rank.max()).all()  # the same order, but where rounding decides


def test_a_small_mark_makes_the_place_unusual(fitted, normals):
    marked = normals[:4].copy()
    marked[:, 10:13, 20:23] = 255
    before, after = parts_of(fitted, normals[:4]), parts_of(fitted, marked)
    assert (after["place"] > before["place"] + 1).all()
    assert (after["place"] > after["whole"]).all()


def test_every_view_survives_saving_and_no_encoder_is_trained_without_need(normals, tmp_path):
    everything = DIAPlus(replace(TINY, views=VIEWS, symmetries="all"), device="cpu").fit(normals)
    loaded = Detector.load(everything.save(tmp_path / "run"), device="cpu")
    assert np.array_equal(loaded.score(normals[:5]), everything.score(normals[:5]))
    assert loaded.symmetries_ == everything.symmetries_ == tuple(range(8))
    assert loaded.features(normals[:5]).shape == (5, 1568)
    few = DIAPlus(replace(TINY, views=("contrast", "blurred")), device="cpu").fit(normals)
    loaded = Detector.load(few.save(tmp_path / "few"), device="cpu")
    assert np.array_equal(loaded.score(normals[:5]), few.score(normals[:5]))
    assert not hasattr(DIAPlus(TINY, device="cpu").fit(normals), "encoder_")


def test_the_same_image_among_the_normals_is_the_least_anomalous(normals):
    s = replace(TINY, views=("shape", "pixels"), symmetries="none", places=False)
    detector = DIAPlus(s, device="cpu", holdout=0.1).fit(normals)
    x = as_tensor(normals)
    module = detector.module()
    d = module.distances(x, module.residual(x))["pixels"].numpy()
    assert (d < 1e-6).sum() == detector.n_train_
    assert detector.score(normals)[d < 1e-6].max() < detector.score(normals)[d >= 1e-6].min()


def test_symmetries_are_those_of_the_normals(make_images):
    upright = make_images(40, 32, 32)
    upright[:, :16] //= 2  # dark above, as none of its turned copies is
    turned = np.stack([np.rot90(x, i % 4) for i, x in enumerate(make_images(100, 32, 32))])
    of = {name: DIAPlus(TINY, device="cpu").fit(x) for name, x in {"up": upright, "any": turned}.items()}
    assert not {1, 3, 5, 7} & set(of["up"].symmetries_)
    assert len(of["any"].symmetries_) > 4
    # what counts as normal in any orientation scores the same in every one but for dissolving
    shape = Shape(32, 32)
    x = [as_tensor(np.rot90(turned[:5], k, (1, 2))) for k in range(4)]
    d = [torch.stack([shape(copy) for copy in copies(images, tuple(range(8)))]).numpy() for images in x]
    for other in d[1:]:
        assert np.allclose(np.sort(other.sum(2), 0), np.sort(d[0].sum(2), 0))


@pytest.mark.parametrize("shape", [(30, 22, 1), (28, 28, 3), (80, 64, 1)])
def test_odd_shapes_and_colours(make_images, shape):
    h, w, c = shape
    images = make_images(24, h, w, c)
    detector = DIAPlus(TINY, device="cpu").fit(images)
    assert detector.heatmap(images).shape == (24, h, w)
    assert np.isfinite(detector.score(images)).all()


def test_constant_images_do_not_break_it(normals):
    images = np.full_like(normals, 7)
    assert np.isfinite(DIAPlus(TINY, device="cpu").fit(images).score(normals)).all()


def test_blur_finds_phantom_lesions():
    train, test = phantoms.load("train", n=200), phantoms.load("test", n=120)
    scores = Blur().fit(train).score(test)
    assert roc_auc_score(test.labels, scores) > 0.7


def test_a_line_in_the_ledger_is_not_made_again(tmp_path):
    train, test = phantoms.load("train", size=32, n=24), phantoms.load("test", size=32, n=16)
    ledger, made = Ledger(tmp_path / "runs.jsonl"), []
    lines = [
        run("phantom", train, test, "trivial:std", seed=seed, workdir=tmp_path, ledger=ledger,
            on_fitted=lambda *_: made.append(1))
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert len(made) == len(ledger.rows()) == 2
    assert lines[0] == lines[1]


def test_a_detector_without_settings_is_the_cpu_preset():
    assert DIAPlus().s == settings(DIAPlusSettings, "cpu")
    assert DIAPlus().settings_hash() == DIAPlus(settings(DIAPlusSettings, "cpu")).settings_hash()


def test_another_revision_of_a_method_is_another_run_and_its_models_are_refused(
    normals, tmp_path, monkeypatch
):
    blur = Blur(device="cpu").fit(normals)
    now, folder = blur.settings_hash(), blur.save(tmp_path / "blur")
    monkeypatch.setattr(Blur, "revision", Blur.revision + 1)
    assert Blur().settings_hash() != now
    with pytest.raises(DataError, match=r"blur: of revision 2 of trivial:blur; here is 3, so fit it again"):
        Detector.load(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["revision"]  # as the first models were saved
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checksums.json").unlink()  # nor were there any then
    with pytest.raises(DataError, match="of revision 1"):
        Detector.load(folder)
