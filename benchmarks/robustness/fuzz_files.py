"""Tiny valid files of every kind that is read: seeds for the fuzzer, and writers that take any lie.

The writers put down what they are told, sizes and checksums that fit it included: a library's own writer
would refuse. Knows formats; knows nothing of what reads them.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

GREY = np.arange(80, dtype=np.uint8).reshape(8, 10)
COLOUR = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)

# --- plain images -------------------------------------------------------------------------------------------


def pillow(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def workbook_seeds() -> list[bytes]:
    """Manifests as .xlsx, packed and not."""
    from openpyxl import Workbook

    book, buffer, plain = Workbook(), io.BytesIO(), io.BytesIO()
    for row in (["path", "label", "age"], ["a.png", 0, 3.5], ["b.png", "bad", "=1+1"]):
        book.active.append(row)
    book.save(buffer)
    with zipfile.ZipFile(buffer) as packed, zipfile.ZipFile(plain, "w") as stored:
        for part in packed.namelist():
            stored.writestr(part, packed.read(part))
    return [buffer.getvalue(), plain.getvalue()]


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG, with the right checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int = 10, height: int = 8, depth: int = 8, colour: int = 0, *, interlace: int = 0,
    data: bytes | None = None, more: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:  # fmt: skip
    """A PNG of this header; without `data`, of as many zeros as the header says."""
    if data is None:
        samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
        data = bytes((width * samples * depth // 8 + 1) * height)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), *(chunk(*m) for m in more), chunk(b"IDAT", zlib.compress(data, 1))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def plain_seeds() -> list[bytes]:
    """What Pillow reads, and deep PNG."""
    palette = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(palette, "PNG", transparency=3)
    exif = Image.Exif()
    exif[274] = 6
    alpha = np.concatenate([COLOUR, GREY[..., None]], -1)
    deep = [png(5, 4, 16, colour) for colour in (0, 2, 4, 6)]
    more = [pillow(COLOUR, "JPEG", exif=exif), pillow(GREY, "JPEG", progressive=True), palette.getvalue()]
    kinds = ("PNG", "BMP", "GIF", "WEBP", "PPM")
    return [*deep, *more, *(pillow(COLOUR, k) for k in kinds), pillow(alpha, "PNG"), pillow(GREY, "PNG")]


# --- TIFF ---------------------------------------------------------------------------------------------------

TAGS = {
    "width": 256, "length": 257, "bits": 258, "compression": 259, "photometric": 262, "offsets": 273,
    "orientation": 274, "samples": 277, "rows": 278, "counts": 279, "planar": 284, "predictor": 317,
    "palette": 320, "tile_width": 322, "tile_length": 323, "tile_offsets": 324, "tile_counts": 325,
    "extra": 338, "format": 339,
}  # fmt: skip


def tiff(data: bytes, tags: Mapping[str, Sequence[int]], *, big: bool = False, loop: bool = False) -> bytes:
    """A TIFF of one page, of the tags given; offsets of the strip are filled in where they are None."""
    e = ">" if big else "<"
    start = 8 + len(data)
    entries, extra = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for name, values in sorted(tags.items(), key=lambda kv: TAGS[kv[0]]):
        values = [v % 2**32 for v in values]
        kind, code = (4, "I") if max(values, default=0) > 65535 or "offsets" in name else (3, "H")
        packed = struct.pack(f"{e}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{e}I", after + len(extra)), extra + packed
        entries += struct.pack(f"{e}HHI", TAGS[name], kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{e}I", start)
    return head + data + struct.pack(f"{e}H", len(tags)) + entries + struct.pack(
        f"{e}I", start if loop else 0
    ) + extra  # fmt: skip


def tags(pixels: np.ndarray) -> dict[str, list[int]]:
    """Of an uncompressed page that holds these pixels."""
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    return {
        "width": [pixels.shape[1]], "length": [pixels.shape[0]],
        "bits": [8 * pixels.itemsize] * samples, "compression": [1],
        "photometric": [2 if samples == 3 else 1], "offsets": [8], "samples": [samples],
        "rows": [pixels.shape[0]], "counts": [pixels.nbytes],
        "format": [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * samples,
    }  # fmt: skip


def tiff_seeds() -> list[bytes]:
    """8, 16 and 32 bits, floats, colour, several pages, compressed."""
    seeds = [tiff(x.tobytes(), tags(x)) for x in (GREY, GREY * np.uint16(9), COLOUR, GREY * np.float32(0.1))]
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        seeds.append(pillow(GREY, "TIFF", compression=compression))
    pages = io.BytesIO()
    first, second = Image.fromarray(GREY), Image.fromarray(GREY + 9)
    first.save(pages, "TIFF", save_all=True, append_images=[second])
    return [*seeds, pages.getvalue(), tiff(zlib.compress((COLOUR * np.uint16(200)).tobytes()), tags(
        COLOUR * np.uint16(200)) | {"compression": [8], "counts": [9999]})]  # fmt: skip


# --- DICOM --------------------------------------------------------------------------------------------------

VR = {
    "Rows": (0x00280010, b"US"), "Columns": (0x00280011, b"US"), "NumberOfFrames": (0x00280008, b"IS"),
    "SamplesPerPixel": (0x00280002, b"US"), "PhotometricInterpretation": (0x00280004, b"CS"),
    "PlanarConfiguration": (0x00280006, b"US"), "BitsAllocated": (0x00280100, b"US"),
    "BitsStored": (0x00280101, b"US"), "HighBit": (0x00280102, b"US"),
    "PixelRepresentation": (0x00280103, b"US"), "WindowCenter": (0x00281050, b"DS"),
    "WindowWidth": (0x00281051, b"DS"), "RescaleIntercept": (0x00281052, b"DS"),
    "RescaleSlope": (0x00281053, b"DS"), "VOILUTFunction": (0x00281056, b"CS"),
    "InstanceNumber": (0x00200013, b"IS"), "SeriesInstanceUID": (0x0020000E, b"UI"),
    "ImagePositionPatient": (0x00200032, b"DS"), "ImageOrientationPatient": (0x00200037, b"DS"),
    "RedPaletteColorLookupTableDescriptor": (0x00281101, b"US"),
    "RedPaletteColorLookupTableData": (0x00281201, b"OW"), "SOPClassUID": (0x00080016, b"UI"),
}  # fmt: skip
SOUND = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Rows": 8, "Columns": 10, "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
    "PixelRepresentation": 0,
}  # fmt: skip
SYNTAX = {
    "explicit": "1.2.840.10008.1.2.1", "implicit": "1.2.840.10008.1.2", "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99", "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg extended": "1.2.840.10008.1.2.4.51", "jpeg lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80", "jpeg 2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201", "rle": "1.2.840.10008.1.2.5", "odd": "1.2.777.1",
}  # fmt: skip


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element in explicit little endian; a length beyond 16 bits is cut."""
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"OF"):
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value) & 0xFFFF) + value


def encoded(vr: bytes, value: Any) -> bytes:
    """A value as its kind is stored; bytes as they are."""
    if isinstance(value, bytes):
        return value
    values = value if isinstance(value, list) else [value]
    if vr in (b"US", b"OW") and all(isinstance(v, int) for v in values):
        return b"".join(struct.pack("<H", v % 65536) for v in values)
    return "\\".join(map(str, values)).encode("utf-8", "surrogatepass")


def dicom(
    pixels: bytes | Sequence[bytes], syntax: str = "explicit", preamble: bool = True, **attributes: Any
) -> bytes:
    """A file of these attributes beside the sound ones; fragments make it encapsulated. None leaves out."""
    wanted = {k: v for k, v in (SOUND | attributes).items() if v is not None}
    uid = element(0x00020010, b"UI", SYNTAX[syntax].encode())
    body = b"".join(
        element(*VR[k], encoded(VR[k][1], v)) for k, v in sorted(wanted.items(), key=lambda kv: VR[kv[0]][0])
    )
    if isinstance(pixels, bytes):
        body += element(0x7FE00010, b"OW", pixels)
    else:
        items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(p)) + p for p in (b"", *pixels))
        body += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + items
        body += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    if syntax == "deflated":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(body) + packer.flush()
    meta = element(0x00020000, b"UL", struct.pack("<I", len(uid))) + uid
    return (bytes(128) + b"DICM" if preamble else b"") + meta + body


def rle(plane: bytes) -> bytes:
    """One segment of DICOM's run lengths, in literal runs."""
    runs = b"".join(bytes([len(p) - 1]) + p for p in (plane[i : i + 128] for i in range(0, len(plane), 128)))
    return struct.pack("<16I", 1, 64, *[0] * 14) + runs + b"\0" * (len(runs) % 2)


def codestreams() -> dict[str, bytes]:
    """Compressed pixels, by name of the syntax."""
    made = {"jpeg": pillow(GREY, "JPEG"), "rle": rle(GREY.tobytes())}
    made["jpeg 2000"] = pillow(GREY, "JPEG2000", no_jp2=True, irreversible=False)
    import imagecodecs

    made["jpeg lossless"] = imagecodecs.jpeg_encode(GREY, lossless=True)
    made["jpeg-ls"] = imagecodecs.jpegls_encode(GREY)
    return made


def dicom_seeds() -> list[bytes]:
    """Native of several depths, compressed, with a window, without a preamble."""
    x = GREY.tobytes()
    wide = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "Columns": 5}
    seeds = [dicom(x), dicom(x, **wide, WindowCenter="40", WindowWidth="400", RescaleSlope="2",
                             RescaleIntercept="-9"), dicom(x, "implicit", preamble=False)]  # fmt: skip
    seeds += [dicom(x, Rows=4, NumberOfFrames="2", InstanceNumber="3", SeriesInstanceUID="1.2")]
    seeds += [dicom(COLOUR.tobytes(), SamplesPerPixel=3, PhotometricInterpretation="RGB",
                    PlanarConfiguration=0), dicom(x, "deflated")]  # fmt: skip
    return seeds + [dicom([stream], syntax) for syntax, stream in codestreams().items()]


# --- NIfTI --------------------------------------------------------------------------------------------------

NIFTI = {  # place in the header, and kind
    "sizeof_hdr": (0, "<i"), "dim0": (40, "<h"), "dim1": (42, "<h"), "dim2": (44, "<h"), "dim3": (46, "<h"),
    "dim4": (48, "<h"), "dim5": (50, "<h"), "datatype": (70, "<h"), "bitpix": (72, "<h"),
    "pixdim0": (76, "<f"), "pixdim1": (80, "<f"), "vox_offset": (108, "<f"), "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"), "qform": (252, "<h"), "sform": (254, "<h"), "b": (256, "<f"), "c": (260, "<f"),
    "srow_x": (280, "<f"), "srow_y": (300, "<f"), "srow_z": (320, "<f"), "magic": (344, "<i"),
}  # fmt: skip


def nifti(voxels: np.ndarray, fields: Mapping[str, float] | None = None, packed: bool = False) -> bytes:
    """A NIfTI-1 file, in which these fields say something else."""
    header = bytearray(352)
    code = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "uint16": 512}[
        str(voxels.dtype)
    ]
    sound = {
        "sizeof_hdr": 348, "dim0": voxels.ndim, "datatype": code, "bitpix": 8 * voxels.itemsize,
        "vox_offset": 352, "scl_slope": 1, "sform": 1, "srow_x": 1, "srow_y": 1, "srow_z": 1,
        "magic": int.from_bytes(b"n+1\0", "little"), "pixdim0": 1, "pixdim1": 1,
    } | {f"dim{i + 1}": n for i, n in enumerate(voxels.shape)}  # fmt: skip
    for name, value in (sound | dict(fields or {})).items():
        place, kind = NIFTI[name]
        if kind == "<f":
            struct.pack_into(kind, header, place, float(np.clip(value, -3e38, 3e38)))
        else:
            bits = 8 * struct.calcsize(kind)
            struct.pack_into(kind, header, place, (int(value) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1))
    made = bytes(header) + voxels.tobytes(order="F")
    return gzip.compress(made, 1, mtime=0) if packed else made


def nifti_seeds() -> list[bytes]:
    """Of several types, packed and not."""
    x = np.arange(60).reshape(3, 4, 5)
    kinds = ("uint8", "int16", "float32", "float64")
    return [nifti(x.astype(k), packed=p) for k in kinds for p in (False, True)]


META = {
    "ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "DimSize": "5 4 3", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip
NRRD = {
    "type": "short", "dimension": 3, "sizes": "5 4 3", "encoding": "raw", "endian": "little",
    "space": "left-posterior-superior", "space directions": "(1,0,0) (0,1,0) (0,0,1)",
}  # fmt: skip


def headed(fields: Mapping[str, Any], data: bytes, *, nrrd: bool = False) -> bytes:
    """A MetaImage or NRRD file of this header, whatever follows."""
    lines = [f"{name}: {value}" if nrrd else f"{name} = {value}" for name, value in fields.items()]
    text = "\n".join([*(["NRRD0004"] if nrrd else []), *lines, *(["", ""] if nrrd else [""])])
    return text.encode("utf-8", "surrogatepass") + data


def headed_seeds() -> list[bytes]:
    """MetaImage and NRRD, packed and not, of one component and of three."""
    data = np.arange(60, dtype="<i2").tobytes()
    return [
        headed(META, data),
        headed(META | {"CompressedData": "True"}, zlib.compress(data)),
        headed({"ElementNumberOfChannels": 3} | META | {"ElementType": "MET_UCHAR"}, bytes(180)),
        headed(NRRD, data, nrrd=True),
        headed(NRRD | {"encoding": "gzip"}, gzip.compress(data, mtime=0), nrrd=True),
        headed(
            {"type": "uchar", "dimension": 2, "sizes": "10 8", "encoding": "raw"}, GREY.tobytes(), nrrd=True
        ),
    ]


def npy_seeds() -> list[bytes]:
    """Of two to four axes."""
    return [npy("|u1", (8, 10), GREY.tobytes()), npy("<i2", (2, 4, 5), GREY.tobytes(), True),
            npy("<f4", (2, 2, 5), GREY.tobytes()), npy("|u1", (1, 8, 10, 3), COLOUR.tobytes())]  # fmt: skip


# --- zips, arrays -------------------------------------------------------------------------------------------


def zipped(members: Sequence[tuple[str, bytes]], packed: bool = True) -> bytes:
    """A zip of these names, whatever they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name)  # of 1980, always
            info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            file.writestr(info, data)
    return buffer.getvalue()


def link(name: str, target: str) -> bytes:
    """A zip with a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, 0o120777 << 16
        file.writestr(info, target)
    return buffer.getvalue()


def npy(descr: Any, shape: Any, data: bytes, order: bool = False) -> bytes:
    """An array file of this header, whatever follows."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}".encode(
        "utf-8", "replace"
    )
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) % 65536) + text + data


def npz_seeds() -> list[bytes]:
    """As MedMNIST's."""
    images, labels = npy("|u1", (2, 8, 5), GREY.tobytes()), npy("|u1", (2, 1), b"\0\1")
    both = [("train_images.npy", images), ("train_labels.npy", labels), ("test_images.npy", images)]
    masks = [("test_images.npy", images), ("test_masks.npy", images), ("test_labels.npy", labels)]
    names = [*both[:1], ("train_names.npy", npy("<U2", (2,), "abcd".encode("utf-32-le")))]
    return [zipped(both), zipped(masks, packed=False), zipped(names)]


def safetensors(header: Any, data: bytes) -> bytes:
    """A file of this header, JSON or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data
