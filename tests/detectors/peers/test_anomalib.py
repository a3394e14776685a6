"""anomalib's models as detectors: raw scores, our splits, no network; what cannot be is said or recorded."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import TINY, fresh

from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.data import phantoms
from dia.detectors import PEERS, Detector
from dia.detectors.dia import CSI, CSISettings
from dia.detectors.peers.anomalib import AnomalibSettings, Peer
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS, detector_class

TINY = {name: TINY[name] for name in PEERS}
SLOW = "efficientad"  # 256 px: a second for each image


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def needs_anomalib():
    pytest.importorskip("anomalib", reason="the eight need anomalib: the extra `peers`")


@pytest.fixture(scope="module")
def normals():
    return phantoms.load("train", size=32, n=24).normals().images


def tiny(method, **changes):
    return fresh(method, **changes).settings


def fit(method, images, *, seed=0, changes=None, **kwargs):
    return PEERS[method](tiny(method, **changes or {}), seed=seed, device="cpu").fit(images, **kwargs)


@pytest.fixture(scope="module")
def fitted(needs_anomalib, normals, tmp_path_factory):
    """Each method once, fitted as late as a test asks for it, from a folder that must stay empty."""
    made = {}
    here, empty = os.getcwd(), tmp_path_factory.mktemp("empty")

    def get(method):
        if method not in made:
            os.chdir(empty)
            try:
                made[method] = fit(method, normals)
            finally:
                os.chdir(here)
            assert not list(empty.iterdir()), "files where nobody asked for them"
        return made[method]

    return get


@pytest.fixture(scope="module")
def few():
    """Two images for the slow one, else six."""
    images = phantoms.load("test", size=32, n=6).images
    return lambda method: images[:2] if method == SLOW else images


# --- without anomalib ------------------------------------------------------------------------------------

LISTING = """
import sys
sys.modules["anomalib"] = None
import dia.detectors
assert "timm" not in sys.modules
from dia.detectors import METHODS, PEERS, detector_class
from dia.data.imageset import DataError
from dia.cli.main import main
import numpy as np
assert len(PEERS) == 8 and set(PEERS) <= set(METHODS)
for make in (lambda: detector_class("anomalib:Padim"),
             lambda: PEERS["patchcore"]().fit(np.zeros((24, 16, 16, 1), np.uint8))):
    try:
        make()
    except DataError as error:
        assert "pip install 'dia-anomaly[peers]'" in str(error) and "\\n" not in str(error)
    else:
        raise AssertionError
main(["methods"])
"""


def test_methods_are_listed_without_anomalib_and_say_what_they_need():
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(name in done.stdout for name in PEERS)


def test_what_is_said_of_each():
    for method in PEERS:
        cls = METHODS[method]
        assert cls.paper
        assert bool(cls.pretrained) == (method != "ganomaly") == hasattr(cls.Settings, "weights")
        assert cls.has_heatmaps() == (method != "ganomaly")
    paper = PEERS["uflow"](settings(PEERS["uflow"].Settings, "paper"))
    assert "cait_s24_224.fb_dist_in1k" in paper.weights_source()  # the second of its two networks


@pytest.mark.parametrize(
    ("method", "asked", "done"),
    [("ganomaly", 28, 32), ("ganomaly", 48, 64), ("fastflow", 28, 32), ("uflow", 40, 48), ("rd4ad", 28, 32),
     ("rd4ad", 80, 96), ("efficientad", 64, 256), ("efficientad", 300, 300), ("cfa", 28, 32),
     ("patchcore", 40, 40)],
)  # fmt: skip
def test_a_side_that_a_method_cannot_have_is_raised(method, asked, done):
    s = tiny(method, size=asked)
    assert PEERS[method](s).side() == done
    assert s.size == asked


def test_transformers_have_the_side_they_were_made_for():
    assert PEERS["uflow"](tiny("uflow", backbone="mcait")).side() == 448
    assert PEERS["fastflow"](tiny("fastflow", backbone="deit_base_distilled_patch16_384")).side() == 384


# --- each of the eight ---------------------------------------------------------------------------------


def test_another_seed_gives_other_scores(fitted, normals, few):
    x = few("patchcore")
    assert not np.allclose(fit("patchcore", normals, seed=1).score(x), fitted("patchcore").score(x))


def test_ganomaly_scores_are_the_difference_of_the_two_codes(fitted, few):
    """Two epochs teach it nothing, so it is measured by its formula: mean squared difference of the codes."""
    detector, x = fitted("ganomaly"), few("ganomaly")
    with torch.no_grad():
        _, first, second = detector.model_.generator(detector._input(x))
    expected = (first - second).square().mean(1).flatten().numpy()
    np.testing.assert_allclose(detector.score(x), expected, rtol=1e-5)
    assert float(detector._input(np.full((1, 8, 8, 1), 255, np.uint8)).max()) == 1.0


def test_nothing_is_printed(needs_anomalib, normals, few, capfd):
    fit("patchcore", normals).score(few("patchcore"))
    fit("cfa", normals, changes={"epochs": 1})
    said = capfd.readouterr()
    assert said.out + said.err == ""


# --- limits --------------------------------------------------------------------------------------------


def test_what_was_raised_is_recorded_and_the_hash_stays(fitted, normals):
    raised = fit("fastflow", normals, changes={"size": 28})
    assert raised.facts_["adapted"] == {"size": [28, 32]}
    assert raised.settings_hash() == PEERS["fastflow"](tiny("fastflow", size=28)).settings_hash()
    assert "adapted" not in fitted("fastflow").facts_


@pytest.mark.slow
def test_efficientad_records_what_stands_for_natural_images(fitted):
    assert fitted(SLOW).adapted_ == {"imagenette": ["natural images", "shuffled tiles of the normals"]}


def test_patchcore_keeps_its_budget(fitted, normals):
    # 384 channels on 4×4 places (32 px, layer2), 4 bytes, twice: 49 152 bytes for each image
    few = fit("patchcore", normals, changes={"memory_gb": 49152 * 10.5e-9, "coreset_sampling_ratio": 1.0})
    assert few.adapted_ == {"images": [few.n_train_, 10]}
    assert few.model_.memory_bank.shape == (10 * 16, 384)
    assert "images" not in fitted("patchcore").adapted_
    with pytest.raises(DataError, match="memory_gb must be above"):
        fit("patchcore", normals, changes={"memory_gb": 1e-6})


def test_cflow_has_as_many_fibres_as_a_batch_and_drops_the_last(needs_anomalib, normals, few):
    assert len(normals) % 7
    detector = fit("cflow", normals, changes={"batch": 7, "layers": ("layer2", "layer4")})
    assert detector.adapted_ == {"fiber_batch_size": [128, 7]}  # one place of layer4 in each image
    assert np.isfinite(detector.score(few("cflow"))).all()
    assert torch.isfinite(detector.model_.anomaly_map_generator.peaks).all()


def test_the_ledger_tells_what_was_adapted(needs_anomalib, tmp_path):
    from dia.benchmark.ledger import Ledger
    from dia.benchmark.runs import run

    train, test = phantoms.load("train", size=28, n=24).normals(), phantoms.load("test", size=28, n=8)
    ledger = Ledger(tmp_path / "runs.jsonl")
    kwargs = {"device": "cpu", "workdir": tmp_path / "work", "ledger": ledger}
    changes = TINY["fastflow"] | {"size": 28}
    line = run("phantom", train, test, "fastflow", changes=changes, **kwargs)
    assert line["adapted"] == {"size": [28, 32]}
    assert line["weights"] == "none (random, seed 0)"
    plain_line = run("phantom", train, test, "trivial:statistics", **kwargs)
    assert "adapted" not in plain_line


def test_grey_colour_and_oblong_images_are_squares_to_it(needs_anomalib, make_images):
    for shape in ((20, 28, 1), (36, 24, 3)):
        x = make_images(24, *shape)
        detector = fit("patchcore", x)
        assert detector.score(x[:3]).shape == (3,)
        assert detector.heatmap(x[:3]).shape == (3, *shape[:2])


# --- weights -------------------------------------------------------------------------------------------


def test_imagenet_without_network_says_what_to_do(needs_anomalib, normals):
    for method in ("patchcore", "uflow", "cfa"):
        with pytest.raises(DataError, match=r"--settings\.weights none"):
            fit(method, normals, changes={"weights": "imagenet"})


def test_a_teacher_of_a_file_is_taken_and_one_that_is_none_is_refused(needs_anomalib, normals, tmp_path):
    detector = PEERS[SLOW](tiny(SLOW, weights=str(tmp_path / "no.pth")), device="cpu")
    with pytest.raises(DataError, match="no file"):
        detector.weights_source()
    file = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(DataError, match="no teacher to be had"):
        fit(SLOW, normals, changes={"weights": str(file)})


def test_a_file_fills_the_backbone(needs_anomalib, normals, tmp_path):
    from dia.features.networks import backbone

    file = tmp_path / "resnet18.pth"
    torch.save(backbone("resnet18", "none", seed=7).state_dict(), file)
    detector = fit("patchcore", normals, changes={"weights": str(file)})
    other = fit("cfa", normals, changes={"weights": str(file), "epochs": 1})
    wanted = backbone("resnet18", "none", seed=7).layer2[0].conv1.weight
    assert torch.equal(detector.model_.feature_extractor.feature_extractor.layer2[0].conv1.weight, wanted)
    assert torch.equal(other.model_.feature_extractor.network.layer2[0].conv1.weight, wanted)


@pytest.fixture(scope="module")
def own_run(normals, tmp_path_factory):
    s = CSISettings(AmplifySettings(size=32, width=4, stem="patch", steps=2, batch=4), samples=1)
    return CSI(s, device="cpu").fit(normals).save(tmp_path_factory.mktemp("run") / "csi")


@pytest.mark.parametrize("method", ["patchcore", "cflow", "fastflow", "uflow", "cfa"])
def test_our_own_encoder_takes_the_place_of_a_resnet(method, needs_anomalib, own_run, normals, few, tmp_path):
    shorter = {} if method == "patchcore" else {"epochs": 1}
    detector = fit(method, normals, changes={"weights": f"dia:{own_run}"} | shorter)
    start = Detector.load(own_run, device="cpu").encoder_.state_dict()["stages.0.conv1.weight"]
    kept = [v for k, v in detector._tensors().items() if k.endswith("own.layer1.0.conv1.weight")]
    assert np.array_equal(kept[0], start.numpy())
    folder = detector.save(tmp_path / "model")
    moved = own_run.rename(tmp_path / "gone")
    try:
        x = few(method)
        assert np.array_equal(Detector.load(folder, device="cpu").score(x), detector.score(x))
    finally:
        moved.rename(own_run)


def test_an_encoder_that_does_not_fit_rd4ad_is_refused(needs_anomalib, own_run, normals):
    with pytest.raises(DataError, match="width of 64"):
        fit("rd4ad", normals, changes={"weights": f"dia:{own_run}"})


# --- any other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("Padim", {"n_features": 20}), ("Stfpm", {})])
def test_any_other_model_of_anomalib(name, options, needs_anomalib, normals, few, tmp_path):
    cls = detector_class(f"anomalib:{name}")
    assert cls is detector_class(f"anomalib:{name}")
    assert issubclass(cls, Peer)
    s = AnomalibSettings(size=32, batch=8, epochs=1, options=options)
    detector = cls(s, device="cpu").fit(normals, workdir=tmp_path / "work")
    x = few(name)
    scores = detector.score(x)
    assert len(set(scores.tolist())) == len(x)
    assert detector.heatmap(x).shape == (len(x), 32, 32)
    loaded = Detector.load(detector.save(tmp_path / "model"), device="cpu")
    assert type(loaded) is cls
    assert np.array_equal(loaded.score(x), scores)
    assert Path(tmp_path / "work").exists()


def test_names_that_anomalib_does_not_have(needs_anomalib, normals):
    with pytest.raises(DataError, match=r"anomalib:Magic is not known; of anomalib there are: .*Padim"):
        detector_class("anomalib:Magic")
    with pytest.raises(DataError, match="anomalib:NAME"):
        detector_class("magic")
    s = AnomalibSettings(size=32, options={"colour": 3})
    with pytest.raises(DataError, match="colour"):
        detector_class("anomalib:Padim")(s, device="cpu").fit(normals)


def test_a_hash_tells_options_apart(needs_anomalib):
    cls = detector_class("anomalib:Padim")
    a, b = (AnomalibSettings(options={"n_features": n}) for n in (20, 30))
    assert cls(a).settings_hash() != cls(b).settings_hash()
    assert cls(a).settings_hash() == cls(replace(b, options={"n_features": 20})).settings_hash()


def test_patchcores_coreset_is_anomalibs(needs_anomalib, normals):
    from anomalib.models.components import KCenterGreedy

    from dia.detectors.peers import anomalib_models as peers

    class Model:
        pass

    patches = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0))
    mine = Model()
    mine.embedding_store = [patches[:3000], patches[3000:]]
    for make in (
        lambda: peers._subsample(mine, 0.01),
        lambda: setattr(mine, "theirs", KCenterGreedy(patches, 0.01).sample_coreset()),
    ):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        make()
    assert mine.memory_bank.shape == (50, 40)
    assert torch.equal(mine.memory_bank, mine.theirs)
