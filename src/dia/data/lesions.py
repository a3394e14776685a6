"""Lesions pasted into normal images, with their masks, to measure how fine a detector sees on *these* images.

Knows images only, no model. Sizes are diameters as a share of the shorter side of the image. Contrast lies
in (0, 1] and means, by kind:

| kind | what changes | contrast |
|---|---|---|
| nodule | a domed blob, brighter or darker | height of the dome, share of the grey range |
| intensity | the tissue there, where it is as grey as the centre, is brighter or darker | likewise |
| streak | a thin bent line, an eighth as wide as the size is long | likewise |
| texture | finer, stronger speckle on top | twice its standard deviation, share of the grey range |
| haze | a pale veil that flattens what is under it | its opacity |
| blur | detail is smoothed away | how much of it |
| missing | a structure is replaced by what is around it, with the texture of elsewhere | how much of it |
| displaced | a structure is pushed aside; nothing tears | greatest shift, share of a quarter of the size |

The grey range is that of the image itself, its body's 5th to 95th percentile. Lesions lie inside the body,
where black or white background touches the border; the last three lie where there is something to lose.
Each depends on the pixels of its own image, the kind and the seed alone: neither its neighbours nor its place
in a batch matter, and a stronger one is the same draw.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..core.errors import DataError
from .imageset import LUMA

VERSION = 1  # raised when equal arguments give other lesions than before
SMALLEST = 8  # side in pixels
SIZES = (0.08, 0.16, 0.32)  # of the usual tests, as are the contrasts
CONTRASTS = (0.1, 0.2, 0.4, 0.8)
_FLAT = 12.0  # grey levels: what differs less from the darkest or brightest border may be background
_PROFILE = np.sqrt(2 * np.log(2))  # brings the edge, where the profile is half, to radius 1


def soft_edge(squared: np.ndarray) -> np.ndarray:
    """Returns a profile from 1 to 0 that is flat on top, over the squared distance from the centre."""
    return np.exp(-0.5 * squared**2)


def random_field(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Draws a Gaussian random field of mean 0 and variance 1.

    Args:
        rng: of the draw.
        shape: (H, W) in pixels.
        scale: over how many pixels it is correlated; 0.3 at least.

    Returns:
        `(H, W)` float64.
    """
    field = ndimage.gaussian_filter(rng.standard_normal(shape), max(scale, 0.3), mode="wrap")
    return (field - field.mean()) / field.std()


def faded(image: np.ndarray, veil: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Draws a veil over an image.

    Args:
        image: grey values, of any shape.
        veil: grey values of the veil, of the same shape.
        opacity: of the veil at each pixel, 0–1.

    Returns:
        Grey values of the same shape.
    """
    return image * (1 - opacity) + opacity * veil


@dataclass(frozen=True, eq=False)
class Ground:
    """An image to paste into.

    Args:
        image: `(H, W, C)` float.
        grey: its luma, `(H, W)`.
        depth: distance of each pixel from the outside of the body, in pixels.
        range: its grey range, grey levels.
    """

    image: np.ndarray
    grey: np.ndarray
    depth: np.ndarray
    range: float

    @classmethod
    def of(cls, image: np.ndarray) -> Ground:
        """Measures an image, `(H, W, C)` uint8."""
        x = image.astype(np.float64)
        grey = x[..., 0] if x.shape[-1] == 1 else x @ LUMA
        inside = body(grey)
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        low, high = np.percentile(grey[inside], (5, 95))
        return cls(x, grey, depth, max(float(high - low), 1.0))


@dataclass(frozen=True, eq=False)
class Spot:
    """A place for a lesion: centre (row, column), radius in pixels, squared distance `(H, W)` in radii."""

    row: int
    column: int
    radius: float
    squared: np.ndarray

    @property
    def soft(self) -> np.ndarray:
        """`(H, W)`: 1 within, half at the edge, 0 without."""
        return soft_edge(self.squared * _PROFILE)


def body(grey: np.ndarray) -> np.ndarray:
    """Finds the body in `(H, W)` luma: a bool mask, all True where no background is found.

    Background is black or white, nearly constant and touches the border. It must take up a hundredth of the
    image and leave a fifth of it.
    """
    smooth = ndimage.uniform_filter(grey, 3, mode="nearest")
    border = np.zeros(grey.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    background = np.zeros(grey.shape, bool)
    black, white = smooth < grey.min() + _FLAT, smooth > grey.max() - _FLAT
    for flat, is_there in ((black, grey.min() < 40), (white, grey.max() > 250)):
        if is_there:
            labels, _ = ndimage.label(flat)
            background |= np.isin(labels, np.setdiff1d(labels[border], 0))
    inside = ndimage.binary_fill_holes(~background)
    labels, count = ndimage.label(inside)
    if count > 1:
        inside = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    share = inside.mean()
    return inside if 0.2 <= share <= 0.99 else np.ones(grey.shape, bool)


def paste(
    images: np.ndarray, kind: str, size: float | np.ndarray, contrast: float | np.ndarray, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes one lesion of a kind into each image.

    Args:
        images: `(N, H, W, C)` uint8, sides of at least 8 pixels, C = 1 or 3.
        kind: one of `KINDS`.
        size: diameter as a share of the shorter side, in (0, 1]; one for all, or `(N,)`.
        contrast: in (0, 1], in the kind's own units; one for all, or `(N,)`.
        seed: another seed is another lesion in another place.

    Returns:
        `(N, H, W, C)` uint8 with the lesions, and `(N, H, W)` bool masks, none of them empty: where the
        lesion has at least half of its effect.

    Raises:
        DataError: an unknown kind, sizes or contrasts out of range, images that are too small.
    """
    if kind not in KINDS:
        raise DataError(f"no lesion {kind!r}; there are: {', '.join(KINDS)}")
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    if min(images.shape[1:3]) < SMALLEST:
        raise DataError(f"lesions need images of at least {SMALLEST} pixels a side, not {images.shape[1:3]}")
    sizes, contrasts = (np.broadcast_to(np.asarray(v, float), len(images)) for v in (size, contrast))
    for name, values in (("size", sizes), ("contrast", contrasts)):
        if not ((values > 0) & (values <= 1)).all():
            raise DataError(f"the {name} of a lesion must lie in (0, 1], not {values.tolist()[:3]}")
    out, masks = np.empty_like(images), np.empty(images.shape[:3], bool)
    for i, image in enumerate(images):
        key = zlib.crc32(np.ascontiguousarray(image).tobytes())
        rng = np.random.default_rng([seed, list(KINDS).index(kind), key])
        ground = Ground.of(image)
        spot = place(ground, sizes[i] * min(images.shape[1:3]) / 2, rng, structured=kind in _STRUCTURED)
        changed, weight = KINDS[kind](ground, spot, float(contrasts[i]), rng)
        out[i] = np.clip(np.rint(changed), 0, 255)
        masks[i] = weight >= 0.5
        masks[i, spot.row, spot.column] |= not masks[i].any()
    return out, masks


def place(ground: Ground, radius: float, rng: np.random.Generator, *, structured: bool = False) -> Spot:
    """Draws a place within the body where a lesion of this radius fits, or nearly.

    Args:
        ground: the image.
        radius: of the lesion, in pixels; half a pixel at least.
        rng: of the draw.
        structured: only in the half of the places with more local contrast.

    Returns:
        The place and the shape of the lesion there.
    """
    radius = max(radius, 0.5)
    fits = ground.depth >= min(radius, 0.6 * ground.depth.max())
    if structured:
        mean = ndimage.gaussian_filter(ground.grey, radius)
        contrast = ndimage.gaussian_filter((ground.grey - mean) ** 2, radius)
        fits &= contrast >= np.median(contrast[fits])
    rows, columns = np.nonzero(fits)
    chosen = int(rng.uniform() * len(rows))
    row, column = int(rows[chosen]), int(columns[chosen])
    # an ellipse of the same area, its border slightly wavy
    ratio, angle = rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
    y, x = np.indices(ground.grey.shape, float)
    y, x = y - row, x - column
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    squared = (u * u * ratio + v * v / ratio) / radius**2
    turn = np.arctan2(v, u)
    waves = sum(rng.normal(0, 0.06) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    return Spot(row, column, radius, squared * (1 + waves))


def _signed(ground: Ground, spot: Spot, step: float, rng: np.random.Generator) -> float:
    """Draws the sign of a step, so that grey values stay in their range."""
    sign = rng.choice([-1.0, 1.0])
    there = float(np.average(ground.grey, weights=spot.soft + 1e-9))
    return -sign * step if not 0 <= there + sign * step <= 255 else sign * step


Changed = tuple[np.ndarray, np.ndarray]  # the image, and the share of the effect at each pixel
Lesion = Callable[[Ground, Spot, float, np.random.Generator], Changed]


def _nodule(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    dome = np.exp(-np.log(2) * s.squared**1.5)
    return g.image + _signed(g, s, contrast * g.range, rng) * dome[..., None], dome


def _intensity(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    smooth = ndimage.gaussian_filter(g.grey, 0.7)
    alike = np.exp(-0.5 * ((smooth - smooth[s.row, s.column]) / (0.25 * g.range)) ** 2)
    weight = s.soft * alike
    return g.image + _signed(g, s, contrast * g.range, rng) * weight[..., None], weight


def _streak(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    angle, bend = rng.uniform(0, np.pi), rng.normal(0, 0.25)
    y, x = np.indices(g.grey.shape, float)
    y, x = (y - s.row) / s.radius, (x - s.column) / s.radius
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    half_width = max(1 / 8, 0.5 / s.radius)  # of the radius; a pixel wide at least
    aside = (across - bend * along**2) / half_width
    weight = soft_edge(along**2 * _PROFILE) * soft_edge(aside**2 * _PROFILE)
    return g.image + _signed(g, s, contrast * g.range, rng) * weight[..., None], weight


def _texture(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    speckle = random_field(rng, g.grey.shape, 0.008 * min(g.grey.shape))
    return g.image + (contrast * g.range / 2 * s.soft * speckle)[..., None], s.soft


def _haze(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    veil = ndimage.gaussian_filter(g.image, (s.radius, s.radius, 0)) + 0.2 * g.range
    return faded(g.image, np.minimum(veil, 255), contrast * s.soft[..., None]), s.soft


def _blur(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    sigma = max(s.radius / 2, 0.7)
    smooth = ndimage.gaussian_filter(g.image, (sigma, sigma, 0))
    return faded(g.image, smooth, contrast * s.soft[..., None]), s.soft


def _missing(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    sigma = (s.radius, s.radius, 0)
    outside = (1 - s.soft)[..., None] + 1e-6
    around = ndimage.gaussian_filter(g.image * outside, sigma) / ndimage.gaussian_filter(outside, sigma)
    detail = g.image - ndimage.gaussian_filter(g.image, (1, 1, 0))
    turn = rng.uniform(0, 2 * np.pi)  # the texture of a neighbouring place
    shift = tuple(round(3 * max(s.radius, 1) * float(f(turn))) for f in (np.sin, np.cos))
    filled = around + np.roll(detail, shift, (0, 1)) * (np.roll(g.depth, shift, (0, 1)) > 1)[..., None]
    return faded(g.image, filled, contrast * s.soft[..., None]), s.soft


def _displaced(g: Ground, s: Spot, contrast: float, rng: np.random.Generator) -> Changed:
    turn = rng.uniform(0, 2 * np.pi)
    shift = contrast * s.radius / 2 * s.soft
    y, x = np.indices(g.grey.shape, float)
    where = np.stack([y + shift * np.sin(turn), x + shift * np.cos(turn)])
    channels = np.moveaxis(g.image, -1, 0)
    moved = [ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in channels]
    return np.stack(moved, -1), s.soft


KINDS: dict[str, Lesion] = {
    "nodule": _nodule,
    "intensity": _intensity,
    "streak": _streak,
    "texture": _texture,
    "haze": _haze,
    "blur": _blur,
    "missing": _missing,
    "displaced": _displaced,
}
_STRUCTURED = ("blur", "missing", "displaced")
