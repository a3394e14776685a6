"""Medical files and TIFF stacks made for the tests, and pydicom's own reading to compare with."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np


def dicom_file(path: Path, pixels: np.ndarray, *, bits: int | None = None, syntax=None, **attributes) -> Path:
    """Writes `pixels`, (H, W), (frames, H, W), (H, W, 3) or (frames, H, W, 3), with these attributes.

    Args:
        path: the file.
        pixels: unsigned or signed integers, or floats (as float pixel data).
        bits: stored; all of the type's by default.
        syntax: transfer syntax; explicit little endian by default. A compressed one compresses.
        attributes: by keyword; sequences are lists of dicts; None leaves one out.
    """
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    syntax = syntax or uid.ExplicitVRLittleEndian
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    frames = pixels.ndim == 3 + colour
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid()
    ds.Rows, ds.Columns = pixels.shape[frames : frames + 2]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    for keyword, value in attributes.items():
        if value is not None:
            setattr(ds, keyword, _sequence(value) if isinstance(value, list) and _dicts(value) else value)
    little = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if pixels.dtype.kind == "f":
        setattr(ds, "FloatPixelData" if pixels.dtype.itemsize == 4 else "DoubleFloatPixelData", little)
    else:
        ds.BitsStored = bits or ds.BitsAllocated
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = little + b"\0" * (len(little) % 2)
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if syntax.is_compressed and syntax != uid.DeflatedExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def _dicts(value: list) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value)


def _sequence(items: list):
    from pydicom.dataset import Dataset

    made = []
    for item in items:
        ds = Dataset()
        for keyword, value in item.items():
            nested = isinstance(value, list) and _dicts(value)
            setattr(ds, keyword, _sequence(value) if nested else value)
        made.append(ds)
    return made


def lut(values: np.ndarray, first: int, bits: int) -> dict:
    """An item of a modality or VOI LUT sequence."""
    return {
        "LUTDescriptor": [len(values) % 65536, first, bits],
        "LUTData": np.asarray(values).astype("<u2").tobytes(),
    }


def reference(path: Path, index: int = 0) -> np.ndarray:
    """`(H, W, 1 or 3)` of 0–255, not rounded: by pydicom's own functions, the standard's for its order."""
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    ds = pydicom.dcmread(path)
    x = pixel_array(ds, index=index)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(x, ds) / (1 if ds.RedPaletteColorLookupTableDescriptor[2] == 8 else 257)
    if x.ndim == 3:
        return x / (2**ds.BitsStored - 1) * 255
    low, high = (0, 2**ds.BitsStored - 1)
    if ds.PixelRepresentation:
        low, high = -(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1
    low, high = apply_modality_lut(np.array([low, high]), ds).astype(float)
    if "ModalityLUTSequence" in ds:
        low, high = 0, 2 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    x = apply_voi_lut(apply_modality_lut(x, ds), ds)
    if ds.get("VOILUTSequence"):
        low, high = 0, 2 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    y = (x.astype(np.float64) - low) / (high - low)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE"
    return (np.clip(1 - y if inverted else y, 0, 1) * 255)[..., None]


def nifti_file(path: Path, voxels: np.ndarray, affine=None, slope=None, inter=None, kind="Nifti1") -> Path:
    """Writes a volume; with `slope`, the voxels are what is stored."""
    import nibabel

    image = getattr(nibabel, f"{kind}Image")(voxels, np.eye(4) if affine is None else affine)
    image.header.set_data_dtype(voxels.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if slope is None:
        nibabel.save(image, path)
        return path
    # nibabel would divide by the slope: the header and the voxels are written as they are
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"] = slope, inter or 0.0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + b"\0" * (352 - len(header.binaryblock)) + voxels.tobytes(order="F"))
    return path


def meta_file(path: Path, voxels: np.ndarray, *, packed=False, **fields) -> Path:
    """Writes a MetaImage of axes x, y, z; `.mhd` has its voxels in NAME.raw or .zraw. None drops a field."""
    kinds = {"u1": "UCHAR", "i1": "CHAR", "u2": "USHORT", "i2": "SHORT", "f4": "FLOAT", "f8": "DOUBLE"}
    data = voxels.astype(voxels.dtype.newbyteorder("<")).tobytes(order="F")
    data = zlib.compress(data) if packed else data
    beside = path.with_suffix(".zraw" if packed else ".raw")
    header = {
        "ObjectType": "Image", "NDims": voxels.ndim, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": packed, "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": f"MET_{kinds[voxels.dtype.str[1:]]}",
    }  # fmt: skip
    last = {
        "ElementDataFile": fields.pop("ElementDataFile", "LOCAL" if path.suffix == ".mha" else beside.name)
    }
    header = {k: v for k, v in {**header, **fields, **last}.items() if v is not None}
    text = "".join(f"{key} = {value}\n" for key, value in header.items()).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + (data if path.suffix == ".mha" else b""))
    if path.suffix == ".mhd":
        beside.write_bytes(data)
    return path


def nrrd_file(path: Path, voxels: np.ndarray, *, encoding="raw", **fields) -> Path:
    """Writes an NRRD of axes x, y, z, in LPS; `.nhdr` has its voxels in NAME.raw. None drops a field."""
    kinds = {"u1": "uchar", "i1": "int8", "u2": "ushort", "i2": "short", "f4": "float", "f8": "double"}
    data = voxels.astype(voxels.dtype.newbyteorder("<")).tobytes(order="F")
    data = gzip.compress(data) if encoding == "gzip" else data
    header = {
        "type": kinds[voxels.dtype.str[1:]], "dimension": voxels.ndim,
        "sizes": " ".join(map(str, voxels.shape)), "encoding": encoding, "endian": "little",
    }  # fmt: skip
    if voxels.ndim == 3:
        header |= {"space": "left-posterior-superior", "space directions": "(1,0,0) (0,1,0) (0,0,1)"}
    if path.suffix == ".nhdr":
        header["data file"] = path.with_suffix(".raw").name
    header = {k: v for k, v in {**header, **fields}.items() if v is not None}
    text = "NRRD0004\n# made for a test\n" + "".join(f"{key}: {value}\n" for key, value in header.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{text}who:=made it\n\n".encode() + (data if path.suffix == ".nrrd" else b""))
    if path.suffix == ".nhdr":
        path.with_suffix(".raw").write_bytes(data)
    return path


def tiff_stack(path: Path, pages: np.ndarray, *, damaged: int | None = None) -> Path:
    """Writes pages `(N, H, W)`; the pixels of page `damaged` cannot be unpacked."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pages, photometric="minisblack", compression="zlib")
    if damaged is not None:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[damaged]
            start, length = page.dataoffsets[0], page.databytecounts[0]
        data = path.read_bytes()
        path.write_bytes(data[:start] + b"\xff" * length + data[start + length :])
    return path
