"""Spacing of pixels and slices, by file format: what a header tells reliably, and None for the rest."""

from pathlib import Path

import numpy as np
import pytest
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file
from PIL import Image

from dia.data.formats.geometry import grid_of_places, spacing_of
from dia.data.formats.series import Place
from dia.data.formats.windowing import View

for name in ("nibabel", "pydicom", "tifffile"):
    pytest.importorskip(name)
PIXELS = np.zeros((8, 6), np.uint16)
AXIAL = [1, 0, 0, 0, 1, 0]


def mm(path: Path, kind: str, axis: str = "axial", **more):
    found = spacing_of(path, kind, more.pop("number", None), View.of(axis=axis), more.pop("shape", None))
    return found and tuple(found)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25, None, "body")),
        ({"PixelSpacing": [0.5, 0.25], "SliceThickness": 3}, (0.5, 0.25, None, "body")),
        ({"PixelSpacing": [0, 0.25]}, None),
        ({"PixelSpacing": [0.5]}, None),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, (0.2, 0.2, None, "detector")),
        ({"ImagerPixelSpacing": [0.3, 0.3], "EstimatedRadiographicMagnificationFactor": 1.5},
         (0.2, 0.2, None, "body")),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}, (0.2, 0.2, None, "detector")),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2],
          "PixelSpacingCalibrationType": "GEOMETRY"}, (0.2, 0.2, None, "body")),
        ({"SequenceOfUltrasoundRegions": [
            {"RegionSpatialFormat": 1, "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3,
             "PhysicalDeltaX": 0.01, "PhysicalDeltaY": 0.02}]}, (0.2, 0.1, None, "body")),
        ({"SequenceOfUltrasoundRegions": [
            {"RegionSpatialFormat": 2, "PhysicalUnitsXDirection": 4, "PhysicalUnitsYDirection": 3,
             "PhysicalDeltaX": 0.01, "PhysicalDeltaY": 0.02}]}, None),
    ],
)  # fmt: skip
def test_dicom(tmp_path, attributes, expected):
    file = dicom_file(tmp_path / "a.dcm", PIXELS, **attributes)
    assert mm(file, "dicom") == (expected and pytest.approx(expected))


def test_frames_of_one_file_have_the_distance_of_their_positions(tmp_path):
    frames = [{"PlanePositionSequence": [{"ImagePositionPatient": [0, 0, 2.5 * z]}]} for z in range(3)]
    shared = {
        "PixelMeasuresSequence": [{"PixelSpacing": [0.5, 0.4], "SliceThickness": 9}],
        "PlaneOrientationSequence": [{"ImageOrientationPatient": AXIAL}],
    }
    file = dicom_file(
        tmp_path / "a.dcm", np.zeros((3, 8, 6), np.uint16),
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    assert mm(file, "dicom", number=1) == pytest.approx((0.5, 0.4, 2.5, "body"))


@pytest.mark.parametrize(
    ("unit", "codes", "expected"),
    [
        ("mm", 0, (2, 1, 3)),
        ("micron", 1, (2e-3, 1e-3, 3e-3)),
        ("unknown", 1, (2, 1, 3)),
        ("unknown", 0, None),
    ],
)
def test_nifti_by_its_unit(tmp_path, unit, codes, expected):
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([1.0, 2, 3, 1]))
    image.header.set_xyzt_units(unit)
    image.set_sform(np.diag([1.0, 2, 3, 1]), codes)
    image.set_qform(np.diag([1.0, 2, 3, 1]), codes)
    nibabel.save(image, tmp_path / "a.nii")
    found = mm(tmp_path / "a.nii", "nifti")
    assert found == (expected and pytest.approx((*expected, "body")))


def test_spacing_goes_with_the_axis_and_slanted_slices_have_their_own_distance(tmp_path):
    affine = np.diag([1.0, 2, 3, 1])
    file = nifti_file(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8), affine)
    assert mm(file, "nifti", "sagittal")[:3] == pytest.approx((3, 2, 1))
    assert mm(file, "nifti", "coronal")[:3] == pytest.approx((3, 1, 2))
    affine[0, 2] = 4  # z leans by 4 of x: its length is 5, and slices are still 3 apart
    file = nifti_file(tmp_path / "b.nii", np.zeros((4, 5, 6), np.uint8), affine)
    assert mm(file, "nifti")[:3] == pytest.approx((2, 1, 3))
    assert mm(file, "nifti", "coronal") is None  # rows and columns are not at right angles there


def test_metaimage_and_nrrd(tmp_path):
    x = np.zeros((4, 5, 6), np.uint8)
    assert mm(meta_file(tmp_path / "a.mha", x), "itk") is None
    assert mm(meta_file(tmp_path / "b.mha", x, ElementSpacing="1 2 3"), "itk")[:3] == (2, 1, 3)
    assert mm(meta_file(tmp_path / "c.mha", x, ElementSpacing="1 2 3", DistanceUnits="parsec"), "itk") is None
    assert mm(meta_file(tmp_path / "d.mha", x[..., 0], ElementSpacing="1 2"), "itk")[:3] == (2, 1, None)
    assert mm(meta_file(tmp_path / "e.mha", x, ElementSpacing="1 0 3"), "itk") is None
    vectors = {"space directions": "(1,0,0) (0,2,0) (0,0,3)"}
    assert mm(nrrd_file(tmp_path / "a.nrrd", x, **vectors), "itk")[:3] == (2, 1, 3)
    um = {"space units": '"um" "um" "um"'}
    assert mm(nrrd_file(tmp_path / "b.nrrd", x, **vectors, **um), "itk")[:3] == pytest.approx(
        (2e-3, 1e-3, 3e-3)
    )
    plain = {"space": None, "space directions": None, "spacings": "1 2 3"}
    assert mm(nrrd_file(tmp_path / "c.nrrd", x, **plain), "itk") is None
    units = {"units": '"mm" "mm" "mm"'}
    assert mm(nrrd_file(tmp_path / "d.nrrd", x, **plain, **units), "itk")[:3] == (2, 1, 3)


def test_tiff_only_where_a_unit_is_told_that_programs_do_not_write_by_default(tmp_path):
    import tifffile

    x = np.zeros((8, 6), np.uint16)
    where = tmp_path / "a.tif"

    def found(shape=(8, 6), **more):
        tifffile.imwrite(where, x, **more)
        return mm(where, "tiff", number=0, shape=shape)

    assert found() is None
    assert found(resolution=(72, 72), resolutionunit="INCH") is None
    assert found(resolution=(100, 50), resolutionunit="CENTIMETER")[:2] == pytest.approx((0.2, 0.1))
    assert found((4, 3), resolution=(100, 50), resolutionunit="CENTIMETER") is None  # a reduced level
    assert found(description="ImageJ=1.53\nunit=micron\n", resolution=(2, 4))[:2] == pytest.approx(
        (2.5e-4, 5e-4)
    )
    assert found(description="ImageJ=1.53\nunit=pixel\n", resolution=(2, 4)) is None
    assert found(description="Aperio Image Library\nx|AppMag = 20|MPP = 0.5")[:2] == pytest.approx(
        (5e-4, 5e-4)
    )
    ome = '<OME><Image><Pixels PhysicalSizeX="3" PhysicalSizeY="2" PhysicalSizeXUnit="{0}"'
    ome += ' PhysicalSizeYUnit="{0}"/></Image></OME>'
    assert found(description=ome.format("mm"))[:2] == (2, 3)
    assert found(description=ome.format("reference frame")) is None


def test_dots_per_inch_of_pictures_are_no_spacing(tmp_path):
    Image.new("L", (6, 8)).save(tmp_path / "a.png", dpi=(300, 300))
    assert mm(tmp_path / "a.png", "png") is None
    assert mm(tmp_path / "none.dcm", "dicom") is None


def place(z, **more):
    return Place((8, 6, 1), tuple(map(float, AXIAL)), (0.5, 0.25), (1.0, 2.0, float(z)), **more)


def test_a_series_is_a_grid_where_its_positions_are():
    grid, numbers = grid_of_places([place(z) for z in (10, 8, 4, 2)])
    assert numbers == [0, 1, 3, 4]
    assert grid.shape == (6, 8, 5)
    assert grid.spacing[:3] == pytest.approx((0.5, 0.25, 2.0))
    assert grid.affine @ [1, 1, 1, 1] == pytest.approx([-1.25, -2.5, 8, 1])  # to right, front and top
    assert grid_of_places([place(0), place(1), place(2.4), place(3)]) is None
    assert grid_of_places([place(0), place(0), place(1)]) is None
    assert grid_of_places([place(0)]) is None
    assert grid_of_places([place(0), place(1)._replace(point=None)]) is None
