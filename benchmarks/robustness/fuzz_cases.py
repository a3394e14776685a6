"""Structured cases: a valid input of each kind, of which named fields are set to what they should never be.

Each strategy of hypothesis gives what its target takes. Knows the writers of `fuzz_files`; reads nothing.
"""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from . import fuzz_files as files
from . import fuzz_targets as targets

EDGES = [0, 1, -1, 2, 3, 4, 7, 8, 16, 32, 255, 256, 4096, 13377, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31]
EDGES += [2**32 - 1, 2**63 - 1, -(2**31), 10**30]
odd = st.sampled_from(EDGES) | st.integers(-(2**33), 2**33)
small = st.integers(0, 20)
real = st.floats(width=32) | st.sampled_from([0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf")])
text = st.sampled_from(
    ["", " ", "\0", "\n", "\x1b[2J", "..", "/", "a" * 300, "é", "\ud800", "NaN", "1e999", "-1", "1\\2", "{}"]
) | st.text(max_size=12)
junk = st.binary(max_size=60)
json_value = st.recursive(
    st.none() | st.booleans() | odd | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def some(fields: dict[str, st.SearchStrategy[Any]], most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """A few of these fields, each with a value of its own."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({n: fields[n] for n in chosen}))


# --- images -------------------------------------------------------------------------------------------------


@st.composite
def pngs(draw: st.DrawFn) -> bytes:
    """Headers that lie, with checksums that do not; chunks that unfold to much."""
    side = small | st.sampled_from([1000, 9000, 13000, 65535, 2**31 - 1])
    chunks = st.tuples(
        st.sampled_from([b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"tIME", b"sBIT", b"IHDR"]),
        junk,
    )
    bombs = st.tuples(st.sampled_from([b"iCCP", b"zTXt", b"iTXt"]), st.integers(0, 10**7)).map(
        lambda c: (c[0], b"x\0" + b"\0\0\0" * (c[0] == b"iTXt") + b"\0" + zlib.compress(bytes(c[1]), 9))
    )
    return files.png(
        draw(side), draw(side), draw(st.sampled_from([1, 2, 4, 8, 16, 0, 3, 255])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1, 7])), interlace=draw(st.integers(0, 2)),
        data=draw(junk | st.integers(0, 10**6).map(bytes)), more=draw(st.lists(chunks | bombs, max_size=3)),
    )  # fmt: skip


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    """One page whose tags are changed; strips of any packing."""
    types = [np.uint8, np.uint16, np.int32, np.float32, np.float64]
    pixels = draw(st.sampled_from([files.GREY, files.COLOUR])).astype(draw(st.sampled_from(types)))
    values = st.lists(odd, min_size=1, max_size=4)
    known = st.sampled_from([[n] for n in (0, 1, 2, 3, 5, 6, 7, 8, 32773, 34712, 34925, 50000, 50001, 32946)])
    tags = files.tags(pixels)
    changes = draw(some({name: values for name in files.TAGS} | {"compression": known}))
    data = pixels.tobytes()
    if draw(st.booleans()):
        data = draw(st.integers(0, 10**6).map(lambda n: zlib.compress(bytes(n), 9)) | junk)
        changes.setdefault("compression", [draw(st.sampled_from([5, 8, 32946, 34925, 50000]))])
        changes |= {"counts": [len(data)]}
    return files.tiff(data, tags | changes, big=draw(st.booleans()), loop=draw(st.booleans()))


@st.composite
def dicoms(draw: st.DrawFn) -> bytes:
    """Attributes that lie, native pixels or codestreams with other sizes than the header's."""
    decimal = text | real.map(str) | odd.map(str) | st.lists(real, min_size=2, max_size=7)
    kinds = {b"US": odd | junk, b"IS": decimal, b"DS": decimal, b"CS": text, b"UI": text, b"OW": junk}
    words = ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "YBR_RCT", ""]
    known = {
        "PhotometricInterpretation": st.sampled_from(words),
        "BitsAllocated": st.sampled_from([1, 8, 12, 16, 32, 64, 0, 7]),
        "VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "x"]),
        "SamplesPerPixel": st.sampled_from([0, 1, 2, 3, 4, 65535]),
    }
    fields = {n: known.get(n, kinds[vr]) | st.none() for n, (_, vr) in files.VR.items()}
    changes = draw(some(fields, 5))
    streams = _streams()
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(streams)))
        stream = bytearray(streams[name])
        for place in draw(st.lists(st.integers(0, len(stream) - 1), max_size=4)):
            stream[place] = draw(st.sampled_from([0, 1, 255, 127, 128]))
        syntax = draw(st.sampled_from([name, *files.SYNTAX]))
        return files.dicom([bytes(stream)] * draw(st.integers(1, 2)), syntax, **changes)
    syntax = draw(st.sampled_from(["explicit", "implicit", "big", "deflated", "odd"]))
    pixels = draw(st.just(files.COLOUR.tobytes()) | junk | st.integers(0, 10**6).map(bytes))
    return files.dicom(pixels, syntax, draw(st.booleans()), **changes)


@cache
def _streams() -> dict[str, bytes]:
    return files.codestreams()


@st.composite
def niftis(draw: st.DrawFn) -> bytes:
    """Header fields that lie, packed zeros behind them."""
    x = np.arange(60).reshape(3, 4, 5).astype(draw(st.sampled_from(["uint8", "int16", "float32", "float64"])))
    fields = {name: real if kind == "<f" else odd for name, (_, kind) in files.NIFTI.items()}
    fields |= {"datatype": st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2304])}
    made = files.nifti(x, draw(some(fields, 4)))
    if draw(st.booleans()):
        return made
    return gzip.compress(made + bytes(draw(st.sampled_from([0, 10, 10**5, 3 * 10**6]))), 1, mtime=0)


@st.composite
def headeds(draw: st.DrawFn) -> bytes:
    """Headers of MetaImage and NRRD whose fields lie, packed zeros behind some of them."""
    nrrd = draw(st.booleans())
    made = dict(files.NRRD if nrrd else files.META)
    sides = st.lists(small | odd, max_size=5).map(lambda sides: " ".join(map(str, sides)))
    place = st.sampled_from(["/etc/passwd", "../secret.txt", "..", "LIST", "x.raw", "%d.raw 1 9 1", "x"])
    word = st.sampled_from(["gzip", "bzip2", "raw", "ascii", "True", "big", "MET_UCHAR", "uchar", "double"])
    fields = {name: odd | text | sides | word for name in made} | {"byte skip": odd, "line skip": odd}
    fields |= {"HeaderSize": odd, "ElementNumberOfChannels": odd, "TransformMatrix": sides, "kinds": text}
    fields |= {"ElementDataFile": place | text, "data file": place | text}
    made |= draw(some(fields, 4))
    if not nrrd and draw(st.integers(0, 9)):  # it comes last
        made["ElementDataFile"] = made.pop("ElementDataFile")
    data = np.arange(60, dtype="<i2").tobytes()
    behind = st.sampled_from([data, zlib.compress(data), gzip.compress(bytes(10**6), mtime=0), b""]) | junk
    return files.headed(made, draw(behind), nrrd=nrrd)


def npys() -> st.SearchStrategy[bytes]:
    """Arrays of any type and shape, behind which there is less or more."""
    types = st.sampled_from(["|u1", "<u2", ">f4", "<f8", "|b1", "|O", "<c16", "<U3", "|V9", "|S0"])
    shapes = st.lists(small | odd, max_size=5).map(tuple) | text
    data = st.just(files.GREY.tobytes()) | junk | st.sampled_from([10**4, 10**6]).map(bytes)
    return st.builds(files.npy, types, shapes, data, st.booleans()) | junk


@st.composite
def npzs(draw: st.DrawFn) -> bytes:
    """Arrays of any name, type and shape, behind which there is less or more."""
    types = ["|u1", "<u2", "<i8", "<f8", "|b1", "<U3", "|O", "<c16", "<M8[s]", "|S0", "|V9", "<U999999999"]
    descr = st.sampled_from(types) | text | st.just([("a", "<u2"), ("b", "|O")])
    shapes = st.lists(small | odd, max_size=5).map(tuple) | st.just((2, 8, 5)) | text
    names = [
        f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels", "masks", "names")
    ]
    data = st.just(files.GREY.tobytes()) | junk | st.sampled_from([10**4, 10**6]).map(bytes)
    arrays = st.builds(files.npy, descr, shapes, data, st.booleans()) | junk
    plain = text.filter(lambda t: "\ud800" not in t)
    member = st.tuples(st.sampled_from([f"{n}.npy" for n in names]) | plain, arrays)
    sound = [("train_images.npy", files.npy("|u1", (2, 8, 5), files.GREY.tobytes()))]
    return files.zipped(
        sound * draw(st.integers(0, 1)) + draw(st.lists(member, max_size=3)), draw(st.booleans())
    )


# --- places -------------------------------------------------------------------------------------------------

PLACES = [
    "a.png",
    "b.png",
    "../secret.txt",
    "../temporary",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "",
    ".",
]
PLACES += ["out.png", "~", "a.png/../b.png", "\x1b[31m.png", "list.csv", "a" * 5000, "a.png\0", "//a.png"]


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Rows of places that are none of the folder's, labels and splits of any kind."""
    header = draw(
        st.sampled_from(["path,label", "path,label,mask,split", "label,path,split", "path,path,label"])
    )
    values = {
        "path": st.sampled_from(PLACES) | text,
        "label": st.sampled_from(["0", "1", "good", ""]) | text,
        "mask": st.sampled_from(["", *PLACES]),
        "split": st.sampled_from(["", "train", "test"]) | text,
    }
    row = st.tuples(*(values[column] for column in header.split(",")))
    rows = draw(st.lists(row, max_size=4))
    quoted = draw(st.booleans())
    lines = [header, *(",".join(f'"{v}"' if quoted else v for v in r) for r in rows)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def folders(draw: st.DrawFn) -> list[tuple[bytes, Any]]:
    """Files, links, loops and pipes under names that no one should have."""
    part = st.sampled_from(
        [b"good", b"bad", b"train", b"test", b"ground_truth", b"a.png", b"b.tif", b"c.dcm", b"d.nii.gz",
         b"a.nii",
        b"x\n.png", b"\x1b[2J.png", b"\xff\xfe.png", b"#1", b".hidden", b"DICOMDIR", b"..png",
         b"e" * 250 + b".png",
        b"a_mask.png"]
    )  # fmt: skip
    path = st.lists(part, min_size=1, max_size=4).map(b"/".join)
    image = st.sampled_from(
        [files.pillow(files.GREY, "PNG"), *files.dicom_seeds()[:4], *files.nifti_seeds()[:2]]
    )
    goal = [
        b"..",
        b"../..",
        b"/",
        b".",
        b"a.png",
        b"../secret.txt",
        b"../../secret.txt",
        b"/dev/zero",
        b"/etc",
    ]
    goals = st.sampled_from([g for g in goal if g != b"/etc"]).map(lambda g: ("link", g))
    what = image | image | junk | goals | st.sampled_from(["pipe", "folder"])
    return draw(st.lists(st.tuples(path, what), min_size=1, max_size=7))


# --- settings and models ------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(leaf for k, v in inner for leaf in _leaves(v, (*path, k)))]


def changed(sound: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A copy of nested dicts in which one to three values are others, or are gone."""

    def put(changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
        made = json.loads(json.dumps(sound))
        for path, value in changes:
            place = made
            for key in path[:-1]:
                place = place.get(key) if isinstance(place, dict) else None
            if not path:
                made = value
            elif isinstance(place, dict):
                place[path[-1]] = value
        return made

    return st.lists(st.tuples(st.sampled_from(_leaves(sound)), values), min_size=1, max_size=3).map(put)


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)  # a billion of laughs
FIT = {
    "data": "nowhere", "out": "run", "method": "dia", "seed": 0, "holdout": 0.2, "size": 32, "preset": "cpu",
    "settings": {"dissolver": {"steps": 5, "widths": [8, 16]}, "amplify": {"steps": 3}, "ts": [30, 60]},
}  # fmt: skip
GRID = {
    "datasets": ["breastmnist"], "methods": ["dia"], "seeds": [0], "preset": "cpu", "max_size": 32,
    "settings": {"dia": {"samples": 1}},
}  # fmt: skip
ABLATION = {
    "title": "t", "method": "dia", "preset": "cpu", "seeds": [0], "datasets": ["phantom"], "max_size": 32,
    "factors": {"one": {"a": {"samples": 1}, "b": {"amplify.width": 4}}, "two": {"c": {}, "d": {"ts": [30]}}},
    "reference": ["a", "c"], "leave_out": [{"one": "b", "two": "d"}], "published": {"phantom": {"a/c": 0.5}},
}  # fmt: skip


def yamls(sound: Any) -> st.SearchStrategy[bytes]:
    """A configuration with other values, or with what YAML can do."""
    tricks = [ALIASES, "!!python/object/apply:os.system [echo]", "a: [", "\0", "- 1", "&a [*a]", "? [1]: 2",
              "{" * 3000, "1", "a: !!binary x", "<<: 1", "data: 2024-01-01", "data: 1:30:00",
              "\ufeff"]  # fmt: skip
    written = changed(sound, json_value).map(
        lambda v: yaml.safe_dump(v, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    more = st.tuples(written, st.sampled_from(tricks)).map(lambda p: p[0] + p[1].encode())
    return written | written | more | st.sampled_from(tricks).map(str.encode)


# 32 bits at any place of the weights: NaN, infinities, the greatest number and the least
NO_NUMBERS = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0"]


def models(folder: Path) -> st.SearchStrategy[dict[str, Any]]:
    """A model folder with edited JSON, headers of weights, links, and files taken away."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    texts = [n for n in names if n.endswith(".json") and n != "checksums.json"]
    edits = {
        n: changed(json.loads((folder / n).read_text()), json_value).map(
            lambda v: json.dumps(v).encode("utf-8", "surrogatepass")
        )
        for n in texts
    }
    for name in (n for n in names if n.endswith(".safetensors")):
        raw = (folder / name).read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        shapes = (
            st.lists(small | odd, max_size=4) | st.sampled_from(["F16", "I64", "F64", "BOOL", "x"]) | text
        )
        edits[name] = changed(header, shapes).map(lambda h, data=raw[end:]: files.safetensors(h, data))
        edits[name] |= st.integers(0, len(raw)).map(lambda n, raw=raw: raw[:n])
        numbers = st.tuples(st.integers(end, len(raw) - 4), st.sampled_from(NO_NUMBERS))
        edits[name] |= numbers.map(lambda c, raw=raw: raw[: c[0]] + c[1] + raw[c[0] + 4 :])
    goals = st.sampled_from(["../../secret.json", "config.json", "/dev/zero", "..", "loop"])
    any_file = junk | goals.map(lambda g: ("link", g)) | st.none()
    return some({n: edits.get(n, any_file) | any_file for n in names}, 2)


@cache
def small_onnx() -> bytes:
    """The mean of an image as its score, with all that an exported file says of itself."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("Add", ["m", "w"], ["score"]),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.5])
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    shown = [helper.make_tensor_value_info(n, k, s) for n, k, s in (
        ("images", TensorProto.UINT8, ["n", "h", "w", 1]), ("score", TensorProto.FLOAT, ["n"]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", shown[:1], shown[1:], [weight, axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    facts = {"format": 1, "method": "x", "shape": [8, 8, 1], "false_alarm_rate": 0.1,
             "held_out_normal_scores": [1, 2]}  # fmt: skip
    helper.set_model_props(made, {f"dia.{k}": json.dumps(v) for k, v in facts.items()})
    return bytes(made.SerializeToString())


@st.composite
def onnxs(draw: st.DrawFn) -> bytes:
    """Facts that are none, operators with absurd attributes, weights said to lie in another file."""
    import onnx

    made = onnx.load_from_string(small_onnx())
    for prop in made.metadata_props:
        if draw(st.integers(0, 3)) == 0:
            words = json_value.map(json.dumps) | st.sampled_from(
                ["[8192, 8192, 3]", "[8, 8, 3]", "NaN", "1e999"]
            )
            prop.value = draw(words).encode("utf-8", "ignore").decode()
    weight = made.graph.initializer[0]
    kind = draw(st.integers(0, 6))
    if kind == 0:
        weight.ClearField("float_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        places = st.sampled_from(["../secret.txt", "/etc/passwd", "m.onnx", "x"])
        for key, value in (("location", draw(places)),
                           ("offset", str(draw(odd))), ("length", str(draw(odd)))):  # fmt: skip
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    elif kind == 1:
        weight.dims[:] = [max(min(n, 2**62), -(2**62)) for n in draw(st.lists(odd, max_size=4))]
    elif kind == 2:
        made.graph.initializer[1].ClearField("int64_data")
        made.graph.initializer[1].int64_data.extend(n % 2**62 for n in draw(st.lists(odd, max_size=4)))
    elif kind == 3:
        made.graph.node[draw(st.integers(0, 2))].op_type = draw(
            st.sampled_from(["Loop", "If", "Expand", "Tile", "Identity", "ConstantOfShape", "Pad", "Resize"])
        )
    elif kind == 5:
        weight.float_data[:] = draw(st.lists(real, max_size=3))
    elif kind == 6:  # a size from the file, or from pixels
        size = made.graph.initializer.add(name="s", data_type=onnx.TensorProto.INT64, dims=[1])
        size.int64_data.append(draw(small | st.sampled_from([2**20, 2**30, 2**40])))
        of = draw(st.sampled_from(["s", "i"]))
        made.graph.node.insert(2, onnx.helper.make_node("Cast", ["m"], ["i"], to=onnx.TensorProto.INT64))
        made.graph.node.insert(3, onnx.helper.make_node("ConstantOfShape", [of], ["c"]))
        made.graph.node.insert(4, onnx.helper.make_node("ReduceMax", ["c"], ["d"], keepdims=0))
        made.graph.node[-1].input[1] = "d"
    return bytes(made.SerializeToString())


# --- results and requests -----------------------------------------------------------------------------------


def lines(sound: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """JSON lines, of which some have other values."""
    one = changed(sound, json_value).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))
    return st.lists(one | st.just(json.dumps(sound).encode()) | junk, max_size=4).map(b"\n".join)


NAMES = ["a.png", "../../x.png", "/etc/passwd", "C:\\x.png", "a\0.png", "\x1b[2J.png", "", ".", "x" * 999,
         "a/b.png",
        "__MACOSX/a.png", "a.zip", "a.nii.gz", "con", "é.png", "\u202egnp.exe", "a\r\nb.png"]  # fmt: skip


@cache
def _contents() -> list[bytes]:
    image = files.pillow(files.GREY, "PNG")
    bomb = files.zipped([("a.png", bytes(40 * 10**6))])
    return [image, b"", b"x" * 99, bomb, files.link("a.png", "../secret.txt"),
            files.png(9000, 9000, data=b""),
        gzip.compress(bytes(40 * 10**6), 9), files.zipped([("b.zip", files.zipped([("a.png", image)]))]),
            files.nifti_seeds()[1], files.dicom_seeds()[0], files.tiff_seeds()[1]]  # fmt: skip


@st.composite
def zips(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """Uploads: zips of any names and contents, whose directories are then damaged, and plain files."""
    content = st.sampled_from(_contents()) | junk
    member = st.tuples(st.sampled_from(NAMES) | text.filter(lambda t: "\ud800" not in t), content)
    packed = bytearray(files.zipped(draw(st.lists(member, max_size=3)), draw(st.booleans())))
    for place in draw(st.lists(st.integers(0, len(packed) - 1), max_size=4)):
        packed[place if len(packed) < 300 else len(packed) - 1 - place % 200] = draw(st.integers(0, 255))
    return [(draw(st.sampled_from(NAMES)), bytes(packed)), *draw(st.lists(member, max_size=2))]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, dict[str, str], bytes]:
    """Methods, paths, headers and multipart bodies, each of which may be odd."""
    path = draw(st.sampled_from(["/score", "/score", "/dissolve", "/model", "/health", "/docs",
                                 "/score?heatmaps=png", "/..%2f..%2fsecret.txt", "/openapi.json",
                                 "/score/", "//score"]))  # fmt: skip
    method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "HEAD"]))
    named = st.tuples(st.sampled_from(NAMES), st.sampled_from(_contents()) | junk)
    fields = st.tuples(
        st.sampled_from(["heatmaps", "false_alarm_rate", "t", "t", "files", "x\r\n", "__class__"]),
        st.sampled_from(["png", "raw", "none", "0.5", "nan", "1e999", "-1", "0", "999", "50", "9" * 5000])
        | text,
    )
    sent = draw(st.lists(named, max_size=2) | zips())
    body = targets.form(sent, draw(st.lists(fields, max_size=3)))
    kinds = [f"multipart/form-data; boundary={targets.BOUNDARY}"] * 4
    kinds += ["multipart/form-data", "application/json", "x", f"multipart/form-data; boundary={'b' * 5000}"]
    headers = {"Content-Type": draw(st.sampled_from(kinds))}
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    extra = draw(some({"Host": printable, "Origin": printable,
                       "Accept": printable | st.just("application/zip"),
                       "Authorization": printable, "X-Forwarded-For": printable,
                       "Content-Encoding": st.just("gzip")}, 2))  # fmt: skip
    cut = draw(st.integers(0, 9))
    return method, path, headers | extra, body[: len(body) // 2] if cut == 0 else body
