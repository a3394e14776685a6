"""DICOM series: which images make a volume, in which order, and what is said of it."""

from __future__ import annotations

import gzip
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from medical_files import dicom_file

pydicom = pytest.importorskip("pydicom")

from pydicom import uid  # noqa: E402

from dia.core.errors import DataError  # noqa: E402
from dia.data.formats.series import MARKS, Place, stacks  # noqa: E402
from dia.data.formats.windowing import View  # noqa: E402
from dia.data.readers import listing, read  # noqa: E402

AXIAL, CORONAL = (1.0, 0, 0, 0, 1, 0), (1.0, 0, 0, 0, 0, -1)


def place(z: float, number: int | None = None, *, plane=AXIAL, shape=(4, 4, 1), xy=(0, 0), **marks) -> Place:
    point = (*xy, z) if plane == AXIAL else (0, -z, 0)
    own = tuple(marks.get(name) for name in MARKS)
    return Place(shape, plane, (1.0, 1.0), tuple(map(float, point)), number, marks=own)


# --- by places alone ----------------------------------------------------------------------------------


@given(
    n=st.integers(2, 12), phases=st.integers(2, 4), spacing=st.floats(0.004, 40), seed=st.integers(0, 99),
    mark=st.sampled_from(["TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "DiffusionBValue"]),
)  # fmt: skip
@hypothesis_settings(max_examples=30)
def test_phases_are_parts_however_they_are_mixed(n, phases, spacing, seed, mark):
    made = [(k, i) for k in range(phases) for i in range(n)]
    np.random.default_rng(seed).shuffle(made)
    found = stacks([place(-3 + spacing * i, **{mark: 10.0 * k}) for k, i in made])
    assert [[made[j] for j in part] for part in found.parts] == [
        [(k, i) for i in range(n)] for k in range(phases)
    ]
    assert (found.by, found.missing, found.repeated) == ([mark], 0, 0)


def test_phases_of_other_lengths_and_of_two_attributes():
    arterial = [place(z, AcquisitionNumber=1.0) for z in range(5)]
    venous = [place(z, AcquisitionNumber=2.0) for z in range(2, 12)]
    assert [len(p) for p in stacks([*arterial, *venous]).parts] == [5, 10]
    both = [place(z, EchoTime=e, DiffusionBValue=b) for z in range(3) for e in (1.0, 2.0) for b in (0.0, 9.0)]
    found = stacks(both)
    assert [len(p) for p in found.parts] == [3] * 4
    assert found.by == ["EchoTime and DiffusionBValue"]


def test_an_acquisition_number_of_each_slice_divides_nothing():
    helical = [place(z, z, AcquisitionNumber=float(z), ImageType=f"{z % 2}") for z in range(9)]
    assert stacks(helical) == ([[*range(9)]], [], 0, 0)


def test_without_attributes_the_numbers_tell_phases_apart():
    """As in a film of 4 phases, whose trigger times differ from slice to slice."""
    film = [place(z, 4 * z + k, TriggerTime=float(100 * k + z)) for z in range(5) for k in range(4)]
    found = stacks(film)
    assert [[film[i].number % 4 for i in part] for part in found.parts] == [[k] * 5 for k in range(4)]
    assert found.by == ["InstanceNumber"]
    in_one_place = [place(7, number) for number in (3, 1, 2)]
    assert stacks(in_one_place) == ([[1, 2, 0]], [], 0, 0)


def test_copies_and_gaps_are_told_and_kept():
    copies = [place(z, z) for z in (0, 1, 2, 3, 3, 4)]
    assert stacks(copies) == ([[0, 1, 2, 3, 4, 5]], [], 0, 1)
    lacking = [place(2.5 * z, z) for z in (0, 1, 2, 5, 6, 8)]
    assert stacks(lacking) == ([[*range(6)]], [], 3, 0)
    assert stacks([place(z) for z in (0, 1, 2, 40)]).missing == 37
    assert stacks([place(z) for z in (0, 40)]).missing == 0


def test_size_and_orientation_and_spacing_divide():
    slices = [place(z, z) for z in range(5)]
    odd = [place(0, 9, shape=(4, 8, 1)), place(1, 8, plane=CORONAL), place(2, 7)._replace(spacing=(2.0, 2.0))]
    found = stacks([*odd, *slices])
    assert sorted(map(len, found.parts)) == [1, 1, 1, 5]
    assert max(found.parts, key=len) == [3, 4, 5, 6, 7]
    assert found.by == ["size", "orientation", "spacing"]
    tilted = [place(z)._replace(plane=(1.0, 1e-3 * (z % 2), 0, 0, 1, 0)) for z in range(5)]  # as rounded
    assert len(stacks(tilted).parts) == 1


def test_planes_round_an_axis_stay_one_series():
    angles = np.linspace(0, 3, 9)
    planes = [(float(np.cos(a)), float(np.sin(a)), 0.0, 0.0, 0.0, -1.0) for a in angles]
    found = stacks([place(0, 9 - i)._replace(plane=p) for i, p in enumerate(planes)])
    assert found.parts == [[8, 7, 6, 5, 4, 3, 2, 1, 0]]


@given(st.data())
@hypothesis_settings(max_examples=60)
def test_every_image_stays_in_one_part(data):
    """Whatever places say."""
    number = st.sampled_from([None, 0.0, 1.0, 2.0, -7.0, 1e6])
    places = data.draw(st.lists(st.builds(
        Place,
        shape=st.sampled_from([(4, 4, 1), (4, 5, 1)]),
        plane=st.sampled_from([None, AXIAL, CORONAL, (0.0,) * 6]),
        spacing=st.sampled_from([None, (1.0, 1.0), (0.0, 2.0)]),
        point=st.sampled_from([None, (0.0, 0.0, 0.0), (0.0, 1.0, 2.0), (5.0, 1e6, 3.0)]),
        number=st.sampled_from([None, 1, 2, 3]),
        marks=st.tuples(*[number] * (len(MARKS) - 1), st.sampled_from([None, "A", "B"])),
    ), max_size=12))  # fmt: skip
    found = stacks(places)
    assert sorted(i for part in found.parts for i in part) == [*range(len(places))]


# --- files --------------------------------------------------------------------------------------------


def file(path: Path, value: int, z: float, **more) -> None:
    attributes = {
        "SeriesInstanceUID": "1.2.3", "ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": [*AXIAL],
    }  # fmt: skip
    dicom_file(path, np.full(more.pop("size", (4, 4)), value, np.uint8), **{**attributes, **more})


def said(path: Path, **how) -> tuple[list[tuple[str, str | None]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = listing(path, **how)
    return list(zip(found.names, found.volumes, strict=True)), [str(w.message) for w in caught]


def test_localizers_and_odd_slices_are_no_slice_0(tmp_path):
    """What a PACS hands over: the scout first, a dose report's picture last, two phases between."""
    folder = tmp_path / "p1"
    file(folder / "00", 9, -99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], size=(8, 8))
    for i in range(6):  # mixed as they were sent
        file(folder / f"0{i + 1}", i, [1, 0, 2][i // 2], AcquisitionNumber=i % 2 + 1, InstanceNumber=i)
    file(folder / "99", 8, 5, size=(4, 12))
    names, lines = said(tmp_path)
    assert names == [
        ("p1/03", "p1"), ("p1/01", "p1"), ("p1/05", "p1"),
        ("p1/04", "p1#2"), ("p1/02", "p1#2"), ("p1/06", "p1#2"), ("p1/99", None),
    ]  # fmt: skip
    assert lines == [
        f"{tmp_path}: 1 localizer (images to plan a scan on) left out",
        f"{folder}: a series is read as 3 of 3, 3, 1 images, by size and AcquisitionNumber",
    ]
    only = tmp_path / "p2"
    file(only / "a", 1, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert said(only) == ([("a", None)], [])  # there is nothing else


def test_gaps_and_copies_are_told_in_one_line(tmp_path):
    for i, z in enumerate([0, 1, 2, 5, 6, 6]):
        file(tmp_path / f"{i}.dcm", i, z)
    names, (line,) = said(tmp_path)
    assert len(names) == 6
    assert line == f"{tmp_path}: 2 slices seem to be missing; 1 image lies where another one does"


def test_many_odd_folders_are_five_lines_and_one(tmp_path):
    for p in range(9):
        for i, z in enumerate([0, 1, 2, 5]):
            file(tmp_path / f"p{p}" / f"{i}.dcm", i, z)
    _, lines = said(tmp_path)
    assert sum("2 slices seem to be missing" in line for line in lines) == 5
    assert lines[-1] == f"{tmp_path}: 4 more folders have such series"


def enhanced(path: Path, frames: list[dict], **more) -> Path:
    """A multi-frame file, whose frames hold their own number in the file, plus their tone and place."""
    groups = [
        {
            "PlanePositionSequence": [{"ImagePositionPatient": [0, 0, f["z"]]}],
            "PlaneOrientationSequence": [{"ImageOrientationPatient": f.get("plane", [*AXIAL])}],
            "FrameContentSequence": [{"TemporalPositionIndex": f.get("time", 1), "StackID": "1"}],
            "CTImageFrameTypeSequence": [{"FrameType": ["ORIGINAL", "PRIMARY", f.get("kind", "VOLUME")]}],
            "PixelValueTransformationSequence": [{"RescaleSlope": f.get("slope", 1), "RescaleIntercept": 0}],
            "FrameVOILUTSequence": [
                {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
            ],
        }
        for f in frames
    ]
    x = np.tile(np.arange(len(frames), dtype=np.uint16)[:, None, None], (1, 4, 4))
    return dicom_file(path, x, bits=12, PerFrameFunctionalGroupsSequence=groups, **more)


@pytest.mark.parametrize("syntax", [None, uid.RLELossless])
def test_frames_in_random_order_are_sorted_and_keep_their_own_tone(tmp_path, syntax):
    order = np.random.default_rng(3).permutation(12)
    frames = [{"z": float(z), "slope": 10 - 0.5 * z} for z in order]
    path = enhanced(tmp_path / "ct.dcm", frames, syntax=syntax)
    found = read(path, workers=1)
    stored = np.argsort(order)  # the frame at each height
    assert found.names == tuple(f"ct.dcm#{i}" for i in stored)
    assert set(found.volumes) == {"ct.dcm"}
    value = stored * (10 - 0.5 * np.arange(12))  # rescaled; the window is 0 to 100
    assert found.images[:, 0, 0, 0].tolist() == np.floor(np.clip(value / 100, 0, 1) * 255 + 0.5).tolist()


def test_frames_of_two_times_and_a_localizer_are_apart(tmp_path):
    frames = [{"z": float(z), "time": t} for z in (2, 0, 1) for t in (1, 2)]
    frames.insert(2, {"z": 0.0, "plane": [*CORONAL], "kind": "LOCALIZER"})
    names, lines = said(enhanced(tmp_path / "ct.dcm", frames))
    assert names == [
        ("ct.dcm#3", "ct.dcm"), ("ct.dcm#5", "ct.dcm"), ("ct.dcm#0", "ct.dcm"),
        ("ct.dcm#4", "ct.dcm#part2"), ("ct.dcm#6", "ct.dcm#part2"), ("ct.dcm#1", "ct.dcm#part2"),
    ]  # fmt: skip
    assert len(lines) == 2
    assert lines[1].endswith("is read as 2 of 3, 3 images, by TemporalPositionIdentifier")


def test_a_film_is_no_series_of_copies(tmp_path):
    """Its frames lie in one place, and stay as they are."""
    x = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    path = dicom_file(
        tmp_path / "us.dcm", x, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[*AXIAL]
    )
    names, lines = said(path)
    assert (names, lines) == ([(f"us.dcm#{i}", "us.dcm") for i in range(20)], [])
    times = [{"z": 1.0, "time": i + 1} for i in range(5)]
    assert [n for n, _ in said(enhanced(tmp_path / "cine.dcm", times))[0]] == [
        f"cine.dcm#{i}" for i in range(5)
    ]


def test_a_film_is_decoded_frame_by_frame(tmp_path):
    """145 frames of YBR_FULL_422: what is held beyond the file and the result is a few frames."""
    n, h, w = 145, 64, 64
    stored = np.random.default_rng(0).integers(0, 256, (n, h, w * 2), dtype=np.uint8)
    path = dicom_file(tmp_path / "us.dcm", stored)
    ds = pydicom.dcmread(path)
    ds.Columns, ds.SamplesPerPixel, ds.PlanarConfiguration = w, 3, 0
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.save_as(path)
    found = listing(path, size=8)
    next(found.stream(1, workers=1))  # imports
    tracemalloc.start()
    frames = sum(len(s) for s in found.stream(16, workers=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == n
    assert peak < 3 * path.stat().st_size  # all frames as RGB of 64 bits would be twelve times as much


# --- files that lack something ------------------------------------------------------------------------


def without(path: Path, *keywords: str) -> Path:
    ds = pydicom.dcmread(dicom_file(path, np.arange(16, dtype=np.uint16).reshape(4, 4), bits=12))
    for keyword in keywords:
        delattr(ds, keyword)
    ds.save_as(path)
    return path


def test_without_a_sign_values_are_unsigned_and_this_is_said(tmp_path):
    whole = read(without(tmp_path / "a.dcm"), window="8,16", workers=1)
    path = without(tmp_path / "b" / "b.dcm", "PixelRepresentation")
    _, lines = said(path.parent, window="8,16")
    assert lines == [f"{path.parent}: 1 DICOM file without PixelRepresentation: read as unsigned"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(read(path, window="8,16", workers=1).images, whole.images)


@pytest.mark.parametrize("keyword", [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"),
    "PixelData",
])  # fmt: skip
def test_a_refusal_names_what_is_missing(tmp_path, keyword):
    path = without(tmp_path / "a.dcm", keyword)
    with pytest.raises(DataError, match=f"its header lacks {keyword}"):
        read(path, window="8,16", workers=1)


def test_a_palette_without_colours_is_told(tmp_path):
    path = dicom_file(
        tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), PhotometricInterpretation="PALETTE COLOR"
    )
    with pytest.raises(DataError, match="its header lacks RedPaletteColorLookupTableDescriptor"):
        read(path, workers=1)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_jpeg_2000_keeps_its_sign(tmp_path, bits):
    top = 2 ** (bits - 1)
    x = np.random.default_rng(1).integers(-top, top, (64, 64)).astype(np.int16)
    plain = dicom_file(tmp_path / "a.dcm", x, bits=bits)
    packed = dicom_file(tmp_path / "b.dcm", x, bits=bits, syntax=uid.JPEG2000Lossless)
    for window in ("0,1000", "full"):
        a, b = (read(p, window=window, workers=1).images for p in (plain, packed))
        assert np.array_equal(a, b)
        assert len(np.unique(a)) > 50


def test_a_dicom_file_may_be_packed(tmp_path):
    for i in range(3):
        file(tmp_path / f"{i}.dcm", i, -i)
        (tmp_path / f"{i}.dcm.gz").write_bytes(gzip.compress((tmp_path / f"{i}.dcm").read_bytes()))
        (tmp_path / f"{i}.dcm").unlink()
    found = read(tmp_path, workers=1)
    assert found.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert found.names == ("2.dcm.gz", "1.dcm.gz", "0.dcm.gz")
    (tmp_path / "0.dcm.gz").write_bytes((tmp_path / "1.dcm.gz").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"0\.dcm\.gz: a damaged gzip file"):
        read(tmp_path, workers=1)
    (tmp_path / "0.dcm.gz").write_bytes(gzip.compress(b"\0" * 128 + b"DICM" + bytes(2**27), 1))
    with pytest.raises(DataError, match=r"unfold to \d+, above the limit of 128 MiB"):
        read(tmp_path, workers=1)


def test_a_view_refuses_channels_that_are_none():
    for channel in (-1, "x"):
        with pytest.raises(DataError, match="--channel must be a number from 0 on"):
            View.of(channel=channel)
