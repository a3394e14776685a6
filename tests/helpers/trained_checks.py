"""What every trained detector with a backbone must pass; its own test file says with which settings."""

from functools import partial

import numpy as np
import pytest
import torch

from dia.detectors import Detector, cache


def batches_do_not_matter(detector, x, *, spread=1e-4, rtol=1e-3, atol=1e-6):
    """An image's score is its own: not its batch's, not the order's, not chance's."""
    whole, order = detector.score(x), np.random.default_rng(0).permutation(len(x))
    assert whole.dtype == np.float64
    assert np.ptp(whole) > spread
    np.testing.assert_allclose(detector.score(x, batch=1), whole, rtol=rtol, atol=atol)
    np.testing.assert_allclose(detector.score(x[order], batch=4), whole[order], rtol=rtol, atol=atol)
    torch.manual_seed(123)  # the caller's random numbers play no part
    assert np.array_equal(detector.score(x), whole)


def loads_without_a_hub(detector, x, folder, monkeypatch):
    """What was saved scores alike, and asks no hub for its networks."""
    detector.save(folder)
    monkeypatch.setattr("dia.detectors.peers.backbones._fetched", lambda *_: pytest.fail("asked the hub"))
    loaded = Detector.load(folder, device="cpu")
    assert loaded.settings == detector.settings
    assert np.array_equal(loaded.score(x), detector.score(x))
    if detector.has_heatmaps():
        assert np.array_equal(loaded.heatmap(x), detector.heatmap(x))
    return loaded


def resumes_as_uninterrupted(make, module, images, workdir, monkeypatch):
    """Killed at its last of four steps and resumed from the second, it ends with the same tensors.

    `make()` gives the detector, with 19 of the 24 images in batches of 8, twice; `module` is its training.
    """
    whole = make().fit(images)
    monkeypatch.setattr(cache, "train", partial(cache.train, checkpoint_every=2))
    real, seen, armed = module.training_step, [], [True]

    def training_step(self, batch, index):
        if self.global_step == 3 and armed:
            armed.clear()
            raise RuntimeError("killed")
        seen.append(self.global_step)
        return real(self, batch, index)

    monkeypatch.setattr(module, "training_step", training_step)
    with pytest.raises(RuntimeError, match="killed"):
        make().fit(images, workdir=workdir)
    seen.clear()
    resumed = make().fit(images, workdir=workdir, resume=True)
    assert seen == [2, 3]
    for name, value in whole._tensors().items():
        assert np.array_equal(resumed._tensors()[name], value), name
