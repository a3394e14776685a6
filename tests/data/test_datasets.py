"""Data sets: the catalogue, a user's own declarations, and the counts of the real sets that are here."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dia.benchmark.ledger import Ledger
from dia.cli.main import main
from dia.core.errors import DataError
from dia.data import datasets
from dia.data.datasets import CATALOG, DataSet, find, load, open_data
from dia.data.readers import MissingSplit
from dia.evaluate import quality

ROOT = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not ROOT.is_dir(), reason="the evaluation data are not here")

COUNTS = {  # (normal, anomalous) by split
    "pneumoniamnist": {"train": (1214, 3494), "val": (135, 389), "test": (234, 390)},
    "breastmnist": {"train": (399, 147), "val": (57, 21), "test": (114, 42)},
    "breastmnist-0": {"train": (147, 399), "val": (21, 57), "test": (42, 114)},
    "sarscov2ct": {"train": (983, 0), "test": (172, 876)},
    "sarscov2ct-128": {"train": (983, 0), "test": (172, 876)},
    "sarscov2ct-covid": {"train": (700, 0), "test": (176, 172)},
    "sarscov2ct-covid-128": {"train": (700, 0), "test": (176, 172)},
    "kvasirseg_patches": {"train": (592, 0), "test": (284, 236)},
    "kvasirseg_patches-128": {"train": (592, 0), "test": (284, 236)},
    "oct2017_mini-128": {"train": (10, 0), "test": (5, 45)},
}
SHAPES = {
    "pneumoniamnist": (28, 28, 1),
    "breastmnist": (28, 28, 1),
    "breastmnist-0": (28, 28, 1),
    "sarscov2ct": (64, 64, 1),
    "sarscov2ct-128": (128, 128, 1),
    "sarscov2ct-covid": (64, 64, 1),
    "sarscov2ct-covid-128": (128, 128, 1),
    "kvasirseg_patches": (64, 64, 3),
    "kvasirseg_patches-128": (128, 128, 3),
    "oct2017_mini-128": (128, 128, 1),
}


def picture(path: Path, value: int = 0, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), value, np.uint8)).save(path)


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_real_sets(name):
    for split, (normal, anomalous) in COUNTS[name].items():
        s = load(name, split, ROOT)
        assert s.shape == SHAPES[name]
        assert (int((s.labels == 0).sum()), int((s.labels == 1).sum())) == (normal, anomalous)
        assert len(s.normals()) == normal
        assert len(set(s.names)) == len(s)
        if name.startswith("kvasirseg") and split == "test":
            assert np.array_equal(s.masks.any(axis=(1, 2)), s.labels == 1)
    if "val" not in COUNTS[name]:
        with pytest.raises(MissingSplit, match="no split 'val'; there are: test, train"):
            load(name, "val", ROOT)
    assert len(load(name, data_root=ROOT)) == sum(map(sum, COUNTS[name].values()))


@needs_data
def test_findings_in_real_sets():
    pneumonia = quality.check(datasets.open_splits("pneumoniamnist", ROOT))
    assert [(leak["between"], leak["images"]) for leak in pneumonia["leaks"]] == [(["train", "val"], 8)]
    breast = quality.check(datasets.open_splits("breastmnist", ROOT))
    assert [(leak["between"], leak["images"]) for leak in breast["leaks"]] == [(["train", "test"], 1)]
    assert breast["label_conflicts"]["images"] == 1  # the image both sides share has another label on each
    train, test = (
        {x.tobytes() for x in load("sarscov2ct", split, ROOT).images} for split in ("train", "test")
    )
    assert not train & test
    json.dumps([pneumonia, breast])


@needs_data
@pytest.mark.parametrize(
    ("name", "units", "unit"),
    [
        ("chestxray-128", None, lambda n: re.split(r"(person\d+|(?:NORMAL2-)?IM-\d+)", n)[1]),
        ("kvasirseg_patches", None, lambda n: n.split(".jpg:")[0]),
        ("kvasirseg_patches-128", None, lambda n: n.split(".jpg:")[0]),
        ("breastmnist", 0, None),
    ],
)
def test_units_of_intervals_in_real_sets(name, units, unit):
    """And the set itself is as before: `interval_by` is for intervals alone."""
    test = load(name, "test", ROOT)
    found = datasets.units_for(name, ROOT, test.labels)
    assert test.unit_codes is None
    if unit is None:
        assert found is None
        return
    names = [unit(n) for n in test.names]
    assert len(np.unique(found)) == len({*zip(names, found, strict=True)}) == len({*names}) < len(test)
    np.testing.assert_array_equal(found, datasets.interval_units(name, test.names))
    assert datasets.units_for(name, ROOT, 1 - test.labels) is None  # scores of other images


@needs_data
@pytest.mark.parametrize(
    ("name", "other"), [("breastmnist", "breastmnist-0"), ("sarscov2ct", "sarscov2ct-covid")]
)
def test_the_two_directions_of_a_file_swap_labels(name, other):
    """Of the same images, and whatever stands in both: normal in one is anomalous in the other."""
    one, two = ({s: load(n, s, ROOT) for s in COUNTS[n]} for n in (name, other))
    of_one = {n: (x, y) for s in one.values() for n, x, y in zip(s.names, s.images, s.labels, strict=True)}
    for images in two.values():
        for n, x, y in zip(images.names, images.images, images.labels, strict=True):
            assert np.array_equal(x, of_one[n][0])
            assert y == 1 - of_one[n][1]
    assert set(two["test"].names) <= set(one["test"].names)
    assert not set(two["train"].names) & set(two["test"].names)
    assert set(two["test"].normals().names).isdisjoint(one["test"].normals().names)


@needs_data
def test_the_split_of_covid_is_that_of_its_names_at_either_size():
    """Worked by hand: the hash of class/file alone decides, so both files divide alike."""
    whole = load("sarscov2ct", "test", ROOT)
    covid = sorted(whole.anomalies().names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    for name in ("sarscov2ct-covid", "sarscov2ct-covid-128"):
        train, test = load(name, "train", ROOT), load(name, "test", ROOT)
        assert set(train.names) == set(covid[:700])
        assert set(test.normals().names) == set(covid[700:])
        assert set(test.anomalies().names) == set(whole.normals().names)


def a_file(path, names, labels):
    """An .npz whose train holds label 0 alone, and whose pixels tell the name."""
    values = [int(Path(n).stem) + 100 * n.startswith("non") for n in names]
    images = np.array(values, np.uint8)[:, None, None] + np.zeros((len(names), 4, 4), np.uint8)
    train = {"train_images": images[:1] + 200, "train_labels": np.zeros(1, int), "train_names": ["a/t.png"]}
    np.savez(path, test_images=images, test_labels=labels, test_names=names, **train)


def test_a_file_divided_anew_does_not_depend_on_its_order(tmp_path):
    names = [f"COVID/{i}.png" for i in range(10)] + [f"non-COVID/{i}.png" for i in range(4)]
    labels, order = np.repeat([1, 0], (10, 4)), np.random.default_rng(0).permutation(14)
    found = []
    for folder, index in (("a", np.arange(14)), ("b", order)):
        (tmp_path / folder).mkdir()
        a_file(tmp_path / folder / "sarscov2ct.npz", np.array(names)[index], labels[index])
        train, test = (load("sarscov2ct-covid", s, tmp_path / folder) for s in ("train", "test"))
        assert [len(train), len(test.normals()), len(test.anomalies())] == [8, 2, 4]
        for s in (train, test):  # pixels, labels and names stay together
            assert [int(Path(n).stem) + 100 * int(y) for n, y in zip(s.names, s.labels, strict=True)] == (
                s.images[:, 0, 0, 0].tolist()
            )
        found.append((set(train.names), set(test.names)))
    assert found[0] == found[1]
    assert not found[0][0] & found[0][1]
    assert len(load("sarscov2ct-covid", data_root=tmp_path / "a")) == 14
    assert len(load("sarscov2ct-covid", "train", tmp_path / "a", train_normals=3)) == 3
    with pytest.raises(MissingSplit, match="no split 'val'; there are: test, train"):
        load("sarscov2ct-covid", "val", tmp_path / "a")


def test_a_file_divided_anew_needs_labels(tmp_path):
    np.savez(tmp_path / "sarscov2ct.npz", test_images=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        load("sarscov2ct-covid", "train", tmp_path)


def test_a_folder_and_a_file_of_the_same_images_are_divided_alike(tmp_path):
    names = [f"COVID/{i}.png" for i in range(10)] + [f"non-COVID/{i}.png" for i in range(4)]
    for root in ("file", "folder"):
        (tmp_path / root).mkdir()
    a_file(tmp_path / "file" / "sarscov2ct.npz", names, np.repeat([1, 0], (10, 4)))
    for i, name in enumerate(names):
        picture(tmp_path / "folder" / "sarscov2ct" / name, i)
    for split in ("train", "test"):
        one, two = (load("sarscov2ct-covid", split, tmp_path / root) for root in ("file", "folder"))
        assert dict(zip(one.names, one.labels, strict=True)) == dict(zip(two.names, two.labels, strict=True))


@pytest.mark.parametrize("known", CATALOG.values(), ids=CATALOG)
def test_declarations_are_complete(known):
    assert isinstance(known, DataSet)
    for text in (known.title, known.normal, known.split, known.licence, known.obtain, known.citation):
        assert text
        assert "\n" not in text
    assert known.proxy == ("not the paper's protocol" in known.note or not known.path)


def test_units_of_intervals_are_told_by_names_and_nothing_else_knows(tmp_path):
    names = ["p1_a", "p2_a", "p1_b", "p3_a"]
    x, labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4), [0, 0, 0, 1]
    np.savez(tmp_path / "a.npz", test_images=x, test_labels=labels, test_names=names)
    (tmp_path / "own.yaml").write_text("path: a.npz\nnormal: 0")
    plain = load("own", "test", tmp_path)
    assert datasets.units_for("own", tmp_path) is None
    (tmp_path / "own.yaml").write_text('path: a.npz\nnormal: 0\ninterval_by: "(p[0-9])_"')
    test = load("own", "test", tmp_path)
    assert (test.patients, test.unit_codes, test.sha256()) == ((), None, plain.sha256())
    assert datasets.units_for("own", tmp_path).tolist() == [0, 1, 0, 2]
    assert datasets.units_for("own", tmp_path, np.array(labels)).tolist() == [0, 1, 0, 2]
    assert datasets.units_for("own", tmp_path, np.array([0, 0, 1, 1])) is None
    assert datasets.interval_units("own", names[::-1], tmp_path).tolist() == [0, 1, 2, 1]
    assert datasets.interval_units("own", names) is None  # of another data root
    assert datasets.interval_units("absent", names, tmp_path) is None
    with pytest.raises(DataError, match=r"own: interval_by .*: q, does not hold"):
        datasets.interval_units("own", ["p1_a", "q"], tmp_path)
    (tmp_path / "a.npz").unlink()
    assert datasets.units_for("own", tmp_path) is None


def test_unknown_name():
    with pytest.raises(DataError, match=r"did you mean pneumoniamnist\?.*known: pneumoniamnist, breast"):
        load("pneumonia-mnist", "train", ".")
    with pytest.raises(DataError, match="no such path or data set") as e:
        open_data("qqqq")
    assert "did you mean" not in str(e.value)


def test_not_found_says_where_from_and_where_to(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"kvasir: not found in .*datasets\.simula\.no.* as kvasir or kvasir\.npz"
    ):
        load("kvasir", "train", tmp_path)
    monkeypatch.delenv("DIA_DATA", raising=False)
    with pytest.raises(DataError, match="--data-root or set DIA_DATA"):
        load("breastmnist", "train")


def test_data_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DIA_DATA", str(tmp_path))
    images = np.arange(2, dtype=np.uint8)[:, None, None] + np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "breastmnist.npz", test_images=images, test_labels=np.array([[0], [1]]))
    assert find(CATALOG["breastmnist-0"]) == tmp_path / "breastmnist.npz"
    assert load("breastmnist", "test").labels.tolist() == [1, 0]
    assert load("breastmnist-0", "test").labels.tolist() == [0, 1]
    assert load("breastmnist", "test", normal="0", size=None).labels.tolist() == [0, 1]
    assert open_data("breastmnist", "test", size=8).shape == (8, 8, 1)
    assert open_data(tmp_path / "breastmnist.npz", "test").labels.tolist() == [0, 1]


def test_folder_forms(tmp_path):
    for i in range(5):
        for name in ("normal-cecum", "normal-pylorus", "normal-z-line", "polyps", "esophagitis"):
            picture(tmp_path / "kvasir" / name / f"{i}.jpg")
        for name in ("COVID", "non-COVID"):
            picture(tmp_path / "sarscov2ct" / name / f"{i}.png")
        for split in ("train", "test"):
            picture(tmp_path / "oct2017" / split / "NORMAL" / f"{i}.jpeg")
            picture(tmp_path / "oct2017" / split / "CNV" / f"{i}.jpeg")
        for grade in range(5):
            picture(tmp_path / "aptos2019" / str(grade) / f"{i}.png")
    expected = {
        "kvasir": (12, 0, 3, 5),
        "sarscov2ct": (4, 0, 1, 5),
        "sarscov2ct-covid": (4, 0, 1, 5),
        "oct2017": (5, 5, 5, 5),
        "aptos2019": (5, 0, 0, 20),
    }
    for name, counts in expected.items():
        labels = [load(name, split, tmp_path).labels for split in ("train", "test")]
        assert tuple(int((x == k).sum()) for x in labels for k in (0, 1)) == counts, name


@needs_data
def test_fixed_split_is_that_of_the_repacked_file(tmp_path):
    """The names of the real training set, hashed again, fall on the same side."""
    train, test = load("sarscov2ct", "train", ROOT), load("sarscov2ct", "test", ROOT)
    kept = [*train.names[:40], *(n for n in test.names if n.startswith("non-COVID"))][:80]
    for name in kept:
        picture(tmp_path / "sarscov2ct" / name)
    picture(tmp_path / "sarscov2ct" / "COVID" / "1.png")
    again = load("sarscov2ct", "train", tmp_path, train_normals=40)
    assert set(again.names) == set(train.names[:40])


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    picture(tmp_path / "phantom" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_data("phantom", "test")) == 1
    with pytest.raises(DataError, match=r"nowhere/x: no such file or folder"):
        open_data("nowhere/x")
    with pytest.raises(DataError, match=r"x\.npz: no such file or folder"):
        open_data("x.npz")


def test_check_of_a_folder(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / "good" / f"{i}.png", i)
    picture(tmp_path / "test" / "good" / "0.png", 0)
    picture(tmp_path / "test" / "bad" / "0.png", 9)
    result = quality.check(datasets.open_splits(str(tmp_path)))
    assert list(result["splits"]) == ["train", "test"]
    assert result["leaks"][0]["pairs"][0]["test"] == {"name": "test/good/0.png", "label": 0}


def test_check_of_a_folder_without_splits_finds_no_leak(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", value=i)
    result = quality.check(datasets.open_splits(str(tmp_path)))
    assert list(result["splits"]) == ["all"]
    assert result["leaks"] == []
    assert result["ok"]


def test_phantom(monkeypatch):
    from dia.data import phantoms

    small = phantoms.load
    monkeypatch.setattr(phantoms, "load", lambda split, **kwargs: small(split, n=4, **kwargs))
    assert load("phantom", "test").shape == (64, 64, 1)
    assert open_data("phantom", "train", size=32, channels=3, workers=1).images.shape == (4, 32, 32, 3)
    assert load("phantom", "val", size=(24, 30)).shape == (24, 30, 1)
    assert load("phantom-512", "val", max_size=1024).shape == (512, 512, 1)
    assert len(load("phantom")) == 12
    with pytest.raises(MissingSplit, match="no split 'dev'"):
        load("phantom", "dev")


# --- a user's own -------------------------------------------------------------------------------------

HOWTO = Path(__file__).parents[2] / "docs/howto/formats.md"
PAGE = HOWTO.read_text().partition("## A data set of your own")[2]


@pytest.fixture
def chest(tmp_path, monkeypatch) -> Path:
    """The example of the page: its YAML file, and images in the folders that it names."""
    noise = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIA_DATA", raising=False)
    Path("chest.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0])
    kinds = {"clear": 12, "old-scar": 8, "effusion": 4, "rotated": 2}
    for split, factor in (("develop", 2), ("hold-out", 1)):
        for kind, n in kinds.items():
            for i in range(n * factor):
                path = Path("chest-xray", split, kind, f"{split}-{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (40 + i, 36), dtype=np.uint8)).save(path)
                if kind == "effusion":
                    mask = Path("chest-xray", "outlines", kind, f"{split}-{i}_mask.png")
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((40 + i, 36), 255, np.uint8)).save(mask)
    return tmp_path / "chest.yaml"


def test_a_declaration_says_classes_splits_masks_and_size(chest):
    train, test = (open_data(chest, split) for split in ("train", "test"))
    assert train.images.shape == (48, 32, 32, 1)
    assert [len(test.normals()), len(test.anomalies())] == [20, 4]  # `rotated` is left out
    assert test.masks.all(axis=(1, 2)).tolist() == test.labels.astype(bool).tolist()
    assert load("chest", "test", chest.parent).sha256() == test.sha256()  # by its name in the data root
    assert open_data("chest.yaml", "test", size=8).shape == (8, 8, 1)  # what is given goes before
    assert "chest" in datasets.known_sets(chest.parent)


def test_the_example_of_the_page_runs(chest, capsys):
    commands = [c for c in re.findall(r"^dia (.*)$", PAGE, re.M)]
    assert [c.split()[0] for c in commands] == ["data", "fit", "score", "benchmark"]
    for command in commands:
        main(shlex.split(command))
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 24
    lines = Ledger("results/runs.jsonl").rows()
    assert {(line["dataset"], line["method"]) for line in lines} == {
        ("chest", "trivial:hog"), ("chest", "trivial:pixels")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("normal: good", "needs a path"),
        ("- path", "needs a path"),
        ("path: x\nnormals: good", "no key 'normals'; there are: path, normal,"),
        ("path: x\nnormal: no", "False is not the name of a class; put it in quotes"),
        ("path: x\nsize: big", "size cannot be 'big'"),
        ("path: x\nsize: 0", "at least 1 pixel"),
        ("path: x\nchannels: 2", "channels must be 1 or 3"),
        ('path: x\ninterval_by: "("', r"interval_by: \(: no regular expression"),
        ("path: x\nsplit_folders: {dev: d}", "split_folders must name a folder"),
        ("path: x\nsplit_folders: [a]", "split_folders cannot be"),
        ("path: x", "no such file or folder"),
        ("path: [", "not a YAML file"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_one_line(tmp_path, text, match):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(DataError, match=match) as error:
        open_data(tmp_path / "own.yaml")
    assert str(error.value).isprintable()


def test_a_declaration_may_not_take_the_name_of_a_known_set(tmp_path):
    (tmp_path / "phantom.yaml").write_text("path: .")
    with pytest.raises(DataError, match="phantom is a known data set already"):
        open_data(tmp_path / "phantom.yaml")
    with pytest.raises(DataError, match="No such file"):
        open_data(tmp_path / "absent.yaml")


def test_a_declared_npz_has_label_values_and_a_folder_without_splits_a_share(tmp_path):
    np.savez(tmp_path / "a.npz", test_images=np.zeros((3, 4, 4), np.uint8), test_labels=[0, 1, 2])
    (tmp_path / "file.yaml").write_text("path: a.npz\nnormal: [1, 2]")
    assert open_data(tmp_path / "file.yaml").labels.tolist() == [1, 0, 0]
    for i in range(10):
        picture(tmp_path / "flat" / "fine" / f"{i}.png", i)
    (tmp_path / "folder.yaml").write_text("path: flat\nnormal: fine\ntrain_normals: 3")
    assert len(open_data(tmp_path / "folder.yaml", "train")) == 3
    assert len(open_data(tmp_path / "folder.yaml", "test", divide=False)) == 7  # declared: it has a split
    (tmp_path / "folder.yaml").write_text("path: flat\nnormal: fine")
    assert len(open_data(tmp_path / "folder.yaml", "train")) == 8
    assert len(open_data(tmp_path / "folder.yaml", "test", divide=False)) == 10
    (tmp_path / "folder.yaml").write_text("path: flat\nnormal: fine\ntrain_normals: 0.5")
    assert len(open_data(tmp_path / "folder.yaml", "train")) == 5
