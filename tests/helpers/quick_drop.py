"""A drop of numbered files, and the quick stand-in for the process that trains."""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HELPERS = Path(__file__).parent
QUICK = (sys.executable, str(HELPERS / "quick_work.py"))


class Drop:
    """A drop of numbered files."""

    def __init__(self, folder, n=6, folders=2):
        self.id, self.folder, self.names, self.problems = "d", folder, {}, []
        rng = np.random.default_rng(0)
        for i in range(n):
            own = f"{i % folders:05d}/{i:05d}.png"
            (folder / own).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / own)
            self.names[own] = f"Jane Doe/{i % folders}/scan {i}.png"

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def until(ready, seconds=90):
    """Waits for a condition that a process brings about; its value. Fails where it never comes."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)  # lets the process work; nothing depends on how long
    return found
