"""Deep TIFF and PNG: 16-bit colour, floats, many compressions, pages; with the extra and without it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

from dia.core.errors import DataError  # noqa: E402
from dia.data.readers import listing, read  # noqa: E402

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (8, 6), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (8, 6, 3), dtype=np.uint16)


def pixels(path: Path, **how) -> np.ndarray:
    return read(path, workers=1, **{"levels": "full"} | how).images[0]


def by_257(x: np.ndarray) -> np.ndarray:
    return np.floor(x / 257 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg2000", "zstd", "packbits", "lzma"])
def test_deep_tiff_of_every_compression_is_divided_by_257(tmp_path, compression):
    path = tmp_path / "a.tif"
    for name, x, how in (
        ("grey", GREY, {"photometric": "minisblack"}),
        ("colour", COLOUR, {"photometric": "rgb"}),
        ("planes", np.moveaxis(COLOUR, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        ("large file", COLOUR, {"photometric": "rgb", "bigtiff": True}),
        ("big end", COLOUR, {"photometric": "rgb", "byteorder": ">"}),
    ):
        if (compression, name) == ("jpeg2000", "big end"):
            continue  # tifffile writes its bytes in the other order
        tifffile.imwrite(path, x, compression=compression, **how)
        assert np.array_equal(pixels(path), by_257(GREY[..., None] if x is GREY else COLOUR)), name


def test_white_may_be_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], by_257(65535 - GREY))


def test_eight_bits_that_pillow_cannot_read(tmp_path):
    x = RNG.integers(0, 256, (32, 24, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="rgb", compression="jpeg2000")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "a.tif")
    assert np.array_equal(pixels(tmp_path / "a.tif"), x)


def test_deep_png_is_divided_by_257(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(COLOUR))
    assert np.array_equal(pixels(path), by_257(COLOUR))
    path.write_bytes(imagecodecs.png_encode(GREY))
    assert np.array_equal(pixels(path)[..., 0], by_257(GREY))


def test_transparency_is_composited_over_black_in_its_depth(tmp_path):
    rgba = np.concatenate([COLOUR, RNG.integers(0, 65536, (8, 6, 1), dtype=np.uint16)], -1)
    wanted = rgba[..., :3].astype(float) * rgba[..., 3:] / 65535 / 257
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(rgba))
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        assert np.abs(pixels(tmp_path / name) - wanted).max() <= 0.51
    for kind in ("assocalpha", "unspecified"):  # multiplied already; no alpha at all
        tifffile.imwrite(tmp_path / "b.tif", rgba, photometric="rgb", extrasamples=[kind])
        assert np.array_equal(pixels(tmp_path / "b.tif"), by_257(COLOUR))
    la = np.stack([GREY, np.full_like(GREY, 32768)], -1)
    (tmp_path / "la.png").write_bytes(imagecodecs.png_encode(la))
    assert pixels(tmp_path / "la.png").shape == (8, 6, 1)
    assert np.abs(pixels(tmp_path / "la.png")[..., 0] - GREY / 257 * 32768 / 65535).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiff_is_turned_as_shallow_is(tmp_path, orientation):
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", COLOUR, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "shallow.tif", by_257(COLOUR), photometric="rgb", extratags=tag)
    assert np.array_equal(pixels(tmp_path / "deep.tif"), pixels(tmp_path / "shallow.tif"))


def test_floats_and_long_integers_need_a_window_or_levels(tmp_path):
    x = np.linspace(-2, 2, 48).reshape(8, 6)
    for dtype in (np.float32, np.float64, np.float16):
        tifffile.imwrite(tmp_path / "a.tif", x.astype(dtype))
        with pytest.raises(DataError, match=r"a\.tif: values without a full range.*--window LOW:HIGH"):
            pixels(tmp_path / "a.tif")
        found = pixels(tmp_path / "a.tif", window="0,2")[..., 0]
        assert np.abs(found - np.clip((x + 1) / 2, 0, 1) * 255).max() <= 0.6
    tifffile.imwrite(tmp_path / "b.tif", np.array([[0, 70000]], np.uint32))
    with pytest.raises(DataError, match="values without a full range"):
        pixels(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.array([[-32768, 32767]], np.int16))
    assert pixels(tmp_path / "b.tif").ravel().tolist() == [0, 255]
    tifffile.imwrite(tmp_path / "c.tif", np.array([[0, 65535]], np.int64))
    assert pixels(tmp_path / "c.tif").ravel().tolist() == [0, 255]
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((4, 4, 4), np.uint16), photometric="separated")
    with pytest.raises(DataError, match="uint16 pixels of type SEPARATED; convert it to grey or RGB"):
        pixels(tmp_path / "d.tif")


def test_a_window_holds_for_integers_of_16_bits_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(GREY))
    tifffile.imwrite(tmp_path / "b.tif", COLOUR, photometric="rgb")
    for name, x in (("a.png", GREY[..., None]), ("b.tif", COLOUR)):
        wanted = np.floor(np.clip((x - 10000.0) / 30000, 0, 1) * 255 + 0.5)
        assert np.array_equal(pixels(tmp_path / name, window="10000:40000"), wanted)
        assert np.array_equal(pixels(tmp_path / name, window="25000,30000"), wanted)
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "c.png")
    tifffile.imwrite(tmp_path / "d.tif", GREY.astype(np.uint8))
    for name in ("c.png", "d.tif"):
        assert np.array_equal(pixels(tmp_path / name, window="lung")[..., 0], GREY.astype(np.uint8))


# --- pages --------------------------------------------------------------------------------------------


@pytest.fixture(params=["with the extra", "without it"])
def extra(request, monkeypatch) -> bool:
    if request.param == "without it":
        for name in ("tifffile", "imagecodecs"):
            monkeypatch.setitem(sys.modules, name, None)
    return request.param == "with the extra"


def test_pages_of_one_size_are_a_volume(tmp_path, extra):
    frames = [Image.fromarray(x) for x in RNG.integers(0, 256, (3, 8, 6), dtype=np.uint8)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tif")
    small = frames[1].resize((3, 4))
    frames[0].save(tmp_path / "c.tif", save_all=True, append_images=[small, frames[2]])
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    found = listing(tmp_path)
    assert found.names == ("a.tif#0", "a.tif#1", "a.tif#2", "b.tif", "c.tif#0", "c.tif#2", "d.gif")
    assert found.volumes == ("a.tif",) * 3 + (None,) + ("c.tif",) * 2 + (None,)
    images = found.read(workers=1).with_channels(1).images
    for i, frame in enumerate((0, 1, 2, 0, 0, 2)):
        assert np.array_equal(images[i, ..., 0], np.asarray(frames[frame]))


def test_deep_pages(tmp_path, extra):
    stack = RNG.integers(0, 65536, (4, 8, 6), dtype=np.uint16)
    frames = [Image.fromarray(x) for x in stack]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    s = read(tmp_path / "a.tif", slices="1:", workers=1, window="full")
    assert s.names == ("a.tif#1", "a.tif#2", "a.tif#3")
    assert np.array_equal(s.images[..., 0], by_257(stack[1:]))


def test_without_the_extra_pillow_reads_what_it_can(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", COLOUR, photometric="rgb", compression="zlib")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(COLOUR))
    tifffile.imwrite(tmp_path / "b.tif", COLOUR, photometric="rgb", compression="jpeg2000")
    for name in ("tifffile", "imagecodecs"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("a.tif", "a.png"):
        assert np.array_equal(pixels(tmp_path / name), COLOUR >> 8)  # its high byte
    with pytest.raises(
        DataError, match=r"b\.tif: Pillow cannot read it; .*pip install 'dia-anomaly\[medical\]'"
    ):
        pixels(tmp_path / "b.tif")


def test_damaged_and_absurd_files_are_one_line(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint16), photometric="minisblack")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(COLOUR)[:80])
    for name, size in itertools.product(["a.tif", "b.png"], [0, 4, 60, 300]):
        path = tmp_path / name
        path.write_bytes((whole if name == "a.tif" else path.read_bytes())[:size])
        with pytest.raises(DataError, match=f"{name}.*: ") as error:
            pixels(path)
        assert "\n" not in str(error.value)
        (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(COLOUR)[:80])
    (tmp_path / "a.tif").write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(DataError, match="promises 40x40 pixels, above the limit of 1400"):
        pixels(tmp_path / "a.tif")
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(np.zeros((40, 40, 3), np.uint16)))
    with pytest.raises(DataError, match="exceeds limit"):
        pixels(tmp_path / "b.png")


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("compression", [None, "jpeg"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_of_an_image_too_large_a_reduced_level_is_read(tmp_path, monkeypatch, dtype, compression, below):
    """As of a whole slide; neither its label nor a level that is too large still."""
    if compression and dtype == "u2":
        return
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96)  # of which images may have twice as many
    x = np.kron(RNG.integers(0, 256, (8, 12, 3)), np.ones((32, 32, 1))).astype(dtype)  # 256x384
    how = {"photometric": "rgb", "tile": (32, 32), "compression": compression}
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(x, subifds=3 if below else None, **how)
        for step in (2, 4, 8):
            tiff.write(x[::step, ::step], subfiletype=1, **how)
        tiff.write(np.zeros((60, 30, 3), dtype), photometric="rgb", subfiletype=1)  # a label
    with pytest.warns(
        UserWarning, match=r"slide\.tif is too large to be read whole: a reduced level is read"
    ):
        found = read(path, workers=1, window="0:255").images
    wanted = x[::4, ::4]
    assert found.shape == (1, 64, 96, 3)
    assert np.abs(found[0].astype(int) - wanted).mean() < (12 if compression else 0.01)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_an_image_too_large_without_levels_says_what_to_do(tmp_path, monkeypatch, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((200, 100), dtype), tile=(32, 32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    line = "promises 200x100 pixels, above the limit of 10000, and no reduced level; cut it into tiles"
    with pytest.raises(DataError, match=line):
        read(tmp_path / "a.tif", workers=1)
