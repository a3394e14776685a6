"""Findings from end to end: `dia score`, killed and resumed, an exported file, Python, the service."""

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from live_service import app_of
from PIL import Image
from scoring import interrupted, refused, score

import dia
from dia.cli.main import main
from dia.core.errors import DataError
from dia.data import phantoms
from dia.deploy.predictor import Inferencer
from dia.detectors import Detector

RATE = 0.2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of 32 px, and 20 images of 64 × 48 to score."""
    root = tmp_path_factory.mktemp("findings")
    normals = phantoms.load("train", size=32, n=120)
    model = dia.fit(normals, method="trivial:blur", false_alarm_rate=RATE)
    model.save(root / "run")
    test = phantoms.load("test", size=32, n=20)
    (root / "in").mkdir()
    for i, image in enumerate(test.images[..., 0]):
        Image.fromarray(image).resize((48, 64)).save(root / "in" / f"{i:02}.png")
    return root


def wanted(out: Path) -> list[object]:
    return ["--findings", out / "f.json", "--masks", out / "masks"]


def found_in(path: Path):
    found = json.loads(path.read_text())
    names = {i["id"]: i["file_name"] for i in found["images"]}
    return found, [(names[a["image_id"]], a) for a in found["annotations"]]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_stopped_and_resumed_writes_the_same(place, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    score(place / "run", place / "in", whole / "s.csv", *wanted(whole))
    interrupted(monkeypatch, place / "run", place / "in", part / "s.csv", *wanted(part), after=1)
    assert not (part / "f.json").exists()
    score(place / "run", place / "in", part / "s.csv", *wanted(part), "--resume")
    assert tree(part) == tree(whole)  # and no hidden file is left
    found, places = found_in(whole / "f.json")
    assert len(found["images"]) == 20 == len(list((whole / "masks").iterdir()))
    assert places
    assert all(a["p_value"] <= RATE for _, a in places)
    assert {(i["width"], i["height"]) for i in found["images"]} == {(48, 64)}
    for name, a in places:
        x, y, w, h = a["bbox"]
        mask = np.asarray(Image.open(whole / "masks" / f"{name}.findings.png")) > 0
        assert mask[y : y + h, x : x + w].sum() >= a["area"]


def test_what_was_begun_without_findings_is_not_resumed_with_them(place, tmp_path, monkeypatch, capsys):
    interrupted(monkeypatch, place / "run", place / "in", tmp_path / "s.csv", after=1)
    more = [*wanted(tmp_path), "--resume"]
    said = refused(capsys, place / "run", place / "in", tmp_path / "s.csv", *more)
    assert "--findings or --masks" in said


def test_too_few_normals_are_told_in_a_line_and_nothing_is_found(place, tmp_path, capsys):
    more = [*wanted(tmp_path), "--false-alarm-rate", "1%"]
    score(place / "run", place / "in", tmp_path / "s.csv", *more)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no findings")]
    assert len(lines) == 1
    found, places = found_in(tmp_path / "f.json")
    assert places == []
    assert found["info"]["level"] is None
    assert found["info"]["words"] == lines[0]


def test_refused_before_any_image_is_scored(place, tmp_path, capsys):
    run, scans, out = place / "run", place / "in", tmp_path / "s.csv"
    assert "must end in .json or .csv" in refused(capsys, run, scans, out, "--findings", tmp_path / "f.txt")
    assert "--masks" in refused(capsys, run, scans, out, "--masks", scans)


def test_python_and_the_service_find_the_same(place, tmp_path):
    score(place / "run", place / "in", tmp_path / "s.csv", *wanted(tmp_path))
    _, places = found_in(tmp_path / "f.json")
    expected = [(name, a["bbox"], a["area"], a["p_value"], a["lesion"]) for name, a in places]
    table = dia.load(place / "run").predict(place / "in", heatmaps=True)
    by_row = table.findings()
    assert [len(own) for own in by_row] == [sum(n == p for n, *_ in expected) for p in table.path]
    flat = [
        (p, [*f.box], f.area_px, round(f.p_value, 6))
        for p, own in zip(table.path, by_row, strict=True)
        for f in own
    ]
    assert flat == [e[:4] for e in expected]
    first = next(i for i, own in enumerate(by_row) if own)
    assert len(table[first : first + 1].findings()[0]) == len(by_row[first])
    with pytest.raises(DataError, match="no findings"):
        table.findings(0.001)
    with pytest.raises(DataError, match="heatmaps=True"):
        dia.load(place / "run").predict(place / "in").findings()
    files = [("files", (p.name, p.read_bytes())) for p in sorted((place / "in").iterdir())]
    with TestClient(app_of(Inferencer(place / "run")), base_url="http://127.0.0.1:7860") as client:
        answer = client.post("/score", files=files, data={"findings": "list"}).json()
        plain = client.post("/score", files=files).json()
        few = client.post("/score", files=files, data={"findings": "list", "false_alarm_rate": 0.001}).json()
    told = [
        (i["name"], f["box"], f["area_px"], f["p_value"], f["lesion"])
        for i in answer["images"]
        for f in i["findings"]
    ]
    assert told == expected
    assert answer["no_findings"] == ""
    assert all(i["heatmap"] is None for i in answer["images"])
    assert all(i["findings"] is None for i in plain["images"])
    assert all(i["findings"] == [] for i in few["images"])
    assert few["no_findings"].startswith("no findings: ")


def test_an_exported_file_finds_the_same(place, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(["export", str(place / "run"), "--out", str(tmp_path / "m.onnx")])
    for name, model in (("a", place / "run"), ("b", tmp_path / "m.onnx")):
        score(model, place / "in", tmp_path / name / "s.csv", *wanted(tmp_path / name))
    (_, of_run), (_, of_file) = (found_in(tmp_path / name / "f.json") for name in "ab")
    assert [n for n, _ in of_run] == [n for n, _ in of_file]
    for (_, a), (_, b) in zip(of_run, of_file, strict=True):
        assert b["score"] == pytest.approx(a["score"], rel=1e-3)
        assert b["area"] == pytest.approx(a["area"], rel=0.05, abs=2)
        assert b["centroid"] == pytest.approx(a["centroid"], abs=1)


def test_a_sites_normals_renew_the_level_and_the_first_comes_back(place, tmp_path):
    run, site = tmp_path / "run", tmp_path / "site"
    Detector.load(place / "run").save(run)
    site.mkdir()
    for i, image in enumerate(phantoms.load("train", size=32, n=220).images[120:, ..., 0]):
        Image.fromarray(255 - image // 2).save(site / f"{i:03}.png")  # of another scanner
    before = (run / "heatmaps.json").read_bytes()
    main(["calibrate", str(run), str(site), "--false-alarm-rate", "2%"])
    now = Detector.load(run)
    assert len(now.heat_.peaks) == 100
    maps = now.heatmap(np.stack([np.asarray(Image.open(p)) for p in sorted(site.iterdir())])[..., None])
    assert np.allclose(np.sort(now.heat_.peaks), np.sort(maps.max((1, 2))), rtol=1e-5)
    assert (maps.max((1, 2)) > now.heat_.level(0.02)).sum() <= 2
    main(["calibrate", str(run), str(site), "--false-alarm-rate", "5%"])
    main(["calibrate", str(run), "--original"])
    assert (run / "heatmaps.json").read_bytes() == before
    Detector.load(run)


def test_an_older_model_without_a_scale_gets_one_and_loses_it_again(place, tmp_path):
    run, site = tmp_path / "run", tmp_path / "site"
    detector = Detector.load(place / "run")
    detector.heat_ = None
    detector.save(run)
    site.mkdir()
    for i, image in enumerate(phantoms.load("train", size=32, n=150).images[120:, ..., 0]):
        Image.fromarray(image).save(site / f"{i:03}.png")
    main(["calibrate", str(run), str(site), "--false-alarm-rate", "10%"])
    assert len(Detector.load(run).heat_.peaks) == 30
    main(["calibrate", str(run), "--original"])
    assert not (run / "heatmaps.json").exists()
    assert Detector.load(run).heat_ is None
