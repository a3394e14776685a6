"""`dia.fit`, `dia.load` and what they return: the scores of the commands, as a table and as figures."""

import csv
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import dia
from dia.api.table import Predictions
from dia.cli.main import main
from dia.core.errors import DataError
from dia.data.formats.mark import is_marked
from dia.data.imageset import ImageSet
from dia.data.readers import ReadOptions, read
from dia.detectors import METHODS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def save(images, folder):
    folder.mkdir(parents=True)
    for i, image in enumerate(images, 1):
        Image.fromarray(image.squeeze()).save(folder / f"{i:02}.png")


@pytest.fixture
def scans(tmp_path, make_images, monkeypatch):
    """A folder with scans/normal and scans/new, the working directory."""
    monkeypatch.chdir(tmp_path)
    save(make_images(30, 24, 20), Path("scans/normal"))
    save(make_images(8, 24, 20, seed=9), Path("scans/new"))
    return tmp_path


@pytest.fixture
def model(make_images):
    return dia.fit(make_images(40), method="trivial:pca", false_alarm_rate=0.3)


@pytest.mark.parametrize("page", ["README.md", "docs/howto/python.md"])
def test_the_first_lines_give_the_scores_of_the_commands(scans, page, capsys):
    names = {}
    exec(next(b for b in BLOCK.findall((ROOT / page).read_text()) if "dia.fit" in b), names)
    assert capsys.readouterr().out.startswith("5 images")
    main(["fit", "scans/normal", "--out", "runs/typed"])
    main(["score", "runs/typed", "scans/new", "--out", "scores.csv"])
    rows = list(csv.DictReader(Path("scores.csv").read_text().splitlines()))
    for found in (names["found"], dia.load("runs/mine").predict("scans/new")):
        assert [row["path"] for row in rows] == list(found.path)
        np.testing.assert_allclose([float(row["score"]) for row in rows], found.score, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose([float(row["p_value"]) for row in rows], found.p, atol=1e-6)
        assert [row["flagged"] == "1" for row in rows] == found.flagged.tolist()
    assert names["model"].threshold() == dia.load("runs/typed").threshold()


@pytest.mark.parametrize(
    ("folder", "flags", "given"),
    [
        ("scans/normal", ["--size", "16", "--channels", "3"], {"size": 16, "channels": 3}),
        ("scans", ["--normal", "normal", "--seed", "3"], {"normal": "normal", "seed": 3}),
    ],
)
def test_arguments_mean_what_flags_mean(scans, folder, flags, given):
    main(["fit", folder, *flags, "--method", "trivial:statistics", "--holdout", "0.4", "--out", "typed"])
    typed = dia.load("typed").detector
    made = dia.fit(folder, method="trivial:statistics", holdout=0.4, **given).detector
    np.testing.assert_array_equal(made.calibration_.scores, typed.calibration_.scores)
    assert made.settings_hash() == typed.settings_hash()
    assert made.facts_["train_sha256"] == typed.facts_["train_sha256"]
    assert set(made.facts_) == set(typed.facts_)
    assert set(made.facts_["read"]) == set(typed.facts_["read"])


def test_every_form_has_one_score(scans, make_images):
    images = make_images(8, 24, 20, seed=9)
    model = dia.fit("scans/normal", method="trivial:pca")
    of_files = model.predict("scans/new").score
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    for form in (
        images, images[..., 0], tensors, ImageSet(images), DataLoader(TensorDataset(tensors), 3),
        [f"scans/new/{i:02}.png" for i in range(1, 9)],
        [Image.open(file) for file in sorted(Path("scans/new").iterdir())],
    ):  # fmt: skip
        np.testing.assert_allclose(model.predict(form, batch=3).score, of_files, rtol=1e-6)


def test_fitting_on_arrays_equals_fitting_on_files(scans, make_images):
    of_files = dia.fit("scans/normal", method="trivial:pca").detector
    of_arrays = dia.fit(make_images(30, 24, 20)[..., 0] / 255, method="trivial:pca").detector
    np.testing.assert_allclose(of_arrays.calibration_.scores, of_files.calibration_.scores, rtol=1e-6)


def test_a_stated_range_is_remembered(tmp_path, make_images):
    images = make_images(30).astype(np.int16) * 5 - 1000
    model = dia.fit(images, method="trivial:pca", range=(-1000, 275))
    model.save(tmp_path / "run")
    again = dia.load(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(images).score, model.predict(make_images(30)).score)
    with pytest.raises(DataError, match="beyond range"):
        again.predict(images + 99)


def test_classes_of_a_dataset_are_not_mixed(make_images):
    pairs = [(image, i % 4 == 0) for i, image in enumerate(make_images(40))]
    pairs = [(image, int(sick)) for image, sick in pairs]
    with pytest.raises(DataError, match="several classes"):
        dia.fit(pairs, method="trivial:std")
    assert dia.fit(pairs, method="trivial:std", normal="0", holdout=0.5).detector.n_train_ == 15
    assert len(dia.fit(make_images(40), method="trivial:std").predict(pairs)) == 40


def test_a_model_of_arrays_goes_through_the_commands(tmp_path, model, make_images, capsys):
    """What it was fitted on cannot be read again, and nothing looks for it."""
    model.save(tmp_path / "run")
    for kind, seed in (("healthy", 1), ("sick", 2)):
        save(make_images(6, seed=seed), tmp_path / "labelled" / kind)
    labelled = [str(tmp_path / "labelled"), "--normal", "healthy"]
    main(["report", str(tmp_path / "run"), *labelled, "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "images that were given in Python" in page


def test_the_table(model, make_images):
    found = model.predict(make_images(12, seed=5), heatmaps=True)
    assert len(found) == len(list(found)) == 12
    assert found[3] == (found.path[3], found.score[3], found.p[3], found.flagged[3])
    assert found.heatmaps.shape == (12, 16, 16)
    ranked = found.ranked()
    assert (np.diff(ranked.score) <= 0).all()
    assert sorted(ranked.path) == list(found.path)
    np.testing.assert_array_equal(ranked.heatmaps[0], found.heatmaps[found.score.argmax()])
    np.testing.assert_array_equal(found.flagged, found.p <= 0.3)
    stricter = model.predict(make_images(12, seed=5), false_alarm_rate=0.25)
    assert (stricter.flagged <= found.flagged).all()
    assert stricter.heatmaps is None
    lines = repr(found).splitlines()
    assert lines[0] == f"12 images, {found.flagged.sum()} flagged (at most 30 % of normals are, on average)"
    assert lines[1].split() == ["path", "score", "p", "flagged"]
    assert lines[-1] == "… and 2 more"
    assert found._repr_html_().count("<tr>") == 11


def test_the_table_becomes_a_data_frame_where_pandas_is(model, make_images, monkeypatch):
    found = model.predict(make_images(3, seed=5))
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert list(frame.columns) == ["path", "score", "p", "flagged"]
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(found))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match="pip install pandas"):
        found.to_pandas()


def test_names_are_text_in_pages():
    """A notebook would run what a file's name holds."""
    one = np.ones(1)
    assert "<script>" not in Predictions(["<script>"], one, one, one > 0, 0.5, 0.05)._repr_html_()


@pytest.mark.parametrize("rate", [0, 1, 5, -0.1, float("nan")])
def test_rates_are_checked_before_any_work(model, make_images, rate, monkeypatch):
    monkeypatch.setattr(type(model.detector), "fit", lambda *_, **__: pytest.fail("it was fitted"))
    for call in (
        lambda: dia.fit(make_images(30), method="trivial:pca", false_alarm_rate=rate),
        lambda: model.predict(make_images(2), false_alarm_rate=rate),
        lambda: model.threshold(rate),
    ):
        with pytest.raises(DataError, match="between 0 and 1"):
            call()


def test_wrong_arguments_are_one_line(model, make_images, tmp_path):
    x = make_images(2)
    with pytest.raises(TypeError, match="no argument 'sizes'"):
        model.predict(x, sizes=3)
    with pytest.raises(DataError, match="no such model"):
        dia.load(tmp_path / "none")
    with pytest.raises(DataError, match="preset must be one of"):
        dia.fit(x, preset="tpu")
    with pytest.raises(DataError, match="not known"):
        dia.fit(x, method="dai")
    with pytest.raises(DataError, match="plot takes one image, not 2"):
        model.plot(x)
    with pytest.raises(DataError, match="no heatmaps"):
        dia.fit(make_images(30), method="trivial:std").predict(x, heatmaps=True)
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match="is not a model"):
        model.save(tmp_path / "notes")


def test_a_figure_shows_image_heatmap_and_p(model, make_images, tmp_path):
    image = make_images(1, seed=5)
    figure = model.plot(image)
    p, shown = model.predict(image).p[0], [ax.images[0].get_array().shape for ax in figure.axes[:2]]
    assert shown == [(16, 16), (16, 16)]
    assert f"p = {p:.3g}" in figure.get_suptitle()
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "figure.png")
    assert is_marked(tmp_path / "figure.png")
    figure.savefig(tmp_path / "figure.pdf")
    scale = model.detector.heat_.scale
    assert figure.axes[2].get_ylim() == pytest.approx(scale)
    flat = dia.fit(make_images(30), method="trivial:std").plot(image[0])
    assert len(flat.axes) == 1


def test_what_should_be_known_is_logged(model, make_images, caplog, capsys, tmp_path):
    with caplog.at_level(logging.INFO, "dia"):
        model.predict(np.zeros((60, 16, 16), np.uint8))
        assert "differ" in caplog.text
        save(make_images(2), tmp_path / "some")
        (tmp_path / "some" / "bad.png").write_text("no image")
        assert len(model.predict(tmp_path / "some", skip_bad=True).skipped) == 1
        assert "bad.png" in caplog.text
        model.predict(DataLoader(TensorDataset(torch.from_numpy(make_images(4))), 2, shuffle=True))
        assert "shuffles" in caplog.text
        assert "fitted on 40 of" not in caplog.text
        model.predict(make_images(40))
        assert "the model was fitted on 40 of the images: their p-values say little" in caplog.text
        dia.fit(make_images(30), method="trivial:std")
        assert "trivial:std: fitting on 30 normal images" in caplog.text
    assert {r.name.partition(".")[0] for r in caplog.records} == {"dia"}
    said = capsys.readouterr()  # in a pipe
    assert said.out == said.err == ""


def test_bars_are_shown_where_somebody_looks(monkeypatch):
    from dia.api.model import _watched

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for at_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda at=at_terminal: at)
        assert _watched(None) == at_terminal
        assert not _watched(False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert _watched(None)


def test_an_exported_model_needs_no_torch(model, make_images, tmp_path):
    pytest.importorskip("onnxruntime")
    model.save(tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "mine.onnx")])
    np.save(tmp_path / "x.npy", make_images(5, seed=3))
    code = f"""
import sys, numpy as np
sys.modules["torch"] = None
import dia
model = dia.load(r"{tmp_path / "mine.onnx"}")
print(model)
np.save(r"{tmp_path / "scores.npy"}", model.predict(np.load(r"{tmp_path / "x.npy"}")).score)
assert len(model.plot(np.load(r"{tmp_path / "x.npy"}")[0]).axes) > 1
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "Model(trivial:pca, images of 16×16×1)\n"
    expected = model.predict(make_images(5, seed=3)).score
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-5)
    with pytest.raises(DataError, match="copy that"):
        dia.load(tmp_path / "mine.onnx").save(tmp_path / "again")


def test_a_folder_of_more_than_normals_is_refused_and_what_is_judged_is_whole(make_images, tmp_path):
    for name, images in (("normal", make_images(30, seed=1)), ("sick", make_images(4, seed=2))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i}.png")
    settings = {"method": "trivial:std", "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"Type: dia\.fit\('.*normal'\); or add all=True"):
            dia.fit(tmp_path, **settings)
        assert dia.fit(tmp_path, all=True, **settings).detector.n_train_ == 27  # of 34, less 7 held out
    model = dia.fit(tmp_path, normal="normal", **settings)
    assert len(model.predict(tmp_path, normal="normal")) == 34


def test_the_version_is_the_packages_own():
    from importlib.metadata import version

    assert dia.__version__ == version("dia-anomaly")
    assert {"__version__", "fit", "load", "Dissolve"} <= set(dir(dia))


def test_a_saved_model_is_replaced_only_where_that_is_said(model, make_images, tmp_path):
    model.save(tmp_path / "m")
    other = dia.fit(make_images(40), method="trivial:statistics")
    with pytest.raises(DataError, match="holds a model already"):
        other.save(tmp_path / "m")
    assert dia.load(tmp_path / "m").detector.method == "trivial:pca"
    other.save(tmp_path / "m", overwrite=True)
    assert dia.load(tmp_path / "m").detector.method == "trivial:statistics"


def test_a_rate_that_is_no_number_is_refused(model, make_images):
    with pytest.raises(DataError, match=r"5 % is 0\.05"):
        model.predict(make_images(4), false_alarm_rate="5%")


def test_twelve_bits_score_alike_as_files_arrays_and_pil(make_images, tmp_path):
    """Levels learned from arrays are those of files, and a model applies its own to whatever it is given."""
    rng = np.random.default_rng(0)
    twelve = make_images(44).astype(np.uint16)[..., 0] * 13 + rng.integers(0, 13, (44, 16, 16), np.uint16)
    for i, x in enumerate(twelve):
        folder = tmp_path / ("new" if i >= 40 else "normal")
        folder.mkdir(exist_ok=True)
        Image.fromarray(x).save(folder / f"{i}.png")
    of_files = dia.fit(tmp_path / "normal", method="trivial:pixels")
    of_arrays = dia.fit(twelve[:40], method="trivial:pixels")
    kept = [m.detector.facts_["read"]["levels"] for m in (of_files, of_arrays)]
    assert kept[0] == kept[1]
    wanted = of_files.predict(tmp_path / "new").score
    given = [Image.open(tmp_path / "new" / f"{i}.png") for i in range(40, 44)]
    bright = twelve[40:].astype(np.int32)
    for model in (of_files, of_arrays):
        for images in (tmp_path / "new", twelve[40:], [*twelve[40:]], given, bright):
            np.testing.assert_allclose(model.predict(images).score, wanted, rtol=1e-12)
    stated = dia.fit(twelve[:40], method="trivial:pixels", range=(0, 4095))
    assert stated.detector.facts_["read"]["levels"] == "0:4095"
    for files in (tmp_path / "normal", [str(tmp_path / "normal")]):
        with pytest.raises(DataError, match="range is of arrays; of files window="):
            dia.fit(files, range=(0, 4095))


def test_images_read_by_other_levels_are_refused(make_images, tmp_path):
    """Read by itself a batch would learn levels of its own, and score otherwise than a scan alone."""
    for name, gain in (("normal", 13), ("new", 9)):
        (tmp_path / name).mkdir()
        for i, x in enumerate(make_images(30)[..., 0]):
            Image.fromarray(x.astype(np.uint16) * gain).save(tmp_path / name / f"{i}.png")
    normals = read(tmp_path / "normal")
    detector = METHODS["trivial:pixels"]().fit(normals)
    with pytest.raises(DataError, match=r"the model was fitted with .*; read them with levels="):
        detector.score(read(tmp_path / "new"))
    detector.save(tmp_path / "run")
    options = ReadOptions().as_fitted(detector.facts_, detector.shape_)
    wanted = detector.score(read(tmp_path / "new", options))
    model = dia.load(tmp_path / "run")
    np.testing.assert_allclose(model.predict(tmp_path / "new").score, wanted, rtol=1e-12)
    np.testing.assert_allclose(model.predict(tmp_path / "new" / "0.png").score, wanted[:1], rtol=1e-12)
