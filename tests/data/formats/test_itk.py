"""MetaImage, NRRD, `.npy` and 4-D NIfTI: the same voxels are the same images, and headers may lie.

When this was written, MetaImage and NRRD files of SimpleITK, of all types and of random orientations, gave
the slices that its NIfTI files do.
"""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medical_files import meta_file, nifti_file, nrrd_file
from PIL import Image

pytest.importorskip("nibabel")

from dia.core.errors import DataError
from dia.data.formats import itk, npy
from dia.data.formats.windowing import View
from dia.data.readers import listing, read

RNG = np.random.default_rng(0)
X = RNG.integers(-900, 900, (4, 5, 6)).astype(np.int16)
WINDOW = "0,1800"


def pixels(path: Path, **how) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(path, workers=1, **{"window": WINDOW, **how}).images


def refusal(path: Path, **how) -> str:
    with pytest.raises(DataError) as error:
        pixels(path, **how)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ").partition("; repair it")[0]


# --- the same voxels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "0", "1", "2"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "f4", "f8"])
def test_a_volume_is_the_same_in_every_format(tmp_path, axis, dtype):
    x = X.astype(dtype)
    lps = np.diag([-1.0, -1, 1, 1])  # what MetaImage takes for granted
    wanted = pixels(nifti_file(tmp_path / "a.nii.gz", x, lps), axis=axis)
    for path in (
        meta_file(tmp_path / "a.mha", x), meta_file(tmp_path / "b.mha", x, packed=True),
        meta_file(tmp_path / "a.mhd", x), meta_file(tmp_path / "b.mhd", x, packed=True),
        nrrd_file(tmp_path / "a.nrrd", x), nrrd_file(tmp_path / "b.nrrd", x, encoding="gzip"),
        nrrd_file(tmp_path / "c.nhdr", x),
        nrrd_file(tmp_path / "ras.nrrd", x, space="RAS", **{"space directions": "(-1,0,0) (0,-1,0) (0,0,1)"}),
    ):  # fmt: skip
        assert np.array_equal(pixels(path, axis=axis), wanted), path
        names = listing(path, axis=axis).names
        assert names == tuple(f"{path.name}#{i}" for i in range(len(wanted)))


def test_a_packed_stream_and_the_order_of_bytes(tmp_path):
    wanted = pixels(meta_file(tmp_path / "a.mha", X))
    swapped = X.astype(">i2")
    path = nrrd_file(tmp_path / "b.nrrd", X, encoding="bzip2", endian="big")
    head = path.read_bytes().partition(b"\n\n")[0]
    path.write_bytes(head + b"\n\n" + bz2.compress(swapped.tobytes(order="F")))
    assert np.array_equal(pixels(path), wanted)
    path = meta_file(
        tmp_path / "c.mhd", X, ElementDataFile="c.bin", HeaderSize=-1, BinaryDataByteOrderMSB="True"
    )
    (tmp_path / "c.bin").write_bytes(b"a header of another program" + swapped.tobytes(order="F"))
    assert np.array_equal(pixels(path), wanted)


@given(
    order=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    axis=st.sampled_from(["axial", "coronal", "sagittal"]),
)  # fmt: skip
def test_however_it_is_stored_the_body_is_seen_from_the_same_side(tmp_path_factory, order, signs, axis):
    folder = tmp_path_factory.mktemp("turned")
    wanted = pixels(meta_file(folder / "a.mha", X), axis=axis)
    stored = X.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    rows = np.eye(3)[list(order)] * np.array(signs)[:, None]  # a row for each stored axis
    turn = " ".join(map(str, rows.ravel()))
    assert np.array_equal(
        pixels(meta_file(folder / "b.mha", stored, TransformMatrix=turn), axis=axis), wanted
    )
    vectors = " ".join(f"({a},{b},{c})" for a, b, c in rows)
    path = nrrd_file(folder / "b.nrrd", stored, **{"space directions": vectors})
    assert np.array_equal(pixels(path, axis=axis), wanted)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_one_image_is_the_same_in_every_format(tmp_path, dtype):
    """Eight bits are taken as they are; deeper ones by the window, or by the levels that a model keeps."""
    x = RNG.integers(0, 256, (7, 5)).astype(dtype)
    np.save(tmp_path / "a.npy", x)
    files = [
        nifti_file(tmp_path / "a.nii", x.T[::-1, ::-1]), meta_file(tmp_path / "a.mha", x.T),
        nrrd_file(tmp_path / "a.nrrd", x.T), tmp_path / "a.npy",
    ]  # fmt: skip
    how = {} if dtype == "u1" else {"levels": "0:255"}
    for path in files:
        assert np.array_equal(pixels(path, window=None, **how)[0, ..., 0], x), path
        assert listing(path).names == (f"{path.name}#0" if path.suffix == ".nii" else path.name,)


def test_npy_by_its_shape(tmp_path):
    grey = RNG.integers(0, 256, (6, 5, 4)).astype(np.uint8)
    colour = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    many = RNG.integers(0, 256, (2, 6, 5, 3)).astype(np.uint8)
    for name, x in (
        ("grey", grey),
        ("flat", grey[0]),
        ("colour", colour),
        ("many", many),
        ("one", many[..., :1]),
    ):
        np.save(tmp_path / f"{name}.npy", x)

    def seen(name: str, **how) -> np.ndarray:
        return pixels(tmp_path / f"{name}.npy", window="127.5,255", **how)

    assert np.array_equal(seen("grey"), grey[..., None])
    assert np.array_equal(seen("grey", axis="2"), np.moveaxis(grey, 2, 0)[..., None])
    assert np.array_equal(seen("flat"), grey[:1, ..., None])
    assert np.array_equal(seen("colour"), colour[None])
    assert np.array_equal(seen("many"), many)
    assert np.array_equal(seen("one"), many[..., :1])
    assert listing(tmp_path / "flat.npy").volumes == (None,)
    assert listing(tmp_path / "colour.npy").names == ("colour.npy",)
    assert listing(tmp_path / "many.npy").names == ("many.npy#0", "many.npy#1")
    np.save(tmp_path / "f.npy", np.asfortranarray(grey))
    assert np.array_equal(seen("f"), grey[..., None])
    assert (
        refusal(tmp_path / "grey.npy", axis="coronal")
        == "it does not tell its orientation; give --axis 0, 1 or 2"
    )


def test_npy_that_is_none(tmp_path):
    path = tmp_path / "a.npy"
    for x, line in (
        (
            np.array([[{"a": 1}]]),
            "pickled objects, which may run code when they are read; save it as numbers",
        ),
        (np.zeros((3, 3), complex), "an array of type c16; save it as integers or floats"),
        (np.zeros(3), "an array of 1 axes; images are (H, W), (N, H, W) or (N, H, W, 3)"),
        (
            np.zeros((2, 3, 3, 3)),
            "a float64 array of shape (2, 3, 3, 3); (N, H, W, 3) is read of uint8 alone",
        ),
        (np.zeros((0, 3)), "its header promises 0 images of 1x3 pixels"),
    ):
        np.save(path, x, allow_pickle=True)
        assert refusal(path).startswith(line.partition(" 0 images")[0])
    np.save(path, np.zeros((9, 9)))
    path.write_bytes(path.read_bytes()[:-8])
    assert refusal(path) == "its header promises 648 bytes of pixels, more than its 640 can hold"
    path.write_bytes(b"\x93NUMPY\1\0" + b"\xff\xff{'a'}")
    assert refusal(path).startswith("no .npy file, or damaged")


# --- several volumes in one file ----------------------------------------------------------------------


def several(folder: Path) -> dict[str, Path]:
    """Three volumes, as time and as components."""
    x = np.stack([X, X + 100, -X], -1)
    return {
        "nifti": nifti_file(folder / "a.nii.gz", x, np.diag([-1.0, -1, 1, 1])),
        "time": meta_file(folder / "a.mha", x, TransformMatrix=" ".join(map(str, np.eye(4).ravel()))),
        "components": meta_file(
            folder / "b.mha", np.moveaxis(x, -1, 0), NDims=3, DimSize="4 5 6", ElementNumberOfChannels=3
        ),
        "list": nrrd_file(
            folder / "a.nrrd", np.moveaxis(x, -1, 0), space="left-posterior-superior",
            kinds="list space space space", **{"space directions": "none (1,0,0) (0,1,0) (0,0,1)"},
        ),
        "last": nrrd_file(folder / "b.nrrd", x, kinds="domain domain domain time"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["nifti", "time", "components", "list", "last"])
def test_each_volume_of_a_file_is_one_and_channel_reads_one_alone(tmp_path, kind):
    path = several(tmp_path)[kind]
    alone = [pixels(meta_file(tmp_path / "one" / "x.mha", x)) for x in (X, X + 100, -X)]
    with pytest.warns(UserWarning, match="holds several volumes; each is read as a volume; --channel N"):
        found = listing(path, window=WINDOW)
    names = [f"{path.name}#channel{c}" for c in range(3)]
    assert found.names == tuple(f"{name}#{i}" for name in names for i in range(6))
    assert found.volumes == tuple(name for name in names for _ in range(6))
    assert np.array_equal(found.read(workers=1).images, np.concatenate(alone))
    for c in range(3):
        one = listing(path, window=WINDOW, channel=c, slices="1:-1")
        assert one.names == tuple(f"{names[c]}#{i}" for i in range(1, 5))
        assert np.array_equal(one.read(workers=1).images, alone[c][1:-1])
    assert refusal(path, channel=3) == "--channel 3: it has 3 volumes, which are counted from 0"


def test_a_file_of_one_volume_has_channel_0_alone(tmp_path):
    path = nifti_file(tmp_path / "a.nii", X)
    assert np.array_equal(pixels(path, channel=0), pixels(path))
    assert refusal(path, channel=1) == "--channel 1: it has one volume, which are counted from 0"


def test_one_mask_serves_all_volumes_of_a_file(tmp_path):
    lesion = np.zeros(X.shape, np.uint8)
    lesion[1, 2, 3] = 1
    meta_file(tmp_path / "fine" / "a.mha", X)
    meta_file(tmp_path / "bad" / "b.mha", np.stack([X, -X], -1))
    meta_file(tmp_path / "ground_truth" / "bad" / "b_mask.mha", lesion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s = read(tmp_path, normal="fine", workers=1)
    assert {s.names[i] for i in np.flatnonzero(s.masks.any((1, 2)))} == {
        "bad/b.mha#channel0#3", "bad/b.mha#channel1#3",
    }  # fmt: skip
    assert s.masks.sum() == 2


# --- slopes of NIfTI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_slope_of_none_leaves_values_as_they_are(tmp_path, slope):
    plain = pixels(nifti_file(tmp_path / "a.nii", X))
    assert np.array_equal(pixels(nifti_file(tmp_path / "b.nii", X, slope=slope, inter=5.0)), plain)


def test_a_negative_slope_turns_the_values_round(tmp_path):
    found = pixels(nifti_file(tmp_path / "a.nii", X, slope=-1.0))
    assert np.array_equal(found, pixels(nifti_file(tmp_path / "b.nii", -X)))


def test_a_tiny_slope_keeps_its_levels_or_is_refused(tmp_path):
    x = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    plain = pixels(nifti_file(tmp_path / "a.nii", x), window=None)
    assert np.array_equal(pixels(nifti_file(tmp_path / "b.nii", x, slope=1e-12), window=None), plain)
    line = refusal(nifti_file(tmp_path / "c.nii", x, slope=1e-12, inter=1000.0), window=None)
    assert (
        line
        == "its slope of 1e-12 beside 1e+03 leaves no grey levels; save it with its values multiplied out"
    )


# --- headers that lie ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "line"), [
    ({"DimSize": "1048575 1024 1024"}, "its header promises 1099510579200 voxels, above the limit"),
    ({"DimSize": "40 50 60"}, "its header promises 240000 bytes of pixels, more than its 240 can hold"),
    ({"DimSize": "4 5"}, "its header does not say as many sides as it has axes"),
    ({"DimSize": "-4 5 6"}, "its header does not say as many sides as it has axes"),
    ({"DimSize": "4 5 0"}, "its header promises 0 images of 4x5 pixels"),
    ({"DimSize": "4 5 5"}, "its header promises 200 bytes of voxels, and there are more"),
    ({"NDims": 99999}, "a MetaImage file that is no image of two to four axes"),
    ({"NDims": None}, "its header lacks NDims"),
    ({"ElementType": "MET_STRING"}, "voxels of a type that is not read; save it as integers or floats"),
    ({"ElementNumberOfChannels": 10**6}, "its header promises 240000000 bytes of pixels, more than its 240"),
    ({"BinaryData": "False"}, "its voxels are written as text; save it in binary form"),
    ({"CompressedData": "True"}, "its voxels cannot be read (error)"),
    ({"TransformMatrix": "nan " * 9}, "a field of its header does not fit its number of axes"),
    ({"TransformMatrix": "0 " * 9}, "it does not tell its orientation; give --axis 0, 1 or 2"),
    ({"TransformMatrix": "1 2"}, "a field of its header does not fit its number of axes"),
    ({"ObjectType": "Tube"}, "a MetaImage file that is no image of two to four axes"),
    ({"DimSize ": "4 5 6"}, "a field of its header stands there twice"),
])  # fmt: skip
def test_meta_headers_are_not_believed(tmp_path, fields, line):
    path = meta_file(tmp_path / "a.mha", X, **fields)
    assert (
        refusal(path).replace("0 images of 5x4", "0 images of 4x5").startswith(line.replace("4x5 pixels", ""))
    )


@pytest.mark.parametrize(("fields", "line"), [
    ({"sizes": "1048575 1024 1024"}, "its header promises 1099510579200 voxels, above the limit"),
    ({"sizes": "4 5"}, "its header does not say as many sides as it has axes"),
    ({"dimension": 16}, "an NRRD file that is no array of two to five axes"),
    ({"type": "block"}, "voxels of a type that is not read; save it as integers or floats"),
    ({"encoding": "ascii"}, "its voxels are written as text; save it in the encoding raw or gzip"),
    ({"endian": None}, "its header lacks endian"),
    ({"space directions": "(1,0,0) (0,1,0)"}, "a field of its header does not fit its number of axes"),
    ({"byte skip": 10}, "its header promises 240 bytes of pixels, more than its 230 can hold"),
    ({"byte skip": -9}, "its header skips fewer than no bytes"),
    ({"line skip": 1}, "its header skips lines of the file with its voxels; save it anew"),
    ({"datafile": "a.raw", "data file": "b.raw"}, "a field of its header stands there twice"),
    ({"kinds": "list list list", "space directions": None}, "its header does not tell two or three axes in"),
])  # fmt: skip
def test_nrrd_headers_are_not_believed(tmp_path, fields, line):
    assert refusal(nrrd_file(tmp_path / "a.nrrd", X, **fields)).startswith(line)


@pytest.mark.parametrize("name", [
    *("/etc/passwd", "../secret.raw", "sub/secret.raw", "..", "LIST", "slice%03d.raw 1 9 1"),
    *("..\\secret.raw", "absent.raw"),
])  # fmt: skip
def test_a_header_reads_no_file_but_one_beside_it(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(X.tobytes())
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "secret.raw").write_bytes(X.tobytes())
    for path in (
        meta_file(tmp_path / "in" / "a.mhd", X, ElementDataFile=name),
        nrrd_file(tmp_path / "in" / "a.nhdr", X, **{"data file": name}),
    ):
        line = refusal(path)
        assert "secret" not in line
        assert "passwd" not in line
        assert "beside it" in line or "names no file with its voxels" in line


def test_bombs_are_refused_before_they_unfold(tmp_path):
    bomb = zlib.compress(bytes(2**26), 9)
    small = np.zeros((1, 1, 1), np.uint8)
    path = meta_file(
        tmp_path / "a.mha", small, DimSize="1024 1024 1024", CompressedData="True", ElementType="MET_DOUBLE"
    )
    path.write_bytes(path.read_bytes()[:-1] + bomb)
    assert "voxels, above the limit" in refusal(path)
    path = meta_file(tmp_path / "b.mha", small, DimSize="4 5 6", CompressedData="True")
    path.write_bytes(path.read_bytes()[:-1] + bomb)  # 64 MiB where 120 bytes are promised
    assert refusal(path) == "its header promises 120 bytes of voxels, and there are more"
    path = nrrd_file(tmp_path / "c.nrrd", small, sizes="1024 1024 512", encoding="bzip2", type="double")
    path.write_bytes(path.read_bytes()[:-1] + bz2.compress(b"\0" * 2**20))
    assert "unfold to 4294967296, above the limit of 1024 MiB" in refusal(path)
    path = nrrd_file(tmp_path / "d.nrrd", X, encoding="gzip")
    path.write_bytes(path.read_bytes()[:-30])
    assert refusal(path) == "its header promises 240 bytes of voxels, and there are fewer"


@given(cut=st.integers(0, 400), at=st.integers(0, 399), byte=st.integers(0, 255))
def test_damaged_files_are_one_line_or_images(tmp_path_factory, cut, at, byte):
    folder, lines = tmp_path_factory.mktemp("damaged"), list[str]()
    np.save(folder / "a.npy", X)
    for path in (
        meta_file(folder / "a.mha", X, packed=True), nrrd_file(folder / "a.nrrd", X, encoding="gzip"),
        folder / "a.npy",
    ):  # fmt: skip
        data = bytearray(path.read_bytes())
        data[at % len(data)] = byte
        path.write_bytes(data[:-cut] if cut else data)
        try:
            view = View.of(window=WINDOW)
            (npy if path.suffix == ".npy" else itk).count(path, view)
            (npy.Npy if path.suffix == ".npy" else itk.Itk)(path, view)
        except DataError as error:
            lines.append(str(error))
    assert all("\n" not in line for line in lines)


# --- Pillow's other names -----------------------------------------------------------------------------


def test_jfif_and_avif_are_read(tmp_path):
    x = np.kron(RNG.integers(0, 256, (4, 4)), np.ones((16, 16))).astype(np.uint8)
    for name, kind in (("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.avif", "AVIF")):
        Image.fromarray(x).save(tmp_path / name, kind, quality=95)
        found = read(tmp_path / name, channels=1, workers=1).images[0, ..., 0]
        assert np.abs(found.astype(int) - x).mean() < 6


def test_a_volume_packed_by_gzip_as_a_whole_is_named(tmp_path):
    (tmp_path / "a.mha.gz").write_bytes(gzip.compress(meta_file(tmp_path / "a.mha", X).read_bytes()))
    with pytest.warns(UserWarning, match=r"left out: 1 \.mha\.gz \(such as a\.mha\.gz\)"):
        assert len(listing(tmp_path)) == 6


@pytest.mark.parametrize("kind", ["Nifti1", "Nifti2"])
@pytest.mark.parametrize(
    ("before", "size", "match"),
    [
        (2**26, 2**26 - 1000, "places the voxels at byte 67108864, above the limit of 16 MiB"),
        (1024, 2**26, "a header extension of 67108864 bytes, where"),
        (1024, 0, "a header extension of 0 bytes, where"),
        (0, 2**26, "leaves no room for its extensions"),
    ],
)
def test_a_header_extension_is_not_read_at_the_size_that_it_claims(tmp_path, kind, before, size, match):
    import nibabel

    header = getattr(nibabel, f"{kind}Image")(X, np.eye(4)).header
    header["vox_offset"], header["magic"] = before, b"n+1" if kind == "Nifti1" else b"n+2\r\n\x1a\n"
    head = header.binaryblock + b"\1\0\0\0" + np.array([size, 6], "<i4").tobytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(head + bytes(2**26), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match) as error:
            listing(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "a.nii.gz" in str(error.value)
    assert "\n" not in str(error.value)


def test_header_extensions_of_either_byte_order_are_passed_over(tmp_path):
    import nibabel

    for order in "<>":
        image = nibabel.Nifti1Image(X, np.eye(4), nibabel.Nifti1Header(endianness=order))
        image.header.extensions += [nibabel.nifti1.Nifti1Extension("comment", b"a" * n) for n in (5, 3000)]
        nibabel.save(image, tmp_path / "a.nii")
        assert len(nibabel.load(tmp_path / "a.nii").header.extensions) == 2
        assert np.array_equal(read(tmp_path / "a.nii").images, read(nifti_file(tmp_path / "b.nii", X)).images)
