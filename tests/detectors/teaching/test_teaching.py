"""Teaching: the formula by hand, what marks may change, honest p-values, strangers' files, export."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from marking import SETTINGS, fitted, marks, noisy, phantom, ramped
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dia.core.errors import DataError
from dia.core.modelfiles import check_facts, write_sums
from dia.data import phantoms
from dia.data.imageset import ImageSet
from dia.detectors import METHODS, Detector, DIAPlus
from dia.detectors.teaching.lesson import scale_of, teach
from dia.detectors.teaching.model import apply, cannot_teach, forget, ground_of, look, own_normals, scorer_of
from dia.detectors.teaching.order import next_to_mark
from dia.detectors.teaching.probe import Axes, direction, weight_of
from dia.detectors.teaching.taught import FILE, Learned, said_of

FACTS = {"marks": 24, "anomalous": 12, "normal": 12, "readers": ["Ann"], "at": "2026-01-02T03:04:05+00:00",
         "auc_before": 0.7, "auc_after": 0.8, "weight": 0.5, "normals_added": 8, "watch": []}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return fitted()


@pytest.fixture(scope="module")
def marked():
    return marks()


def learned_of(detector, images, labels, flagged=None):
    seen = look(detector, images)
    flags = scorer_of(detector)(seen) > detector.threshold() if flagged is None else flagged
    return Learned.of(seen, images, labels, flags)


@pytest.fixture(scope="module")
def lesson(plain, marked):
    return teach(ground_of(plain), learned_of(plain, *marked))


@pytest.fixture
def taught(lesson, tmp_path, folder):
    detector = Detector.load(folder, device="cpu")
    apply(detector, lesson, FACTS)
    return detector


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    return plain.save(tmp_path_factory.mktemp("models") / "plain")


# --- the formula --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "weight"),
    [(0, 0), (5, 0), (6, 0.05), (10, 0.25), (14, 0.35), (20, 0.5), (1000, 0.5)],
)
def test_the_weight_grows_with_the_marks(marks, weight):
    assert weight_of(marks) == pytest.approx(weight)


def test_the_scale_is_the_median_and_the_root_mean_square_of_those_above():
    assert scale_of(np.array([0.0, 1, 2, 5, 6])) == (2.0, pytest.approx(np.sqrt((3**2 + 4**2) / 2)))


def test_components_are_in_deviations_of_the_normals():
    x = np.random.default_rng(0).normal(size=(200, 5)) * [9, 5, 3, 1, 0.1] + 7
    axes = Axes.of(x, 0)
    assert axes.axes.shape == (5, 5)
    np.testing.assert_allclose(np.cov(axes(x).T, bias=True), np.eye(5), atol=1e-8)
    slope, offset = axes.slope(np.arange(5.0))
    np.testing.assert_allclose(x @ slope + offset, axes(x) @ np.arange(5.0), atol=1e-8)


def test_normals_together_weigh_no_more_than_the_marks():
    rng = np.random.default_rng(1)
    normals, images, labels = rng.normal(size=(300, 3)), rng.normal(size=(20, 3)) + 1, np.arange(20) % 2
    x, y = np.concatenate([normals, images]), np.concatenate([np.zeros(300), labels])
    weights = np.array([20 / 300] * 300 + [1.0] * 20)
    by_hand = LogisticRegression(C=0.02, max_iter=1000).fit(x, y, sample_weight=weights).coef_[0]
    np.testing.assert_allclose(direction(normals, images, labels), by_hand, atol=1e-6)
    few = direction(normals[:10], images, labels)  # each weighs 1
    assert not np.allclose(few, direction(normals[:10].repeat(2, 0), images, labels), atol=1e-3)


def test_the_score_is_the_standardised_score_and_the_weighted_probe(plain, lesson, taught, marked):
    images = np.concatenate([marked[0][:3], phantom(3, "test", 60), noisy(phantom(2, "test", 80))])
    seen, state = look(plain, images), lesson.taught
    entered = state.learned.seen.vectors
    distances = {}
    for (
        name,
        known,
    ) in seen.distances.items():  # by hand: the nearest of the normals and of those that entered
        rows = entered[name][state.entered].astype(np.float64)
        away = np.sqrt(((seen.vectors[name][:, None].astype(np.float64) - rows[None]) ** 2).sum(2)).min(1)
        distances[name] = np.minimum(known, away)
    score = scorer_of(plain)(replace(seen, distances=distances))
    probe = sum(
        seen.vectors[n].astype(np.float64) @ state.tensors()[f"slope.{n}"]
        for n in ("cells", "coarse", "pooled")
    )
    median, spread, middle, width, weight = state.scale
    by_hand = (score - median) / spread + weight * (probe + state.offset - middle) / width
    assert weight == 0.5
    np.testing.assert_allclose(taught.score(images), by_hand, rtol=1e-6, atol=1e-6)


def test_normals_are_judged_again_as_they_were(plain):
    again = np.sort(scorer_of(plain)(own_normals(plain)))
    np.testing.assert_allclose(again, plain.calibration_.scores, rtol=1e-9)


# --- what marks change --------------------------------------------------------------------------------


def test_it_ranks_new_images_of_those_kinds_better(plain, lesson, taught):
    new = np.concatenate([ramped(phantom(20, "test", 40)), noisy(phantom(20, "test", 60), seed=3)])
    labels = np.repeat([1, 0], 20)
    assert lesson.kept
    assert lesson.after > lesson.before
    assert roc_auc_score(labels, taught.score(new)) > roc_auc_score(labels, plain.score(new)) + 0.1


@pytest.mark.parametrize("count", [1, 3, 5])
def test_five_marks_cost_nothing(plain, marked, count):
    images, labels = marked[0][10 : 10 + count], marked[1][10 : 10 + count]
    made = teach(ground_of(plain), learned_of(plain, images, labels))
    assert made.taught is None
    assert not made.kept
    assert "stays as it is" in made.words


@pytest.mark.parametrize("anomalous", [0, 2])
def test_too_few_anomalies_to_judge_an_update(plain, marked, anomalous):
    index = np.r_[:anomalous, 12:24]
    made = teach(ground_of(plain), learned_of(plain, marked[0][index], marked[1][index]))
    assert not made.kept
    assert made.before is None
    assert "stays as it is" in made.words


def test_labels_that_say_nothing_are_not_kept(plain):
    images = phantom(40, "test")
    labels = np.arange(40) % 2  # all are normal
    seen = look(plain, images)
    labels = (np.argsort(np.argsort(scorer_of(plain)(seen))) >= 20).astype(int)  # what the score says already
    made = teach(ground_of(plain), learned_of(plain, images, labels, np.zeros(40, bool)))
    assert not made.kept
    assert made.taught is not None  # there is one to make, and it ranks no better


def test_the_order_of_marks_does_not_matter(plain, marked, lesson):
    order = np.random.default_rng(5).permutation(24)
    again = teach(ground_of(plain), learned_of(plain, marked[0][order], marked[1][order]))
    for name, slope in lesson.taught.tensors().items():
        if name.startswith("slope"):
            np.testing.assert_allclose(again.taught.tensors()[name], slope, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(again.calibration, lesson.calibration, rtol=1e-3, atol=1e-3)
    assert again.before == pytest.approx(lesson.before)


def test_flagged_normals_enter_the_banks_and_no_others(plain, marked):
    images, labels = marked
    flagged = np.arange(24) % 3 == 0
    state = teach(ground_of(plain), learned_of(plain, images, labels, flagged)).taught
    assert list(state.entered) == list(flagged & (labels == 0))
    banks = state.joined(plain.banks_)
    assert {len(banks[n].bank) - len(plain.banks_[n].bank) for n in banks} == {4}


def test_several_neighbours_leave_the_banks_as_they_are(marked):
    detector = fitted(30, replace(SETTINGS, neighbours=2))
    state = teach(ground_of(detector), learned_of(detector, *marked, np.ones(24, bool))).taught
    assert not state.entered.any()


def test_a_later_mark_of_an_image_counts(plain, marked):
    images, labels = marked
    first, second = (learned_of(plain, images[a:b], labels[a:b]) for a, b in ((0, 10), (6, 24)))
    second = replace(second, labels=1 - second.labels)
    both = first.then(second)
    assert both.names == [*first.names[:6], *second.names]
    assert list(both.labels) == [*labels[:6], *(1 - labels[6:])]


def test_forgetting_brings_the_model_back(plain, taught, marked):
    assert not np.allclose(taught.score(marked[0]), plain.score(marked[0]))
    forget(taught)
    np.testing.assert_array_equal(taught.score(marked[0]), plain.score(marked[0]))
    np.testing.assert_array_equal(taught.calibration_.scores, plain.calibration_.scores)
    assert "taught" not in taught.facts_


# --- p-values -----------------------------------------------------------------------------------------


def test_p_values_of_new_normals_stay_honest():
    """Of 1,600 new normals in four fits. One fit of 80 varies by .02 at 5 %, the mean of four by .01.

    Each is judged by one normal fewer than a new image, its places by 19 in 20: p-values are a little large.
    """
    every = phantoms.load("train", size=32, n=1000).images
    shares = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(1000)
        train, new, base = np.split(order[:520], [80, 480])
        detector = DIAPlus(SETTINGS, device="cpu", seed=seed).fit(every[train])
        images = np.concatenate([ramped(every[base[:20]]), noisy(every[base[20:]], seed=seed)])
        made = teach(ground_of(detector), learned_of(detector, images, np.repeat([1, 0], 20)))
        apply(detector, made, FACTS)
        p = detector.p_values(detector.score(every[new]))
        shares.append([(p <= 0.05).mean(), (p <= 0.2).mean()])
    at_5, at_20 = np.mean(shares, 0)
    assert 0.01 < at_5 < 0.08
    assert 0.1 < at_20 < 0.25


def test_a_normal_is_scored_by_a_probe_that_has_not_seen_its_patient(make_images):
    images = phantom(60)
    patients = tuple(f"p{i // 3}" for i in range(60))
    detector = DIAPlus(SETTINGS, device="cpu").fit(ImageSet(images, patients=patients))
    ground = ground_of(detector)
    for part, *_ in ground.parts:
        assert set(np.flatnonzero(np.isin(np.arange(60) // 3, part // 3))) == set(part)
    made = teach(ground, learned_of(detector, *marks()))
    assert len(made.calibration) == len(detector.calibration_.scores) == 20  # one image of each


# --- folders ------------------------------------------------------------------------------------------


def test_a_taught_model_comes_back(taught, marked, tmp_path):
    images = np.concatenate([marked[0], phantom(5, "test", 70)])
    again = Detector.load(taught.save(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again.score(images), taught.score(images))
    np.testing.assert_array_equal(again.p_values(again.score(images)), taught.p_values(taught.score(images)))
    assert list(again.was_fitted_on(images)) == [True] * 24 + [False] * 5
    assert again.settings_hash() == taught.settings_hash()
    assert said_of(FACTS) in (tmp_path / "again/card.md").read_text()
    forget(again)
    plain = Detector.load(again.save(tmp_path / "plain"), device="cpu")
    assert plain.taught_ is None
    assert not (tmp_path / "plain" / FILE).exists()


def test_a_new_fit_forgets(taught):
    taught.fit(phantom(30))
    assert taught.taught_ is None
    assert "taught" not in taught.facts_


def damaged(name, value):
    def change(tensors):
        made = value(tensors[name]) if callable(value) else value
        return {k: v for k, v in tensors.items() if k != name} | ({} if made is None else {name: made})

    return change


@pytest.mark.parametrize(
    "change",
    [
        damaged("scale", None), damaged("offset", None), damaged("calibration", None),
        damaged("mark.place", None),
        damaged("mark.vector.cells", None), damaged("slope.cells", lambda v: v[:-1]),
        damaged("slope.cells", lambda v: v.astype(np.float32)), damaged("slope.cells", lambda v: v * np.nan),
        damaged("mark.vector.cells", lambda v: v[:, :-1]), damaged("mark.vector.cells", lambda v: v * np.inf),
        damaged("mark.away.cells", lambda v: v[:-1]), damaged("mark.label", lambda v: v + 2),
        damaged("mark.sha256", lambda v: v[:, :8]), damaged("scale", lambda v: v * [1, 0, 1, 1, 1]),
        damaged("scale", lambda v: v * [1, 1, 1, -1, 1]), damaged("scale", lambda v: v + np.eye(5)[4]),
        damaged("scale", lambda v: v - [0, 0, 0, 0, 1.0]), damaged("offset", np.array([1e300])),
        damaged("calibration", np.zeros(0)), damaged("calibration", np.zeros((3, 3))),
        damaged("entered", lambda v: np.ones_like(v)), damaged("entered", lambda v: v[:-1]),
        damaged("slope.shape", np.zeros(3)), damaged("../../etc/passwd", np.zeros(3)),
    ],
)  # fmt: skip
def test_what_a_stranger_says_was_taught_is_checked(taught, tmp_path, change):
    folder = taught.save(tmp_path / "model")
    tensors = change(load_file(folder / FILE))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / FILE)
    write_sums(folder)
    with pytest.raises(DataError, match=FILE):
        Detector.load(folder, device="cpu")


def test_it_is_never_silent(taught, tmp_path):
    folder = taught.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["facts"]["taught"]
    (folder / "config.json").write_text(json.dumps(config))
    write_sums(folder)
    with pytest.raises(DataError, match="do not agree"):
        Detector.load(folder, device="cpu")
    (folder / FILE).unlink()
    write_sums(folder)
    assert Detector.load(folder, device="cpu").taught_ is None


def test_another_method_has_nothing_taught(tmp_path):
    detector = METHODS["trivial:brightness"]().fit(phantom(30))
    assert "dia+ can" in cannot_teach(detector)
    folder = detector.save(tmp_path / "model")
    save_file({"scale": np.ones(5)}, folder / FILE)
    config = json.loads((folder / "config.json").read_text())
    config["facts"]["taught"] = FACTS
    (folder / "config.json").write_text(json.dumps(config))
    write_sums(folder)
    with pytest.raises(DataError, match="cannot learn from marks"):
        Detector.load(folder, device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"marks": "24"},
        {"readers": "Ann"},
        {"readers": [1]},
        {"auc_after": "0.8"},
        {"watch": ["a"]},
        {"at": 3},
    ],
)
def test_facts_of_marks_are_checked(wrong):
    assert check_facts({"taught": FACTS})["taught"] == FACTS
    with pytest.raises(DataError, match=r"facts.taught"):
        check_facts({"taught": FACTS | wrong})


def test_places_alone_and_older_folders_cannot_be_taught(folder, tmp_path):
    detector = Detector.load(folder, device="cpu")
    detector.normals_ = {}
    assert "fit it again" in cannot_teach(detector)
    again = Detector.load(detector.save(tmp_path / "old"), device="cpu")  # as before normals were kept
    assert again.normals_ == {}
    np.testing.assert_array_equal(again.score(phantom(3)), detector.score(phantom(3)))
    places = fitted(30, replace(SETTINGS, whole=False))
    assert "none of the views" in cannot_teach(places)


@pytest.mark.parametrize(
    "change",
    [
        damaged("normals.place", lambda v: v[:-1]), damaged("normals.unit", lambda v: v.astype(np.float64)),
        damaged("normals.away.cells", None), damaged("normals.away.other", np.zeros(150)),
    ],
)  # fmt: skip
def test_what_a_folder_kept_of_normals_is_checked(folder, plain, tmp_path, change):
    copy = plain.save(tmp_path / "copy")
    tensors = change(load_file(copy / "weights.safetensors"))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, copy / "weights.safetensors")
    write_sums(copy)
    with pytest.raises(DataError):
        Detector.load(copy, device="cpu")


def test_the_exported_graph_holds_it(taught, marked, tmp_path):
    pytest.importorskip("onnxscript")
    from dia.deploy.export import export
    from dia.deploy.onnx_model import OnnxModel

    export(taught, tmp_path / "m.onnx")
    model, images = (
        OnnxModel(tmp_path / "m.onnx", device="cpu"),
        np.concatenate([marked[0], phantom(4, "test", 50)]),
    )
    np.testing.assert_allclose(model.score(ImageSet(images)), taught.score(images), atol=1e-4, rtol=1e-4)
    assert model.threshold() == pytest.approx(taught.threshold())


def test_it_moves_with_the_module(taught, marked):
    assert all(not p.requires_grad for p in taught.module().parameters())
    names = [name for name, _ in taught.module().named_buffers() if name.startswith("taught.")]
    assert names == [f"taught.slope_{view}" for view in ("cells", "coarse", "pooled")]
    with torch.inference_mode():
        one, all_ = taught.score(marked[0][:1]), taught.score(marked[0])
    np.testing.assert_allclose(one, all_[:1], rtol=1e-6)


# --- what to mark next --------------------------------------------------------------------------------


def test_the_highest_unmarked_scores_come_first_with_some_near_the_threshold():
    scores, marked = np.array([1.0, 9, 5, 8, 4, 3]), np.array([0, 0, 0, 1, 0, 0], bool)
    assert list(next_to_mark(scores, 3.4, marked, doubt=0)) == [1, 2, 4, 5, 0]
    assert list(next_to_mark(scores, 3.4, marked, doubt=1)) == [5, 4, 2, 0, 1]
    assert list(next_to_mark(scores, 3.4, marked, doubt=0.5)) == [1, 5, 2, 4, 0]
    assert list(next_to_mark(scores, np.inf, marked, doubt=0.5)) == [1, 2, 4, 5, 0]
    assert not len(next_to_mark(scores, 3.4, np.ones(6, bool)))
    assert not len(next_to_mark(np.empty(0), 3.4, np.empty(0, bool)))


@pytest.mark.parametrize("doubt", [0, 0.25, 0.3, 0.75, 1])
def test_each_unmarked_image_comes_once(doubt):
    rng = np.random.default_rng(2)
    scores, marked = rng.normal(size=50).round(1), rng.random(50) < 0.3
    assert sorted(next_to_mark(scores, 0.4, marked, doubt=doubt)) == list(np.flatnonzero(~marked))
