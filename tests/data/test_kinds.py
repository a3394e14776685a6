"""Kinds and names of files: what is not read is counted and named, names are kept, patients' are not."""

from __future__ import annotations

import csv
import json
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file
from PIL import Image
from scoring import score

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from dia.cli.main import main  # noqa: E402
from dia.core.errors import DataError  # noqa: E402
from dia.data.layouts import ImageFile, Unread  # noqa: E402
from dia.data.readers import listing, read  # noqa: E402
from dia.detectors.registry import METHODS  # noqa: E402

NFC, NFD = (unicodedata.normalize(form, "Bericht ü é.png") for form in ("NFC", "NFD"))


def told(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        listing(path)
    return [str(w.message) for w in caught]


def png(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8) if image is None else image).save(path, "PNG")
    return path


def run(capsys, *argv: object) -> tuple[dict, str]:
    capsys.readouterr()
    main([str(a) for a in (*argv, "--json")])
    said = capsys.readouterr()
    return json.loads(said.out), " ".join(said.err.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return METHODS["trivial:blur"]().fit(smooth_images(60)).save(tmp_path_factory.mktemp("blur") / "model")


def test_kinds_that_are_not_read_are_counted_and_named(tmp_path):
    for i in range(4):
        png(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.xyz").write_bytes(b"?")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.HEIC").write_bytes(b"?")
    (tmp_path / "sub" / "a.heic").write_bytes(b"?")
    (tmp_path / "IM0001").write_bytes(b"?")
    (tmp_path / "1.2.840.77").write_bytes(b"?")
    wanted = (
        f"{tmp_path}: 8 files of kinds that are not read were left out: 4 .xyz (such as 0.xyz), "
        "2 without a suffix (such as 1.2.840.77), 2 .heic (such as sub/a.heic)"
    )
    assert told(tmp_path) == [wanted]
    with pytest.warns(UserWarning, match="8 files"):
        found = listing(tmp_path)
    assert found.unread[0] == Unread(".xyz", 4, "0.xyz")
    assert found.part(0, 2).unread == found.unread
    images = found.read(workers=1)
    assert images.unread == {".xyz": 4, "": 2, ".heic": 2}
    assert images.normals().subset([0]).unread == images.unread


def test_what_usually_lies_beside_images_is_not_counted(tmp_path):
    png(tmp_path / "a.png")
    meta_file(tmp_path / "v.mhd", np.zeros((8, 8, 1), np.uint8))
    for name in (
        *("labels.csv", "a.json", "notes.txt", "README.md", "LICENSE", "Thumbs.db", ".DS_Store", "DICOMDIR"),
        *("DICOMDIR.bak", "a.png.heatmap.npy", "sheet.xlsx", "dwi.bval", "readme", "report.PDF", "._a.png"),
    ):
        (tmp_path / name).write_bytes(b"?")
    assert told(tmp_path) == []
    assert len(listing(tmp_path)) == 2
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "v.raw").write_bytes(b"?")  # no header names it
    assert told(tmp_path) == [
        f"{tmp_path}: a file of a kind that is not read was left out: 1 .raw (such as c/v.raw)"
    ]


def test_a_folder_of_other_kinds_alone_says_what_there_is(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.heic").write_bytes(b"?")
    with pytest.raises(
        DataError, match=r"no images in this folder \(.*\); what is there is not read: 3 \.heic"
    ):
        listing(tmp_path)


def test_fit_and_check_and_score_tell_them(model, tmp_path, capsys):
    folder, other = tmp_path / "scans", tmp_path / "others"  # a warning is given once for each
    for i, image in enumerate(smooth_images(24)):
        for place in (folder, other):
            png(place / f"{i}.png", image[..., 0])
            (place / f"{i}.xyz").write_bytes(b"?")
    line = "24 files of kinds that are not read were left out: 24 .xyz (such as 0.xyz)"
    fitted, said = run(
        capsys, "fit", folder, "--method", "trivial:blur", "--out", tmp_path / "m", "--device", "cpu"
    )
    assert said.count(line) == 1
    assert fitted["n_train"] > 0
    found, said = run(capsys, "data", "check", folder)
    assert found["splits"]["all"]["not_read"] == {".xyz": 24}
    assert found["splits"]["all"]["skipped"] == []
    assert said.count(line) == 1
    found, said = run(capsys, "score", model, other, "--out", tmp_path / "s.csv", "--device", "cpu")
    assert (found["images"], found["not_read"], said.count(line)) == (24, 24, 1)


@pytest.mark.parametrize(("name", "kind", "stem"), [
    ("a.DCM.GZ", "dicom", "a"), ("b.c.nii.gz", "nifti", "b.c"), ("v.mhd", "itk", "v"), ("x.nrrd", "itk", "x"),
    ("a.npy", "npy", "a"), ("a.jfif", "plain", "a"), ("a.AVIF", "plain", "a"),
])  # fmt: skip
def test_kinds_by_suffix(tmp_path, name, kind, stem):
    assert ImageFile.of(tmp_path / name) == (tmp_path / name, kind, stem)


@pytest.mark.parametrize(
    "name", ["a.gz", "a.png.gz", "a.heic", "a.vsi", "a.png.heatmap.npy", "nii.gz", ".gz"]
)
def test_no_kinds_by_suffix(tmp_path, name):
    assert ImageFile.of(tmp_path / name) is None


def test_names_of_any_script_and_form_are_kept(model, tmp_path, capsys):
    """Two names that differ in their normalisation alone are two images."""
    images = smooth_images(5)[..., 0]
    folder = tmp_path / "scans"
    names = sorted([NFC, NFD, "報告🚀.dcm", "ö/" + NFD, "o\u0308/" + NFC])
    for name, image in zip(names, images, strict=True):
        if name.endswith(".dcm"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            dicom_file(folder / name, image)
        else:
            png(folder / name, image)
    found = read(folder, workers=1)
    assert sorted(found.names) == names
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(found.images[found.names.index(name), ..., 0], image)
    score(model, folder, tmp_path / "s.csv", "--heatmaps", tmp_path / "maps", "--heatmaps_as", "[npy]")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    assert sorted(rows) == names
    assert len(set(rows.values())) == 5
    maps = sorted(p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.npy"))
    assert maps == sorted(f"{name}.heatmap.npy" for name in names)
    score(model, folder, tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
    assert {row["path"]: row["score"] for row in map(json.loads, lines)} == rows
    capsys.readouterr()
    score(model, folder / "報告🚀.dcm", tmp_path / "one.csv", "--json")
    assert json.loads(capsys.readouterr().out)["images"] == 1
    assert "報告🚀.dcm," in (tmp_path / "one.csv").read_text(encoding="utf-8")


# --- patients -----------------------------------------------------------------------------------------

WORD, NUMBER = "XMARKERX", "7713137"


def marked(path: Path, image: np.ndarray, z: float, **more) -> None:
    """A slice whose private tags, overlay and names are of a patient, and which says that its pixels are."""
    dicom_file(
        path, image, SeriesInstanceUID=f"1.2.{NUMBER}", ImagePositionPatient=[0, 0, z], PatientName=WORD,
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PatientID=NUMBER, BurnedInAnnotation="YES",
        StackID=WORD, **more,
    )  # fmt: skip
    ds = pydicom.dcmread(path)
    block = ds.private_block(0x0029, WORD, create=True)
    block.add_new(0x10, "LO", WORD)
    block.add_new(0x11, "OB", WORD.encode() * 9)
    for element, vr, value in (
        (0x10, "US", 8), (0x11, "US", 8), (0x22, "LO", WORD), (0x40, "CS", "G"), (0x50, "SS", [1, 1]),
        (0x100, "US", 1), (0x102, "US", 0), (0x1500, "LO", WORD), (0x3000, "OW", WORD.encode()),
    ):  # fmt: skip
        ds.add_new((0x6000, element), vr, value)
    ds.save_as(path)


def test_nothing_of_a_patient_leaves_with_a_fit_or_score(tmp_path, capfd, caplog):
    """Neither of what DICOM hides, nor of what other headers say in their own words."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    images = smooth_images(40)[..., 0]
    for i in range(24):  # two phases, a gap, a localizer, an odd slice: each is told of
        kind = ["ORIGINAL", "PRIMARY", WORD if i != 5 else "LOCALIZER"]
        z, phase = (i // 2 if i < 20 else i), i % 2
        size = images[i][:, :-2] if i == 23 else images[i]
        marked(scans / "ct" / f"{i:02}.dcm", size, z, ImageType=kind, AcquisitionNumber=int(NUMBER) + phase)
    x = images[24:40].transpose(1, 2, 0)
    meta_file(scans / "a.mha", x, Comment=WORD, PatientID=NUMBER, Name=WORD)
    path = nrrd_file(scans / "a.nrrd", x, content=WORD, **{"labels": f'"{WORD}" "{WORD}" "{NUMBER}"'})
    path.write_bytes(path.read_bytes().replace(b"who:=made it", f"DICOM_0010_0010:={WORD}".encode()))
    image = nifti_file(scans / "a.nii", np.stack([x, x], -1))
    data = bytearray(image.read_bytes())
    data[148 : 148 + len(WORD)] = data[228 : 228 + len(WORD)] = WORD.encode()  # descrip and aux_file
    image.write_bytes(data)
    meta_file(scans / "bad.mha", x, ElementType=WORD)
    meta_file(scans / "bad.mhd", x, ElementDataFile=f"../{WORD}.raw")
    nrrd_file(scans / "bad.nrrd", x, type=WORD, kinds=WORD)
    common = ["--skip-bad", "--device", "cpu", "--workers", 1]
    for argv in (
        ["fit", scans, "--method", "trivial:blur", "--size", 16, "--out", out / "m", *common],
        ["score", out / "m", scans, "--out", out / "s.csv", "--heatmaps", out / "maps", *common,
         "--log-file", out / "l.log"],
        ["score", out / "m", scans, "--out", out / "s.jsonl", "--json", *common],
        ["data", "check", scans, "--size", 16, "--skip-bad", "--json"],
    ):  # fmt: skip
        main([str(a) for a in argv])
    said = capfd.readouterr()
    shown = " ".join(said.err.split())
    for line in (
        "burned into the pixels",
        "localizer",
        "AcquisitionNumber",
        "missing",
        "bad.mhd",
        "holds several",
    ):
        assert line in shown
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) > 60
    everything = b"".join([
        *(p.read_bytes() + p.name.encode() for p in files), said.out.encode(), said.err.encode(),
        caplog.text.encode(),
    ])  # fmt: skip
    for secret in (WORD, NUMBER):
        assert secret.encode() not in everything
