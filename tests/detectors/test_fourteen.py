"""The methods of the paper's table all fit, learn from it, are saved and loaded, and repeat themselves.

Small settings and random weights: which way such a model turns at a change it never saw hangs on its first
weights and on rounding, so what is asked is what holds whatever these are. It says nothing of lesions.
"""

from copy import copy
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED
from sklearn.metrics import roc_auc_score

from dia.benchmark.ledger import Ledger
from dia.benchmark.published import paper_table
from dia.benchmark.runs import run, scores_path
from dia.data import phantoms
from dia.data.datasets import load
from dia.data.imageset import ImageSet
from dia.detectors import PEERS, Detector
from dia.detectors.calibration import held_out
from dia.detectors.registry import detector_class, wanted_settings

DATA = Path(__file__).parents[2].parent / "shared" / "data"
AMPLIFY = {"amplify.size": 32, "amplify.width": 8, "amplify.steps": 30, "amplify.batch": 8, "samples": 1}
DISSOLVER = {"dissolver.size": 16, "dissolver.widths": [8, 16], "dissolver.steps": 10}
SMALL = {"size": 32, "batch": 8, "epochs": 1}
METHODS = {
    "csi": AMPLIFY,
    "dia": AMPLIFY | DISSOLVER,
    "msc": {"size": 32, "epochs": 1},
    "transformaly": {"size": 32, "epochs": 1},
    "kdad": {"size": 32, "epochs": 1},
    "uniad": {"size": 64, "epochs": 1},
    "ganomaly": SMALL | {"epochs": 2, "n_features": 4, "latent_vec_size": 8},
    "cflow": SMALL | {"coupling_blocks": 2, "layers": ["layer1", "layer2"]},
    "uflow": SMALL | {"flow_steps": 1},
    "fastflow": SMALL | {"flow_steps": 2},
    "rd4ad": SMALL,
    "efficientad": {"steps": 2, "statistics": 2, "teacher_out_channels": 4},
    "cfa": SMALL,
    "patchcore": {"size": 32, "coreset_sampling_ratio": 0.05},
}
LONGER = {"kdad": {"epochs": 4}, "ganomaly": {"epochs": 30}}  # which have learnt nothing before
# of the parts, the one that points the right way before anything is learnt
COSINE = {"settings__score_parts": ("cosine",)}
# those that keep normals, scoring by the nearest alone: settings of the fit and of the score, and what one of
# those kept scores, but for rounding
KEEPING = {
    "csi": ({}, COSINE, -1),
    "dia": ({}, COSINE, -1),
    "msc": ({}, {"settings__neighbours": 1}, 0),
    "patchcore": ({"coreset_sampling_ratio": 1.0}, {}, 0),
}


# again and again where a fit takes many seconds: `make test-slow`
REPEATED = [pytest.param(m, marks=pytest.mark.slow) if m == "efficientad" else m for m in METHODS]


def few(method, images):
    """Fewer where an image takes a second."""
    return images[:: 4 if method == "efficientad" else 1]


@pytest.fixture(scope="module")
def normals():
    return [phantoms.load(s, size=32, n=n).normals().images for s, n in (("train", 60), ("val", 40))]


@pytest.fixture(scope="module")
def fitted(normals):
    made = {}

    def get(method, **changes):
        if method in PEERS:
            pytest.importorskip("anomalib", reason="the eight of anomalib need the extra `peers`")
        key = method, *changes.items()
        if key not in made:
            made[key] = fresh(method, **changes).fit(normals[0])
        return made[key]

    return get


def fresh(method, **changes):
    settings = wanted_settings(method, "cpu", METHODS[method] | changes)
    return detector_class(method)(settings, seed=SEED, device="cpu")


def scoring(detector, **params):
    """The same fitted model, scoring by other settings."""
    return copy(detector).set_params(**params)


def negative(images):
    """Black is white."""
    return 255 - images


def test_these_are_the_methods_of_the_papers_table():
    assert set(METHODS) == set(paper_table())
    assert len(METHODS) == 14


@pytest.mark.parametrize("method", METHODS)
def test_what_it_was_fitted_on_decides_what_is_unusual(method, fitted, normals):
    """Of two with the same first weights, one fitted on phantoms and one on their negatives, the first finds
    of every new phantom that becoming a negative makes it more unusual than the second does.

    Which way one of them alone turns is chance where it has hardly learnt; they differ in what they were
    fitted on and in nothing else.
    """
    changes, params = LONGER.get(method, {}), COSINE if method in ("csi", "dia") else {}
    train, x = normals[0], few(method, normals[1])
    knows = fitted(method, **changes)
    other = fresh(method, **changes).fit(negative(train))
    rises = [m.score(negative(x)) - m.score(x) for m in (scoring(knows, **params), scoring(other, **params))]
    assert np.isfinite(rises).all()
    assert (rises[0] > rises[1]).all()


@pytest.mark.parametrize("method", KEEPING)
def test_nothing_is_more_normal_than_a_normal_it_keeps(method, fitted, normals):
    changes, params, least = KEEPING[method]
    detector = scoring(fitted(method, **changes), **params)
    kept = normals[0][held_out(len(normals[0]), detector.holdout, SEED)[2]]
    known = detector.score(kept)
    rounding = 1e-5  # of sums of some hundred products of unit vectors, in 32 bits
    if method == "patchcore":  # which takes the root of ‖x‖² − 2⟨x, y⟩ + ‖y‖², of long ones
        bank = detector.model_.memory_bank
        rounding = float(bank.norm(dim=1).max()) * (bank.shape[1] * np.finfo(np.float32).eps) ** 0.5
    np.testing.assert_allclose(known, least, rtol=0, atol=rounding)
    for others in (normals[1], negative(kept), np.zeros_like(kept)):
        assert detector.score(others).min() > least + rounding


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_scores_alike(method, fitted, normals, tmp_path):
    detector, images = fitted(method), few(method, normals[1])
    loaded = Detector.load(detector.save(tmp_path / "model"), device="cpu")
    assert loaded.settings_hash() == detector.settings_hash()
    assert np.array_equal(loaded.score(images), detector.score(images))
    assert np.array_equal(loaded.calibration_.scores, detector.calibration_.scores)


@pytest.mark.parametrize("method", REPEATED)
def test_the_same_seed_makes_the_same_scores(method, fitted, normals):
    images = few(method, normals[1])
    assert np.array_equal(fresh(method).fit(normals[0]).score(images), fitted(method).score(images))


@pytest.fixture(scope="module")
def pneumonia():
    """Some of PneumoniaMNIST: training normals, and test images of both classes."""
    if not (DATA / "pneumoniamnist.npz").is_file():
        pytest.skip(f"PneumoniaMNIST is not in {DATA}")
    normals = load("pneumoniamnist", "train", DATA).normals().subset(slice(0, 40))
    test = load("pneumoniamnist", "test", DATA)
    each = [np.flatnonzero(np.asarray(test.labels) == k)[:6] for k in (0, 1)]
    return normals, test.subset(np.concatenate(each))


@pytest.mark.parametrize("method", REPEATED)
def test_it_is_measured_on_pneumoniamnist(method, pneumonia, tmp_path):
    if method in PEERS:
        pytest.importorskip("anomalib", reason="the eight of anomalib need the extra `peers`")
    normals, test = pneumonia
    assert isinstance(test, ImageSet)
    ledger = Ledger(tmp_path / "l.jsonl")
    line = run(
        "pneumoniamnist", normals, test, method, changes=METHODS[method], device="cpu",
        workdir=tmp_path / "w", ledger=ledger, scores=tmp_path / "s",
    )  # fmt: skip
    assert [line] == ledger.rows()
    assert line["weights"].startswith("none")
    assert line["image_shape"] == [28, 28, 1]
    own = METHODS[method].get("size", 256 if method == "efficientad" else None)
    assert line["size"] == own
    kept = np.load(scores_path(tmp_path / "s", line))
    assert np.isfinite(kept["scores"]).all()
    assert len(np.unique(kept["scores"])) == len(test)
    assert line["auroc"] == pytest.approx(roc_auc_score(kept["labels"], kept["scores"]))
