"""Phantoms: reproducible, masks where lesions are, nothing that whole-image statistics would give away."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dia.core.errors import DataError
from dia.data.phantoms import LESIONS, SPLITS, load


@pytest.fixture(scope="module")
def phantoms():
    return load("test")


def kinds(s):
    return [name.split("/")[0] for name in s.names]


def test_the_default_split_is_half_anomalous_with_every_kind_of_lesion(phantoms):
    assert phantoms.images.shape == (400, 64, 64, 1)
    assert phantoms.labels.sum() == 200
    assert {k: kinds(phantoms).count(k) for k in LESIONS} == dict.fromkeys(LESIONS, 50)
    assert [k == "normal" for k in kinds(phantoms)] == (phantoms.labels == 0).tolist()
    assert len(set(phantoms.names)) == 400


def test_training_phantoms_are_normal():
    s = load("train", n=10, size=24)
    assert not s.labels.any()
    assert not s.masks.any()
    assert set(kinds(s)) == {"normal"}
    assert SPLITS["train"][1] == 0


def test_masks_mark_the_anomalous_alone(phantoms):
    area = phantoms.masks.mean((1, 2))
    assert (area[phantoms.labels == 0] == 0).all()
    lesions = area[phantoms.labels == 1]
    assert lesions.min() > 0
    assert lesions.max() < 0.1  # a small place only


def test_the_same_call_gives_the_same_images():
    a, b = load("val", n=12, size=32), load("val", n=12, size=32)
    assert a.sha256() == b.sha256()
    assert np.array_equal(a.masks, b.masks)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_image_does_not_depend_on_how_many_are_made(split):
    few, many = (load(split, n=n, size=32) for n in (6, 16))
    found = {name: i for i, name in enumerate(many.names)}
    for label in sorted(set(few.labels.tolist())):
        index = [i for i in range(len(few)) if few.labels[i] == label]
        assert index
        for i in index:
            j = found[few.names[i]]
            assert np.array_equal(few.images[i], many.images[j])
            assert np.array_equal(few.masks[i], many.masks[j])


def test_splits_and_seeds_are_different_images():
    images = [load(split, n=2, size=32, seed=seed).images[0] for split in SPLITS for seed in (0, 1)]
    assert len({x.tobytes() for x in images}) == 6


def statistics(x):
    grey = x.images[..., 0].astype(float)
    dy, dx = np.gradient(grey, axis=(1, 2))
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "gradient energy": (dx**2 + dy**2).mean((1, 2)),
    }


def test_whole_image_statistics_say_little(phantoms):
    normal = statistics(load("train", n=150))
    for name, values in statistics(phantoms).items():
        z = np.abs(values - normal[name].mean()) / normal[name].std()
        assert 0.35 < roc_auc_score(phantoms.labels, z) < 0.65, name


@pytest.mark.parametrize("kind", LESIONS)
def test_each_lesion_changes_its_place(kind, phantoms):
    # inside the mask, the anomalous images differ from the mean normal one more than normals do there
    normals = phantoms.images[phantoms.labels == 0, ..., 0].astype(float)
    mean, spread = normals.mean(0), normals.std(0) + 1
    index = [i for i, k in enumerate(kinds(phantoms)) if k == kind]
    with_lesion, without = [], []
    for i in index:
        mask = phantoms.masks[i]
        z = np.abs((phantoms.images[i, ..., 0] - mean) / spread)
        with_lesion.append(z[mask].mean())
        without.append(np.abs((normals[:20] - mean) / spread)[:, mask].mean())
    assert np.mean(with_lesion) > 1.1 * np.mean(without)


@pytest.mark.parametrize(("size", "colour"), [(24, False), (40, True), (64, True)])
def test_sizes_and_colours(size, colour):
    s = load("test", n=4, size=size, colour=colour)
    assert s.images.shape == (4, size, size, 3 if colour else 1)
    assert s.images.dtype == np.uint8
    assert s.masks.shape == (4, size, size)
    if colour:
        assert (s.images[..., 0] >= s.images[..., 2]).all()  # reddish, as mucosa


def test_an_odd_number_has_one_normal_more():
    assert load("test", n=5, size=24).labels.tolist() == [0, 0, 0, 1, 1]
    assert load("test", n=1, size=24).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "training"}, "splits train, val, test, not 'training'"),
        ({"size": 23}, "at least 24 pixels"),
        ({"n": 0}, "at least one image"),
        ({"n": -3}, "at least one image"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, match):
    with pytest.raises(DataError, match=match):
        load(**arguments)
