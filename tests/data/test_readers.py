"""Readers: every layout, every rule for pixels, every bad input."""

from __future__ import annotations

import csv
import doctest
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dia.core.errors import DataError
from dia.core.running import progress
from dia.data import decode, readers
from dia.data.formats.windowing import Window
from dia.data.layouts import image_files, refuse_mixed
from dia.data.options import ReadOptions
from dia.data.readers import MissingSplit, listing, read

RNG = np.random.default_rng(0)


def grey(h=8, w=6, low=0, high=256):
    return RNG.integers(low, high, (h, w), dtype=np.uint8)


def rgb(h=8, w=6):
    return RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(path: Path, pixels=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (
        pixels if isinstance(pixels, Image.Image) else Image.fromarray(grey() if pixels is None else pixels)
    )
    image.save(path, **options)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def fails(match: str, path, error=DataError, **kwargs) -> None:
    with pytest.raises(error, match=match) as e:
        read(path, **kwargs)
    one_line(e)


# --- pixels -------------------------------------------------------------------------------------------


def pixels_of(path: Path, **kwargs) -> np.ndarray:
    return read(path, **kwargs).images[0]


def test_grey_and_rgb_are_read_as_they_are(tmp_path):
    g, c = grey(), rgb()
    assert np.array_equal(pixels_of(save(tmp_path / "g.png", g)), g[..., None])
    assert np.array_equal(pixels_of(save(tmp_path / "c.png", c)), c)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "pgm"])
def test_lossless_grey_formats(tmp_path, suffix):
    g = grey()
    assert np.array_equal(pixels_of(save(tmp_path / f"g.{suffix}", g)), g[..., None])


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "ppm", "gif"])
def test_other_formats_open(tmp_path, suffix):
    assert pixels_of(save(tmp_path / f"c.{suffix}", rgb(16, 12))).shape == (16, 12, 3)


def test_sixteen_bits_are_divided_by_257_and_rounded(tmp_path):
    x = np.array([[0, 128, 129, 257], [385, 386, 32768, 65535]], np.uint16)
    by_hand = np.array([[0, 0, 1, 1], [1, 2, 128, 255]])  # 128/257 = .498, 129/257 = .502, 386/257 = 1.502
    for name in ("a.png", "a.tif", "a.pgm"):
        assert np.array_equal(pixels_of(save(tmp_path / name, x))[..., 0], by_hand), name


@pytest.mark.filterwarnings("ignore:.*all its images lie between grey")
def test_all_that_a_type_allows_does_not_depend_on_content(tmp_path):
    x = np.full((2, 2), 4095, np.uint16)  # 12-bit white stays as dark as it is stored
    assert (pixels_of(save(tmp_path / "a.tif", x), window="full") == 16).all()


def test_integers_of_32_bits(tmp_path):
    x = np.array([[0, 65535]], np.int32)
    assert pixels_of(save(tmp_path / "a.tif", x), levels="full").ravel().tolist() == [0, 255]
    for low, high in ((0, 65536), (-1, 5)):
        file = save(tmp_path / "b.tif", np.array([[low, high]], np.int32))
        fails(r"b\.tif: values without a full range", file, window="full")
        assert pixels_of(file, window=f"{low}:{high}").ravel().tolist() == [0, 255]


def test_floats_without_levels_are_refused(tmp_path):
    file = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    fails(r"a\.tif: values without a full range, as floats are", file, levels="full")


def test_transparency_is_composited_over_black(tmp_path):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    by_hand = [[[200, 100, 50], [100, 50, 25], [0, 0, 0]]]  # 200·128/255 = 100.39, 50.2, 25.1
    assert pixels_of(save(tmp_path / "a.png", rgba)).tolist() == by_hand
    la = np.array([[[200, 128], [7, 0]]], np.uint8)
    assert pixels_of(save(tmp_path / "la.png", Image.fromarray(la, "LA"))).tolist() == [[[100], [0]]]


def test_one_colour_may_be_transparent(tmp_path):
    x = np.array([[9, 200]], np.uint8)
    assert pixels_of(save(tmp_path / "a.png", x, transparency=200)).tolist() == [[[9], [0]]]


def test_palettes_become_rgb(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 70, 70])
    by_hand = [[[10, 20, 30], [40, 50, 60], [70, 70, 70]]]
    assert pixels_of(save(tmp_path / "p.png", image)).tolist() == by_hand
    assert pixels_of(save(tmp_path / "t.png", image, transparency=1)).tolist()[0][1] == [0, 0, 0]


def test_one_bit_is_black_and_white(tmp_path):
    x = np.array([[True, False]])
    assert pixels_of(save(tmp_path / "a.png", x)).ravel().tolist() == [255, 0]


def test_exif_orientation_is_applied(tmp_path):
    x = grey(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(pixels_of(save(tmp_path / "a.png", x, exif=exif))[..., 0], np.rot90(x, -1))


def test_only_the_first_frame_is_read(tmp_path):
    a, b = grey(), grey()
    path = save(tmp_path / "a.tif", a, save_all=True, append_images=[Image.fromarray(b)])
    assert np.array_equal(pixels_of(path)[..., 0], a)


def test_grey_files_in_a_colour_set_are_repeated(tmp_path):
    g, c = grey(), rgb()
    for order in (("a", "b"), ("b", "a")):
        save(tmp_path / order[0] / f"{order[0]}.png", g)
        save(tmp_path / order[0] / f"{order[1]}.png", c)
        s = read(tmp_path / order[0])
        assert s.shape == (8, 6, 3)
        by_name = dict(zip(s.names, s.images, strict=True))
        assert np.array_equal(by_name[f"{order[0]}.png"], np.repeat(g[..., None], 3, -1))
        assert np.array_equal(by_name[f"{order[1]}.png"], c)


def test_channels_on_request(tmp_path):
    g = grey()
    path = save(tmp_path / "a.png", np.repeat(g[..., None], 3, -1))
    assert pixels_of(path).shape[-1] == 3  # equal channels are colour all the same
    assert np.array_equal(pixels_of(path, channels=1), g[..., None])
    assert pixels_of(save(tmp_path / "b.png", g), channels=3).shape[-1] == 3
    fails("channels must be 1 or 3", path, channels=2)


def test_sizes_on_request(tmp_path):
    path = save(tmp_path / "a.png", grey(40, 20))
    assert pixels_of(path, size=10).shape == (10, 10, 1)
    assert pixels_of(path, size=(10, 50)).shape == (10, 50, 1)
    assert pixels_of(path, max_size=10).shape == (10, 5, 1)
    assert pixels_of(path, max_size=100).shape == (40, 20, 1)  # never enlarged
    fails("at least 1 pixel", path, size=0)
    fails("at least 1 pixel", path, max_size=0)


def test_mixed_sizes(tmp_path):
    save(tmp_path / "a.png", grey(8, 6))
    save(tmp_path / "b.png", grey(9, 6))
    for extra in ({}, {"skip_bad": True}, {"max_size": 8}):
        fails(r"a\.png is 8x6, .*b\.png \dx\d; .*--size N", tmp_path, **extra)
    save(tmp_path / "b.png", grey(16, 12))
    assert read(tmp_path, max_size=8).images.shape == (2, 8, 6, 1)
    assert read(tmp_path, size=5).images.shape == (2, 5, 5, 1)


@hypothesis_settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_png_round_trip(x):
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "x.png"), x[..., 0] if x.shape[-1] == 1 else x)
        assert np.array_equal(pixels_of(path), x)


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.booleans(), arrays(np.uint8, (3, 4))), min_size=1, max_size=6))
def test_a_manifest_reads_as_its_folder(items):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = []
        for i, (bad, x) in enumerate([(False, np.zeros((3, 4), np.uint8)), *items]):
            path = save(root / ("bad" if bad else "fine") / f"{i}.png", x)
            rows.append((path.relative_to(root).as_posix(), int(bad)))
        with open(root / "all.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *sorted(rows)])
        a, b = read(root / "all.csv"), read(root, normal="fine")
        order = np.argsort(a.names), np.argsort(b.names)
        assert a.subset(order[0]).sha256() == b.subset(order[1]).sha256()
        assert sorted(a.names) == sorted(b.names)


# --- damage -------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    fails("no such file or folder", tmp_path / "absent")
    fails("no images in this folder", tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".git" / "x.png")
    save(tmp_path / "__MACOSX" / "x.png")
    fails("no images in this folder", tmp_path)
    fails("expected a folder, .npz, .csv, .tsv, .xlsx or image", tmp_path / "notes.txt")
    fails("split must be", tmp_path, split="dev")


def damage(folder: Path) -> None:
    save(folder / "a.png")
    (folder / "b.png").write_text("not an image")
    (folder / "c.png").write_bytes(save(folder / "d.png", grey()).read_bytes()[:60])
    (folder / "e.jpg").write_bytes(b"")


@pytest.mark.parametrize("name", ["b.png", "c.png", "e.jpg"])
def test_unreadable_files_are_named(tmp_path, name):
    damage(tmp_path)
    fails(rf"{name}: no image, or damaged .*--skip-bad", tmp_path / name)
    fails("none of 1 images could be read", tmp_path / name, skip_bad=True)


def test_unreadable_files_can_be_left_out(tmp_path):
    damage(tmp_path)
    fails(r"b\.png", tmp_path)
    s = read(tmp_path, skip_bad=True)
    assert list(s.names) == ["a.png", "d.png"]
    assert [line.split(":")[0].rsplit("/")[-1] for line in s.skipped] == ["b.png", "c.png", "e.jpg"]


def test_images_too_large_to_be_true(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", grey(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    fails("exceeds limit", path)


# --- folders ------------------------------------------------------------------------------------------


def test_natural_order():
    with tempfile.TemporaryDirectory() as folder:
        for name in ("img10.png", "img2.png", "b/1.png", "B.JPG", "a1b.png", "a01b.png"):
            save(Path(folder, name))
        names = [f.path.relative_to(folder).as_posix() for f in image_files(folder)]
        assert names == ["B.JPG", "a01b.png", "a1b.png", "b/1.png", "img2.png", "img10.png"]


def test_linked_folders_are_followed_once(tmp_path):
    save(tmp_path / "far" / "1.png")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "loop").symlink_to(tmp_path / "near")
    assert [f.path.name for f in image_files(tmp_path / "near")] == ["1.png"]


def test_plain_folder_and_single_image(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "deep" / "er" / "2.png")
    for split in (None, "all", "train", "test", "val"):
        s = read(tmp_path, split=split)
        assert list(s.names) == ["1.png", "deep/er/2.png"]
        assert s.labels is None
        assert s.masks is None
    assert list(read(tmp_path / "1.png", split="test").names) == ["1.png"]


def mvtec(root: Path, masks: bool = True) -> np.ndarray:
    for i in range(3):
        save(root / "train" / "good" / f"{i}.png")
    save(root / "test" / "good" / "0.png")
    save(root / "test" / "crack" / "0.png")
    save(root / "test" / "hole" / "0.png")
    mask = np.zeros((8, 6), np.uint8)
    mask[2:4, 1:3] = 255
    if masks:
        save(root / "ground_truth" / "crack" / "0_mask.png", mask)
        save(root / "ground_truth" / "hole" / "0.png", (mask.T.copy().T // 255).astype(np.uint8))
    return mask > 0


def test_mvtec(tmp_path):
    mask = mvtec(tmp_path)
    train, test = read(tmp_path, split="train"), read(tmp_path, split="test")
    assert train.labels.tolist() == [0, 0, 0]
    assert train.masks is None
    assert list(test.names) == ["test/crack/0.png", "test/good/0.png", "test/hole/0.png"]
    assert test.labels.tolist() == [1, 0, 1]
    assert np.array_equal(test.masks, np.stack([mask, np.zeros_like(mask), mask]))
    assert len(read(tmp_path)) == 6
    fails("no split 'val'; there are: test, train", tmp_path, MissingSplit, split="val")
    small = read(tmp_path, split="test", size=(4, 3))
    assert small.masks.shape == (3, 4, 3)
    assert small.masks[0].sum() == 1


def test_mvtec_masks_must_fit(tmp_path):
    mvtec(tmp_path)
    save(tmp_path / "ground_truth" / "crack" / "0_mask.png", np.zeros((3, 3), np.uint8))
    fails(r"0_mask\.png is 3x3, its image 8x6", tmp_path, split="test")
    (tmp_path / "ground_truth" / "crack" / "0_mask.png").unlink()
    fails(r"crack/0\.png: no mask", tmp_path, split="test")
    (tmp_path / "ground_truth" / "hole" / "0.png").rename(tmp_path / "ground_truth" / "hole" / "7.png")
    fails("no mask fits an image", tmp_path)


def test_mask_files_of_any_depth_and_mode(tmp_path):
    save(tmp_path / "ok" / "1.png")
    expected = np.zeros((8, 6), bool)
    expected[1, 2] = True
    palette = Image.fromarray(expected.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    kinds = {
        "l": expected.astype(np.uint8),
        "deep": expected.astype(np.uint16),
        "one": expected,
        "p": palette,
    }
    for name, mask in kinds.items():
        save(tmp_path / "bad" / f"{name}.png")
        save(tmp_path / "ground_truth" / "bad" / f"{name}_mask.png", mask)
    s = read(tmp_path, normal="ok")
    assert all(np.array_equal(s.masks[i], expected) for i in range(len(s)) if s.labels[i])


def test_normal_only_train_folder(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "test" / "good" / "1.png")
    save(tmp_path / "test" / "bad" / "1.png")
    assert read(tmp_path, split="train").labels.tolist() == [0]
    save(tmp_path / "test" / "2.png")
    fails("not in a class folder", tmp_path)


def test_train_and_test_without_classes(tmp_path):
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "Valid" / "x" / "1.png")
    assert read(tmp_path, split="val").labels is None
    save(tmp_path / "stray.png")
    fails(r"stray\.png: outside train/ and test/", tmp_path)


def test_categories_one_level_down(tmp_path):
    mvtec(tmp_path / "bottle", masks=False)
    fails("one level down; read .*bottle instead", tmp_path)


def test_classes_with_given_normals(tmp_path):
    for split in ("train", "test"):
        for name in ("NORMAL", "CNV", "DME"):
            save(tmp_path / split / name / "1.jpeg", rgb())
    assert read(tmp_path, split="test", normal="NORMAL").labels.tolist() == [1, 1, 0]
    assert read(tmp_path, split="train", normal="NORMAL, DME").labels.tolist() == [1, 0, 0]
    two = read(tmp_path, split="test", normal="NORMAL", anomalous="CNV")
    assert list(two.names) == ["test/CNV/1.jpeg", "test/NORMAL/1.jpeg"]
    with pytest.warns(UserWarning, match="the subfolders CNV, DME, NORMAL are"):
        assert read(tmp_path).labels is None
    fails("no class folder Normal; there are: CNV, DME, NORMAL", tmp_path, normal="Normal")


def test_class_folders_without_given_normals_warn(tmp_path, recwarn):
    mvtec(tmp_path / "mvtec")
    save(tmp_path / "flat" / "sick" / "1.png")
    save(tmp_path / "flat" / "deep" / "er" / "1.png")
    for folder in ("mvtec", "flat"):  # `good` is known; one subfolder with images is no choice of classes
        read(tmp_path / folder)
    save(tmp_path / "flat" / "fine" / "1.png")
    read(tmp_path / "flat", normal="fine")
    assert not recwarn
    s = read(tmp_path / "flat")
    text = str(recwarn.pop(UserWarning).message)
    assert (text.count("\n"), len(s.normals())) == (0, 3)
    assert "the subfolders fine, sick are all read as normal" in text
    assert "--normal NAME" in text
    for i in range(7):
        save(tmp_path / "many" / f"{i}" / "1.png")
    with pytest.warns(UserWarning, match="0, 1, 2, 3, 4 and 2 more are"):
        read(tmp_path / "many")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["normal/1", "labelled/healthy/1", "labelled/sick/1"], "dia fit scans/normal"),
        (["a/b/Healthy/1", "a/b/COVID-19/1"], "dia fit scans/a/b/Healthy"),
        (["good scans/normal/x/1", "good scans/normal/y/1", "good scans/viral pneumonia/1"],
         "dia fit 'scans/good scans/normal'"),
        (["train/normal/1", "train/sick/1"], "dia fit scans --normal normal"),
        (["0/1", "1/1"], "dia fit scans/0"),
        (["normal/1", "2"], "dia fit scans/normal"),
        (["train/1", "val/1", "extra/train/1"], None),
        (["images/1", "masks/1"], "dia fit scans/NAME"),
        (["malignant/1"], "dia fit scans/NAME"),
        (["non-COVID/1", "COVID/1"], "dia fit scans/non-COVID"),
        (["lesions/1", "no lesions/1"], "dia fit 'scans/no lesions'"),
    ],
)  # fmt: skip
def test_a_folder_of_more_than_normals_is_refused_with_the_line_to_type(tmp_path, monkeypatch, files, line):
    monkeypatch.chdir(tmp_path)
    for file in files:
        save(tmp_path / "scans" / f"{file}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            entries = listing("scans", split="train").entries
        except DataError:  # refused already
            assert line is None
            return
    with pytest.raises(DataError, match="--all") as refused:
        refuse_mixed("scans", entries)
    assert f"Type: {line}" in str(refused.value)


@pytest.mark.parametrize(
    "files",
    [
        ["1", "2"],
        ["patient 1/1", "patient 2/1"],
        ["0/1", "1/1", "2/1"],  # numbered patients
        ["GE scanner/1", "Philips/1"],
        ["normal/a/1", "normal/b/1"],
        ["train/good/1", "test/bad/1"],
        ["control01/1", "control02/1"],
        ["Good Samaritan Hospital/1", "Test Street Clinic/1"],
    ],
)
def test_a_folder_of_normals_is_not_refused(tmp_path, files):
    for file in files:
        save(tmp_path / f"{file}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refuse_mixed(str(tmp_path), listing(tmp_path, split="train").entries)


def test_classes_that_were_named_are_not_asked_about_again(tmp_path):
    for file in ("healthy/1", "sick/1", "healthy/old/1"):
        save(tmp_path / f"{file}.png")
    found = [e for e in listing(tmp_path, split="all", normal="healthy").entries if not e.label]
    refuse_mixed("scans", found, "healthy")
    save(tmp_path / "healthy" / "masks" / "1.png")
    found = [e for e in listing(tmp_path, split="all", normal="healthy").entries if not e.label]
    with pytest.raises(DataError, match=r"healthy/masks \(1\)"):
        refuse_mixed("scans", found, "healthy")


def test_masks_beside_their_images_are_no_normals(tmp_path):
    for name in ("normal (1)", "normal (1)_mask", "normal (2)", "normal (2)_mask_1"):
        save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"2 files are masks of images beside them, as normal \(1\)_mask.png"):
        refuse_mixed("scans", listing(tmp_path).entries)
    (tmp_path / "normal (1).png").unlink()
    (tmp_path / "normal (2).png").unlink()
    refuse_mixed("scans", listing(tmp_path).entries)


def test_class_folders_get_a_fixed_split(tmp_path):
    for i in range(10):
        save(tmp_path / "no" / f"{i}.png")
    for i in range(3):
        save(tmp_path / "yes" / f"{i}.png")
    train, test = (read(tmp_path, split=s, normal="no") for s in ("train", "test"))
    assert (len(train), train.labels.sum()) == (8, 0)
    assert (len(test), test.labels.sum()) == (5, 3)
    assert not set(train.names) & set(test.names)
    assert len(read(tmp_path, normal="no")) == 13
    assert len(read(tmp_path, split="train", normal="no", train_normals=3)) == 3
    for split in ("train", "test", "val"):
        assert len(read(tmp_path, split=split, normal="no", divide=False)) == 13
    few = read(tmp_path, split="train", normal="no", train_normals=0.5)
    assert set(few.names) < set(train.names)
    fails("no split 'val'", tmp_path, MissingSplit, split="val", normal="no")
    save(tmp_path / "loose.png")
    fails("not in a class folder", tmp_path, normal="no")


# --- npz ----------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def stack(n: int, *tail: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 5, 4, *tail), dtype=np.uint8)


def test_npz(tmp_path):
    train, test = stack(4), stack(3)
    masks = np.zeros((3, 5, 4), np.uint8)
    masks[1, 0, 0] = 1
    path = npz(
        tmp_path / "a.npz",
        train_images=train,
        train_labels=np.zeros((4, 1), np.uint8),
        test_images=test,
        test_labels=np.array([0, 2, 1]),
        test_names=np.array(["x", "y", "z"]),
        test_masks=masks,
    )
    s = read(path, split="test")
    assert np.array_equal(s.images, test[..., None])
    assert s.labels.tolist() == [0, 1, 1]
    assert s.names == ("x", "y", "z")
    assert np.array_equal(s.masks, masks > 0)
    assert read(path, split="train").names[1] == "train/000001"
    assert read(path, split="test", normal="1,2").labels.tolist() == [1, 0, 0]
    whole = read(path)
    assert len(whole) == 7
    assert whole.masks.sum() == 1
    assert read(path, split="test", size=7, channels=3).images.shape == (3, 7, 7, 3)
    fails("no split 'val'; there are: test, train", path, MissingSplit, split="val")
    fails("no label 9; the labels are: 0, 1, 2", path, normal="9")


def test_npz_without_labels_and_with_16_bits(tmp_path):
    path = npz(
        tmp_path / "a.npz", train_images=np.full((2, 5, 4, 1), 65535, np.uint16), test_images=stack(1, 3)
    )
    s = read(path)
    assert s.labels is None
    assert s.shape == (5, 4, 3)
    assert (s.images[:2] == 255).all()  # nothing to learn from one value: all that the type allows


def test_npz_labels_may_be_words_floats_or_booleans(tmp_path):
    for labels in (np.array(["ok", "tear"]), np.array([0.0, 1.0]), np.array([False, True])):
        path = npz(tmp_path / "a.npz", test_images=stack(2), test_labels=labels)
        assert read(path, normal="ok" if labels.dtype.kind == "U" else None).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"images": stack(2)}, "no train_images, val_images or test_images in it; found: images"),
        (
            {"train_images": np.zeros((2, 5, 4), complex)},
            "train_images are complex128; save them as integers",
        ),
        ({"train_images": np.zeros((2, 5, 4), bool)}, "bool; save them as integers or floats"),
        ({"train_images": stack(2, 4, 6)}, r"must be \(N, H, W\)"),
        ({"train_images": stack(2, 4)}, r"must be \(N, H, W\)"),
        ({"train_images": stack(0)}, r"must be \(N, H, W\)"),
        ({"train_images": stack(2), "train_labels": np.zeros(3, int)}, "labels must be 2 values"),
        ({"train_images": stack(2), "train_labels": np.zeros((2, 14), int)}, "one class per image"),
        ({"train_images": stack(2), "train_labels": np.array([0, np.nan])}, "fractions or NaN"),
        ({"train_images": stack(2), "train_labels": np.array([0.5, 0])}, "fractions or NaN"),
        ({"train_images": stack(2), "train_masks": np.zeros((2, 3, 3))}, "masks must be"),
        ({"train_images": stack(2), "train_names": np.array(["x", "x"])}, "names occur twice"),
        ({"train_images": stack(2), "train_names": np.array(["x"])}, "1 names for 2 images"),
        ({"train_images": np.array([{}, None], object)}, "not a readable .npz of plain arrays"),
        ({"train_images": stack(2), "test_images": np.zeros((1, 9, 9), np.uint8)}, "different sizes"),
    ],
)
def test_bad_npz(tmp_path, content, match):
    fails(match, npz(tmp_path / "a.npz", **content))


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("hello")
    fails("not a readable .npz", path)
    whole = npz(tmp_path / "b.npz", train_images=stack(50)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails("not a readable .npz", path)
    np.save(tmp_path / "c.npy", stack(2))
    fails("not a readable .npz", (tmp_path / "c.npy").rename(tmp_path / "c.npz"))


# --- many images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for i in range(80):
        save(root / f"{i}.png", rgb(5, 4) if i == 70 else grey(5, 4))
    (root / "30.png").write_text("damaged")
    return root


def test_threads_read_as_one_does(many):
    serial, pool = (read(many, workers=n, skip_bad=True) for n in (1, 2))
    assert serial.sha256() == pool.sha256()
    assert (serial.names, serial.skipped) == (pool.names, pool.skipped)
    assert len(pool) == 79
    fails(r"30\.png", many, workers=2)


def test_memory_map_reads_as_memory_does(many):
    a, b = (read(many, workers=1, skip_bad=True, memmap_above=n) for n in (2**30, 10))
    assert isinstance(b.images, np.memmap)
    assert not isinstance(a.images, np.memmap)
    assert a.sha256() == b.sha256()
    assert isinstance(b.normals().images, np.memmap)


def test_no_room_for_the_map(many, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode.os, "posix_fallocate", full, raising=False)
    fails("no room for", many, workers=1, memmap_above=10)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_goes_to_stderr_of_a_terminal(many, capsys, monkeypatch, terminal):
    monkeypatch.setattr(progress.console, "_force_terminal", terminal)
    read(many, workers=1, skip_bad=True, progress=True)
    out = capsys.readouterr()
    assert out.out == ""
    assert bool(out.err) == terminal


# --- options ------------------------------------------------------------------------------------------


def test_options_are_given_once_or_one_by_one(tmp_path):
    save(tmp_path / "a.png", rgb(20, 10))
    options = ReadOptions(size=5, channels=1)
    assert read(tmp_path, options).sha256() == read(tmp_path, size=5, channels=1).sha256()
    assert read(tmp_path, options, channels=3).shape == (5, 5, 3)
    with pytest.raises(TypeError, match="sizes"):
        read(tmp_path, sizes=5)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"size": (0, 3)}, "at least 1 pixel"),
        ({"channels": 4}, "channels must be 1 or 3"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"window": "lungs"}, "--window lungs is not known"),
        ({"split_folders": {"dev": "x"}}, "split_folders must name"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(wrong, match):
    with pytest.raises(DataError, match=match):
        ReadOptions(**wrong)


def test_options_as_a_model_was_fitted():
    facts = {"read": {"window": "lung", "axis": None, "slices": "1:"}}
    assert ReadOptions().as_fitted({}) == ReadOptions()
    options = ReadOptions(skip_bad=True).as_fitted(facts, (8, 9, 1))
    fitted = {"window": "lung", "slices": "1:", "levels": "earlier"}  # a model of 0.1 knows no levels
    assert options == ReadOptions(skip_bad=True, size=(8, 9), channels=1, **fitted)
    assert options.view == ReadOptions(window="-600,1500", slices="1:", levels="earlier").view
    assert ReadOptions().as_fitted({"read": {"levels": "3:900"}}).view.levels == Window(451.5, 897)
    assert ReadOptions().as_fitted({"method": "dia+"}).levels == "full"  # fitted on arrays
    with pytest.raises(DataError, match="--window 1%:99%: percentiles are learned by a fit"):
        ReadOptions(window="1%:99%").as_fitted(facts)
    with pytest.warns(UserWarning, match="--window bone: the model was fitted with lung"):
        assert ReadOptions(window="bone").as_fitted(facts).window == "bone"


def test_folders_of_splits_and_masks_may_have_other_names(tmp_path):
    save(tmp_path / "learn" / "1.png")
    save(tmp_path / "Judge" / "good" / "1.png")
    save(tmp_path / "Judge" / "bad" / "2.png")
    save(tmp_path / "outlines" / "bad" / "2.png", np.full((8, 6), 9, np.uint8))
    named = {"split_folders": {"train": "learn", "test": "judge"}, "masks": "outlines"}
    assert read(tmp_path, split="train", **named).labels.tolist() == [0]
    test = read(tmp_path, split="test", **named)
    assert test.labels.tolist() == [1, 0]
    assert test.masks.any(axis=(1, 2)).tolist() == [True, False]
    fails("no split 'val'", tmp_path, MissingSplit, split="val", **named)
    fails("none of its folders is called x", tmp_path, split_folders={"train": "x"})
    fails("no masks in drawn/", tmp_path, masks="drawn")
    path = npz(tmp_path / "a.npz", train_images=stack(2))
    fails("an .npz names its own splits", path, masks="outlines")


def test_a_file_is_read_by_the_kind_of_its_name_and_checked_by_what_it_holds(tmp_path):
    """Pillow reads what it knows under any of its suffixes; other readers refuse what they do not know."""
    g = grey()
    for name, form in (("a.png", "TIFF"), ("c.jpg", "PNG")):
        save(tmp_path / name, g, format=form)
        assert np.array_equal(pixels_of(tmp_path / name)[..., 0], g)
    for name, match in (("d.dcm", "no DICOM file, or damaged"), ("e.nii", "no NIfTI file, or damaged")):
        save(tmp_path / name, g, format="PNG")
        fails(match, tmp_path / name)


def test_the_example_of_read_runs():
    assert doctest.testmod(readers) == (0, 7)
