"""Hostile files: each is a result or one printable line, within limits; what `make fuzz` found stays found.

The targets and the oracle are in `benchmarks/robustness/fuzz_targets.py`; here are few cases of each, and by
name the samples that were crashes, hangs or bombs.
"""

import contextlib
import gzip
import io
import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")
pytest.importorskip("imagecodecs")
pytest.importorskip("onnx")

from benchmarks.robustness import fuzz_cases as cases
from benchmarks.robustness import fuzz_files as files
from benchmarks.robustness import fuzz_targets as targets
from benchmarks.robustness.fuzz_targets import SECRET, Finding, Ground, judge
from dia.benchmark.grid import load_grid
from dia.benchmark.ledger import FAILED, Ledger
from dia.cli import main as cli
from dia.core import yamlfile as configfile
from dia.core.errors import DataError
from dia.core.yamlfile import read_yaml
from dia.data.formats import limits as formats
from dia.data.formats.limits import check_streams
from dia.data.layouts import image_files
from dia.data.readers import read
from dia.deploy.onnx_model import OnnxModel
from dia.deploy.scorefile import ScoreFile

LINE = json.loads((Path(__file__).parents[2] / "results/runs.jsonl").read_text().splitlines()[-1])


@pytest.fixture(autouse=True)
def pillows_limit(monkeypatch):
    """The service sets its own for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)


@pytest.fixture(scope="module")
def ground(served_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    (place / "root").mkdir()
    made = Ground(place / "root", served_run.run, small_model(place / "small"))
    yield made
    made._stack.close()


def small_model(place):
    from dia.data import phantoms
    from dia.detectors.registry import METHODS

    return METHODS["trivial:blur"](device="cpu").fit(phantoms.load("train", size=32, n=40).images).save(place)


def fuzz(ground, run, strategy, number):
    quiet = settings(max_examples=number, suppress_health_check=list(HealthCheck), database=None)

    def one(data):
        judge(ground, run, data)

    quiet(given(strategy)(one))()


def refused(match, path, **how):
    """One line that names the file, and little memory (of Python's and numpy's) until it is there."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match) as error:
            read(path, workers=1, **how)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    assert peak < 2**26
    return str(error.value)


def written(path, data):
    path.write_bytes(data)
    return path


# --- every kind of input, some cases each ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "seeds"),
    [(".png", files.plain_seeds), (".tif", files.tiff_seeds), (".dcm", files.dicom_seeds),
     (".nii", files.nifti_seeds), (".npz", files.npz_seeds), (".mha", files.headed_seeds),
     (".npy", files.npy_seeds)],
)  # fmt: skip
def test_every_seed_is_read_and_every_damage_to_it_is_a_result_or_a_line(ground, suffix, seeds):
    run, made = targets.reads(suffix, window="40,400" if suffix == ".tif" else None), seeds()
    for data in made:
        assert judge(ground, run, data), data[:60]
    damage = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4)

    def damaged(case):
        data, changes, cut = bytearray(case[0]), case[1], case[2]
        for place, value in changes:
            data[place % len(data)] = value
        return bytes(data[: len(data) - cut % len(data)])

    case = st.tuples(st.sampled_from(made), damage, st.just(0) | st.integers(0, 9999))
    fuzz(ground, run, case.map(damaged), 60)


@pytest.mark.parametrize(
    ("suffix", "strategy"),
    [(".png", cases.pngs), (".tif", cases.tiffs), (".dcm", cases.dicoms), (".nii", cases.niftis),
     (".npz", cases.npzs), (".mha", cases.headeds), (".npy", cases.npys)],
)  # fmt: skip
def test_fields_that_lie(ground, suffix, strategy):
    fuzz(ground, targets.reads(suffix, window="40,400" if suffix == ".tif" else None), strategy(), 60)


def test_manifests_and_folders(ground):
    fuzz(ground, targets.manifest, cases.manifests(), 60)
    fuzz(ground, targets.folder, cases.folders(), 60)


def test_configurations(ground):
    fuzz(ground, targets.command("fit"), cases.yamls(cases.FIT), 12)
    fuzz(ground, targets.ablation, cases.yamls(cases.ABLATION), 40)


def test_models(ground):
    fuzz(ground, targets.model, cases.models(ground.model), 15)
    fuzz(ground, targets.onnx, cases.onnxs(), 40)
    assert judge(ground, targets.onnx, cases.small_onnx())


def test_results(ground):
    fuzz(ground, targets.ledger, cases.lines(LINE), 60)
    for seeds, run in ((targets.row_seeds, targets.score_rows), (targets.mark_seeds, targets.marks)):
        for data in seeds():
            with contextlib.suppress(DataError):
                judge(ground, run, data)
            for end in (0, 1, len(data) // 2, len(data) - 1):
                judge(ground, run, data[:end])


def test_uploads_and_requests(ground):
    fuzz(ground, targets.unpacks, cases.zips(), 60)
    fuzz(ground, targets.http, cases.requests(), 40)
    answered = ("POST", "/score", {"Content-Type": f"multipart/form-data; boundary={targets.BOUNDARY}"},
                targets.form([("a.png", files.png(8, 8))]))  # fmt: skip
    assert judge(ground, targets.http, answered)


# --- the oracle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["crash", "lines", "secret", "outside", "left"])
def test_the_oracle_finds_what_should_not_be(ground, bad):
    def run(ground, _):
        if bad == "lines":
            error = DataError("x")
            error.args = ("two\nlines",)
            raise error
        if bad == "outside":
            (ground.root / "written").touch()
        if bad == "left":
            (ground.temporary / "left").touch()
        return [f"x {SECRET}" if bad == "secret" else str(1 // (bad != "crash"))]

    try:
        with pytest.raises((Finding, ZeroDivisionError)):
            judge(ground, run, None)
    finally:
        for name in ("root/written", "root/temporary/left"):
            (ground.root.parent / name).unlink(missing_ok=True)


# --- bombs and giants -----------------------------------------------------------------------------------


def test_a_png_that_unfolds_to_gigabytes(tmp_path):
    row = bytes(13000 * 8 + 1)
    packer = zlib.compressobj(9)
    data = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)  # it need not go on: no row is looked at
    head = struct.pack(">IIBBBBB", 13000, 13000, 16, 6, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + files.chunk(b"IHDR", head) + files.chunk(b"IDAT", data)
    refused("unfold to 1352000000, above the limit of 128 MiB or 32 times", written(tmp_path / "a.png", png))
    eight = png.replace(files.chunk(b"IHDR", head), files.chunk(b"IHDR", head[:8] + b"\x08\x06\0\0\0"))
    refused("unfold to 676000000", written(tmp_path / "b.png", eight))


def test_giant_dimensions(tmp_path):
    refused("exceeds limit", written(tmp_path / "a.png", files.png(2**31 - 1, 2**31 - 1, data=b"")))
    tags = files.tags(files.GREY * np.uint16(1)) | {"compression": [8]}
    for giant in ({"width": [60000], "length": [60000]}, {"samples": [65535], "bits": [16] * 65535}):
        tiff = files.tiff(zlib.compress(b"x"), tags | {"width": [9000], "length": [9000]} | giant)
        refused("its header promises|unfold to", written(tmp_path / "a.tif", tiff))


def test_a_large_file_of_its_own_size_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "IMAGE_BYTES", 100)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    assert read(written(tmp_path / "a.png", files.pillow(noise, "PNG"))).images.shape == (1, 40, 40, 1)
    flat = files.pillow(np.zeros((400, 400), np.uint8), "PNG")
    refused("unfold to 160000", written(tmp_path / "b.png", flat))


def test_a_tiff_bomb_is_that_of_its_tags(tmp_path):
    """Packed bytes beyond what the tags say are not unfolded; streams that say more are refused."""
    x = np.zeros((8, 10), np.uint16)
    lzw = zlib.compress(bytes(10**8), 9)
    tags = files.tags(x) | {"compression": [8], "counts": [len(lzw)]}
    refused("damaged", written(tmp_path / "a.tif", files.tiff(lzw, tags)))
    large = files.pillow(np.zeros((3000, 3000), np.uint8), "JPEG2000", no_jp2=True)
    tags |= {"compression": [34712], "counts": [len(large)]}
    refused("3000x3000, more than its header says", written(tmp_path / "b.tif", files.tiff(large, tags)))
    tags |= {"compression": [50002]}
    refused("compressed as JPEGXL; convert it", written(tmp_path / "c.tif", files.tiff(b"\xff\x0a", tags)))


def test_tiff_pages_that_go_in_a_circle(tmp_path):
    x = files.GREY * np.uint16(9)
    for big in (False, True):
        path = written(tmp_path / "a.tif", files.tiff(x.tobytes(), files.tags(x), big=big, loop=True))
        with contextlib.suppress(DataError):
            assert read(path, workers=1).shape == (8, 10, 1)
    pages = b"".join(struct.pack("<HI", 0, 8 + 6 * i) for i in range(1, 400)) + struct.pack("<HI", 0, 8)
    refused("circle|damaged", written(tmp_path / "b.tif", b"II*\0\x08\0\0\0" + pages))


def test_a_gzip_bomb_of_a_volume(tmp_path):
    x = np.zeros((2, 2, 2), np.float64)
    header = files.nifti(x, {"dim1": 800, "dim2": 800, "dim3": 800})
    path = written(
        tmp_path / "a.nii.gz", gzip.compress(header + bytes(4 * 10**6), 9, mtime=0) + bytes(4 * 10**6)
    )
    refused("unfold to 4096000000, above the limit of 1024 MiB", path)
    ends = gzip.compress(header[:400] + bytes(10**6), 9)
    refused("more than its|unfold", written(tmp_path / "b.nii.gz", ends))


def test_an_npz_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("dia.data.npz.VOLUME_BYTES", 10**6)
    zeros = files.npy("|u1", (100, 300, 300), bytes(9 * 10**6))
    path = written(tmp_path / "a.npz", files.zipped([("train_images.npy", zeros)]))
    refused("unfold to 9000128", path)
    lies = files.zipped([("train_images.npy", files.npy("|u1", (10**9, 1000, 1000), b"x"))])
    with pytest.raises(DataError, match="not a readable"):  # though room for it is asked for
        read(written(tmp_path / "b.npz", lies))


def test_a_zip_bomb_and_names_that_climb(ground):
    bomb = files.zipped([(f"{i}.png", bytes(20 * 10**6)) for i in range(3)])
    with pytest.raises(targets.Refused, match="more than 32 MB"):
        targets.unpacks(ground, [("a.zip", bomb)]) if ground.fresh() else None
    climbs = files.zipped([("../../secret.png", b"x"), ("/etc/passwd", b"y"), ("..\\..\\a", b"z")])
    assert judge(ground, targets.unpacks, [("b.zip", climbs), ("../../c.png", b"w")])
    assert judge(ground, targets.unpacks, files.link("a.png", "../../secret.txt"))  # a file with that text


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_volumes_of_few_dimensions(tmp_path, dims):
    data = files.nifti(np.zeros((3, 4, 5), np.uint8), {"dim0": dims})
    with contextlib.suppress(DataError):
        assert len(read(written(tmp_path / "a.nii", data), workers=1))


# --- DICOM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg-ls", "jpeg 2000"])
def test_a_stream_larger_than_its_dicom_header(tmp_path, syntax):
    stream = bytearray(files.codestreams()[syntax])
    assert read(written(tmp_path / "a.dcm", files.dicom([bytes(stream)], syntax))).shape == (8, 10, 1)
    if syntax == "jpeg 2000":
        at = stream.index(b"\xff\x51") + 6
        struct.pack_into(">II", stream, at, 40000, 40000)
    else:
        at = stream.index(b"\xff\xf7" if syntax == "jpeg-ls" else b"\xff\xc0") + 5
        struct.pack_into(">HH", stream, at, 40000, 40000)
    refused(
        "40000x40000, more than its header", written(tmp_path / "b.dcm", files.dicom([bytes(stream)], syntax))
    )
    giant = files.dicom([bytes(stream)], syntax, Rows=13000, Columns=13000)
    refused("unfold to", written(tmp_path / "c.dcm", giant))


def test_streams_are_found_wherever_they_stand():
    small, large = (files.pillow(np.zeros((n, n), np.uint8), "JPEG") for n in (8, 50))
    check_streams(small + b"\xff" * 9 + small, 64)
    for data in (small + large, b"junk" + large, large[:2] + b"\xff\xff\xff" + large[2:], large[:-100]):
        with pytest.raises(DataError, match="50x50"):
            check_streams(data, 64)
    many = bytearray(files.pillow(np.zeros((8, 8, 3), np.uint8), "JPEG2000", no_jp2=True))
    check_streams(bytes(many), 64)
    struct.pack_into(">H", many, many.index(b"\xff\x51") + 38, 16384)  # components
    with pytest.raises(DataError):
        check_streams(bytes(many), 64)
    check_streams(b"\xff\xd8\xff", 1)
    check_streams(b"", 1)


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"SamplesPerPixel": 65535}, "65535 samples for each pixel"),
        ({"Rows": 65535, "Columns": 65535}, "promises 65535x65535 pixels"),
        ({"NumberOfFrames": "9" * 400}, "malformed|promises|damaged"),
        ({"NumberOfFrames": "-5"}, "promises -5 images"),
        ({"BitsAllocated": 65535}, "promises"),
        ({"BitsStored": 0}, "cannot be decoded"),
        ({"WindowCenter": "1e999", "WindowWidth": "nan"}, ""),
        ({"PhotometricInterpretation": "\x1b[2J"}, "cannot be decoded"),
        ({"Rows": b"\0" * 7}, ""),
    ],
)
def test_absurd_dicom_headers(ground, tmp_path, attributes, match):
    data = files.dicom(files.GREY.tobytes(), **attributes)
    judge(ground, targets.reads(".dcm"), data)
    if match:
        refused(match, written(tmp_path / "a.dcm", data))


def test_a_deflated_dicom_bomb(tmp_path, monkeypatch):
    sound = files.dicom(files.GREY.tobytes(), "deflated")
    assert read(written(tmp_path / "a.dcm", sound)).shape == (8, 10, 1)
    bomb = files.dicom(bytes(2 * 10**8), "deflated")
    assert len(bomb) < 10**6
    refused("unfold to .*, above the limit of 128 MiB", written(tmp_path / "b.dcm", bomb))


def test_a_mask_is_held_against_the_same_limits(tmp_path):
    for name in ("test/good/a.png", "test/bad/b.png", "ground_truth/bad/b_mask.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / name, files.pillow(files.GREY, "PNG"))
    mask = files.dicom(files.GREY.tobytes(), Rows=60000, Columns=60000)
    written(tmp_path / "ground_truth/bad/b_mask.dcm", mask)
    refused("promises 60000x60000", tmp_path)


# --- places ---------------------------------------------------------------------------------------------


def test_links_upwards_pipes_and_devices_are_left_out(tmp_path):
    data = tmp_path / "in" / "data"
    data.mkdir(parents=True)
    written(data / "a.png", files.pillow(files.GREY, "PNG"))
    written(tmp_path / "beside.png", b"x")
    for name, goal in (
        ("root", "/"),
        ("up", ".."),
        ("upper", tmp_path),
        ("round", "."),
        ("zero.png", "/dev/zero"),
    ):
        (data / name).symlink_to(goal)
    os.mkfifo(data / "pipe.png")
    assert [f.path.name for f in image_files(data)] == ["a.png"]
    for name in ("pipe.png", "zero.png"):
        refused("a pipe or a device", data / name)
    (data / "gone.png").symlink_to("nowhere")  # is told, not passed over
    refused(r"gone\.png", data)


def test_a_manifest_may_name_other_places_but_shows_nothing_of_them(ground):
    """It is the user's own list: images elsewhere are read, other files are no images and are not quoted."""
    text = "path,label\na.png,0\n../secret.txt,1\n"
    with pytest.raises(DataError, match=r"secret\.txt") as error:
        targets.manifest(ground, text.encode()) if ground.fresh() else None
    assert SECRET not in str(error.value)
    assert not judge(ground, targets.manifest, text.encode())
    for place in ("/dev/zero", "/proc/self/mem", "..", "a.png\0", "\x1b[2J.png", "a" * 5000):
        assert not judge(ground, targets.manifest, f"path,label\n{place},1\n".encode())


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path):
    written(tmp_path / "x\n\x1b[2J.png", b"no image")
    assert r"x\n\x1b[2J.png" in refused("no image, or damaged", tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"no image")
    assert r"\udcff.png" in refused("no image", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    for name in (b"\xff.png", b"b.png", b"c.png"):  # which the split is made of
        path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"set/good", name))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        written(Path(path), files.pillow(files.GREY, "PNG"))
    assert len(read(tmp_path / "set", normal="good", workers=1, split="all")) == 3
    assert str(DataError("a\u2028b\x9b")) == r"a\u2028b\x9b"


# --- settings, results ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (cases.ALIASES, "stands for more than"), ("&a [*a]", "stands for more than"), ("[" * 900, "nested"),
        ("a: [", "not a YAML file"), ("\0", "not a YAML file"),
        ("a: !!python/object:os.system x", "not a YAML"),
        ("a: 2024-99-99", "not a YAML file"), ("x" * 300_000, "more than 64 KiB"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_configuration(tmp_path, capsys, text, match):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_yaml(path)
    with pytest.raises(DataError):
        load_grid(str(path))
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "nowhere", "--config", str(path)])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_aliases_that_stand_for_little_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(DataError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    assert configfile._count({"a": [1, 2], "b": {}}, {}) == 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"auroc": "x"}, "auroc must be a number from 0 to 1"), ({"auroc_ci": [0.1]}, "auroc_ci must be two"),
        ({"dataset": ["a"]}, "dataset must be text"), ({"versions": 3}, "versions must be an object"),
        ({"seed": 2**70}, "seed must be a whole"), ({"ap": 10**400}, "ap must"),
        ({"commit": 0}, "commit must"),
        ({"ablation": 1}, "ablation must be"), (None, "method must be text"),
    ],
)  # fmt: skip
def test_a_ledger_line_of_another_kind_is_named(tmp_path, change, match):
    line = {k: v for k, v in LINE.items() if k != "method"} if change is None else LINE | change
    path = tmp_path / "l.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(line)}\n")
    with pytest.raises(DataError, match=rf"l\.jsonl:2: {match}.*; repair or delete this line"):
        Ledger(path).rows()
    path.write_text('{"dataset": "a", "method": "b", "preset": "cpu", "seed": 0, "weights": "none"}\n')
    with pytest.raises(DataError, match="reason must be text"):
        Ledger(path, FAILED).rows()


def test_rows_after_a_damaged_one_are_scored_again(tmp_path):
    names = [f"{i}.png" for i in range(6)]
    for bad in ("0.pag", "1.png,x,0.5,0", "1.png,\0001.5,0.5,0"):
        rows = ["path,score,p_value,flagged", "0.png,1.0,0.5,0", bad, *(f"{n},1.0,0.5,0" for n in names[1:])]
        (tmp_path / ".s.csv.part").write_text("\n".join(rows) + "\n")
        (tmp_path / ".s.csv.part.json").write_text('{"m": 1, "scale": null}')
        with ScoreFile(tmp_path / "s.csv", {"m": 1}, names, 1, resume=True) as file:
            assert (file.start, file.rows) == (1, 1)
            file.append([(n, 2.0, 0.5, False) for n in names[1:]])
            assert file.write_volumes(names, ["v"] * 6, 2, lambda s: np.full(len(s), 0.5)) == 1
            file.finish()
        assert len((tmp_path / "s.csv").read_text().splitlines()) == 7


def test_a_damaged_ledger_is_one_line_of_the_command(tmp_path, capsys):
    (tmp_path / "l.jsonl").write_text("{\n{}\n")
    with pytest.raises(SystemExit) as end:
        cli.main(["report", "benchmark", "--ledger", str(tmp_path / "l.jsonl")])
    assert end.value.code == 2
    assert "not a JSON object; repair or delete" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["fit"], ["fit", "x", "--seed", "abc"], ["fiit"], ["fit", "x", "--nothing", "1"]]
)
def test_bad_usage_is_one_line(capsys, words):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("dia: ")
    assert line.endswith("--help")


def test_metadata_that_is_no_text_and_weights_that_lie_elsewhere(tmp_path):
    import onnx

    sound = cases.small_onnx()
    path = written(tmp_path / "m.onnx", sound.replace(b"dia.method", b"dia.\x90ethod"))
    with pytest.raises(DataError, match=r"m\.onnx"):
        OnnxModel(path)
    (tmp_path / "in").mkdir()
    (tmp_path / "weights").write_bytes(struct.pack("<f", 7.0))
    made = onnx.load_from_string(sound)
    weight = made.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../weights"
    with pytest.raises(DataError, match=r"lie in another file \(\.\./weights\), which is not read"):
        OnnxModel(written(tmp_path / "in/m.onnx", made.SerializeToString()))


def test_a_model_that_scores_all_images_at_once_is_refused(tmp_path):
    import onnx

    made = onnx.load_from_string(cases.small_onnx())
    axes = made.graph.initializer[1]
    axes.ClearField("int64_data")
    axes.dims[:] = [4]
    axes.int64_data.extend([0, 1, 2, 3])
    with pytest.raises(DataError, match="no finite score for each image"):
        OnnxModel(written(tmp_path / "m.onnx", made.SerializeToString()))


def test_memory_that_is_not_there_is_one_line_and_leaves_no_image_out(tmp_path, monkeypatch):
    def none(*_, **__):
        raise MemoryError

    path = written(tmp_path / "a.png", files.pillow(files.GREY, "PNG"))
    monkeypatch.setattr(Image, "open", none)
    with pytest.raises(DataError, match=r"a\.png: there is not the memory"):
        read(path, skip_bad=True, workers=1)


def test_seeds_are_made_the_same_each_time():
    assert files.dicom_seeds() == files.dicom_seeds()
    assert files.npz_seeds() == files.npz_seeds()
    with Image.open(io.BytesIO(files.png(5, 4, 8, 2))) as image:
        assert image.size == (5, 4)
