"""Phantoms: generated anatomy with fine-grained lesions and their masks. Needs no file; knows no model.

A body with organs, a smooth illumination field, speckled tissue texture and two branching vessel
trees; position, size, tilt, contrast and trees vary from image to image. A lesion changes a small
place only, so that whole-image pixel statistics (brightness, contrast, gradient energy) say little:

- `nodule`: a low-contrast blob, brighter or darker than its surroundings;
- `broken_vessel`: a stretch of one vessel is missing, with a faint pool where it leaked;
- `texture`: the speckle of a patch becomes finer and stronger;
- `haze`: a veil that flattens contrast under it and lightens it a little.

The constants were set by eye and by the untrained controls alone (a first draft, in which vessels ran
anywhere, left every control near chance) and then frozen: see docs/decisions/0002. No detector trains
on these lesions. Image `i` of a split depends on (seed, split, i) alone.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ..core.errors import DataError
from .imageset import ANOMALOUS, NORMAL, ImageSet
from .lesions import faded, random_field, soft_edge

LESIONS = ("nodule", "broken_vessel", "texture", "haze")
SPLITS = {"train": (1000, 0), "val": (200, 200), "test": (200, 200)}  # normals, anomalous
_OVERSAMPLE = 4  # vessels are drawn this much larger, for smooth edges
_RADIUS = {
    "nodule": (0.05, 0.075),
    "broken_vessel": (0.06, 0.08),
    "texture": (0.09, 0.13),
    "haze": (0.09, 0.13),
}
_TINT = np.array([[52.0, 16.0, 20.0], [226.0, 120.0, 92.0], [255.0, 226.0, 190.0]])  # mucosa-like ramp


def load(
    split: str = "test", *, size: int = 64, seed: int = 0, colour: bool = False, n: int | None = None
) -> ImageSet:
    """Draws the phantoms of one split.

    Args:
        split: `train` (normal only), `val` (for development) or `test`.
        size: side in pixels, at least 24.
        seed: another seed is another data set of the same kind.
        colour: RGB in the tints of mucosa instead of grey.
        n: number of images; by default 1000 for train and 400 for val and test, half of them anomalous.

    Returns:
        `(n, size, size, 1 or 3)` uint8 with labels, masks and names `normal/0001`, `nodule/0002`, ….

    Raises:
        DataError: an unknown split, or a size or number out of range.
    """
    if split not in SPLITS:
        raise DataError(f"the phantoms have splits {', '.join(SPLITS)}, not {split!r}")
    normals, anomalous = SPLITS[split]
    if n is not None:
        normals, anomalous = (n, 0) if not anomalous else (n - n // 2, n // 2)
    if size < 24 or normals + anomalous < 1:
        raise DataError("phantoms need a size of at least 24 pixels and at least one image")
    first = SPLITS[split][0]  # index of the first anomalous image, whatever n
    if anomalous and normals > first:
        raise DataError(f"{split} has at most {2 * first} phantoms; another seed gives others")
    images, masks, names = [], [], []
    for i in (*range(normals), *range(first, first + anomalous)):
        kind = LESIONS[i % len(LESIONS)] if anomalous and i >= first else None
        image, mask = phantom(np.random.default_rng([seed, list(SPLITS).index(split), i]), size, kind)
        images.append(_tint(image) if colour else np.rint(image)[..., None].astype(np.uint8))
        masks.append(mask)
        names.append(f"{kind or 'normal'}/{i:04d}")
    labels = np.repeat([NORMAL, ANOMALOUS], [normals, anomalous])
    return ImageSet(np.stack(images), labels, np.stack(masks), tuple(names))


def phantom(rng: np.random.Generator, size: int, lesion: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draws one phantom.

    Args:
        rng: of every draw.
        size: side in pixels, at least 24.
        lesion: one of `LESIONS`; None for a healthy one.

    Returns:
        The image, `(size, size)` float in 0–255, and its lesion's mask, `(size, size)` bool.
    """
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    tilt = np.deg2rad(rng.normal(0, 3))
    x, y = x - rng.normal(0, 0.01), y - rng.normal(0, 0.01)
    x, y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    a, b = rng.uniform(0.40, 0.43), rng.uniform(0.43, 0.46)
    body = _ellipse(x, y, 0, 0, a, b, size)
    image = 24 + body * rng.normal(88, 5)
    image += body * 26 - _ellipse(x, y, 0, 0, a - 0.035, b - 0.035, size) * 26  # rim
    for cx, cy, rx, ry, level in ((-0.17, -0.06, 0.12, 0.19, -26), (0.17, -0.06, 0.12, 0.19, -26),
                                  (0.03, 0.24, 0.16, 0.09, 22), (0.0, -0.30, 0.05, 0.05, 34)):  # fmt: skip
        image += level * rng.uniform(0.85, 1.15) * _ellipse(
            x, y, cx + rng.normal(0, 0.012), cy + rng.normal(0, 0.012),
            rx * rng.uniform(0.9, 1.1), ry * rng.uniform(0.9, 1.1), size,
        )  # fmt: skip
    trees = [_tree(rng, start, heading) for start, heading in (((-0.06, 0.34), -1.85), ((0.06, 0.34), -1.29))]
    centre = _place(rng, trees, lesion)
    vessels, gap = _draw(trees, size, centre if lesion == "broken_vessel" else None)
    square = (size, size)
    illumination = 1 + 0.06 * random_field(rng, square, 0.35 * size)
    texture = 4.5 * random_field(rng, square, 0.012 * size) + 3.5 * random_field(rng, square, 0.035 * size)
    image = image + 40 * vessels * body
    mask = np.zeros((size, size), bool)
    if lesion is not None:
        yy, xx = (np.mgrid[:size, :size] + 0.5) / size - 0.5
        radius = rng.uniform(*_RADIUS[lesion])
        soft = soft_edge(((xx - centre[0]) ** 2 + (yy - centre[1]) ** 2) / (0.6 * radius) ** 2)
        mask = soft > 0.5
        if lesion == "nodule":
            image = image + soft * rng.choice([-1, 1]) * rng.uniform(32, 46)
        elif lesion == "broken_vessel":
            mask |= gap & (body > 0.5)
            image = image + soft * rng.uniform(26, 36)
        elif lesion == "texture":
            texture = texture * (1 - soft) + soft * 16 * random_field(rng, square, 0.008 * size)
        else:
            veil = ndimage.gaussian_filter(image, 0.08 * size) + 28
            image, texture = faded(image, veil, 0.75 * soft), texture * (1 - 0.75 * soft)
    image = image * illumination + texture * (0.25 + 0.75 * body)
    image += rng.normal(0, 2, image.shape)  # sensor noise
    return np.clip(image, 0, 255), mask


def _ellipse(
    x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float, size: int
) -> np.ndarray:
    """Draws an ellipse: 1 inside, 0 outside, with an edge about one pixel wide."""
    r = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return 1 / (1 + np.exp(np.clip((r - 1) * min(rx, ry) * size * 2.5, -50, 50)))


def _tree(rng: np.random.Generator, start: tuple[float, float], heading: float) -> list[np.ndarray]:
    """A branching vessel: polylines `(n, 3)` of x, y and width, in units of the side."""
    branches, todo = [], [(np.array(start), heading + rng.normal(0, 0.06), 0.026, 0)]
    while todo:
        point, angle, width, depth = todo.pop()
        line = [np.array([*point, width])]
        for _ in range(int(rng.integers(10, 13)) - 2 * depth):
            angle += rng.normal(0, 0.05)
            point = point + 0.035 * np.array([np.cos(angle), np.sin(angle)])
            if np.hypot(point[0] / 0.37, point[1] / 0.40) > 1:
                break
            width *= 0.965
            line.append(np.array([*point, width]))
        branches.append(np.stack(line))
        if depth < 1 and len(line) > 4:
            for side in (-1, 1):
                todo.append((point, angle + side * rng.uniform(0.45, 0.65), width * 0.8, depth + 1))
    return branches


def _draw(trees: list[list[np.ndarray]], size: int, gap: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Draws vessels as `(size, size)` coverage in 0–1 but for a gap, and the mask of the missing part."""
    big = size * _OVERSAMPLE

    def render(hidden: np.ndarray | None) -> np.ndarray:
        canvas = Image.new("L", (big, big))
        pen = ImageDraw.Draw(canvas)
        for line in (line for tree in trees for line in tree):
            xy = (line[:, :2] + 0.5) * big
            for p, q, w in zip(xy[:-1], xy[1:], line[1:, 2] * big, strict=True):
                pen.line([*p, *q], fill=255, width=max(int(w), 1))
                r = w / 2
                pen.ellipse([q[0] - r, q[1] - r, q[0] + r, q[1] + r], fill=255)
        if hidden is not None:
            cx, cy, r = (hidden[0] + 0.5) * big, (hidden[1] + 0.5) * big, hidden[2] * big
            pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=0)
        return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), float) / 255

    whole = render(None)
    if gap is None:
        return whole, np.zeros_like(whole, bool)
    broken = render(gap)
    return broken, ndimage.binary_dilation(whole - broken > 0.25)


def _place(rng: np.random.Generator, trees: list[list[np.ndarray]], lesion: str | None) -> np.ndarray:
    """Draws the centre (x, y) and, for a broken vessel, the radius of the lesion, in units of the side."""
    if lesion == "broken_vessel":  # on one of the wider branches, away from its ends
        lines = sorted((line for tree in trees for line in tree if len(line) > 5), key=lambda b: -b[0, 2])[:4]
        line = lines[rng.integers(len(lines))]
        return np.array([*line[rng.integers(2, len(line) - 2), :2], rng.uniform(0.065, 0.09)])
    r, angle = 0.30 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    return np.array([r * np.cos(angle), r * np.sin(angle)])


def _tint(image: np.ndarray) -> np.ndarray:
    """Maps grey 0–255 to RGB uint8 along a ramp from dark vessel red to pale mucosa."""
    stops = np.array([0.0, 128.0, 255.0])
    return np.stack([np.rint(np.interp(image, stops, _TINT[:, c])) for c in range(3)], -1).astype(np.uint8)
