"""The commands as a user runs them: real files in, real files out, one clear line where input is bad."""

import csv
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dia.cli.main import main
from dia.data import phantoms
from dia.deploy.scorefile import heatmap_path
from dia.detectors.registry import METHODS

CSI = [
    "--settings.amplify.steps", "3", "--settings.amplify.width", "4", "--settings.amplify.batch", "4",
    "--settings.samples", "1",
]  # fmt: skip
WITH_ENCODER = [
    "--settings.dissolver.steps", "4", "--settings.dissolver.widths", "[8,16]",
    *(word.replace("settings.amplify", "settings.contrast.amplify") for word in CSI[:-2]),
    "--settings.views", "[shape,dissolved,contrast]",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """32 px phantoms as MVTec-style folders of PNGs: 40 normals to train, 8 + 8 to test, with masks."""
    root = tmp_path_factory.mktemp("phantoms")
    train, test = phantoms.load("train", size=32, n=40), phantoms.load("test", size=32, n=16)
    for images, split in ((train, "train"), (test, "test")):
        for image, mask, label, name in zip(
            images.images, images.masks, images.labels, images.names, strict=True
        ):
            kind, number = name.split("/")
            kind = "good" if label == 0 else kind
            target = root / split / kind / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(target)
            if label:
                truth = root / "ground_truth" / kind / f"{number}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(truth)
    return root


@pytest.fixture(scope="module")
def model(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "run"
    main(["fit", str(folders), "--out", str(out), *WITH_ENCODER])
    return out


def refused(capsys, *argv):
    """Runs a command that must end with status 2 and one line on stderr; returns the line."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dia: ")]
    assert len(said) == 1
    return said[0]


def test_a_model_folder_holds_json_and_safetensors_only(model):
    suffixes = {p.suffix for p in model.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors", ".md"}
    config = json.loads((model / "config.json").read_text())
    assert config["method"] == "dia+"
    assert config["n_train"] + config["n_calibration"] < 40
    assert not list(model.parent.glob(".*.work"))


def test_score_writes_the_same_rows_as_csv_and_jsonl_and_heatmaps(model, folders, tmp_path, capsys):
    for suffix, more in (("csv", []), ("jsonl", ["--heatmaps", str(tmp_path / "maps")])):
        main(["score", str(model), str(folders), "--out", str(tmp_path / f"s.{suffix}"), "--json", *more])
        facts = json.loads(capsys.readouterr().out)
        assert facts["images"] == 16
    maps = list((tmp_path / "maps").rglob("*.png"))
    assert len(maps) == 16
    assert Image.open(maps[0]).size == (32, 32)
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["path", "score", "p_value", "flagged"]
    for row, line in zip(rows, lines, strict=True):
        assert row["path"] == line["path"]
        assert float(row["score"]) == pytest.approx(line["score"], rel=1e-6)
        assert 0 < line["p_value"] <= 1
        assert line["flagged"] == (line["p_value"] <= 0.05)


def test_scores_do_not_depend_on_how_many_files_are_scored(model, folders, tmp_path):
    main(["score", str(model), str(folders), "--out", str(tmp_path / "all.jsonl")])
    every = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    one = every[3]
    main(["score", str(model), str(folders / one["path"]), "--out", str(tmp_path / "one.jsonl")])
    alone = json.loads((tmp_path / "one.jsonl").read_text())
    assert alone["score"] == pytest.approx(one["score"], rel=1e-3, abs=1e-3)


def test_evaluate_prints_the_promised_numbers_and_keeps_the_ledger(model, folders, tmp_path, capsys):
    ledger = tmp_path / "runs.jsonl"
    main(["evaluate", str(model), str(folders), "--json", "--ledger", str(ledger)])
    printed = json.loads(capsys.readouterr().out)
    assert {"auroc", "auroc_ci", "ap", "fpr95", "pixel_auroc", "pro"} <= set(printed)
    line = json.loads(ledger.read_text())
    assert line["auroc"] == printed["auroc"]
    assert line["method"] == "dia+"


def test_the_dissolve_strip_has_a_column_for_each_t(model, folders, tmp_path):
    out = tmp_path / "strip.png"
    main(["dissolve", str(model), str(folders), "--out", str(out), "--count", "2", "--t", "[50,400]"])
    width, height = Image.open(out).size
    assert width > 3 * 128
    assert height > 2 * 128


def test_the_report_is_one_page_with_the_trivial_rows(model, folders, tmp_path):
    out = tmp_path / "report.html"
    main(["report", str(model), str(folders), "--out", str(out)])
    page = out.read_text()
    assert "trivial:hog" in page
    assert "dia+" in page
    assert "not a medical device" in page.lower()


def test_a_fit_killed_while_training_resumes_to_the_same_weights(folders, model, tmp_path, monkeypatch):
    from dia.amplify import contrast

    step = contrast.ContrastiveTraining.training_step

    def dies(self, batch, index):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(contrast.ContrastiveTraining, "training_step", dies)
    out = tmp_path / "killed"
    with pytest.raises(SystemExit):
        main(["fit", str(folders), "--out", str(out), *WITH_ENCODER])
    assert not out.exists()
    monkeypatch.setattr(contrast.ContrastiveTraining, "training_step", step)
    main(["fit", str(folders), "--out", str(out), "--resume", *WITH_ENCODER])
    assert (out / "weights.safetensors").read_bytes() == (model / "weights.safetensors").read_bytes()


def test_a_finished_model_is_not_overwritten_by_accident(folders, model, capsys):
    assert "--overwrite" in refused(capsys, "fit", folders, "--out", model)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fit", "no/such/folder"], "no such"),
        (["fit", "pneumonia"], "pneumoniamnist"),
        (["fit", "phantom", "--method", "patchcor"], "patchcor"),
        (["fit", "phantom", "--preset", "tpu"], "'cpu', 'gpu', 'paper'"),
        (["fit", "phantom", "--holdout", "2"], "--holdout"),
        (["score", "no/model", "phantom"], "no/model"),
        (["data", "check", "nothing"], "nothing"),
        (["benchmark", "--methods", "[magic]"], "magic"),
    ],
)
def test_bad_arguments_give_one_line(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *argv)


def test_bad_images_give_one_line_or_a_listed_skip(capsys, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    assert "scans" in refused(capsys, "fit", folder, "--out", tmp_path / "m")
    good = phantoms.load("train", size=32, n=24).images[..., 0]
    Image.fromarray(good[0]).save(folder / "000.png")
    assert "1 normal image " in refused(capsys, "fit", folder, "--out", tmp_path / "m")
    for i, image in enumerate(good):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    (folder / "notes.png").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "001.png").read_bytes()[:200])
    line = refused(capsys, "fit", folder, "--out", tmp_path / "m", "--method", "trivial:std")
    assert "cut.png" in line or "notes.png" in line
    assert "--skip-bad" in line
    main(["fit", str(folder), "--out", str(tmp_path / "m"), "--method", "trivial:std", "--skip-bad"])
    err = capsys.readouterr().err
    assert "cut.png" in err
    assert "notes.png" in err
    assert "needs labels" in refused(capsys, "evaluate", tmp_path / "m", folder, "--skip-bad")


def test_mixed_sizes_need_a_size(capsys, tmp_path):
    for i, image in enumerate(phantoms.load("train", size=32, n=24).images[..., 0]):
        picture = Image.fromarray(image)
        picture.resize((40, 36) if i == 5 else (32, 32)).save(tmp_path / f"{i:03}.png")
    argv = ["fit", tmp_path, "--out", tmp_path / "m", "--method", "trivial:std"]
    assert "--size" in refused(capsys, *argv)
    main([str(a) for a in argv] + ["--size", "32"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_print_config_is_a_config(method, capsys, tmp_path):
    printed = config_printed(capsys, "--preset", "paper", "--method", method)
    if METHODS[method].paper:
        assert printed.startswith(f"# {method}: as published")
    (tmp_path / "c.yaml").write_text(printed)
    assert config_printed(capsys, "--config", str(tmp_path / "c.yaml")) == printed


def test_data_list_and_check_speak_json(capsys, folders):
    main(["data", "list", "--json"])
    known = json.loads(capsys.readouterr().out)
    assert {"pneumoniamnist", "breastmnist-0", "sarscov2ct", "kvasir", "oct2017", "aptos2019"} <= set(known)
    main(["data", "check", str(folders), "--json"])
    assert json.loads(capsys.readouterr().out)["leaks"] == []


def config_printed(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "x", *argv, "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", ["dia", "csi"])
def test_print_config_marks_what_differs_from_the_paper(method, capsys):
    import yaml

    from dia.core.settings import differences, from_dict
    from dia.detectors.presets import settings
    from dia.detectors.registry import METHODS

    cls = METHODS[method].Settings
    text = config_printed(capsys, "--method", method)
    differ = differences(settings(cls, "cpu"), settings(cls, "paper"))
    assert text.startswith(f"# {method}: {len(differ)} settings differ from the paper's configuration\n")
    assert text.count("# paper: ") == len(differ)
    assert "    width: 24  # paper: 64\n" in text
    assert from_dict(cls, yaml.safe_load(text)["settings"]) == settings(cls, "cpu")  # the marks are comments
    if method != "csi":
        assert "ts: [30, 53, 76, 99]  # paper: [30, 31, …, 99]\n" in text
    paper = config_printed(capsys, "--method", method, "--preset", "paper")
    assert paper.startswith(f"# {method}: as published\n")
    assert "# paper:" not in paper


def test_print_config_shows_no_setting_that_does_nothing(capsys):
    text = config_printed(capsys, "--method", "dia+")
    assert "contrast:" not in text
    assert "blur_sigmas" not in text
    assert text.startswith(f"# dia+: {text.count('# paper: ')} settings differ")
    chosen = config_printed(capsys, "--method", "dia+", "--settings.views", "[shape,contrast]")
    assert "    amplify:\n" in chosen
    assert "ts: [30, 53, 76, 99]  # paper: [30, 31, …, 99]\n" in chosen


def test_print_config_marks_a_changed_switch_and_reads_back(folders, tmp_path, capsys):
    text = config_printed(
        capsys, "--method", "dia", "--preset", "paper", "--settings.dissolver.kind", "gaussian"
    )
    assert "# dia: 1 settings differ" in text
    assert "kind: gaussian  # paper: diffusion\n" in text
    written = config_printed(capsys, "--method", "csi", *CSI, "--out", str(tmp_path / "run"))
    (tmp_path / "c.yaml").write_text(written.replace("data: x\n", ""))
    main(["fit", str(folders), "--config", str(tmp_path / "c.yaml")])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["amplify"]["steps"] == 3


def test_settings_that_cannot_be_are_one_line(capsys, folders, tmp_path):
    target = tmp_path / "run"
    said = refused(
        capsys, "fit", folders, "--method", "dia", "--out", target, "--settings.dissolver.kernel", "4"
    )
    assert "dissolver.kernel must be odd, from 3, not 4" in said
    said = refused(
        capsys, "fit", folders, "--method", "dia", "--out", target, "--settings.amplify.shift", "none",
        "--settings.score_parts", "[shift]",
    )  # fmt: skip
    assert "score_parts of shift alone needs shifts" in said
    assert not target.exists()


def test_a_contaminated_fit_uses_marked_anomalies_unmarked(capsys, folders, tmp_path):
    args = ["fit", str(folders), "--split", "test", "--method", "csi", "--out", str(tmp_path / "run"), *CSI]
    said = refused(capsys, *args[:-2], "--split", "train", "--contamination", "0.1")
    assert "a contamination of 0.1 of 40 normals takes 4 anomalous images with labels; there are 0" in said
    with pytest.raises(SystemExit):  # 8 normals are too few to fit on, 16 with half of them anomalous too
        main([*args, "--contamination", "0.5"])
    assert "16 normal images to fit on" in capsys.readouterr().err


def test_the_list_of_methods_is_that_of_the_registry(capsys):
    from dia.detectors.registry import METHODS, TRIVIAL

    main(["methods", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(METHODS)
    for name, facts in listed.items():
        assert facts["family"]
        assert facts["smallest"] >= 8
        assert (facts["family"] == "untrained") == (name in TRIVIAL)
    assert listed["dia"]["settings"]["amplify"]["width"] == 24
    some = ("dia+", "dia", "csi", "msc", "transformaly", "kdad", "uniad", "trivial:blur", "trivial:hog")
    assert [m for m in some if listed[m]["heatmaps"]] == ["dia+", "kdad", "uniad", "trivial:blur"]
    main(["methods"])
    shown = capsys.readouterr().out
    assert all(name[:16] in shown for name in METHODS)  # narrow columns cut long names
    assert "--preset" in refused(capsys, "methods", "--preset", "tpu")


def test_weights_are_a_flag_of_methods_that_start_from_some(make_images, tmp_path, capsys):
    for argv, said in (
        (["--method", "csi", "--weights", "none"], "--weights: csi starts from no other network"),
        (["--method", "transformaly", "--weights", "dia:x"], "transformaly cannot take"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "phantom", "--out", str(tmp_path / "m"), *argv])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    folder = tmp_path / "data"
    folder.mkdir()
    for i, image in enumerate(make_images(24, 16, 16, 1)[..., 0]):
        Image.fromarray(image).save(folder / f"{i}.png")
    absent = str(tmp_path / "absent.pth")
    with pytest.raises(SystemExit):
        main(["fit", str(folder), "--method", "msc", "--weights", absent, "--out", str(tmp_path / "m")])
    assert f"weights {absent}: no " in capsys.readouterr().err


def test_a_benchmark_asks_for_pretrained_methods_by_name_only():
    from dia.benchmark.grid import benchmark_grid
    from dia.detectors import PEERS

    grid, _ = benchmark_grid(("phantom",), None, (0,), "cpu")
    asked = {cell.method for cell in grid.cells}
    assert {"dia+", "dia", "csi", "trivial:hog"} <= asked
    assert set(METHODS) - asked == {"msc", "transformaly", "kdad", "uniad", *PEERS}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/b.png", "a/b.png"),
        ("a_b.png", "a_b.png"),
        ("a/b.PNG", "a/b.PNG"),
        ("a/b.jpg", "a/b.jpg.png"),
        ("scan.dcm#3", "scan.dcm#3.png"),
        ("IM0001", "IM0001.png"),
        ("../../b.jpg", "b.jpg.png"),
        ("/etc/b.jpg", "etc/b.jpg.png"),
    ],
)
def test_a_heatmap_lies_where_its_image_does_and_below_the_folder(name, file):
    assert heatmap_path(Path("maps"), name) == Path("maps") / file


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out.split() == ["dia", version("dia-anomaly")]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fit", "x", "--meth", "csi"], "did you mean --method?"),
        (["score", "r", "x", "--skip"], "did you mean --skip_bad?"),
        (["fit", "x", "--false-alarm-rat", "0.1"], "did you mean --false_alarm_rate?"),
        (["scor", "r", "x"], "did you mean score?"),
        (["fit", "x", "--settings.nothing", "1"], "--settings.nothing"),
        (["fit", "--out", "r"], "see dia fit --help"),
        ([], "a command must be named"),
    ],
)
def test_words_that_are_not_known_or_not_whole_are_refused(capsys, argv, says):
    assert says in refused(capsys, *argv)


@pytest.mark.parametrize("option", ["seed", "holdout"])
def test_a_null_stands_only_where_there_may_be_none(capsys, tmp_path, option):
    (tmp_path / "c.yaml").write_text(f"{option}: null\n")
    assert f"{option} cannot be null" in refused(capsys, "fit", "x", "--config", tmp_path / "c.yaml")


def test_a_value_may_begin_with_a_minus(capsys):
    for flag, value in (("--window", "-600,1500"), ("--slices", "-10:")):
        assert "no/model" in refused(capsys, "score", "no/model", "x", flag, value)


def test_method_and_preset_of_a_configuration_choose_the_settings(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("method: csi\npreset: paper\nsettings: {amplify: {steps: 7}}\n")
    text = config_printed(capsys, "--config", str(tmp_path / "c.yaml"))
    assert text.startswith("# csi: 1 settings differ")
    assert "optimizer: lars" in text
    (tmp_path / "c.yaml").write_text("method: csi\n")
    assert config_printed(capsys, "--config", str(tmp_path / "c.yaml"), "--method=msc").startswith("# msc: ")


def test_the_command_alone_gives_the_default_method_and_preset():
    from dia.cli.fit import METHOD, PRESET
    from dia.cli.options import Preset
    from dia.detectors.presets import PRESETS
    from dia.detectors.registry import DEFAULT

    assert METHOD == DEFAULT
    assert get_args(Preset) == PRESETS
    assert PRESETS[0] == PRESET


def test_help_takes_no_torch():
    program = """
import sys
for name in ("torch", "lightning", "scipy", "sklearn", "matplotlib"):
    sys.modules[name] = None
from dia.cli.main import main
for words in ([], ["fit"], ["score"], ["benchmark"]):
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        assert not stop.code
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: dia") == 4
