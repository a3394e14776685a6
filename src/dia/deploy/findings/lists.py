"""The lists of findings that users keep: JSON in the form of COCO, and CSV. Knows cases; reads no image.

COCO: https://cocodataset.org/#format-data. A finding without holes has polygons; one with holes has
uncompressed run lengths, which pycocotools reads, as COCO's polygons have no holes. What COCO does not know
is added beside: `score` (the peak), `p_value`, `area_mm2`, `lesion`, and the list `lesions` of volumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.formats.spreadsheet import csv_text, marked
from ...evaluate.findings import Finding, told
from .kept import Case, FindingsKept, Looked, runs_of

COLUMNS = (
    "path", "volume", "slice", "x", "y", "width", "height", "area_px", "area_mm2", "centroid_x", "centroid_y",
    "peak", "p_value", "lesion", "lesion_p_value", "lesion_volume_mm3",
)  # fmt: skip
_END = "\r\n"


def write_list(path: Path, kept: FindingsKept, about: Mapping[str, Any]) -> tuple[int, int]:
    """Writes all findings, whole or not at all.

    Args:
        path: a .json or .csv; an older one is replaced.
        kept: the findings, which are read case by case.
        about: what stands in the JSON's `info`.

    Returns:
        The number of findings, and of images with one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            found = (_json if path.suffix == ".json" else _csv)(file, kept, about)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return found


def _json(file: Any, kept: FindingsKept, about: Mapping[str, Any]) -> tuple[int, int]:
    categories = [{"id": 1, "name": "anomaly", "supercategory": ""}]
    file.write(f'{{"info": {json.dumps(dict(about))},\n"categories": {json.dumps(categories)},\n"images": [')
    many = 0
    for case in kept.cases():
        for looked in case.images:
            file.write(",\n" * (many > 0) + json.dumps(_image(case, looked)))
            many += 1
    file.write('],\n"annotations": [')
    many, images, lesions = 0, 0, list[str]()
    for case in kept.cases():
        for looked in case.images:
            images += bool(looked.findings)
            for finding in looked.findings:
                many += 1
                file.write(",\n" * (many > 1) + json.dumps(_annotation(many, looked, finding)))
        if case.volume is not None:
            lesions += [json.dumps({"volume": case.volume, **told(lesion)}) for lesion in case.lesions]
    between = ",\n"
    file.write(f'],\n"lesions": [{between.join(lesions)}]}}\n')
    return many, images


def _image(case: Case, looked: Looked) -> dict[str, Any]:
    s, grid = looked.spacing, case.grid
    between = grid.spacing.z if grid is not None and grid.spacing is not None else s and s.z
    return {
        "id": looked.index + 1, "file_name": looked.name, "width": looked.size[1], "height": looked.size[0],
        "volume": case.volume, "slice": looked.number,
        "spacing_mm": None if s is None else [s.y, s.x], "spacing_at": None if s is None else s.at,
        "slice_distance_mm": between if case.volume is not None else None,
    }  # fmt: skip


def _annotation(number: int, looked: Looked, f: Finding) -> dict[str, Any]:
    if f.holes:
        whole = np.zeros(looked.size[::-1], bool)  # columns first, as COCO counts
        x, y, w, h = f.box
        whole[x : x + w, y : y + h] = f.mask.T
        shape: Any = {"size": list(looked.size), "counts": runs_of(whole)}
    else:
        # a place of less than half a pixel may have a ring of no extent, which COCO's tools refuse
        rings = [r for r in f.contour if len(r) > 2] or [_box_ring(f)]
        shape = [r.ravel().tolist() for r in rings]
    return {
        "id": number, "image_id": looked.index + 1, "category_id": 1, "iscrowd": 0, "segmentation": shape,
        "bbox": list(f.box), "area": f.area_px, "area_mm2": f.area_mm2,
        "centroid": [round(v, 2) for v in f.centroid], "score": f.peak, "p_value": round(f.p_value, 6),
        "lesion": f.lesion,
    }  # fmt: skip


def _box_ring(f: Finding) -> np.ndarray:
    x, y, w, h = f.box
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], float)


def _csv(file: Any, kept: FindingsKept, _: Mapping[str, Any]) -> tuple[int, int]:
    many = images = 0
    file.write(marked(csv_text([COLUMNS], ends=_END), kept.listing.names))
    for case in kept.cases():
        lesions = {lesion.number: lesion for lesion in case.lesions}
        rows = []
        for looked in case.images:
            images += bool(looked.findings)
            for f in looked.findings:
                own = lesions[f.lesion]
                x, y = (round(v, 2) for v in f.centroid)
                slice_ = "" if looked.number is None else looked.number
                rows.append((
                    looked.name, case.volume or "", slice_, *f.box, f.area_px, _told(f.area_mm2), x, y,
                    f.peak, round(f.p_value, 6), f.lesion, round(own.p_value, 6), _told(own.volume_mm3),
                ))  # fmt: skip
        many += len(rows)
        file.write(csv_text(rows, ends=_END))
    return many, images


def _told(value: float | None) -> float | str:
    return "" if value is None else value
