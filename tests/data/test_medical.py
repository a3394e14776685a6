"""DICOM and NIfTI pixels: against pydicom's own reading, nibabel's own voxels, and values by hand."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from medical_files import dicom_file, lut, nifti_file, reference

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom import uid  # noqa: E402

from dia.core.errors import DataError  # noqa: E402
from dia.data.formats.windowing import PRESETS, View, Window, to_bytes  # noqa: E402
from dia.data.readers import read  # noqa: E402

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"  # what the wheel itself holds
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
RNG = np.random.default_rng(0)


def pixels(path: Path, **how) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(path, workers=1, **{"levels": "earlier"} | how).images


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for the rounding to whole numbers (ties may go either way)."""
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 0.5 + 1e-6


def fails(match: str, path: Path, **how) -> str:
    with pytest.raises(DataError, match=match) as error:
        pixels(path, **how)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value)


# --- the files that pydicom ships ---------------------------------------------------------------------

SHIPPED = [
    "examples_overlay.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_jpeg2k.dcm",
    "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPGExtended.dcm",
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "CT_small.dcm", "ExplVR_BigEnd.dcm",
    "GDCMJ2K_TextGBR.dcm", "image_dfl.dcm", "liver_1frame.dcm", "liver_expb_1frame.dcm",
    "rtdose_1frame.dcm", "rtdose_expb_1frame.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm",
    "SC_rgb_rle_32bit.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm", "SC_jpeg_no_color_transform.dcm", "SC_rgb_jpeg_app14_dcmd.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_dicom_is_read_as_pydicom_reads_it(name):
    close(pixels(DICOM / name)[0], reference(DICOM / name))


def test_the_shipped_files_cover_the_standard():
    kinds, syntaxes, bits = set(), set(), set()
    for name in SHIPPED:
        ds = pydicom.dcmread(DICOM / name, stop_before_pixels=True)
        kinds.add(ds.PhotometricInterpretation)
        syntaxes.add(ds.file_meta.TransferSyntaxUID)
        bits.add(ds.BitsAllocated)
    assert kinds >= {"MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT"}
    assert bits == {1, 8, 16, 32}
    assert syntaxes >= {
        uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless,
        uid.DeflatedExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLosslessSV1,
        uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000, uid.JPEG2000Lossless,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit_2frame.dcm", "rtdose.dcm", "examples_ybr_color.dcm"]
)
def test_frames_are_images(name):
    found = pixels(DICOM / name)
    assert len(found) == int(pydicom.dcmread(DICOM / name).NumberOfFrames)
    for i in (0, len(found) - 1):
        close(found[i], reference(DICOM / name, i))


# --- photometric interpretations and depths -----------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        *[("u1", 8), ("u1", 5), ("u2", 10), ("u2", 12), ("u2", 16), ("u4", 32), ("u4", 20)],
        *[("i1", 8), ("i2", 12), ("i2", 16), ("i4", 32)],
    ],
)
def test_grey_of_every_depth_takes_the_range_of_its_bits(tmp_path, photometric, dtype, bits):
    info = np.iinfo(dtype)
    low, high = (0, 2**bits - 1) if info.min == 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    x = RNG.integers(low, high, (6, 5), dtype=dtype, endpoint=True)
    x[0, :2] = low, high
    path = dicom_file(tmp_path / "a.dcm", x, bits=bits, PhotometricInterpretation=photometric)
    found = pixels(path)[0]
    close(found, reference(path))
    ends = [0, 255] if photometric == "MONOCHROME2" else [255, 0]
    assert found[0, :2, 0].tolist() == ends


def test_sixteen_bits_are_divided_by_257_as_in_png(tmp_path):
    x = np.array([[0, 128, 129, 257], [385, 386, 32768, 65535]], np.uint16)
    found = pixels(dicom_file(tmp_path / "a.dcm", x))[0, ..., 0]
    assert found.tolist() == [[0, 0, 1, 1], [1, 2, 128, 255]]


def test_an_image_does_not_set_its_own_range(tmp_path):
    x = np.full((4, 4), 1000, np.uint16)
    x[0, 0] = 1100
    alone = pixels(dicom_file(tmp_path / "a.dcm", x, bits=12))[0]
    x[3, 3] = 4095
    assert np.array_equal(alone[:3], pixels(dicom_file(tmp_path / "b.dcm", x, bits=12))[0, :3])


def test_unused_high_bits_are_ignored(tmp_path):
    x = RNG.integers(0, 4096, (6, 5), dtype=np.uint16)
    clean = pixels(dicom_file(tmp_path / "a.dcm", x, bits=12))
    assert np.array_equal(clean, pixels(dicom_file(tmp_path / "b.dcm", x | 0xB000, bits=12)))


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_in_either_order(tmp_path, photometric, planar):
    x = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stored = np.moveaxis(x, -1, 0).reshape(4, 6, 3) if planar else x
    path = dicom_file(
        tmp_path / "a.dcm", stored, PhotometricInterpretation=photometric, PlanarConfiguration=planar
    )
    found = pixels(path)[0]
    close(found, reference(path))
    if photometric == "RGB":
        assert np.array_equal(found, x)


@pytest.mark.parametrize(("photometric", "syntax"), [
    ("YBR_RCT", uid.JPEG2000Lossless), ("YBR_ICT", uid.JPEG2000), ("RGB", uid.RLELossless),
    ("RGB", uid.DeflatedExplicitVRLittleEndian),
])  # fmt: skip
def test_colour_compressed(tmp_path, photometric, syntax):
    x = np.kron(RNG.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    path = tmp_path / "a.dcm"
    if syntax == uid.JPEG2000:
        ds = pydicom.dcmread(dicom_file(path, x))
        ds.PhotometricInterpretation = "YBR_ICT"
        ds.compress(syntax, j2k_cr=[2])
        ds.save_as(path)
    elif syntax == uid.JPEG2000Lossless:
        ds = pydicom.dcmread(dicom_file(path, x))
        ds.PhotometricInterpretation = "YBR_RCT"
        ds.compress(syntax)
        ds.save_as(path)
    else:
        dicom_file(path, x, syntax=syntax)
    assert pydicom.dcmread(path).PhotometricInterpretation == photometric
    found = pixels(path)[0]
    close(found, reference(path))
    assert np.abs(found.astype(int) - x).max() <= (24 if photometric == "YBR_ICT" else 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_become_rgb(tmp_path, bits):
    table = RNG.integers(0, 2**bits, (3, 16), dtype=np.uint16)
    colours = dict(zip(("Red", "Green", "Blue"), table, strict=True))
    name = "{}PaletteColorLookupTable{}"
    attributes = {name.format(c, "Descriptor"): [16, 0, bits] for c in colours} | {
        name.format(c, "Data"): t.astype(f"<u{bits // 8}").tobytes() for c, t in colours.items()
    }
    x = RNG.integers(0, 16, (5, 4), dtype=np.uint8)
    path = dicom_file(tmp_path / "a.dcm", x, PhotometricInterpretation="PALETTE COLOR", **attributes)
    wanted = np.moveaxis(table[:, x], 0, -1)
    close(pixels(path)[0], reference(path))
    close(pixels(path)[0], wanted / (2**bits - 1) * 255)


# --- tone ---------------------------------------------------------------------------------------------

CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.filterwarnings("ignore:overflow")  # in pydicom's own sigmoid
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [(40, 400), ([40, 300], [80, 1500]), (-600.5, 1500.25), (500, 1)])
def test_a_files_own_window(tmp_path, function, photometric, window):
    x = RNG.integers(0, 4096, (16, 16), dtype=np.uint16)
    center, width = window
    path = dicom_file(
        tmp_path / "a.dcm", x, bits=12, PhotometricInterpretation=photometric, WindowCenter=center,
        WindowWidth=width, VOILUTFunction=function, **CT,
    )  # fmt: skip
    close(pixels(path)[0], reference(path))


@pytest.mark.filterwarnings("ignore:overflow")
@given(
    x=st.lists(st.integers(-2048, 2047), min_size=4, max_size=4),
    slope=st.sampled_from([1, 0.5, 2.25]),  # below 0, pydicom's output range is the wrong way round
    intercept=st.sampled_from([0, -1024, 17.5]),
    center=st.integers(-1500, 1500),
    width=st.integers(2, 3000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
@hypothesis_settings(max_examples=40)
def test_any_rescale_and_window_as_pydicom_has_them(x, slope, intercept, center, width, function):
    with tempfile.TemporaryDirectory() as folder:
        path = dicom_file(
            Path(folder, "a.dcm"), np.array(x, np.int16).reshape(2, 2), bits=12, RescaleSlope=slope,
            RescaleIntercept=intercept, WindowCenter=center, WindowWidth=width, VOILUTFunction=function,
        )  # fmt: skip
        close(pixels(path)[0], reference(path))


def test_a_negative_slope_keeps_high_values_white(tmp_path):
    x = np.array([[0, 1000, 4095]], np.uint16)
    tone = {"RescaleSlope": -2, "RescaleIntercept": 100}
    assert pixels(dicom_file(tmp_path / "a.dcm", x, bits=12, **tone)).ravel().tolist() == [255, 193, 0]
    windowed = dicom_file(tmp_path / "b.dcm", x, bits=12, WindowCenter=-1899.5, WindowWidth=1, **tone)
    assert pixels(windowed).ravel().tolist() == [255, 0, 0]


def test_a_voi_lut_goes_before_a_window(tmp_path):
    table = np.linspace(1023, 0, 4096).astype(int)  # dark where the stored value is high
    x = RNG.integers(0, 4096, (8, 8), dtype=np.uint16)
    path = dicom_file(
        tmp_path / "a.dcm", x, bits=12, VOILUTSequence=[lut(table, 0, 10)], WindowCenter=40, WindowWidth=80
    )
    close(pixels(path)[0], reference(path))
    close(pixels(path)[0], table[x][..., None] / 1023 * 255)


def test_a_modality_lut_sets_the_range(tmp_path):
    table = np.arange(256)[::-1] * 16
    x = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    path = dicom_file(
        tmp_path / "a.dcm", x.astype(np.uint16), bits=8, ModalityLUTSequence=[lut(table, 0, 16)]
    )
    close(pixels(path)[0], reference(path))
    close(pixels(path)[0], table[x][..., None] / 65535 * 255)


def test_stated_windows_are_in_the_rescaled_units(tmp_path):
    hu = np.array([[-1350, -600, 150, 1000]], np.int16)
    path = dicom_file(
        tmp_path / "a.dcm", hu + 1024, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9
    )
    assert pixels(path, window="lung").ravel().tolist() == [0, 128, 255, 255]  # -600 ± 750
    assert pixels(path, window="-600,1500").ravel().tolist() == [0, 128, 255, 255]
    assert pixels(path, window="40,80").ravel().tolist() == [0, 0, 255, 255]
    full = (hu.astype(float) + 1024 + 32768) / 65535 * 255
    close(pixels(path, window="full")[0, ..., 0], full)
    inverse = dicom_file(
        tmp_path / "b.dcm", hu + 1024, RescaleSlope=1, RescaleIntercept=-1024, PresentationLUTShape="INVERSE"
    )
    assert pixels(inverse, window="lung").ravel().tolist() == [255, 128, 0, 0]
    assert set(PRESETS) >= {"lung", "bone", "brain", "soft", "mediastinum", "liver"}


@pytest.mark.parametrize("window", ["lungs", "1", "1,2,3", "a,b", "40,0", "40,-3", "nan,3", "1,inf"])
def test_windows_that_are_none(window):
    with pytest.raises(DataError, match="--window"):
        View.of(window=window)


def test_axes_and_slices_that_are_none():
    for axis in ("3", "-1", "Axial", "x"):
        with pytest.raises(DataError, match="--axis must be sagittal, coronal, axial, 0, 1 or 2"):
            View.of(axis=axis)
    for slices in ("3", "a:b", "1:2:3", "1.5:"):
        with pytest.raises(DataError, match="--slices"):
            View.of(slices=slices)
    assert View.of(slices="10:-10").slices == (10, -10)
    assert View.of(slices=":").slices == (None, None)


def test_broken_windows_are_passed_over(tmp_path):
    x = RNG.integers(0, 4096, (4, 4), dtype=np.uint16)
    plain = pixels(dicom_file(tmp_path / "a.dcm", x, bits=12))
    for i, (center, width) in enumerate([(5, 0), (5, None), (None, 5), (5, -3)]):
        path = dicom_file(tmp_path / f"{i}.dcm", x, bits=12, WindowCenter=center, WindowWidth=width)
        assert np.array_equal(pixels(path), plain)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_a_window_is_monotone_and_bounded(values, center, width):
    x = np.sort(np.array(values))
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        y = Window(center, width, function).apply(x)
        assert ((y >= 0) & (y <= 1)).all()
        assert (np.diff(y) >= -1e-9).all()
    assert to_bytes(Window(center, width).apply(np.array([np.nan, -np.inf, np.inf]))).tolist() == [0, 0, 255]


def test_floats_need_a_window(tmp_path):
    x = np.linspace(-1, 1, 16).reshape(4, 4).astype(np.float32)
    path = dicom_file(tmp_path / "a.dcm", x)
    fails("values without a full range, as floats are; give --window LOW:HIGH", path, levels="full")
    close(pixels(path, window="0,2")[0, ..., 0], (x + 1) / 2 * 255)
    close(
        pixels(dicom_file(tmp_path / "b.dcm", x.astype(np.float64)), window="0,2")[0, ..., 0],
        (x + 1) / 2 * 255,
    )


def test_enhanced_files_have_tones_of_each_frame(tmp_path):
    x = RNG.integers(0, 4096, (3, 5, 4), dtype=np.uint16)
    rescale = [(1.0, 0.0), (2.0, -1024.0), (0.5, 3.0)]
    frames = [
        {"PixelValueTransformationSequence": [{"RescaleSlope": slope, "RescaleIntercept": inter}]}
        for slope, inter in rescale
    ]
    shared = [{"FrameVOILUTSequence": [{"WindowCenter": 700, "WindowWidth": 1001}]}]
    path = dicom_file(
        tmp_path / "a.dcm", x, bits=12, SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    found = pixels(path)[..., 0]
    for i, (slope, inter) in enumerate(rescale):
        value = x[i] * slope + inter
        close(found[i], np.clip((value - 699.5) / 1000 + 0.5, 0, 1) * 255)
    stated = pixels(path, window="0,100")[..., 0]
    for i, (slope, inter) in enumerate(rescale):
        close(stated[i], np.clip((x[i] * slope + inter) / 100 + 0.5, 0, 1) * 255)


# --- files that are not as they should be -------------------------------------------------------------


def test_files_without_images(tmp_path):
    for name in ("rtplan.dcm", "test-SR.dcm", "rtstruct.dcm"):
        fails("a DICOM file without an image", DICOM / name)
    (tmp_path / "a.dcm").write_text("no DICOM at all")
    fails("no DICOM file, or damaged", tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(b"")
    fails("no DICOM file, or damaged", tmp_path / "b.dcm")
    fails("its pixels cannot be decoded", DICOM / "MR_truncated.dcm")
    fails("a malformed DICOM header", DICOM / "badVR.dcm")


def test_a_bare_data_set_is_read(tmp_path):
    x = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
    ds = pydicom.dcmread(dicom_file(tmp_path / "a.dcm", x))
    del ds.file_meta
    ds.preamble = None
    ds.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True)
    assert b"DICM" not in (tmp_path / "b.dcm").read_bytes()
    assert np.array_equal(pixels(tmp_path / "b.dcm")[0, ..., 0], x)


def test_absurd_headers_are_refused_before_anything_is_allocated(tmp_path):
    x = np.zeros((4, 4), np.uint8)
    path = dicom_file(tmp_path / "a.dcm", x)

    def with_header(**changes) -> Path:
        ds = pydicom.dcmread(path)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(tmp_path / "b.dcm")
        return tmp_path / "b.dcm"

    fails("promises 65535x65535 pixels, above the limit", with_header(Rows=65535, Columns=65535))
    fails("promises 16000000000 bytes of pixels, more than its", with_header(NumberOfFrames=10**9))
    fails("promises -3 images", with_header(NumberOfFrames=-3))
    fails("promises 250000 bytes of pixels, more", with_header(Rows=500, Columns=500))
    ds = pydicom.dcmread(
        dicom_file(tmp_path / "c.dcm", np.zeros((2, 8, 8), np.uint8), syntax=uid.RLELossless)
    )
    ds.NumberOfFrames = 10**8
    ds.save_as(tmp_path / "c.dcm")
    fails("promises 800000000 bytes", tmp_path / "c.dcm")
    voxels = nifti_file(tmp_path / "v.nii", np.zeros((4, 4, 4), np.int16))
    header = bytearray(voxels.read_bytes())
    header[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    voxels.write_bytes(header)
    fails("promises 27000000000000 voxels, above the limit", voxels)
    header[42:48] = np.array([400, 400, 400], "<i2").tobytes()
    voxels.write_bytes(header)
    fails("promises 128000000 bytes of pixels, more than", voxels)


def test_an_unknown_transfer_syntax_is_named_without_its_number(tmp_path):
    path = dicom_file(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8))
    ds = pydicom.dcmread(path)
    ds.PixelData = pydicom.encaps.encapsulate([ds.PixelData])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    ds.save_as(path)
    fails("MPEG2 .*is not read; convert it", path)
    ds.file_meta.TransferSyntaxUID = uid.UID("1.2.777.13")
    ds.set_original_encoding(False, True)
    ds.save_as(path, implicit_vr=False)
    assert "777" not in fails("a private transfer syntax is not read", path)


@pytest.mark.parametrize("library", ["pydicom", "nibabel"])
def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    shipped = DICOM / "MR_small.dcm" if library == "pydicom" else NIFTI / "anatomical.nii"
    os.link(shipped, tmp_path / shipped.name)
    for skip_bad in (False, True):  # the file is not to blame
        with pytest.raises(DataError, match=rf"is read by {library}; pip install 'dia-anomaly\[medical\]'"):
            read(tmp_path, skip_bad=skip_bad)


# --- NIfTI --------------------------------------------------------------------------------------------


def stretched(x: np.ndarray) -> np.ndarray:
    """The rule for a volume without a window, by nibabel's own floats."""
    low, high = np.percentile(x, (0.5, 99.5))
    return np.clip((x - low) / (high - low), 0, 1) * 255


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_shipped_nifti_is_read_as_nibabel_reads_it(name):
    image = nibabel.as_closest_canonical(nibabel.load(NIFTI / name))
    x = stretched(image.get_fdata())
    for axis, wanted in (
        ("axial", x[::-1, ::-1].transpose(2, 1, 0)),  # rows from the front, columns from the right
        ("coronal", x[::-1, :, ::-1].transpose(1, 2, 0)),  # rows from the head, columns from the right
        ("sagittal", x[:, ::-1, ::-1].transpose(0, 2, 1)),  # rows from the head, columns from the front
    ):
        close(pixels(NIFTI / name, axis=axis)[..., 0], wanted)
    assert np.array_equal(pixels(NIFTI / name), pixels(NIFTI / name, axis="axial"))
    stored = stretched(nibabel.load(NIFTI / name).get_fdata())
    for axis in (0, 1, 2):
        close(pixels(NIFTI / name, axis=str(axis))[..., 0], np.moveaxis(stored, axis, 0))


@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    tilt=st.floats(-0.3, 0.3),
    axis=st.sampled_from(["axial", "coronal", "sagittal"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
@hypothesis_settings(max_examples=15)
def test_however_it_is_stored_a_body_is_seen_from_the_same_side(order, signs, tilt, axis, suffix):
    """A volume stored in any order of axes, mirrored and tilted, gives the same slices."""
    x = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    turned = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([2.0, 1.0, 3.0])
    stored = x.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    permuted = np.zeros((4, 4))
    for i, (canonical, sign) in enumerate(zip(order, signs, strict=True)):
        permuted[canonical, i] = sign
        permuted[canonical, 3] = 0 if sign > 0 else stored.shape[i] - 1
    permuted[3, 3] = 1
    with tempfile.TemporaryDirectory() as folder:
        a = nifti_file(Path(folder, f"a{suffix}"), x, affine)
        b = nifti_file(Path(folder, f"b{suffix}"), np.ascontiguousarray(stored), affine @ permuted)
        assert np.array_equal(pixels(a, axis=axis), pixels(b, axis=axis))


def test_a_landmark_lies_where_a_radiologist_looks_for_it(tmp_path):
    x = np.zeros((5, 6, 7), np.uint8)  # right, front, top grow with the index
    x[4, 5, 6] = 200  # right, front, top
    path = nifti_file(tmp_path / "a.nii.gz", x)
    axial, coronal, sagittal = (
        pixels(path, axis=a, window="full")[..., 0] for a in ("axial", "coronal", "sagittal")
    )
    assert axial.shape == (7, 6, 5)
    assert axial[6, 0, 0] == 200  # of the top slice: front above, right at the left
    assert coronal[5, 0, 0] == 200  # of the front slice: head above, right at the left
    assert sagittal[4, 0, 0] == 200  # of the right slice: head above, front at the left


def test_slope_and_windows(tmp_path):
    stored = RNG.integers(-500, 500, (3, 4, 5), dtype=np.int16)
    path = nifti_file(tmp_path / "a.nii", stored, slope=2.0, inter=-100.0)
    value = stored * 2.0 - 100
    close(pixels(path, axis="0", window="40,400")[..., 0], np.clip((value - 40) / 400 + 0.5, 0, 1) * 255)
    close(pixels(path, axis="0")[..., 0], stretched(value))
    close(pixels(path, axis="0", window="full")[..., 0], (stored + 32768.0) / 65535 * 255)
    negative = nifti_file(tmp_path / "b.nii", stored, slope=-2.0, inter=0.0)
    close(pixels(negative, axis="0")[..., 0], stretched(stored * -2.0))


def test_all_slices_of_a_volume_share_one_range(tmp_path):
    x = np.zeros((6, 6, 4), np.float32)
    x[..., 3] = RNG.normal(100, 20, (6, 6))
    x[0, 0, 0] = np.nan
    found = pixels(nifti_file(tmp_path / "a.nii", x))
    assert found[:3].max() == 0  # an empty slice stays empty
    assert found[3].max() == 255
    fails("values without a full range, as floats are", tmp_path / "a.nii", window="full")
    flat = pixels(nifti_file(tmp_path / "b.nii", np.full((3, 3, 3), 7, np.int16)))
    assert flat.min() == flat.max()
    fails(
        "none of its values is a number",
        nifti_file(tmp_path / "c.nii", np.full((3, 3, 3), np.nan, np.float32)),
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: nifti_file(p, np.zeros((3, 3, 3), np.complex64)), "voxels of type complex64"),
        (lambda p: p.write_text("no NIfTI at all"), "no NIfTI file, or damaged"),
        (lambda p: p.write_bytes(b""), "no NIfTI file, or damaged"),
        (
            lambda p: p.write_bytes(nifti_file(p, np.ones((9, 9, 9), np.int16)).read_bytes()[:-20]),
            "promises 1458 bytes of pixels, more|its voxels cannot be read",
        ),
    ],
)
def test_bad_nifti(tmp_path, make, match):
    make(tmp_path / "a.nii")
    fails(match, tmp_path / "a.nii")


def test_a_damaged_gzip_is_one_line(tmp_path):
    path = nifti_file(tmp_path / "a.nii.gz", RNG.integers(0, 999, (9, 9, 9)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-300])
    fails("its voxels cannot be read", path)


def test_one_volume_in_four_dimensions_and_a_plane_are_volumes(tmp_path):
    x = RNG.integers(0, 99, (4, 5, 6), dtype=np.int16)
    three = pixels(nifti_file(tmp_path / "a.nii", x))
    assert np.array_equal(three, pixels(nifti_file(tmp_path / "b.nii", x[..., None], kind="Nifti2")))
    assert pixels(nifti_file(tmp_path / "c.nii", x[..., 0])).shape == (1, 5, 4, 1)


def test_the_libraries_keep_silent(tmp_path, caplog, recwarn):
    """What they warn of, they quote; the marker stands in elements that pixels and order need."""
    x = RNG.integers(0, 4096, (6, 5), dtype=np.uint16)
    path = dicom_file(
        tmp_path / "a.dcm", x, bits=12, SeriesInstanceUID="1.2.3", WindowCenter=1, WindowWidth=3
    )
    data = path.read_bytes()
    assert data.count(b"1.2.3\0") == 1
    (tmp_path / "b.dcm").write_bytes(data.replace(b"1.2.3\0", b"MARKER"))
    with caplog.at_level(logging.DEBUG):
        read(tmp_path / "b.dcm", workers=1)
        assert pydicom.dcmread(tmp_path / "b.dcm").SeriesInstanceUID == "MARKER"
    assert "MARKER" not in caplog.text
    assert not [w for w in recwarn if "MARKER" in str(w.message)]
