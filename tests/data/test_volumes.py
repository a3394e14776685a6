"""Volumes: which slices make one, in which order, and what the scores of slices say of it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from medical_files import dicom_file, nifti_file
from PIL import Image
from scoring import interrupted, refused, score

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from pydicom import uid  # noqa: E402

from dia.benchmark.runs import score_set  # noqa: E402
from dia.cli.main import main  # noqa: E402
from dia.core.errors import DataError  # noqa: E402
from dia.core.modelfiles import write_sums  # noqa: E402
from dia.data import decode  # noqa: E402
from dia.data.formats import nifti  # noqa: E402
from dia.data.imageset import ImageSet  # noqa: E402
from dia.data.readers import listing, read  # noqa: E402
from dia.deploy.scoring import _Scorer  # noqa: E402
from dia.detectors import Detector  # noqa: E402
from dia.detectors.calibration import held_out  # noqa: E402
from dia.detectors.registry import METHODS, TRIVIAL  # noqa: E402
from dia.evaluate.volume_scores import volume_metrics, volume_scores  # noqa: E402
from dia.report.gather import verdict_of  # noqa: E402

RNG = np.random.default_rng(0)
AXIAL = [1, 0, 0, 0, 1, 0]


def series(
    folder: Path, heights, *, series_uid="1.2.3", plane=AXIAL, names=None, numbers=None, **more
) -> None:
    """One file for each height along the normal; the pixels hold the place in the list."""
    normal = np.cross(plane[:3], plane[3:])
    for i, height in enumerate(heights):
        place = [float(f"{v:.6f}") for v in np.array([7.0, -5.0, 2.0]) + height * normal]
        dicom_file(
            folder / (names[i] if names else f"{i}.dcm"), np.full((4, 4), i, np.uint8),
            SeriesInstanceUID=series_uid, ImagePositionPatient=None if plane is None else place,
            ImageOrientationPatient=plane, InstanceNumber=numbers[i] if numbers else None, **more,
        )  # fmt: skip


def order(path: Path, **how) -> list[int]:
    return read(path, workers=1, **how).images[:, 0, 0, 0].tolist()


# --- which, and in which order ------------------------------------------------------------------------


@hypothesis_settings(max_examples=12)
@given(
    heights=st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True),
    plane=st.sampled_from([AXIAL, [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1]]),
)
def test_a_series_is_sorted_along_its_normal(heights, plane):
    """Whatever the names and instance numbers say."""
    with tempfile.TemporaryDirectory() as folder:
        series(Path(folder, "s"), heights, plane=plane, numbers=list(range(len(heights), 0, -1)))
        assert order(Path(folder)) == np.argsort(heights).tolist()


def test_without_positions_instance_numbers_count_and_then_names(tmp_path):
    for i, number in enumerate([3, 1, 20]):
        dicom_file(
            tmp_path / "a" / f"{i}.dcm", np.full((2, 2), i, np.uint8), SeriesInstanceUID="1.2",
            InstanceNumber=number,
        )  # fmt: skip
        dicom_file(tmp_path / "b" / f"{10 - i}.dcm", np.full((2, 2), i, np.uint8), SeriesInstanceUID="1.2")
    assert order(tmp_path / "a") == [1, 0, 2]
    assert order(tmp_path / "b") == [2, 1, 0]  # 8, 9, 10


def test_series_are_named_by_their_folders_and_never_by_their_numbers(tmp_path):
    series(tmp_path / "p1" / "ct", [1, 2], names=["I10", "I2"], series_uid="1.2.777")
    series(tmp_path / "p1" / "ct", [2, 1, 3], names=["IM0001", "IM0002", "1.2.840.3"], series_uid="1.2.778")
    series(tmp_path / "p2", [2, 1], series_uid="1.2.777")
    series(tmp_path, [1, 2], names=["a", "b"], series_uid="1.2.779")
    series(tmp_path, [1], names=["alone.dcm"], series_uid="1.2.780")
    dicom_file(tmp_path / "film.dcm", np.zeros((3, 4, 4), np.uint8), SeriesInstanceUID="1.2.779")
    nifti_file(tmp_path / "v.nii.gz", np.zeros((4, 4, 2), np.uint8))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "p2" / "x.png")
    for name in ("DICOMDIR", "notes", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" if name == "DICOMDIR" else b"hello")
    found = listing(tmp_path)
    root = tmp_path.name
    assert list(zip(found.names, found.volumes, strict=True)) == [
        ("a", root), ("b", root), ("alone.dcm", None),
        ("film.dcm#0", "film.dcm"), ("film.dcm#1", "film.dcm"), ("film.dcm#2", "film.dcm"),
        ("p1/ct/IM0002", "p1/ct"), ("p1/ct/IM0001", "p1/ct"), ("p1/ct/1.2.840.3", "p1/ct"),
        ("p1/ct/I10", "p1/ct#2"), ("p1/ct/I2", "p1/ct#2"),
        ("p2/1.dcm", "p2"), ("p2/0.dcm", "p2"), ("p2/x.png", None),
        ("v.nii.gz#0", "v.nii.gz"), ("v.nii.gz#1", "v.nii.gz"),
    ]  # fmt: skip


def test_the_names_of_all_are_unique_and_natural(tmp_path):
    nifti_file(tmp_path / "v.nii", np.zeros((4, 4, 12), np.uint8))
    names = listing(tmp_path).names
    assert names == tuple(f"v.nii#{i}" for i in range(12))
    assert listing(tmp_path, axis="0").names == tuple(f"v.nii#{i}" for i in range(4))
    assert listing(tmp_path, slices="2:-3").names == tuple(f"v.nii#{i}" for i in range(2, 9))
    with pytest.raises(DataError, match="--slices leaves none"):
        listing(tmp_path, slices="20:")


def test_a_file_may_not_be_called_as_a_slice(tmp_path):
    dicom_file(tmp_path / "a.dcm", np.zeros((2, 4, 4), np.uint8))
    dicom_file(tmp_path / "a.dcm#1", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"a\.dcm#1 names both a file and a slice of another; rename"):
        listing(tmp_path)


def test_files_without_images_are_left_out_of_folders(tmp_path):
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    series(tmp_path, [1, 2])
    for name in ("rtplan.dcm", "test-SR.dcm"):
        os.link(shipped / name, tmp_path / name)
    with pytest.warns(UserWarning, match=r"2 DICOM files without an image \(reports, plans\) left out"):
        assert len(listing(tmp_path)) == 2


def test_what_the_user_should_know_of_the_files_is_one_line_each(tmp_path):
    x = np.zeros((4, 4), np.uint16)
    for i in range(3):
        dicom_file(tmp_path / f"{i}.dcm", x, bits=12, BurnedInAnnotation="YES")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        listing(tmp_path, levels="full")
    texts = [str(w.message) for w in said]
    assert len(texts) == 2
    assert "3 DICOM files with identifying text burned into the pixels" in texts[0]
    assert "3 DICOM files of more than 8 bits without a window" in texts[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        listing(tmp_path, window="lung")
        listing(tmp_path)  # its levels will be learned
    assert len(said) == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_headers_that_cannot_be_read_are_one_skipped_line_each(tmp_path, workers):
    series(tmp_path / "s", [3, 2, 1])
    (tmp_path / "bad.dcm").write_text("no DICOM")
    nifti_file(tmp_path / "v.nii", np.zeros((4, 4, 3), np.uint8))
    nifti_file(tmp_path / "w.nii", np.zeros((4, 4, 3), np.complex64))
    with pytest.raises(DataError, match=r"bad\.dcm: no DICOM file, or damaged; repair it, or .*--skip-bad"):
        listing(tmp_path)
    found = listing(tmp_path, size=4, channels=1, skip_bad=True)
    assert len(found) == 8
    sets = list(found.stream(3, workers=workers))
    assert [len(s) for s in sets] == [2, 3, 1]
    assert [line.split(": ")[0][len(str(tmp_path)) + 1 :] for s in sets for line in s.skipped] == [
        "bad.dcm", "w.nii",
    ]  # fmt: skip
    assert [v for s in sets for v in s.volumes] == ["s"] * 3 + ["v.nii"] * 3


def test_volumes_stay_on_one_side_of_the_split_made_for_classes(tmp_path):
    for i in range(10):
        series(tmp_path / "fine" / f"p{i}", [1, 2, 3], series_uid=f"1.2.{i}")
        nifti_file(tmp_path / "fine" / f"v{i}.nii", np.zeros((4, 4, 3), np.uint8))
    series(tmp_path / "bad" / "p", [1, 2])
    train, test = (listing(tmp_path, split=s, normal="fine") for s in ("train", "test"))
    assert len({*train.volumes}) == 16  # 80 % of 20
    assert not {*train.volumes} & {*test.volumes}
    assert (len(train), len(test)) == (48, 14)


def test_a_stream_of_slices_is_what_read_reads_and_its_parts_travel(tmp_path):
    series(tmp_path / "s", [3, 2, 1])
    dicom_file(tmp_path / "film.dcm", RNG.integers(0, 256, (5, 6, 4), dtype=np.uint8), syntax=uid.RLELossless)
    nifti_file(tmp_path / "v.nii.gz", RNG.integers(0, 99, (4, 5, 7), dtype=np.int16))
    found = listing(tmp_path, size=(4, 5), channels=1, window="30,60", axis="coronal")
    whole = found.read(workers=1)
    for batch, workers in ((1, 1), (4, 3), (100, 2)):
        parts = list(found.stream(batch, workers=workers))
        assert np.array_equal(np.concatenate([p.images for p in parts]), whole.images)
        assert [n for p in parts for n in p.names] == list(whole.names)
    sent = pickle.dumps(found.part(7, 12))
    assert len(sent) < 2500
    (part,) = pickle.loads(sent).stream(5, workers=1)
    assert np.array_equal(part.images, whole.images[7:12])
    assert part.volumes == tuple(found.volumes[7:12])


@pytest.mark.parametrize("workers", [1, 4])
def test_a_volume_is_decoded_once_for_all_its_slices(tmp_path, monkeypatch, workers):
    for name in ("a", "b"):
        nifti_file(tmp_path / f"{name}.nii.gz", RNG.integers(0, 99, (4, 5, 70), dtype=np.int16))
    made = []
    monkeypatch.setattr(decode, "Nifti", lambda *a, **k: made.append(a[0].name) or nifti.Nifti(*a, **k))
    monkeypatch.setattr(decode, "_KEPT_BYTES", 1)  # the last alone is kept
    assert len(read(tmp_path, workers=1, window="0:99")) == 140
    assert made == ["a.nii.gz", "b.nii.gz"]
    monkeypatch.setattr(decode, "_KEPT_BYTES", 2**30)
    made.clear()
    assert len(read(tmp_path, workers=workers, window="0:99")) == 140
    assert sorted(made) == ["a.nii.gz", "b.nii.gz"]


def test_masks_of_volumes_are_cut_as_they_are(tmp_path):
    lesion = np.zeros((4, 5, 6), np.uint8)
    lesion[1, 2, 3] = 1
    nifti_file(tmp_path / "fine" / "a.nii.gz", RNG.integers(0, 99, (4, 5, 6), dtype=np.int16))
    nifti_file(tmp_path / "bad" / "b.nii.gz", RNG.integers(0, 99, (4, 5, 6), dtype=np.int16))
    mask = nifti_file(tmp_path / "ground_truth" / "bad" / "b_mask.nii.gz", lesion)
    s = read(tmp_path, normal="fine", workers=1)
    assert s.masks.sum() == 1
    (i,) = np.flatnonzero(s.masks.any((1, 2)))
    assert s.names[i] == "bad/b.nii.gz#3"
    assert s.masks[i, 2, 2]  # front at the top, right at the left: 4 - 2, 3 - 1
    nifti_file(mask, lesion[..., :2])
    with pytest.raises(DataError, match=r"it has 2 slices; make it as long as its volume"):
        read(tmp_path, normal="fine", workers=1)


def test_manifests_hold_volumes_too(tmp_path):
    series(tmp_path / "s", [2, 1])
    nifti_file(tmp_path / "v.nii", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "m.csv").write_text("path,label\ns/0.dcm,0\nv.nii,1\ns/1.dcm,0\n")
    found = listing(tmp_path / "m.csv")
    assert found.names == ("s/1.dcm", "s/0.dcm", "v.nii#0", "v.nii#1", "v.nii#2")
    assert found.volumes == ("s", "s", "v.nii", "v.nii", "v.nii")
    assert found.labels.tolist() == [0, 0, 1, 1, 1]


# --- scores -------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    k=st.integers(1, 6),
    data=st.data(),
)
def test_a_volumes_scores_are_those_of_its_slices(sizes, k, data):
    scores = [data.draw(st.lists(st.floats(-1e6, 1e6), min_size=n, max_size=n)) for n in sizes]
    slices = [(f"v{i}", f"v{i}#{j}", s) for i, own in enumerate(scores) for j, s in enumerate(own)]
    slices.insert(len(scores[0]), (None, "x.png", 1e9))  # between the first two volumes
    found = list(volume_scores(slices, k))
    assert [v.volume for v in found] == [f"v{i}" for i in range(len(sizes))]
    for v, own in zip(found, scores, strict=True):
        assert v.slices == len(own)
        assert v.max == max(own)
        assert v.top_k_mean == pytest.approx(np.mean(np.sort(own)[-k:]), rel=1e-12, abs=1e-9)
        assert v.max_slice == f"{v.volume}#{own.index(max(own))}"


def test_auroc_over_volumes_by_hand():
    volumes = ["a"] * 3 + ["b"] * 3 + [None] + ["c"] * 3 + ["d"] * 2
    labels = np.array([0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0])
    scores = np.array([0.1, 0.5, 0.1, 0.2, 0.9, 0.1, 7, 0.4, 0.4, 0.4, 0.1, 0.2])
    found = volume_metrics(labels, scores, volumes, k=3)
    assert found["volumes"] == 4
    assert found["volume_auroc_max"] == 0.75  # of anomalous b, c over a, d: .9 and .4 against .5 and .2
    assert found["volume_auroc_top_k"] == 1.0  # .4 and .4 against .233 and .15
    assert volume_metrics(labels[:6] * 0, scores[:6], volumes[:6]) == {}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    detector = METHODS["trivial:blur"]().fit(smooth_images(60))
    return detector.save(tmp_path_factory.mktemp("model") / "blur")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Three series, a multi-frame file, a NIfTI volume and two plain images; one slice is damaged."""
    root, images = tmp_path_factory.mktemp("scans"), smooth_images(40, seed=3)[..., 0]
    for i in range(18):
        height = [[1.0, 5.0, 3.0, 2.0, 4.0, 0.0][i % 6]]
        series_uid = f"1.2.{i // 6}"
        dicom_file(
            root / f"p{i // 6}" / f"{i % 6}.dcm", images[i], SeriesInstanceUID=series_uid,
            ImagePositionPatient=[0, 0, *height], ImageOrientationPatient=AXIAL,
        )  # fmt: skip
    dicom_file(root / "film.dcm", images[18:25])
    nifti_file(root / "v.nii.gz", images[25:38].transpose(1, 2, 0))
    for i in (38, 39):
        Image.fromarray(images[i]).save(root / f"{i}.png")
    damaged = root / "p1" / "3.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    return root


def rows(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_file_of_volumes_agrees_with_that_of_slices(model, scans, tmp_path, capsys, suffix):
    out = tmp_path / f"s.{suffix}"
    score(model, scans, out, "--skip-bad", "--json", "--top-k", 3)
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["images"], facts["skipped"], facts["volumes"]) == (39, 1, 5)
    assert facts["volumes_out"] == str(tmp_path / f"s.volumes.{suffix}")
    slices, volumes = rows(out), rows(tmp_path / f"s.volumes.{suffix}")
    assert list(volumes[0]) == ["volume", "slices", "max", "top_k_mean", "max_slice", "p_value"]
    assert [v["volume"] for v in volumes] == ["film.dcm", "p0", "p1", "p2", "v.nii.gz"]
    detector = Detector.load(model, device="cpu")
    for v in volumes:
        own = [r for r in slices if r["path"].startswith(v["volume"])]
        scores = np.array([float(r["score"]) for r in own])
        assert int(v["slices"]) == len(own) == {"film.dcm": 7, "p1": 5, "v.nii.gz": 13}.get(v["volume"], 6)
        assert float(v["max"]) == scores.max()
        assert float(v["top_k_mean"]) == pytest.approx(np.sort(scores)[-3:].mean(), rel=1e-12)
        assert v["max_slice"] == own[int(scores.argmax())]["path"]
        wanted = min(1, len(own) * detector.p_values(scores).min())
        assert float(v["p_value"]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_volumes_of_an_interrupted_score_are_the_same_bytes(model, scans, tmp_path, monkeypatch, suffix):
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"s.{suffix}"
    score(model, scans, whole, "--skip-bad")
    for after in (1, 4):
        interrupted(monkeypatch, model, scans, out, "--skip-bad", after=after)
        assert not (tmp_path / f"s.volumes.{suffix}").exists()
        score(model, scans, out, "--skip-bad", "--resume")
        for name in ("", ".volumes"):
            ours, theirs = tmp_path / f"s{name}.{suffix}", tmp_path / f"whole{name}.{suffix}"
            assert ours.read_bytes() == theirs.read_bytes()
            ours.unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"whole.{suffix}", f"whole.volumes.{suffix}"]


def test_a_run_is_not_gone_on_with_in_another_window(model, scans, tmp_path, monkeypatch, capsys):
    out = tmp_path / "s.csv"
    interrupted(monkeypatch, model, scans, out, "--skip-bad")
    more = ("--skip-bad", "--resume", "--window", "-600,1500")  # a value with a sign is no flag
    assert "another --window (None, now -600,1500)" in refused(capsys, model, scans, out, *more)
    assert "--top-k" in refused(capsys, model, scans, out, "--top-k", 0)
    line = refused(capsys, model, scans, out, "--window", "lungs")
    assert "--window lungs is not known; give lung, mediastinum" in line


def test_plain_images_have_no_file_of_volumes(model, tmp_path):
    for i, image in enumerate(smooth_images(3)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "s.volumes.csv").write_text(
        "volume,slices,max,top_k_mean,max_slice,p_value\nof an earlier run,1,1,1,a,1\n"
    )
    score(model, tmp_path / "in", tmp_path / "s.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "s.csv"]


def test_an_actor_scores_its_slices_as_this_process_does(model, scans, tmp_path):
    """A part of the listing, sent to a process that knows nothing else of it."""
    score(model, scans, tmp_path / "s.csv", "--skip-bad")
    scored = {r["path"]: float(r["score"]) for r in rows(tmp_path / "s.csv")}
    found = listing(scans, size=(16, 16), channels=1, skip_bad=True)
    actor = _Scorer(os.getcwd(), str(model), "cpu")
    for start in range(0, len(found), 15):
        part = pickle.loads(pickle.dumps(found.part(start, start + 15)))
        names, scores, _, skipped, *_ = actor.score(part, False)
        assert len(names) + len(skipped) == len(part)
        assert scores == pytest.approx([scored[n] for n in names], rel=1e-6)


# --- models that remember how images are looked at ----------------------------------------------------


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    """CT-like series in class folders: 8 normal volumes, 2 anomalous."""
    root, images = tmp_path_factory.mktemp("ct"), smooth_images(50, seed=5)[..., 0]
    for i in range(10):
        kind = "bad" if i > 7 else "good"
        for j in range(5):
            hu = images[5 * i + j].astype(np.int16) * 6 - 1200
            if kind == "bad" and j == 2:
                hu[4:8, 4:8] = 400
            dicom_file(
                root / kind / f"p{i}" / f"{j}.dcm", hu + 1024, SeriesInstanceUID=f"1.2.{i}",
                RescaleSlope=1, RescaleIntercept=-1024, InstanceNumber=j, WindowCenter=40, WindowWidth=80,
            )  # fmt: skip
    return root


def run(capsys, *argv) -> tuple[dict, str]:
    capsys.readouterr()
    main([str(a) for a in (*argv, "--json")])
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_the_window_of_the_fit_is_that_of_the_score(ct, tmp_path, capsys):
    fitted = tmp_path / "lung"
    argv = ("fit", ct, "--normal", "good", "--method", "trivial:blur", "--out", fitted, "--window", "lung")
    run(capsys, *argv, "--device", "cpu")
    config = json.loads((fitted / "config.json").read_text())
    wanted = {"window": "lung", "axis": None, "slices": None}
    assert {k: config["facts"]["read"][k] for k in wanted} == wanted
    scores = {}
    for name, more, warned in (
        ("recorded", (), False),
        ("other", ("--window", "bone"), True),
        ("voi", ("--window", "voi"), True),
    ):
        out = tmp_path / f"{name}.csv"
        _, said = run(capsys, "score", fitted, ct, "--normal", "good", "--out", out, *more)
        text = "the model was fitted with lung; its p-values and threshold do not hold"
        assert (text in " ".join(said.split())) == warned
        scores[name] = [float(r["score"]) for r in rows(out)]
    assert scores["other"] != scores["recorded"] != scores["voi"]

    found, _ = run(capsys, "evaluate", fitted, ct, "--normal", "good")
    assert found["images"] == 20  # 2 normal volumes and 2 anomalous
    assert found["volumes"] == 4
    assert 0 <= found["volume_auroc_max"] <= 1


def test_data_check_counts_volumes(ct, capsys):
    found, _ = run(capsys, "data", "check", ct, "--normal", "good", "--window", "lung")
    assert {k: found["splits"]["train"][k] for k in ("images", "volumes", "slices")} == {
        "images": 30, "volumes": 6, "slices": 30,
    }  # fmt: skip
    assert found["splits"]["test"]["volumes"] == 4


# --- calibration --------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 30), min_size=12, max_size=25),
    loose=st.integers(0, 20),
    holdout=st.floats(0.1, 0.3),
    seed=st.integers(0, 9),
)
def test_whole_volumes_are_held_out(sizes, loose, holdout, seed):
    volumes = [f"v{i}" for i, n in enumerate(sizes) for _ in range(n)] + [None] * loose
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        parts = held_out(len(volumes), holdout, seed, volumes)
    assert sorted(np.concatenate(parts)) == list(range(len(volumes)))
    assert all(len(part) for part in parts)
    if not said:
        sides = [{volumes[i] for i in part} - {None} for part in parts]
        assert len(set().union(*sides)) == sum(map(len, sides))
        assert len(parts[2]) >= len(volumes) / 2
        assert len(parts[0]) + len(parts[1]) >= round(holdout * len(volumes))


def test_too_few_volumes_are_said_to_be():
    with pytest.warns(UserWarning, match="2 volumes are too few to hold out whole ones"):
        parts = held_out(60, 0.2, 0, ["a"] * 30 + ["b"] * 30)
    assert [len(p) for p in parts] == [6, 6, 48]
    plain = held_out(60, 0.2, 0)
    assert all(np.array_equal(a, b) for a, b in zip(parts, plain, strict=True))


def test_a_model_knows_how_many_volumes_its_slices_tell_as_much_as(tmp_path, capsys):
    x = smooth_images(150, 16)
    normals = ImageSet(x[:120], volumes=[f"v{i // 4}" for i in range(120)])
    detector = TRIVIAL["trivial:std"]().fit(normals)
    calibration, *_ = held_out(120, 0.2, 0, normals.units)
    assert detector.n_calibration_ == len(calibration) == 4 * detector.n_effective_
    assert TRIVIAL["trivial:std"]().fit(x).n_effective_ == 15  # of plain images, all
    new = ImageSet(x[120:], np.arange(30) % 2, volumes=[f"w{i // 4}" for i in range(30)])
    flags = verdict_of(detector, new, score_set(detector, new), 0.2).findings[0]
    assert f"slices, which tell as much as {detector.n_effective_:g} volumes" in flags.words
    folder = detector.save(tmp_path / "run")
    assert Detector.load(folder).n_effective_ == detector.n_effective_
    before = (folder / "config.json").read_bytes()

    site = tmp_path / "site"
    for i in range(120, 150, 10):
        nifti_file(site / f"{i}.nii", x[i : i + 10, ..., 0].transpose(2, 1, 0))
    main(["calibrate", str(folder), str(site), "--false-alarm-rate", "10%"])
    assert Detector.load(folder).n_effective_ == 3
    main(["calibrate", str(folder), "--original"])
    assert (folder / "config.json").read_bytes() == before
    one = site / "120.nii"
    with pytest.raises(SystemExit):
        main(["calibrate", str(folder), str(one), "--false-alarm-rate", "20%"])
    assert "120.nii: slices of one volume tell nothing of how much volumes differ" in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == before

    older = {k: v for k, v in json.loads(before).items() if k != "n_effective"}
    (folder / "config.json").write_text(json.dumps(older))
    write_sums(folder)
    # all volumes of the fit, which are no fewer
    assert detector.n_effective_ <= Detector.load(folder).n_effective_ <= detector.n_calibration_


def test_image_sets_keep_their_volumes():
    s = ImageSet(smooth_images(4), [0, 1, 0, 0], volumes=("a", "a", None, "b"))
    assert s.normals().volumes == ("a", None, "b")
    assert s.with_channels(3).resized(8, 8).volumes == s.volumes
    assert s.normals().contaminated(s.anomalies(), 0.25).volumes == ("a", None, "b", None)
    with pytest.raises(DataError, match="3 names of volumes for 4 images"):
        ImageSet(s.images, volumes=("a", "b", "c"))
