"""`ImageSet`: images as one uint8 array or memory map, with labels, masks and names.

The rest of the package sees images in this form alone. Knows nothing of files, formats or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..core.errors import DataError

LUMA = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R 601

NORMAL, ANOMALOUS = 0, 1


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one size.

    Args:
        images: `(N, H, W, C)` uint8 array or memory map, C = 1 (grey) or 3 (RGB), values 0–255.
        labels: `(N,)` int8, 0 = normal, 1 = anomalous; None where unknown.
        masks: `(N, H, W)` bool, True on anomalous pixels; None where there are none.
        names: N names, unique within the set (relative paths where read from files).
        skipped: one line per file left out on request (`--skip-bad`).
        volumes: for each image the name of the volume it is a slice of, None where of none; empty where no
            image is a slice.

    Raises:
        DataError: shapes, types or lengths that do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    names: Sequence[str] = ()
    skipped: Sequence[str] = field(default=())
    volumes: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        x = self.images
        if x.ndim != 4 or x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
            raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {x.dtype} {x.shape}")
        if not self.names:
            object.__setattr__(self, "names", tuple(f"{i:06d}" for i in range(len(x))))
        if len(self.names) != len(x):
            raise DataError(f"{len(self.names)} names for {len(x)} images")
        if self.volumes and len(self.volumes) != len(x):
            raise DataError(f"{len(self.volumes)} names of volumes for {len(x)} images")
        if self.labels is not None:
            labels = np.asarray(self.labels)
            if labels.shape != (len(x),) or not np.isin(labels, (NORMAL, ANOMALOUS)).all():
                raise DataError(f"labels must be {len(x)} values of 0 (normal) or 1 (anomalous)")
            object.__setattr__(self, "labels", labels.astype(np.int8))
        if self.masks is not None:
            masks = np.asarray(self.masks)
            if masks.shape != x.shape[:3]:
                raise DataError(f"masks must be {x.shape[:3]}, not {masks.shape}")
            object.__setattr__(self, "masks", masks.astype(bool, copy=False))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        h, w, c = self.images.shape[1:]
        return h, w, c

    def subset(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet:
        """Selects images by integers, booleans or a slice, with their labels, masks, names and volumes."""
        where = np.arange(len(self))[index]
        return ImageSet(
            self.images[index],
            None if self.labels is None else self.labels[index],
            None if self.masks is None else self.masks[index],
            tuple(self.names[i] for i in where),
            self.skipped,
            tuple(self.volumes[i] for i in where) if self.volumes else (),
        )

    def normals(self) -> ImageSet:
        """Returns the images not known to be anomalous; all of them where there are no labels."""
        if self.labels is None or not self.labels.any():
            return self  # no copy: a memory map stays one
        return self.subset(self.labels == NORMAL)

    def anomalies(self) -> ImageSet:
        """Returns the images known to be anomalous."""
        return self.subset([] if self.labels is None else self.labels == ANOMALOUS)

    def contaminated(self, anomalies: ImageSet, share: float, seed: int = 0) -> ImageSet:
        """Adds anomalies, labelled normal, until they are a given share of all images.

        Args:
            anomalies: the images to draw from.
            share: the share of the anomalies, in [0, 1).
            seed: of the draw.

        Returns:
            These images, followed by the drawn ones, which are labelled normal.

        Raises:
            DataError: a share outside [0, 1), or too few anomalies for it.
        """
        if not 0 <= share < 1:
            raise DataError(f"contamination must lie in [0, 1), not {share}")
        count = round(share / (1 - share) * len(self))
        if count > len(anomalies):
            needed = f"a contamination of {share:g} of {len(self)} normals takes {count} anomalous images"
            raise DataError(f"{needed} with labels; there are {len(anomalies)}")
        if not count:
            return self
        chosen = np.random.default_rng([seed, 2]).choice(len(anomalies), count, replace=False)
        drawn = anomalies.subset(np.sort(chosen)).with_channels(self.shape[2])
        return ImageSet(
            np.concatenate([self.images, drawn.images]),
            np.zeros(len(self) + count, np.int8),
            names=(*self.names, *(f"contamination/{name}" for name in drawn.names)),
            volumes=(*self.volumes, *[None] * count) if self.volumes else (),
        )

    def resized(self, height: int, width: int) -> ImageSet:
        """Resizes every image, by Lanczos, and every mask, by the nearest pixel.

        Args:
            height: in pixels.
            width: in pixels.

        Returns:
            The resized set; self where it has that size.
        """
        if self.shape[:2] == (height, width):
            return self
        images = np.stack([resize(x, height, width) for x in self.images])
        masks = self.masks
        if masks is not None:
            pil = (Image.fromarray(m) for m in masks)
            masks = np.stack([np.asarray(m.resize((width, height), Image.Resampling.NEAREST)) for m in pil])
        return replace(self, images=images, masks=masks)

    def with_channels(self, channels: int) -> ImageSet:
        """Converts to grey (1; ITU-R 601 luma, as in Pillow) or RGB (3; grey repeated).

        Raises:
            DataError: channels other than 1 and 3.
        """
        c = self.shape[2]
        if channels == c:
            return self
        if channels == 3:
            return replace(self, images=np.repeat(self.images, 3, axis=3))
        if channels != 1:
            raise DataError(f"channels must be 1 or 3, not {channels}")
        grey = [np.asarray(Image.fromarray(x).convert("L")) for x in self.images]
        return replace(self, images=np.stack(grey)[..., None])

    def sha256(self) -> str:
        """Hashes shape, pixels and labels (not names): the identity that the ledger records."""
        h = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(self), 1024):
            h.update(np.ascontiguousarray(self.images[start : start + 1024]).tobytes())
        if self.labels is not None:
            h.update(self.labels.tobytes())
        return h.hexdigest()


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes one image by Lanczos.

    Args:
        image: `(H, W, 1 or 3)` uint8.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        `(height, width, 1 or 3)` uint8.
    """
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    out = np.asarray(Image.fromarray(squeezed).resize((width, height), Image.Resampling.LANCZOS))
    return out[..., None] if image.shape[-1] == 1 else out


def group_by_volume(n: int, volumes: Sequence[str | None] = ()) -> list[list[int]]:
    """Groups the indices of images by volume, in the order of each volume's first image.

    Args:
        n: how many images.
        volumes: for each image the volume that it is a slice of, None for none; empty where none is.

    Returns:
        Lists of indices, one for each volume and for each image that is no slice.
    """
    units: dict[str | int, list[int]] = {}
    for i in range(n):
        volume = volumes[i] if volumes else None
        units.setdefault(i if volume is None else volume, []).append(i)
    return list(units.values())


def middle_slices(volumes: Sequence[str | None], n: int) -> np.ndarray:
    """Finds the middle slice of each volume, and each image that is no slice.

    Slices of one volume resemble each other and are not drawn one by one; volumes are.

    Args:
        volumes: for each image the volume that it is a slice of, None for none; empty where none is.
        n: how many images.

    Returns:
        `(U,)` ascending indices, int.
    """
    return np.array(sorted(unit[len(unit) // 2] for unit in group_by_volume(n, volumes)), int)


def subsample(images: np.ndarray, most: int) -> np.ndarray:
    """Takes at most `most` of the images, evenly spaced.

    Args:
        images: `(N, ...)`.
        most: how many to keep, at least 1.

    Returns:
        `images` itself where there are no more than that.
    """
    if len(images) <= most:
        return images
    return images[np.linspace(0, len(images) - 1, most).astype(int)]
