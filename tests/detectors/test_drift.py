"""Drift: false alarms are held to their rate whatever the anomalies, shifts are found, streams count."""

from __future__ import annotations

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.stats import betabinom, binom

from dia.cli.main import main
from dia.core.errors import DataError
from dia.core.modelfiles import write_sums
from dia.data import phantoms
from dia.data.imageset import ImageSet, middle_slices
from dia.deploy.scorefile import ScoreFile
from dia.detectors import Detector, drift
from dia.detectors.drift import COLOUR, GREY, acquisition, statistics_of
from dia.detectors.registry import METHODS
from dia.evaluate.drift_monitor import DriftMonitor

# --- the test ---------------------------------------------------------------------------------------------


@given(n=st.integers(2, 60), m=st.integers(0, 60), data=st.data())
def test_too_few_is_the_beta_binomial(n, m, data):
    k, j = data.draw(st.integers(1, n)), data.draw(st.integers(0, 60))
    assert drift.too_few(j, m, k, n) == pytest.approx(betabinom.cdf(j, m, k, n - k + 1), abs=1e-9)


def test_too_few_by_hand():
    # one of one lies below the second of three normals: two of four places
    assert drift.too_few(0, 1, 2, 3) == pytest.approx(0.5)
    # both of two lie above the only normal: one of three orders
    assert drift.too_few(0, 2, 1, 1) == pytest.approx(1 / 3)
    assert drift.too_few(5, 5, 1, 9) == 1


def rings(rng, anomalies, *, n=40, m=60, statistics=4, share=0.5, rate=0.05, shift=0.0):
    """Whether the alarm rings for one batch; values of an image are correlated, as those of real ones."""

    def draw(count):
        return rng.normal(size=(count, 1)) + rng.normal(size=(count, statistics))

    references = {str(i): drift.Reference.of(column) for i, column in enumerate(draw(n).T)}
    bad = int(share * m)
    batch = np.concatenate([draw(m - bad) + shift, anomalies(draw(bad))])
    counts = {name: r.counts(batch[:, int(name)]) for name, r in references.items()}
    return drift.judged(references, counts, m, rate=rate, share=share).alarm


@pytest.mark.parametrize(
    "anomalies", [lambda x: x, lambda x: x + 100, lambda x: x * 0, lambda x: np.sign(x) * 50], ids=range(4)
)
def test_false_alarms_are_held_to_their_rate_with_half_the_batch_anomalous(anomalies):
    rng, runs = np.random.default_rng(0), 500
    rung = sum(rings(rng, anomalies) for _ in range(runs))
    assert binom.sf(rung - 1, runs, 0.05) > 1e-3  # as many, or more, at the promised rate


def test_one_test_alone_is_exact():
    """No Bonferroni, no share, no ties: P(p ≤ α) is α where the count can tell it."""
    rng, runs, n, m = np.random.default_rng(1), 2000, 19, 30
    p = [
        drift.too_few(int((rng.random(m) <= np.sort(rng.random(n))[9]).sum()), m, 10, n) for _ in range(runs)
    ]
    exact = betabinom.cdf(np.arange(m), m, 10, n - 9)
    level = exact[exact <= 0.05][-1]
    assert abs(np.mean(np.array(p) <= level + 1e-12) - level) < 4 * np.sqrt(level / runs)


def test_more_anomalies_than_allowed_ring():
    rng = np.random.default_rng(2)
    assert all(rings(rng, lambda x: x + 100, share=0.0, shift=100) for _ in range(20))
    silent = [rings(rng, lambda x: x + 100, share=0.3, statistics=1) for _ in range(50)]
    assert sum(silent) <= 8
    counts = {"a": np.array([[0, 0, 0], [60, 60, 60]])}
    reference = {"a": drift.Reference.of(np.arange(40.0))}
    found = drift.judged(reference, counts, 60)
    assert found.alarm
    assert (found.direction, found.statistic, found.found) == ("higher", "a", 0.0)
    assert "a is higher (0% of them lie where 80% of the normals do)" in drift.words(found)


def test_ties_never_ring():
    reference = {"a": drift.Reference.of(np.zeros(40))}
    counts = {"a": reference["a"].counts(np.zeros(500))}
    assert drift.judged(reference, counts, 500, share=0.0).p == 1


def test_too_few_images_are_no_all_clear():
    reference = {"a": drift.Reference.of(np.arange(40.0))}
    far = {"a": reference["a"].counts(np.full(4, 1e9))}
    found = drift.judged(reference, far, 4)
    assert found.alarm is None
    assert f"at least {found.needed} are needed" in drift.words(found)
    enough = {"a": reference["a"].counts(np.full(found.needed, 1e9))}
    assert drift.judged(reference, enough, found.needed).alarm
    assert drift.judged({"a": drift.Reference.of(np.arange(2.0))}, far, 4, rate=1e-9).needed is None


def test_references_survive_json_and_damage_is_refused():
    made = {"a": drift.Reference.of(np.random.default_rng(0).normal(size=30))}
    saved = json.loads(json.dumps(drift.to_json(made)))
    back = drift.from_json(saved)["a"]
    assert (back.low == made["a"].low).all()
    assert (back.high == made["a"].high).all()
    assert back.n == 30
    for damage in ({"low": [1, 2]}, {"n": 0}, {"high": [1, 2, float("nan")]}):
        with pytest.raises(ValueError, match="a: "):
            drift.from_json({"a": saved["a"] | damage})


# --- the statistics ---------------------------------------------------------------------------------------


def test_statistics_by_hand():
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, :, 2:] = 255
    found = dict(zip(GREY, acquisition(image)[0], strict=True))
    assert found["brightness"] == found["contrast"] == 127.5
    assert (found["shadows"], found["highlights"], found["clipped"]) == (0, 255, 1)
    # of neighbours across, one pair in three differs; of pixels two apart, both do
    assert found["sharpness"] == pytest.approx(np.log10(1 / 3), abs=1e-4)
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 100
    colour = dict(zip(statistics_of(3), acquisition(red)[0], strict=True))
    assert [colour[c] for c in COLOUR] == pytest.approx([70.1, -29.9, 100], abs=1e-3)


@given(st.integers(0, 10**6))
def test_each_image_is_measured_alone(seed):
    images = np.random.default_rng(seed).integers(0, 256, (70, 5, 6, 3), np.uint8)
    found = acquisition(images)
    assert np.isfinite(found).all()
    assert np.array_equal(found[64:], acquisition(images[64:]))
    assert np.isfinite(acquisition(images[:1] * 0)).all()


def test_blur_and_noise_move_sharpness_apart():
    images = smooth_images(10, 32).astype(float)
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 5, images.shape), 0, 255)
    blurred = ndimage.gaussian_filter(noisy, (0, 1, 1, 0))
    sharp, noise = (GREY.index(s) for s in ("sharpness", "noise"))
    ordered = [acquisition(x.round().astype(np.uint8)) for x in (blurred, noisy)]
    for low, high in pairwise(ordered):
        assert (low[:, [sharp, noise]] < high[:, [sharp, noise]]).all()


def test_one_slice_stands_for_its_volume():
    assert middle_slices((), 3).tolist() == [0, 1, 2]
    assert middle_slices(("a", "a", "a", None, "b", "b"), 6).tolist() == [1, 3, 5]


# --- detectors and the command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normals():
    return phantoms.load("train", size=32, n=150)


@pytest.fixture(scope="module")
def detector(normals):
    return METHODS["trivial:statistics"](device="cpu").fit(normals)


@pytest.fixture(scope="module")
def fresh():
    return phantoms.load("test", size=32, n=160)


def verdict(detector, images):
    images = ImageSet(images)
    monitor = DriftMonitor(detector, images.names, images.volumes, rate=0.01, share=0.5)
    monitor.add(images.names, detector.score(images), acquisition(images.images))
    return monitor.verdict()


def shifted(images, kind):
    x = images.astype(float)
    if kind == "gamma":
        x = 255 * (x / 255) ** 0.7
    elif kind == "window":
        x = (x - 127.5) * 1.3 + 127.5
    elif kind == "blur":
        x = ndimage.gaussian_filter(x, (0, 0.8, 0.8, 0))
    elif kind == "noise":
        x = x + np.random.default_rng(0).normal(0, 8, x.shape)
    elif kind == "smaller":
        return ImageSet(images).resized(20, 20).resized(32, 32).images
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [
        ("gamma", {"brightness", "shadows", "highlights"}),
        ("window", {"contrast", "highlights", "shadows", "clipped"}),
        ("blur", {"sharpness", "noise"}),
        ("noise", {"sharpness", "noise"}),
        ("smaller", {"sharpness", "noise"}),
    ],
)
def test_a_shift_of_all_images_rings_and_says_what(detector, fresh, kind, statistics):
    found = verdict(detector, shifted(fresh.normals().images, kind))
    assert found["alarm"]
    assert found["statistic"] in statistics
    assert found["words"].startswith("DRIFT: ")


@pytest.mark.parametrize("lesions", [0, 0.3, 0.5])
def test_lesions_in_a_batch_do_not_ring(detector, fresh, lesions):
    normal, anomalous = fresh.normals().images, fresh.anomalies().images
    bad = int(lesions * 80)
    found = verdict(detector, np.concatenate([normal[: 80 - bad], anomalous[:bad]]))
    assert found["alarm"] is False
    assert found["images"] == 80


@pytest.mark.parametrize("method", ["trivial:statistics", "trivial:pca"])
def test_a_folder_keeps_the_statistics_and_older_ones_load(method, normals, tmp_path):
    made = METHODS[method](device="cpu").fit(normals.subset(slice(0, 60)))
    folder = made.save(tmp_path / "model")
    again = Detector.load(folder, device="cpu")
    assert drift.to_json(again.drift_) == drift.to_json(made.drift_)
    assert {r.n for r in again.drift_.values()} == {60}
    assert sum(len(r["low"]) + len(r["high"]) for r in drift.to_json(again.drift_).values()) == 6 * len(GREY)
    (folder / "drift.json").unlink()
    write_sums(folder)
    older = Detector.load(folder, device="cpu")
    assert older.drift_ == {}
    said = verdict(older, normals.images[60:])
    assert "by the scores alone" in said["words"]
    (folder / "drift.json").write_text('{"sharpness": {"n": 3}}')
    write_sums(folder)
    with pytest.raises(DataError, match="not a model folder"):
        Detector.load(folder)


def test_volumes_count_once(normals):
    few = normals.subset(slice(0, 60))
    volumes = tuple(f"v{i // 3}" for i in range(60))
    made = METHODS["trivial:std"](device="cpu").fit(ImageSet(few.images, volumes=volumes))
    assert {r.n for r in made.drift_.values()} == {20}
    monitor = DriftMonitor(made, few.names, volumes, rate=0.01, share=0.5)
    assert "score" not in monitor.references  # slices are no images drawn one by one
    for i in (slice(0, 31), slice(31, 60)):
        monitor.add(few.names[i], made.score(few.images[i]), acquisition(few.images[i]))
    assert monitor.images == 20


def test_a_model_of_another_site_is_judged_by_that_sites_scores(normals, tmp_path):
    """Fewer normals than it was fitted on are no volumes; and what the model says of itself is true."""
    images = normals.images[:40]
    METHODS["trivial:std"](device="cpu").fit(images).save(tmp_path / "run")
    for k, image in enumerate(normals.images[40:65]):
        (tmp_path / "site").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "site" / f"{k}.png")
    out = tmp_path / "at-site"
    main(["calibrate", str(tmp_path / "run"), str(tmp_path / "site"), "--out", str(out), "--device", "cpu"])
    made = Detector.load(out)
    assert made.n_calibration_ == 25 < made.n_train_
    assert "score" in DriftMonitor(made, (), (), rate=0.01, share=0.5).references
    assert "of them, each judged without itself" not in made._card()


@pytest.fixture(scope="module")
def files(detector, fresh, tmp_path_factory):
    """A model and 96 images that are all blurred."""
    root = tmp_path_factory.mktemp("drift")
    detector.save(root / "run")
    (root / "new").mkdir()
    for i, image in enumerate(shifted(fresh.images[:96], "blur")):
        Image.fromarray(image[..., 0]).save(root / "new" / f"{i:03}.png")
    return root


def score_of(files, tmp_path):
    """The words of `dia score`."""
    out = tmp_path / "s.csv"
    return ["score", str(files / "run"), str(files / "new"), "--out", str(out), "--device", "cpu"]


def test_score_says_it_and_withholds_nothing(files, tmp_path, capsys):
    argv = score_of(files, tmp_path)
    main([*argv, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)["drift"]
    assert found["alarm"] is True
    assert found["p"] < 0.01
    assert found["words"] in err
    assert len(list(csv.DictReader((tmp_path / "s.csv").open()))) == 96
    main([*argv, "--anomalous_up_to", "0.95"])
    assert "DRIFT" not in capsys.readouterr().err
    for flag, value in (("--drift-rate", "0"), ("--anomalous-up-to", "1")):
        with pytest.raises(SystemExit):
            main([*argv, flag, value])
        assert flag in capsys.readouterr().err


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_resumed_run_counts_as_one_that_was_not_killed(files, tmp_path, capsys, monkeypatch, when):
    argv = score_of(files, tmp_path)
    argv += ["--batch", "10", "--json"]
    main(argv)
    whole = json.loads(capsys.readouterr().out)["drift"]
    append, calls = ScoreFile.append, []

    def dies(self, rows):
        calls.append(rows)
        if when == "after":
            append(self, rows)
        if len(calls) == 4:
            raise KeyboardInterrupt
        if when == "before":
            append(self, rows)

    monkeypatch.setattr(ScoreFile, "append", dies)
    with pytest.raises(SystemExit):
        main(argv)
    monkeypatch.setattr(ScoreFile, "append", append)
    capsys.readouterr()
    main([*argv, "--resume"])
    out, err = capsys.readouterr()
    assert f"going on after {30 if when == 'before' else 40}" in err
    assert json.loads(out)["drift"] == whole
    assert not list(tmp_path.glob(".*"))


def test_another_batch_on_resume_is_said_not_guessed(files, tmp_path, capsys, monkeypatch):
    argv = score_of(files, tmp_path)
    append, calls = ScoreFile.append, []

    def dies(self, rows):
        append(self, rows)
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoreFile, "append", dies)
    with pytest.raises(SystemExit):
        main([*argv, "--batch", "10"])
    monkeypatch.setattr(ScoreFile, "append", append)
    capsys.readouterr()
    main([*argv, "--resume", "--batch", "7", "--json"])
    found = json.loads(capsys.readouterr().out)["drift"]
    assert found["alarm"] is None
    assert "another --batch" in found["words"]
