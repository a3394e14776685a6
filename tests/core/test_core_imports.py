"""The core needs neither torchvision nor timm: it imports and trains with both out of reach."""

import os
import subprocess
import sys

SCRIPT = """
import sys
from importlib import metadata

BLOCKED = ("torchvision", "timm")
find = metadata.Distribution.from_name


def from_name(name):
    if name.lower() in BLOCKED:
        raise metadata.PackageNotFoundError(name)
    return find(name)


metadata.Distribution.from_name = from_name  # not installed, for those who ask first
for name in BLOCKED:
    sys.modules[name] = None  # and not importable, for those who try

import numpy as np
import dia, dia.dissolve, dia.amplify.contrast, dia.detectors
from dia.amplify.contrast import AmplifySettings
from dia.detectors.dia import CSI, CSISettings

images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
settings = CSISettings(AmplifySettings(size=16, width=4, steps=2, batch=4), samples=1)
scores = CSI(settings, device="cpu").fit(images).score(images)
assert np.isfinite(scores).all()
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & set(BLOCKED)
print("trained")
"""


def test_the_core_trains_without_torchvision_and_timm():
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two steps this small only wait for a second one
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "trained"
