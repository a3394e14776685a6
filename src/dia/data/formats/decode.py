"""Decoding: image files in, one uint8 array (or memory map) out.

Knows files and pixels; knows nothing of layouts, splits, labels or names (`readers`), data sets or models.
The rules:

- Grey stays 1 channel, colour is 3. A set is grey only when all its images are; grey files in a colour
  set are repeated to RGB. An RGB file with three equal channels is colour, unless `channels=1`.
- Transparency is composited over black. Palette images become RGB.
- 16-bit grey (also 32-bit integers within 0–65535) is divided by 257 and rounded: a fixed rule, the same
  for every image; 16-bit colour too, where the extra `medical` is installed (Pillow keeps its high byte).
  Float images are refused, as no fixed rule fits their unknown range, unless a window is stated.
- DICOM and NIfTI: see `dicom` and `nifti`.
- EXIF orientation is applied; of a GIF's, WebP's or PNG's frames the first is read.
- Channels are converted first, then images are resized straight to the asked size (Lanczos).
- A mask pixel is True where the file is not zero (black); a mask has the size of its image.
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from ...core.errors import DataError, printable
from ...core.storage import take_room
from ..imageset import ImageSet
from .dicom import Dicom
from .limits import OPENED, has, kind_of
from .nifti import Nifti
from .tiff import check_opened, to_8_bits
from .tiff import read as read_deep
from .windowing import DEFAULT_VIEW, View, Window

_CHUNK = 16  # images that a thread takes at once
_KEPT_BYTES, _KEPT_FILES = 2**30, 64  # of opened files


class Source(NamedTuple):
    """One image.

    Args:
        file: that holds it.
        mask: the file of its mask, where there is one.
        number: of the frame, slice or page, from 0; None where the file is one image.
        problem: why it cannot be read, where that is known.
    """

    file: Path
    mask: Path | None = None
    number: int | None = None
    problem: str | None = None


class Decoded(NamedTuple):
    """What `decode` made of its sources.

    Args:
        images: `(N, H, W, 1 or 3)` uint8.
        masks: `(N, H, W)` bool; None where no source has a mask.
        kept: N indices into the sources.
        skipped: one line per source that could not be read.
    """

    images: np.ndarray
    masks: np.ndarray | None
    kept: list[int]
    skipped: list[str]


def decode(
    sources: Sequence[Source],
    fit: partial[ImageSet],
    view: View = DEFAULT_VIEW,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    memmap_above: int = 2**30,
    progress: str | None = None,
) -> Decoded:
    """The pixels of `sources`, in order.

    Args:
        sources: what to decode, at least one.
        fit: `conform` with the asked size and channels; applied to every image as a set of one.
        view: how DICOM, NIfTI and floats become 8 bits.
        skip_bad: leave out what cannot be read, instead of raising.
        workers: decoding threads, by default one per core; 1 decodes in the caller's.
        memmap_above: images of more bytes than this go to a memory map on an unlinked temporary file.
        progress: title of a bar on stderr; None for no bar.

    Raises:
        DataError: an unreadable file, images of different sizes, or no room for the memory map.
    """
    bar = Progress(console=Console(stderr=True), disable=progress is None)
    with bar, closing(_map(partial(_load, fit=fit, files=Files(view)), sources, workers)) as loaded:
        shown = bar.track(loaded, len(sources), description=escape(progress or ""))
        whole = _collect(sources, shown, fit, skip_bad, memmap_above)
    if not whole.kept:
        raise DataError(f"none of {len(sources)} images could be read; the first: {whole.skipped[0]}")
    return whole


def decode_batches(
    sources: Sequence[Source],
    fit: partial[ImageSet],
    batch: int,
    view: View = DEFAULT_VIEW,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    memmap_above: int = 2**30,
) -> Generator[Decoded, None, None]:
    """As `decode`, `batch` sources at a time, in order; up to a batch more is decoded while one is used.

    Each batch is decoded as a set of its own. One of which no image can be read is empty, with `skip_bad`.
    """
    load = partial(_load, fit=fit, files=Files(view))
    with closing(_map(load, sources, workers, ahead=batch)) as loaded:
        for start in range(0, len(sources), batch):
            part = sources[start : start + batch]
            yield _collect(part, islice(loaded, len(part)), fit, skip_bad, memmap_above)


def conform(
    images: ImageSet,
    size: int | tuple[int, int] | None = None,
    max_size: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """`images` with the channels and size that `read` was asked for.

    Raises:
        DataError: a size below 1, or channels other than 1 and 3.
    """
    if channels is not None:
        images = images.with_channels(channels)
    height, width, _ = images.shape
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    elif max_size is not None and max_size < (longer := max(height, width)):
        height, width = (max(1, round(n * max_size / longer)) for n in (height, width))
    if min(height, width) < 1 or (max_size is not None and max_size < 1):
        raise DataError(f"a size must be at least 1 pixel, not {max_size if size is None else size}")
    return images.resized(height, width)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class Files:
    """Files of many images, opened once for all of them: the last few are kept, up to a bound of memory.

    Threads that want one file wait for the first of them to open it.
    """

    def __init__(self, view: View):
        self.view = view
        self._kept: OrderedDict[tuple[Path, bool], Future] = OrderedDict()
        self._lock = Lock()

    def image(self, file: Path, number: int | None) -> np.ndarray:
        """`(H, W, 1 or 3)` uint8."""
        kind = kind_of(file)
        if kind in ("dicom", "nifti"):
            return self._opened(file, kind, number).image(number or 0)
        page, window = number or 0, self.view.stated
        if (deep := read_deep(file, page, window)) is not None:
            return deep
        try:
            with Image.open(file, formats=OPENED) as opened:
                if page:
                    opened.seek(page)
                check_opened(opened, file)
                return _pixels(ImageOps.exif_transpose(opened), window)
        except (DataError, MemoryError):
            raise
        except Exception:
            if (shallow := read_deep(file, page, window, shallow=True)) is not None:
                return shallow
            if kind == "tiff" and not has("tifffile"):
                more = "pip install 'dia-anomaly[medical]' for more kinds of TIFF"
                raise DataError(f"Pillow cannot read it; repair it, or {more}") from None
            raise

    def mask(self, file: Path, number: int | None, shape: tuple[int, int]) -> np.ndarray:
        """`(H, W)` bool, True where not black."""
        kind = kind_of(file)
        if kind in ("dicom", "nifti"):
            found = self._opened(file, kind, number, mask=True).mask(number or 0)
        else:
            found = _mask(file, number)
        if found.shape != shape:
            raise DataError(f"mask {file} is {_size(found.shape)}, its image {_size(shape)}; make them equal")
        return found

    def _open(self, file: Path, kind: str, mask: bool) -> Dicom | Nifti:
        return Dicom(file, self.view) if kind == "dicom" else Nifti(file, self.view, mask=mask)

    def _opened(self, file: Path, kind: str, number: int | None, *, mask: bool = False) -> Dicom | Nifti:
        if number is None:  # a file of one image is not kept
            return self._open(file, kind, mask)
        with self._lock:
            future = self._kept.get((file, mask))
            if ours := future is None:
                future = self._kept[file, mask] = Future()
            self._kept.move_to_end((file, mask))
        if ours:
            try:
                future.set_result(self._open(file, kind, mask))
            except BaseException as error:
                future.set_exception(error)  # for all its images
            with self._lock:
                self._drop()
        return future.result()

    def _drop(self) -> None:
        """Lets the oldest go, until the rest are few or small."""
        done = [k for k, f in self._kept.items() if f.done()]
        sizes = [0 if self._kept[k].exception() else self._kept[k].result().nbytes for k in done]
        while len(done) > 1 and (sum(sizes) > _KEPT_BYTES or len(done) > _KEPT_FILES):
            del self._kept[done.pop(0)], sizes[0]


def _pixels(image: Image.Image, window: Window | None = None) -> np.ndarray:
    """`(H, W, 1 or 3)` uint8 by the rules above."""
    if image.mode[0] in "IF":  # 16 bits and more
        return to_8_bits(np.asarray(image), window)[..., None]
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        over_black = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return over_black[..., :1] if grey else over_black
    x = np.asarray(image.convert("L" if grey else "RGB"))
    return x[..., None] if grey else x


def _mask(file: Path, number: int | None) -> np.ndarray:
    """`(H, W)` bool, True where not black."""
    with Image.open(file, formats=OPENED) as opened:
        if number is not None and getattr(opened, "n_frames", 1) <= number:
            raise DataError(f"mask {file} has fewer slices than its volume")
        opened.seek(number or 0)
        check_opened(opened, file)
        image = ImageOps.exif_transpose(opened)
    deep = image.mode[0] in "IF"  # an 8-bit copy could lose small values
    x = np.asarray(image if deep else image.convert("RGB"))
    return np.asarray(x.reshape(*x.shape[:2], -1).any(axis=-1))


def _load(source: Source, fit: partial[ImageSet], files: Files) -> ImageSet | str:
    """One image with its mask, or the line that says why not. Runs in the decoding threads."""
    file, mask, number, problem = source
    if problem is not None:
        return printable(f"{file}: {problem}")
    try:
        pixels = files.image(file, number)
        masks = None if mask is None else files.mask(mask, number, pixels.shape[:2])[None]
        return fit(ImageSet(pixels[None], masks=masks))
    except MemoryError as e:  # no fault of the file, so that none is left out for it
        raise DataError(f"{file}: there is not the memory to decode it; give a smaller one") from e
    except DataError as e:
        return printable(f"{file}: {e}")
    except Exception as e:  # Pillow's decoders raise nearly anything on malformed bytes
        or_mask = "" if mask is None else f", or its mask {mask.name} is"
        return printable(f"{file}: no image, or damaged{or_mask} ({first_line(e)})")


def _map(
    load: partial, sources: Sequence[Source], workers: int | None, ahead: int = 0
) -> Generator[ImageSet | str, None, None]:
    """`load` over the sources, in order, in threads: Pillow decodes and resizes without Python's lock.

    They work on a sliding window: `ahead` sources, or what keeps every thread busy if that is more.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers == 1 or len(sources) <= _CHUNK:
        yield from map(load, sources)
        return
    with ThreadPoolExecutor(workers) as pool:
        starts = range(0, len(sources), _CHUNK)
        chunks = (pool.submit(_load_all, load, sources[i : i + _CHUNK]) for i in starts)
        window = deque(islice(chunks, max(-(-ahead // _CHUNK), 4 * workers)))
        try:
            while window:
                ready = window.popleft().result()
                window.extend(islice(chunks, 1))
                yield from ready
        finally:
            for future in window:  # the caller has had enough
                future.cancel()


def _load_all(load: partial, sources: Sequence[Source]) -> list[ImageSet | str]:
    return [load(source) for source in sources]


def _collect(
    sources: Sequence[Source],
    loaded: Iterable[ImageSet | str],
    fit: partial[ImageSet],
    skip_bad: bool,
    memmap_above: int,
) -> Decoded:
    """Each result straight into its place in one array."""
    images = masks = None
    kept: list[int] = []
    skipped: list[str] = []
    for i, one in enumerate(loaded):
        if isinstance(one, str):
            if not skip_bad:
                raise DataError(f"{one}; repair it, or leave such files out with --skip-bad")
            skipped.append(one)
            continue
        h, w, c = one.shape
        if images is None:
            images = _allocate((len(sources), h, w, c), memmap_above)
            masks = np.zeros((len(sources), h, w), bool) if any(s.mask for s in sources) else None
        elif images.shape[1:3] != (h, w):
            first = f"{sources[kept[0]].file} is {_size(images.shape[1:])}"
            sizes = f"{first}, {sources[i].file} {_size((h, w))}"
            raise DataError(f"height x width differ: {sizes}; give all one size with --size N")
        elif c > images.shape[3]:  # the first colour image among grey ones
            grey, images = images, _allocate((len(sources), h, w, c), memmap_above)
            images[: len(kept)] = grey[: len(kept)]
        images[len(kept)] = one.images[0]  # grey is repeated by broadcasting
        if masks is not None and one.masks is not None:
            masks[len(kept)] = one.masks[0]
        kept.append(i)
    if images is None:  # empty, but of the size and channels asked for
        images = fit(ImageSet(np.zeros((1, 1, 1, 3), np.uint8))).images
    n = len(kept)
    return Decoded(images[:n], None if masks is None else masks[:n], kept, skipped)


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
