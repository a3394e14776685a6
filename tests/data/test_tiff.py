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
    return read(path, workers=1, **how).images[0]


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


def test_floats_need_a_window_and_integers_must_fit(tmp_path):
    x = np.linspace(-2, 2, 48).reshape(8, 6)
    for dtype in (np.float32, np.float64, np.float16):
        tifffile.imwrite(tmp_path / "a.tif", x.astype(dtype))
        with pytest.raises(DataError, match=r"a\.tif: float pixels; convert .*--window CENTER,WIDTH"):
            pixels(tmp_path / "a.tif")
        found = pixels(tmp_path / "a.tif", window="0,2")[..., 0]
        assert np.abs(found - np.clip((x + 1) / 2, 0, 1) * 255).max() <= 0.6
    for y, match in (
        (np.array([[0, 70000]], np.uint32), "0 to 70000"),
        (np.array([[-3, 5]], np.int16), "-3 to 5"),
    ):
        tifffile.imwrite(tmp_path / "b.tif", y)
        with pytest.raises(DataError, match=f"integer pixels of {match}; convert"):
            pixels(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", np.array([[0, 65535]], np.int64))
    assert pixels(tmp_path / "c.tif").ravel().tolist() == [0, 255]
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((4, 4, 4), np.uint16), photometric="separated")
    with pytest.raises(DataError, match="uint16 pixels of type SEPARATED; convert it to grey or RGB"):
        pixels(tmp_path / "d.tif")


def test_a_window_means_nothing_for_integers(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(GREY))
    tifffile.imwrite(tmp_path / "b.tif", COLOUR, photometric="rgb")
    for name in ("a.png", "b.tif"):
        assert np.array_equal(pixels(tmp_path / name), pixels(tmp_path / name, window="lung"))


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
    s = read(tmp_path / "a.tif", slices="1:", workers=1)
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
