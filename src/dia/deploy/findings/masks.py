"""Masks of findings: PNG at an image's own size; NIfTI and DICOM SEG in the geometry of their source.

A PNG is white where a finding is. A NIfTI file has the voxels of the source (the same array, the same
affine) or, of a DICOM series, those of its slices, and the number of the lesion in each. A SEG refers to the
images of its source and takes patient and study from them, as the standard asks: it is as confidential as
they are. Knows cases; reads headers, and no pixel.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.environment import environment
from ...core.errors import DataError, first_line
from ...data.formats.limits import optional, unfolded
from ...data.formats.mark import save_marked
from ...evaluate.findings import mask_of
from ..heatmaps import MaskForm, mask_path
from .kept import Case, Looked

_UNITS = {1.0: "mm", 1e3: "meter", 1e-3: "micron"}
_NEEDED = {"nifti": "nibabel", "seg": "highdicom"}
_MOST_SEGMENTS = 2**16 - 1


class MaskFiles:
    """Writes the masks of cases.

    Args:
        folder: the folder of all of them.
        forms: what is written: `png` for each image; `nifti` for each volume of a NIfTI, MetaImage or NRRD
            file and each DICOM series; `seg` for each DICOM image or series with a finding.
        method: of the model, which a SEG names as the algorithm.

    Attributes:
        left_out: how many images or volumes have no mask of a form, by the line that says why.

    Raises:
        DataError: a library that a form needs is missing.
    """

    def __init__(self, folder: Path, forms: Sequence[MaskForm], method: str):
        self.folder, self.forms, self.method = folder, tuple(dict.fromkeys(forms)), method
        self.left_out: Counter[str] = Counter()
        for form in self.forms:
            if (name := _NEEDED.get(form)) and optional(name) is None:
                raise DataError(
                    f"--masks-as {form}: it needs {name}; pip install 'dia-anomaly[medical]', or {name} alone"
                )

    def write(self, case: Case) -> None:
        """Writes the masks of a case; earlier ones are replaced, or removed where there is none now."""
        for form in self.forms:
            if form == "png":
                for looked in case.images:
                    drawn = mask_of(looked.findings, looked.size)
                    path = self._place(looked.name, form)
                    save_marked(Image.fromarray(np.where(drawn > 0, 255, 0).astype(np.uint8)), path)
                continue
            mask_path(self.folder, case.name, form).unlink(missing_ok=True)
            if why := (self._nifti if form == "nifti" else self._seg)(case):
                self.left_out[f"--masks-as {form}: {why}"] += 1

    def _place(self, name: str, form: MaskForm) -> Path:
        path = mask_path(self.folder, name, form)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _nifti(self, case: Case) -> str:
        grid = case.grid
        if case.volume is None:
            return "not of images that are no volumes"
        if grid is None or grid.affine is None:
            return "not of volumes whose files do not tell where their voxels lie"
        import nibabel

        many = max((lesion.number for lesion in case.lesions), default=0)
        voxels = np.zeros(grid.shape, np.min_scalar_type(many))
        slices = grid.slices(voxels)
        for looked, number in zip(case.images, case.on_grid, strict=True):
            if looked.size != slices.shape[1:]:
                return "not of volumes whose slices have other sizes than their headers say"
            slices[number] = mask_of(looked.findings, looked.size)
        made = nibabel.Nifti1Image(voxels, grid.affine)
        made.header.set_xyzt_units(_UNITS.get(grid.unit or 0, "unknown"))
        nibabel.save(made, self._place(case.name, "nifti"))
        return ""

    def _seg(self, case: Case) -> str:
        entries = [looked.entry for looked in case.images]
        if any(e is None or e.kind != "dicom" for e in entries):
            return "not of images that are no DICOM files"
        if not case.lesions:
            return "not where there is no finding: the standard has no empty ones"
        if len(case.lesions) > _MOST_SEGMENTS:
            return f"not of more than {_MOST_SEGMENTS} lesions"
        try:
            made = _segmentation(case, self.method)
        except DataError as error:
            return str(error)
        except Exception as error:  # pydicom and highdicom raise nearly anything; they may quote the header
            return f"not of files that lack what the standard asks for ({_told(error)})"
        made.save_as(self._place(case.name, "seg"))
        return ""


def _told(error: Exception) -> str:
    """Returns what may be told of an error: the name of a missing attribute, and nothing that a file says."""
    line = first_line(error)
    name = line.rpartition("attribute ")[2].strip("'\". ")
    return f"no {name}" if isinstance(error, AttributeError) and name.isalnum() else type(error).__name__


def _segmentation(case: Case, method: str) -> Any:
    """Makes a binary segmentation with a segment for each lesion."""
    import highdicom
    from highdicom import seg
    from pydicom.sr.codedict import codes

    with_any = [looked for looked in case.images if looked.findings]
    sources, masks = _sources(case, with_any)
    version = environment()["versions"]["dia"] or "0"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        f"dia-anomaly, {method}", codes.cid7162.ArtificialIntelligence, version
    )
    described = [
        seg.SegmentDescription(
            lesion.number, f"Finding {lesion.number}", codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.MorphologicallyAbnormalStructure, seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm, tracking_id=f"Finding {lesion.number}",
            tracking_uid=highdicom.UID(),
        )
        for lesion in case.lesions
    ]  # fmt: skip
    return seg.Segmentation(
        source_images=sources, pixel_array=masks,
        segmentation_type=seg.SegmentationTypeValues.BINARY, segment_descriptions=described,
        series_instance_uid=highdicom.UID(), series_number=1000, sop_instance_uid=highdicom.UID(),
        instance_number=1, manufacturer="dia-anomaly", manufacturer_model_name=method,
        software_versions=version, device_serial_number="0", series_description="Findings, for research",
        content_label="FINDINGS",
    )  # fmt: skip


def _sources(case: Case, looked: Sequence[Looked]) -> tuple[list[Any], np.ndarray]:
    """Returns the headers of the images, and `(N, H, W)` numbers of lesions; of one file all its frames."""
    import pydicom

    files = dict.fromkeys(i.entry.file for i in looked if i.entry)
    headers = {}
    for file in files:
        data = io.BytesIO(unfolded(file)) if file.suffix.lower() == ".gz" else file
        headers[file] = pydicom.dcmread(data, stop_before_pixels=True)
    drawn = [mask_of(i.findings, i.size).astype(np.uint16) for i in looked]
    first = next(iter(headers.values()))
    frames = int(first.get("NumberOfFrames") or 1)
    if max(frames, len(looked)) > 1 and not first.get("FrameOfReferenceUID"):
        raise DataError("not of several frames that have no place in the body (no FrameOfReferenceUID)")
    if len(files) == 1 and frames > 1:
        whole = np.zeros((frames, *looked[0].size), np.uint16)
        for i, mask in zip(looked, drawn, strict=True):
            whole[(i.entry.number if i.entry else 0) or 0] = mask
        return [*headers.values()], whole
    return [headers[i.entry.file] for i in looked if i.entry], np.stack(drawn)
