"""Models on the hub: what is pushed, what comes back, what must stay here. The hub is ours, on loopback."""

import base64
import json
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from conftest import smooth_images
from huggingface_hub import constants
from PIL import Image

from dia.amplify.contrast import AmplifySettings
from dia.api.model import fit, load
from dia.cli.main import main
from dia.core.errors import DataError
from dia.data.options import KEPT
from dia.deploy.hub import from_pretrained, public, push_to_hub, save_pretrained
from dia.detectors import CSI, DIA, Detector
from dia.detectors.baselines.images import Brightness, Pixels, Statistics
from dia.detectors.dia import CSISettings, DIASettings
from dia.detectors.peers.msc import MSC, MSCSettings
from dia.dissolve import DissolverSettings

COMMIT = "a" * 40
TINY = AmplifySettings(size=16, width=4, steps=2, batch=4)
SECRET = "mueller_hans_1951"  # as folders of patients are called


@pytest.fixture(scope="module")
def images(request):
    return request.getfixturevalue("make_images")(40, 16)


@pytest.fixture(scope="module")
def dia(images, tmp_path_factory):
    """A tiny dia whose dissolver was read from a folder, with facts as `dia fit` leaves them."""
    where = tmp_path_factory.mktemp(SECRET)
    d = DissolverSettings(size=16, patch=2, widths=(8, 16), steps=2, batch=4)
    settings = DIASettings(d, TINY, ts=(30,), samples=1)
    detector = DIA(settings, seed=3, device="cpu")
    detector.facts_ = {
        "dataset": str(where / "scans"),
        "preset": "cpu",
        "train_sha256": "0" * 64,
        "versions": {"torch": "2"},
        "commit": "abc",
        "read": {"split": "train", "normal": SECRET, "data_root": str(where), "contamination": 0.0},
        "note": SECRET,
    }
    detector.fit(images, workdir=where / "work")
    detector.save(where / "model")
    return Detector.load(where / "model", device="cpu")  # diffusers now knows where it lay


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as creating, committing and fetching one model takes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, what, status=200, **headers):
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.asked.append((path, self.headers.get("Authorization")))
        if path == "/api/repos/create":
            hub.created = json.loads(text)
            self.answer({"url": f"{hub.url}/user/name"})
        elif "/preupload/" in path:
            files = json.loads(text)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": f["path"], **regular} for f in files]})
        elif "/commit/" in path:
            for line in map(json.loads, text.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del hub.files[line["value"]["path"]]
            self.answer({"commitOid": COMMIT, "commitUrl": f"{hub.url}/user/name/commit/{COMMIT}"})
        else:  # validate-yaml
            hub.head = json.loads(text)
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.asked.append((path, self.headers.get("Authorization")))
        found = re.fullmatch(r"/user/name/resolve/([^/]+)/(.+)", path)
        if found and found[2] in hub.files:
            self.answer(hub.files[found[2]], X_Repo_Commit=COMMIT, ETag=f'"{abs(hash(found[2])):x}"')
        elif path.startswith("/api/models/user/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040x}"}
                for i, (name, content) in enumerate(hub.files.items())
            ]
            self.answer(entries)
        elif path.startswith("/api/models/user/name/"):
            siblings = [{"rfilename": name} for name in hub.files]
            self.answer({"id": "user/name", "sha": COMMIT, "siblings": siblings})
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.asked, server.created, server.head = {}, [], None, None
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- a folder -----------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(dia, images, tmp_path):
    save_pretrained(dia, tmp_path / "saved")
    for cls in (Detector, DIA):
        back = from_pretrained(tmp_path / "saved", device="cpu", cls=cls)
        assert type(back) is DIA
        assert np.array_equal(back.score(images), dia.score(images))
        assert np.array_equal(back.calibration_.scores, dia.calibration_.scores)
        assert back.settings_hash() == dia.settings_hash()
        assert back.get_params() == dia.get_params()
    assert set(files_of(tmp_path / "saved")) == {
        "README.md",
        "calibration.json",
        "checksums.json",
        "drift.json",
        "digests.safetensors",
        "config.json",
        "weights.safetensors",
        "dissolver/dissolver.json",
        "dissolver/model_index.json",
        "dissolver/scheduler/scheduler_config.json",
        "dissolver/unet/config.json",
        "dissolver/unet/diffusion_pytorch_model.safetensors",
    }


def test_a_folder_of_dia_fit_will_do(dia, images, tmp_path):
    folder = dia.save(tmp_path / "model")
    assert np.array_equal(
        from_pretrained(str(folder), device="cpu", cls=DIA).score(images), dia.score(images)
    )


def test_no_path_and_no_name_of_the_data_is_saved(dia, tmp_path):
    kept = dia.save(tmp_path / "kept")
    text = "".join(p.read_text() for p in kept.rglob("*.json"))
    assert SECRET in text  # what `save` keeps for this machine, and diffusers adds
    save_pretrained(dia, tmp_path / "public")
    for name, content in files_of(tmp_path / "public").items():
        assert SECRET.encode() not in content, name
        assert not re.search(rb"/(tmp|home|root|Users|var)/", content), name
    facts = json.loads((tmp_path / "public" / "config.json").read_text())["facts"]
    assert set(facts) == {"preset", "train_sha256", "versions", "commit", "read"}
    assert facts["read"] == {"levels": "full"}
    assert dia.facts_["note"] == SECRET  # the detector itself is as it was


def test_a_published_model_reads_images_as_its_training_images_were(tmp_path):
    (folder := tmp_path / SECRET).mkdir()
    for i, x in enumerate(smooth_images(30, 16, 16)[..., 0]):  # of 16 bits, a narrow part of their range
        Image.fromarray(x.astype(np.uint16) * 9 + 5000).save(folder / f"{i:02}.png")
    kept = fit(folder, method="trivial:blur", device="cpu").save(tmp_path / "kept")
    save_pretrained(Detector.load(kept, device="cpu"), tmp_path / "public")
    here, there = (load(run, device="cpu") for run in (kept, tmp_path / "public"))
    levels = here.detector.facts_["read"]["levels"]
    assert levels != "full"
    assert there.detector.facts_["read"] == {**dict.fromkeys(KEPT), "levels": levels}
    assert [r.score for r in there.predict(folder)] == [r.score for r in here.predict(folder)]
    told = public({"facts": {"range": [0.0, 9.0], "read": {"channel": 0, "normal": SECRET}}})
    assert told == {"facts": {"range": [0.0, 9.0], "read": {"channel": 0, "levels": "earlier"}}}


def test_weights_from_files_are_told_by_what_they_are(tmp_path):
    file = tmp_path / SECRET
    file.write_bytes(b"weights")
    settings = {"weights": str(file), "options": {"cfg": str(file), "backbone": "timm/resnet18"}}
    made = public({"settings": settings, "pretrained": "runs/mine", "none": None, "list": [str(file), 1]})
    assert made["settings"]["weights"].startswith("sha256:")
    assert made["settings"]["options"] == {"cfg": "a local file", "backbone": "timm/resnet18"}
    assert made["pretrained"] == made["list"][0] == "a local file"
    assert made["list"][1] == 1
    for known in ("none", "imagenet"):
        assert public({"weights": known}) == {"weights": known}
    assert public({"weights": "gone/away.pth"}) == {"weights": "a local file"}
    assert public({"weights": "dia:gone/away"}) == {"weights": "a local file"}


def test_a_model_from_weights_that_are_elsewhere_can_be_loaded_and_saved_again(images, tmp_path):
    pytest.importorskip("timm")
    CSI(CSISettings(TINY, samples=1), device="cpu").fit(images).save(tmp_path / SECRET)
    settings = MSCSettings(size=16, weights=f"dia:{tmp_path / SECRET}", epochs=1, batch=8)
    fitted = MSC(settings, device="cpu").fit(images)
    known = fitted.settings_hash()
    save_pretrained(fitted, tmp_path / "public")
    (tmp_path / SECRET).rename(tmp_path / "moved")
    back = from_pretrained(tmp_path / "public", device="cpu", cls=MSC)
    assert SECRET not in repr(back.settings)
    assert np.array_equal(back.score(images), fitted.score(images))
    assert back.settings_hash() == known
    save_pretrained(back, tmp_path / "again")
    assert np.array_equal(
        Detector.load(back.save(tmp_path / "kept"), device="cpu").score(images), back.score(images)
    )
    assert files_of(tmp_path / "again")["config.json"] == files_of(tmp_path / "public")["config.json"]


def test_what_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(DataError, match="not fitted"):
        save_pretrained(Brightness(), tmp_path / "model")


# --- the card -----------------------------------------------------------------------------------------


def test_the_card(images, tmp_path):
    detector = Statistics().fit(images)
    save_pretrained(detector, tmp_path, results={"auroc": 0.91234, "auroc_ci": [0.8, 0.95]})
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "dia-anomaly",
        "pipeline_tag": "image-classification",
        "tags": ["anomaly-detection", "one-class", "medical-imaging", "trivial-statistics"],
    }
    for told in (
        "not a medical device",
        f"fitted on {detector.n_train_} normal images of 16×16×1, calibrated on",
        f"| settings hash | `{detector.settings_hash()}` |",
        "| auroc | 0.9123 |",
        "| auroc_ci | 0.8 – 0.95 |",
    ):
        assert told in text, told
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("USER/NAME", str(tmp_path))
    names = {"images": images}
    exec(code, names)
    assert np.array_equal(names["scores"], detector.score(images))
    assert names["flagged"].shape == names["p_values"].shape == (40,)


def test_a_card_says_no_more_than_it_was_given(images, tmp_path):
    folder = save_pretrained(Statistics().fit(images), tmp_path, license="cc-by-4.0", data="phantoms")
    card = (folder / "README.md").read_text()
    assert "\nlicense: cc-by-4.0\n" in card
    assert "| training images | phantoms |" in card
    assert "auroc" not in card


# --- what cannot be loaded ----------------------------------------------------------------------------


def test_models_of_another_method(dia, images, tmp_path):
    save_pretrained(CSI(CSISettings(TINY, samples=1), device="cpu").fit(images), tmp_path / "csi")
    save_pretrained(dia, tmp_path / "dia")
    for cls, name in ((DIA, "csi"), (CSI, "dia"), (Pixels, "dia")):
        with pytest.raises(DataError, match=f"holds {name}, not {cls.method}; leave cls out"):
            from_pretrained(tmp_path / name, device="cpu", cls=cls)


@pytest.mark.parametrize("config", [None, "{", "[]", '{"format": 99}', "{}"])
def test_folders_that_are_no_model(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError) as error:
        from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["user/not-there", "a/b/c", "no such name!"])
def test_names_that_the_hub_does_not_know(name, hub, tmp_path):
    with pytest.raises(DataError, match="neither a model folder nor to be had from the hub") as error:
        from_pretrained(name, cache_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_without_a_hub_it_asks_none(hub, tmp_path):
    with pytest.raises(DataError, match="user/name: neither"):
        from_pretrained("user/name", cache_dir=tmp_path, local_files_only=True)
    assert not hub.asked


# --- push and fetch -----------------------------------------------------------------------------------


def test_pushed_and_fetched(dia, images, hub, tmp_path):
    card = {"license": "cc-by-4.0"}
    url = push_to_hub(dia, "user/name", private=True, token="hf_x", **card)
    assert str(url) == f"{hub.url}/user/name/commit/{COMMIT}"
    assert hub.created["visibility"] == "private"
    assert "license: cc-by-4.0" in hub.head["content"]
    assert all(token == "Bearer hf_x" for path, token in hub.asked if "/commit/" in path)
    save_pretrained(dia, tmp_path / "saved", **card)
    assert hub.files == files_of(tmp_path / "saved")

    hub.files["pytorch_model.bin"] = hub.files["custom.py"] = b"raise SystemExit"
    hub.asked.clear()
    back = from_pretrained(
        "user/name", device="cpu", cache_dir=tmp_path / "cache", revision="v1", token="hf_y", cls=DIA
    )
    assert np.array_equal(back.score(images), dia.score(images))
    fetched = {Path(path).suffix for path, _ in hub.asked if "/resolve/" in path}
    assert fetched == {".json", ".safetensors"}
    asked = [path.split("/resolve/")[1].split("/")[0] for path, _ in hub.asked if "/resolve/" in path]
    assert set(asked) <= {"v1", COMMIT}
    assert {token for _, token in hub.asked} == {"Bearer hf_y"}

    hub.asked.clear()
    again = from_pretrained(
        "user/name", device="cpu", cache_dir=tmp_path / "cache", revision="v1", local_files_only=True
    )
    assert np.array_equal(again.score(images), dia.score(images))
    assert not hub.asked


def test_what_another_model_left_there_is_no_part_of_the_one_pushed_next(images, hub, tmp_path):
    first = Pixels().fit(images)
    first.original_ = {"calibration.fitted.json": b"{}", "heatmaps.fitted.json": b"null"}
    push_to_hub(first, "user/name")
    assert {"calibration.fitted.json", "heatmaps.fitted.json"} <= set(hub.files)
    hub.files["own.json"] = b"{}"
    push_to_hub(second := Brightness().fit(images), "user/name")
    save_pretrained(second, tmp_path / "saved")
    assert hub.files == files_of(tmp_path / "saved") | {"own.json": b"{}"}
    back = from_pretrained("user/name", device="cpu", cache_dir=tmp_path / "cache")
    assert np.array_equal(back.score(images), second.score(images))


def test_the_command(dia, images, hub, tmp_path, capsys):
    run = dia.save(tmp_path / "run")
    (tmp_path / "results.json").write_text('{"dataset": "/scans/mueller", "auroc": 0.75}')
    push = partial(
        main, ["push", str(run), "user/name", "--license", "mit", "--results", str(tmp_path / "results.json")]
    )
    push()
    assert f"{hub.url}/user/name" in capsys.readouterr().out
    assert hub.created["visibility"] == "private"  # unless it is asked otherwise
    card = hub.files["README.md"].decode()
    assert "license: mit" in card
    assert "| auroc | 0.75 |" in card
    assert "mueller" not in card
    before, shown = dict(hub.files), tmp_path / "shown"
    push_here = ["push", str(run), "user/name", "--license", "mit", "--out", str(shown)]
    main([*push_here, "--results", str(tmp_path / "results.json")])
    assert files_of(shown) == hub.files == before
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["push", str(run), "user/name", "--results", str(tmp_path / "none.json")])
    assert "none.json" in capsys.readouterr().err
