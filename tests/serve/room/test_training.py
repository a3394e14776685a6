"""The routes that train, over HTTP: what a session may ask, and what nobody may."""

import io
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from quick_drop import QUICK, until
from training_room import NoModel, app_of

from dia.core.storage import owned
from dia.serve.room import training
from dia.serve.room.train.child import Child

EVIL = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The file that holds quick trainings up while it is there."""
    file = tmp_path / "gate"
    monkeypatch.setenv("QUICK_GATE", str(file))
    monkeypatch.setattr(Child, "command", QUICK)
    return file


@pytest.fixture
def current():
    return NoModel()


@pytest.fixture
def app(gate, tmp_path, current):
    return app_of(tmp_path / "runs", current=current)


@pytest.fixture
def client(app):
    with TestClient(app) as made:
        yield made


def png(seed=0):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def dropped(client, *names):
    drop = client.post("/room/drops").json()["drop"]
    files = [("files", (name, png(i), "image/png")) for i, name in enumerate(names)]
    assert client.post(f"/room/drops/{drop}/files", files=files).status_code == 200
    return drop


def checked(client, *names, **more):
    drop = dropped(client, *(names or [f"p{i % 2}/{i}.png" for i in range(6)]))
    assert client.post("/room/train/check", json={"drop": drop, **more}).status_code == 202
    return idle(client)


def idle(client):
    return until(lambda: (said := client.get("/room/train").json())["job"] is None and said)


def line(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def test_from_a_drop_to_a_served_model(client, current):
    said = client.get("/room/train").json()
    assert (said["job"], said["check"], said["runs"], said["model"]) == (None, None, [], False)
    assert [m["name"] for m in said["methods"]][:3] == ["dia+", "dia", "csi"]
    check = checked(client)["check"]
    assert (check["state"], check["usable"], check["images"], check["thumbs"]) == ("ready", True, 6, 1)
    assert check["findings"][0]["examples"] == [["p0/0.png", "p0/2.png"]]  # by the reader's own names
    assert client.get("/room/train/check/thumbs/0").headers["content-type"] == "image/jpeg"
    assert client.post("/room/train/start", json={"name": "first"}).status_code == 202
    (run,) = idle(client)["runs"]
    assert (run["name"], run["state"], run["normals"], run["kept"]) == ("first", "done", 6, True)
    assert run["threshold"] == pytest.approx(94 / 99)
    assert client.post("/room/train/serve", json={"run": "first"}).json() == {"number": 1}
    assert current.served.name == "first"
    assert client.get("/room/train").json()["runs"][0]["serving"]
    assert "in use" in line(client.delete("/room/train/runs/first"), 409)
    facts = client.get("/room/train/runs/first").json()
    assert sum(count for _, _, count in facts["histogram"]) == 99
    assert facts["curve"][-1] == [20, 0.05]


def test_two_starts_at_once_and_a_stop(client, app, gate):
    checked(client)
    gate.touch()
    assert client.post("/room/train/start", json={"name": "first"}).status_code == 202
    with TestClient(app, cookies={}) as other:
        drop = dropped(other, "a.png", "b.png")
        assert "under way" in line(other.post("/room/train/check", json={"drop": drop}), 409)
        assert other.get("/room/train").json()["job"]["run"] == "first"
        gate.unlink()
        until(lambda: other.get("/room/train").json()["job"] is None)
        assert other.post("/room/train/check", json={"drop": drop}).status_code == 202  # it was not taken
        idle(other)


def test_stopped_runs_are_shown_as_such_after_a_restart_and_go_on(client, gate, tmp_path):
    checked(client)
    gate.touch()
    client.post("/room/train/start", json={"name": "first"})
    until(lambda: owned(tmp_path / "runs" / "first"))
    assert client.post("/room/train/stop").status_code == 202
    (run,) = idle(client)["runs"]
    assert (run["state"], run["problem"]) == ("stopped", None)
    gate.unlink()
    with TestClient(app_of(tmp_path / "runs")) as again:
        assert again.get("/room/train").json()["runs"][0]["state"] == "stopped"
        assert again.post("/room/train/resume", json={"run": "first"}).status_code == 202
        assert idle(again)["runs"][0]["state"] == "done"


def test_the_end_of_the_server_stops_the_training_which_can_go_on(app, gate, tmp_path):
    with TestClient(app) as client:
        checked(client)
        gate.touch()
        client.post("/room/train/start", json={"name": "first"})
        until(lambda: owned(tmp_path / "runs" / "first"))
    assert not owned(tmp_path / "runs" / "first")
    assert json.loads((tmp_path / "runs" / "first.job.json").read_bytes())["state"] == "stopped"


def test_failures_are_told_with_their_reason(client, monkeypatch):
    monkeypatch.setenv("QUICK_FAILS", "1")
    checked(client)
    client.post("/room/train/start", json={"name": "first"})
    (run,) = idle(client)["runs"]
    assert (run["state"], "lower the learning rate" in run["problem"]) == ("failed", True)


def test_names_with_markup_stay_text_and_leave_no_trace(client, tmp_path):
    said = checked(client, EVIL, "a.png", "b.png")
    assert said["check"]["findings"][0]["examples"] == [[EVIL, "a.png"]]  # JSON: the page makes text of it
    client.post("/room/train/start", json={"name": "first"})
    idle(client)
    assert not [p for p in (tmp_path / "runs").rglob("*") if "onerror" in p.name]
    assert b"onerror" not in (tmp_path / "runs" / "first.job.json").read_bytes()


def test_folders_that_sound_like_anomalies_stay_out_until_they_are_chosen(client):
    names = [f"scans/normal/{i}.png" for i in range(4)] + [f"scans/tumour/{i}.png" for i in range(3)]
    check = checked(client, *names, "scans/normal/1_mask.png")["check"]
    assert check["images"] == 4  # neither the tumours nor the mask of a normal
    folders = {f["name"]: f for f in check["folders"]}
    assert {n: f["chosen"] for n, f in folders.items()} == {"scans/normal": True, "scans/tumour": False}
    both = [f["id"] for f in check["folders"]]
    client.post("/room/train/check", json={"folders": both})
    assert idle(client)["check"]["images"] == 7
    assert "at least one" in line(client.post("/room/train/check", json={"folders": []}), 422)
    assert "at least one" in line(client.post("/room/train/check", json={"folders": ["../x"]}), 422)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "x.normals", "", "<b>x</b>", "a" * 100])
def test_names_of_runs_are_refused_on_every_route(client, name):
    checked(client)
    line(client.post("/room/train/start", json={"name": name}), 422)
    for route in ("resume", "serve", "forget"):
        line(client.post(f"/room/train/{route}", json={"run": name}), 422)
    for method, route in (("GET", "runs"), ("DELETE", "runs"), ("GET", "report")):
        answer = client.request(method, f"/room/train/{route}/{name.replace('/', '%2F')}")
        assert answer.status_code in (404, 405, 422)
    for method in ("GET", "DELETE"):
        assert client.request(method, "/room/train/runs/absent").status_code == 404


def test_what_cannot_be_trained_on_is_refused_in_one_line(client):
    assert "checked first" in line(client.post("/room/train/start", json={"name": "x"}), 409)
    assert checked(client, "a.png")["check"]["usable"] is False
    assert "cannot be trained on" in line(client.post("/room/train/start", json={"name": "x"}), 409)
    assert "no such method" in line(client.post("/room/train/check", json={"method": "os.system"}), 422)
    assert "checked first" in line(client.post("/room/train/start", json={"name": "x", "drop": "other"}), 409)
    assert client.post("/room/train/check", json={"rate": 1.5}).status_code == 422
    assert client.post("/room/train/check", json={"path": "/etc/passwd"}).status_code == 422


def test_pictures_and_drops_are_of_one_session_alone(client, app):
    drop = dropped(client, "a.png", "b.png")
    checked(client)
    with TestClient(app) as other:
        line(other.get("/room/train/check/thumbs/0"), 404)
        line(other.post("/room/train/check", json={"drop": drop}), 404)
        assert other.get("/room/train").json()["check"] is None
        assert "checked first" in line(other.post("/room/train/start", json={"name": "x"}), 409)
    for number in (-1, 1, 10**9):
        line(client.get(f"/room/train/check/thumbs/{number}"), 404)


def test_what_was_dropped_goes_when_the_session_asks_no_more(app, client):
    checked(client)
    (session,) = [s for s in app.state.room.sessions._all.values() if s._held]
    folder = session._held[training.Checked].drop.folder
    assert folder.is_dir()
    app.state.room.sessions.end(session.key)
    until(lambda: not folder.exists())


def test_the_normals_can_be_deleted_and_so_can_all_of_a_run(client, tmp_path):
    checked(client)
    client.post("/room/train/start", json={"name": "first"})
    idle(client)
    assert client.post("/room/train/forget", json={"run": "first"}).status_code == 200
    (run,) = client.get("/room/train").json()["runs"]
    assert (run["kept"], run["state"]) == (False, "done")
    assert client.delete("/room/train/runs/first").status_code == 200
    assert [*(tmp_path / "runs").iterdir()] == []
    line(client.post("/room/train/resume", json={"run": "first"}), 404)


def test_a_report_is_a_file_to_save_and_no_page_of_the_service(client, tmp_path):
    checked(client)
    client.post("/room/train/start", json={"name": "first"})
    idle(client)
    line(client.get("/room/train/report/first"), 404)
    (tmp_path / "runs" / "first.report.html").write_text("<!doctype html><style>p{}</style>")
    answer = client.get("/room/train/report/first")
    assert answer.headers["content-disposition"] == 'attachment; filename="first-report.html"'


# --- sets below the data root -----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A data root with a set, and with links that lead out of it."""
    made, outside = tmp_path / "root", tmp_path / "secret"
    for folder in (made / "chest" / "normal", made / "linked", outside):
        folder.mkdir(parents=True)
    for i in range(6):
        (made / "chest" / "normal" / f"{i}.png").write_bytes(png(i))
        (outside / f"{i}.png").write_bytes(png(i))
    (made / "away").symlink_to(outside)
    (made / "linked" / "0.png").symlink_to(outside / "0.png")
    (made / "plain").mkdir()
    (made / ".hidden").mkdir()
    return made


def test_only_sets_below_the_data_root_are_offered_and_can_be_named(gate, root, tmp_path):
    with TestClient(app_of(tmp_path / "runs", data_root=root)) as client:
        offered = {one["name"] for one in client.get("/room/train").json()["sets"]}
        assert offered == {"phantom", "chest", "linked", "plain"}
        for name in (
            "away",
            "../secret",
            str(root / "chest"),
            "/etc/passwd",
            ".hidden",
            "chest/normal",
            "",
            ".",
        ):
            answer = client.post("/room/train/check", json={"data": name})
            assert str(tmp_path) not in line(answer, 422)


def test_a_set_with_a_link_out_of_the_root_is_refused(root, tmp_path):
    from dia.core.errors import DataError
    from dia.serve.room.train.normals import Source, place_of

    source = Source("set", "linked")
    with pytest.raises(DataError, match="outside the folder"):
        source.listing(place_of("linked", root), str(root), "train", 64)
    chest = Source("set", "chest").listing(place_of("chest", root), str(root), "train", 64)
    assert len(chest) == 6
    (root / "late").symlink_to(tmp_path / "secret")  # where the place is exchanged after it was offered
    with pytest.raises(DataError, match="outside the folder"):
        Source("set", "late").listing(str(root / "late"), str(root), "train", 64)


# --- the real process -------------------------------------------------------------------------------------


def test_the_real_process_checks_trains_and_names_no_place(tmp_path):
    from dia.data import phantoms

    with TestClient(app_of(tmp_path / "runs")) as client:
        drop = client.post("/room/drops").json()["drop"]
        files = []
        for i, image in enumerate(phantoms.load("train", size=32, n=24, seed=2).images[..., 0]):
            stream = io.BytesIO()
            Image.fromarray(image).resize((32 + 2 * (i % 2), 32)).save(stream, "PNG")
            files.append(("files", (f"Jane {i}.png", stream.getvalue(), "image/png")))
        files.append(("files", ("Jane again.png", files[0][1][1], "image/png")))
        files.append(("files", ("broken.png", b"\x89PNG\r\n\x1a\n and no more", "image/png")))
        client.post(f"/room/drops/{drop}/files", files=files)
        client.post("/room/train/check", json={"drop": drop})
        check = idle(client)["check"]
        said = {f["words"]: f for f in check["findings"]}
        assert (check["usable"], check["images"], check["thumbs"] >= 11) == (True, 25, True)
        assert check["size"] in ([32, 32], [32, 33])
        (copies,) = [f for words, f in said.items() if "exactly the pixels" in words]
        assert copies["examples"] == [["Jane 0.png", "Jane again.png"]]
        (bad,) = [f for words, f in said.items() if "could not be read" in words]
        assert bad["examples"] == [["broken.png", "no image, or damaged"]]
        assert not re.search(r"/tmp|\d{5}/", json.dumps(check))
        client.post("/room/train/start", json={"name": "first"})
        (run,) = idle(client)["runs"]
        # a copy counts once
        assert (run["state"], run["normals"], run["method"]) == ("done", 24, "dia+"), run
        for path in (tmp_path / "runs").rglob("*"):
            assert path.is_dir() or b"Jane" not in path.read_bytes()


def test_sigterm_leaves_a_training_of_the_real_process_that_goes_on(tmp_path):
    """The process itself, stopped in the middle of a training of a network."""
    import subprocess
    import sys

    plugin, root = tmp_path / "tiny.py", tmp_path / "sets"
    plugin.write_text(TINY)
    root.mkdir()
    np.savez(root / "few.npz", train_images=np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8))
    target = tmp_path / "runs" / "first"
    target.parent.mkdir()
    job = {
        "task": "fit", "source": {"kind": "set", "name": "few.npz", "normal": None, "leave_out": [],
                                  "patients": False, "size": None, "images": 0},
        "method": "tiny-csi", "rate": 0.05, "data_root": str(root), "target": str(target),
        "folder": str(tmp_path / "x"), "page": str(tmp_path / "page.html"),
    }  # fmt: skip

    def until_stopped():
        """Runs until three lines of the training have come; the steps that these told, and the last line."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dia.serve.room.train.work"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"DIA_PLUGINS": str(plugin)},
        )  # fmt: skip
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        steps = []
        for told in map(json.loads, process.stdout):
            if told.get("stage", "").startswith("Training") and told["done"]:
                steps.append(told["done"])
                if len(steps) == 3:
                    process.send_signal(signal.SIGTERM)
                    break
        rest = process.stdout.read().splitlines()
        process.stdin.close()
        assert process.wait() == 0
        return steps, json.loads(rest[-1])

    first, last = until_stopped()
    assert last == {"stopped": True}
    assert list(Path(target.parent, ".first.work").glob("*/last.ckpt"))
    assert not target.exists()
    second, last = until_stopped()
    assert second[0] > first[-1]  # it did not begin anew
    assert last == {"stopped": True}


TINY = """
from dataclasses import dataclass
from dia.detectors import CSI, register
from dia.detectors.presets import settings as preset_settings
from dia.core.settings import replaced

SMALL = {"amplify.size": 32, "amplify.width": 8, "amplify.steps": 5000, "amplify.batch": 8}

@dataclass(frozen=True)
class Settings(CSI.Settings):
    @classmethod
    def preset(cls, name):
        made = replaced(preset_settings(CSI.Settings, "cpu"), SMALL)
        return cls(**{f: getattr(made, f) for f in made.__dataclass_fields__})

@register("tiny-csi")
class Tiny(CSI):
    Settings = Settings
"""
