"""What every method in the registry must keep, asked of each with the same tests; and its tiny settings.

`TINY` is the one place where settings stand that fit any method in seconds on one core. A method from outside
is held to the same by adding its entry there.
"""

import json
from contextlib import contextmanager

import lightning as L
import numpy as np
import pytest
import torch
from conftest import SEED, smooth_images
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dia.core.errors import DataError
from dia.core.settings import from_dict, plain
from dia.detectors import CONTROLS, METHODS, PEERS, TRIVIAL, Detector
from dia.detectors.presets import PRESETS, settings
from dia.detectors.registry import wanted_settings

_ENCODER = {"amplify.size": 32, "amplify.width": 8, "amplify.steps": 4, "amplify.batch": 8, "samples": 1}
_DISSOLVER = {"dissolver.size": 16, "dissolver.widths": [8, 16], "dissolver.steps": 4, "dissolver.batch": 8}
_SMALL = {"size": 32, "batch": 8, "epochs": 2}
_RESNET = _SMALL | {"backbone": "resnet18"}
TINY = {
    "dia+": _DISSOLVER | {"dissolver.kind": "diffusion", "ts": [50, 200], "map_size": 96},
    "dia": _ENCODER | _DISSOLVER | {"ts": [40, 80]},
    "csi": _ENCODER,
    "msc": _RESNET,
    "transformaly": _SMALL | {"lr": 1e-3},
    "kdad": _SMALL,
    "uniad": _RESNET | {"width": 32, "layers": 2, "neighbours": 1, "lr": 1e-3},
    "ganomaly": _SMALL | {"n_features": 4, "latent_vec_size": 8},
    "cflow": _RESNET | {"coupling_blocks": 2, "layers": ["layer1", "layer2"]},
    "uflow": _RESNET | {"flow_steps": 1},
    "fastflow": _RESNET | {"flow_steps": 2},
    "rd4ad": _RESNET,
    "efficientad": {"steps": 2, "statistics": 2, "teacher_out_channels": 4},
    "cfa": _RESNET,
    "patchcore": {"size": 32, "batch": 8, "backbone": "resnet18", "coreset_sampling_ratio": 0.05},
    "control:detail": {"size": 64},
    "control:length": {"size": 96},
    "control:centre": {},
} | {name: {} for name in TRIVIAL}

ADDED = [m for m in TINY if m not in TRIVIAL and m not in CONTROLS]  # those whose fit runs training steps
SLOW = "efficientad"  # its network sees 256 px: an image takes most of a second
H, W = 28, 36


def fresh(method, seed=SEED, **changes):
    """An unfitted detector with tiny settings, which `changes` by dotted name alter."""
    return METHODS[method](wanted_settings(method, "cpu", TINY[method] | changes), seed=seed, device="cpu")


def needs_libraries(method):
    """Skips where the library that trains the method is not installed."""
    if method in PEERS:
        pytest.importorskip("anomalib", reason="the eight of anomalib need the extra `peers`")
    elif METHODS[method].pretrained:
        pytest.importorskip("timm")


class _Watch(Callback):
    """Counts training batches, and stops before one of them as a kill would."""

    def __init__(self):
        self.seen, self.last = 0, None

    def on_train_batch_start(self, *_):
        if self.seen == self.last:
            raise RuntimeError("killed")
        self.seen += 1


@contextmanager
def watched(last=None):
    """All training within counts its batches, and keeps a checkpoint of each; `last` is not begun."""
    watch, real = _Watch(), L.Trainer.fit
    watch.last = last

    def fit(self, *args, **kwargs):
        self.callbacks.append(watch)
        for callback in self.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps > 1:
                callback._every_n_train_steps = 1
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L.Trainer, "fit", fit)
        yield watch


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def normals():
    return smooth_images(24, H, W)


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


def unless_slow(methods):
    return [pytest.param(m, marks=pytest.mark.slow) if m == SLOW else m for m in methods]


@pytest.fixture(scope="module", params=unless_slow(METHODS))
def fast(request):
    """A method whose fit takes seconds; the slow one among the slow tests."""
    return request.param


@pytest.fixture(scope="module", params=unless_slow(ADDED))
def trained(request):
    return request.param


@pytest.fixture(scope="module")
def others(normals):
    """New images for a method: fewer where one takes long."""
    x = np.concatenate([smooth_images(5, H, W, seed=5), 255 - normals[:4]])
    return lambda method: x[::4] if method == SLOW else x


@pytest.fixture(scope="module")
def fitted(normals):
    """A method's fitted detector, and how many training batches its fit took; made once."""
    made = {}

    def get(method):
        if method not in made:
            needs_libraries(method)
            with watched() as watch:
                made[method] = fresh(method).fit(normals), watch.seen
        return made[method]

    return get


def test_tiny_settings_are_known_of_every_method():
    assert set(TINY) == set(METHODS)


# --- what needs no fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_json(method, preset):
    cls = METHODS[method]
    s = settings(cls.Settings, preset)
    assert isinstance(s, cls.Settings)
    back = from_dict(cls.Settings, json.loads(json.dumps(plain(s))))
    assert back == s
    assert cls(back).settings_hash() == cls(s).settings_hash()


def test_a_clone_is_unfitted_with_equal_parameters(method):
    detector = fresh(method, seed=3)
    copy = clone(detector)
    assert type(copy) is type(detector)
    assert copy.get_params() == detector.get_params()
    for asked in (copy.threshold, lambda: copy.score(smooth_images(1, H, W))):
        with pytest.raises(NotFittedError):
            asked()


def test_too_few_too_small_and_other_arrays_are_refused(method, normals):
    fewest = fresh(method).fewest
    for images, words in (
        (normals[: fewest - 1], f"^{fewest - 1} normal images to fit on; at least {fewest} "),
        (normals[:, :1, :1], "images of 1×1 pixels"),
        (normals.astype(np.float32), "uint8 array"),
        (normals[..., 0], "uint8 array"),
        (np.concatenate([normals, normals], 3), "uint8 array"),
    ):
        with pytest.raises(DataError, match=words):
            fresh(method).fit(images)


# --- what a fitted one keeps ---------------------------------------------------------------------------


def test_a_score_is_its_images_own(fast, fitted, others):
    """Not that of the other images of its batch, nor of their order; and chance plays no part."""
    detector, x = fitted(fast)[0], others(fast)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    whole = detector.score(x)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert (whole.shape, whole.dtype) == ((len(x),), np.float64)
    assert np.isfinite(whole).all()
    assert np.ptp(whole) > 0 or fast == "control:centre"  # to which all images are alike
    close = {"rtol": 1e-3, "atol": 1e-3 * np.ptp(whole)}
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_allclose(detector.score(x, batch=1), whole, **close)
    np.testing.assert_allclose(detector.score(x[order], batch=4), whole[order], **close)


def test_a_heatmap_has_the_images_size_or_is_none(fast, fitted, others):
    x = others(fast)[:3]
    maps = fitted(fast)[0].heatmap(x)
    assert (maps is not None) == METHODS[fast].has_heatmaps()
    if maps is not None:
        assert (maps.shape, maps.dtype) == ((len(x), H, W), np.float32)
        assert np.isfinite(maps).all()
        assert np.ptp(maps) > 0
        alone = fitted(fast)[0].heatmap(x, batch=1)
        np.testing.assert_allclose(alone, maps, rtol=1e-2, atol=1e-2 * np.ptp(maps))


def test_what_was_saved_is_what_is_loaded(fast, fitted, others, tmp_path):
    (detector, _), x = fitted(fast), others(fast)[:3]
    with torch.inference_mode():  # as anomalib loads; it changes nothing
        loaded = Detector.load(detector.save(tmp_path / "model"), device="cpu")
    assert type(loaded) is METHODS[fast]
    assert loaded.settings == detector.settings
    assert loaded.settings_hash() == detector.settings_hash()
    np.testing.assert_allclose(loaded.calibration_.scores, detector.calibration_.scores, rtol=1e-6)
    np.testing.assert_allclose(loaded.score(x), detector.score(x), rtol=1e-6)
    assert (detector.heat_ is not None) == detector.has_heatmaps()
    if detector.has_heatmaps():
        np.testing.assert_allclose(loaded.heatmap(x), detector.heatmap(x), rtol=1e-5, atol=1e-6)
        assert loaded.heat_.to_json() == detector.heat_.to_json()
        low, high = loaded.heat_.scale
        assert low < high


def test_other_images_than_it_was_fitted_on_are_refused(fast, fitted, normals):
    detector = fitted(fast)[0]
    for images in (normals[:2, :, :-1], np.repeat(normals[:2], 3, 3)):
        with pytest.raises(DataError, match=r"the model was fitted on \(28, 36, 1\)"):
            detector.score(images)


def test_the_seed_decides_alone(trained, fitted, normals, others):
    x = others(trained)
    torch.manual_seed(99)
    again = fresh(trained).fit(normals)
    np.testing.assert_allclose(again.score(x), fitted(trained)[0].score(x), rtol=1e-6)


def test_killed_and_resumed_equals_uninterrupted(trained, fitted, normals, others, tmp_path):
    """Killed before its last training batch; what was finished before is not trained again."""
    whole, batches = fitted(trained)
    assert batches > 1
    with watched(last=batches - 1) as killed, pytest.raises(RuntimeError, match="killed"):
        fresh(trained).fit(normals, workdir=tmp_path)
    with watched() as watch:
        resumed = fresh(trained).fit(normals, workdir=tmp_path, resume=True)
    assert killed.seen == batches - 1
    at_once = trained in (SLOW, "patchcore")  # within one epoch of anomalib's, which keeps its ends alone
    assert watch.seen in ([batches] if at_once else range(1, batches))
    np.testing.assert_allclose(resumed.score(others(trained)), whole.score(others(trained)), rtol=1e-6)
    with watched() as watch:
        fresh(trained).fit(normals, workdir=tmp_path, resume=True)
    assert watch.seen == 0
