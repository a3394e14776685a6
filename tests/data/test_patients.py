"""Patients: told by a column, by names or by DICOM files; never on two sides, and never shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data.imageset import ImageSet, codes_of, units_of
from dia.data.options import ReadOptions
from dia.data.readers import listing, read
from dia.detectors import Detector
from dia.detectors.calibration import held_out, one_of_each
from dia.detectors.registry import TRIVIAL
from dia.evaluate.quality import check
from dia.evaluate.unseen import unseen

METHOD = "trivial:std"


def write(folder: Path, names, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(folder / name)
    return folder


def fails(match: str, path: Path, **how) -> None:
    with pytest.raises(DataError, match=match) as error:
        listing(path, **how)
    assert "\n" not in str(error.value)


# --- where they are told ------------------------------------------------------------------------------


def test_names_tell_patients_and_what_was_found_is_said(tmp_path):
    root = write(tmp_path / "x", ["p7/a1.png", "p7/a2.png", "p12/person3_a3.png"])
    found = listing(root, group_by=r"a(\d)")
    assert [e.patient for e in found.entries] == ["1", "2", "3"]
    found = listing(root, group_by=r"person(\d)|(p\d+)/a")  # the group that takes part
    assert [e.patient for e in found.entries] == ["p7", "p7", "3"]
    found = listing(root, group_by=r"p\d+")  # all that it matches, where there is no group
    assert found.grouped == f"{root}: 3 images of 2 patients (for example 'p7'), by --group-by"
    assert listing(root, group_by="folder").read().patients == ("p7", "p7", "p12")
    assert read(root).patients == ()


def test_a_pattern_that_does_not_fit_is_refused_with_the_first_name(tmp_path):
    root = write(tmp_path, ["a1.png", "b.png", "c3.png"])
    fails(r"--group-by z: no image is told by it: the first, a1.png, does not hold 'z'", root, group_by="z")
    fails(r"--group-by (\S+): b.png, does not hold", root, group_by=r"(\d)")
    fails("a1.png, has no folder", root, group_by="folder")
    for pattern in ("(", ""):
        with pytest.raises(DataError, match="no regular expression"):
            ReadOptions(group_by=pattern)


def test_a_column_tells_patients_and_stands_against_a_pattern(tmp_path):
    write(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "m.csv").write_text("path,label,Patient\na.png,0,x\nb.png,0,y\nc.png,1,x\n")
    assert read(tmp_path / "m.csv").patients == ("x", "y", "x")
    fails("it has a column patient; leave out --group-by", tmp_path / "m.csv", group_by="a")


def test_names_of_an_npz_and_a_declaration(tmp_path):
    x = np.zeros((4, 8, 8), np.uint8)
    names = np.array(["p1-a", "p1-b", "p2-a", "p3-a"])
    np.savez(tmp_path / "x.npz", train_images=x, train_names=names, train_labels=np.array([0, 0, 0, 1]))
    found = read(tmp_path / "x.npz", group_by=r"p\d")
    assert found.patients == ("p1", "p1", "p2", "p3")
    assert found.normals().n_patients == 2
    (tmp_path / "set.yaml").write_text('path: x.npz\ngroup_by: "p\\\\d"\n')
    from dia.data.datasets import open_data

    assert open_data(tmp_path / "set.yaml", "train").patients == found.patients


def dicoms(root: Path, ids) -> Path:
    pytest.importorskip("pydicom")
    from medical_files import dicom_file

    for i, patient in enumerate(ids):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12)).astype(np.uint8)
        dicom_file(root / f"{i:02}.dcm", pixels, PatientID=patient, SeriesInstanceUID=f"1.{i}")
    return root


@pytest.mark.parametrize(
    ("ids", "codes"),
    [
        (["Meier", "Meier ", "Huber"], [0, 0, 1]),
        (["Meier", None, "Huber"], None),
        (["Meier", " ", "Huber"], None),
        (["ANON"] * 3, None),  # a word that stands for all tells nothing
    ],
)
def test_dicom_files_tell_patients_where_all_do(tmp_path, ids, codes):
    found = read(dicoms(tmp_path, ids))
    assert (codes_of(found.units, 3).tolist() if found.patients else None) == codes
    assert not any(word in str(found.patients) for word in ("Meier", "Huber", "ANON"))


def test_a_plain_file_among_dicom_files_leaves_patients_unknown(tmp_path):
    assert read(write(dicoms(tmp_path, ["a", "b"]), ["z.png"]), size=12).patients == ()


def test_names_win_over_dicom_files(tmp_path):
    assert read(dicoms(tmp_path, ["a", "b"]), group_by=r"0(\d)").patients == ("0", "1")


def test_what_stands_for_a_dicom_patient_differs_between_processes(tmp_path):
    root = dicoms(tmp_path, ["a", "b"])
    code = f"from dia.data.readers import read; print(read({str(root)!r}).patients)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(patient in other for patient in read(root).patients)


# --- never on two sides -------------------------------------------------------------------------------

some_patients = st.lists(st.integers(0, 12), min_size=40, max_size=80)


@given(some_patients, st.floats(0.1, 0.5), st.integers(0, 9))
def test_no_patient_is_held_out_and_trained_on(patients, holdout, seed):
    n, units = len(patients), units_of([f"p{p}" for p in patients])
    try:
        parts = held_out(n, holdout, seed, units, whole=True)
    except DataError as error:
        assert "too few patients" in str(error)  # noqa: PT017
        return
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    sides = [{patients[i] for i in part} for part in parts]
    assert sum(map(len, sides)) == len(set(patients))
    assert len(parts[2]) >= n / 4
    assert all(len(part) for part in parts)


@given(some_patients, st.integers(0, 9))
def test_one_image_of_each_patient_is_drawn(patients, seed):
    units = units_of([f"p{p}" for p in patients])
    chosen = one_of_each(units, len(patients), seed)
    assert sorted(patients[i] for i in chosen) == sorted(set(patients))
    assert (np.diff(chosen) > 0).all()
    # what patients are called does not matter
    renamed = units_of([f"{hash((p, 'salt')):x}" for p in patients])
    assert one_of_each(renamed, len(patients), seed).tolist() == chosen.tolist()


def of_patients(n, each, seed=0, labels=None):
    images = smooth_images(n * each, 16, seed=seed)
    return ImageSet(images, labels, patients=[f"p{i // each}" for i in range(n * each)])


def test_a_fit_calibrates_on_one_image_of_each_held_out_patient(tmp_path):
    normals = of_patients(30, 4)
    detector = TRIVIAL[METHOD]().fit(normals)
    calibration, _, train = held_out(120, 0.2, 0, normals.units, whole=True)
    assert detector.n_train_ == len(train)
    assert detector.n_calibration_ == detector.n_effective_ == len(calibration) / 4
    scores = detector.score(normals.images[np.sort(calibration)])
    assert all(s in scores for s in detector.calibration_.scores)
    assert detector.facts_["patients"] == 30
    assert Detector.load(detector.save(tmp_path / "m")).facts_["patients"] == 30
    assert "patients" not in detector.fit(normals.images).facts_  # fitted anew on others
    with pytest.raises(DataError, match=r"too few patients \(2\) to hold out whole ones"):
        TRIVIAL[METHOD]().fit(of_patients(2, 20))


def test_what_patients_are_called_changes_no_fit():
    normals = of_patients(20, 3)
    other = ImageSet(normals.images, patients=[f"{hash(p):x}" for p in normals.patients])
    a, b = (TRIVIAL["trivial:blur"]().fit(s) for s in (normals, other))
    assert np.array_equal(a.calibration_.scores, b.calibration_.scores)
    assert normals.sha256() == other.sha256() != ImageSet(normals.images).sha256()


def test_a_normal_is_judged_without_its_patient(monkeypatch):
    """Two images that are nearly the same are one patient: left out one by one, each would find the other."""
    from dia.detectors import diaplus

    images = np.repeat(smooth_images(8, 32), 2, axis=0)
    images[1::2, 0, 0] ^= 1
    seen: dict[str, np.ndarray] = {}
    of_all = diaplus.left_out

    def spy(found, owners, k, part):
        seen["distances"] = of_all(found, owners, k, part)
        return seen["distances"]

    monkeypatch.setattr(diaplus, "left_out", spy)
    settings = {"views": ("pooled",), "weights": "none", "neighbours": 1}
    make = lambda: diaplus.DIAPlus(diaplus.DIAPlusSettings(**settings))  # noqa: E731
    make().fit(ImageSet(images))
    nearest = seen["distances"].max()
    detector = make().fit(ImageSet(images, patients=[f"p{i // 2}" for i in range(16)]))
    assert seen["distances"].min() > 2 * nearest
    assert (detector.n_train_, detector.n_calibration_) == (16, 8)


def test_the_split_of_class_folders_keeps_patients_together(tmp_path):
    names = [f"ok/p{p}_{i}.png" for p in range(10) for i in range(3)] + ["sick/p3_9.png", "sick/p99_0.png"]
    how = {"normal": "ok", "group_by": r"p(\d+)_"}
    train, test = (read(write(tmp_path, names), split=split, **how) for split in ("train", "test"))
    assert len({*train.patients}) == 8
    assert not {*train.patients} & {*test.normals().patients}
    dicom = [read(dicoms(tmp_path / "d" / "ok", [f"p{i // 2}" for i in range(20)]).parent, split=split,
                  normal="ok") for split in ("train", "test")]  # fmt: skip
    assert [s.n_patients for s in dicom] == [8, 2]
    again = read(tmp_path / "d", split="test", normal="ok")
    assert dicom[1].names == again.names


def test_images_of_a_patient_that_was_fitted_on_are_left_out():
    normals = of_patients(30, 2)
    detector = TRIVIAL[METHOD]().fit(normals)
    new = smooth_images(3, 16, seed=5)
    given_ = ImageSet(np.concatenate([normals.images[:1], new]), np.array([0, 1, 0, 1]),
                      patients=["p0", "p0", "other", "other"])  # fmt: skip
    found = unseen(detector, given_)
    assert found.images.names == ("000002", "000003")
    assert (found.seen, found.anomalous) == (("000000", "000001"), 1)
    assert "or others of their patients, 1 of them labelled anomalous" in found.remark()


# --- the check ----------------------------------------------------------------------------------------


def test_the_check_finds_patients_on_both_sides_and_names_none():
    a, b = smooth_images(4, 16, seed=1), smooth_images(3, 16, seed=2)
    train = ImageSet(a, names=list("abcd"), patients=["secret1", "secret1", "secret2", "secret3"])
    test = ImageSet(b, np.array([0, 1, 1]), names=list("xyz"), patients=["secret1", "secret9", "secret3"])
    found = check({"train": train, "test": test})
    (shared,) = found["shared_patients"]
    assert shared == {
        "between": ["train", "test"], "patients": 2, "images": {"train": 3, "test": 2},
        "pairs": [
            {"train": {"name": "a", "label": None}, "test": {"name": "x", "label": 0}},
            {"train": {"name": "d", "label": None}, "test": {"name": "z", "label": 1}},
        ],
    }  # fmt: skip
    assert not found["ok"]
    assert [s["patients"] for s in found["splits"].values()] == [3, 3]
    assert "secret" not in json.dumps(found)
    apart = check({"train": train, "test": test.subset([1])})
    assert apart["ok"]
    assert not apart["shared_patients"]


def test_images_of_one_patient_are_no_near_duplicates():
    images = np.repeat(smooth_images(3, 16), 2, axis=0)
    images[1::2, 0, 0] += 1  # not the same pixels
    near = check({"all": ImageSet(images)})["near_duplicates"]["within"]["all"]
    assert near["images"] == 3
    near = check({"all": ImageSet(images, patients=list("aabbcc"))})["near_duplicates"]["within"]["all"]
    assert near["images"] == 0


# --- from the command line ----------------------------------------------------------------------------


def test_from_fit_to_the_verdict(tmp_path, capsys):
    names = [f"ok/p{p:02}_{i}.png" for p in range(40) for i in range(2)]
    root = write(tmp_path / "scans", [*names, *(f"sick/q{p}_{i}.png" for p in range(12) for i in range(3))])
    run, ledger = str(tmp_path / "run"), tmp_path / "runs.jsonl"
    by = ["--normal", "ok", "--group-by", r"([pq]\d+)_"]
    main(["fit", str(root), *by, "--method", METHOD, "--out", run])
    said = capsys.readouterr().err
    assert f"{root}: 80 images" not in said  # the anomalous ones have patients too
    assert "116 images of 52 patients (for example 'p00'), by --group-by" in said
    assert "fitting on 64 normal images of 32 patients" in said
    main(["evaluate", run, str(root), *by, "--json", "--ledger", str(ledger)])
    found = json.loads(capsys.readouterr().out)
    assert found["patients"] == 52
    words = [f["words"] for f in found["beside"]["verdict"]["findings"]]
    assert any("116 images of 52 patients. Intervals are by patient." in w for w in words)
    assert json.loads(ledger.read_text())["n_patients"] == 52
    main(["data", "check", str(root), *by, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [s["patients"] for s in found["splits"].values()] == [32, 20]
    assert found["patients_by"].startswith(f"--group-by {by[3]}, as 'p")
