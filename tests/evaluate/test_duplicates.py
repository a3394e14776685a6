"""Near-duplicates: re-saved copies are found, others are not; what copies are worth is computed right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from dia.cli.main import main
from dia.data.imageset import ImageSet, resize
from dia.evaluate import quality
from dia.evaluate.quality import check, has_near_duplicate, near_duplicate_limit, nearest_images, thumbnails
from dia.report.context import effect_of_copies


def resaved(image: np.ndarray, folder, quality=80) -> np.ndarray:
    """As somebody else would have it: a JPEG of it, of other brightness and contrast."""
    changed = np.clip(np.rint(image * 0.9 + 9), 0, 255).astype(np.uint8)
    Image.fromarray(changed[..., 0]).save(folder / "x.jpg", quality=quality)
    return np.asarray(Image.open(folder / "x.jpg"))[..., None]


def test_resaved_copies_are_found_and_others_are_not(tmp_path):
    train, other = smooth_images(60, 32, seed=1), smooth_images(40, 32, seed=2)
    test = np.concatenate([other, np.stack([resaved(x, tmp_path) for x in train[:7]])])
    assert has_near_duplicate(ImageSet(test), ImageSet(train)).tolist() == [False] * 40 + [True] * 7
    near = nearest_images(thumbnails(test), thumbnails(train))
    assert near.image[40:].tolist() == list(range(7))


def test_another_size_and_colour_are_no_disguise():
    train = smooth_images(30, 32, seed=1)
    larger = np.stack([resize(x, 50, 40) for x in train])
    assert has_near_duplicate(ImageSet(np.repeat(larger, 3, axis=3)), ImageSet(train)).all()


def test_the_check_counts_pairs_and_labels(tmp_path):
    train = smooth_images(30, 32, seed=1)
    test = np.stack([*smooth_images(8, 32, seed=2), resaved(train[3], tmp_path), train[4]])
    sets = {
        "train": ImageSet(np.concatenate([train, resaved(train[0], tmp_path)[None]]), [0] * 31),
        "test": ImageSet(test, [0] * 4 + [1] * 6),
    }
    found = check(sets)
    assert [leak["images"] for leak in found["leaks"]] == [1]  # the identical one
    near = found["near_duplicates"]
    assert json.loads(json.dumps(near)) == near
    (between,) = near["between"]
    assert (between["between"], between["images"], between["different_labels"]) == (["train", "test"], 2, 2)
    assert [p["test"]["name"] for p in between["pairs"]] == ["000009", "000008"]  # nearest first
    assert [p["train"]["name"] for p in between["pairs"]] == ["000004", "000003"]
    (pair,) = near["within"]["train"]["pairs"]
    assert (pair["earlier"]["name"], pair["image"]["name"]) == ("000000", "000030")
    assert near["within"]["test"]["images"] == 0


def test_slices_of_one_volume_are_no_duplicates_of_each_other():
    images = np.repeat(smooth_images(2, 16), 2, axis=0)
    names = ("a", "a", "b", "b")
    small = thumbnails(images)
    assert (nearest_images(small, units=names).distance[[1, 3]] > 0.01).all()
    assert (nearest_images(small).distance[[1, 3]] < 1e-5).all()
    assert (nearest_images(small, units=(None, None, "b", "b")).distance[1]) < 1e-5


def test_flat_images_are_like_nothing():
    flat = np.full((30, 8, 8, 1), 7, np.uint8)
    assert not has_near_duplicate(ImageSet(flat), ImageSet(flat)).any()
    assert near_duplicate_limit(flat) == near_duplicate_limit(flat[:0]) > 0
    assert np.isinf(nearest_images(thumbnails(flat[:1])).distance).all()


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
def test_blocks_change_nothing(seed, n, m, block):
    rng = np.random.default_rng(seed)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(k, 6)) for k in (n, m)))
    a = a.astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "_BLOCK", block)
        near, within = nearest_images(a, b.astype(np.float32)), nearest_images(a)
    alike = a @ b.T
    np.testing.assert_allclose(near.distance, np.maximum(1 - alike.max(1), 0), atol=1e-6)
    np.testing.assert_allclose(alike[np.arange(n), near.image], alike.max(1), atol=1e-6)
    for i in range(n):
        expected = max(1 - max(a[i] @ a[j] for j in range(i)), 0) if i else np.inf
        assert within.distance[i] == pytest.approx(expected, abs=1e-6)


# --- what copies are worth --------------------------------------------------------------------------------


def test_the_effect_by_hand():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.0, 3.0, 1.0, 2.0, 4.0])
    found = effect_of_copies(labels, scores, np.array([True, False, False, False, True]))
    # all: 5 of 6 pairs in order; without: normals 3 and 1 against 2, one of two
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["auroc_without"] == 0.5
    assert found["difference"] == pytest.approx(1 / 3)
    assert (found["copied_normal"], found["copied_anomalous"]) == (1, 1)
    nothing = effect_of_copies(labels, scores, np.zeros(5, bool))
    assert (nothing["difference"], nothing["difference_ci"]) == (0, [0, 0])
    gone = effect_of_copies(labels, scores, labels == 1)
    assert (gone["auroc"], gone["auroc_without"], gone["difference_ci"]) == (found["auroc"], None, None)
    with pytest.raises(ValueError, match="not alike"):
        effect_of_copies(labels, scores[:4], labels == 1)


def test_the_interval_holds_the_truth_and_the_seeds_are_averaged():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    covered = 0
    for _ in range(60):
        copies = (rng.random(120) < 0.3) & (labels == 0)
        scores = rng.normal(size=120) + labels - copies  # copies look more normal: a true gain
        low, high = effect_of_copies(labels, scores, copies, n_boot=300)["difference_ci"]
        # P(N(1,√2) > 0) over unshifted normals, and P(N(2,√2) > 0) over shifted ones, of which three in ten
        truth = 0.3 * (0.92135 - 0.76025)
        covered += low <= truth <= high
    assert covered >= 50
    two = np.stack([rng.normal(size=120), rng.normal(size=120)])
    both = effect_of_copies(labels, two, copies, n_boot=50)
    assert both["auroc"] == pytest.approx(np.mean([roc_auc_score(labels, s) for s in two]))


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """40 training normals; of 20 test normals 10 are re-saved from there; 20 anomalous images."""
    root = tmp_path_factory.mktemp("leaking")
    train, fresh, odd = (smooth_images(n, 24, seed=s) for n, s in ((40, 1), (10, 2), (20, 3)))
    copies = np.stack([resaved(x, root) for x in train[:10]])
    test = np.concatenate([copies, fresh, np.roll(odd, 1, axis=2)])
    np.savez(
        root / "set.npz", train_images=train[..., 0], train_labels=np.zeros(40, int),
        test_images=test[..., 0], test_labels=np.repeat([0, 1], 20),
    )  # fmt: skip
    return root


def test_check_tells_what_copies_change(leaking, tmp_path, capsys):
    data, run, scores = str(leaking / "set.npz"), str(tmp_path / "run"), str(tmp_path / "s.csv")
    main(["fit", data, "--method", "trivial:pixels", "--out", run, "--device", "cpu"])
    main(["score", run, data, "--out", scores, "--device", "cpu"])
    capsys.readouterr()
    found = []
    for flag, value in (("--row", "trivial:pixels"), ("--run", run), ("--scores", scores)):
        main(["data", "check", data, flag, value, "--json"])
        found.append(json.loads(capsys.readouterr().out)["effect_of_copies"])
        assert found[-1].pop("scores") == value
    assert found[0]["copied_normal"] == 10
    assert found[0]["difference"] > 0.1
    assert found[0]["difference_ci"][0] > 0
    for other in found[1:]:
        assert other["difference"] == pytest.approx(found[0]["difference"])
        assert other["difference_ci"] == pytest.approx(found[0]["difference_ci"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--row", "hog"], "trivial:hog"),
        (["--row", "trivial:hog", "--scores", "x.csv"], "give one of them"),
        (["--scores", "x.csv"], "not a file of scores"),
        (["--scores", "few.csv"], "score the same split"),
        (["--run", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(leaking, tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.csv").write_text("path,score,p_value,flagged\n000000,1,1,0\n")
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(leaking / "set.npz"), *argv])
    assert stop.value.code == 2
    (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("dia: ")]
    assert said in line
