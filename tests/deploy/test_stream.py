"""Streams: batch by batch, killed and resumed, or in other processes, all come to one result."""

from __future__ import annotations

import json
import os
import pickle
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
from PIL import Image
from scoring import interrupted, refused, score

from dia.core.errors import DataError
from dia.data import datasets, decode
from dia.data.imageset import ImageSet
from dia.data.readers import Listing, listing, read
from dia.deploy.scorefile import ScoreFile
from dia.detectors import Detector
from dia.detectors.registry import METHODS
from dia.report.pictures import colour, scale_of

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


def test_heatmaps_keep_one_scale_over_batches_and_resumes(models, scans, tmp_path, monkeypatch, capsys):
    model, out = models / "blur", tmp_path / "s.csv"
    score(model, scans, tmp_path / "whole.csv", "--heatmaps", tmp_path / "whole")
    interrupted(monkeypatch, model, scans, out, "--heatmaps", tmp_path / "maps")
    score(model, scans, out, "--heatmaps", tmp_path / "maps", "--resume")
    heatmaps = Detector.load(model, device="cpu").heatmap(read(scans, workers=1))
    expected = colour(heatmaps, scale_of(heatmaps[:8]))
    for i, picture in enumerate(expected):
        name = f"{i:02}.png"
        assert np.array_equal(np.asarray(Image.open(tmp_path / "whole" / name)), picture)
        assert (tmp_path / "maps" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    line = refused(capsys, models / "gradient", scans, tmp_path / "x.csv", "--heatmaps", tmp_path / "none")
    assert "trivial:gradient has no heatmaps" in line


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
