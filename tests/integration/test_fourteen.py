"""The methods of the paper's table: each learns from what it is fitted on, and is measured on real images.

Small settings and random weights: which way such a model turns at a change it never saw hangs on its first
weights and on rounding, so what is asked is what holds whatever these are. It says nothing of lesions.
"""

from copy import copy
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED
from contract import SLOW, TINY, fresh, needs_libraries
from sklearn.metrics import roc_auc_score

from dia.benchmark.ledger import Ledger
from dia.benchmark.published import paper_table
from dia.benchmark.runs import run, scores_path
from dia.data import phantoms
from dia.data.datasets import load
from dia.data.imageset import ImageSet
from dia.detectors.calibration import held_out

DATA = Path(__file__).parents[2].parent / "shared" / "data"
METHODS = list(paper_table())
# those that have learnt nothing before
LONGER = {
    "csi": {"amplify.steps": 30},
    "dia": {"amplify.steps": 30},
    "kdad": {"epochs": 4},
    "ganomaly": {"epochs": 30},
}
# of the parts, the one that points the right way before anything is learnt
COSINE = {"settings__score_parts": ("cosine",)}
# those that keep normals, scoring by the nearest alone: settings of the fit and of the score, and what one of
# those kept scores, but for rounding
KEEPING = {
    "csi": (LONGER["csi"], COSINE, -1),
    "dia": (LONGER["dia"], COSINE, -1),
    "msc": ({}, {"settings__neighbours": 1}, 0),
    "patchcore": ({"coreset_sampling_ratio": 1.0}, {}, 0),
}


# where a fit takes many seconds, `make test-slow` alone runs it
REPEATED = [pytest.param(m, marks=pytest.mark.slow) if m == SLOW else m for m in METHODS]


def few(method, images):
    """Fewer where an image takes a second."""
    return images[:: 4 if method == SLOW else 1]


@pytest.fixture(scope="module")
def normals():
    return [phantoms.load(s, size=32, n=n).normals().images for s, n in (("train", 60), ("val", 40))]


@pytest.fixture(scope="module")
def fitted(normals):
    made = {}

    def get(method, **changes):
        needs_libraries(method)
        key = method, *changes.items()
        if key not in made:
            made[key] = fresh(method, **changes).fit(normals[0])
        return made[key]

    return get


def scoring(detector, **params):
    """The same fitted model, scoring by other settings."""
    return copy(detector).set_params(**params)


def negative(images):
    """Black is white."""
    return 255 - images


def test_these_are_the_methods_of_the_papers_table():
    assert len(METHODS) == 14
    assert set(METHODS) <= set(TINY)


@pytest.mark.parametrize("method", REPEATED)
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


@pytest.fixture(scope="module")
def pneumonia():
    """Some of PneumoniaMNIST: training normals, and test images of both classes."""
    if not (DATA / "pneumoniamnist.npz").is_file():
        pytest.skip(f"PneumoniaMNIST is not in {DATA}")
    normals = load("pneumoniamnist", "train", DATA).normals().subset(slice(0, 40))
    test = load("pneumoniamnist", "test", DATA)
    each = [np.flatnonzero(np.asarray(test.labels) == k)[:6] for k in (0, 1)]
    return normals, test.subset(np.concatenate(each))


# a method of each kind: trained by us, with a pretrained network, of anomalib; all are fitted above
@pytest.mark.parametrize(
    "method", ["dia", "msc", "patchcore", "uflow", pytest.param(SLOW, marks=pytest.mark.slow)]
)
def test_it_is_measured_on_pneumoniamnist(method, pneumonia, tmp_path):
    needs_libraries(method)
    normals, test = pneumonia
    assert isinstance(test, ImageSet)
    ledger = Ledger(tmp_path / "l.jsonl")
    line = run(
        "pneumoniamnist", normals, test, method, changes=TINY[method], device="cpu",
        workdir=tmp_path / "w", ledger=ledger, scores=tmp_path / "s",
    )  # fmt: skip
    assert [line] == ledger.rows()
    assert line["weights"].startswith("none")
    assert line["image_shape"] == [28, 28, 1]
    own = TINY[method].get("size", 256 if method == SLOW else None)
    assert line["size"] == own
    kept = np.load(scores_path(tmp_path / "s", line))
    assert np.isfinite(kept["scores"]).all()
    assert len(np.unique(kept["scores"])) == len(test)
    assert line["auroc"] == pytest.approx(roc_auc_score(kept["labels"], kept["scores"]))
