"""Files of findings: lists, resuming, and masks that lie where their source does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file, tiff_stack
from PIL import Image

from dia.core.errors import DataError
from dia.data.formats import geometry
from dia.data.formats.windowing import View
from dia.data.readers import listing
from dia.deploy.findings.kept import FindingsKept
from dia.deploy.findings.lists import COLUMNS, write_list
from dia.deploy.findings.masks import MaskFiles
from dia.deploy.heatmaps import mask_path
from dia.detectors.calibration import HeatScale

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")
HEAT = HeatScale(0.0, np.linspace(1, 100, 39))  # at 5 % the level is 97.4
SHAPE = (20, 24, 9)  # x, y, z
WHERE = slice(6, 11), slice(12, 18), slice(3, 6)  # of the lesion, in voxels


def oblique(flip: bool = False) -> np.ndarray:
    """An affine of 0.7 × 0.9 × 2 mm, turned about two axes, towards right, front and top."""
    a, b = 0.3, 0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 0.9, 2.0)
    affine[:3, 3] = -12, 31, 7
    if flip:
        affine = affine @ np.diag([-1.0, 1, -1, 1])
    return affine


def volume() -> np.ndarray:
    """Voxels x, y, z with one bright block."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[WHERE] = 200
    return voxels


def kept_of(place: Path, out: Path, *, stop: int | None = None, start: int = 0, rows: int = 0, **options):
    """Findings of a path, where the heatmap of an image is its own pixels."""
    found = listing(place, **options)
    kept = FindingsKept(out, found, HEAT, 0.05, start, rows)
    for i, images in enumerate(found.stream(1, start, workers=1)):
        if stop is not None and start + i >= stop:
            break
        sizes = images.sizes or [images.shape[:2]] * len(images)
        kept.append(images.names, images.images[..., 0].astype(np.float32), sizes)
    kept.close()
    return kept


def points(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where the True voxels of a mask lie, sorted."""
    index = np.argwhere(mask)
    found = index @ affine[:3, :3].T + affine[:3, 3]
    return found[np.lexsort(found.round(3).T)]


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "0", "1", "2"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_nifti_mask_is_the_lesion_in_the_voxels_of_its_source(tmp_path, axis, flip):
    import nibabel

    file = nifti_file(tmp_path / "in" / "a.nii.gz", volume(), oblique(flip))
    kept = kept_of(file, tmp_path / "s.csv", axis=axis)
    (case,) = kept.cases()
    MaskFiles(tmp_path / "m", ["nifti"], "test").write(case)
    made = nibabel.load(mask_path(tmp_path / "m", "a.nii.gz", "nifti"))
    assert np.array_equal(np.asarray(made.dataobj) == 1, volume() > 0)
    assert np.allclose(made.affine, oblique(flip), atol=1e-5)
    (lesion,) = case.lesions
    assert lesion.volume_mm3 == pytest.approx(5 * 6 * 3 * 0.7 * 0.9 * 2.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["mha", "nrrd"])
def test_the_mask_of_itk_formats_lies_where_the_lesion_does_in_the_body(tmp_path, kind):
    import nibabel

    affine = oblique(True)
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    steps = np.linalg.norm(lps[:, :3], axis=0)
    origin = lps[:, 3]
    if kind == "mha":
        words = " ".join(map(str, (lps[:, :3] / steps).T.ravel()))  # rows are the directions of axes
        more = {
            "TransformMatrix": words, "ElementSpacing": " ".join(map(str, steps)),
            "Offset": " ".join(map(str, origin)),
        }  # fmt: skip
        file = meta_file(tmp_path / "a.mha", volume(), **more)
    else:
        vectors = " ".join(f"({','.join(map(str, v))})" for v in lps[:, :3].T)
        more = {"space directions": vectors, "space origin": f"({','.join(map(str, origin))})"}
        file = nrrd_file(tmp_path / "a.nrrd", volume(), **more)
    kept = kept_of(file, tmp_path / "s.csv")
    (case,) = kept.cases()
    MaskFiles(tmp_path / "m", ["nifti"], "test").write(case)
    made = nibabel.load(mask_path(tmp_path / "m", file.name, "nifti"))
    mask = np.asarray(made.dataobj) > 0
    assert np.allclose(points(mask, made.affine), points(volume() > 0, affine), atol=1e-3)
    assert case.lesions[0].volume_mm3 == pytest.approx(5 * 6 * 3 * 0.7 * 0.9 * 2.0, rel=1e-4)


IDS = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.5",
    "PatientID": "P1", "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "", "StudyID": "",
    "StudyDate": "20200101", "StudyTime": "120000", "AccessionNumber": "", "ReferringPhysicianName": "",
    "Modality": "CT", "SeriesNumber": 1,
}  # fmt: skip


def series(folder: Path, *, leave_out: tuple[int, ...] = (), ids=IDS) -> np.ndarray:
    """A DICOM series of the volume, slanted in the body; returns its affine to left, back, top."""
    from pydicom.uid import generate_uid

    affine = np.diag([-1.0, -1, 1, 1]) @ oblique(True)
    columns, rows = affine[:3, 0] / 0.7, affine[:3, 1] / 0.9
    for z in reversed(range(SHAPE[2])):
        if z in leave_out:
            continue
        dicom_file(
            folder / f"i{z * 7 % 10}.dcm", np.ascontiguousarray(volume()[..., z].T),
            SeriesInstanceUID="1.2.4", InstanceNumber=SHAPE[2] - z, SOPInstanceUID=generate_uid(),
            ImageOrientationPatient=[*map(float, columns.round(8)), *map(float, rows.round(8))],
            ImagePositionPatient=[*map(float, (affine[:3, 2] * z + affine[:3, 3]).round(6))],
            PixelSpacing=[0.9, 0.7], SliceThickness=5, **ids,
        )  # fmt: skip
    return affine


@pytest.mark.parametrize("leave_out", [(), (7,)])
def test_the_nifti_mask_of_a_dicom_series_lies_where_the_lesion_does(tmp_path, leave_out):
    import nibabel

    series(tmp_path / "ct", leave_out=leave_out)
    kept = kept_of(tmp_path / "ct", tmp_path / "s.csv")
    (case,) = kept.cases()
    MaskFiles(tmp_path / "m", ["nifti"], "test").write(case)
    made = nibabel.load(mask_path(tmp_path / "m", "ct", "nifti"))
    mask = np.asarray(made.dataobj) > 0
    assert np.allclose(points(mask, made.affine), points(volume() > 0, oblique(True)), atol=2e-3)
    # by the positions: SliceThickness says 5 mm, and the slices are 2 mm apart
    assert case.lesions[0].volume_mm3 == pytest.approx(5 * 6 * 3 * 0.7 * 0.9 * 2.0, rel=1e-3)


def test_slices_of_a_series_keep_their_numbers_where_the_first_are_not_read(tmp_path):
    import nibabel

    series(tmp_path / "ct")
    kept = kept_of(tmp_path / "ct", tmp_path / "s.csv", slices="2:")
    (case,) = kept.cases()
    assert case.lesions[0].slices == (3, 4, 5)
    write_list(tmp_path / "f.json", kept, {})
    told = json.loads((tmp_path / "f.json").read_text())
    assert [image["slice"] for image in told["images"]] == [2, 3, 4, 5, 6, 7, 8]
    MaskFiles(tmp_path / "m", ["nifti"], "test").write(case)
    made = nibabel.load(mask_path(tmp_path / "m", "ct", "nifti"))
    mask = np.asarray(made.dataobj) > 0
    assert np.allclose(points(mask, made.affine), points(volume() > 0, oblique(True)), atol=2e-3)


def test_a_lesion_does_not_go_on_across_a_missing_slice(tmp_path):
    series(tmp_path / "ct", leave_out=(4,))
    (case,) = kept_of(tmp_path / "ct", tmp_path / "s.csv").cases()
    assert [lesion.slices for lesion in case.lesions] in ([(3,), (5,)], [(5,), (3,)])


def test_nor_across_a_page_that_cannot_be_read(tmp_path):
    pages = np.ascontiguousarray(volume().transpose(2, 1, 0))
    file = tiff_stack(tmp_path / "a.tif", pages, damaged=4)
    (case,) = kept_of(file, tmp_path / "s.csv", skip_bad=True).cases()
    assert sorted(lesion.slices for lesion in case.lesions) == [(3,), (5,)]
    assert [looked.number for looked in case.images] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_seg_lies_where_the_lesion_does(tmp_path):
    pytest.importorskip("highdicom")
    from highdicom.seg import segread

    affine = series(tmp_path / "ct")
    kept = kept_of(tmp_path / "ct", tmp_path / "s.csv")
    (case,) = kept.cases()
    files = MaskFiles(tmp_path / "m", ["seg"], "test")
    files.write(case)
    assert not files.left_out
    made = segread(mask_path(tmp_path / "m", "ct", "seg"))
    assert made.PatientID == "P1"
    assert made.StudyInstanceUID == "1.2.3"
    assert made.SeriesInstanceUID != "1.2.4"
    space = made.get_volume(combine_segments=True)
    found = np.argwhere(space.array > 0) @ space.affine[:3, :3].T + space.affine[:3, 3]
    found = found[np.lexsort(found.round(3).T)]
    assert np.allclose(found, points(volume() > 0, affine), atol=2e-3)
    assert made.number_of_segments == len(case.lesions) == 1


def test_what_lacks_what_a_seg_needs_is_told_without_its_texts(tmp_path):
    pytest.importorskip("highdicom")
    few = {k: v for k, v in IDS.items() if k not in ("StudyInstanceUID", "PatientID")}
    series(tmp_path / "ct", ids=few)
    (case,) = kept_of(tmp_path / "ct", tmp_path / "s.csv").cases()
    files = MaskFiles(tmp_path / "m", ["seg"], "test")
    files.write(case)
    (line,) = files.left_out
    assert "lack what the standard asks for" in line
    assert "A^B" not in line
    assert not list((tmp_path / "m").rglob("*.dcm"))


def test_no_mask_of_an_earlier_run_stays_where_there_is_none_now(tmp_path):
    pytest.importorskip("highdicom")
    series(tmp_path / "ct")
    files = MaskFiles(tmp_path / "m", ["seg", "nifti"], "test")
    (case,) = kept_of(tmp_path / "ct", tmp_path / "s.csv").cases()
    files.write(case)
    assert len([*(tmp_path / "m").iterdir()]) == 2
    files.write(replace(case, lesions=(), grid=None))
    assert len(files.left_out) == 2
    assert not [*(tmp_path / "m").iterdir()]


def images(folder: Path) -> Path:
    """Five images of 30 × 40: dark, one block, two blocks, a ring, dark."""
    folder.mkdir()
    for i, blocks in enumerate([[], [(5, 5)], [(2, 3), (20, 30)], ["ring"], []]):
        x = np.zeros((30, 40), np.uint8)
        for block in blocks:
            if block == "ring":
                x[5:20, 5:20], x[10:15, 10:15] = 220, 0
            else:
                x[block[0] : block[0] + 4, block[1] : block[1] + 6] = 200
        Image.fromarray(x).save(folder / f"{i}.png")
    return folder


def test_the_json_is_that_of_coco_and_its_shapes_are_the_masks(tmp_path):
    from skimage.draw import polygon2mask

    kept = kept_of(images(tmp_path / "in"), tmp_path / "s.csv")
    many, with_any = write_list(tmp_path / "f.json", kept, {"model": "m"})
    found = json.loads((tmp_path / "f.json").read_text())
    assert (
        (many, with_any)
        == (4, 3)
        == (len(found["annotations"]), len({a["image_id"] for a in found["annotations"]}))
    )
    assert [i["file_name"] for i in found["images"]] == [f"{i}.png" for i in range(5)]
    names = {i["id"]: i["file_name"] for i in found["images"]}
    for a in found["annotations"]:
        truth = np.asarray(Image.open(tmp_path / "in" / names[a["image_id"]])) > 0
        x, y, w, h = a["bbox"]
        assert a["p_value"] <= 0.05
        assert a["area_mm2"] is None
        assert a["category_id"] == 1
        if isinstance(a["segmentation"], dict):  # the ring, with its hole
            counts, size = a["segmentation"]["counts"], a["segmentation"]["size"]
            values = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T
            assert np.array_equal(values, truth)
            assert a["area"] == truth.sum() == 200
        else:
            (ring,) = a["segmentation"]
            drawn = polygon2mask((30, 40), np.reshape(ring, (-1, 2))[:, ::-1] - 0.5)
            assert a["area"] == 24 == truth[y : y + h, x : x + w].sum()
            assert (drawn[y : y + h, x : x + w] != 1).sum() <= 4  # corners are cut


def test_csv_has_a_row_for_each_finding(tmp_path):
    import csv

    kept = kept_of(images(tmp_path / "in"), tmp_path / "s.csv")
    write_list(tmp_path / "f.csv", kept, {})
    rows = [*csv.DictReader((tmp_path / "f.csv").read_text().splitlines())]
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 4
    assert [r["path"] for r in rows] == ["1.png", "2.png", "2.png", "3.png"]
    assert rows[0]["x"] == "5"
    assert rows[0]["width"] == "6"
    assert rows[0]["area_mm2"] == ""


def test_a_run_that_was_killed_anywhere_ends_with_the_same_files(tmp_path):
    place = images(tmp_path / "in")
    whole = kept_of(place, tmp_path / "a.csv")
    write_list(tmp_path / "a.json", whole, {})
    text = whole.part.read_bytes()
    for stop in range(6):
        out = tmp_path / f"{stop}.csv"
        part = kept_of(place, out, stop=stop).part
        with part.open("ab") as file:  # lines of a batch whose rows were not written, the last torn
            file.write(text.splitlines(keepends=True)[stop][:30] if stop < 5 else b"")
        kept = kept_of(place, out, start=stop, rows=stop)
        assert kept.part.read_bytes() == text
    with pytest.raises(DataError, match="begin anew"):
        kept_of(place, tmp_path / "none.csv", start=2, rows=2)


def test_png_masks_have_the_size_of_their_images_and_are_no_scans(tmp_path):
    from dia.data.formats.mark import is_marked

    kept = kept_of(images(tmp_path / "in"), tmp_path / "s.csv", size=(15, 20))
    for case in kept.cases():
        MaskFiles(tmp_path / "m", ["png"], "test").write(case)
    made = sorted((tmp_path / "m").iterdir())
    assert len(made) == 5
    assert all(map(is_marked, made))
    drawn = np.asarray(Image.open(made[1]))
    truth = np.asarray(Image.open(tmp_path / "in" / "1.png")) > 0
    assert drawn.shape == (30, 40)
    assert set(np.unique(drawn)) == {0, 255}
    assert ((drawn > 0) & truth).sum() / ((drawn > 0) | truth).sum() > 0.6


def test_what_has_no_geometry_gets_no_volume_mask_and_one_line(tmp_path):
    kept = kept_of(images(tmp_path / "in"), tmp_path / "s.csv")
    files = MaskFiles(tmp_path / "m", ["nifti"], "test")
    for case in kept.cases():
        files.write(case)
    assert dict(files.left_out) == {"--masks-as nifti: not of images that are no volumes": 5}


def test_a_volume_sent_to_the_service_is_measured_and_joined(tmp_path):
    """As `Inferencer.findings` is called: pictures of one file, with what its header says."""
    from types import SimpleNamespace

    from dia.deploy.predictor import Inferencer, Picture

    file = nifti_file(tmp_path / "a.nii.gz", volume(), oblique())
    found = listing(file).read()
    entries = listing(file).entries
    mm = geometry.spacing_of(file, "nifti", 0, View.of())
    pictures = [
        Picture(e.name, x, 0, x.shape[:2], mm, e.volume, e.slice)
        for e, x in zip(entries, found.images, strict=True)
    ]
    model = SimpleNamespace(detector=SimpleNamespace(heat_=HEAT))
    told = Inferencer.findings(model, pictures, found.images[..., 0].astype(float), 0.05)
    assert [len(own) for own in told] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert {f["lesion"] for own in told for f in own} == {1}
    assert told[3][0]["area_mm2"] == pytest.approx(5 * 6 * 0.7 * 0.9, rel=1e-4)
