"""A small model, and images to mark: anomalies that it hardly sees, and normals that it flags."""

import numpy as np

from dia.data import phantoms
from dia.detectors import DIAPlus
from dia.detectors.diaplus import DIAPlusSettings

SETTINGS = DIAPlusSettings(
    size=64, place_size=64, map_size=64, views=("cells", "coarse", "pooled", "shape", "detail")
)
SIDE = 32


def phantom(n, part="train", start=0):
    """`(n, 32, 32, 1)` uint8, normal."""
    drawn = phantoms.load(part, size=SIDE, n=2 * (n + start) if part == "test" else n + start)
    return drawn.normals().images[start : start + n]


def ramped(images, height=14):
    """The same images, darker on the left and brighter on the right: an anomaly of one kind."""
    ramp = np.linspace(-height, height, images.shape[2])[None, None, :, None]
    return np.clip(images + ramp, 0, 255).astype(np.uint8)


def noisy(images, sd=3, seed=0):
    """The same images with noise: normal, but not such as the model was fitted on."""
    noise = np.random.default_rng(seed).normal(0, sd, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def fitted(n=150, settings=SETTINGS, seed=0):  # with fewer the probe has too few components
    """A model of n phantoms."""
    detector = DIAPlus(settings, device="cpu", seed=seed)
    detector.facts_ = {"preset": "cpu"}
    return detector.fit(phantom(n))


def marks(n=12):
    """Images of two kinds in turn, `(2n, 32, 32, 1)`, and labels: 1 of ramps, 0 of noise."""
    base = phantom(2 * n, "test")
    images = np.concatenate([ramped(base[:n]), noisy(base[n:])])
    return images, np.repeat([1, 0], n)
