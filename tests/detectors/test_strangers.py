"""Model folders from strangers: what is malicious is refused in one line, before it costs anything."""

import json
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import smooth_images
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

import dia
from dia.amplify.contrast import AmplifySettings
from dia.cli.main import main
from dia.core import modelfiles
from dia.core.allocation import SPARE, AllocationLimit, Enough, WorkLimit
from dia.core.errors import DataError
from dia.core.modelfiles import SUMS, ModelFiles, write_sums
from dia.core.settings import fits, from_dict, replaced
from dia.data.imageset import ImageSet
from dia.deploy.onnx_model import OnnxModel
from dia.deploy.predictor import Inferencer
from dia.deploy.scoring import hash_of, load_model
from dia.detectors import DIA, METHODS, TRIVIAL, Detector
from dia.detectors.baselines.images import Brightness, Hog
from dia.detectors.calibration import Prediction
from dia.detectors.dia import DIASettings
from dia.detectors.diaplus import DIAPlusSettings
from dia.detectors.saving import check_settings
from dia.dissolve import DissolverSettings, load_dissolver, pretrained
from dia.report.gather import training_normals

UNET = "dissolver/unet/diffusion_pytorch_model.safetensors"
SOUND = {  # what an exported file says of itself
    "format": "1", "method": '"x"', "shape": "[8, 8, 1]", "false_alarm_rate": "0.1",
    "held_out_normal_scores": "[1, 2]",
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(request, tmp_path_factory):
    """A tiny dia, which has every kind of file there is."""
    images = request.getfixturevalue("make_images")(40, 16)
    where = tmp_path_factory.mktemp("fitted")
    dissolver = DissolverSettings(size=16, patch=2, widths=(8, 16), steps=2, batch=4)
    amplify = AmplifySettings(size=16, width=4, steps=2, batch=4)
    detector = DIA(DIASettings(dissolver, amplify, ts=(30,), samples=1), seed=3, device="cpu")
    detector.fit(images, workdir=where / "work").save(where / "model")
    return where / "model"


@pytest.fixture
def folder(fitted, tmp_path):
    return Path(shutil.copytree(fitted, tmp_path / "model"))


_watched: list[tuple[str, list[str]]] = []
_hooked: list[bool] = []


def _hook(event, args):
    """Notes what is opened or listed below a place; an audit hook stays for the life of the process."""
    if _watched and args and event in ("open", "os.listdir", "os.scandir", "os.chdir"):
        place, opened = _watched[-1]
        named = isinstance(args[0], str | bytes | os.PathLike)
        if named and os.path.abspath(os.fsdecode(args[0])).startswith(place):
            opened.append(f"{event} {args[0]!r}")


@pytest.fixture
def watched_places():
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)

    @contextmanager
    def watched(place):
        opened = []
        _watched.append((str(place), opened))
        try:
            yield opened
        finally:
            _watched.pop()

    return watched


def edit(folder, name, change, sums=True):
    """As an attacker does it: with checksums made anew."""
    file = folder / name
    content = json.loads(file.read_text())
    content = change(content) or content
    file.write_text(json.dumps(content))
    if sums:
        write_sums(folder)


def refused(folder, *words):
    with pytest.raises(DataError) as error:
        Detector.load(folder, device="cpu")
    line = str(error.value)
    assert "\n" not in line
    assert str(folder) in line
    for word in words:
        assert word in line
    return line


class Bomb:
    """Code in a pickle."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


# --- checksums ----------------------------------------------------------------------------------------


def test_every_file_that_is_read_has_its_checksum(folder):
    sums = json.loads((folder / SUMS).read_text())["sha256"]
    read = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in modelfiles.READ}
    assert set(sums) == read - {SUMS}
    assert UNET in sums
    Detector.load(folder, device="cpu")


@pytest.mark.parametrize("name", [
    "config.json", "calibration.json", "weights.safetensors", UNET, "dissolver/dissolver.json",
    "dissolver/model_index.json", "dissolver/unet/config.json", "dissolver/scheduler/scheduler_config.json",
])  # fmt: skip
def test_one_byte_that_changed_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, name, "not the file that was saved")


def test_a_file_that_is_not_in_the_checksums_is_not_read(folder):
    edit(folder, SUMS, lambda sums: sums["sha256"].pop("calibration.json") and None, sums=False)
    refused(folder, "calibration.json", "not the file that was saved")


def test_folders_from_before_there_were_checksums_are_read_and_said_to_be_so(fitted, folder, make_images):
    (folder / SUMS).unlink()
    with pytest.warns(UserWarning, match="saved before checksums were"):
        old = Detector.load(folder, device="cpu")
    x = make_images(3, 16)
    assert np.array_equal(old.score(x), Detector.load(fitted, device="cpu").score(x))
    assert (old.save(folder) / SUMS).exists()


def test_other_files_are_passed_over(folder, tmp_path):
    for name in ("pytorch_model.bin", "dissolver/unet/diffusion_pytorch_model.bin", "evil.py", "None.py"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    os.mkfifo(folder / "pipe.json")  # to read it would be to wait for ever
    Detector.load(folder, device="cpu")
    assert len(hash_of(folder)) == 16
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("sums", ["[]", "{}", '{"sha256": []}', '{"sha256": {"config.json": 3}}', "{"])
def test_malformed_checksums(folder, sums):
    (folder / SUMS).write_text(sums)
    refused(folder)


# --- code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", UNET])
@pytest.mark.parametrize("write", [lambda o, f: f.write_bytes(pickle.dumps(o)), torch.save])
def test_a_pickle_in_the_place_of_weights_is_not_opened(folder, tmp_path, name, write):
    write(Bomb(tmp_path / "ran"), folder / name)
    write_sums(folder)
    refused(folder, "safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_a_missing_safetensors_file_is_not_opened(folder, tmp_path):
    (folder / UNET).unlink()
    torch.save(Bomb(tmp_path / "ran"), (folder / UNET).with_suffix(".bin"))
    write_sums(folder)
    refused(folder, "diffusion_pytorch_model.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index | {"_class_name": ["evil", "Evil"]},
        lambda index: index | {"unet": ["evil", "Evil"]},
        lambda index: index | {"unet": ["os", "system"]},
        lambda index: index | {"unet": ["diffusers", "DiffusionPipeline"]},
        lambda index: index | {"scheduler": ["diffusers.utils", "logging"]},
        lambda index: index | {"scheduler": ["diffusers", "UNet2DModel"]},
        lambda index: index | {"unet": None},
        lambda index: index | {"more": ["evil", "Evil"]},
    ],
)
def test_an_index_that_names_code_runs_none(folder, tmp_path, change):
    for module in ("evil", "None", "pipeline"):
        for place in ("dissolver", "dissolver/unet", "dissolver/scheduler"):
            (folder / place / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nEvil = 1")
    edit(folder, "dissolver/model_index.json", change)
    index = json.loads((folder / "dissolver/model_index.json").read_text())
    if "more" in index or isinstance(index["_class_name"], list):
        Detector.load(folder, device="cpu")  # which is not looked at
    else:
        with pytest.raises(DataError, match="not one of diffusers' own"):
            Detector.load(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_networks_of_hubs_and_folders_are_not_asked_for():
    pytest.importorskip("timm")
    from dia.features.networks import backbone

    for name in ("hf-hub:user/model", "local-dir:/etc", "../resnet18", ""):
        with pytest.raises(DataError, match="not the name of a network"):
            backbone(name, "none")


# --- places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", UNET, "dissolver/dissolver.json"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside the folder"):
        Detector.load(folder, device="cpu")


def test_a_link_to_another_folder_is_refused(folder, tmp_path):
    shutil.move(folder / "dissolver/unet", tmp_path / "unet")
    (folder / "dissolver/unet").symlink_to(tmp_path / "unet")
    with pytest.raises(DataError, match="outside the folder"):
        Detector.load(folder, device="cpu")


def test_links_within_the_folder_and_of_the_hub_s_cache_are_followed(folder, tmp_path):
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    write_sums(folder)
    Detector.load(folder, device="cpu")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    (snapshot / "weights.safetensors").rename(blobs / "0")
    (snapshot / "weights.safetensors").symlink_to("../../blobs/0")
    Detector.load(snapshot, device="cpu")
    blobs.rename(tmp_path / "away")  # and no further, if `blobs` is itself a link
    blobs.symlink_to(tmp_path / "away")
    with pytest.raises(DataError, match="outside the folder"):
        Detector.load(snapshot, device="cpu")


def test_pipes_and_devices_are_not_waited_for(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "no plain file")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    refused(folder, "outside the folder")


def test_shards_are_not_followed(folder):
    weight_map = {"weight_map": {"conv_in.weight": "../../../../etc/passwd"}, "metadata": {"total_size": 1}}
    (folder / f"{UNET}.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(DataError, match="several files"):
        Detector.load(folder, device="cpu")


# --- sizes --------------------------------------------------------------------------------------------


def st_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HUGE = {"bank": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, st_file(b"{"), st_file({}, length=2**62), st_file({}, length=2**24 + 1),
        st_file(HUGE),
        st_file({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(15)),
        st_file({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}}, bytes(15)),
        st_file({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 16]}}, bytes(16)),
        st_file({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, bytes(16)),
        st_file({"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        st_file({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                 "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}, bytes(6)),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused_before_anything_is_allocated(folder, content):
    (folder / "weights.safetensors").write_bytes(content)
    write_sums(folder)
    tracemalloc.start()
    with pytest.raises(DataError):
        Detector.load(folder, device="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["weights.safetensors", UNET, "config.json", "calibration.json"])
def test_a_file_cut_short(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    write_sums(folder)
    refused(folder)


def test_tensors_of_other_names_or_shapes_than_the_settings_ask_for(folder):
    file = folder / "weights.safetensors"
    tensors = load_file(file)
    whole = dict(tensors)
    name = min(n for n in tensors if n.startswith("encoder.") and n.endswith(".weight"))
    for wrong in (
        {n: v for n, v in whole.items() if n != name},
        whole | {"encoder.__class__": np.zeros(1, np.float32)},
        whole | {name: np.zeros((3, 3), np.float32)},
        {n: v for n, v in whole.items() if n != "bank"},
        whole | {"bank": whole["bank"][..., :1]},
        {"../../etc/passwd": np.zeros(1, np.float32)},
    ):
        save_file({n: np.ascontiguousarray(v) for n, v in wrong.items()}, file)
        write_sums(folder)
        refused(folder)


def test_sparse_weights_and_long_json_are_refused_by_their_size(folder, monkeypatch):
    with (folder / "weights.safetensors").open("r+b") as file:
        file.truncate(modelfiles.MAX_WEIGHTS + 1)  # takes no room on the disk
    refused(folder, "limit of 8 GiB")
    monkeypatch.setattr(modelfiles, "MAX_JSON", 1000)
    with pytest.raises(DataError, match="larger than"):
        _light(folder).json("config.json")


def _light(folder):
    """Its files without the heavy one."""
    (folder / "weights.safetensors").unlink()
    (folder / SUMS).unlink()
    return ModelFiles(folder)


def nested(path, value):
    def change(config):
        at = config
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("shape",), [2**20, 2**20, 3], "shape"), (("shape",), [16, 16, 2], "shape"),
        (("shape",), None, "shape"),
        (("seed",), -1, "seed"), (("seed",), 2**70, "seed"), (("seed",), True, "seed"),
        (("holdout",), 0, "holdout"), (("false_alarm_rate",), "0.1", "false_alarm_rate"),
        (("format",), 10**4000, "format"), (("format",), [], "format"), (("method",), 7, "method"),
        (("method",), "os.system", "not known"), (("facts",), [], "facts"), (("settings",), [], "settings"),
        (("settings", "amplify", "width"), 10**7, "its weights cannot fill"),
        (("settings", "amplify", "width"), "wide", "width"), (("settings", "amplify", "width"), 4.0, "width"),
        (("settings", "amplify", "projection"), 2**40, ""), (("settings", "samples"), 10**9, "samples"),
        (("settings", "amplify", "size"), 10**6, "size"), (("settings", "ts"), [[30]], "ts"),
        (("settings", "unknown"), 1, "no setting unknown"), (("settings", "__class__"), 1, "no setting"),
        (("settings", "dissolver", "kind"), "pickle", "kind"), (("settings", "dissolver"), {}, ""),
    ],
)  # fmt: skip
def test_absurd_configurations(folder, path, value, word):
    edit(folder, "config.json", nested(path, value))
    if (path, value) == (("settings", "dissolver"), {}):
        Detector.load(folder, device="cpu")  # all its settings at their defaults, which can be
    else:
        refused(folder, word)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", "NaN", '{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', "[" * 10**5,
     '{"a": ' + "1" * 5000 + "}",
     '{"a": "\ud800"}', "\x00", '{"held_out_normal_scores": []}', '{"held_out_normal_scores": [[1], [2]]}',
     '{"held_out_normal_scores": [1, "2"]}', '{"held_out_normal_scores": [1, 1' + "0" * 400 + "]}"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "calibration.json"])
def test_json_that_is_no_configuration(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    write_sums(folder)
    refused(folder)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("unet/config.json", ("block_out_channels",), [2**20, 2**20]),
        ("unet/config.json", ("layers_per_block",), 10**9),
        ("unet/config.json", ("norm_num_groups",), 0),
        ("unet/config.json", ("down_block_types",), ["evil.Block", "os.system"]),
        ("unet/config.json", ("quantization_config",), {"quant_method": "bitsandbytes"}),
        ("unet/config.json", ("sample_size",), 2**30),
        ("scheduler/scheduler_config.json", ("num_train_timesteps",), 10**12),
        ("scheduler/scheduler_config.json", ("num_train_timesteps",), -5),
        ("scheduler/scheduler_config.json", ("beta_schedule",), "evil"),
        ("dissolver.json", ("settings",), None),
        ("dissolver.json", ("settings", "widths"), "8,16"),
        ("dissolver.json", ("seed",), "x"),
    ],
)
def test_absurd_dissolvers(folder, name, path, value):
    edit(folder, f"dissolver/{name}", nested(path, value))
    refused(folder)
    with pytest.raises(DataError):  # alone, as `dia dissolve` takes one
        load_dissolver(folder / "dissolver", device="cpu")


def test_a_schedule_may_be_long_but_not_endless(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "_MOST_STEPS", 999)
    refused(folder, "num_train_timesteps")


# --- what a folder says of itself ---------------------------------------------------------------------


def test_no_fact_is_a_place_that_is_opened(folder, tmp_path, make_images, watched_places):
    """Not by the service, nor by what evaluates or reports; the caller's own places and known sets are."""
    here = tmp_path / "private"
    (here / "train" / "good").mkdir(parents=True)
    for i, image in enumerate(make_images(22, 16)):
        Image.fromarray(image[..., 0]).save(here / "train" / "good" / f"{i}.png")
    read = {"split": "train", "normal": None, "data_root": str(here), "contamination": 0.0}

    def says(dataset):
        edit(folder, "config.json", nested(("facts",), {"dataset": dataset, "read": read}))
        return Detector.load(folder, device="cpu")

    for dataset in (str(here), os.path.relpath(here), "/", f"{here}/train/good/0.png"):
        with watched_places(here) as opened:
            detector = says(dataset)
            inferencer = Inferencer(folder, device="cpu")
            assert inferencer.nearest(make_images(1, 16)) is None
            assert "--normals" in inferencer.why_no_normals
            assert training_normals(detector, None) is None
            assert training_normals(detector, None, judged=str(tmp_path)) is None
        assert opened == []
    detector = says(str(here))
    assert len(training_normals(detector, None, judged=str(here))) == 22
    assert len(training_normals(detector, None, str(here))) == 22
    assert Inferencer(folder, device="cpu", normals=str(here)).nearest(make_images(1, 16)) is not None
    assert len(training_normals(says("phantom"), None)) > 22  # a known set, which is generated


def test_the_place_of_ones_own_model_is_opened_and_no_other_with_its_seal(
    tmp_path, make_images, watched_places
):
    for name in ("mine", "private"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(make_images(22, 16)):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i}.png")
    run = tmp_path / "run"
    main(["fit", str(tmp_path / "mine"), "--method", "trivial:pixels", "--out", str(run), "--json"])
    assert len(training_normals(Detector.load(run, device="cpu"), None)) == 22
    assert Inferencer(run, device="cpu").nearest(make_images(1, 16)) is not None
    edit(run, "config.json", nested(("facts", "dataset"), str(tmp_path / "private")))
    with watched_places(tmp_path / "private") as opened:
        assert training_normals(Detector.load(run, device="cpu"), None) is None
    assert opened == []


def test_a_folder_here_that_is_named_as_a_known_set_is_not_read_for_it(folder, tmp_path, monkeypatch):
    (tmp_path / "breastmnist").mkdir()
    monkeypatch.chdir(tmp_path)
    edit(folder, "config.json", nested(("facts",), {"dataset": "breastmnist", "read": {"split": "train"}}))
    assert training_normals(Detector.load(folder, device="cpu"), None) is None


def test_weights_named_by_a_folder_are_not_looked_at_when_it_is_saved_again(folder, tmp_path, watched_places):
    edit(folder, "config.json", nested(("settings_hash",), None))
    with watched_places(tmp_path / "private.pth") as opened:
        detector = Detector.load(folder, device="cpu")
        detector.weights_source = lambda: (tmp_path / "private.pth").read_text()
        detector.save(tmp_path / "again")
    assert opened == []


@pytest.mark.parametrize(("path", "value"), [
    (("facts", "dataset"), ["/"]), (("facts", "read"), []), (("facts", "read"), {"window": {}}),
    (("facts", "versions"), "2"), (("facts", "range"), ["0", "1"]), (("facts", "calibrated"), [1]),
    (("facts", "more"), [[[[[[]]]]]]), (("facts", "more"), 2**80),
])  # fmt: skip
def test_facts_of_another_type_are_one_line_in_every_command(folder, capsys, path, value):
    edit(folder, "config.json", nested(path, value))
    refused(folder, "facts")
    for words in (["info", str(folder)], ["score", str(folder), str(folder.parent)]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["weights.safetensors", UNET])
def test_weights_that_are_no_numbers_are_refused(folder, name, wrong):
    tensors = load_file(folder / name)
    which = next(n for n, v in sorted(tensors.items()) if v.dtype == np.float32 and v.size > 1)
    tensors[which].flat[-1] = wrong
    save_file(tensors, folder / name)
    write_sums(folder)
    refused(folder, which, "holds NaN or infinity")


def test_calibration_and_drift_of_numbers_that_cannot_be(folder):
    scores = json.loads((folder / "calibration.json").read_text())["held_out_normal_scores"]
    edit(folder, "calibration.json", lambda c: {"held_out_normal_scores": [*scores, 1.0]})
    refused(folder, "calibration.json lists", "config.json says")
    edit(folder, "calibration.json", lambda c: {"held_out_normal_scores": scores})
    name, kept = next(iter(json.loads((folder / "drift.json").read_text()).items()))
    for n in (10**9, 10**40):  # tables of as many logarithms would be made
        edit(folder, "drift.json", nested((name,), kept | {"n": n}))
        refused(folder, name, "more than 4194304 normals")
    edit(folder, "drift.json", nested((name,), kept | {"low": ["a", 1, 2]}))
    refused(folder)


def test_a_score_that_is_no_number_gets_neither_a_p_value_nor_a_flag(fitted, make_images, monkeypatch):
    detector = Detector.load(fitted, device="cpu")
    images = ImageSet(make_images(3, 16), names=("a.png", "b.png", "c.png"))
    sound = detector._predict

    def some(x, heatmaps, dissolved):
        found = sound(x, heatmaps, dissolved)
        return found._replace(score=np.where(np.arange(len(x)) == 1, np.nan, found.score))

    monkeypatch.setattr(detector, "_predict", some)
    for judged in (detector.score, detector.detect, lambda x: detector.predict(x.images)):
        with pytest.raises(DataError, match=r"the score( of b\.png)? is nan, which is no number to judge by"):
            judged(images)
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="no number to judge by"):
            detector.p_values(np.array([0.0, wrong]))


def test_a_large_shape_is_not_tried_and_a_small_one_is(tmp_path, make_images, monkeypatch):
    tried = []

    def predict(self, x, *_):
        tried.append(x.shape)
        return Prediction(x[:, 0, 0, 0] * 1.0)

    monkeypatch.setattr(Brightness, "_predict", predict)
    Brightness(device="cpu").fit(make_images(40, 16)).save(tmp_path / "m")
    tried.clear()
    for shape in ([1024, 1024, 3], [1025, 1024, 3], [8192, 8192, 3]):
        edit(tmp_path / "m", "config.json", nested(("shape",), shape))
        assert Detector.load(tmp_path / "m", device="cpu").shape_ == tuple(shape)
    assert tried == [(1, 1024, 1024, 3)]


def test_settings_may_cost_so_much_and_no_more():
    s = DIAPlusSettings(dissolver=DissolverSettings(kind="gaussian"))
    check_settings(s)
    for name, value in (("ts", tuple(range(101))), ("dissolver.size", 8194), ("dissolver.kernel", 8193)):
        with pytest.raises(DataError, match=rf"settings\.{name} (is 819|lists 101 values)"):
            check_settings(replaced(s, {name: value}))


# --- the room that networks have ----------------------------------------------------------------------


def test_room_counts_what_is_made_before_it_is_made():
    with AllocationLimit("x", 0):
        torch.empty(SPARE // 8, dtype=torch.float32)  # half of it
        with pytest.raises(DataError, match="x: its settings ask for more than 1024 MiB"):
            torch.nn.Linear(2**30, 2**30)
    with AllocationLimit("x", 2**20), pytest.raises(DataError, match="20000"):
        [torch.zeros(1) for _ in range(20_001)]


def test_work_stops_between_operations():
    with WorkLimit(3600, 2**20):
        torch.zeros(2**18).add(1)
    with pytest.raises(Enough), WorkLimit(3600, 2**20 - 1):
        torch.zeros(2**18)
    with pytest.raises(Enough), WorkLimit(-1, 2**20):
        torch.zeros(1)


def test_room_changes_no_random_number():
    torch.manual_seed(3)
    plain = torch.nn.Linear(5, 4).weight, torch.randn(3)
    torch.manual_seed(3)
    with AllocationLimit("x", 0):
        counted = torch.nn.Linear(5, 4).weight, torch.randn(3)
    for a, b in zip(plain, counted, strict=True):
        assert torch.equal(a, b)


# --- types of settings --------------------------------------------------------------------------------


def test_types_of_settings():
    assert fits(tuple[int, ...], (1, 2))
    assert not fits(tuple[int, ...], (1, "2"))
    assert not fits(tuple[int, int], (1,))
    assert fits(int | None, None)
    assert not fits(int, True)
    assert not fits(float, 2**70 * 1.0)
    assert fits(dict, {})
    whole = Hog().s
    assert from_dict(type(whole), {}) == whole


@given(st.data())
@run_settings(max_examples=60)
def test_whatever_a_setting_is_set_to_there_is_a_model_or_one_line(fitted, data):
    """Fuzzing of config.json: no other exception, and no score but for a model that loads."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    config = json.loads((fitted / "config.json").read_text())
    paths = [(k,) for k in config] + [("settings", k) for k in config["settings"]]
    paths += [("settings", "amplify", k) for k in config["settings"]["amplify"]]
    nested(data.draw(st.sampled_from(paths)), data.draw(values))(config)
    folder = fitted.parent / "fuzzed"
    shutil.copytree(fitted, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_sums(folder)
    with suppress(DataError):
        model = Detector.load(folder, device="cpu")
        assert model.score(np.zeros((2, *model.shape_), np.uint8)).shape == (2,)


# --- few normals, and what is saved of them --------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 19, 20, 21, 22, 25, 40])
@pytest.mark.parametrize("method", TRIVIAL)
def test_a_fit_on_few_normals_can_be_used_and_loaded_or_is_refused_in_one_line(method, n, tmp_path):
    """The methods that train are held to it by `tests/contract.py` and, at 5 to 40, by hand."""
    normals, new = smooth_images(n, 16, 20), smooth_images(4, 16, 20, seed=9)
    detector = METHODS[method](device="cpu")
    if n < 20:
        with pytest.raises(DataError, match=f"^{n} normal images to fit on; at least 20 are needed$"):
            detector.fit(normals)
        return
    scores = detector.fit(normals).score(new)
    assert detector.n_calibration_ == max(round(0.2 * n), 4) // 2
    again = Detector.load(detector.save(tmp_path / "m"), device="cpu")
    np.testing.assert_allclose(again.score(new), scores, rtol=1e-9, atol=1e-9)
    p = again.p_values(scores)
    assert ((p >= 1 / (1 + detector.n_calibration_)) & (p <= 1)).all()
    assert again.threshold(0.05) == np.inf  # which needs 19


@pytest.mark.parametrize("method", ["trivial:pca", "trivial:statistics"])
def test_grey_images_score_the_same_whatever_way_they_are_saved(method, tmp_path):
    modes, scores = ("L", "RGB", "RGBA", "LA"), []
    for mode in modes:
        for part, images in (("fit", smooth_images(22, 16, 20)), ("new", smooth_images(3, 16, 20, seed=9))):
            (tmp_path / mode / part).mkdir(parents=True)
            for i, image in enumerate(images[..., 0]):
                Image.fromarray(image).convert(mode).save(tmp_path / mode / part / f"{i}.png")
    for mode in modes:
        model = dia.fit(tmp_path / mode / "fit", method=method, device="cpu")
        scores += [model.predict(tmp_path / other / "new").score for other in modes]
    np.testing.assert_allclose(scores, [scores[0]] * len(scores), rtol=1e-9)


# --- exported files -----------------------------------------------------------------------------------


def test_an_onnx_file_that_says_wrong_things_of_itself(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def made(facts, give="score"):
        node = helper.make_node("ReduceMean", ["images"], [give], keepdims=0)
        graph = helper.make_graph(
            [helper.make_node("Cast", ["raw"], ["images"], to=TensorProto.FLOAT), node], "g",
            [helper.make_tensor_value_info("raw", TensorProto.UINT8, None)],
            [helper.make_tensor_value_info(give, TensorProto.FLOAT, None)],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {f"dia.{k}": v for k, v in facts.items()})
        onnx.save(model, tmp_path / "m.onnx")
        return str(tmp_path / "m.onnx")

    for facts in (
        {}, {"format": "1"}, SOUND | {"format": "{"}, SOUND | {"format": "true"},
        SOUND | {"shape": "[1000000, 1000000, 3]"}, SOUND | {"shape": "7"},
        SOUND | {"shape": '["8", "8", 1]'},
        SOUND | {"held_out_normal_scores": "[]"}, SOUND | {"held_out_normal_scores": "[NaN, NaN]"},
        SOUND | {"held_out_normal_scores": "[true]"}, SOUND | {"held_out_normal_scores": f"[1{'0' * 400}]"},
        SOUND | {"false_alarm_rate": '"x"'}, SOUND | {"false_alarm_rate": "NaN"}, SOUND | {"method": "[1]"},
        SOUND | {"heatmaps": '{"usual": 1, "peaks": []}'}, SOUND | {"heatmaps": "[1]"},
        SOUND | {"read": "[1]"}, SOUND | {"read": '{"window": {}}'}, SOUND | {"version": "[" * 10**5},
        SOUND,  # whose graph takes `raw`, not `images`
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"m\.onnx") as error:
            load_model(made(facts))
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"m\.onnx: it gives no score"):
        load_model(made(SOUND, give="other"))


@pytest.mark.parametrize("location", ["../secret.bin", "{tmp}/secret.bin", "link.bin"])
def test_an_exported_model_reads_no_file_outside_its_folder(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    kind, make = onnx.TensorProto, onnx.helper
    weight = kind(name="w", data_type=kind.FLOAT, dims=[4], data_location=kind.EXTERNAL)
    weight.external_data.add(key="location", value=location.format(tmp=tmp_path))
    ends = [make.make_tensor_value_info(name, kind.FLOAT, [4]) for name in ("images", "score")]
    node = make.make_node("Add", ["images", "w"], ["score"])
    graph = make.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    make.set_model_props(model, {f"dia.{k}": v for k, v in SOUND.items()})
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"lie in another file .*, which is not read: make one") as error:
        OnnxModel(folder / "m.onnx", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"format": 1, "shape": "large"}', "\xff"])
def test_dissolving_by_a_damaged_folder_is_one_line(folder, capsys, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    write_sums(folder)
    with pytest.raises(SystemExit) as end:
        main(["dissolve", str(folder), "phantom", "--out", str(folder.parent / "d.png")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("dia: ")
    assert len(said.strip().splitlines()) == 1
    assert str(folder) in said
