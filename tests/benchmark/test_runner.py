"""Grids: what is run, in which memory, whatever fails, and which lines count."""

import json
import os
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dia.benchmark import runner as grid
from dia.benchmark.grid import Job, benchmark_grid
from dia.benchmark.ledger import FAILED, Ledger, failures_path
from dia.benchmark.protocol import development
from dia.benchmark.runner import Costs, Paths, Result, Worker, run_grid
from dia.benchmark.runs import current_lines, open_failures, run, scores_path, weights_kind
from dia.benchmark.workers import Process, memory_of_machine_gb, workers_of
from dia.cli.main import main
from dia.core.errors import DataError
from dia.core.settings import SettingsError
from dia.core.training import TrainingError
from dia.data import phantoms
from dia.data.imageset import ImageSet
from dia.detectors import Blur, Detector, registry
from grids import TINY, benchmark, lines_of, two_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """The lines of one process."""
    out = tmp_path_factory.mktemp("one")
    main(benchmark(root, out))
    return out


# --- failures --------------------------------------------------------------------------------------------


def test_one_failure_does_not_stop_the_rest_and_is_kept_with_its_reason(root, tmp_path, capsys):
    absent = str(tmp_path / "absent.safetensors")
    argv = benchmark(
        root, tmp_path, methods=["msc", "trivial:std"], weights=[absent, "none"], seeds=[0],
        datasets=["breastmnist"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert f"breastmnist seed 0 msc (weights: {absent}): weights {absent}: no file" in said
    assert "1 run failed" in said
    assert [line["method"] for line in lines_of(tmp_path)] == ["msc", "trivial:std"]
    (kept,) = Ledger(failures_path(tmp_path / "l.jsonl"), FAILED).rows()
    assert (kept["method"], kept["weights"]) == ("msc", absent)
    assert "no file" in kept["reason"]


def test_a_failure_is_shown_until_the_run_is_made(alone):
    def failure(reason, **facts):
        whole = {"dataset": "breastmnist", "method": "csi", "seed": 0, "preset": "cpu", "weights": "none"}
        return whole | facts | {"reason": reason}

    lines = lines_of(alone)
    failed = [
        failure("made since"), failure("first", seed=9), failure("last", seed=9),
        failure("gpu", preset="gpu"),
        failure("other weights", weights="dia"), failure("elsewhere", dataset="phantom"),
        failure("another", method="msc"),
    ]  # fmt: skip
    assert open_failures(failed, lines, "cpu", datasets=["breastmnist"], methods=["csi"]) == {
        ("breastmnist", "csi", "none", 9): "last", ("breastmnist", "csi", "dia", 0): "other weights",
    }  # fmt: skip
    assert {"elsewhere", "another"} <= set(open_failures(failed, lines, "cpu").values())


@pytest.mark.parametrize("error", [RuntimeError("odd\nshape"), MemoryError(), TrainingError("nan at 3")])
def test_whatever_a_method_throws_is_a_reason(root, tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(grid, "run", fails)
    result = grid.perform(Job("breastmnist", "csi", 0, "cpu"), Paths("l", "s", str(tmp_path), str(root)))
    assert result.line is None
    assert "\n" not in result.reason
    if not isinstance(error, TrainingError):
        (report,) = (tmp_path / "failures").iterdir()
        assert str(report) in result.reason
        assert "Traceback" in report.read_text()


def test_a_method_or_setting_that_is_not_there_stops_before_anything_runs(root, tmp_path, capsys):
    for more, word in (
        ({"methods": ["magic"]}, "magic"),
        ({"settings": {"csi": {"magic": 1}}}, "magic"),
        ({"settings": TINY | {"hogg": {}}}, "settings are for hogg, which is no method"),
        ({"seeds": []}, "--seeds is empty"),
        ({"readme": [__file__]}, "holds none of the marks"),
        ({"workers": 0}, "--workers"),
        ({"preset": "tpu"}, "--preset tpu"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(benchmark(root, tmp_path, **more))
        assert stopped.value.code == 2
        assert word in capsys.readouterr().err
        assert not (tmp_path / "l.jsonl").exists()


def test_scores_are_kept_with_the_units_of_intervals_and_the_rest_does_not_know_them(tmp_path):
    """Windows of one frame are a unit; images with other names, as those of development, have none."""
    paths = Paths(str(tmp_path / "l.jsonl"), str(tmp_path / "s"), str(tmp_path / "w"))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    labels, names = np.array([0, 0, 0, 1, 1, 1]), [f"{f}.jpg:0:{i}:8" for i, f in enumerate("abacbc")]
    normals, made = ImageSet(np.random.default_rng(1).integers(0, 256, (20, 8, 8, 1), np.uint8)), {}
    for name, of in (("frames", names), ("own", ["lesions/0", *names[1:]])):
        test = ImageSet(images, labels, names=of)
        dataset = "kvasirseg_patches" if name == "frames" else "chestxray-128"
        units = grid._units(Job(dataset, "trivial:std", 0, "cpu"), test, paths)
        line = run(
            dataset, normals, test, "trivial:std", workdir=tmp_path / "w", scores=tmp_path / name, units=units
        )
        with np.load(scores_path(tmp_path / name, line)) as kept:
            made[name] = line, dict(kept)
    assert made["frames"][1]["units"].tolist() == [0, 1, 0, 2, 1, 2]
    assert "units" not in made["own"][1]
    for what in ("auroc", "auroc_ci", "data_sha256"):
        assert made["frames"][0][what] == made["own"][0][what]
    assert "n_patients" not in made["frames"][0]


# --- memory ----------------------------------------------------------------------------------------------


class Machine:
    """Workers whose runs take as many looks as they are told, and as much memory."""

    def __init__(self, needs):
        self.needs, self.running, self.most, self.order = needs, {}, 0.0, []

    def worker(self):
        return Slot(self)


class Slot:
    def __init__(self, machine):
        self.machine, self.future, self.job = machine, None, None

    def submit(self, job, paths):
        m = self.machine
        self.future, self.job = Future(), job
        m.running[self] = m.needs[job.method]
        m.order.append((job.method, len(m.running)))
        return self.future

    def memory_mb(self):
        m = self.machine
        held = m.running.get(self, 0.0)
        if held and self is next(iter(m.running)):  # looked at: its time is over
            m.most = max(m.most, sum(m.running.values()))
            m.running.pop(self)
            self.future.set_result(Result(line_of(self.job.method, held), fresh=True))
        return held

    def kill(self):
        if self.machine.running.pop(self, None) and not self.future.done():
            self.future.set_result(Result(None, reason="killed"))


def line_of(method, mb, **more):
    return {
        "dataset": "d", "method": method, "preset": "cpu", "auroc": 0.5, "auroc_ci": [0.4, 0.6],
        "fit_seconds": 60.0, "run_seconds": 120.0, "peak_memory_mb": mb,
    } | more  # fmt: skip


def jobs_of(*methods):
    return [Job("d", m, 0, "cpu") for m in methods]


def test_runs_of_known_need_start_where_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_LOOK", 0.0)
    needs = {"small": 400.0, "large": 900.0}
    monkeypatch.setattr(Ledger, "rows", lambda self: [line_of(m, mb) for m, mb in needs.items()])
    machine = Machine(needs)
    paths = Paths(str(tmp_path / "l"), "s", "w")
    failed = run_grid(
        jobs_of("large", "small", "small", "large"), paths, [machine.worker() for _ in range(3)],
        memory_gb=1000 / 1024, say=lambda *_: None,
    )  # fmt: skip
    assert not failed
    assert machine.most <= 1000
    assert sorted(m for m, _ in machine.order) == ["large", "large", "small", "small"]
    assert all(beside == 1 for m, beside in machine.order if m == "large")
    assert ("small", 2) in machine.order


def test_what_outgrows_the_budget_is_put_off_until_it_is_alone_and_fails_only_there(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_LOOK", 0.0)
    monkeypatch.setattr(grid, "_UNKNOWN_MB", 100.0)
    held = {"csi": 400.0, "dia": 900.0, "msc": 1100.0}  # alone, the last bursts the budget

    class Growing(Slot):
        def memory_mb(self):  # never done while there is too much
            if sum(self.machine.running.values()) > 1000:
                return self.machine.running.get(self, 0.0)
            return super().memory_mb()

    machine = Machine(held)
    said = []
    failed = run_grid(
        jobs_of("csi", "dia", "msc"), Paths(str(tmp_path / "l.jsonl"), "s", "w"),
        [Growing(machine), Growing(machine)], memory_gb=1000 / 1024, say=lambda text, bad: said.append(text),
    )  # fmt: skip
    assert len(failed) == 1
    assert "msc" in failed[0]
    assert "more than the 0.977 GiB of --memory_gb" in failed[0]
    assert ("dia", 1) in machine.order  # in the end alone
    assert sum("seed 0 dia" in text for text in said) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(1, 1e4))), st.integers(1, 4))
def test_time_left_is_the_mean_of_what_runs_took_shared_by_the_workers(runs, workers):
    costs = Costs([line_of(m, 1.0, run_seconds=s) for m, s in runs])
    of_a = [s for m, s in runs if m == "a"]
    left = costs.minutes(jobs_of("a", "a", "unheard"), workers)
    assert left == (pytest.approx(3 * np.mean(of_a) / 60 / workers) if of_a else None)
    assert costs.minutes([], workers) == 0


def test_need_is_the_most_that_was_held_on_that_data_set_or_else_on_any():
    costs = Costs([line_of("a", 10.0), line_of("a", 30.0), line_of("a", 99.0, dataset="e")])
    assert costs.memory_mb(Job("d", "a", 5, "cpu")) == 30
    assert costs.memory_mb(Job("new", "a", 5, "cpu")) == 99
    assert costs.memory_mb(Job("d", "b", 5, "cpu")) == 2048
    assert costs.memory_mb(Job("d", "a", 5, "gpu")) == 2048


# --- what is asked for -----------------------------------------------------------------------------------


def test_weights_multiply_only_the_methods_that_start_from_a_network():
    made, remarks = benchmark_grid(
        ["d", "e"], ["csi", "msc", "transformaly", "trivial:std"], [0, 1], "cpu", weights=["none", "dia"],
        settings={"dia": {"samples": 2}},
    )  # fmt: skip
    tasks = made.jobs()
    made = [(t.method, t.changes.get("weights")) for t in tasks if t.dataset == "d" and t.seed == 0]
    assert made == [
        ("csi", None), ("msc", "none"), ("msc", "dia"), ("transformaly", "none"), ("trivial:std", None),
    ]  # fmt: skip
    assert len(tasks) == 20
    assert all(t.encoder == {"samples": 2} for t in tasks)
    (remark,) = remarks
    assert remark.startswith("transformaly is left out with weights dia: ")
    with pytest.raises(SettingsError):
        benchmark_grid(["d"], ["csi"], [0], "cpu", settings={"csi": {"magic": 1}})
    with pytest.raises(DataError, match="magic"):
        benchmark_grid(["d"], ["magic"], [0], "cpu")


def test_weights_dia_are_those_of_dia_on_the_same_normals(root, tmp_path, capsys):
    argv = benchmark(
        root, tmp_path, methods=["dia", "msc"], weights=["dia", "none"], seeds=[0], datasets=["breastmnist"]
    )
    main(argv)
    rows = lines_of(tmp_path)
    dia, own, none = rows
    assert own["weights"].startswith("dia:")
    assert "sha256" in own["weights"]
    assert none["weights"] == "none (random, seed 0)"
    assert len({line["settings_hash"] for line in rows}) == 3
    assert [line["weights_kind"] for line in rows] == ["none", "dia", "none"]
    assert own["encoder"]["settings"] == dia["settings"] != {}
    assert (own["encoder"]["seed"], own["encoder"]["train_sha256"]) == (0, own["data_sha256"][:32])
    assert none["settings"] == {"size": 16, "epochs": 1}
    assert own["settings"] == none["settings"] | {"weights": "dia"}
    (folder,) = (tmp_path / "w" / "breastmnist").glob("own-*")
    config = json.loads((folder / "config.json").read_text())
    assert config["settings_hash"] == dia["settings_hash"]
    assert current_lines(rows, "cpu", changes=TINY) == rows
    other = {**TINY, "dia": TINY["dia"] | {"samples": 2}}
    assert current_lines(rows, "cpu", changes=other) == [none]  # another dia, and so another encoder
    capsys.readouterr()
    main([*argv, "--work", str(tmp_path / "other"), "--dry-run"])  # known without the encoder
    assert "0 of 3 runs are to be made" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()


def test_kinds_of_weights():
    kinds = {"none": "none", "imagenet": "imagenet", "dia": "dia", "dia:runs/x": "dia", "dia-x.pth": "file"}
    assert {w: weights_kind(w) for w in kinds} == kinds


def test_a_dry_run_shows_what_is_missing_and_its_cost(root, alone, tmp_path, capsys):
    there = {"ledger": str(alone / "l.jsonl"), "seeds": [0, 7]}
    argv = benchmark(root, tmp_path, **there, scores=str(alone / "s"))
    before = (alone / "l.jsonl").read_bytes()
    main([*argv, "--dry-run"])
    shown = capsys.readouterr().out
    assert re.search(r"6 of 12 runs are to be made: about \d+ minutes", shown)
    assert (alone / "l.jsonl").read_bytes() == before
    main([*benchmark(root, tmp_path, **there), "--dry-run"])  # without raw scores, lines are made again
    assert "12 of 12 runs are to be made" in capsys.readouterr().out
    main([*benchmark(root, tmp_path), "--dry-run"])
    assert (
        "12 of 12 runs are to be made: about 0 minutes with one worker, and 12 of unknown cost"
        in capsys.readouterr().out
    )


# --- which lines count -----------------------------------------------------------------------------------


def test_lines_of_today_are_those_that_the_same_grid_would_make(alone):
    rows = lines_of(alone)
    chosen = current_lines(rows, "cpu", changes=TINY)
    assert chosen == rows
    assert {r["method"] for r in current_lines(rows, "cpu")} == {"trivial:hog", "trivial:std"}
    assert current_lines(rows, "gpu", changes=TINY) == []
    one = current_lines(rows, "cpu", changes=TINY, datasets=["breastmnist"], methods=["csi"])
    assert [(r["dataset"], r["method"], r["seed"]) for r in one] == [
        ("breastmnist", "csi", s) for s in (0, 1)
    ]


def test_later_lines_replace_earlier_ones_and_other_data_ablations_and_lost_methods_are_left_out(alone):
    rows = lines_of(alone)
    again = rows[0] | {"auroc": 0.123}
    ablated = rows[1] | {"ablation": {}}
    lost = rows[2] | {"method": "magic"}
    history = [rows[3] | {"settings": None}, rows[3] | {"revision": 99}, rows[3] | {"holdout": 0.4}]
    unsaid = {k: v for k, v in rows[3].items() if k != "settings"}
    chosen = current_lines([*rows, again, ablated, lost, *history, unsaid], "cpu", changes=TINY)
    assert len(chosen) == len(rows)
    assert again in chosen
    assert rows[0] not in chosen
    other = [r | {"data_sha256": "f" * 64} for r in rows if r["dataset"] == "breastmnist" and r["seed"] == 0]
    newest = [r for r in current_lines([*rows, *other], "cpu", changes=TINY) if r["dataset"] == "breastmnist"]
    assert newest == other  # seed 1 was of the data before


def test_workers_are_as_asked():
    with workers_of("local", None) as workers:
        assert type(workers[0]) is Worker
    with workers_of("local", 1, apart=True) as workers:
        assert isinstance(workers[0], Process)
    with workers_of("local", 2) as workers:
        assert [w.threads for w in workers] == [max(len(os.sched_getaffinity(0)) // 2, 1)] * 2
    assert 0.5 < memory_of_machine_gb() < 1e6
    assert Path("/proc/meminfo").exists() is False or memory_of_machine_gb() * 2**20 == pytest.approx(
        int(Path("/proc/meminfo").read_text().split()[1]), rel=0.05
    )


def test_the_report_is_drawn_from_the_lines_of_a_grid(root, alone, tmp_path, capsys):
    settings = yaml.safe_dump(TINY, default_flow_style=True).strip()
    where = ["--ledger", str(alone / "l.jsonl"), "--scores", str(alone / "s"), "--out", str(tmp_path / "o")]
    main(["report", "benchmark", *where, "--settings", settings])
    written = capsys.readouterr().out.split()
    assert {Path(p).suffix for p in written} >= {".md", ".html", ".csv", ".tex", ".png"}
    assert all(Path(p).stat().st_size for p in written)
    page = (tmp_path / "o" / "benchmark.md").read_text()
    assert "csi" in page
    assert "trivial:hog" in page
    grids = {"typo": "metods: [csi]", "kind": "seeds: 3", "half": "a: [", "text": "csi"}
    for name, text in grids.items():
        (tmp_path / name).write_text(text)
    for argv, word in (
        (["--preset", "gpu"], "no line of preset gpu"),
        (["--preset", "x"], "--preset x"),
        (["--datasets", "[breastmnist,brestmnist]"], "--datasets brestmnist: no run of it is in"),
        (["--methods", "[cssi]"], "--methods cssi: no run of it is in"),
        (["--ledger", str(tmp_path / "none")], "none: no ledger is there"),
        (["--readme", f"[{tmp_path / 'text'}]"], "text holds none of the marks"),
        (["--grid", str(tmp_path / "typo")], "typo: Option 'metods' is not accepted"),
        (["--grid", str(tmp_path / "kind")], "kind: seeds: "),
        (["--grid", str(tmp_path / "half")], "half: not a YAML file"),
        (["--grid", str(tmp_path / "text")], "text: no grid"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["report", "benchmark", *where, *argv])
        assert stopped.value.code == 2
        said = capsys.readouterr().err.strip()
        assert word in said
        assert "\n" not in said


# --- lines that are there already ------------------------------------------------------------------------


def test_a_line_in_the_ledger_is_not_made_again(tmp_path):
    train, test = phantoms.load("train", size=32, n=24), phantoms.load("test", size=32, n=16)
    ledger, made = Ledger(tmp_path / "runs.jsonl"), []
    lines = [
        run("phantom", train, test, "trivial:std", seed=seed, workdir=tmp_path, ledger=ledger,
            on_fitted=lambda *_: made.append(1))
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert len(made) == len(ledger.rows()) == 2
    assert lines[0] == lines[1]


def test_another_revision_of_a_method_is_another_run_and_its_models_are_refused(
    make_images, tmp_path, monkeypatch
):
    blur = Blur(device="cpu").fit(make_images(24, 32))
    now, folder = blur.settings_hash(), blur.save(tmp_path / "blur")
    monkeypatch.setattr(Blur, "revision", Blur.revision + 1)
    assert Blur().settings_hash() != now
    with pytest.raises(
        DataError, match=f"blur: of revision {Blur.revision - 1} of trivial:blur; here is {Blur.revision}, so"
    ):
        Detector.load(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["revision"]  # as the first models were saved
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checksums.json").unlink()  # nor were there any then
    with pytest.raises(DataError, match="of revision 1"):
        Detector.load(folder)


# --- data of one's own -----------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, make_images, monkeypatch):
    """A folder of healthy and sick images without splits, and one of MVTec's form; the working directory."""
    monkeypatch.chdir(tmp_path)
    for place, count, seed in (
        ("scans/labelled/healthy", 40, 1), ("scans/labelled/sick", 9, 2), ("split/train/good", 30, 3),
        ("split/test/good", 6, 4), ("split/test/cut", 6, 5),
    ):  # fmt: skip
        Path(place).mkdir(parents=True)
        for i, image in enumerate(make_images(count, seed=seed)):
            Image.fromarray(image[..., 0]).save(f"{place}/{i}.png")
    return tmp_path


MINE = """
from dia.detectors import TRIVIAL, register

@register("mine")
class Mine(TRIVIAL["trivial:std"]):
    family = "mine"
"""
QUICK = ["--seeds", "[0]", "--ledger", "l.jsonl", "--scores", "s", "--work", "w"]


def test_a_folder_and_a_detector_of_ones_own_come_to_a_page(own, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv(registry.PLUGINS, "")
    Path("mine.py").write_text(MINE)
    np.savez(
        "arrays.npz", train_images=np.arange(30 * 256, dtype=np.uint8).reshape(30, 16, 16),
        train_labels=np.full(30, 7), test_images=np.zeros((4, 16, 16), np.uint8), test_labels=[7, 7, 3, 3],
    )  # fmt: skip
    sets = ["--datasets", "[scans/labelled,phantom]", "--normal", "healthy"]
    plugin = ["--plugin", "mine.py"]
    main([*plugin, "benchmark", *sets, "--methods", "[mine,trivial:pca]", *QUICK])
    main([*plugin, "benchmark", "--datasets", "[split/]", "--methods", "[mine,trivial:pca]", *QUICK])
    main(["benchmark", "--datasets", "[arrays.npz]", "--normal", "7", "--methods", "[trivial:pca]", *QUICK])
    lines = Ledger("l.jsonl").rows()
    assert {line["dataset"] for line in lines} == {"labelled", "phantom", "split", "arrays"}
    facts = {r["dataset"]: (r["n_train"] + r["n_calibration"], r["n_test"], r.get("source")) for r in lines}
    assert facts["labelled"][1:] == (17, {"path": str(own / "scans/labelled"), "normal": "healthy"})
    assert facts["split"][1:] == (12, {"path": str(own / "split"), "normal": None})
    assert facts["arrays"][1:] == (4, {"path": str(own / "arrays.npz"), "normal": "7"})
    assert facts["phantom"][2] is None
    capsys.readouterr()
    monkeypatch.chdir(own / "scans")  # from elsewhere too
    main([*plugin[:1], "../mine.py", "report", "benchmark", "--ledger", "../l.jsonl", "--scores", "../s"])
    page = Path("results/benchmark/benchmark.md").read_text()
    assert "duplicates and copies are not counted" not in capsys.readouterr().err
    assert "| labelled | 8 + 9 (53%) | normal is healthy; all else is anomalous |" in page
    assert "| mine |" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["[scans/labelled]"], "labels of both classes; --normal names"),
        (["[scans/labelled]", "--normal", "well"], "no class folder well; there are: healthy, sick"),
        (["[scans/labeled]"], "no such path or data set"),
        (["[phantom]", "--normal", "healthy"], "no data set is one; leave it out"),
        (["[scans/labelled,copy/labelled]", "--normal", "healthy"], "one name in the table, labelled"),
        (["[copy/breastmnist]", "--normal", "healthy"], "breastmnist is a known data set already"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_any_run(own, arguments, said, capsys):
    for name in ("labelled", "breastmnist"):
        shutil.copytree("scans/labelled", f"copy/{name}")
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--datasets", *arguments, "--methods", "[trivial:std]", *QUICK])
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("l.jsonl").exists()


def test_a_folder_is_explored_too(own):
    for kind in ("lesions", "val"):
        if kind == "val":
            with pytest.raises(DataError, match="val"):
                development("scans/labelled", kind, None, 16, "healthy")
            continue
        normals, judged = development("scans/labelled", kind, None, 16, "healthy")
        assert len(normals) == 26
        assert not judged.labels[:6].any()
