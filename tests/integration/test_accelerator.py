"""The paper's training on a lent machine: every job runs, goes on where it was, and is entered once."""

import json
import sys

import numpy as np
import pytest

from dia.dissolve import DissolverSettings

pytest.importorskip("timm")  # LARS
import accelerator
import encoder_scores

SCORES = {*encoder_scores.SCORES, "csi, own draws", "cosine, own draws"}


@pytest.fixture
def data(tmp_path, make_images):
    """Small sets under the names and layouts of the real ones."""
    root = tmp_path / "data"
    root.mkdir()
    for file, side in (("breastmnist", 28), ("pneumoniamnist", 28), ("sarscov2ct_128", 128)):
        x, y = make_images(44, side), np.tile([0, 1], 22)
        names = np.array([f"{'COVID' if k else 'non-COVID'}/{i}.png" for i, k in enumerate(y)])
        splits = {"train": slice(0, 40), "val": slice(30, 40), "test": slice(34, 44)}
        parts = {}
        for split, part in splits.items():
            parts |= {f"{split}_images": x[part], f"{split}_labels": y[part], f"{split}_names": names[part]}
        np.savez(root / f"{file}.npz", **parts)
    return root


@pytest.fixture
def run(data, tmp_path, monkeypatch, capsys):
    """The command, on the CPU, with encoders of width 4."""

    def call(*words, out="out", work="work"):
        common = ["--data", str(data), "--out", str(tmp_path / out), "--work", str(tmp_path / work)]
        common += ["--device", "cpu", "--width", "4", "--evaluations", "2"]
        monkeypatch.setattr(sys, "argv", ["accelerator.py", *common, *words])
        accelerator.main()
        return capsys.readouterr().out

    return call


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_job_is_listed_with_its_length(run):
    text = run("--dry-run")
    names = [line.split()[0] for line in text.splitlines()]
    assert names == [job.name for job in accelerator.jobs()]
    assert len(set(names)) == len(names)
    assert names[0] == "breastmnist-0-dia-32px-0"  # malignant as normal, as the official command trains
    assert "1,000 steps" in text.splitlines()[0]  # 20 normals, one batch: 1000 epochs


def test_a_dia_and_a_csi_job_are_judged_by_every_score_as_they_go(run, tmp_path):
    run("--steps", "5", "--jobs", "breastmnist-0-dia-32", "breastmnist-0-csi-32px-0")
    found = lines(tmp_path / "out")
    for job in ("breastmnist-0-dia-32px-0", "breastmnist-0-csi-32px-0"):
        of = [r for r in found if r["job"] == job]
        assert {(r["step"], r["score"]) for r in of} == {(step, s) for step in (2, 5) for s in SCORES}
        assert all(r["steps"] == 5 and r["whole"] == 1000 and r["n_train"] == 20 for r in of)
        assert of[0]["settings"]["amplify.steps"] == 5  # what differs from the preset
        assert np.isfinite(np.load(tmp_path / "out/losses.npz")[job]).all()
    scores = np.load(tmp_path / "out/scores.npz")
    assert scores["breastmnist-0-dia-32px-0/csi"].shape == (10,)
    # what is done is not done again
    before = (tmp_path / "out/results.jsonl").read_bytes()
    run("--steps", "5", "--jobs", "breastmnist-0-csi-32px-0")
    assert (tmp_path / "out/results.jsonl").read_bytes() == before
    # a short run is no part of a longer one
    run("--steps", "4", "--jobs", "breastmnist-0-csi-32px-0")
    assert {r["steps"] for r in lines(tmp_path / "out") if r["method"] == "csi"} == {4, 5}


def test_a_job_that_fails_does_not_keep_the_others(run, tmp_path, monkeypatch):
    real = accelerator.judged

    def broken(job, *args):
        if job.method == "dia":
            raise RuntimeError("out of memory")
        return real(job, *args)

    monkeypatch.setattr(accelerator, "judged", broken)
    text = run("--steps", "2", "--jobs", "breastmnist-0-dia-32px-0", "breastmnist-0-csi-32px-0")
    assert "breastmnist-0-dia-32px-0: RuntimeError: out of memory" in text
    assert {r["job"] for r in lines(tmp_path / "out")} == {"breastmnist-0-csi-32px-0"}


def test_a_torn_bank_is_made_anew(run, tmp_path):
    job = ("--steps", "2", "--jobs", "breastmnist-0-dia-32px-0")
    run(*job, "--banks")
    bank = tmp_path / "out" / accelerator.jobs()[0].bank
    bank.write_bytes(bank.read_bytes()[:500])
    run(*job)
    assert {r["step"] for r in lines(tmp_path / "out")} == {1, 2}


def test_it_goes_on_from_its_checkpoint_and_reads_banks_from_beside_the_data(
    run, data, tmp_path, monkeypatch
):
    job = ("--steps", "6", "--jobs", "breastmnist-0-dia-32px-0")
    run(*job, "--banks", out="whole", work="whole-work")
    run(*job, out="whole", work="whole-work")
    (tmp_path / "whole" / accelerator.jobs()[0].bank).rename(data / accelerator.jobs()[0].bank)
    real, calls = accelerator.judged, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:  # the first judging only tells how long one takes
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(accelerator, "judged", killed)
    monkeypatch.setattr(accelerator, "make_dissolver", lambda *_, **__: pytest.fail("the bank is there"))
    run(*job)  # stopped after training to the first judging
    assert not (tmp_path / "out/results.jsonl").exists()
    run(*job)
    whole, stopped = (
        {(r["step"], r["score"]): r["auroc"] for r in lines(tmp_path / f)} for f in ("whole", "out")
    )
    assert stopped == whole


def test_where_the_minutes_are_too_few_the_schedule_is_cut_or_the_job_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "step_seconds", lambda *_: 100.0)
    job = ("--steps", "40", "--jobs", "breastmnist-0-csi-32px-0")
    assert "too short" in run(*job, "--minutes", "15")  # 9 of 40 steps would fit
    assert not (tmp_path / "out/results.jsonl").exists()
    run(*job, "--minutes", "20")  # 12, less what reading took
    (steps,) = {r["steps"] for r in lines(tmp_path / "out")}
    assert 10 <= steps <= 12
    assert {r["whole"] for r in lines(tmp_path / "out")} == {1000}


def test_what_came_back_is_entered_once(run, tmp_path):
    run("--steps", "3", "--jobs", "breastmnist-0-csi-32px-0")
    ledger = tmp_path / "ledger.jsonl"
    assert accelerator.enter(tmp_path / "out", ledger) == 2 * len(SCORES)
    assert accelerator.enter(tmp_path / "out", ledger) == 0
    assert len(ledger.read_text().splitlines()) == 2 * len(SCORES)


def test_an_unknown_job_is_named_with_those_there_are(run):
    with pytest.raises(SystemExit, match="no such job; there are: breastmnist-0-dia"):
        run("--jobs", "brest")


@pytest.mark.slow
def test_all_jobs_run_with_five_steps(run, tmp_path, monkeypatch):
    small = DissolverSettings(size=32, widths=(8, 16), steps=5, input_range="right")
    monkeypatch.setattr(
        accelerator,
        "dissolver_of",
        lambda job, a: DissolverSettings(**{**vars(small), "input_range": job.input_range}),
    )
    run("--steps", "5")
    assert {r["job"] for r in lines(tmp_path / "out")} == {job.name for job in accelerator.jobs()}
