"""What methods with a pretrained network share: what is frozen, refusals, presets, sources of weights."""

import shutil
from functools import cache

import numpy as np
import pytest
import torch
from contract import fresh

from dia.amplify.contrast import AmplifySettings
from dia.core.settings import SettingsError
from dia.detectors import Detector
from dia.detectors.dia import CSI, CSISettings
from dia.detectors.peers.pretrained import Learner
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS
from dia.features.networks import backbone

pytest.importorskip("timm")

PARTS = {"kdad": "cloner", "transformaly": "student", "uniad": "rebuilder"}  # the network that learns


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """The frozen networks, each made once, as detectors can share them: a random VGG takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dia.detectors.peers.pretrained.backbone", shared := cache(backbone))
        yield shared


@pytest.fixture(scope="module")
def normals(make_images):
    return make_images(24, 32, 32, 1)


@pytest.fixture(scope="module")
def fitted(normals, tmp_path_factory):
    """A method's fitted detector and the folder of its finished stages; made once."""
    made = {}

    def get(method):
        if method not in made:
            work = tmp_path_factory.mktemp(method)
            made[method] = fresh(method, seed=2).fit(normals, workdir=work), work
        return made[method]

    return get


@pytest.fixture(scope="module")
def own_run(normals, tmp_path_factory):
    s = CSISettings(AmplifySettings(size=32, width=4, stem="patch", steps=2, batch=4), samples=1)
    return CSI(s, device="cpu").fit(normals).save(tmp_path_factory.mktemp("own") / "csi")


@pytest.mark.parametrize("method", PARTS)
def test_one_network_stays_as_it_came_and_the_other_learns_every_weight(method, fitted, frozen):
    before = fresh(method, seed=2)
    before.where_ = torch.device("cpu")
    before.frozen_ = frozen(before._architecture(), "none", seed=2, **before._options())
    came = {name: value.clone() for name, value in before.frozen_.state_dict().items()}
    detector = fitted(method)[0]
    for name, value in came.items():
        assert torch.equal(value, detector.frozen_.state_dict()[name]), name
    for name, value in before._untrained().named_parameters():
        assert not torch.equal(value, detector.trained_.state_dict()[name]), name
    for network in (detector.frozen_, detector.trained_):
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(part.training for part in network.modules())
    assert {k.partition(".")[0] for k in detector._tensors()} >= {detector.parts[0], PARTS[method]}


@pytest.mark.parametrize("method", PARTS)
def test_checkpoints_do_not_hold_the_frozen_network(method, fitted, normals):
    detector = fitted(method)[0]
    learner = Learner(detector.trained_, detector._loss, normals, detector.s, 0)
    assert all(name.startswith("network.") for name in learner.state_dict())
    assert not any(module is detector.frozen_ for module in learner.modules())


@pytest.mark.parametrize(
    ("method", "changes"),
    [("kdad", {"sigma": 1.0}), ("transformaly", {"variance": 0.5}), ("msc", {"bank_size": 5})],
)
def test_settings_of_the_score_alone_train_nothing_anew(method, changes, fitted, normals, monkeypatch):
    detector, work = fitted(method)
    monkeypatch.setattr("dia.core.running.loop.train", lambda *_, **__: pytest.fail("trained again"))
    found = fresh(method, seed=2, **changes).fit(normals, workdir=work)
    name = "network_" if method == "msc" else "trained_"
    for one, other in zip(
        getattr(detector, name).parameters(), getattr(found, name).parameters(), strict=True
    ):
        assert torch.equal(one, other)
    same = found.heatmap(normals[:3]) if method == "kdad" else found.score(normals[:3])
    before = detector.heatmap(normals[:3]) if method == "kdad" else detector.score(normals[:3])
    assert not np.allclose(same, before)


@pytest.mark.parametrize("method", PARTS)
def test_equal_images_do_not_break_it(method, normals):
    detector = fresh(method, seed=2, epochs=1).fit(np.full_like(normals, 7))
    assert np.isfinite(detector.score(normals[:4])).all()


@pytest.mark.parametrize("method", ["transformaly", "msc", "uniad"])
def test_weights_of_a_file_or_a_run_are_taken_and_not_needed_to_load(method, own_run, normals, tmp_path):
    if method == "transformaly":
        path = tmp_path / "weights.pth"
        weights, state = str(path), backbone("vit_tiny_patch16_224", "none", seed=8, img_size=32).state_dict()
        torch.save(state, path)
    else:
        path = shutil.copytree(own_run, tmp_path / "csi")
        weights, state = f"dia:{path}", Detector.load(path, device="cpu").encoder_.state_dict()
    detector = fresh(method, weights=weights, epochs=1).fit(normals)
    assert detector.weights_source().startswith(f"{weights} (sha256 ")
    kept = detector._tensors()
    name, as_saved = {
        "transformaly": ("blocks.5.attn.qkv.weight", "teacher.blocks.5.attn.qkv.weight"),
        "msc": ("stem.0.weight", "network.stem.0.weight"),
        "uniad": ("stem.0.weight", "network.own.stem.0.weight"),
    }[method]
    np.testing.assert_array_equal(kept[as_saved], state[name])
    folder = detector.save(tmp_path / "model")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    loaded = Detector.load(folder, device="cpu")
    np.testing.assert_allclose(loaded.score(normals[:4]), detector.score(normals[:4]), rtol=1e-6)


# --- settings ------------------------------------------------------------------------------------------

REFUSED = {
    "kdad": [("size", 31), ("epochs", 0), ("batch", 1), ("lr", 0.0), ("value_weight", -1.0), ("sigma", -1.0),
             ("weights", ""), ("weights", "dia:runs/x"), ("precision", "16")],
    "msc": [("backbone", "vgg16"), ("size", 8), ("epochs", 0), ("batch", 1), ("lr", 0.0),
            ("temperature", -1.0), ("weight_decay", -1.0), ("neighbours", 0), ("bank_size", 1),
            ("weights", ""), ("weights", "dia:"), ("precision", "16")],
    "transformaly": [("backbone", "resnet18"), ("size", 40), ("size", 16), ("epochs", 0), ("batch", 0),
                     ("lr", 0.0), ("variance", 1.0), ("bank_size", 2), ("weights", ""),
                     ("weights", "dia:runs/x"), ("precision", "16")],
    "uniad": [("backbone", "vgg16"), ("size", 40), ("size", 16), ("width", 12), ("width", 0), ("layers", 0),
              ("neighbours", 2), ("neighbours", -1), ("jitter", -1.0), ("epochs", 0), ("batch", 0),
              ("lr", 0.0), ("weight_decay", -1.0), ("clip", 0.0), ("weights", ""), ("weights", "dia:"),
              ("precision", "16")],
    "patchcore": [("memory_gb", 0.0), ("backbone", "vgg16"), ("weights", "")],
    "efficientad": [("weights", "dia:run"), ("batch", 2), ("steps", 1), ("imagenet_dir", "no/such")],
    "rd4ad": [("epochs", 0), ("anomaly_map_mode", "max")],
    "cfa": [("size", 4)],
    "cflow": [("lr", 0.0)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "name", "value"), [(method, *each) for method in REFUSED for each in REFUSED[method]]
)
def test_bad_settings_are_refused_by_name(method, name, value):
    with pytest.raises(SettingsError, match=f"^{name} "):
        fresh(method, **{name: value})


@pytest.mark.parametrize(
    ("method", "changes", "word"),
    [("uflow", {"backbone": "mcait", "size": 512}, "size"),
     ("uflow", {"backbone": "mcait", "weights": "some.pth"}, "weights"),
     ("uniad", {"backbone": "tf_efficientnet_b4", "weights": "dia:runs/x"}, "weights dia:RUN is a ResNet"),
     ("fastflow", {"backbone": "cait_m48_448", "weights": "dia:runs/x"}, "weights dia:RUN is a ResNet")],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(method, changes, word):
    with pytest.raises(SettingsError, match=f"^{word}"):
        fresh(method, **changes)


PUBLISHED = {
    "kdad": ({"lr": 1e-3, "batch": 64, "value_weight": 0.01, "sigma": 4.0, "precision": "32"}, "vgg16"),
    "msc": (
        {"backbone": "resnet152", "size": 224, "epochs": 20, "batch": 64, "lr": 1e-5, "weight_decay": 5e-5,
         "temperature": 0.25, "angular": False, "neighbours": 2, "precision": "32"}, "resnet152"),
    "transformaly": (
        {"size": 384, "lr": 1e-4, "epochs": 30, "variance": 0.9, "precision": "32"}, "vit_base_patch16_384"),
    "uniad": (
        {"size": 224, "width": 256, "layers": 4, "neighbours": 7, "jitter": 20.0, "lr": 1e-4,
         "weight_decay": 1e-4, "clip": 0.1, "precision": "32"}, "tf_efficientnet_b4"),
    "cflow": ({}, "wide_resnet50_2"),
    "rd4ad": ({}, "wide_resnet50_2"),
    "cfa": ({}, "wide_resnet50_2"),
    "patchcore": ({}, "wide_resnet50_2"),
    "uflow": ({}, "cait_m48_448"),
}  # fmt: skip


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_paper_preset_is_the_published_one_and_alone_asks_a_hub(method):
    cls, (expected, network) = METHODS[method], PUBLISHED[method]
    paper = settings(cls.Settings, "paper")
    assert {name: getattr(paper, name) for name in expected} == expected
    assert cls(paper).weights_source().startswith(f"imagenet ({network}.")
    for preset in ("cpu", "gpu"):
        s = settings(cls.Settings, preset)
        assert cls(s, seed=3).weights_source().startswith("none (random, seed 3)")
