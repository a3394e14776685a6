"""The paper's own protocols by the one command, on small folders that lie as the real ones do."""

import hashlib
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dia.benchmark.ledger import Ledger
from dia.benchmark.runs import scores_path
from dia.cli.main import main
from dia.core.yamlfile import read_yaml
from dia.data.datasets import CATALOG, load, load_training

GRIDS = Path(__file__).parents[2] / "grids"
OCT = {"NORMAL": (30, 5), "CNV": (3, 2), "DME": (2, 2), "DRUSEN": (2, 3)}  # train, test
KVASIR = {"normal-cecum": 10, "normal-pylorus": 10, "normal-z-line": 10, "polyps": 4, "esophagitis": 3}
APTOS = {"0": 1003, "1": 2, "2": 3, "3": 1, "4": 2}


def picture(path, number, *, grey=False, least=40, bright=0):
    """Noise of a size that depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = least + number % 3, least + 2 * (number % 2)
    pixels = np.random.default_rng(number).integers(bright, 200 + bright, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, numbers in OCT.items():
        for split, n in zip(("train", "test"), numbers, strict=True):
            for i in range(n):  # the last of a class is stored as colour, as some tools do
                file = root / "oct2017" / split / name / f"{name}-{i}.jpeg"
                picture(file, i + 50 * (split == "test"), grey=i < n - 1, bright=50 * (name != "NORMAL"))
    for name, n in KVASIR.items():
        for i in range(n):
            picture(root / "kvasir" / name / f"{i}.jpg", i + 50 * len(name), bright=50 * (name == "polyps"))
    for name, n in APTOS.items():
        for i in range(n):
            picture(root / "aptos2019" / name / f"{i:012x}.png", i, least=6, bright=50 * (name != "0"))
    return root


def command(data, out, *options):
    places = (f"--{place}={out / place}" for place in ("ledger", "scores", "work"))
    start = ["benchmark", "--config", str(GRIDS / "paper.yaml"), "--data-root", str(data), *places]
    return [*start, "--seeds=[0]", "--features-gb=0", *options]


def made(out):
    return Ledger(out / "ledger").rows()


def labels(out, line):
    return Counter(np.load(scores_path(out / "scores", line))["labels"].tolist())


def test_one_command_runs_the_folders_and_a_second_runs_nothing(data, tmp_path, capsys):
    methods, settings = ["trivial:std", "dia+"], "{}"
    if find_spec("anomalib"):
        methods, settings = [*methods, "ganomaly"], "{ganomaly: {size: 32, batch: 4, steps: 2}}"
    argv = command(
        data, tmp_path, "--datasets=[oct2017,kvasir]", f"--methods=[{','.join(methods)}]", "--weights=[none]",
        f"--settings={settings}",
    )  # fmt: skip
    main([*argv, "--dry-run"])
    assert f"{2 * len(methods)} of {2 * len(methods)} runs are to be made" in capsys.readouterr().out
    assert not made(tmp_path)
    main(argv)
    lines = made(tmp_path)
    assert [(r["dataset"], r["method"]) for r in lines] == [
        (d, m) for d in ("oct2017", "kvasir") for m in methods
    ]
    counts = {
        "oct2017": (30, 24, {0: 5, 1: 7}, [128, 128, 1]), "kvasir": (24, 19, {0: 6, 1: 4}, [128, 128, 3]),
    }  # fmt: skip
    for line in lines:
        normals, but_a_fifth, of_test, shape = counts[line["dataset"]]  # dia+ calibrates on what it fits
        assert line["n_train"] == (normals if line["method"] == "dia+" else but_a_fifth)
        assert line["image_shape"] == shape
        assert line["n_test"] == sum(of_test.values())
        assert labels(tmp_path, line) == of_test
    main(argv)
    assert made(tmp_path) == lines
    capsys.readouterr()
    main([*argv, "--dry-run"])
    assert f"0 of {2 * len(methods)} runs are to be made" in capsys.readouterr().out


def test_aptos_trains_on_a_thousand_normals(data, tmp_path):
    main(command(data, tmp_path, "--datasets=[aptos2019]", "--methods=[trivial:brightness]"))
    (line,) = made(tmp_path)
    assert labels(tmp_path, line) == {0: 3, 1: 8}
    assert line["image_shape"] == [128, 128, 3]
    assert len(load_training("aptos2019", data, max_size=128)) == 1000
    assert line["auroc"] == 1  # the anomalies of this folder are brighter than every normal


def test_the_split_of_folders_is_by_hash_of_class_and_file(data):
    """Worked by hand, apart from the package: class/file sorted by sha256, the first four fifths train."""
    names = [f"{name}/{i}.jpg" for name, n in KVASIR.items() if name.startswith("normal") for i in range(n)]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    train, test = (load("kvasir", split, data) for split in ("train", "test"))
    assert set(train.names) == set(names[:24])
    assert set(test.normals().names) == set(names[24:])
    assert {name.split("/")[0] for name in test.anomalies().names} == {"polyps"}


def test_what_a_user_asks_for_goes_before_the_size_of_the_catalogue(data, tmp_path):
    for name in ("oct2017", "kvasir", "aptos2019"):
        assert CATALOG[name].size == 128
    assert load("oct2017", "test", data, size=24).shape == (24, 24, 1)
    assert load("kvasir", "test", data, size=160, max_size=128).shape == (160, 160, 3)
    assert load("kvasir", "test", data, max_size=32).shape == (32, 32, 3)
    assert load("oct2017", "test", data, channels=3).shape == (128, 128, 3)
    out = tmp_path / "model"
    fit = ["fit", "oct2017", "--data-root", str(data), "--method", "trivial:std"]
    main([*fit, "--size", "40", "--out", str(out)])
    assert re.search(r"\b40\b", (out / "config.json").read_text())
    assert "128" not in re.findall(r'"shape": \[(.*?)\]', (out / "config.json").read_text(), re.S)[0]


def test_a_file_of_a_known_set_keeps_its_size(tmp_path):
    np.savez(tmp_path / "kvasir.npz", test_images=np.zeros((2, 20, 24, 3), np.uint8), test_labels=[0, 1])
    assert load("kvasir", "test", tmp_path).shape == (20, 24, 3)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_set_that_is_not_there_is_refused_at_once(data, tmp_path, capsys, dry):
    with pytest.raises(SystemExit) as stopped:
        main(command(data, tmp_path, "--methods=[trivial:std]", *dry))
    assert stopped.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "not found" in line]
    assert "pneumoniamnist: not found in" in said
    assert CATALOG["pneumoniamnist"].obtain in said
    assert "--datasets '[kvasir,oct2017,aptos2019]'" in said
    assert not made(tmp_path)


def test_the_grid_has_the_methods_and_settings_of_the_fair_table():
    paper, table = (read_yaml(GRIDS / f"{name}.yaml") for name in ("paper", "table"))
    assert set(CATALOG) >= set(paper["datasets"])
    own = {"datasets", "sizes"}
    assert {k: v for k, v in paper.items() if k not in own} == {
        k: v for k, v in table.items() if k not in own
    }
