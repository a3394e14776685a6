"""Detectors are estimators of scikit-learn's: its own checks, and its pipelines, searches and copies."""

import re
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.core.settings import SettingsError
from dia.data import phantoms
from dia.detectors import CSI, DIA, Detector
from dia.detectors.baselines.images import Statistics, TrivialSettings
from dia.detectors.dia import CSISettings, DIASettings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings

TINY = AmplifySettings(size=12, width=4, steps=1, batch=4)
LEARNED = [
    (CSI, CSISettings(TINY, samples=1)),
    (DIA, DIASettings(DissolverSettings(kind="gaussian"), TINY, ts=(30,), samples=1)),
]
UNTRAINED = [(METHODS[f"trivial:{name}"], None) for name in ("statistics", "pixels", "pca")]

# What scikit-learn asks of tables and cannot hold for images. Everything else must pass; and what stands here
# and passes fails too.
NOT_FOR_IMAGES = {
    "check_n_features_in": "n_features_in_ counts the columns of a table; images have shape_",
    "check_n_features_in_after_fitting": "the same; and its 15 images are fewer than the 20 that fit takes",
    "check_classifier_data_not_an_array": "its 12 images are fewer than the 20 that fit takes",
    "check_fit2d_1feature": "its 10 images are fewer than 20, of which the message speaks",
    "check_fit2d_1sample": "it is refused in other words: 1 normal image to fit on",
    "check_fit2d_predict1d": "it is refused in other words: not a uint8 array (N, H, W, 1 or 3)",
    "check_estimators_empty_data_messages": "no columns: refused in other words, as above",
    "check_complex_data": "refused in other words, as above",
    "check_dtype_object": "refused, though the objects are numbers: as above",
    "check_estimators_nan_inf": "uint8 has neither; floats are refused in other words, as above",
    "check_estimator_sparse_tag": "no images are sparse matrices: refused in other words, as above",
    "check_estimator_sparse_array": "the same",
    "check_estimator_sparse_matrix": "the same",
}


INVARIANCES = ("check_methods_subset_invariance", "check_methods_sample_order_invariance")


class Tabular:
    """Turns each row of a table into an image on its way into a detector, and does nothing else.

    scikit-learn's checks bring tables, and none is run where the tags say, as ours do, that only images go.
    What is no table of finite numbers goes on as it is.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    def fit(self, X, y=None):
        return super().fit(drawn(X), y)

    def score(self, X, y=None):
        return super().score(drawn(X), y)


def drawn(table):
    """`(N, F)` as `(N, 12, 4·F, 1)`: each column a grey, repeated over the image."""
    x = np.asarray(table)
    if x.ndim != 2 or x.size == 0 or x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        return table
    grey = np.clip(128 + 20 * x, 0, 255).astype(np.uint8)
    return np.stack([np.resize(row, (12, 4 * len(row))) for row in grey])[..., None]


def tabular(cls, settings=None):
    made = type(f"Tabular{cls.__name__}", (Tabular, cls), {"__init__": cls.__init__})
    globals()[made.__name__] = made  # where pickle looks for it
    made.__module__ = __name__
    return made(settings, device="cpu")


@pytest.fixture(scope="module")
def images():
    return phantoms.load("train", size=24, n=60).normals().images


@pytest.fixture(scope="module")
def labelled():
    test = phantoms.load("test", size=24, n=60)
    return test.images, np.where(test.labels == 1, -1, 1)


# --- scikit-learn's own checks ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@estimator_checks.parametrize_with_checks(
    [tabular(cls, settings) for cls, settings in [*UNTRAINED, LEARNED[0]]],
    expected_failed_checks=lambda _: NOT_FOR_IMAGES,
    xfail_strict=True,
)
def test_checks_of_scikit_learn(estimator, check):
    name = getattr(check, "func", check).__name__
    if name in INVARIANCES and isinstance(estimator, CSI):
        pytest.skip("sums of float32 depend on the batch in their last digits: the next test")
    check(estimator)


def test_a_network_scores_each_image_on_its_own_but_for_rounding(images):
    cls, settings = LEARNED[0]
    detector = cls(settings, device="cpu").fit(images)
    whole, order = detector.score_samples(images), np.random.default_rng(0).permutation(len(images))
    one_by_one = np.concatenate([detector.score_samples(x[None]) for x in images])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(images[order]), whole[order], rtol=1e-5)


OF_CONSTRUCTORS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
    "check_valid_tag_types",
    "check_estimators_unfitted",
]


@pytest.mark.parametrize("method", METHODS)
def test_checks_that_fit_nothing_hold_for_every_method(method):
    detector = tabular(METHODS[method])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OF_CONSTRUCTORS:
            getattr(estimator_checks, name)(type(detector).__name__, detector)


def test_the_tags_say_that_tables_do_not_go():
    tags = Statistics().__sklearn_tags__()
    assert not tags.input_tags.two_d_array
    assert tags.estimator_type == "outlier_detector"


# --- its pipelines and searches -----------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "settings"), [(Statistics, None), LEARNED[0]])
def test_at_the_end_of_a_pipeline(cls, settings, images, labelled):
    pipeline = make_pipeline(FunctionTransformer(np.negative), cls(settings, device="cpu")).fit(images)
    alone = cls(settings, device="cpu").fit(255 - images + 1)  # −x of uint8 is 256 − x
    x, _ = labelled
    assert np.array_equal(pipeline.score_samples(x), alone.score_samples(np.negative(x)))
    assert np.array_equal(pipeline.predict(x), alone.predict(np.negative(x)))
    assert set(pipeline.predict(x)) <= {-1, 1}


def normals_only(y, folds=3):
    """Folds that train on normals alone and test on their other normals and all anomalies."""
    normal, anomalous = np.flatnonzero(y == 1), np.flatnonzero(y == -1)
    for part in np.array_split(normal, folds):
        yield np.setdiff1d(normal, part), np.concatenate([part, anomalous])


def test_cross_validation_and_search_over_settings(labelled):
    x, y = labelled
    cv = list(normals_only(y))
    scores = cross_val_score(Statistics(), x, y, cv=cv, scoring="roc_auc")
    by_hand = []
    for train, test in cv:
        s = Statistics().fit(x[train]).score(x[test])
        wrong = s[y[test] == 1][:, None] - s[y[test] == -1]
        by_hand.append(((wrong < 0) + (wrong == 0) / 2).mean())
    np.testing.assert_allclose(scores, by_hand)

    search = GridSearchCV(
        Statistics(), {"settings__neighbours": [1, 3, 9]}, cv=cv, scoring="roc_auc", refit=False
    ).fit(x, y)
    assert search.cv_results_["split0_test_score"][1] == scores[0]  # 3 is the default
    assert len(set(search.cv_results_["mean_test_score"])) > 1


@pytest.mark.parametrize("scores", [[-1e9, -3.0, -1e-9, 0.0, 1e-9, 2.0, 40.0, 1e9]])
def test_the_decision_is_finite_where_no_threshold_is(scores, images, monkeypatch):
    few = Statistics(false_alarm_rate=0.01).fit(images)  # 6 held-out normals cannot tell one in a hundred
    assert few.threshold() == np.inf
    monkeypatch.setattr(few, "score", lambda _: np.array(scores))
    decision = few.decision_function(images)
    assert np.isfinite(decision).all()
    assert (decision > 0).all()  # as predict says: none is flagged
    assert (np.diff(decision) < 0).all()
    assert (few.predict(images) == 1).all()


def test_a_search_without_scoring_says_what_is_missing(labelled):
    x, y = labelled
    cv = list(normals_only(y))
    with pytest.raises(ValueError, match="scoring must return a number"):
        cross_val_score(Statistics(), x, y, cv=cv, error_score="raise")


def test_settings_are_parameters_one_by_one():
    detector = DIA(LEARNED[1][1])
    known = detector.get_params()
    assert known["settings__amplify__width"] == 4
    assert known["settings"] is detector.settings
    assert "settings__amplify__width" not in detector.get_params(deep=False)
    before = detector.settings_hash()
    detector.set_params(settings__amplify__width=8, settings__dissolver__kind="identity", seed=3)
    assert (detector.s.amplify.width, detector.s.dissolver.kind, detector.seed) == (8, "identity", 3)
    assert detector.s.amplify.steps == TINY.steps
    assert detector.settings_hash() != before
    with pytest.raises(SettingsError, match=r"no setting amplify\.widht"):
        detector.set_params(settings__amplify__widht=8)
    with pytest.raises(ValueError, match="Invalid parameter"):
        detector.set_params(sede=1)
    assert Statistics().set_params(settings__neighbours=2).settings == TrivialSettings(2)


def test_a_clone_is_unfitted_and_fits_alike(images):
    cls, settings = LEARNED[0]
    fitted = cls(settings, seed=5, device="cpu").fit(images)
    copy = clone(fitted)
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    check_is_fitted(fitted)
    assert copy.get_params() == fitted.get_params()
    assert np.array_equal(copy.fit(images).score(images), fitted.score(images))
    assert np.array_equal(clone(fitted).fit_predict(images), fitted.predict(images))


@pytest.mark.parametrize(("cls", "settings"), UNTRAINED + LEARNED)
def test_joblib_keeps_a_fitted_one(cls, settings, images, tmp_path):
    fitted = cls(settings, device="cpu").fit(images)
    joblib.dump(fitted, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib")
    assert np.array_equal(loaded.score(images), fitted.score(images))
    assert loaded.threshold() == fitted.threshold()
    assert loaded.settings_hash() == fitted.settings_hash()


def test_what_is_not_fitted_says_so_in_both_tongues(images, tmp_path):
    detector = Statistics()
    detector.facts_ = {"dataset": "phantom"}  # before the fit, as `dia fit` does
    asked = [
        lambda: detector.score(images),
        lambda: detector.predict(images),
        lambda: detector.threshold(),
        lambda: detector.p_values(np.zeros(2)),
        lambda: detector.save(tmp_path / "model"),
    ]
    for ask in asked:
        for kind in (NotFittedError, DataError, ValueError):
            with pytest.raises(kind, match="trivial:statistics is not fitted"):
                ask()
    assert not (tmp_path / "model").exists()
    assert detector.fit(images).facts_ == {"dataset": "phantom", "read": {"levels": "full"}}


def test_a_model_fitted_anew_has_a_new_identity(images, tmp_path):
    Statistics().fit(images).save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    old = loaded.settings_hash()
    loaded.set_params(settings__neighbours=1)
    loaded.fit(images)
    assert loaded.settings_hash() == Statistics(TrivialSettings(1)).settings_hash() != old


def test_the_docs_count_and_their_snippets():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "scikit-learn.md").read_text()
    assert len(NOT_FOR_IMAGES) == 13
    assert "Thirteen cannot hold" in page
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, names)
    assert set(names["pipeline"].predict(names["images"])) <= {-1, 1}
    assert len(names["search"].cv_results_["mean_test_score"]) == 3
    assert np.isfinite(names["search"].cv_results_["mean_test_score"]).all()
