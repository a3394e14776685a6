"""The commands as a user runs them: real files in, real files out, one clear line where input is bad."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from dia.cli.main import main
from dia.core.storage import Owner
from dia.data import phantoms
from dia.deploy.heatmaps import heatmap_path
from dia.detectors import Detector
from dia.detectors.registry import METHODS

CSI = [
    "--settings.amplify.steps", "3", "--settings.amplify.width", "4", "--settings.amplify.batch", "4",
    "--settings.samples", "1",
]  # fmt: skip
DISSOLVES = [
    "--settings.dissolver.kind", "diffusion", "--settings.dissolver.steps", "4",
    "--settings.dissolver.widths", "[8,16]",
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
    main(["fit", str(folders), "--out", str(out), *DISSOLVES])
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
    assert config["n_train"] == config["n_calibration"] == 40  # each is judged without itself
    assert not list(model.parent.glob(".*.work"))


def test_score_writes_the_same_rows_as_csv_and_jsonl_and_heatmaps(model, folders, tmp_path, capsys):
    for suffix, more in (("csv", []), ("jsonl", ["--heatmaps", str(tmp_path / "maps")])):
        main(["score", str(model), str(folders), "--out", str(tmp_path / f"s.{suffix}"), "--json", *more])
        facts = json.loads(capsys.readouterr().out)
        assert facts["images"] == 16
    maps = list((tmp_path / "maps").rglob("*.png"))
    assert len(maps) == 16
    assert Image.open(maps[0]).size > (32, 32)  # and the scale of colours
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["path", "score", "p_value", "flagged"]
    for row, line in zip(rows, lines, strict=True):
        assert row["path"] == line["path"]
        assert float(row["score"]) == pytest.approx(line["score"], rel=1e-6)
        assert 0 < line["p_value"] <= 1
        assert line["flagged"] == (line["p_value"] <= 0.05)


def test_a_second_fit_or_stress_is_refused_while_the_first_lives(model, folders, tmp_path, capsys):
    argv = ["fit", str(folders), "--method", "trivial:brightness", "--device", "cpu", "--out"]
    work = tmp_path / ".run.work"
    work.mkdir()
    with Owner(tmp_path / "run"), Owner(model / "stress.json"):
        for words in ([*argv, str(tmp_path / "run")], ["stress", str(model), str(folders)]):
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 2
            assert f"(process {os.getpid()} on " in capsys.readouterr().err
    assert work.exists()
    main([*argv, str(tmp_path / "run")])
    assert not work.exists()
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_fit_that_lost_its_folder_writes_no_model(folders, tmp_path, monkeypatch, capsys):
    lost = Detector.fit

    def fit(self, *args, **kwargs):
        (tmp_path / ".run.lock").unlink()
        return lost(self, *args, **kwargs)

    monkeypatch.setattr(Detector, "fit", fit)
    with pytest.raises(SystemExit):
        main(["fit", str(folders), "--method", "trivial:brightness", "--out", str(tmp_path / "run")])
    assert "run: taken over by another process; this one stops" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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
    from dia.dissolve import dissolver

    step = dissolver._Training.training_step

    def dies(self, batch, index):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(dissolver._Training, "training_step", dies)
    out = tmp_path / "killed"
    with pytest.raises(SystemExit):
        main(["fit", str(folders), "--out", str(out), *DISSOLVES])
    assert not out.exists()
    monkeypatch.setattr(dissolver._Training, "training_step", step)
    main(["fit", str(folders), "--out", str(out), "--resume", *DISSOLVES])
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
    assert "dissolver:" not in text
    assert "  ts:" not in text
    chosen = config_printed(capsys, "--method", "dia+", "--settings.dissolver.kind", "diffusion")
    assert "  dissolver:\n" in chosen
    assert "ts: [300, 500, 700, 900]\n" in chosen


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
        ("a/b.png", "a/b.png.heatmap.png"),
        ("a_b.png", "a_b.png.heatmap.png"),
        ("a/b.PNG", "a/b.PNG.heatmap.png"),
        ("scan.dcm#3", "scan.dcm#3.heatmap.png"),
        ("IM0001", "IM0001.heatmap.png"),
        ("../../b.jpg", "%../%../b.jpg.heatmap.png"),
        ("/etc/b.jpg", "%/etc/b.jpg.heatmap.png"),
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
        (["score", "r", "x", "--skip"], "did you mean --skip-bad?"),
        (["fit", "x", "--false-alarm-rat", "0.1"], "did you mean --false-alarm-rate?"),
        (["scor", "r", "x"], "did you mean score?"),
        (["fit", "x", "--settings.nothing", "1"], "--settings.nothing"),
        (["fit", "--out", "r"], "see dia fit --help"),
        (["data", "chek", "x"], "did you mean check?"),
    ],
)
def test_words_that_are_not_known_or_not_whole_are_refused(capsys, argv, says):
    assert says in refused(capsys, *argv)


def test_a_log_is_added_to_logs_alone(tmp_path, capsys):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert "choose a name in .log or .txt" in refused(capsys, "fit", "x", "--log-file", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before


def test_what_stands_in_the_wrong_place_or_does_nothing_is_said(capsys):
    assert "-q stands after the command" in refused(capsys, "-q", "fit", "phantom")
    assert "--holdout does nothing for dia+" in refused(capsys, "fit", "phantom", "--holdout", "0.5")
    for value in ("5", "0", "150%"):
        said = refused(capsys, "fit", "phantom", "--false-alarm-rate", value)
        assert f"above 0 and below 1, as 0.05 or 5%, not {value};" in said
    assert "Union" not in refused(capsys, "score", "run", "x", "--max", "0")


def test_lists_need_no_brackets(capsys):
    from dia.cli.help import listed
    from dia.cli.main import command_parser

    parser = command_parser("benchmark")
    assert listed(parser, ["--datasets", "a,b", "--seeds=0,1", "--methods", "[x]", "--workers", "2"]) == [
        "--datasets", "[a,b]", "--seeds=[0,1]", "--methods", "[x]", "--workers", "2",
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["--version"], ("torch", "numpy", "matplotlib")),
        ([], ("torch", "numpy", "matplotlib")),
        (["score", "--help"], ("torch", "lightning", "scipy", "sklearn", "matplotlib")),
        (["demo", "--help"], ("torch", "lightning", "scipy", "sklearn", "matplotlib")),
        (["evaluate", "no/model", "phantom"], ("torch", "lightning", "scipy", "sklearn", "matplotlib")),
        (["score", "--device", "gpu", "m", "x"], ("torch", "lightning")),
    ],
)
def test_the_first_word_of_a_command_loads_no_large_library(words, without):
    program = f"""
import sys
from dia.cli.main import main
try:
    main({words!r})
except SystemExit:
    pass
print([name for name in {without!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_scoring_and_a_fit_without_training_load_no_lightning(folders, tmp_path):
    program = f"""
import sys
from dia.cli.main import main
main(["fit", {str(folders)!r}, "--out", {str(tmp_path / "run")!r}])
main(["score", {str(tmp_path / "run")!r}, {str(folders)!r}, "--out", {str(tmp_path / "s.csv")!r}])
print([name for name in ("lightning", "torchmetrics", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_command_alone_prints_its_help(capsys):
    main([])
    assert capsys.readouterr().out.startswith("usage: dia COMMAND")


@pytest.mark.parametrize("rate", ["5", "0", "1", "100%", "-1", "much"])
def test_a_rate_that_is_no_share_is_refused_before_work_begins(capsys, monkeypatch, rate):
    monkeypatch.setattr("dia.cli.options.Images.read", lambda *_, **__: pytest.fail("work began"))
    assert "as 0.05 or 5%" in refused(capsys, "fit", "phantom", "--false-alarm-rate", rate)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "gpu"], "--device gpu: not known"),
        (["--device", "cuda:99"], "CUDA device"),
        (["--seed", "-1"], "--seed"),
        (["--contamination", "3"], "--contamination"),
        (["--settings.dissolver.steps", "3"], "--settings.dissolver.steps does nothing"),
        (["--settings.ts", "[3]"], "--settings.ts does nothing"),
        (
            ["--method", "dia", "--settings.dissolver.kind", "median", "--settings.dissolver.steps", "3"],
            "--settings.dissolver.steps does nothing",
        ),
    ],
)
def test_values_are_checked_before_work_begins(capsys, monkeypatch, words, says):
    monkeypatch.setattr("dia.cli.options.Images.read", lambda *_, **__: pytest.fail("work began"))
    assert says in refused(capsys, "fit", "phantom", *words)


def test_a_share_may_be_written_in_percent(folders, tmp_path, capsys, monkeypatch):
    argv = ["fit", str(folders), "--method", "trivial:std", "--out", str(tmp_path / "m")]
    (tmp_path / "c.yaml").write_text("false_alarm_rate: 30%\nlog_file: null\nquiet: false\n")
    monkeypatch.chdir(tmp_path)
    for words in (["--false-alarm-rate", "30%"], ["--config", str(tmp_path / "c.yaml")]):
        main([*argv, *words, "--overwrite", "--json"])
        said = capsys.readouterr()
        assert json.loads(said.out)["false_alarm_rate"] == 0.3
        assert "fitting on" in said.err  # it is not quiet
    assert not (tmp_path / "None").exists()


def test_no_threshold_comes_with_its_reason_and_the_remedy(folders, tmp_path, capsys):
    main(["fit", str(folders), "--method", "trivial:std", "--out", str(tmp_path / "m"), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["threshold"] is None
    assert "needs 19 calibration normals, and there are 4" in said.err
    main(["score", str(tmp_path / "m"), str(folders), "--out", str(tmp_path / "s.csv")])
    assert "--false-alarm-rate of 0.2 or more" in " ".join(capsys.readouterr().err.split())


def test_quiet_says_the_result_alone_and_a_log_file_keeps_the_rest(model, folders, tmp_path, capsys):
    words = ["score", str(model), str(folders), "--out", str(tmp_path / "s.csv"), "--json"]
    main([*words, "-q", "--log-file", str(tmp_path / "log")])
    said = capsys.readouterr()
    assert said.err == ""
    json.loads(said.out)
    assert "dia score" in (tmp_path / "log").read_text()
    assert "no/model" in refused(capsys, "evaluate", "no/model", "x", "-q")
    main([*words, "-v"])
    assert "Starting dia score: done in" in capsys.readouterr().err
    assert "--log-file" in refused(capsys, *words, "--log-file", tmp_path / "no" / "log")


def test_no_bar_and_no_colour_where_stderr_is_no_terminal(folders, tmp_path, capsys):
    main(["fit", str(folders), "--method", "csi", *CSI, "--out", str(tmp_path / "m")])
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert said.splitlines() == [line for line in said.splitlines() if "normal" in line]


def test_ctrl_c_within_a_training_is_130_and_one_line(folders, tmp_path, capsys, monkeypatch):
    import signal

    from dia.amplify.contrast import ContrastiveTraining

    def interrupted(*_):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ContrastiveTraining, "training_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(folders), "--method", "csi", *CSI, "--out", str(tmp_path / "m")])
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("dia: stopped; ")
    assert signal.getsignal(signal.SIGINT) is before


def test_info_says_what_a_model_is(model, capsys):
    main(["info", str(model), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "dia+"
    assert found["training_normals"] == found["calibration_normals"] == 40
    assert found["threshold"] is not None
    assert f"dia {version('dia-anomaly')}" in found["versions"]
    assert found["image_shape"] == "32×32×1"
    assert found["megabytes"] > 1


def test_a_sites_own_normals_give_another_threshold_and_the_first_comes_back(tmp_path, capsys, folders):
    from dia.detectors import Detector

    run, site = tmp_path / "run", tmp_path / "site"
    main(["fit", str(folders), "--method", "trivial:std", "--out", str(run)])
    site.mkdir()
    for i, image in enumerate(phantoms.load("train", size=32, n=100).images[40:, ..., 0]):
        Image.fromarray(image // 2).save(site / f"{i:03}.png")  # of another scanner
    before = {p.name: p.read_bytes() for p in run.glob("*.json")}
    main(["calibrate", str(run), str(site), "--false-alarm-rate", "10%", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    now = Detector.load(run)
    assert found["normals"] == now.n_calibration_ == 60
    assert found["threshold"] == now.threshold() != found["threshold_before"]
    main(["score", str(run), str(site), "--out", str(tmp_path / "s.csv"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["flagged"] <= 6  # 10 % of the very images that it was calibrated on
    assert facts["drift"]["alarm"] is not True
    main(["calibrate", str(run), "--original"])
    for name in ("config.json", "calibration.json", "drift.json"):
        assert (run / name).read_bytes() == before[name]
    Detector.load(run)
    capsys.readouterr()
    said = refused(capsys, "calibrate", run, site, "--false-alarm-rate", "1%")
    assert "60 normal images; a rate of 0.01 needs 99" in said
    assert "fitted on these images" in refused(
        capsys, "calibrate", run, folders, "--split", "train", "--false-alarm-rate", "20%"
    )


def test_flags_are_spelt_with_dashes_and_underscores_are_taken(capsys):
    for name in ("score", "fit"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        flags = [w for w in capsys.readouterr().out.split() if w.startswith("--")]
        assert not [f for f in flags if "_" in f]
    assert "no/model" in refused(capsys, "score", "no/model", "x", "--false_alarm_rate", "0.1")


@pytest.mark.parametrize(
    ("words", "among"),
    [(["sc"], "score"), (["score", "r", "x", "--"], "--false-alarm-rate"), (["data", ""], "check"),
     (["fit", "x", "--preset", ""], "paper")],
)  # fmt: skip
def test_a_shell_completes_commands_flags_and_values(capsys, words, among):
    main(["completion", "words", *words])
    assert among in capsys.readouterr().out.split()
    main(["completion", "bash"])
    assert "complete -o default -F _dia dia" in capsys.readouterr().out
