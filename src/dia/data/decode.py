"""Decoding: from entries of image files to one `ImageSet` on an array or memory map.

Knows pixels and threads, and the readers of `formats`; trusts the kind of each entry. Does not know how
entries are listed (`layouts`, `volumes`), nor data sets or models. The rules:

- Grey stays 1 channel, colour is 3. A set is grey only when all its images are; grey files in a colour
  set are repeated to RGB. An RGB file with three equal channels is colour, unless `channels=1`.
- Transparency is composited over black. Palette images become RGB.
- Images of more than 8 bits, and floats, become 8 bits by the rule of `formats.windowing`; 16-bit colour
  where the extra `medical` is installed (Pillow keeps its high byte).
- DICOM, NIfTI, MetaImage, NRRD and `.npy`: see `formats.dicom`, `nifti`, `itk` and `npy`.
- EXIF orientation is applied; of a GIF's, WebP's or PNG's frames the first is read.
- Channels are converted first, then images are resized straight to the asked size (Lanczos).
- A mask pixel is True where the file is not zero (black); a mask has the size of its image.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import DataError, first_line, printable
from ..core.running.progress import Bar
from ..core.storage import take_room
from .formats import tiff
from .formats.dicom import Dicom
from .formats.itk import Itk
from .formats.limits import OPENED, check_opened, optional
from .formats.nifti import Nifti
from .formats.npy import Npy
from .formats.volume import Volumes
from .formats.windowing import Stored, View, Window, toned
from .imageset import ImageSet
from .layouts import VOLUMES, Entry, Kind, labels_of
from .options import ReadOptions

_CHUNK = 16  # images that a thread takes at once
_KEPT_BYTES, _KEPT_FILES = 2**30, 64  # of opened files


def decode(
    entries: Sequence[Entry], options: ReadOptions, title: str = "", workers: int | None = None
) -> ImageSet:
    """Decodes entries to one set, in their order.

    Args:
        entries: N images to decode, at least one.
        options: size, channels, window, threads, and whether unreadable files are left out.
        title: of the bar that `options.progress` shows.
        workers: decoding threads, in place of those of the options.

    Returns:
        At most N images of one size with their labels, masks and names; `skipped` says what is missing.

    Raises:
        DataError: an unreadable file (without `skip_bad`; with it, no readable one), images of different
            sizes, or no room for the memory map.
    """
    load = partial(_load, options=options, files=Files(options.view))
    bar = Bar(f"Reading {title}".rstrip(), len(entries), "image", shown=options.progress)
    with bar, closing(_map(load, entries, workers or options.workers)) as loaded:
        whole = _collect(entries, bar.track(loaded), options)
    if not len(whole):
        raise DataError(f"none of {len(entries)} images could be read; the first: {whole.skipped[0]}")
    return whole


def decode_batches(
    entries: Sequence[Entry], options: ReadOptions, batch: int, workers: int | None = None
) -> Generator[ImageSet, None, None]:
    """Decodes `batch` entries at a time, in order; up to a batch more is decoded while one is used.

    Args:
        entries: N images to decode.
        options: as for `decode`.
        batch: how many entries make a set; each set is decoded by itself.
        workers: decoding threads, in place of those of the options.

    Yields:
        Sets of at most `batch` images; with `skip_bad`, a set of which no image can be read is empty.
    """
    load = partial(_load, options=options, files=Files(options.view))
    with closing(_map(load, entries, workers or options.workers, ahead=batch)) as loaded:
        for start in range(0, len(entries), batch):
            part = entries[start : start + batch]
            yield _collect(part, islice(loaded, len(part)), options)


class Files:
    """Opens a file of many images once for all of them, and keeps the last few files, up to a memory limit.

    Threads that need the same file wait until the first of them has opened it.
    """

    def __init__(self, view: View):
        self.view = view
        self._kept: OrderedDict[Path, Future] = OrderedDict()
        self._lock, self._told = Lock(), False

    def image(self, entry: Entry) -> np.ndarray:
        """Reads the pixels of an entry as `(H, W, 1 or 3)` uint8, 0–255, at the file's own size.

        Raises:
            DataError: a file that its reader refuses; on damaged bytes Pillow raises nearly anything else.
        """
        found = self.stored(entry)
        if isinstance(found, Stored):
            found = toned(found, self.view)
        elif entry.kind not in VOLUMES and isinstance(self.view.levels, Window) and not self._told:
            self._told = True
            warnings.warn(
                printable(
                    f"{entry.file}: of 8 bits, taken as it is, though black and white were learned from "
                    "deeper images; give images of the depth that the model was fitted on"
                ),
                stacklevel=2,
            )
        return found if found.ndim == 3 else found[..., None]

    def stored(self, entry: Entry) -> Stored | np.ndarray:
        """Reads the values of an entry, `(H, W)` or `(H, W, 1 or 3)`; as uint8 what nothing is asked of.

        Raises:
            DataError: as `image`.
        """
        found, stack = self._read(entry.file, entry.kind, entry.number), entry.stack
        if stack is None or not isinstance(found, Stored) or found.shallow:
            return found

        def whole() -> tuple[float, float]:
            return stack.ends(lambda file, number: self._read(file, entry.kind, number))

        return replace(found, whole=whole, scattered=True)

    def _read(self, file: Path, kind: Kind, number: int | None) -> Stored | np.ndarray:
        page = number or 0
        if kind in VOLUMES:
            return self._opened(file, kind, number).stored(page)
        if kind in ("tiff", "png"):
            deep = tiff.read_png(file) if kind == "png" else tiff.read(file, page)
            if deep is not None:
                return deep
        try:
            with _open_page(file, page) as image:
                return values(ImageOps.exif_transpose(image))
        except (DataError, MemoryError):
            raise
        except Exception:
            if kind != "tiff":
                raise
            if not optional("tifffile"):
                more = "pip install 'dia-anomaly[medical]' for more kinds of TIFF"
                raise DataError(f"Pillow cannot read it; repair it, or {more}") from None
            if (shallow := tiff.read(file, page, shallow=True)) is not None:
                return shallow.values if shallow.shallow else shallow
            raise

    def mask(self, file: Path, entry: Entry, shape: tuple[int, int]) -> np.ndarray:
        """Reads the mask of an entry as `(H, W)` bool, True where it is not black.

        Args:
            file: the mask's file.
            entry: the image, whose number is that of the mask's slice.
            shape: (H, W) of the image.

        Returns:
            The mask, of that shape.

        Raises:
            DataError: a mask of another size than its image.
        """
        if entry.mask_kind in VOLUMES:
            found = self._opened(file, entry.mask_kind, entry.number).mask(entry.number or 0)
        else:
            with _open_page(file, entry.number or 0) as opened:
                image = ImageOps.exif_transpose(opened)
            deep = image.mode[0] in "IF"  # an 8-bit copy could lose small values
            x = np.asarray(image if deep else image.convert("RGB"))
            found = np.asarray(x.reshape(*x.shape[:2], -1).any(axis=-1))
        if found.shape != shape:
            raise DataError(f"mask {file} is {_size(found.shape)}, its image {_size(shape)}; make them equal")
        return found

    def _opened(self, file: Path, kind: Kind, number: int | None) -> Dicom | Volumes:
        def open_it() -> Dicom | Volumes:
            if kind == "dicom":
                return Dicom(file)
            return (Itk if kind == "itk" else Npy if kind == "npy" else Nifti)(file, self.view)

        if number is None:  # a file of one image is not kept
            return open_it()
        with self._lock:
            future = self._kept.get(file)
            if ours := future is None:
                future = self._kept[file] = Future()
            self._kept.move_to_end(file)
        if ours:
            try:
                future.set_result(open_it())
            except BaseException as error:
                future.set_exception(error)  # for all its images
            with self._lock:
                self._drop()
        return future.result()

    def _drop(self) -> None:
        """Drops the oldest files, until the rest are few or small."""
        done = [k for k, f in self._kept.items() if f.done()]
        sizes = [0 if self._kept[k].exception() else self._kept[k].result().nbytes for k in done]
        while len(done) > 1 and (sum(sizes) > _KEPT_BYTES or len(done) > _KEPT_FILES):
            del self._kept[done.pop(0)], sizes[0]


def _open_page(file: Path, page: int) -> Image.Image:
    """Opens a page of a file that Pillow reads, its pixels not yet decoded."""
    image = Image.open(file, formats=OPENED)
    if page and getattr(image, "n_frames", 1) <= page:
        raise DataError(f"{file.name} has fewer slices than its volume")
    if page:
        image.seek(page)
    check_opened(image, file)
    return image


def values(image: Image.Image) -> Stored | np.ndarray:
    """Returns the values of an opened image, `(H, W)`, where it has more than 8 bits.

    Args:
        image: of any mode.

    Returns:
        The values, or `(H, W, 1 or 3)` uint8, by the rules above.
    """
    if image.mode[0] in "IF":  # 16 bits and more
        return Stored.of(np.asarray(image))
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        over_black = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return over_black[..., :1] if grey else over_black
    x = np.asarray(image.convert("L" if grey else "RGB"))
    return x[..., None] if grey else x


def _load(entry: Entry, options: ReadOptions, files: Files) -> ImageSet | str:
    """Decodes one image with its mask, or returns the line that says why it cannot. Runs in the threads."""
    file = entry.file
    if entry.problem is not None:
        return printable(f"{file}: {entry.problem}")
    try:
        pixels = files.image(entry)
        masks = None if entry.mask is None else files.mask(entry.mask, entry, pixels.shape[:2])[None]
        return options.conform(ImageSet(pixels[None], masks=masks))
    except MemoryError as e:  # not the file's fault, so that no file is left out for it
        raise DataError(f"{file}: there is not the memory to decode it; give a smaller one") from e
    except DataError as e:
        return printable(f"{file}: {e}")
    except Exception as e:  # Pillow's decoders raise nearly anything on malformed bytes
        or_mask = "" if entry.mask is None else f", or its mask {entry.mask.name} is"
        return printable(f"{file}: no image, or damaged{or_mask} ({first_line(e)})")


def _map(
    load: partial, entries: Sequence[Entry], workers: int | None, ahead: int = 0
) -> Generator[ImageSet | str, None, None]:
    """Maps `load` over the entries, in order, in threads: Pillow decodes and resizes without Python's lock.

    The threads work on a sliding window of `ahead` entries, or of enough to keep every thread busy.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers == 1 or len(entries) <= _CHUNK:
        yield from map(load, entries)
        return
    with ThreadPoolExecutor(workers) as pool:
        starts = range(0, len(entries), _CHUNK)
        chunks = (pool.submit(list, map(load, entries[i : i + _CHUNK])) for i in starts)
        window = deque(islice(chunks, max(-(-ahead // _CHUNK), 4 * workers)))
        try:
            while window:
                ready = window.popleft().result()
                window.extend(islice(chunks, 1))
                yield from ready
        finally:
            for future in window:  # the caller wants no more
                future.cancel()


def _collect(entries: Sequence[Entry], loaded: Iterable[ImageSet | str], options: ReadOptions) -> ImageSet:
    """Puts each result into its place in one array, and adds what the entries know of it."""
    images = masks = None
    kept: list[Entry] = []
    native: list[tuple[int, int]] = []
    skipped: list[str] = []
    for entry, one in zip(entries, loaded, strict=True):
        if isinstance(one, str):
            if not options.skip_bad:
                raise DataError(f"{one}; repair it, or leave such files out with --skip-bad")
            skipped.append(one)
            continue
        h, w, c = one.shape
        if images is None:
            images = _allocate((len(entries), h, w, c), options.memmap_above)
            masks = np.zeros((len(entries), h, w), bool) if any(e.mask for e in entries) else None
        elif images.shape[1:3] != (h, w):
            first = f"{kept[0].file} is {_size(images.shape[1:])}"
            sizes = f"{first}, {entry.file} {_size((h, w))}"
            raise DataError(f"height x width differ: {sizes}; give all one size with --size N")
        elif c > images.shape[3]:  # the first colour image among grey ones
            grey, images = images, _allocate((len(entries), h, w, c), options.memmap_above)
            images[: len(kept)] = grey[: len(kept)]
        images[len(kept)] = one.images[0]  # grey is repeated by broadcasting
        if masks is not None and one.masks is not None:
            masks[len(kept)] = one.masks[0]
        kept.append(entry)
        native.append(one.sizes[0] if one.sizes else (h, w))
    if images is None:  # empty, but of the size and channels asked for
        images = options.conform(ImageSet(np.zeros((1, 1, 1, 3), np.uint8))).images
    volumes, patients = tuple(e.volume for e in kept), tuple(e.patient for e in kept)
    return ImageSet(
        images[: len(kept)],
        labels_of(kept),
        None if masks is None else masks[: len(kept)],
        tuple(e.name for e in kept),
        tuple(skipped),
        volumes if any(volumes) else (),
        patients=patients if any(patients) else (),
        sizes=native,
    )


def _allocate(shape: tuple[int, int, int, int], memmap_above: int) -> np.ndarray:
    nbytes = int(np.prod(shape))
    if nbytes <= memmap_above:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # unlinked from the start; the map keeps it alive
        try:
            take_room(file, nbytes, tempfile.gettempdir())
            return np.memmap(file, np.uint8, "w+", shape=shape)
        except OSError as e:
            room = f"{tempfile.gettempdir()}: no room for {nbytes} bytes"
            raise DataError(f"{room}; set TMPDIR or --max-size ({first_line(e)})") from e


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
