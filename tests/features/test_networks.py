"""Weights of backbones: each source gives the network it should, or says in one line why not. No network."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dia.amplify.contrast import AmplifySettings, encoder_input
from dia.core.errors import DataError
from dia.detectors import MSC, Detector
from dia.detectors.dia import CSI, CSISettings
from dia.detectors.peers.msc import MSCSettings
from dia.detectors.registry import METHODS
from dia.detectors.saving import identity_of, module_tensors
from dia.features.networks import (
    MEAN,
    STD,
    TAGS,
    OwnFeatures,
    OwnResNet,
    backbone,
    describe,
    restored,
    to_input,
)

timm = pytest.importorskip("timm")
EFFNET = "efficientnet_b0"


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def named(name, library):
    """A seeded network with unusual statistics, its state dict, and its convolutional features of images."""
    torch.manual_seed(3)
    if library == "timm":
        model = timm.create_model(name).eval()
        features = model.forward_features
    else:
        tv = pytest.importorskip("torchvision").models
        model = getattr(tv, name)().eval()
        if name.startswith("resnet"):
            features = torch.nn.Sequential(*list(model.children())[:-2])
        else:
            features = model.features
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(part.weight, 0.5, 1)
    return model.state_dict(), features


def is_frozen(model):
    trains = any(p.requires_grad for p in model.parameters())
    return not trains and not any(m.training for m in model.modules())


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["resnet18", EFFNET])
def test_a_file_of_either_library_and_format_gives_its_network(tmp_path, images, name, library, ending):
    state, features = named(name, library)
    path = str(tmp_path / f"weights{ending}")
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    model = backbone(name, path)
    assert is_frozen(model)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), features(images))
    assert path in describe(name, path)
    assert "sha256" in describe(name, path)


def test_vgg_goes_by_torchvisions_names_and_keeps_only_the_features_it_is_asked_for(tmp_path, images):
    vgg = pytest.importorskip("torchvision").models.vgg
    features = vgg.make_layers(vgg.cfgs["A"], batch_norm=False).eval()
    state = {f"features.{k}": v for k, v in features.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(1).expand(4096, 25088)  # does no harm; one number in the file
    torch.save({"state_dict": state}, tmp_path / "vgg.pth")
    model = backbone("vgg11", str(tmp_path / "vgg.pth"), features_only=True, out_indices=(1, 5))
    with torch.no_grad():
        first, last = model(images)
        torch.testing.assert_close(last, features(images))
        torch.testing.assert_close(first, features[:5](images))
    assert is_frozen(model)


def test_a_vision_transformer_of_torchvision_is_renamed_and_brought_to_another_size(tmp_path):
    tv = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    small = {"num_layers": 2, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
    theirs = tv.VisionTransformer(image_size=224, patch_size=16, **small).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = torch.cat([theirs.class_token.expand(1, -1, -1), theirs._process_input(x)], 1)
        ours = backbone("vit_tiny_patch16_224", str(tmp_path / "vit.pth"), depth=2)
        torch.testing.assert_close(ours.forward_features(x), theirs.encoder(tokens), rtol=1e-4, atol=1e-4)
    other = backbone("vit_tiny_patch16_224", str(tmp_path / "vit.pth"), depth=2, img_size=64)
    assert other.pos_embed.shape == (1, 17, 192)


class _Code:
    def __reduce__(self):
        return (print, ("code of the file runs",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "code.pth"
    torch.save({"conv1.weight": _Code()}, path)
    with pytest.raises(DataError, match="neither safetensors nor a plain torch state dict"):
        backbone("resnet18", str(path))
    path.write_bytes(pickle.dumps(_Code(), 2))
    with pytest.raises(DataError, match="neither"):
        backbone("resnet18", str(path))
    assert "runs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer3.1.bn2.bias"}, "layer3.1.bn2.bias is missing"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1.weight is \(64, 3, 7, 7\), not"),
        (lambda s: {f"encoder.{k}": v for k, v in s.items()}, "conv1.weight is missing"),
        (lambda s: {"epoch": 3}, "no state dict"),
        (lambda s: [1, 2], "no state dict"),
    ],
)
def test_a_file_that_does_not_fit_says_so_in_one_line(tmp_path, change, message):
    path = str(tmp_path / "weights.pth")
    torch.save(change(timm.create_model("resnet18").state_dict()), path)
    with pytest.raises(DataError, match=message) as error:
        backbone("resnet18", path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"weights {path}")


def test_no_such_file_names_the_choices():
    for call in (backbone, describe):
        with pytest.raises(DataError, match=r"imagnet.*imagenet, none"):
            call("resnet18", "imagnet")


def test_random_weights_follow_the_seed_alone():
    def first(seed):
        return backbone("resnet18", "none", seed=seed).conv1.weight

    torch.manual_seed(1)
    a, following = first(0), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))  # the caller's random numbers stay as they are
    assert torch.equal(a, first(0))
    assert not torch.equal(a, first(1))
    assert is_frozen(backbone("resnet18", "none"))
    assert describe("resnet18", "none", seed=4) == "none (random, seed 4)"


def test_imagenet_offline_names_what_where_and_both_remedies(monkeypatch, caplog):
    asked = []

    def fails(name, **kwargs):
        asked.append((name, kwargs["pretrained"]))
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm.models, "create_model", fails)
    with pytest.raises(DataError) as error:
        backbone("resnet152", "imagenet")
    message = str(error.value)
    assert asked == [("resnet152.tv_in1k", True)]
    assert "\n" not in message
    for part in ("huggingface.co/timm/resnet152.tv_in1k", "no route to host", "weights PATH", "weights none"):
        assert part in message
    assert "huggingface.co/timm/resnet152.tv_in1k" in caplog.text  # said before it is fetched


def test_imagenet_that_comes_is_frozen(monkeypatch):
    make = timm.create_model

    def fetches(name, pretrained, **kwargs):
        return make(name.split(".")[0], pretrained=False, **kwargs)

    monkeypatch.setattr(timm.models, "create_model", fetches)
    model = backbone("resnet18", "imagenet")
    assert is_frozen(model)
    assert describe("resnet18", "imagenet") == "imagenet (resnet18.tv_in1k via timm)"


def test_imagenet_from_the_hub_with_no_network_is_one_line():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE  # conftest
    with pytest.raises(DataError, match="could not be had"):
        backbone("resnet18", "imagenet", cache_dir="/nonexistent")


def test_every_tag_is_known_to_timm_and_is_its_architectures():
    known = set(timm.list_pretrained())
    for name, tag in TAGS.items():
        assert tag in known
        assert tag.split(".")[0] == name
    with pytest.raises(DataError, match="no tag is known for resnet26"):
        backbone("resnet26", "imagenet")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("dia.features.own.find_spec", lambda name: None)
    own = OwnResNet(1, 4, 1, 32)
    for call in (lambda: backbone("resnet18", "none"), lambda: OwnFeatures(own, (1, 2))):
        with pytest.raises(DataError, match=r"needs timm: pip install 'dia-anomaly\[backbones\]'"):
            call()


@pytest.fixture(scope="module", params=[("patch", 1), ("cifar", 3), ("auto", 1)])
def run(request, make_images, tmp_path_factory):
    stem, channels = request.param
    s = CSISettings(AmplifySettings(size=32, width=4, stem=stem, steps=2, batch=4), samples=1)
    detector = CSI(s, device="cpu").fit(make_images(24, 32, 32, channels))
    return detector, detector.save(tmp_path_factory.mktemp("csi") / "run")


def test_our_own_encoder_gives_its_penultimate_features(run, make_images):
    detector, folder = run
    x = make_images(3, 32, 32, detector.shape_[2], seed=9)
    own = backbone("resnet18", f"dia:{folder}")
    assert is_frozen(own)
    with torch.no_grad():
        expected = detector.encoder_(encoder_input(x, detector.s.amplify))[0]
        torch.testing.assert_close(own(to_input(x, 32)), expected, rtol=1e-4, atol=1e-5)
        if detector.shape_[2] == 1:  # of colour, it sees the mean of the channels
            coloured = make_images(3, 32, 32, 3)
            grey = torch.from_numpy(coloured).float().mean(-1)[:, None] / 255
            torch.testing.assert_close(
                own(to_input(coloured, 32)), detector.encoder_(grey)[0], rtol=1e-3, atol=1e-4
            )
    assert own.num_features == expected.shape[1]
    assert "sha256" in describe("resnet18", f"dia:{folder}")


def test_weights_are_what_they_are_wherever_they_lie(run, tmp_path):
    assert (identity_of("none"), identity_of("imagenet")) == ("none", "imagenet")
    (tmp_path / "a.pth").write_bytes(b"1")
    (tmp_path / "b.pth").write_bytes(b"1")
    (tmp_path / "c.pth").write_bytes(b"2")
    a, b, c = (identity_of(str(tmp_path / f"{n}.pth")) for n in "abc")
    assert a == b != c
    assert a.startswith("sha256:")
    assert identity_of("absent.pth") == "absent.pth"
    assert identity_of(f"dia:{tmp_path}") == f"dia:{tmp_path}"
    detector, folder = run
    detector.facts_ |= {"train_sha256": "5" * 64}
    for copy in (tmp_path / "x", tmp_path / "y"):
        detector.save(copy)
    expected = f"dia:{detector.settings_hash()}-{detector.seed}-{'5' * 32}"
    assert identity_of(f"dia:{tmp_path / 'x'}") == identity_of(f"dia:{tmp_path / 'y'}") == expected
    hashes = {MSC(MSCSettings(weights=f"dia:{tmp_path / name}")).settings_hash() for name in ("x", "y")}
    assert len(hashes) == 1
    assert hashes != {MSC(MSCSettings(weights=f"dia:{folder}")).settings_hash()}  # without such facts


def test_a_loaded_model_keeps_the_hash_it_was_fitted_with(tmp_path, make_images):
    weights = tmp_path / "w.pth"
    torch.save(backbone("resnet18", "none", seed=3).state_dict(), weights)
    s = MSCSettings(backbone="resnet18", weights=str(weights), size=16, epochs=1, batch=8)
    detector = MSC(s, device="cpu").fit(make_images(24))
    before = detector.settings_hash()
    detector.save(tmp_path / "m")
    weights.unlink()
    assert Detector.load(tmp_path / "m").settings_hash() == before


def test_a_saved_backbone_comes_back_without_its_source(run, images):
    own = backbone("resnet18", f"dia:{run[1]}")
    again = restored("resnet18", module_tensors(own, "b."), "b.")
    assert isinstance(again, OwnResNet)
    plain = backbone("resnet18", "none", seed=5)
    for model, copy in ((own, again), (plain, restored("resnet18", module_tensors(plain, "b."), "b."))):
        assert is_frozen(copy)
        with torch.no_grad():
            assert torch.equal(model(images), copy(images))


def test_our_own_encoder_is_refused_where_it_cannot_stand(run, make_images, tmp_path):
    with pytest.raises(DataError, match="cannot stand for vgg16"):
        backbone("vgg16", f"dia:{run[1]}")
    std = METHODS["trivial:std"]().fit(make_images()).save(tmp_path / "std")
    with pytest.raises(DataError, match="trivial:std has no encoder"):
        backbone("resnet18", f"dia:{std}")
    with pytest.raises(DataError, match="not a model folder"):
        backbone("resnet18", f"dia:{tmp_path / 'absent'}")


@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([1, 3]), st.integers(0, 255))
def test_input_of_one_grey_is_that_grey_normalised(h, w, channels, grey):
    x = to_input(np.full((1, h, w, channels), grey, np.uint8), 12)
    assert x.shape == (1, 3, 12, 12)
    expected = (grey / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(x, expected.view(1, 3, 1, 1).expand_as(x), rtol=1e-4, atol=1e-4)


def test_input_is_what_it_is_alone_and_of_channels_in_order(make_images):
    x = make_images(4, 20, 20, 3)
    whole = to_input(x, 16)
    torch.testing.assert_close(to_input(x[2:3], 16)[0], whole[2])
    same = to_input(x, 20, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(same.permute(0, 2, 3, 1) * 255, x, atol=1e-3)
