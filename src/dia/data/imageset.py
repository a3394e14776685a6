"""`ImageSet`: images as one uint8 array or memory map, with labels, masks, names and patients.

The rest of the package sees images in this form alone. Knows nothing of files, formats or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
from PIL import Image

from ..core.errors import DataError

LUMA = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R 601

NORMAL, ANOMALOUS = 0, 1
NO_DIGEST = 0


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """N images of one size.

    It is indexed as an array is: an integer gives the pixels of one image, a slice or a mask another set.
    Iterating gives the pixels of each image.

    Args:
        images: `(N, H, W, C)` uint8 array or memory map, C = 1 (grey) or 3 (RGB), values 0–255.
        labels: `(N,)` int8, 0 = normal, 1 = anomalous; None where unknown.
        masks: `(N, H, W)` bool, True on anomalous pixels; None where there are none.
        names: N names, unique within the set (relative paths where read from files).
        skipped: one line per file left out on request (`--skip-bad`).
        volumes: for each image the name of the volume it is a slice of, None where of none; empty where no
            image is a slice.
        patients: for each image a text that is the same for all images of a patient, None where the patient
            is not known; empty where none is. It is for comparing only, never to be shown or kept.
        levels: black and white that were learned, where files had more than 8 bits, as the option says.
        unread: how many files of kinds that are not read lie in the folder, by the end of their names.
        sizes: (height, width) of each image before it was resized; empty where none was.

    Raises:
        DataError: shapes, types or lengths that do not fit together.

    Example:
        >>> made = ImageSet(np.zeros((3, 8, 10, 1), np.uint8), labels=np.array([0, 0, 1]))
        >>> made
        ImageSet(3 images of 8×10×1, 2 normal, 1 anomalous)
        >>> made[0].shape, made[made.labels == 0]
        ((8, 10, 1), ImageSet(2 images of 8×10×1, 2 normal, 0 anomalous))
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    names: Sequence[str] = ()
    skipped: Sequence[str] = field(default=())
    volumes: Sequence[str | None] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    patients: Sequence[str | None] = ()
    levels: str | None = None
    sizes: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        x = self.images
        if x.ndim != 4 or x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
            raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {x.dtype} {x.shape}")
        if not self.names:
            object.__setattr__(self, "names", tuple(f"{i:06d}" for i in range(len(x))))
        if len(self.names) != len(x):
            raise DataError(f"{len(self.names)} names for {len(x)} images")
        told = (("names of volumes", self.volumes), ("patients", self.patients), ("sizes", self.sizes))
        for what, of in told:
            if len(of) not in (0, len(x)):
                raise DataError(f"{len(of)} {what} for {len(x)} images")
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

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet: ...
    def __getitem__(self, index: int | np.ndarray | Sequence[int] | slice) -> np.ndarray | ImageSet:
        """Returns the `(H, W, C)` pixels at an integer, or the `subset` at a slice, integers or booleans."""
        return self.images[index] if isinstance(index, int | np.integer) else self.subset(index)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images)

    def __repr__(self) -> str:
        h, w, c = self.shape
        said = [f"{len(self)} image{'s' * (len(self) != 1)} of {h}×{w}×{c}"]
        if self.labels is not None:
            anomalous = int(self.labels.sum())
            said.append(f"{len(self) - anomalous} normal, {anomalous} anomalous")
        if self.masks is not None:
            said.append(f"{int(self.masks.any((1, 2)).sum())} with a mask")
        if self.volumes:
            said.append(f"{len({*self.volumes} - {None})} volumes")
        if self.n_patients:
            said.append(f"{self.n_patients} patients")
        if self.skipped:
            said.append(f"{(n := len(self.skipped))} file{'s' * (n != 1)} skipped")
        return f"ImageSet({', '.join(said)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        h, w, c = self.images.shape[1:]
        return h, w, c

    @property
    def units(self) -> Sequence[str | None]:
        """What each image is a part of: see `units_of`."""
        return units_of(self.patients, self.volumes)

    @property
    def unit_codes(self) -> np.ndarray | None:
        """`(N,)` whole numbers, equal for the images of a unit; None where each image is one of its own."""
        codes = codes_of(self.units, len(self)) if self.units else None
        return codes if codes is not None and codes.max(initial=-1) + 1 < len(self) else None

    @property
    def n_patients(self) -> int | None:
        """The number of patients; None where the patient of an image is not known."""
        return len({*self.patients}) if self.patients and None not in self.patients else None

    def subset(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet:
        """Selects images by integers, booleans or a slice, with all that is known of them."""
        where = np.arange(len(self))[index]
        return ImageSet(
            self.images[index],
            None if self.labels is None else self.labels[index],
            None if self.masks is None else self.masks[index],
            tuple(self.names[i] for i in where),
            self.skipped,
            tuple(self.volumes[i] for i in where) if self.volumes else (),
            self.unread,
            tuple(self.patients[i] for i in where) if self.patients else (),
            self.levels,
            tuple(self.sizes[i] for i in where) if self.sizes else (),
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
            patients=(*self.patients, *(drawn.patients or [None] * count)) if self.patients else (),
            levels=self.levels,
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
        return replace(self, images=images, masks=masks, sizes=self.sizes or [self.shape[:2]] * len(self))

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
        """Hashes shape, pixels, labels and which images are of one patient: what the ledger knows them by.

        Neither names nor patients enter.
        """
        h = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(self), 1024):
            h.update(np.ascontiguousarray(self.images[start : start + 1024]).tobytes())
        if self.labels is not None:
            h.update(self.labels.tobytes())
        if any(self.patients):
            h.update(codes_of(units_of(self.patients), len(self)).tobytes())
        return h.hexdigest()


def pixels_sha256(image: np.ndarray) -> str:
    """Returns the SHA-256 of one image, in hex, by which marks of readers know it again.

    Args:
        image: `(H, W, C)` uint8, at the size that a model takes: its shape and its pixels are hashed.
    """
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def digests(images: np.ndarray) -> np.ndarray:
    """Makes digests, by which images that a model was fitted on are known again, whatever their files' names.

    A digest is 64 bits of a hash of the pixels: no image can be made from it, but who has an image can tell
    whether it was fitted on. Of a million images and a million others, two agree by chance once in some
    twenty million times.

    Args:
        images: `(N, H, W, C)` uint8, at the size that a model takes.

    Returns:
        `(N,)` uint64; `NO_DIGEST` for images of one grey level alone: empty slices are alike in every volume.
    """
    found = np.zeros(len(images), np.uint64)
    for i, image in enumerate(images):  # one by one: a memory map stays one
        if image.min() < image.max():
            h = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
            h.update(np.ascontiguousarray(image).data)
            found[i] = int.from_bytes(h.digest(), "little") or 1
    return found


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


def units_of(patients: Sequence[str | None] = (), volumes: Sequence[str | None] = ()) -> Sequence[str | None]:
    """Names what images are parts of: images of one unit resemble each other, and are no independent draws.

    Args:
        patients: for each image its patient, None where that is not known; empty where none is.
        volumes: for each image the volume that it is a slice of, None for none; empty where none is.

    Returns:
        For each image a text that is equal for its patient, or else its volume; None where it is a unit of
        its own. Empty where neither is known of any image.
    """
    n = max(len(patients), len(volumes))
    pairs = zip(patients or (None,) * n, volumes or (None,) * n, strict=True)
    found = tuple(f"patient {p}" if p is not None else v and f"volume {v}" for p, v in pairs)
    return found if any(found) else ()


def codes_of(units: Sequence[str | None], n: int) -> np.ndarray:
    """Numbers units in the order of their first images, so that the names of the units do not matter.

    Args:
        units: for each image its unit, None where it is one of its own; empty where all are.
        n: how many images.

    Returns:
        `(N,)` int, from 0.
    """
    codes = np.empty(n, int)
    for code, members in enumerate(group_by_unit(n, units)):
        codes[members] = code
    return codes


def group_by_unit(n: int, units: Sequence[str | None] = ()) -> list[list[int]]:
    """Groups the indices of images by unit, in the order of each unit's first image.

    Args:
        n: how many images.
        units: for each image the patient or volume that it is a part of, None for none; empty where none is.

    Returns:
        Lists of indices, one for each unit and for each image that is a unit of its own.
    """
    found: dict[str | int, list[int]] = {}
    for i in range(n):
        unit = units[i] if units else None
        found.setdefault(i if unit is None else unit, []).append(i)
    return list(found.values())


def middle_slices(units: Sequence[str | None], n: int) -> np.ndarray:
    """Finds the middle image of each patient or volume, and each image that is a unit of its own.

    Images of one unit resemble each other and are not drawn one by one; units are.

    Args:
        units: for each image the patient or volume that it is a part of, None for none; empty where none is.
        n: how many images.

    Returns:
        `(U,)` ascending indices, int.
    """
    return np.array(sorted(unit[len(unit) // 2] for unit in group_by_unit(n, units)), int)


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
