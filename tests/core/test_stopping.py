"""A training that is asked to stop leaves a checkpoint, from which it ends as if it had never stopped."""

import os
import signal

import numpy as np
import pytest

from dia.core.running import stopping
from dia.core.running.progress import watched
from dia.detectors import METHODS, wanted_settings

STEPS = 7
SMALL = {"amplify.size": 32, "amplify.width": 8, "amplify.steps": STEPS, "amplify.batch": 8, "samples": 1}


def fresh():
    return METHODS["csi"](wanted_settings("csi", "cpu", SMALL), device="cpu")


def test_stopped_and_resumed_equals_uninterrupted(make_images, tmp_path):
    normals, others = make_images(32, 32), make_images(4, 32, seed=1)
    whole = fresh().fit(normals).score(others)
    seen = []

    def stop_at_three(bar, done):
        if bar.title.startswith("Training") and done == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # heard at the end of this step

    with stopping.heard(), watched(stop_at_three), pytest.raises(stopping.Stopped):
        fresh().fit(normals, workdir=tmp_path, progress=True)
    assert not stopping.wanted()
    with watched(lambda bar, done: seen.append(done) if bar.title.startswith("Training") and done else None):
        resumed = fresh().fit(normals, workdir=tmp_path, resume=True, progress=True)
    assert seen == [4, 5, 6, 7]
    np.testing.assert_allclose(resumed.score(others), whole, rtol=1e-6)


def test_sigterm_ends_a_process_as_usual_once_nobody_listens():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.heard():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
