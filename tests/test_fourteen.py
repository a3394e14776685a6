"""The methods of the paper's table all fit, see what is plain, are saved and loaded, and repeat themselves.

Small settings and random weights: the floors hold for plain changes of phantoms, and say nothing of lesions.
"""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dia.data import phantom
from dia.data.catalog import load
from dia.data.imageset import ImageSet
from dia.detectors import PEERS, Detector, detector_class
from dia.evaluate.benchmark import run, scores_path, wanted_settings
from dia.evaluate.ledger import Ledger
from dia.evaluate.paper import paper_table

DATA = Path(__file__).parents[1].parent / "shared" / "data"
AMPLIFY = {"amplify.size": 32, "amplify.width": 8, "amplify.steps": 30, "amplify.batch": 8, "samples": 1}
DISSOLVER = {"dissolver.size": 16, "dissolver.widths": [8, 16], "dissolver.steps": 10}
SMALL = {"size": 32, "batch": 8, "epochs": 1}
PLAIN = {
    "negative": lambda x: 255 - x,
    "dark": lambda x: x // 4,
    "noisy": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 60, x.shape), 0, 255).astype(np.uint8),
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
}
# small settings, a change that the method sees with them, and the least AUROC
METHODS = {
    "csi": (AMPLIFY, "negative", 0.9),
    "dia": (AMPLIFY | DISSOLVER, "dark", 0.8),
    "msc": ({"size": 32, "epochs": 1}, "negative", 0.9),
    "transformaly": ({"size": 32, "epochs": 1}, "negative", 0.9),
    "kdad": ({"size": 32, "epochs": 1}, "negative", 0.9),
    "uniad": ({"size": 64, "epochs": 1}, "negative", 0.9),
    "ganomaly": (SMALL | {"epochs": 2, "n_features": 4, "latent_vec_size": 8}, "negative", 0.7),
    "cflow": (SMALL | {"coupling_blocks": 2, "layers": ["layer1", "layer2"]}, "negative", 0.9),
    "uflow": (SMALL | {"flow_steps": 1}, "turned", 0.6),
    "fastflow": (SMALL | {"flow_steps": 2}, "noisy", 0.8),
    "rd4ad": (SMALL, "negative", 0.9),
    "efficientad": ({"steps": 2, "statistics": 2, "teacher_out_channels": 4}, "negative", 0.9),
    "cfa": (SMALL, "negative", 0.9),
    "patchcore": ({"size": 32, "coreset_sampling_ratio": 0.05}, "negative", 0.9),
}


# again and again where a fit takes many seconds: `make test-slow`
REPEATED = [pytest.param(m, marks=pytest.mark.slow) if m == "efficientad" else m for m in METHODS]


def few(method, images):
    """Fewer where an image takes a second."""
    return images[:: 4 if method == "efficientad" else 1]


@pytest.fixture(scope="module")
def phantoms():
    return [phantom.load(s, size=32, n=n).normals().images for s, n in (("train", 60), ("val", 40))]


@pytest.fixture(scope="module")
def fitted(phantoms):
    made = {}

    def get(method):
        if method in PEERS:
            pytest.importorskip("anomalib", reason="the eight of anomalib need the extra `peers`")
        if method not in made:
            made[method] = fresh(method).fit(phantoms[0])
        return made[method]

    return get


def fresh(method):
    return detector_class(method)(wanted_settings(method, "cpu", METHODS[method][0]), device="cpu")


def test_these_are_the_methods_of_the_papers_table():
    assert set(METHODS) == set(paper_table())
    assert len(METHODS) == 14


@pytest.mark.parametrize("method", METHODS)
def test_it_sees_a_plain_change_of_phantoms(method, fitted, phantoms):
    _, change, floor = METHODS[method]
    normal = few(method, phantoms[1])
    scores = fitted(method).score(np.concatenate([normal, PLAIN[change](normal)]))
    assert roc_auc_score(np.repeat([0, 1], len(normal)), scores) >= floor


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_scores_alike(method, fitted, phantoms, tmp_path):
    detector, images = fitted(method), few(method, phantoms[1])
    loaded = Detector.load(detector.save(tmp_path / "model"), device="cpu")
    assert loaded.settings_hash() == detector.settings_hash()
    assert np.array_equal(loaded.score(images), detector.score(images))
    assert np.array_equal(loaded.calibration_.scores, detector.calibration_.scores)


@pytest.mark.parametrize("method", REPEATED)
def test_the_same_seed_makes_the_same_scores(method, fitted, phantoms):
    images = few(method, phantoms[1])
    assert np.array_equal(fresh(method).fit(phantoms[0]).score(images), fitted(method).score(images))


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
        "pneumoniamnist", normals, test, method, changes=METHODS[method][0], device="cpu",
        workdir=tmp_path / "w", ledger=ledger, scores=tmp_path / "s",
    )  # fmt: skip
    assert [line] == ledger.rows()
    assert line["weights"].startswith("none")
    assert line["image_shape"] == [28, 28, 1]
    own = METHODS[method][0].get("size", 256 if method == "efficientad" else None)
    assert line["size"] == own
    kept = np.load(scores_path(tmp_path / "s", line))
    assert np.isfinite(kept["scores"]).all()
    assert len(np.unique(kept["scores"])) == len(test)
    assert line["auroc"] == pytest.approx(roc_auc_score(kept["labels"], kept["scores"]))
