"""Streams: batch by batch, killed and resumed, or in other processes, all come to one result."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import tempfile
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import example, given
from hypothesis import strategies as st
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file
from PIL import Image
from scoring import interrupted, refused, score

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data import datasets, decode
from dia.data.imageset import ImageSet
from dia.data.readers import Listing, listing, read
from dia.deploy.heatmaps import heatmap_path
from dia.deploy.scorefile import ScoreFile
from dia.deploy.scoring import stamp_of
from dia.detectors import Detector
from dia.detectors.registry import METHODS
from dia.report.pictures import colour, overlay, scale_of, sheet

# --- decoding -----------------------------------------------------------------------------------------


class Inline:
    """A pool that does its work at once and here."""

    def __init__(self, *args, **kwargs):
        self.futures: list[Future] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *args):
        future: Future = Future()
        self.futures.append(future)
        future.set_result(work(*args))
        return future


@given(n=st.integers(0, 400), workers=st.integers(1, 3), ahead=st.integers(0, 200))
def test_the_window_keeps_order_and_its_bound(n, workers, ahead):
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "ThreadPoolExecutor", Inline)
        results = decode._map(partial(lambda x: loaded.append(x) or x), range(n), workers, ahead)
        for i, x in enumerate(results):
            assert x == i
            assert len(loaded) - i <= max(ahead + 16, 4 * 16 * workers) + 16
    assert loaded == list(range(n))


def test_a_stream_left_early_cancels_what_has_not_begun(monkeypatch):
    pools = []

    class Lazy(Inline):
        def submit(self, work, *args):
            pools.append(self)
            future = super().submit(work, *args)
            if len(self.futures) > 1:
                self.futures[-1] = future = Future()
            return future

    monkeypatch.setattr(decode, "ThreadPoolExecutor", Lazy)
    results = decode._map(partial(int), range(1000), 2)
    assert list(islice(results, 16)) == list(range(16))
    results.close()
    assert all(f.cancelled() for f in pools[0].futures[1:])


# --- listings -----------------------------------------------------------------------------------------


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """The same 23 images, some anomalous and with masks, in every layout."""
    root, images = tmp_path_factory.mktemp("sources"), smooth_images(23)
    labels = np.arange(23) % 3 == 0
    rows = ["path,label,mask"]
    for i, image in enumerate(images):
        kind = "bad" if labels[i] else "fine"
        save(root / "folder" / kind / f"{i}.png", image)
        mask = f"folder/ground_truth/{kind}/{i}_mask.png" if labels[i] else ""
        if mask:
            save(root / mask, image // 128 * 255)
        rows.append(f"folder/{kind}/{i}.png,{int(labels[i])},{mask}")
    (root / "rows.csv").write_text("\n".join(rows))
    np.savez(root / "a.npz", test_images=images, test_labels=labels, test_masks=images[..., 0] > 127)
    return {
        "folder": (root / "folder", {"normal": "fine"}),
        "csv": (root / "rows.csv", {}),
        "npz": (root / "a.npz", {"split": "test"}),
        "one": (root / "folder" / "bad" / "0.png", {}),
    }


def same(parts: list[ImageSet], whole: ImageSet) -> None:
    assert [name for part in parts for name in part.names] == list(whole.names)
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
    if whole.labels is None:
        assert all(part.labels is None for part in parts)
    else:
        assert np.array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    if whole.masks is not None:
        blank = [np.zeros(p.images.shape[:3], bool) if p.masks is None else p.masks for p in parts]
        assert np.array_equal(np.concatenate(blank), whole.masks)


@pytest.mark.parametrize("kind", ["folder", "csv", "npz", "one"])
@pytest.mark.parametrize("more", [{}, {"size": (9, 12), "channels": 3}])
def test_a_stream_is_what_read_reads(sources, kind, more):
    path, options = sources[kind]
    whole, found = read(path, workers=1, **options, **more), listing(path, **options, **more)
    assert (len(found), tuple(found.names)) == (len(whole), tuple(whole.names))
    assert np.array_equal(found.labels, whole.labels)  # also None and None
    same([found.read()], whole)
    for batch in (1, 7, 23, 100):
        for start in (0, 5, 22):
            if start < len(whole):
                parts = list(found.stream(batch, start, workers=1))
                same(parts, whole.subset(slice(start, None)))
                assert {len(p) for p in parts[:-1]} <= {batch}
    assert list(found.stream(start=len(whole))) == []


@pytest.mark.parametrize("kind", ["folder", "csv", "npz"])
def test_a_part_travels_alone(sources, kind):
    path, options = sources[kind]
    found = listing(path, **options)
    sent = pickle.dumps(found.part(3, 9))
    assert len(sent) < len(pickle.dumps(found))
    part = pickle.loads(sent)
    assert isinstance(part, Listing)
    same([part.read(workers=1)], read(path, workers=1, **options).subset(slice(3, 9)))


def test_known_names_have_listings(sources, tmp_path, monkeypatch):
    from dia.data import phantoms

    small = phantoms.load
    monkeypatch.setattr(phantoms, "load", lambda split, **kwargs: small(split, n=4, **kwargs))
    found = datasets.open_listing("phantom", "test", size=24, channels=3)
    assert [part.images.shape for part in found.stream(3)] == [(3, 24, 24, 3), (1, 24, 24, 3)]
    (tmp_path / "breastmnist.npz").symlink_to(sources["npz"][0])
    found = datasets.open_listing("breastmnist", "test", tmp_path, size=8)
    same(list(found.stream(10)), datasets.load("breastmnist", "test", tmp_path, size=8, workers=1))
    with pytest.raises(DataError, match="did you mean"):
        datasets.open_listing("breastmnits")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """120 images of which 2, 20 to 39 and 119 are no images."""
    root = tmp_path_factory.mktemp("damaged")
    for i, image in enumerate(smooth_images(120, seed=1)):
        save(root / f"{i:03}.png", image)
        if i in (2, *range(20, 40), 119):
            (root / f"{i:03}.png").write_text("no image")
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_files_leave_their_batch_smaller(damaged, workers):
    found = listing(damaged, size=8, channels=3, skip_bad=True)
    parts = list(found.stream(20, workers=workers))
    assert [len(p) for p in parts] == [19, 0, 20, 20, 20, 19]
    assert parts[1].images.shape == (0, 8, 8, 3)
    assert [len(p.skipped) for p in parts] == [1, 20, 0, 0, 0, 1]
    same(parts, read(damaged, size=8, channels=3, skip_bad=True, workers=workers))
    strict = listing(damaged).stream(2, workers=workers)
    assert len(next(strict)) == 2
    with pytest.raises(DataError, match=r"002\.png: no image, .*--skip-bad"):
        next(strict)


def test_a_stream_decodes_a_bounded_number_ahead(damaged, monkeypatch):
    decoded = []
    load = decode._load
    monkeypatch.setattr(decode, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(decode, "_load", lambda s, **how: decoded.append(s) or load(s, **how))
    monkeypatch.setattr(decode, "_CHUNK", 1)
    for workers, bound in ((1, 0), (2, 10)):
        decoded.clear()
        for i, _ in enumerate(listing(damaged, skip_bad=True).stream(10, workers=workers)):
            assert len(decoded) <= 10 * (i + 1) + bound
        assert len(decoded) == 120


# --- the file of scores -------------------------------------------------------------------------------

ABOUT = {"model": "m", "data": "d"}
NAMES = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
    ["a\r\nb", "\n", '",\n"', "é\udcff"]
)


@given(
    names=st.lists(NAMES, min_size=1, max_size=12, unique=True),
    lost=st.sets(st.integers(0, 11)),
    batch=st.integers(1, 5),
    suffix=st.sampled_from(["csv", "jsonl"]),
    cut=st.floats(0, 1),
)
@example(["a", "b"], {0}, 1, "csv", 0.9)
def test_a_file_cut_anywhere_goes_on_to_the_same_bytes(names, lost, batch, suffix, cut):
    readable = [(name, i / 3, 0.5, i % 2 == 0) for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, f"s.{suffix}")

        def write(resume: bool, finish: bool = True) -> ScoreFile:
            with ScoreFile(target, ABOUT, names, batch, resume=resume, gaps=bool(lost)) as file:
                assert file.start % batch == 0 or file.start == len(names)
                for i in range(file.start, len(names), batch):
                    file.append([readable[j] for j in range(i, min(i + batch, len(names))) if j not in lost])
                if finish:
                    file.finish()
            return file

        whole = write(False)
        wanted = target.read_bytes()
        target.unlink()
        part = write(False, finish=False).part
        os.truncate(part, round(cut * len(wanted)))
        again = write(True)
        assert target.read_bytes() == wanted
        assert (again.rows, again.flagged) == (whole.rows, whole.flagged)
        assert os.listdir(folder) == [target.name]


def test_a_file_goes_on_after_its_last_whole_batch(tmp_path):
    target, names = tmp_path / "s.csv", ["a", "b", "c", "d", "e"]
    with ScoreFile(target, ABOUT, names, 2) as file:
        file.keep_scale((0.5, 2.0))
        file.append([(name, 0.0, 1.0, name == "a") for name in names[:3]])
    with ScoreFile(target, ABOUT, names, 2, resume=True) as file:
        assert (file.start, file.rows, file.flagged, file.scale) == (2, 2, 1, (0.5, 2.0))
    for other in (["b", "a", "c"], ["a", "x", "b"]):
        with pytest.raises(DataError, match="are not those of the first images"):
            ScoreFile(target, ABOUT, other, 2, resume=True)
    file.sidecar.write_text("{")
    with pytest.raises(DataError, match="does not say"):
        ScoreFile(target, ABOUT, names, 2, resume=True)
    with ScoreFile(target, ABOUT, names, 2) as file:  # begins anew
        assert (file.start, file.scale) == (0, None)


# --- dia score ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    for i, image in enumerate(smooth_images(30, seed=2)):
        save(root / f"{i:02}.png", image)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Models that need no training."""
    root = tmp_path_factory.mktemp("models")
    for name in ("gradient", "blur"):
        METHODS[f"trivial:{name}"]().fit(smooth_images(40)).save(root / name)
    METHODS["trivial:gradient"](seed=1).fit(smooth_images(40)).save(root / "other")
    return root


def facts(capsys) -> dict:
    found = json.loads(capsys.readouterr().out)
    del found["out"]
    return found


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_interrupted_score_goes_on_to_the_same_file(models, scans, tmp_path, monkeypatch, capsys, suffix):
    model, out, whole = models / "gradient", tmp_path / f"s.{suffix}", tmp_path / f"whole.{suffix}"
    score(model, scans, whole, "--json")
    first = facts(capsys)
    assert (first["images"], first["skipped"]) == (30, 0)
    interrupted(monkeypatch, model, scans, out)
    with (tmp_path / f".s.{suffix}.part").open("a") as file:
        file.write("17.png,0.12")  # torn
    scored = []
    on = Detector.detect
    monkeypatch.setattr(
        Detector, "detect", lambda s, x, **kwargs: scored.append(len(x)) or on(s, x, **kwargs)
    )
    score(model, scans, out, "--json", "--resume")
    assert scored == [8, 6]
    assert facts(capsys) == first
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([out.name, whole.name])


def test_without_resume_a_score_begins_anew(models, scans, tmp_path, monkeypatch):
    out = tmp_path / "s.csv"
    interrupted(monkeypatch, models / "other", scans, out)
    score(models / "gradient", scans, out)
    score(models / "gradient", scans, tmp_path / "new.csv", "--resume")  # nothing to go on with
    assert out.read_bytes() == (tmp_path / "new.csv").read_bytes()


def test_what_is_finished_is_not_begun_anew_by_resume(models, scans, tmp_path, capsys):
    out, model = tmp_path / "s.csv", models / "gradient"
    score(model, scans, out)
    before = out.read_bytes()
    assert "s.csv is finished" in refused(capsys, model, scans, out, "--resume", "--max", 3)
    assert out.read_bytes() == before


def test_another_run_is_not_gone_on_with(models, scans, tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "s.csv", models / "gradient"
    interrupted(monkeypatch, model, scans, out)
    before = (tmp_path / ".s.csv.part").read_bytes()
    assert "another model (" in refused(capsys, models / "other", scans, out, "--resume")
    assert "another data (" in refused(capsys, model, f"{scans}/", out, "--resume")
    assert "another split (" in refused(capsys, model, scans, out, "--resume", "--split", "all")
    line = refused(capsys, model, scans, out, "--resume", "--false-alarm-rate", ".2")
    assert "another false-alarm rate (0.05, now 0.2); give the same, or begin anew without --resume" in line
    assert "another --heatmaps" in refused(
        capsys, model, scans, out, "--resume", "--heatmaps", tmp_path / "m"
    )
    save(scans / "new.png", smooth_images(1)[0])
    try:
        assert "another list of images (30, " in refused(capsys, model, scans, out, "--resume")
    finally:
        (scans / "new.png").unlink()
    assert (tmp_path / ".s.csv.part").read_bytes() == before
    score(model, scans, out, "--resume")


def test_a_volume_is_not_gone_on_with_along_another_axis(models, tmp_path, monkeypatch, capsys):
    pytest.importorskip("nibabel")
    cube = np.stack(
        list(smooth_images(24, 24, 24)[..., 0])
    )  # whose slices have the same names along any axis
    file, out, model = nifti_file(tmp_path / "v.nii", cube), tmp_path / "s.csv", models / "gradient"
    interrupted(monkeypatch, model, file, out)
    said = refused(capsys, model, file, out, "--resume", "--axis", "coronal")
    assert "another --axis (axial, now coronal)" in said
    sidecar = tmp_path / ".s.csv.part.json"
    first, *more = sidecar.read_text().strip().splitlines()
    of_before = {k: v for k, v in json.loads(first).items() if k not in ("--axis", "--slices", "--channel")}
    sidecar.write_text("\n".join([json.dumps(of_before), *more]))
    score(model, file, out, "--resume", "--axis", "axial")
    score(model, file, tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_unreadable_files_and_resume(models, damaged, tmp_path, monkeypatch, capsys):
    model, out, whole = models / "gradient", tmp_path / "s.csv", tmp_path / "whole.csv"
    score(model, damaged, whole, "--skip-bad", "--json", "--batch", 20)
    said = capsys.readouterr()
    wanted = json.loads(said.out) | {"out": str(out)}
    assert (wanted["images"], wanted["skipped"]) == (98, 22)
    assert said.err.count("skipped: ") == 22
    for after in (1, 2, 5):  # behind the second batch lies a batch without a row
        interrupted(monkeypatch, model, damaged, out, "--skip-bad", "--batch", 20, after=after)
        if after == 2:
            assert "give --skip-bad" in refused(capsys, model, damaged, out, "--resume", "--batch", 20)
        capsys.readouterr()
        score(model, damaged, out, "--skip-bad", "--json", "--resume", "--batch", 20)
        assert json.loads(capsys.readouterr().out) == wanted
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()
    assert "002.png: no image" in refused(capsys, model, damaged, out, "--batch", 2)
    score(model, damaged, out, "--skip-bad", "--resume", "--batch", 2)  # one may change one's mind
    assert out.read_bytes() == whole.read_bytes()
    for path in damaged.glob("03*"):
        save(tmp_path / "bad" / path.name, np.zeros((16, 16, 1), np.uint8))
        (tmp_path / "bad" / path.name).write_text("no image")
    line = refused(capsys, model, tmp_path / "bad", out, "--skip-bad", "--batch", 4)
    assert "none of 10 images could be read; the first: " in line
    assert "030.png" in line


FORMS = ("overlay", "beside", "npy", "tiff")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Twenty images, of 30 to 49 by 40 pixels."""
    root = tmp_path_factory.mktemp("wide")
    for i in range(20):
        save(root / f"{i:02}.png", smooth_images(1, 40, 30 + i, seed=i)[0])
    return root


@pytest.mark.parametrize("known", [True, False])
def test_heatmaps_have_the_size_of_the_file_and_one_scale(models, wide, tmp_path, monkeypatch, capsys, known):
    model = models / "blur"
    if not known:  # as fitted before the normals' heatmaps were looked at
        detector = Detector.load(model, device="cpu")
        detector.heat_ = None
        model = detector.save(tmp_path / "older")
        assert not (model / "heatmaps.json").exists()
    asked = ["--heatmaps-as", f"[{','.join(FORMS)}]", "--false-alarm-rate", "0.3", "--heatmaps"]
    score(model, wide, tmp_path / "whole.csv", *asked, tmp_path / "whole")
    interrupted(monkeypatch, model, wide, tmp_path / "s.csv", *asked, tmp_path / "maps")
    capsys.readouterr()
    line = refused(capsys, model, wide, tmp_path / "s.csv", "--resume", *asked, tmp_path / "x")
    assert "another --heatmaps (" in line
    about = (tmp_path / ".s.csv.part.json").read_text()
    (tmp_path / ".s.csv.part.json").write_text(about.replace(str(tmp_path / "maps"), "maps"))
    monkeypatch.chdir(tmp_path)
    score(model, wide, tmp_path / "s.csv", "--resume", *asked, "maps")
    detector = Detector.load(model, device="cpu")
    small = detector.heatmap(read(wide, size=16, channels=1, workers=1))
    scale, level = scale_of(small[:8]), None
    if known:
        scale, level = detector.heat_.scale, detector.heat_.level(0.3)
        assert scale[0] < level < scale[1]
    for i in range(20):
        original = np.asarray(Image.open(wide / f"{i:02}.png"))[..., None]
        resized = Image.fromarray(small[i]).resize((30 + i, 40), Image.Resampling.BILINEAR)
        heat = np.load(heatmap_path(tmp_path / "whole", f"{i:02}.png", "npy"))
        assert (heat.dtype, heat.shape) == (np.float32, (40, 30 + i))
        np.testing.assert_allclose(heat, np.asarray(resized), rtol=1e-5, atol=1e-5)
        assert np.array_equal(Image.open(heatmap_path(tmp_path / "whole", f"{i:02}.png", "tiff")), heat)
        drawn = overlay(original, heat, scale, level)
        over, beside = (
            np.asarray(Image.open(heatmap_path(tmp_path / "whole", f"{i:02}.png", form)))
            for form in FORMS[:2]
        )
        assert np.array_equal(over[:40, : 30 + i], drawn)
        assert (beside[:40, : 30 + i] == original).all()
        assert np.array_equal(beside[:40, 30 + i : 60 + 2 * i], drawn)
        for form in FORMS:
            again, whole = (
                heatmap_path(tmp_path / folder, f"{i:02}.png", form) for folder in ("maps", "whole")
            )
            assert again.read_bytes() == whole.read_bytes()
    line = refused(capsys, models / "gradient", wide, tmp_path / "x.csv", "--heatmaps", tmp_path / "none")
    assert "trivial:gradient has no heatmaps" in line


def test_a_contour_surrounds_what_lies_above_its_level():
    heat = np.zeros((20, 20), np.float32)
    heat[5:10, 5:10] = 2
    plain, drawn = (overlay(np.zeros((20, 20, 1), np.uint8), heat, (0, 4), level) for level in (None, 1))
    changed = (plain != drawn).any(-1)
    ring = np.zeros((20, 20), bool)
    ring[5:10, 5:10] = True
    ring[6:9, 6:9] = False
    assert np.array_equal(changed, ring)
    assert not plain[heat == 0].any()  # a low value leaves the image as it is


NAME_PARTS = st.text(st.sampled_from("a%./"), max_size=6)
SHORTENED = "%" + 32 * "0"  # the end of a name that was shortened
NAME_ENDS = st.sampled_from(
    ["", ".png", ".heatmap.png", ".heatmap.png%", ".npy", ".heatmap.npy", SHORTENED, 230 * "é", 251 * "a"]
)
HEATMAP_NAMES = st.lists(st.tuples(NAME_PARTS, NAME_ENDS).map("".join), min_size=1, max_size=3).map("/".join)


@given(one=HEATMAP_NAMES, other=HEATMAP_NAMES)
@example("a.jpg", "a.jpg.png")
@example("d/x.png", "../d/x.png")
@example("/d/x.png", "d/x.png")
@example("a", "a.heatmap.png/a")
@example("%", "%.heatmap.png/a")
@example(300 * "a", heatmap_path(Path(), 300 * "a").name.removesuffix(".heatmap.png"))
@example(300 * "a" + "/a", heatmap_path(Path(), 300 * "a" + "/a").parts[0] + "/a")
@example(255 * "a", 254 * "a" + "b")
def test_two_images_never_share_a_heatmap_and_none_lies_outside(one, other):
    files = [heatmap_path(Path("maps"), name, form) for name in {one, other} for form in FORMS]
    assert len(set(files)) == len(files)
    folders = {parent for file in files for parent in file.parents}
    assert not folders & set(files)
    for file in files:
        assert file.parts[0] == "maps"
        assert ".." not in file.parts
        assert max(len(part.encode()) for part in file.parts) <= 255  # what file systems allow


def test_a_file_with_the_longest_name_has_its_heatmap(models, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for end in ("a", "b"):
        Image.fromarray(np.full((24, 24), 90, np.uint8)).save(scans / f"{125 * 'é'}{end}.png")  # 255 bytes
    score(models / "blur", scans, tmp_path / "s.csv", "--heatmaps", str(tmp_path / "maps"), "--json")
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_only_flagged_rows_are_those_of_the_whole_that_are_flagged(
    models, scans, tmp_path, monkeypatch, capsys
):
    model, rate = models / "gradient", ("--false-alarm-rate", "0.3", "--json")
    for suffix in ("csv", "jsonl"):
        whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"s.{suffix}"
        score(model, scans, whole, *rate)
        first = facts(capsys)
        lines = whole.read_text().splitlines()
        flagged = [x for x in lines if x.startswith("path,") or x.endswith((",1", "true}"))]
        assert first["flagged"] == len(flagged) - (suffix == "csv")
        assert 0 < first["flagged"] < 30
        interrupted(monkeypatch, model, scans, out, *rate, "--only-flagged")
        capsys.readouterr()
        score(model, scans, out, *rate, "--only-flagged", "--resume")
        assert facts(capsys) == first
        assert out.read_text().splitlines() == flagged
    assert sorted(os.listdir(tmp_path)) == ["s.csv", "s.jsonl", "whole.csv", "whole.jsonl"]


def test_the_first_images_alone_are_scored_where_a_number_is_given(models, scans, tmp_path, capsys):
    score(models / "gradient", scans, tmp_path / "whole.csv")
    for number in (1, 11, 99):
        score(models / "gradient", scans, tmp_path / "s.csv", "--max", number)
        rows = (tmp_path / "whole.csv").read_text().splitlines()[: 1 + number]
        assert (tmp_path / "s.csv").read_text().splitlines() == rows
    assert "--max" in refused(capsys, models / "gradient", scans, tmp_path / "s.csv", "--max", 0)


# --- inputs and owners --------------------------------------------------------------------------------


def test_scoring_spares_what_it_reads(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(smooth_images(3, 40)):
        save(Path("scans") / f"{i}.png", image)
    save(Path("own/strips.png"), smooth_images(1)[0])
    Path("list.csv").write_text("path,label\nscans/0.png,\nscans/1.png,\n")
    Path("link.csv").symlink_to("list.csv")
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("aside.csv").write_text("")
    Path("aside.volumes.csv").write_text("path,label\nscans/0.png,\n")
    model = Detector.load(models / "blur", device="cpu").save("model")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for data, out, more, said in (
        ("scans", "s.csv", ["--heatmaps", "scans"], "--heatmaps scans: the command reads this"),
        ("scans", "s.csv", ["--heatmaps", "scans/../scans/"], "the command reads this"),
        ("list.csv", "list.csv", [], "--out list.csv: the command reads this"),
        ("list.csv", "link.csv", [], "--out link.csv: the command reads this"),
        ("scans", "model/s.csv", [], "in the model folder model; choose a place outside, as model-s.csv"),
        ("scans", "s.csv", ["--heatmaps", "model/maps"], "--heatmaps model/maps: in the model folder"),
        ("scans", "other.csv", [], "other.csv: it exists and holds no scores"),
        ("scans", "aside.csv", [], "aside.volumes.csv: it exists and holds no scores"),
    ):
        assert said in refused(capsys, model, data, Path(out), *more)
    for words, said in (
        (["dissolve", "model", "scans", "--out", "scans/0.png"], "there is an image that dia did not draw"),
        (["report", "model", "list.csv", "--out", "list.csv"], "--out list.csv: the command reads this"),
        (["evaluate", "model", "list.csv", "--ledger", "list.csv"], "--ledger list.csv: the command reads"),
        (["illustrate", "model", "scans", "--out", "scans"], "--out scans: the command reads this"),
        (["illustrate", "model", "scans", "--out", "own"], "--out own/strips.png: there is an image"),
        (["stress", "model", "scans", "--out", "scans/0.json"], "--out scans/0.png: there is an image"),
        (["stress", "model", "scans", "--out", "model/config.json"], "in the model folder"),
        (["push", "model", "a/b", "--out", "model"], "--out model: the command reads this"),
        (["export", "model", "--out", "model/m.onnx"], "in the model folder"),
        (["fit", "scans", "--out", "scans"], "--out scans: the command reads this"),
        (["fit", "model/scans", "--out", "model", "--overwrite"], "model/scans, which is read, lies in it"),
    ):
        Path("model/scans").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_pictures_that_were_drawn_are_no_scans(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(smooth_images(3, 40)):
        save(Path("scans") / f"{i}.png", image)
    forms = "[overlay,beside,npy,tiff]"
    score(models / "blur", Path("scans"), Path("s.csv"))
    score(models / "blur", Path("scans"), Path("t.csv"), "--heatmaps", "scans/maps", "--heatmaps-as", forms)
    sheet(Path("scans/strip.jpg"), [("a", smooth_images(2))])
    sheet(Path("scans/strip.png"), [("a", smooth_images(2))])
    (Path("scans") / "renamed.PNG").write_bytes(Path("scans/maps/0.png.heatmap.png").read_bytes())
    capsys.readouterr()
    score(models / "blur", Path("scans"), Path("t.csv"))
    assert "scans: 12 pictures that dia drew, no scans, are left out (such as " in capsys.readouterr().err
    assert Path("t.csv").read_bytes() == Path("s.csv").read_bytes()
    assert "a picture that dia drew, no scan" in refused(
        capsys, models / "blur", Path("scans/strip.png"), Path("t.csv")
    )
    assert "no images in this folder but 9 that dia drew" in refused(
        capsys, models / "blur", Path("scans/maps"), Path("t.csv")
    )
    Path("list.csv").write_text("path,label\nscans/0.png,\nscans/strip.png,\n")
    with pytest.warns(
        UserWarning, match=r"list.csv: a picture that dia drew, no scan, is left out \(scans/st"
    ):
        assert listing("list.csv").names == ("scans/0.png",)


def test_exchanged_pixels_are_not_gone_on_with(models, tmp_path, monkeypatch, capsys):
    scans, out, model = tmp_path / "scans", tmp_path / "s.csv", models / "gradient"
    for i, image in enumerate(smooth_images(30, seed=2)):
        save(scans / f"{i:02}.png", image)
    interrupted(monkeypatch, model, scans, out)
    before = (tmp_path / ".s.csv.part").read_bytes()
    time = (scans / "00.png").stat().st_mtime_ns
    save(scans / "00.png", 255 - smooth_images(30, seed=2)[0])
    os.utime(scans / "00.png", ns=(time + 1, time + 1))
    assert "another content of the images" in refused(capsys, model, scans, out, "--resume")
    assert (tmp_path / ".s.csv.part").read_bytes() == before
    np.savez(tmp_path / "a.npz", test_images=smooth_images(30))
    interrupted(monkeypatch, model, tmp_path / "a.npz", out)
    np.savez(tmp_path / "a.npz", test_images=smooth_images(30, seed=3))
    assert "another content of the images" in refused(capsys, model, tmp_path / "a.npz", out, "--resume")


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.mha", "a.nrrd"])
def test_the_voxels_beside_a_header_are_a_part_of_its_content(tmp_path, name):
    path, x = tmp_path / name, smooth_images(3)[..., 0]
    (meta_file if ".m" in name else nrrd_file)(path, x)
    listed, voxels = listing(path), path.with_suffix(".raw")
    if not voxels.exists():  # they lie in the file itself
        voxels = path
    stamp, stat = stamp_of(listed), voxels.stat()
    assert stamp_of(listing(path)) == stamp
    os.utime(voxels, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert stamp_of(listed) != stamp
    os.utime(voxels, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stamp_of(listed) == stamp
    voxels.write_bytes(voxels.read_bytes() + b"\n")
    os.utime(voxels, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stamp_of(listed) != stamp
    voxels.unlink()
    assert stamp_of(listed) != stamp  # reading them says what is wrong


def test_slices_that_are_left_out_count_where_the_window_is_of_the_volume(tmp_path):
    pytest.importorskip("pydicom")
    for i, image in enumerate(smooth_images(4)[..., 0].astype(np.uint16)):
        place = {"ImagePositionPatient": [0, 0, i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom_file(tmp_path / f"{i}.dcm", image, SeriesInstanceUID="1.2.3", InstanceNumber=i, **place)
    other = tmp_path / "3.dcm"
    for window in ("volume", "0,300"):
        listed = listing(tmp_path, window=window, slices="0:2")
        assert {e.file.name for e in listed.entries} == {"0.dcm", "1.dcm"}
        before, time = stamp_of(listed), other.stat().st_mtime_ns
        os.utime(other, ns=(time, time + 1))
        assert (stamp_of(listed) == before) == (window != "volume")


def test_a_second_run_is_refused_by_the_name_of_the_first(models, scans, tmp_path, capsys):
    out, names = tmp_path / "s.csv", ["a", "b"]
    with ScoreFile(out, ABOUT, names, 1) as first:
        first.append([("a", 0.0, 1.0, False)])
        for more in ([], ["--resume"]):
            line = refused(capsys, models / "gradient", scans, out, *more)
            assert f"s.csv: `{Path(sys.argv[0]).name}" in line
            assert f"(process {os.getpid()} on {socket.gethostname()}, begun 20" in line
            assert "is writing it; wait for it, end it, or choose another --out" in line
        first.append([("b", 0.0, 1.0, False)])
        first.finish()
    assert len(out.read_text().splitlines()) == 3
    score(models / "gradient", scans, out)
    assert sorted(os.listdir(tmp_path)) == ["s.csv"]


def test_one_that_wakes_after_it_lost_the_file_adds_nothing(tmp_path):
    """As where a disk has no locks: the second does not see that the first lives."""
    out, names = tmp_path / "s.csv", [str(i) for i in range(6)]
    with ScoreFile(out, ABOUT, names, 1) as lost:
        lost.append([("0", 0.0, 1.0, False)])
        lost._owner.path.unlink()
        with ScoreFile(out, ABOUT, names, 1, resume=True) as winner:
            assert winner.start == 1
            winner.append([("1", 0.0, 1.0, False)])
            for write in (
                partial(lost.append, [("1", 9.0, 1.0, False)]), partial(lost.note, 1, {}),
                partial(lost.keep_scale, (0.0, 1.0)), lost.finish,
                partial(lost.write_volumes, names, ["v"] * 6, 1, np.ones_like),
            ):  # fmt: skip
                with pytest.raises(DataError, match=r"s.csv: taken over by `.*; this one stops"):
                    write()
            lost.__exit__()
            winner.append([(name, 0.0, 1.0, False) for name in names[2:]])
            winner.finish()
    rows = out.read_text().splitlines()
    assert rows[1:] == [f"{name},0.0,1.0,0" for name in names]
    assert os.listdir(tmp_path) == ["s.csv"]


def test_a_scale_is_that_of_the_images_unless_given(make_images):
    maps = make_images(5)[..., 0].astype(np.float32)
    assert np.array_equal(colour(maps), colour(maps, scale_of(maps)))
    assert (colour(maps, (300, 400)) == colour(np.zeros((1, 16, 16)), (0, 1))[0, 0, 0]).all()


def test_a_batch_has_at_least_one_image(models, scans, tmp_path, capsys):
    assert "--batch" in refused(capsys, models / "blur", scans, tmp_path / "s.csv", "--batch", 0)


# --- Ray ----------------------------------------------------------------------------------------------


def test_without_ray_the_remedy_is_named(models, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(capsys, models / "gradient", scans, tmp_path / "s.csv", "--executor", "ray")
    assert "pip install 'dia-anomaly[cluster]'" in line
