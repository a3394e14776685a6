"""The images of a session: every format becomes cases, within limits, whatever happens meanwhile."""

import io
import threading
import time

import numpy as np
import pytest
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file
from PIL import Image
from reading_room import Held, Other, make_page, png

from dia.data.readers import read
from dia.serve.limits import Deadline
from dia.serve.room.cases import Cases
from dia.serve.room.drops import _ON_DISK, Drops
from dia.serve.room.images import memory
from dia.serve.room.images.case import hash_of, reading_of
from dia.serve.room.mark import Key


def taken(page, session, files):
    """Has files read and scored by a session; returns its cases, once all is done."""
    drops, cases = Drops.of(session, page.room.limits), Cases.of(session, page.room)
    id = drops.new()
    drops.add(id, ((name, io.BytesIO(data)) for name, data in files), Deadline(60))
    cases.add(drops.take(id))
    return settled(cases)


def settled(cases):
    late = time.monotonic() + 60
    while not cases.progress()[1]:
        assert time.monotonic() < late, "never done"
    return cases


def bytes_of(path):
    return path.name, path.read_bytes()


def noise(*shape, seed=0, most=256):
    return np.random.default_rng(seed).integers(0, most, shape)


@pytest.fixture
def session(page):
    return page.room.sessions.open("ann")


def ct(folder, n=5, seed=0, series="1.2.3", **more):
    """A CT series of n slices whose file names are in no order."""
    voxels = noise(n, 20, 24, seed=seed, most=2000)
    for k in range(n):
        dicom_file(
            folder / f"{(k * 7) % n:03d}-IM.dcm", voxels[k].astype(np.uint16), SeriesInstanceUID=series,
            InstanceNumber=k + 1, ImagePositionPatient=[0, 0, 2.5 * k], PixelSpacing=[0.7, 0.8],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], RescaleSlope=1, RescaleIntercept=-1024,
            WindowCenter=40, WindowWidth=400, **more,
        )  # fmt: skip
    return voxels


def test_a_dicom_series_is_a_case_in_order_with_hounsfield_units_window_and_spacing(page, session, tmp_path):
    voxels = ct(tmp_path / "CT")
    files = [(f"Meyer/CT 1/{name}", data) for name, data in map(bytes_of, (tmp_path / "CT").iterdir())]
    (case,) = taken(page, session, files).all()
    assert (case.name, case.dtype, case.channels, case.shape) == ("Meyer/CT 1", "float32", 1, (20, 24))
    assert np.array_equal(np.stack([one.values for one in case.slices]), voxels.astype(int) - 1024)
    assert case.levels == (-160, 240)
    assert case.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert case.range() == (voxels.min() - 1024, voxels.max() - 1024)
    expected = read(tmp_path / "CT", reading_of(page.room.current.get().inferencer))
    assert np.array_equal(case.images, expected.images), "what the model sees is what `dia score` shows it"


def test_series_of_different_folders_stay_apart(page, session, tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        ct(tmp_path / folder, seed=seed)
    files = [(f"{f.parent.name}/{f.name}", f.read_bytes()) for f in sorted(tmp_path.rglob("*.dcm"))]
    cases = taken(page, session, files).all()
    assert [(c.name, len(c.slices)) for c in cases] == [("a", 5), ("b", 5)]


@pytest.mark.parametrize(
    ("write", "dtype", "slices", "spacing"),
    [
        (lambda p: nifti_file(p / "a.nii.gz", noise(8, 9, 4).astype(np.int16), np.diag([2, 3, 4, 1])),
         "uint16", 4, (3, 2, 4)),
        (lambda p: meta_file(p / "a.mha", (noise(8, 9, 4) - 100).astype(np.int16)), "float32", 4, None),
        (lambda p: nrrd_file(p / "a.nrrd", noise(8, 9, 4).astype(np.uint8)), "uint8", 4, None),
        (lambda p: saved(p / "a.npy", noise(4, 8, 9).astype(np.uint8)), "uint8", 4, None),
        (lambda p: tiffed(p / "a.tif", noise(3, 8, 9).astype(np.uint16)), "uint16", 3, None),
        (lambda p: dicom_file(p / "a.dcm", noise(3, 8, 9).astype(np.uint8)), "uint8", 3, None),
        (lambda p: saved(p / "a.npy", noise(4, 8, 9, 3).astype(np.uint8)), "uint8", 4, None),
    ],
    ids=["nifti", "mha", "nrrd", "npy", "tiff", "multiframe", "colours"],
)  # fmt: skip
def test_a_file_of_several_slices_is_one_case(page, session, tmp_path, write, dtype, slices, spacing):
    file = write(tmp_path)
    cases = taken(page, session, [(f"x/{file.name}", file.read_bytes())])
    progress, _ = cases.progress()
    assert progress.problems == []
    (case,) = cases.all()
    assert (case.name, case.dtype, len(case.slices)) == (f"x/{file.name}", dtype, slices)
    assert len(case.now.scores) == progress.scored == progress.images == slices
    assert case.spacing == spacing or spacing is None
    expected = read(file, reading_of(page.room.current.get().inferencer))
    assert np.array_equal(case.images, expected.images)
    assert case.channels == (3 if file.suffix == ".npy" and expected.images.shape[-1] == 3 else case.channels)


def saved(path, array):
    np.save(path, array)
    return path


def tiffed(path, stack):
    first, *others = [Image.fromarray(page) for page in stack]
    first.save(path, save_all=True, append_images=others)
    return path


def test_colour_stays_colour_for_the_viewer_though_the_model_is_grey(page, session):
    pixels = noise(10, 12, 3).astype(np.uint8)
    (case,) = taken(page, session, [("a.png", png(pixels))]).all()
    assert (case.channels, case.dtype, case.levels) == (3, "uint8", (0, 255))
    assert np.array_equal(case.slices[0].values, pixels)


def test_low_values_that_are_white_are_turned_round_for_the_viewer_alone(page, session, tmp_path):
    x = noise(8, 9, most=4096).astype(np.uint16)
    file = dicom_file(
        tmp_path / "a.dcm",
        x,
        bits=12,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=1000,
        WindowWidth=800,
    )
    (case,) = taken(page, session, [bytes_of(file)]).all()
    assert np.array_equal(case.slices[0].values, 4095 - x)
    low, high = case.levels
    assert (low, high) == (4095 - 1400, 4095 - 600)
    expected = read(file, reading_of(page.room.current.get().inferencer))
    assert np.array_equal(case.images, expected.images)
    options = reading_of(page.room.current.get().inferencer)
    again = case.slices[0].toned(options.view)
    whole = read(file, window="voi", levels=options.levels).images[0]
    assert np.array_equal(again, whole), "it can be read once more for another model"


def test_a_volume_that_cannot_be_read_is_one_line(page, session, tmp_path):
    file = nrrd_file(tmp_path / "a.nrrd", noise(8, 9, 4).astype(np.float32) / 7)
    cases = taken(page, session, [bytes_of(file)])
    ((name, line),) = cases.progress()[0].problems
    assert name == "a.nrrd"
    assert "values without a full range" in line
    assert "(4 of 4 slices)" in line


def test_what_is_no_image_is_told_by_the_clients_name_and_no_place(page, session, tmp_path):
    good = noise(8, 9).astype(np.uint8)
    files = [
        ("a/good.png", png(good)), ("a/cut.png", png(noise(64, 64).astype(np.uint8))[:200]),
        ("a/notes.txt", b"x"),
        ("b/cut.dcm", b"\0" * 128 + b"DICM" + b"x" * 40), ("list.csv", b"path\n/etc/passwd\n"),
        ("evil.json", b'{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}'),
        ("far.mhd", b"ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\n"
                    b"ElementDataFile = /etc/passwd\n"),
        ("set.npz", b"PK\x03\x04"), ("a/empty.png", b""),
    ]  # fmt: skip
    cases = taken(page, session, files)
    progress, _ = cases.progress()
    assert [case.name for case in cases.all()] == ["a/good.png"]
    told = dict(progress.problems)
    assert set(told) == {name for name, _ in files if name != "a/good.png"} | {"set.npz"}
    lines = "\n".join(told.values())
    assert "/tmp" not in lines
    assert "dia-dropped" not in lines
    assert "00000" not in lines
    assert "root:" not in lines
    assert "no image by its name" in told["list.csv"]
    assert (progress.files, progress.read, progress.images, progress.scored) == (8, 8, 1, 1)


def test_no_table_is_read_as_a_manifest_where_a_folder_cannot_be_listed(page, session, tmp_path):
    secret = tmp_path / "s.png"
    secret.write_bytes(png(noise(8, 9).astype(np.uint8)))
    table = f"path,label\n{secret},\n".encode()
    dicom = b"path,label\n/a.png,\n".ljust(128, b"#") + b"DICM\n"  # an image by its first bytes
    files = [("a/list.csv", table), ("a/readme.txt", b"x"), ("b/LIST.TSV", table.replace(b",", b"\t")),
             ("b/set.npz", b"x"), ("c/odd.csv", dicom), ("c/readme.txt", b"x"),
             ("d/gone.csv", b"path,label\n/nonexistent.png,\n"), ("d/readme.txt", b"x")]  # fmt: skip
    cases = taken(page, session, files)
    assert cases.all() == []
    told = dict(cases.progress()[0].problems)
    assert set(told) == {name for name, _ in files}
    assert "not an image file" in told["c/odd.csv"]
    assert all("no image by its name" in told[name] for name in told if name != "c/odd.csv")


def test_pixels_are_listed_once_and_another_name_for_them_is_told(page, session):
    x = noise(8, 9).astype(np.uint8)
    cases = taken(page, session, [("a.png", png(x)), ("b.png", png(x))])
    assert cases.progress()[0].problems == [("b.png", "has the pixels of a.png; listed once")]
    taken(page, session, [("a.png", png(x)), ("c.png", png(x))])
    assert [case.name for case in cases.all()] == ["a.png"]
    assert cases.progress()[0].problems[1:] == [("c.png", "has the pixels of a.png; listed once")]


def test_files_are_deleted_once_read_and_memory_is_given_back_when_the_session_ends(page, session):
    disk, held = _ON_DISK.used, memory._OF_ALL.used
    taken(page, session, [(f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(5)])
    assert _ON_DISK.used == disk
    height, width, channels = page.room.current.get().inferencer.shape
    assert memory._OF_ALL.used - held == 5 * (72 + height * width * (channels + 2))
    session.close()
    assert memory._OF_ALL.used == held


def test_beyond_the_memory_a_case_is_a_problem_and_what_is_scored_stays(inferencer, served_run, tmp_path):
    page = make_page(inferencer, served_run.run, tmp_path / "m.sqlite", max_held_mb=0.02)
    session = page.room.sessions.open()
    small = [(f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(2)]
    large = ("large.npy", io.BytesIO())
    np.save(large[1], noise(9, 40, 40).astype(np.uint8))
    cases = taken(page, session, [*small, (large[0], large[1].getvalue())])
    assert [case.name for case in cases.all()] == ["0.png", "1.png"]
    ((name, line),) = cases.progress()[0].problems
    assert name == "large.npy"
    assert "no room for it in memory" in line
    after = taken(page, session, [("3.png", png(noise(8, 9, seed=3).astype(np.uint8)))])
    assert "3.png" in [case.name for case in after.all()], "what was refused holds no memory"


def test_the_list_has_a_greatest_length(inferencer, served_run, tmp_path):
    page = make_page(inferencer, served_run.run, tmp_path / "m.sqlite", max_listed=3)
    session = page.room.sessions.open()
    files = [(f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(5)]
    cases = taken(page, session, files)
    assert len(cases.all()) == 3
    assert [name for name, _ in cases.progress()[0].problems] == ["3.png", "4.png"]
    cases.clear()
    assert len(taken(page, session, files[3:]).all()) == 2


def test_a_drop_that_is_cancelled_while_it_is_read_leaves_what_was_scored(
    page, session, served_run, inferencer
):
    files = [(f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(3)]
    cases = taken(page, session, files)
    held, disk = Held(inferencer), _ON_DISK.used
    page.room.current.use(held, served_run.run)
    drops = Drops.of(session)
    id = drops.new()
    drops.add(id, ((f"n{i}.png", io.BytesIO(png(noise(9, 9, seed=i).astype(np.uint8)))) for i in range(40)),
              Deadline(60))  # fmt: skip
    cases.add(drops.take(id))
    assert held.began.wait(60)
    cases.cancel(id)
    held.go.set()
    settled(cases)
    assert [case.name for case in cases.all()] == [name for name, _ in files]
    assert _ON_DISK.used == disk


def test_the_list_can_be_forgotten_while_it_is_read_and_used_again(page, session, served_run, inferencer):
    held = Held(inferencer)
    page.room.current.use(held, served_run.run)
    before = memory._OF_ALL.used
    drops, cases = Drops.of(session), Cases.of(session, page.room)
    id = drops.new()
    drops.add(id, ((f"{i}.png", io.BytesIO(png(noise(8, 9, seed=i).astype(np.uint8)))) for i in range(40)),
              Deadline(60))  # fmt: skip
    cases.add(drops.take(id))
    assert held.began.wait(60)
    cases.clear()
    held.go.set()
    settled(cases)
    assert (cases.all(), memory._OF_ALL.used) == ([], before)
    assert len(taken(page, session, [("a.png", png(noise(8, 9).astype(np.uint8)))]).all()) == 1


def test_another_model_scores_all_anew_from_the_kept_pixels(page, session, served_run, inferencer, tmp_path):
    ct(tmp_path / "CT")
    files = [(f"CT/{name}", data) for name, data in map(bytes_of, (tmp_path / "CT").iterdir())]
    cases = taken(page, session, [*files, ("a.png", png(noise(50, 60).astype(np.uint8)))])
    old = [case.now for case in cases.all()]
    page.room.current.use(Other(inferencer), served_run.run)
    cases = settled(Cases.of(session, page.room))
    for case, before in zip(cases.all(), old, strict=True):
        assert case.now.served is page.room.current.get()
        assert case.now.maps is None
        assert case.now.images.shape[1:] == (24, 24, 1)
        assert np.array_equal(case.now.scores, case.now.images.mean((1, 2, 3)))
        assert case.now.sha256 != before.sha256
        assert case.now.lineage == "other"
    page.room.current.use(inferencer, served_run.run)
    cases = settled(Cases.of(session, page.room))
    for case, before in zip(cases.all(), old, strict=True):
        assert np.array_equal(case.now.images, before.images), "as when it was read from its file"
        assert np.allclose(case.now.scores, before.scores)
        assert case.now.sha256 == before.sha256


def test_a_model_that_is_exchanged_while_files_are_read_loses_none(page, session, served_run, inferencer):
    held = Held(inferencer)
    page.room.current.use(held, served_run.run)
    drops, cases = Drops.of(session), Cases.of(session, page.room)
    id = drops.new()
    drops.add(id, ((f"{i}.png", io.BytesIO(png(noise(8, 9, seed=i).astype(np.uint8)))) for i in range(80)),
              Deadline(60))  # fmt: skip
    cases.add(drops.take(id))
    assert held.began.wait(60)
    page.room.current.use(Other(inferencer), served_run.run)
    held.go.set()
    settled(cases)
    assert len(cases.all()) == 80
    assert {case.now.lineage for case in cases.all()} == {"other"}
    assert cases.progress()[0].scored == 80


def test_a_model_that_cannot_score_ends_in_a_line_and_not_in_a_loop(page, session, served_run, inferencer):
    class Broken(Other):
        def score(self, images, heatmaps=True):
            raise RuntimeError("/srv/models/secret is damaged")

    page.room.current.use(Broken(inferencer), served_run.run)
    cases = taken(page, session, [("a.png", png(noise(8, 9).astype(np.uint8)))])
    assert cases.all() == []
    assert cases.progress()[0].problems == [("", "not scored")]


def test_heatmaps_are_made_behind_the_scores_and_are_those_of_the_model(page, session, inferencer):
    cases = taken(page, session, [(f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(3)])
    for case in cases.all():
        (heat,) = case.now.heat([0], 1)
        expected = inferencer.score(case.images).heatmaps[0]
        assert np.allclose(heat, expected, rtol=2e-3, atol=1e-3)
        assert not case.now.cold


def test_heatmaps_that_cannot_be_made_leave_the_scores(page, session, served_run, inferencer):
    class Cold(Other):
        def __init__(self, inferencer):
            super().__init__(inferencer)
            self.has_heatmaps, self.asked = True, threading.Event()

        def score(self, images, heatmaps=True):
            if heatmaps:
                self.asked.set()
                raise RuntimeError("no memory for it")
            return super().score(images, heatmaps)

    cold = Cold(inferencer)
    page.room.current.use(cold, served_run.run)
    cases = taken(page, session, [("a.png", png(noise(8, 9).astype(np.uint8)))])
    assert cold.asked.wait(60)
    assert [case.name for case in cases.all()] == ["a.png"]
    assert cases.progress()[0].problems == []


def test_marked_gives_the_image_that_a_mark_is_about(page, session, tmp_path):
    ct(tmp_path / "CT")
    files = [(f"CT/{name}", data) for name, data in map(bytes_of, (tmp_path / "CT").iterdir())]
    cases = taken(
        page, session, [*files, *((f"{i}.png", png(noise(8, 9, seed=i).astype(np.uint8))) for i in range(3))]
    )
    volume, first, second, _ = cases.all()
    marks = page.room.marks
    for case, reader, verdict in (
        (volume, "ann", "agree"), (first, "ann", "disagree"), (first, "ben", "agree"),
        (second, "ann", "unsure"),
    ):  # fmt: skip
        key = Key(case.now.lineage, case.now.sha256, reader)
        marks.change(key, case.seen(0.2), verdict=verdict)
    found = {(m.sha256, m.reader): m for m in cases.marked(marks)}
    flagged = first.now.score > page.room.current.get().inferencer.threshold(0.2)
    assert set(found) == {(volume.now.hashes[volume.now.worst], "ann"), (first.now.sha256, "ann"),
                          (first.now.sha256, "ben")}  # fmt: skip
    assert found[first.now.sha256, "ann"].label == int(not flagged)
    assert found[first.now.sha256, "ben"].label == int(flagged)
    for one in found.values():
        assert hash_of(one.image[None]) == one.sha256


def test_drift_counts_a_volume_once(page, session, served_run, inferencer):
    page.room.current.use(Other(inferencer), served_run.run)
    files = [(f.name, f.read_bytes()) for f in sorted((served_run.data / "train").rglob("*.png"))[:20]]
    cases = taken(page, session, files)
    assert cases.drift()["images"] == 20
    stack = io.BytesIO()
    np.save(stack, noise(30, 32, 32).astype(np.uint8))
    assert taken(page, session, [("v.npy", stack.getvalue())]).drift()["images"] == 21
