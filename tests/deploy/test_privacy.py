"""What DICOM says of patients goes nowhere: a file full of marked elements, through every command."""

from __future__ import annotations

import json
import logging
import struct
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from medical_files import dicom_file, nifti_file

pydicom = pytest.importorskip("pydicom")

from pydicom import uid  # noqa: E402
from pydicom.datadict import DicomDictionary  # noqa: E402
from pydicom.dataelem import DataElement  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.tag import Tag  # noqa: E402

from dia.cli.main import main  # noqa: E402
from dia.detectors.registry import METHODS  # noqa: E402

WORD, DAY, NUMBER = "XMARKERX", "18130713", "7713137"
VALUES = {
    **dict.fromkeys(["AE", "CS", "SH", "LO", "ST", "LT", "UT", "UC", "UR"], WORD),
    "PN": f"{WORD}^{WORD}", "DA": DAY, "TM": f"11{NUMBER[:4]}.{NUMBER[:6]}"[:13], "DT": f"{DAY}131313",
    "UI": f"1.2.{NUMBER}.{NUMBER}", "IS": NUMBER, "DS": f"{NUMBER}.5",
    "OB": WORD.encode(), "UN": WORD.encode(),
}  # fmt: skip
MARKERS = [form for text in (WORD, DAY, NUMBER) for form in (text.encode(), text.encode("utf-16-le"))]
PIXELS = {
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *(
        "RescaleIntercept",
        "RescaleSlope",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "FrameIncrementPointer",
    ),
    *("PresentationLUTShape", "SpecificCharacterSet", "ImagePositionPatient", "ImageOrientationPatient"),
}  # of which pixels and order are made


def full() -> Dataset:
    """Every element of the standard's dictionary that can hold a marker, some nested, some private."""
    ds = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if group in (0, 2, 4) or group >= 0x6000 or keyword in PIXELS or vr not in VALUES or not tag & 0xFFFF:
            continue
        ds.add(DataElement(Tag(tag), vr, VALUES[vr]))
    ds.BurnedInAnnotation = "YES"
    inner = Dataset()
    inner.PatientName, inner.PatientID = WORD, WORD
    ds.OtherPatientIDsSequence = ds.ReferencedStudySequence = [inner]
    block = ds.private_block(0x0009, WORD, create=True)
    block.add_new(1, "LO", WORD)
    return ds


def files_of(folder: Path, images: np.ndarray, marked: Dataset) -> list[Path]:
    made = []
    for i, image in enumerate(images):
        path = dicom_file(folder / f"{i:02}.dcm", image[..., 0])
        ds = pydicom.dcmread(path)
        for element in marked:
            ds.add(element)
        ds.InstanceNumber = i
        ds.file_meta.MediaStorageSOPInstanceUID = VALUES["UI"]
        ds.file_meta.SourceApplicationEntityTitle = WORD
        ds.preamble = WORD.encode() * 16
        ds.save_as(path)
        made.append(path)
    return made


@pytest.fixture(scope="module")
def marked() -> Dataset:
    return full()


@pytest.fixture(scope="module")
def scans(tmp_path_factory, marked) -> Path:
    root = tmp_path_factory.mktemp("scans")
    assert len(marked) > 2000
    images = smooth_images(20)
    for name, part in (
        ("train/good/a", images[:16]),
        ("test/good/b", images[16:18]),
        ("test/bad/c", images[18:]),
    ):
        files_of(root / name, part, marked)
    whole = (root / "train/good/a/00.dcm").read_bytes()
    assert all(marker in whole for marker in MARKERS[::2])
    return root


@pytest.fixture(scope="module")
def blur(tmp_path_factory) -> Path:
    return METHODS["trivial:blur"]().fit(smooth_images(20)).save(tmp_path_factory.mktemp("blur") / "model")


def nothing_of_it(folder: Path, *texts: str) -> int:
    """No marker in the texts, nor in any name or file below `folder`; how many files were searched."""
    for text in texts:
        assert not [m for m in MARKERS if m in text.encode()]
    files = [p for p in folder.rglob("*") if p.is_file()]
    for path in files:
        content = path.read_bytes() + path.name.encode()
        assert not [m for m in MARKERS if m in content], path
    return len(files)


def test_no_command_shows_logs_or_stores_what_identifies_a_patient(scans, tmp_path, capfd, caplog):
    out = tmp_path / "out"
    model = out / "model"
    common = ["--device", "cpu", "--workers", "1"]
    with caplog.at_level(logging.DEBUG):
        for argv in (
            ["fit", scans, "--method", "trivial:blur", "--out", model, *common],
            ["score", model, scans, "--out", out / "s.csv", "--heatmaps", out / "maps", *common],
            ["score", model, scans, "--out", out / "s.jsonl", *common, "--json"],
            ["evaluate", model, scans, "--ledger", out / "runs.jsonl", *common],
            ["report", model, scans, "--out", out / "report.html", *common],
            ["data", "check", scans],
        ):
            main([str(a) for a in argv])
    said = capfd.readouterr()
    assert "identifying text burned into the pixels" in " ".join(said.err.split())
    assert nothing_of_it(out, said.out, said.err, caplog.text) > 15
    volumes = (out / "s.volumes.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in volumes] == ["volume", "test/bad/c", "test/good/b"]
    assert json.loads((model / "config.json").read_text())["method"] == "trivial:blur"


def damaged(path: Path, how: str) -> None:
    """Files whose faults pydicom tells by quoting them."""
    ds = pydicom.dcmread(path)
    if how == "pixels cut off":
        data = path.read_bytes()
        path.write_bytes(data[:-50])
        return
    if how == "pixels that are none":
        ds.PixelData = pydicom.encaps.encapsulate([WORD.encode() * 4])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    if how == "a private transfer syntax":
        ds.file_meta.TransferSyntaxUID = uid.UID(VALUES["UI"])
        ds.set_original_encoding(False, True)
        ds.save_as(path, implicit_vr=False)
        return
    ds.save_as(path)
    changed = {
        "a number that is none": (0x0020, 0x0013, b"IS", WORD.encode()),
        "a window that is none": (0x0028, 0x1050, b"DS", WORD.encode()),
        "a position that is none": (0x0020, 0x0032, b"DS", WORD.encode()),
        "an interpretation that is none": (0x0028, 0x0004, b"CS", WORD.encode()),
        "a date that is none": (0x0008, 0x0020, b"DA", WORD.encode()),
        "a UID that is none": (0x0020, 0x000E, b"UI", WORD.encode()),
    }.get(how)
    if changed:
        group, element, vr, value = changed
        start = struct.pack("<HH2s", group, element, vr)
        ds = pydicom.dcmread(path)
        data = path.read_bytes()
        tag = Tag(group, element)
        if tag not in ds:
            ds.add(DataElement(tag, vr.decode(), "1"))
            ds.save_as(path)
            data = path.read_bytes()
        at = data.index(start)
        length = struct.unpack_from("<H", data, at + 6)[0]
        new = start + struct.pack("<H", len(value)) + value
        path.write_bytes(data[:at] + new + data[at + 8 + length :])


HARMLESS = (
    "a date that is none", "a UID that is none", "a window that is none", "a position that is none",
)  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        "pixels cut off", "pixels that are none", "a private transfer syntax", "a number that is none",
        "a window that is none", "a position that is none", "an interpretation that is none",
        "a date that is none", "a UID that is none",
    ],
)  # fmt: skip
def test_no_error_quotes_what_it_stumbles_over(marked, blur, tmp_path, capfd, caplog, recwarn, how):
    data, out = tmp_path / "data", tmp_path / "out"
    first, _ = files_of(data, smooth_images(2), marked)
    damaged(first, how)
    with caplog.at_level(logging.DEBUG):
        for more in ([], ["--skip-bad"]):
            argv = ["score", blur, data, "--out", out / "s.csv", "--device", "cpu", *more]
            stops = not more and how not in HARMLESS  # else the file is left out
            with pytest.raises(SystemExit) if stops else nullcontext():
                main([str(a) for a in argv])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    warned = "".join(str(w.message) for w in recwarn)
    assert nothing_of_it(out, said.out, said.err, caplog.text, warned) > 0
    assert ("skipped: " in said.err) == ("dia: " in said.err) == (how not in HARMLESS)


def test_texts_of_a_nifti_header_go_nowhere(tmp_path, capfd):
    nibabel = pytest.importorskip("nibabel")
    images = smooth_images(24)[..., 0]
    path = nifti_file(tmp_path / "data" / "v.nii", images.transpose(1, 2, 0))
    image = nibabel.load(path)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = WORD
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", WORD.encode()))
    nibabel.save(nibabel.Nifti1Image(np.array(image.dataobj), image.affine, image.header), path)
    assert path.read_bytes().count(WORD.encode()) == 5
    out = tmp_path / "out"
    main([
        "fit", str(path), "--method", "trivial:blur", "--out", str(out / "model"), "--device", "cpu",
    ])  # fmt: skip
    main(["score", str(out / "model"), str(path), "--out", str(out / "s.csv"), "--device", "cpu"])
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(SystemExit):
        main(["score", str(out / "model"), str(path), "--out", str(out / "t.csv"), "--device", "cpu"])
    said = capfd.readouterr()
    assert nothing_of_it(out, said.out, said.err) > 3
