"""Exported models: equal to `dia score` for any size, batch and channels; safe to hand out."""

import copy
import csv
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from dia.deploy.export import TOLERANCE, Comparison, _facts, export
from dia.deploy.graph import exportable_methods, resized, scoring_graph
from dia.deploy.onnx_model import OnnxModel
from dia.detectors import CSI, DIA, Detector, DIAPlus
from dia.detectors.baselines.images import Brightness
from dia.detectors.calibration import Calibration
from dia.detectors.dia import CSISettings
from dia.detectors.diaplus import VIEWS, DIAPlusSettings
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings
from dia.features.untrained import with_channels

SIDE = 24
OBLONG = 28, 36  # in 20 px the widest window sees nearly all, and how its view varies is rounding
AMPLIFY = AmplifySettings(size=16, width=4, stem="cifar", steps=3, batch=4)
DISSOLVER = DissolverSettings(size=16, patch=2, widths=(8, 16), steps=4, batch=4)
PLUS = DIAPlusSettings(size=64, map_size=96, dissolver=DISSOLVER, ts=(50, 200))


class Echo(Brightness):
    """Gives the images as they come out of the preparation for heatmaps, and their mean as the score."""

    method, maps = "echo", True

    def _module(self):
        return _Echo()


class _Echo(torch.nn.Module):
    outputs = ("heatmap",)

    def forward(self, x):
        return x.double().mean((1, 2, 3)), x[:, 0].float()


def normals(channels=1, height=SIDE, width=SIDE):
    return smooth_images(30, height, width, channels)


def fitted(cls, s, images=None):
    return cls(s, seed=3, device="cpu").fit(normals() if images is None else images)


@pytest.fixture(scope="module")
def echo():
    return fitted(Echo, None, normals(1, 32, 31))


@pytest.fixture(scope="module")
def plus():
    return fitted(DIAPlus, PLUS, normals(3))


@pytest.fixture(scope="module")
def echo_onnx(echo, tmp_path_factory):
    path = tmp_path_factory.mktemp("echo") / "echo.onnx"
    return path, export(echo, path)


@pytest.fixture(scope="module")
def plus_onnx(plus, tmp_path_factory):
    path = tmp_path_factory.mktemp("plus") / "plus.onnx"
    return path, export(plus, path)


def traced(detector):
    """Compares a detector with a trace of its graph: fixed constants as in a file, but in a second."""
    graph = scoring_graph(detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randint(0, 256, (2, 37, 45, 3), dtype=torch.uint8)
        script = torch.jit.trace(graph, example, check_trace=False)
    with torch.inference_mode():
        comparison = Comparison(
            detector,
            lambda x: dict(zip(graph.outputs, (o.numpy() for o in script(torch.from_numpy(x))), strict=True)),
        )
        h, w, c = detector.shape_
        for n, height, width, channels in ((5, h, w, c), (1, h + 13, w, 4 - c), (2, h // 2 + 1, 2 * w, 3)):
            comparison.add(smooth_images(n, height, width, channels, seed=9))
    assert comparison.beyond == ""
    return graph.outputs


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
    for m in exportable_methods()
    if m not in ("dia", "dia+")
]


def small(method):
    if method in SMALL:
        pytest.importorskip("timm")
    cases = {
        "csi": CSISettings(AMPLIFY, samples=2),
        "dia": dia_settings("diffusion", "rotation"),
        "dia+": PLUS,
    }
    s = cases.get(method) or replace(settings(METHODS[method].Settings), **SMALL.get(method, {}))
    return fitted(METHODS[method], s, normals(3, *OBLONG))


def dia_settings(kind, shift):
    s, amplify = settings(DIA.Settings), replace(AMPLIFY, shift=shift)
    return replace(s, dissolver=replace(DISSOLVER, kind=kind), amplify=amplify, samples=2)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_graph_of_every_exportable_method_agrees(method):
    detector = small(method)
    assert ("heatmap" in traced(detector)) == (detector.has_heatmaps() and method != "kdad")


@pytest.mark.slow
@pytest.mark.parametrize("method", exportable_methods())
def test_every_exportable_method_agrees_as_onnx(method, tmp_path):
    assert export(small(method), tmp_path / "m.onnx")["scores beyond tolerance"] == 0


PLUS_CASES = {
    "nothing dissolved": replace(PLUS, dissolver=DissolverSettings(kind="none")),
    "every view": replace(PLUS, views=VIEWS),
    "mirrored": replace(
        PLUS, symmetries="mirrored", neighbours=3, dissolver=replace(DISSOLVER, kind="gaussian")
    ),
    "large places": replace(PLUS, place_size=256, dissolver=replace(DISSOLVER, kind="median")),
    "places alone": replace(PLUS, whole=False),
    "the whole alone": replace(PLUS, places=False),
    "random weights": replace(PLUS, weights="none"),
    "shrunk": replace(PLUS, dissolver=replace(DISSOLVER, kind="shrink", matched=True)),
    "through a bottleneck": replace(PLUS, dissolver=replace(DISSOLVER, kind="bottleneck", bottleneck=9)),
    "rgb dissolver": replace(PLUS, dissolver=replace(DISSOLVER, size=64, input_range="released")),
}


@pytest.mark.parametrize("case", PLUS_CASES)
def test_dia_plus_agrees_in_every_variant(case):
    detector = fitted(DIAPlus, PLUS_CASES[case], normals(1, 22, 30))
    copies = () if case == "nothing dissolved" else ("dissolved",)
    assert traced(detector) == ("score", "p_value", "heatmap", *copies)


def test_dia_plus_agrees_on_large_images_which_it_sees_twice():
    large = fitted(DIAPlus, replace(PLUS, dissolver=DissolverSettings(kind="none")), normals(1, 40, 260))
    assert large.places_.overview is not None
    assert traced(large) == ("score", "p_value", "heatmap")


@pytest.mark.parametrize(("kind", "shift"), [("diffusion", "rotation"), ("none", "none")])
def test_dia_agrees_with_and_without_dissolved_views(kind, shift):
    assert traced(fitted(DIA, dia_settings(kind, shift))) == ("score", "p_value")


# --- ONNX ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "h", "w", "c"),
    [(1, SIDE, SIDE, 1), (7, SIDE, SIDE, 3), (2, 9, 50, 1), (3, 61, 40, 3), (1, 1, 1, 3)],
)
def test_onnx_scores_images_of_any_size_batch_and_channels(plus, plus_onnx, n, h, w, c):
    images = smooth_images(n, h, w, c, seed=5) if h > 1 else np.full((n, h, w, c), 99, np.uint8)
    x = ImageSet(images).with_channels(3).resized(SIDE, SIDE).images
    score, p, heatmap, dissolved = OnnxModel(plus_onnx[0]).run(images).values()
    assert (score.dtype, p.dtype, heatmap.dtype, dissolved.dtype) == ("f8", "f8", "f4", "u1")
    assert (heatmap.shape, dissolved.shape) == ((n, SIDE, SIDE), (n, 2, SIDE, SIDE, 3))
    want = plus.score(x)
    np.testing.assert_allclose(score, want, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(heatmap, plus.heatmap(x), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(p, plus.p_values(score), rtol=0, atol=1e-9)  # of its own score: a step
    exact = plus.dissolver_.dissolve(x, PLUS.ts, rounded=False).swapaxes(0, 1)
    assert np.abs(dissolved - exact).max() < 0.52


def test_an_image_scores_the_same_in_any_batch(plus_onnx):
    model, images = OnnxModel(plus_onnx[0]), smooth_images(5, SIDE, SIDE, seed=4)
    alone = [model.score(images[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(alone, model.score(images), rtol=TOLERANCE, atol=TOLERANCE)


def test_export_says_what_it_wrote(echo, echo_onnx):
    path, facts = echo_onnx
    assert facts["outputs"] == ["score", "p_value", "heatmap"]
    assert facts["scores beyond tolerance"] == 0
    assert facts["images"] > 30
    model = OnnxModel(path)
    assert model.facts_["notice"] == "For research; not a medical device."
    assert model.facts_["settings_hash"] == echo.settings_hash()
    assert (model.method, model.shape_) == ("echo", echo.shape_)
    assert model.facts_["held_out_normals"] == echo.n_calibration_ == len(model.calibration_.scores)
    assert [model.threshold(r) for r in (None, 0.2, 0.5)] == [echo.threshold(r) for r in (None, 0.2, 0.5)]
    assert [i.shape for i in model.session.get_inputs()] == [["N", "H", "W", "C"]]


def test_a_file_keeps_the_first_channel(echo):
    shown = copy.copy(echo)
    shown.facts_ = {"read": {"channel": 0, "levels": "0:99", "axis": None}}
    assert _facts(shown)["read"] == {"channel": 0, "levels": "0:99"}


def test_no_file_says_where_it_was_made(echo_onnx):
    made = echo_onnx[0].read_bytes()
    for place in (Path(cli.__file__).parents[2], Path.home(), echo_onnx[0].parent, "site-packages"):
        assert str(place).encode() not in made


def test_onnxruntime_resizes_as_pillow_to_the_bit(echo_onnx):
    """An exporter that writes π in 32 bits, as torch's does of a bare number, makes another filter of it."""
    model, random = OnnxModel(echo_onnx[0]), np.random.default_rng(0)
    for h, w in ((65, 96), (64, 64), (128, 128), (7, 300), *random.integers(1, 300, (12, 2))):
        images = random.integers(0, 256, (3, h, w, 1), dtype=np.uint8)
        made = model.run(images)["heatmap"]  # `detect` resizes before
        np.testing.assert_array_equal(made, ImageSet(images).resized(32, 31).images[..., 0])


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_method_without_a_graph_is_refused_by_name(tmp_path):
    detector = fitted(METHODS["trivial:hog"], None)
    with pytest.raises(
        DataError, match=r"trivial:hog cannot be exported; there are: dia\+, dia, csi"
    ) as error:
        export(detector, tmp_path / "m.onnx")
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
        export(detector, tmp_path / "m.onnx")


class Odd(Brightness):
    """A method of one's own, with an operator that none of ours has."""

    method = "odd"

    def _module(self):
        return _Odd()


class _Odd(torch.nn.Module):
    def forward(self, x):
        return (x.double().mean((1, 2, 3)).erf().exp(),)


def test_a_method_of_ones_own_with_other_operators_is_told_so(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(
        DataError, match=r"not written; odd cannot be exported: it holds the operator Exp, which"
    ):
        export(fitted(Odd, None), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_one_file_holds_are_refused_before_anything_is_written(echo, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr("dia.deploy.export._LARGEST", 1)
    with pytest.raises(
        DataError, match=r"m\.onnx: 0\.0 GiB of weights and normals; one ONNX file holds"
    ) as error:
        export(echo, tmp_path / "m.onnx")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def written(echo_onnx, monkeypatch):
    """`write_onnx` copies the file of `echo`, which takes no time."""
    monkeypatch.setattr(
        "dia.deploy.export.write_onnx", lambda graph, facts, path, opset: shutil.copy(echo_onnx[0], path)
    )


def test_a_file_that_differs_is_not_left(echo, written, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"before")
    other = copy.deepcopy(echo)
    other.calibration_ = Calibration.of(other.calibration_.scores * 1.01)
    with pytest.raises(
        DataError, match=r"not written; it differs from the model in the p-value of its score"
    ):
        export(other, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"before"


def test_a_dissolved_pixel_may_be_rounded_either_way_at_an_edge_only(plus, plus_onnx):
    run, images = OnnxModel(plus_onnx[0]).run, smooth_images(4, SIDE, SIDE, 3, seed=6)
    honest = Comparison(plus, run)
    honest.add(images)
    assert honest.beyond == ""

    def other(x):
        made = run(x)
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
    graph = scoring_graph(detector)

    def run(x):
        made = dict(zip(graph.outputs, (o.numpy() for o in graph(torch.from_numpy(x))), strict=True))
        return made | {name: change(made[name]) for name, change in changes.items()}

    comparison = Comparison(detector, run)
    comparison.add(smooth_images(4, SIDE, SIDE, seed=7))
    assert comparison.beyond.startswith(beyond)
    assert bool(comparison.beyond) == bool(beyond)


def test_the_runtime_refuses_what_is_not_ours(echo_onnx, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    with pytest.raises(DataError, match=r"none\.onnx: no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "torn.onnx").write_bytes(echo_onnx[0].read_bytes()[:5000])
    with pytest.raises(DataError, match=r"torn\.onnx: it is cut short; `dia export RUN` writes"):
        OnnxModel(tmp_path / "torn.onnx")
    model = onnx.load(echo_onnx[0])
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
    with pytest.raises(DataError, match="needs onnxruntime: pip install onnxruntime"):
        OnnxModel(echo_onnx[0])


# --- the command line ---------------------------------------------------------------------------------------


def test_scoring_with_the_file_writes_what_the_model_writes(plus, plus_onnx, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i, image in enumerate(smooth_images(5, SIDE, 31, 3, seed=8)):
        Image.fromarray(image).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    plus.save(tmp_path / "run")
    facts, rows = [], []
    for name, model in (("a", plus_onnx[0]), ("b", tmp_path / "run")):
        cli.main(
            f"score {model} {tmp_path}/in --out {tmp_path}/{name}.csv --heatmaps {tmp_path}/{name} "
            "--skip-bad --batch 1 --device cpu --false-alarm-rate 0.3 --json".split()
        )
        facts.append(json.loads(capsys.readouterr().out))
        assert facts[-1].pop("drift")["alarm"] is None  # five images are too few
        del facts[-1]["out"]
        rows.append(list(csv.reader((tmp_path / f"{name}.csv").read_text().splitlines())))
        assert len(list((tmp_path / name).iterdir())) == 5
    assert facts[0] == facts[1]
    a, b = rows
    assert [r[:1] + r[2:] for r in a] == [r[:1] + r[2:] for r in b]
    np.testing.assert_allclose([float(r[1]) for r in a[1:]], [float(r[1]) for r in b[1:]], rtol=1e-3)


def test_export_from_the_command_line(echo, echo_onnx, written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Detector, "load", lambda run, device: echo)
    run = str(tmp_path)
    np.savez(tmp_path / "d.npz", test_images=smooth_images(6, 30, 30)[..., 0], test_labels=np.zeros(6, int))
    cli.main(["export", run, "--out", f"{tmp_path}/m.onnx", "--check", f"{tmp_path}/d.npz", "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == echo_onnx[1]["images"] + 6
    for flags, message in (
        (["--opset", "11"], "--opset must be at least 18, not 11"),
        (["--out", "model.pt"], "--out model.pt: the name must end in .onnx"),
        (["--format", "torchscript"], "--format torchscript: not known; models are exported as ONNX alone"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", run, *flags])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
