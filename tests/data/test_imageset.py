"""`ImageSet`: what fits together, and what belongs to a subset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dia.core.errors import DataError
from dia.data.imageset import ImageSet, resize


def images(n=4, h=6, w=5, c=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


def full(n=4, c=1):
    masks = np.zeros((n, 6, 5), bool)
    masks[-1, 1:3, 1:3] = True
    return ImageSet(images(n, c=c), np.arange(n) % 2, masks, [f"n{i}" for i in range(n)], ["x.png: damaged"])


def test_defaults():
    s = ImageSet(images())
    assert len(s) == 4
    assert s.shape == (6, 5, 1)
    assert s.names == ("000000", "000001", "000002", "000003")
    assert s.normals() is s


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": images()[..., 0]}, "images must be uint8"),
        ({"images": images().astype(float)}, "images must be uint8"),
        ({"images": images(c=2)}, "images must be uint8"),
        ({"images": images(), "names": ["a"]}, "1 names for 4 images"),
        ({"images": images(), "labels": [0, 1]}, "labels must be 4"),
        ({"images": images(), "labels": [0, 1, 2, 0]}, "labels must be 4"),
        ({"images": images(), "masks": np.zeros((4, 5, 6), bool)}, "masks must be"),
    ],
)
def test_what_does_not_fit(arguments, match):
    with pytest.raises(DataError, match=match):
        ImageSet(**arguments)


@pytest.mark.parametrize("index", [[2, 0], np.array([True, False, True, False]), slice(1, 3)])
def test_subset_keeps_what_belongs_together(index):
    s = full()
    where = np.arange(4)[index]
    part = s.subset(index)
    assert np.array_equal(part.images, s.images[where])
    assert np.array_equal(part.labels, s.labels[where])
    assert np.array_equal(part.masks, s.masks[where])
    assert part.names == tuple(f"n{i}" for i in where)
    assert part.skipped == s.skipped


def test_an_index_is_an_image_and_a_slice_a_set():
    s = full()
    np.testing.assert_array_equal(s[1], s.images[1])
    np.testing.assert_array_equal(s[np.int64(-1)], s.images[3])
    for index in (slice(1, 3), [1, 2], np.array([False, True, True, False])):
        part = s[index]
        assert isinstance(part, ImageSet)
        assert part.names == ("n1", "n2")
        np.testing.assert_array_equal(part.labels, [1, 0])
    with pytest.raises(IndexError):
        s[4]
    for image, known in zip(s, s.images, strict=True):
        np.testing.assert_array_equal(image, known)


def test_its_repr_is_one_short_line():
    large = ImageSet(np.zeros((9999, 64, 48, 1), np.uint8), volumes=["a"] * 5000 + ["b"] * 4999)
    assert repr(large) == "ImageSet(9999 images of 64×48×1, 2 volumes)"
    assert repr(full()) == (
        "ImageSet(4 images of 6×5×1, 2 normal, 2 anomalous, 1 with a mask, 1 file skipped)"
    )
    assert repr(full().subset([0])).startswith("ImageSet(1 image of")
    assert repr(full().subset([])).startswith("ImageSet(0 images of")


def test_normals():
    s = full()
    assert s.normals().names == ("n0", "n2")
    only = s.normals()
    assert only.normals() is only


def test_resized():
    s = full(c=3)
    assert s.resized(6, 5) is s
    r = s.resized(12, 10)
    assert r.images.shape == (4, 12, 10, 3)
    assert r.masks.sum() == 4 * s.masks.sum()
    assert np.array_equal(r.labels, s.labels)
    assert resize(s.images[0][..., :1], 3, 2).shape == (3, 2, 1)


def test_channels():
    s = full()
    assert s.with_channels(1) is s
    colour = s.with_channels(3)
    assert colour.shape == (6, 5, 3)
    assert np.array_equal(colour.with_channels(1).images, s.images)
    red = ImageSet(np.full((1, 2, 2, 3), (255, 0, 0), np.uint8))
    assert (red.with_channels(1).images == 76).all()  # .299 · 255
    with pytest.raises(DataError, match="channels must be 1 or 3"):
        s.with_channels(2)


def test_identity_is_pixels_and_labels():
    s = full()
    assert s.sha256() == full().sha256()
    assert s.sha256() == ImageSet(s.images, s.labels).sha256()
    assert s.sha256() != ImageSet(s.images).sha256()
    assert s.sha256() != s.subset([1, 0, 2, 3]).sha256()


@given(st.permutations(range(4)))
def test_subset_of_a_permutation_undoes_it(order):
    s = full()
    assert s.subset(order).subset(np.argsort(order)).sha256() == s.sha256()
