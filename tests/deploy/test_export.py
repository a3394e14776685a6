"""Exported models: equal to `dia score` for any size, batch and channels; without torch; safe to hand out."""

import copy
import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import smooth_images
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from PIL import Image

from dia.amplify.contrast import AmplifySettings
from dia.cli import main as cli
from dia.core.errors import DataError
from dia.data.imageset import ImageSet
from dia.deploy import onnx_model
from dia.deploy.export import TOLERANCE, Comparison, export, facts_of, runner, write_onnx, write_torchscript
from dia.deploy.graph import Whole, exportable, graph_of, resized
from dia.deploy.onnx_model import OnnxModel
from dia.detectors import CSI, DIA, DIAPlus
from dia.detectors.calibration import Calibration
from dia.detectors.dia import CSISettings
from dia.detectors.diaplus import VIEWS, ContrastSettings, DIAPlusSettings
from dia.detectors.features import with_channels
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings

SIDE = 24
OBLONG = 28, 36  # in 20 px the widest window sees nearly all, and how its view varies is rounding
AMPLIFY = AmplifySettings(size=16, width=4, stem="cifar", steps=3, batch=4)
DISSOLVER = DissolverSettings(size=16, patch=2, widths=(8, 16), steps=4, batch=4)
PLUS = DIAPlusSettings(
    DISSOLVER, ContrastSettings(AMPLIFY, ts=(30, 60)), residual_ts=(50, 200), blur_sigmas=(1.0, 3.0)
)


class Pixel(torch.nn.Module):
    """Gives the images that come out of the preparation for a heatmap."""

    outputs = ("heatmap",)

    def forward(self, x):
        return x.double().mean((1, 2, 3)), x[:, 0].float()


def normals(channels=1, height=SIDE, width=SIDE):
    return smooth_images(30, height, width, channels)


def fitted(cls, s, images=None):
    return cls(s, seed=3, device="cpu").fit(normals() if images is None else images)


@pytest.fixture(scope="module")
def csi():
    return fitted(CSI, CSISettings(AMPLIFY, samples=2))


@pytest.fixture(scope="module")
def plus():
    return fitted(DIAPlus, PLUS, normals(3))


@pytest.fixture(scope="module")
def csi_onnx(csi, tmp_path_factory):
    path = tmp_path_factory.mktemp("csi") / "csi.onnx"
    return path, export(csi, path, "onnx")


@pytest.fixture(scope="module")
def plus_onnx(plus, tmp_path_factory):
    path = tmp_path_factory.mktemp("plus") / "plus.onnx"
    return path, export(plus, path, "onnx")


# --- the parts, against Pillow, scipy and numpy -------------------------------------------------------------


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]),
    st.sampled_from([1, 3]), st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
@run_settings(max_examples=150)
def test_size_and_channels_are_pillows_to_the_bit(h, w, height, width, channels, wanted, seed, extreme):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (1, h, w, channels), dtype=np.uint8)
    if extreme:  # where Lanczos overshoots, sums are cut off
        image = (image > 127).astype(np.uint8) * 255
    ours = with_channels(torch.from_numpy(image).permute(0, 3, 1, 2).double(), wanted)
    ours = resized(ours, height, width).permute(0, 2, 3, 1).numpy()
    pillow = Image.fromarray(image[0] if channels == 3 else image[0, ..., 0])
    pillow = pillow.convert("L" if wanted == 1 else "RGB")  # channels first, as `decode` has it
    pillow = np.asarray(pillow.resize((width, height), Image.Resampling.LANCZOS)).reshape(ours.shape)
    np.testing.assert_array_equal(ours, pillow)


def test_a_very_large_image_is_pillows_too():
    image = np.random.default_rng(0).integers(0, 256, (1, 1500, 2000, 1), dtype=np.uint8)
    ours = resized(torch.from_numpy(image).permute(0, 3, 1, 2).double(), 31, 64)[0, 0].numpy()
    np.testing.assert_array_equal(ours, ImageSet(image).resized(31, 64).images[0, ..., 0])


# --- every method's graph, against its detector -------------------------------------------------------------

SMALL = {
    "msc": {"size": 32, "epochs": 1}, "kdad": {"size": 32, "epochs": 1}, "uniad": {"size": 64, "epochs": 1},
    "transformaly": {"size": 32, "epochs": 1},
}  # fmt: skip


METHOD_NAMES = [
    pytest.param(m, marks=[pytest.mark.slow] * (m in SMALL))
    for m in exportable()
    if m not in ("csi", "dia", "dia+")
]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_exportable_method_agrees_as_torchscript(method, tmp_path):
    if method in SMALL:
        pytest.importorskip("timm")
    s = replace(settings(METHODS[method].Settings), **SMALL.get(method, {}))
    detector = fitted(METHODS[method], s, normals(3, *OBLONG))
    facts = export(detector, tmp_path / "m.pt", "torchscript")
    assert facts["scores beyond tolerance"] == 0
    assert ("heatmap" in facts["outputs"]) == (detector.has_heatmaps() and method != "kdad")


PLUS_CASES = {
    "every view": replace(
        PLUS, views=VIEWS, contrast=ContrastSettings(replace(AMPLIFY, rgb=True, shift="cutperm"), ts=(30, 60))
    ),
    "all copies": replace(
        PLUS, symmetries="all", neighbours=3, dissolver=replace(DISSOLVER, kind="gaussian")
    ),
    "no copies": replace(PLUS, symmetries="none", dissolver=replace(DISSOLVER, kind="median")),
    "places alone": replace(PLUS, whole=False),
    "shrunk": replace(PLUS, dissolver=replace(DISSOLVER, kind="shrink", matched=True)),
    "through a bottleneck": replace(PLUS, dissolver=replace(DISSOLVER, kind="bottleneck", bottleneck=9)),
    "rgb dissolver": replace(PLUS, dissolver=replace(DISSOLVER, size=64, input_range="released")),
}


@pytest.mark.parametrize("case", PLUS_CASES)
def test_dia_plus_agrees_in_every_variant(case, tmp_path):
    detector = fitted(DIAPlus, PLUS_CASES[case], normals(1, 22, 30))
    facts = export(detector, tmp_path / "m.pt", "torchscript")
    assert facts["outputs"] == ["score", "p_value", "heatmap", "dissolved"]
    assert facts["scores beyond tolerance"] == 0


@pytest.mark.parametrize("shift", ["rotation", "none"])
def test_dia_agrees_with_and_without_dissolved_views(shift, tmp_path):
    kind = "diffusion" if shift == "rotation" else "none"
    s = settings(DIA.Settings)
    s = replace(s, dissolver=replace(DISSOLVER, kind=kind), amplify=replace(AMPLIFY, shift=shift), samples=2)
    facts = export(fitted(DIA, s), tmp_path / "m.pt", "torchscript")
    assert facts["scores beyond tolerance"] == 0


# --- ONNX ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "h", "w", "c"),
    [(1, SIDE, SIDE, 1), (7, SIDE, SIDE, 3), (2, 9, 50, 1), (3, 61, 40, 3), (1, 1, 1, 3)],
)
def test_onnx_scores_images_of_any_size_batch_and_channels(plus, plus_onnx, n, h, w, c):
    images = smooth_images(n, h, w, c, seed=5) if h > 1 else np.full((n, h, w, c), 99, np.uint8)
    x = ImageSet(images).with_channels(3).resized(SIDE, SIDE).images
    score, p, heatmap, dissolved = OnnxModel(plus_onnx[0]).run(
        images, ["score", "p_value", "heatmap", "dissolved"]
    )
    assert (score.dtype, p.dtype, heatmap.dtype, dissolved.dtype) == ("f8", "f8", "f4", "u1")
    assert (heatmap.shape, dissolved.shape) == ((n, SIDE, SIDE), (n, 2, SIDE, SIDE, 3))
    want = plus.score(x)
    np.testing.assert_allclose(score, want, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(heatmap, plus.heatmap(x), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(p, plus.p_values(score), rtol=0, atol=1e-9)  # of its own score: a step
    exact = plus.dissolver_.dissolve(x, PLUS.residual_ts, rounded=False).swapaxes(0, 1)
    assert np.abs(dissolved - exact).max() < 0.52


def test_an_image_scores_the_same_in_any_batch(csi_onnx):
    model, images = OnnxModel(csi_onnx[0]), smooth_images(9, SIDE, SIDE, seed=4)
    together = model.score(images)
    alone = [model.score(images[i : i + 1])[0] for i in range(9)]
    np.testing.assert_allclose(alone, together, rtol=TOLERANCE, atol=TOLERANCE)


def test_export_says_what_it_wrote(csi, csi_onnx):
    path, facts = csi_onnx
    assert facts["outputs"] == ["score", "p_value"]
    assert facts["scores beyond tolerance"] == 0
    assert facts["images"] > 30
    model = OnnxModel(path)
    assert model.facts_["notice"] == "For research; not a medical device."
    assert model.facts_["settings_hash"] == csi.settings_hash()
    assert (model.method, model.shape_) == ("csi", csi.shape_)
    assert model.facts_["held_out_normals"] == csi.n_calibration_ == len(model.calibration_.scores)
    assert [model.threshold(r) for r in (None, 0.2, 0.5)] == [csi.threshold(r) for r in (None, 0.2, 0.5)]
    assert [i.shape for i in model.session.get_inputs()] == [["N", "H", "W", "C"]]
    assert model.heatmap(normals()) is None


def test_no_file_says_where_it_was_made(csi, csi_onnx, tmp_path):
    export(csi, tmp_path / "m.pt", "torchscript")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        script = b"".join(archive.read(name) for name in archive.namelist())
    for made in (csi_onnx[0].read_bytes(), script):
        assert not any(
            str(place).encode() in made for place in (Path(cli.__file__).parents[2], Path.home(), tmp_path)
        )
        assert b"site-packages" not in made


def test_a_torchscript_file_is_loaded_without_this_package(csi, tmp_path):
    export(csi, tmp_path / "m.pt", "torchscript")
    np.save(tmp_path / "x.npy", smooth_images(3, 40, 31, 3))
    code = (
        "import sys; sys.modules['dia'] = None; import torch, numpy, json; extra = {'dia.json': ''}\n"
        "m = torch.jit.load('m.pt', _extra_files=extra); x = torch.from_numpy(numpy.load('x.npy'))\n"
        "print(json.dumps([m(x)[0].tolist(), json.loads(extra['dia.json'])['method']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    scores, method = json.loads(done.stdout)
    x = ImageSet(np.load(tmp_path / "x.npy")).with_channels(1).resized(SIDE, SIDE)
    np.testing.assert_allclose(scores, csi.score(x), rtol=TOLERANCE, atol=TOLERANCE)
    assert method == "csi"


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_method_without_a_graph_is_refused_by_name(tmp_path):
    detector = fitted(METHODS["trivial:hog"], None)
    with pytest.raises(
        DataError, match=r"trivial:hog cannot be exported; there are: dia\+, dia, csi"
    ) as error:
        export(detector, tmp_path / "m.pt", "torchscript")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("s", "match"),
    [
        (CSISettings(AMPLIFY, samples=1, score_draws="own"), "score_draws own draws from the pixels"),
        (None, "kind noise is drawn from the pixels"),
    ],
)
def test_what_draws_for_itself_is_refused(s, match, tmp_path):
    if s is None:
        detector = fitted(DIAPlus, replace(PLUS, dissolver=replace(DISSOLVER, kind="noise")))
    else:
        detector = fitted(CSI, s)
    with pytest.raises(DataError, match=match):
        export(detector, tmp_path / "m.pt", "torchscript")


def test_a_file_that_differs_is_not_left(csi, tmp_path, monkeypatch):
    (tmp_path / "m.pt").write_bytes(b"before")
    whole = copy.deepcopy(graph_of(csi))
    whole.body.mu *= 1.01
    monkeypatch.setattr("dia.deploy.export.graph_of", lambda _: whole)
    with pytest.raises(DataError, match=r"not written; it differs from the model in score by"):
        export(csi, tmp_path / "m.pt", "torchscript")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    assert (tmp_path / "m.pt").read_bytes() == b"before"


def test_a_dissolved_pixel_may_be_rounded_either_way_at_an_edge_only(plus, tmp_path):
    path = tmp_path / "m.pt"
    write_torchscript(graph_of(plus), facts_of(plus), path)
    run, images = runner(path, graph_of(plus)), smooth_images(4, SIDE, SIDE, 3, seed=6)
    honest = Comparison(plus, run)
    honest.add(images)
    assert honest.beyond == ""

    def other(x):
        made = run(x)
        made["dissolved"] = made["dissolved"].copy()
        made["dissolved"][0, 0, 3, 3, 0] ^= 1  # by one grey value, but not at the edge of two
        return made

    crooked = Comparison(plus, other)
    crooked.add(images)
    assert "dissolved images by" in crooked.beyond


@pytest.mark.parametrize(
    ("changes", "beyond"),
    [
        ({"score": lambda s: s + 9e-5}, ""),
        ({"score": lambda s: s + np.eye(len(s))[0] * 2e-4}, "score by"),  # one image
        ({"score": lambda s: s * np.nan}, "score by nan"),
        ({"p_value": lambda p: p + 1e-3}, "the p-value of its score"),
        ({"heatmap": lambda h: h * (1 + 2e-4) + 2e-4}, "heatmap by"),
    ],
)
def test_what_the_check_lets_pass(changes, beyond):
    detector = fitted(METHODS["trivial:pca"], None)
    detector.calibration_ = Calibration.of(np.array([1e6]))  # every p-value is 1
    whole = graph_of(detector)

    def run(x):
        made = dict(zip(whole.outputs, (o.numpy() for o in whole(torch.from_numpy(x))), strict=True))
        return made | {name: change(made[name]) for name, change in changes.items()}

    comparison = Comparison(detector, run)
    comparison.add(smooth_images(4, SIDE, SIDE, seed=7))
    assert comparison.beyond.startswith(beyond)
    assert bool(comparison.beyond) == bool(beyond)


def test_onnxruntime_resizes_as_pillow_to_the_bit(tmp_path):
    """An exporter that writes π in 32 bits, as torch's does of a bare number, makes another filter of it."""
    whole = Whole((32, 31, 1), Calibration.of(np.zeros(1)), Pixel())
    write_onnx(whole, {"version": "0"}, tmp_path / "p.onnx", 20)
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for h, w in ((65, 96), (64, 64), (128, 128), (7, 300), *random.integers(1, 300, (25, 2))):
        images = random.integers(0, 256, (3, h, w, 1), dtype=np.uint8)
        (made,) = session.run(["heatmap"], {"images": images})
        np.testing.assert_array_equal(made, ImageSet(images).resized(32, 31).images[..., 0])


def test_the_runtime_refuses_what_is_not_ours(csi_onnx, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    with pytest.raises(DataError, match=r"none\.onnx: no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "torn.onnx").write_bytes(csi_onnx[0].read_bytes()[:5000])
    with pytest.raises(DataError, match=r"torn\.onnx: onnxruntime cannot read it"):
        OnnxModel(tmp_path / "torn.onnx")
    model = onnx.load(csi_onnx[0])
    kept = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, "dia.format": "2"})
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(DataError, match=r"new\.onnx: format 2 is not known here; there is 1"):
        OnnxModel(tmp_path / "new.onnx")
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(DataError, match=r"bare\.onnx: not made by `dia export`"):
        OnnxModel(tmp_path / "bare.onnx")
    with pytest.raises(DataError, match="this onnxruntime has no CUDA"):
        onnx_model._providers(
            type("ort", (), {"get_available_providers": lambda: ["CPUExecutionProvider"]}), "cuda"
        )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match=r"needs onnxruntime: pip install 'dia-anomaly\[export\]'"):
        OnnxModel(csi_onnx[0])


# --- the command line ---------------------------------------------------------------------------------------

BLOCKED = (
    "torch", "lightning", "diffusers", "kornia", "sklearn", "scipy", "skimage", "safetensors", "jinja2",
    "onnx", "onnxscript", "docstring_parser",
)  # fmt: skip
WITHOUT = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from dia.cli.main import main
main(sys.argv[1:])
"""


def without_torch(*words, cwd):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=env
    )


def test_scoring_with_the_file_takes_no_torch_and_writes_the_same(plus, plus_onnx, tmp_path, capsys):
    images = smooth_images(5, SIDE, 31, 3, seed=8)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    plus.save(tmp_path / "run")
    done = without_torch(
        "score", plus_onnx[0], "in", "--out", "a.csv", "--heatmaps", "maps", "--skip-bad", "--batch", "1",
        "--false-alarm-rate", "0.3", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cli.main(
        f"score {tmp_path}/run {tmp_path}/in --out {tmp_path}/b.csv --skip-bad --batch 2 --device cpu "
        "--false-alarm-rate 0.3 --json".split()
    )
    ours, theirs = json.loads(done.stdout), json.loads(capsys.readouterr().out)
    assert ours["drift"]["alarm"] is None  # five images are too few
    for facts in (ours, theirs):  # of drift a file knows less than a folder
        del facts["out"], facts["drift"]
    assert ours == theirs
    a, b = (list(csv.reader(io.StringIO((tmp_path / f).read_text()))) for f in ("a.csv", "b.csv"))
    assert [r[0] for r in a] == [r[0] for r in b]
    assert [r[2:] for r in a] == [r[2:] for r in b]
    np.testing.assert_allclose([float(r[1]) for r in a[1:]], [float(r[1]) for r in b[1:]], rtol=1e-3)
    assert len(list((tmp_path / "maps").iterdir())) == 5
    again = without_torch("score", plus_onnx[0], "in", "--out", "a.txt", cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_export_from_the_command_line(csi, tmp_path, capsys):
    csi.save(tmp_path / "run")
    np.savez(tmp_path / "d.npz", test_images=smooth_images(6, 30, 30)[..., 0], test_labels=np.zeros(6, int))
    run = str(tmp_path / "run")
    cli.main(
        [
            "export",
            run,
            "--format",
            "torchscript",
            "--out",
            f"{tmp_path}/m.pt",
            "--check",
            f"{tmp_path}/d.npz",
            "--json",
        ]
    )
    facts = json.loads(capsys.readouterr().out)
    without = export(csi, tmp_path / "n.pt", "torchscript")
    assert facts["images"] == without["images"] + 6
    for flags, message in (
        (["--opset", "11"], "--opset must be at least 18, not 11"),
        (["--out", "model.pt"], "--out model.pt: the name must end in .onnx"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", run, *flags])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_fresh_environment_scores_with_the_light_libraries_alone(csi_onnx, tmp_path):
    """As docs/howto/export.md says: the wheel without its dependencies, and those named there."""
    root = Path(__file__).parents[2]
    page = (root / "docs/howto/export.md").read_text()
    light = page.split("pip install ")[2].splitlines()[0].split()
    python = tmp_path / "env/bin/python"
    for command in (
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            root,
        ],
        [sys.executable, "-m", "venv", tmp_path / "env"],
        [python, "-m", "pip", "install", "-q", *light],
    ):
        subprocess.run(list(map(str, command)), check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    np.savez(tmp_path / "d.npz", test_images=smooth_images(6, 30, 30)[..., 0])
    done = subprocess.run(
        [tmp_path / "env/bin/dia", "score", csi_onnx[0], "d.npz", "--json"],
        cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 6
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
