"""Checks: what is counted, and what is found."""

from __future__ import annotations

import json

import numpy as np

from dia.data.imageset import ImageSet
from dia.evaluate.quality import SHOWN, check


def images(*values: int, c: int = 1) -> np.ndarray:
    return np.stack([np.full((2, 3, c), v, np.uint8) for v in values])


def test_a_clean_set():
    masks = np.zeros((2, 2, 3), bool)
    masks[1, 0, 0] = True
    train, test = ImageSet(images(1, 2), [0, 0]), ImageSet(images(3, 4), [0, 1], masks, skipped=["x: bad"])
    result = check({"train": train, "test": test})
    assert result["ok"]
    assert result["leaks"] == []
    assert result["splits"]["train"]["with_mask"] is None
    assert result["splits"]["test"] == {
        "images": 2,
        "normal": 1,
        "anomalous": 1,
        "unlabelled": 0,
        "height": 2,
        "width": 3,
        "channels": 1,
        "with_mask": 1,
        "skipped": ["x: bad"],
        "sha256": test.sha256(),
        "duplicates": {"images": 0, "groups": []},
    }
    assert json.loads(json.dumps(result)) == result


def test_duplicates_leaks_and_conflicts():
    train = ImageSet(images(1, 1, 1, 2), [0, 0, 1, 0], names=list("abcd"))
    test = ImageSet(images(2, 3, 1), [1, 0, 0], names=list("xyz"))
    result = check({"train": train, "test": test})
    assert not result["ok"]
    assert result["splits"]["train"]["duplicates"] == {"images": 2, "groups": [["a", "b", "c"]]}
    (leak,) = result["leaks"]
    assert leak["between"] == ["train", "test"]
    assert leak["images"] == 2
    assert leak["pairs"][1] == {"train": {"name": "d", "label": 0}, "test": {"name": "x", "label": 1}}
    conflicts = result["label_conflicts"]
    assert conflicts["images"] == 2
    assert [[i["name"] for i in g] for g in conflicts["groups"]] == [["a", "b", "c", "z"], ["d", "x"]]


def test_grey_is_found_among_colour():
    colour = np.concatenate([images(1, c=3), np.full((1, 2, 3, 3), (1, 2, 3), np.uint8)])
    result = check({"train": ImageSet(images(1)), "test": ImageSet(colour)})
    assert result["leaks"][0]["images"] == 1
    assert result["splits"]["test"]["unlabelled"] == 2
    assert result["label_conflicts"]["images"] == 0


def test_shape_counts():
    a, b = ImageSet(np.zeros((1, 2, 3, 1), np.uint8)), ImageSet(np.zeros((1, 3, 2, 1), np.uint8))
    assert check({"a": a, "b": b})["ok"]


def test_only_the_first_examples_are_named():
    s = ImageSet(images(*range(30)))
    (leak,) = check({"a": s, "b": s})["leaks"]
    assert leak["images"] == 30
    assert len(leak["pairs"]) == SHOWN
