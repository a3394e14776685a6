"""What a reader should know of normals before a training begins, in the words of who reads scans.

Runs in a process of its own (`work.py`). Knows images, what `dia data check` finds in them, and words; knows
no requests, and no name that is not in the files: a drop's are numbers here.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ....core.errors import DataError
from ....core.running.progress import Bar
from ....data.imageset import ImageSet
from ....data.layouts import MissingSplit, meaning
from ....data.readers import Listing
from .normals import Source, is_anomalous

THUMBS, SIDE = 12, 96  # pictures that are shown, and the longer side of each, in pixels
MIXED = 512  # pixels of the longer side of images that have to be resized to one size, at most
MANY = 100  # normals from which on a threshold is a steady one
_SHOWN = 8  # examples of a finding
_PROBLEMS = 50  # files that could not be read, named at most


def look(
    source: Source, place: str, data_root: str | None, cls: Any, rate: float, most: int
) -> dict[str, Any]:
    """Looks at all images of a source.

    Args:
        source: the normals.
        place: what they are opened with.
        data_root: the folder of sets.
        cls: class of the method that will be trained.
        rate: false-alarm rate of the threshold, in (0, 1).
        most: pixels of the longer side, to which the method's images are shrunk.

    Returns:
        `usable`, `headline`, `findings` (each `kind`: good, note, warn or stop, `words`, and `examples`,
        pairs or single names), `images` (normals to train on), `kinds`, `sizes` ([height, width, images]),
        `size` (to which they have to be resized; None), `folders` ([name, images, meaning]),
        `problems` ([name, line]) and `thumbs` (JPEG files in base64).

    Raises:
        DataError: nothing of it can be read.
    """
    listing = source.listing(place, data_root, "train", 0)
    sizes, problems, thumbs, levels = _seen(listing)
    if not sizes:
        first = f": {problems[0][1]}" if problems else ""
        raise DataError(f"none of {len(listing)} files could be read{first}")
    found: dict[str, Any] = {
        "kinds": dict(Counter(e.kind for e in listing.entries if not is_anomalous(e))) or {"npz": 0},
        "sizes": [[h, w, n] for (h, w), n in sizes.most_common(_SHOWN)],
        "size": None if len(sizes) == 1 else common_size(sizes, most),
        "folders": _folders(source, listing), "problems": problems[:_PROBLEMS], "thumbs": thumbs,
    }  # fmt: skip
    sized = replace(source, size=found["size"])
    sets = {"train": sized.listing(place, data_root, "train", most).read()}
    for split in ("val", "test") if source.kind == "set" else ():
        try:
            other = sized.listing(place, data_root, split, most).read()
        except (MissingSplit, DataError):
            continue
        if other.names != sets["train"].names:
            sets[split] = other
    said = _words(sets, found, cls, rate, len(sizes), levels, listing, source.kind == "drop")
    stop = any(f["kind"] == "stop" for f in said)
    n = len(sets["train"].normals())
    headline = f"{n} normal images can be trained on" if not stop else "these images cannot be trained on"
    return {**found, "images": n, "findings": said, "usable": not stop, "headline": headline}


def _seen(listing: Listing) -> tuple[Counter[tuple[int, int]], list[list[str]], list[str], list[float]]:
    """Reads each normal at its own size: (sizes, problems, pictures, contrast of each picture)."""
    sizes: Counter[tuple[int, int]] = Counter()
    problems, thumbs, spans = list[list[str]](), list[str](), list[float]()
    wanted = {round(i) for i in np.linspace(0, max(len(listing) - 1, 0), min(THUMBS, len(listing)))}
    with Bar("Reading the images", len(listing), "image") as bar:
        for i, one in enumerate(listing.stream(1)):
            problems += [_problem(line, listing) for line in one.skipped]
            if len(one) and (one.labels is None or one.labels[0] == 0):
                sizes[one.shape[:2]] += 1
                if i in wanted:
                    thumbs.append(thumbnail(one.images[0]))
                    spans.append(float(np.ptp(np.percentile(one.images[0], (2, 98)))))
            bar.update(i + 1)
    return sizes, problems, thumbs, spans


def _problem(line: str, listing: Listing) -> list[str]:
    """Splits the line of a file that is left out: (its name in the listing, what is wrong)."""
    for entry in listing.entries:
        if line.startswith(f"{entry.file}: "):
            return [entry.name.partition("#")[0], line[len(f"{entry.file}: ") :].partition(" (")[0]]
    return ["", line]


def thumbnail(image: np.ndarray) -> str:
    """Returns a small JPEG of an image `(H, W, 1 or 3)` uint8, in base64."""
    small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()


def common_size(sizes: Mapping[tuple[int, int], int], most: int) -> tuple[int, int]:
    """Returns the size to which images of several sizes are resized: the usual one, not above a limit.

    Args:
        sizes: images by (height, width).
        most: pixels of the longer side.

    Returns:
        (H, W): the medians of both, shrunk.
    """
    each = np.repeat(np.array([*sizes]), [*sizes.values()], axis=0)
    height, width = np.median(each, axis=0)
    scale = min(1.0, min(most, MIXED) / max(height, width))
    return max(round(height * scale), 8), max(round(width * scale), 8)


def _folders(source: Source, listing: Listing) -> list[list[Any]]:
    """The folders right below the place: (name, images, what the name tells)."""
    if listing.whole is not None:
        return []
    counted = Counter(name.partition("/")[0] for name in listing.names if "/" in name)
    chosen = (source.normal or "").split(",") if source.kind == "set" else []
    if chosen == [""] and any(e.label is not None or e.split is not None for e in listing.entries):
        return []  # the set says itself which are normal
    return [[name, n, meaning(name)] for name, n in counted.items()]


def _words(
    sets: Mapping[str, ImageSet], found: Mapping[str, Any], cls: Any, rate: float, n_sizes: int,
    spans: Sequence[float], listing: Listing, of_drop: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Says what was found, the worst last where that is a reason to stop."""
    from ....detectors.calibration import fewest_for
    from ....evaluate.quality import check

    normals = sets["train"].normals()
    with Bar("Looking for copies"):
        facts = check({n: images for n, images in {**sets, "train": normals}.items() if len(images)})
    train, anomalous = facts["splits"]["train"], len(sets["train"].anomalies())
    n, said = len(normals), list[dict[str, Any]]()

    def say(kind: str, words: str, examples: Sequence[Sequence[str]] = ()) -> None:
        said.append({"kind": kind, "words": words, "examples": [list(e) for e in examples][:_SHOWN]})

    colour = "colour" if normals.shape[2] == 3 else "grey"
    kinds = f"{n} normal image{'s' * (n != 1)} ({', '.join(KINDS.get(k, k) for k in found['kinds'])})"
    (h, w), shape = found["sizes"][0][:2], normals.shape
    if n_sizes > 1:
        say("note", f"{kinds}; {colour}, of {n_sizes} sizes (most often {w} × {h} pixels). All are resized "
            f"to {shape[1]} × {shape[0]}: look whether very long or wide ones should stay out.")  # fmt: skip
    else:
        shrunk = f", shrunk to {shape[1]} × {shape[0]}" if (h, w) != shape[:2] else ""
        say("good", f"{kinds}; {colour}, all of {w} × {h} pixels{shrunk}.")
    if (levels := listing.reading.levels) and ":" in levels:
        black, white = (float(v) for v in levels.split(":")[:2])
        say("note", f"More than 8 bits: black is {black:g} and white {white:g}, learned from these images "
            "and kept in the model.")  # fmt: skip
    if spans and float(np.median(spans)) < 24:
        say("warn", "The images show hardly any contrast. Were they exported with the wrong window?")
    if anomalous:
        say("good", f"{anomalous} images are labelled anomalous and are left out.")
    _say_unread(say, found, sets["train"])
    _say_copies(say, facts, n)
    if train.get("volumes"):
        say("note", f"{train['slices']} of them are slices of {train['volumes']} volumes.")
    if train.get("patients"):
        say("good", f"{train['patients']} patients; no patient is judged by images of their own.")
    else:
        remedy = "put each patient's into a folder of their own and tick “one folder is one patient”; else "
        said_so = f"Patients are not known. If some have several images, {remedy if of_drop else ''}"
        say("note", f"{said_so}p-values are too small.")
    _say_splits(say, facts, sets, listing)
    if n < cls.fewest:
        say("stop", f"{n} normal image{'s' * (n != 1)}: {cls.method} needs at least {cls.fewest}. Add more.")
    elif min(shape[:2]) < cls.smallest:
        say("stop", f"Images of {shape[1]} × {shape[0]} pixels are too small: {cls.method} needs "
            f"{cls.smallest} on each side.")  # fmt: skip
    else:
        judged = train.get("patients", n) if not train.get("volumes") else n
        held = judged if cls.leaves_one_out else max(int(judged * 0.1), 1)
        if held < fewest_for(rate):
            say("warn", f"Too few for a false-alarm rate of {100 * rate:.3g} %: about {held} of them set the "
                f"threshold, and {fewest_for(rate)} are needed. Nothing would be flagged; images are still "
                "ranked. Add normals, or allow more false alarms.")  # fmt: skip
        elif n < MANY:
            say("note", f"{n} normals are few. The threshold gets steadier with {MANY} and more.")
    return said


KINDS = {
    "plain": "JPEG or the like", "png": "PNG", "tiff": "TIFF", "dicom": "DICOM", "nifti": "NIfTI",
    "itk": "MetaImage or NRRD", "npy": "arrays", "npz": "of an .npz",
}  # fmt: skip


def _say_unread(say: Any, found: Mapping[str, Any], train: ImageSet) -> None:
    if bad := len(train.skipped):
        files = "1 file" if bad == 1 else f"{bad} files"
        say("warn", f"{files} could not be read and {'is' if bad == 1 else 'are'} left out.",
            [[name, line] for name, line in found["problems"]])  # fmt: skip
    if other := sum(train.unread.values()):
        say("note", f"{other} files are of kinds that are no images and are left out.")


def _say_copies(say: Any, facts: Mapping[str, Any], n: int) -> None:
    train, near = facts["splits"]["train"], facts["near_duplicates"]["within"]["train"]
    same = train["duplicates"]["images"]
    if same:
        say("warn", f"{same} {'image has' if same == 1 else 'images have'} exactly the pixels of another. "
            "Copies make the model believe that it has seen more than it has.",
            [g[:2] for g in train["duplicates"]["groups"]])  # fmt: skip
    alike = near["images"] - same
    if alike > 0:
        pairs = [[p["earlier"]["name"], p["image"]["name"]] for p in near["pairs"] if p["distance"] > 0]
        are = "is" if alike == 1 else "are"
        say("warn" if alike > n / 10 else "note", f"{alike} {are} nearly the same as another: perhaps saved "
            "twice, or of one patient.", pairs)  # fmt: skip
    if not same and alike <= 0:
        say("good", "No copies and no near-duplicates among them.")


def _say_splits(say: Any, facts: Mapping[str, Any], sets: Mapping[str, ImageSet], listing: Listing) -> None:
    for split in sets:
        if split == "train":
            continue
        of = facts["splits"][split]
        sick = f", {of['anomalous']} of them anomalous" if of["anomalous"] else ""
        say(
            "note",
            f"{of['images']} images for {'tuning' if split == 'val' else 'testing'} are left alone{sick}.",
        )
    leaks = sum(leak["images"] for leak in facts["leaks"])
    if leaks:
        are = "is" if leaks == 1 else "are"
        say("warn", f"{leaks} of those to train on {are} among those to test on, too: the report leaves them "
            "out.")  # fmt: skip
    shared = sum(s["patients"] for s in facts["shared_patients"])
    if shared:
        say("warn", f"{shared} patients have images on both sides, to train on and to test on.")
    if listing.set_aside:
        say("note", f"{listing.set_aside} normal images are set aside, to judge the model on.")
