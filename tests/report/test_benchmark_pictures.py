"""Pictures of what was marked: chosen by the rule, of sets whose licence allows them, in page and folder."""

import re

import numpy as np
import pytest
from conftest import smooth_images
from PIL import Image

from dia.cli.main import main
from dia.data.datasets import CATALOG
from dia.report.benchmark.pictures import RULE, chosen, why_not_shown


def test_images_are_chosen_by_the_scores_of_the_default_alone():
    labels = np.array([1, 0, 1, 0, 1, 1])
    scores = np.array([0.1, 0.8, 0.9, 0.2, 0.5, 0.7])
    assert chosen(labels, scores) == {2: RULE[0], 5: RULE[1], 1: RULE[2], 0: RULE[3]}
    assert chosen(np.array([0, 1]), np.array([0.5, 0.5])) == {1: RULE[0], 0: RULE[2]}  # each once
    doubled = chosen(labels, 2 * scores + 3)
    assert doubled == chosen(labels, scores)


def test_no_image_is_shown_whose_licence_is_not_verified_or_forbids_it():
    shown = {d for d in CATALOG if not why_not_shown(d)}
    assert {"breastmnist-128", "busi-128", "chestxray-128", "phantom"} <= shown
    assert not [d for d in shown if d.startswith(("aptos", "sarscov2ct", "headct", "brainmri"))]
    for d in CATALOG:
        assert ("to be verified" in CATALOG[d].licence) <= ("not verified" in why_not_shown(d))
    assert "not in the catalogue" in why_not_shown("mine")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two known sets of small images; one of them may not be shown."""
    root = tmp_path_factory.mktemp("pictures")
    for name, normal in (("breastmnist", 1), ("aptos2019_full-64", 0)):
        train, test = smooth_images(30, 32, seed=1)[..., 0], smooth_images(20, 32, seed=2)[..., 0]
        test[10:, 8:16, 8:16] = 255
        masks = np.zeros((20, 32, 32), bool)
        masks[10:, 8:16, 8:16] = True
        arrays = {
            "train_images": train, "train_labels": np.full(30, normal), "test_images": test,
            "test_labels": np.repeat([normal, 1 - normal], 10), "test_masks": masks,
        }  # fmt: skip
        np.savez(root / CATALOG[name].path, **arrays)
    files = ["--ledger", str(root / "l.jsonl"), "--scores", str(root / "s"), "--data_root", str(root)]
    methods = ["--methods", "[dia+,trivial:hog]", "--datasets", "[breastmnist,aptos2019_full-64]"]
    work = ["--work", str(root / "w")]
    main(["benchmark", *files, *methods, *work, "--seeds", "[0]"])
    main(["report", "benchmark", *files, *work, "--out", str(root / "out"), "--pictures"])
    return root / "out"


def test_pictures_stand_in_the_folder_and_within_the_page(drawn):
    files = sorted(drawn.glob("marked-*.png"))
    assert [f.name for f in files] == [f"marked-breastmnist-{i}.png" for i in (1, 2, 3, 4)]
    html, markdown = ((drawn / f"benchmark.{form}").read_text() for form in ("html", "md"))
    assert len(re.findall(r'src="data:image/png;base64,', html)) == 4
    assert all(f"]({f.name})" in markdown for f in files)
    for text in (html, markdown):
        assert "chosen by one rule" in text
        assert "aptos2019_full-64: no pictures, as its licence (rules of the competition)" in text
        assert "licence CC BY 4.0" in text
    with Image.open(files[0]) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB"))
    assert height >= 192
    assert width == 2 * height + 6  # one method with heatmaps: the image, and its heatmap
    outline = (pixels == (0, 255, 255)).all(-1)
    assert outline[:, :height].sum() == outline[:, height + 6 :].sum() > 0
    factor = height // 32
    inside = outline[:, :height].nonzero()
    assert (inside[0].min(), inside[0].max()) == (8 * factor, 16 * factor - 1)


def test_without_the_option_no_picture_is_drawn(drawn, tmp_path):
    root = drawn.parent
    files = ["--ledger", str(root / "l.jsonl"), "--scores", str(root / "s"), "--data_root", str(root)]
    main(["report", "benchmark", *files, "--out", str(tmp_path)])
    assert not list(tmp_path.glob("marked-*"))
    assert "What was marked" not in (tmp_path / "benchmark.html").read_text()
