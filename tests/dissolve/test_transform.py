"""`dia.Dissolve`: the dissolver's result in anyone's pipeline, whatever the type, size or order of images."""

import copy
import io
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip
from torch import nn

import dia
from dia import Dissolve
from dia.core.errors import DataError
from dia.dissolve import Control, Dissolver, DissolverSettings
from dia.dissolve.dissolver import to_tensor

DTYPES = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-6}


class Stub(nn.Module):
    """A U-Net whose output is known, and which remembers what it was given."""

    def __init__(self, output=0.2, channels=1, **config):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(output)))
        known = {"in_channels": channels, "out_channels": channels, "sample_size": 256}
        known |= {"block_out_channels": (8,), "class_embed_type": None, "num_class_embeds": None}
        self.config = SimpleNamespace(**known | config)
        self.seen = []

    @property
    def dtype(self):
        return self.weight.dtype

    @property
    def device(self):
        return self.weight.device

    def forward(self, x, t):
        assert x.dtype == self.dtype
        self.seen.append((x, t))
        return SimpleNamespace(sample=self.weight.expand(x.shape))


def schedule(prediction="epsilon", betas=(0.36,)):
    """ᾱ = 0.64 unless told otherwise: √(1/ᾱ) = 1.25 and √(1/ᾱ − 1) = 0.75."""
    betas = np.array(betas, np.float32)
    return DDPMScheduler(len(betas), trained_betas=betas, prediction_type=prediction)


def stubbed(t=0, output=0.2, channels=1, prediction="epsilon", betas=(0.36,), **options):
    return Dissolve(Stub(output, channels), t, scheduler=schedule(prediction, betas), **options)


def seen(dissolve):
    """(images, t) of every pass through the stub."""
    return dissolve.dissolving.unet_.seen


def drawn_t(dissolve):
    return torch.cat([t for _, t in seen(dissolve)])


def small_unet(channels=3, **config):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return UNet2DModel(
            sample_size=16,
            in_channels=channels,
            out_channels=config.pop("out_channels", channels),
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            **config,
        )


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def uint8(make_images):
    """`(6, 1, 28, 20)`."""
    return torch.from_numpy(make_images(6, 28, 20)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def tiny(tiny_dissolver):
    return Dissolve(tiny_dissolver, 100)


# --- the transformation -------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 30, 100, 400, 999])
def test_it_is_the_dissolvers_result(t, tiny_dissolver, make_images):
    images = make_images(70, 28, 20)
    dissolve = Dissolve(tiny_dissolver, t)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    theirs = torch.from_numpy(tiny_dissolver.dissolve(images, t)).permute(0, 3, 1, 2)
    assert torch.equal(dissolve(x), theirs)
    y = dissolve(x / 255)
    torch.testing.assert_close(y * 2 - 1, tiny_dissolver(to_tensor(images), t).clone(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [  # x = 0.5 in [−1, 1] and the network says 0.2, where √ᾱ = 0.8 and √(1 − ᾱ) = 0.6
        ("epsilon", 1.25 * 0.5 - 0.75 * 0.2),
        ("v_prediction", 0.8 * 0.5 - 0.6 * 0.2),
        ("sample", 0.2),
    ],
)
def test_the_formula_by_hand(prediction, expected):
    dissolve = stubbed(prediction=prediction)
    y = dissolve(torch.full((2, 1, 4, 6), 0.75))
    torch.testing.assert_close(y, torch.full((2, 1, 4, 6), (expected + 1) / 2))
    x, t = seen(dissolve)[0]
    assert torch.equal(x, torch.full((2, 1, 4, 6), 0.5))  # the clean image, in [−1, 1], with no noise
    assert t.tolist() == [0, 0]


def test_the_result_is_clamped_to_the_range_of_images():
    assert torch.equal(stubbed(output=-9.0)(torch.zeros(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))
    assert torch.equal(stubbed(output=9.0)(torch.ones(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_it_depends_on_image_and_t_alone(tiny, uint8):
    x = uint8 / 255
    torch.manual_seed(1)
    whole = tiny(x)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(tiny(x[order]), whole[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(tiny(x[2:3]), whole[2:3], rtol=0, atol=1e-5)
    torch.manual_seed(2)
    assert torch.equal(tiny(x), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny(x), whole)


def test_dropout_draws_nothing_in_training_mode():
    unet = small_unet(1, dropout=0.5)
    pipeline = nn.Sequential(Dissolve(unet, 100, scheduler=DDPMScheduler())).train()
    x = rand(2, 1, 16, 16)
    assert torch.equal(pipeline(x), pipeline(x))
    assert pipeline[0].training
    assert unet.training  # that of the caller is as it was
    assert all(p.requires_grad for p in unet.parameters())


def test_images_are_not_changed_in_place(tiny, uint8):
    before = uint8.clone()
    tiny(uint8)
    assert torch.equal(uint8, before)


# --- p and t ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_with_p_0_nothing_happens(dtype, tiny_dissolver, uint8):
    x = uint8 if dtype is torch.uint8 else uint8 / 255
    assert torch.equal(Dissolve(tiny_dissolver, 400, p=0)(x), x)


def test_with_p_half_only_the_chosen_are_dissolved_and_only_they_cost():
    dissolve, x = stubbed(p=0.5), rand(200, 1, 2, 2)
    torch.manual_seed(0)
    y = dissolve(x)
    changed = (y != x).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 140  # 100 ± 5.7 standard deviations
    assert torch.equal(changed, dissolve._params["batch_prob"] > 0.5)
    assert torch.equal(y[changed], stubbed()(x)[changed])
    assert sum(len(images) for images, _ in seen(dissolve)) == int(changed.sum())


def test_with_p_1_all_are_dissolved():
    assert bool((stubbed(p=1)(rand(50, 1, 2, 2)) != rand(50, 1, 2, 2)).flatten(1).any(1).all())


def test_t_is_drawn_for_each_image_evenly_and_from_the_whole_range():
    dissolve = stubbed((3, 7), betas=[0.01] * 10)
    torch.manual_seed(0)
    dissolve(rand(5000, 1, 1, 1))
    counts = torch.bincount(drawn_t(dissolve), minlength=10)
    assert counts[:3].sum() == counts[8:].sum() == 0
    assert (counts[3:8] - 1000).abs().max() < 5 * 28.3  # of a binomial with n = 5000 and p = 1/5


@pytest.mark.parametrize("p", [1, 0.5])
def test_each_image_is_dissolved_at_its_own_t(p):
    dissolve = stubbed((0, 1), betas=[0.36, 0.75], p=p)  # ᾱ = 0.64 and 0.16
    torch.manual_seed(0)
    y = dissolve(torch.full((40, 1, 1, 1), 0.75)).flatten() * 2 - 1
    t, chosen = dissolve._params["t"], dissolve._params["batch_prob"] > 0.5
    assert torch.equal(drawn_t(dissolve), t[chosen])
    by_hand = torch.tensor([1.25 * 0.5 - 0.75 * 0.2, 2.5 * 0.5 - 5.25**0.5 * 0.2])
    torch.testing.assert_close(y, torch.where(chosen, by_hand[t], 0.5))
    assert len(t[chosen].unique()) == 2


def test_one_draw_for_the_whole_batch():
    for seed in range(8):
        dissolve = stubbed((0, 9), betas=[0.01] * 10, p=0.5, same_on_batch=True)
        torch.manual_seed(seed)
        dissolve(rand(20, 1, 1, 1))
        assert not seen(dissolve) or len(drawn_t(dissolve)) == 20
        assert not seen(dissolve) or len(drawn_t(dissolve).unique()) == 1


def test_draws_follow_torchs_seed_and_can_be_repeated():
    dissolve, x = stubbed((0, 9), betas=[0.1] * 10, p=0.5), rand(20, 1, 2, 2)
    torch.manual_seed(3)
    first = dissolve(x)
    params = dissolve._params
    assert not torch.equal(dissolve(x), first)
    assert torch.equal(dissolve(x, params=params), first)
    torch.manual_seed(3)
    assert torch.equal(dissolve(x), first)


def test_t_can_be_said_at_the_call(tiny_dissolver, tiny, uint8):
    assert torch.equal(tiny(uint8, t=400), Dissolve(tiny_dissolver, 400)(uint8))
    ts = torch.tensor([10, 20, 30, 40, 50, 60])
    mixed = tiny(uint8 / 255, t=ts)
    for i, t in enumerate(ts):
        one = tiny(uint8[i] / 255, t=int(t))
        torch.testing.assert_close(mixed[i], one, rtol=0, atol=1e-5)


# --- types, shapes, gradients -------------------------------------------------------------------------


@given(
    st.sampled_from([*DTYPES, torch.uint8]),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([1, 3]),
    st.integers(5, 64),
    st.integers(5, 64),
)
@settings(max_examples=40)
@example(torch.uint8, (2,), 3, 224, 224)
@example(torch.float16, (), 1, 224, 28)
@example(torch.float32, (2,), 3, 96, 224)
@example(torch.float64, (0,), 1, 28, 28)
def test_type_and_shape_come_back_and_values_stay_in_range(tiny, dtype, n, c, h, w):
    x = rand(*n, c, h, w, seed=h * 65 + w)
    x = (x * 255).byte() if dtype is torch.uint8 else x.to(dtype)
    y = tiny(x)
    assert (y.dtype, y.shape, y.device) == (dtype, x.shape, x.device)
    assert not y.numel() or 0 <= y.min() <= y.max() <= (255 if dtype is torch.uint8 else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_float_type_means_the_same(dtype, channels, uint8):
    dissolve = Dissolve(small_unet(channels), 100, scheduler=DDPMScheduler())
    x = (uint8 / 255).expand(-1, channels, -1, -1)
    y = dissolve(x.to(dtype))
    torch.testing.assert_close(y.float(), dissolve(x), rtol=0, atol=2 * DTYPES[dtype])


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_rgb_images_on_a_grey_or_rgb_model(channels, uint8):
    dissolve = Dissolve(small_unet(channels), 100, scheduler=DDPMScheduler())
    grey = dissolve(uint8)
    rgb = dissolve(uint8.expand(-1, 3, -1, -1))
    assert grey.shape == uint8.shape
    assert (rgb.float().mean(1, keepdim=True) - grey).abs().max() <= 1  # rounding


def test_64_bits_are_kept():
    dissolve, x = stubbed(), rand(1, 1, 4, 4).double() / 2
    a, epsilon = dissolve.dissolving.alphas_cumprod_.double(), dissolve.networks["unet"].weight.double()
    expected = ((1 / a).sqrt() * (x * 2 - 1) - (1 / a - 1).sqrt() * epsilon).clamp(-1, 1)
    torch.testing.assert_close(dissolve(x), (expected + 1) / 2, rtol=0, atol=1e-14)


def test_keepdim_off_is_as_in_kornia(tiny_dissolver, uint8):
    assert Dissolve(tiny_dissolver, 50, keepdim=False)(uint8[0]).shape == (1, *uint8[0].shape)


def test_no_gradient_passes_and_none_is_asked_for(tiny_dissolver, uint8):
    dissolve = Dissolve(tiny_dissolver, 100, p=0.5)
    x = (uint8 / 255).requires_grad_()
    y = dissolve(x)
    assert not y.requires_grad
    assert len(list(dissolve.parameters())) > 0
    assert not any(p.requires_grad for p in dissolve.parameters())


def test_a_network_can_be_trained_on_the_result(tiny, uint8):
    net = nn.Conv2d(1, 4, 3)
    nn.Sequential(tiny, net)(uint8 / 255).square().mean().backward()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_can_have_another_type_than_the_images(dtype, tiny_dissolver, uint8):
    dissolve = Dissolve(tiny_dissolver, 100).to(dtype)
    assert {p.dtype for p in dissolve.parameters()} == {dtype}
    assert dissolve.dissolving.alphas_cumprod_.dtype == torch.float32  # 16 bits could not tell ᾱ from 1
    for x in (uint8 / 255, (uint8 / 255).half(), (uint8 / 255).double()):
        y = dissolve(x)
        assert y.dtype == x.dtype
        expected = Dissolve(tiny_dissolver, 100)(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=max(4 * DTYPES[dtype], 2e-3))
    assert tiny_dissolver.unet_.dtype == torch.float32  # the dissolver given is as it was


def test_it_moves_with_the_module_it_is_part_of(tiny_dissolver):
    outer = nn.ModuleList([Dissolve(tiny_dissolver, 100)]).to("meta")
    inner = outer[0].dissolving
    assert inner.where_.type == inner.unet_.device.type == inner.alphas_cumprod_.device.type == "meta"
    assert tiny_dissolver.where_.type == "cpu"


@pytest.mark.parametrize("how", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_dissolve_alike_and_alone(how, tiny_dissolver, uint8):
    dissolve = Dissolve(tiny_dissolver, (50, 400), p=0.5)
    other = how(dissolve)
    for d in (dissolve, other):
        torch.manual_seed(0)
        d.result = d(uint8)
    assert torch.equal(dissolve.result, other.result)
    assert other.networks["unet"] is other.dissolving.unet_  # so that it still moves
    assert other.dissolving.unet_ is not dissolve.dissolving.unet_


def test_its_state_goes_through_a_file(tiny_dissolver, uint8):
    dissolve, file = Dissolve(tiny_dissolver, 100), io.BytesIO()
    torch.save(dissolve.state_dict(), file)
    other = copy.deepcopy(dissolve)
    for p in other.parameters():
        p.zero_()
    assert not torch.equal(other(uint8), dissolve(uint8))
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(uint8), dissolve(uint8))


# --- models -------------------------------------------------------------------------------------------


def test_folders_of_a_dissolver_and_of_a_fit(tiny_dissolver, tiny, uint8, tmp_path):
    tiny_dissolver.save(tmp_path / "fit" / "dissolver")
    (tmp_path / "fit" / "calibration.json").write_text("{}")
    for folder in (tmp_path / "fit", tmp_path / "fit" / "dissolver", str(tmp_path / "fit")):
        dissolve = Dissolve(folder, 100)
        assert dissolve.dissolving.settings == tiny_dissolver.settings
        assert torch.equal(dissolve(uint8), tiny(uint8))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_any_diffusers_ddpm_however_it_is_given(prediction, uint8, tmp_path):
    unet, scheduler = small_unet(), DDPMScheduler(500, beta_schedule="linear", prediction_type=prediction)
    pipeline = DDPMPipeline(unet, scheduler)
    pipeline.save_pretrained(tmp_path)
    x = uint8[..., :16, :16].expand(-1, 3, -1, -1)
    t = 300
    with torch.inference_mode():
        y = x / 127.5 - 1
        clean = scheduler.step(unet.eval()(y, t).sample, t, y).pred_original_sample
    expected = (clean + 1) / 2
    for given_ in (tmp_path, pipeline, unet):
        dissolve = Dissolve(given_, t, scheduler=scheduler if given_ is unet else None)
        assert dissolve.dissolving.settings.size == 16
        torch.testing.assert_close(dissolve(x / 255), expected.clone(), rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="0–499"):
        Dissolve(pipeline, 500)


def test_larger_images_are_dissolved_at_the_models_size(uint8):
    unet = small_unet(1)
    for size, side in [(None, 16), (8, 8), (64, 28)]:
        dissolve, sides = Dissolve(unet, 100, scheduler=DDPMScheduler(), size=size), []
        dissolve.networks["unet"].register_forward_pre_hook(
            lambda _, args, s=sides: s.append(args[0].shape[-2])
        )
        dissolve(uint8)
        assert sides == [side]


def test_folded_pixels_and_their_size_are_recognised(tiny_dissolver, tiny, uint8):
    pipeline = DDPMPipeline(tiny_dissolver.unet_, tiny_dissolver.scheduler_)  # 4 channels of 8 pixels
    dissolve = Dissolve(pipeline, 100)
    assert dissolve.dissolving.settings.size == tiny_dissolver.settings.size == 16
    assert torch.equal(dissolve(uint8), tiny(uint8))


def test_a_unet_that_names_no_size_takes_all(uint8):
    dissolve = Dissolve(Stub(sample_size=None), 0, scheduler=schedule())
    dissolve(rand(1, 1, 300, 20))
    assert seen(dissolve)[0][0].shape == (1, 1, 300, 20)


@pytest.mark.parametrize("kind", ["gaussian", "identity"])
def test_stand_ins_too(kind, uint8, tmp_path):
    control = Control(DissolverSettings(kind=kind), device="cpu")
    control.save(tmp_path)
    expected = torch.from_numpy(control.dissolve(uint8.permute(0, 2, 3, 1).numpy(), 50)).permute(0, 3, 1, 2)
    for given_ in (control, tmp_path):
        assert torch.equal(Dissolve(given_, 50).half()(uint8), expected)


# --- pipelines ----------------------------------------------------------------------------------------


def test_in_kornia_masks_and_boxes_pass_through(tiny_dissolver, tiny, uint8):
    x, mask = uint8 / 255, (rand(6, 1, 28, 20) > 0.5).float()
    boxes = torch.tensor([[[2.0, 3.0, 9.0, 12.0]]]).expand(6, 1, 4)
    aug = AugmentationSequential(Dissolve(tiny_dissolver, 100), data_keys=["input", "mask", "bbox_xyxy"])
    y, same_mask, same_boxes = aug(x, mask, boxes)
    assert torch.equal(y, tiny(x))
    assert torch.equal(same_mask, mask)
    assert torch.equal(same_boxes, boxes)


def test_in_kornia_beside_others_with_their_draws_repeated(tiny_dissolver, uint8):
    aug = AugmentationSequential(
        RandomHorizontalFlip(p=0.5),
        Dissolve(tiny_dissolver, (50, 400), p=0.5),
        data_keys=["input", "mask"],
    )
    x, mask = uint8 / 255, (rand(6, 1, 28, 20) > 0.5).float()
    torch.manual_seed(0)
    y, flipped = aug(x, mask)
    again, flipped_again = aug(x, mask, params=aug._params)
    assert torch.equal(y, again)
    assert torch.equal(flipped, flipped_again)
    turned = aug._params[0].data["batch_prob"] > 0.5
    assert torch.equal(flipped, torch.where(turned[:, None, None, None], mask.flip(-1), mask))
    kept = aug._params[1].data["batch_prob"] < 0.5
    assert 0 < int(kept.sum()) < 6
    assert torch.equal(y[kept & ~turned], x[kept & ~turned])


@pytest.mark.parametrize("same", [True, False])
def test_kornias_container_has_its_say_over_same_on_batch(same):
    dissolve = stubbed((0, 9), betas=[0.01] * 10)
    AugmentationSequential(dissolve, data_keys=["input"], same_on_batch=same)(rand(20, 1, 2, 2))
    assert (len(drawn_t(dissolve).unique()) == 1) == same


def test_in_kornia_uint8_too(tiny, uint8):
    assert torch.equal(AugmentationSequential(copy.deepcopy(tiny), data_keys=["input"])(uint8), tiny(uint8))


def test_in_torchvision_a_sample_keeps_its_form(tiny, uint8):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    from torchvision import tv_tensors

    image, mask = tv_tensors.Image(uint8[0]), tv_tensors.Mask(uint8[1] > 99)
    box = tv_tensors.BoundingBoxes([[1, 2, 5, 9]], format="XYXY", canvas_size=(28, 20))
    pipeline = v2.Compose([v2.RandomHorizontalFlip(p=1), tiny, v2.ToDtype(torch.float32, scale=True)])
    y, target = pipeline(image, {"mask": mask, "boxes": box, "label": 3})
    assert type(y) is tv_tensors.Image
    torch.testing.assert_close(y.as_subclass(torch.Tensor), tiny(uint8[0].flip(-1)) / 255)
    assert type(target["mask"]) is tv_tensors.Mask
    assert torch.equal(target["mask"], mask.flip(-1))
    assert type(target["boxes"]) is tv_tensors.BoundingBoxes
    assert target["boxes"].tolist() == [[15, 2, 19, 9]]
    assert target["label"] == 3


def test_in_torchvision_plain_tensors_and_batches(tiny, uint8):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    pipeline = v2.Compose([v2.ToDtype(torch.float32, scale=True), tiny])
    torch.testing.assert_close(pipeline(uint8), tiny(uint8 / 255))
    y, label = pipeline(uint8[0], torch.tensor(1))
    torch.testing.assert_close(y, tiny(uint8[0] / 255))
    assert label == 1
    pil = v2.Compose([v2.ToImage(), tiny])(v2.ToPILImage()(uint8[0]))
    assert torch.equal(pil, tiny(uint8[0]))


def test_the_images_of_a_sample_share_a_draw():
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    dissolve = stubbed((0, 9), betas=[0.01] * 10)
    pair = {"left": tv_tensors.Image(rand(1, 2, 2)), "right": tv_tensors.Image(rand(1, 2, 2, seed=1))}
    for _ in range(10):
        dissolve(pair)
    left, right = drawn_t(dissolve)[::2], drawn_t(dissolve)[1::2]
    assert torch.equal(left, right)
    assert len(left.unique()) > 1


def test_importing_dia_imports_no_torch():
    code = "import sys, dia; assert 'Dissolve' in dir(dia); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Disolve'"):
        _ = dia.Disolve


def test_its_repr_is_one_line(tiny_dissolver):
    text = repr(Dissolve(tiny_dissolver, (30, 130), p=0.5))
    assert text == "Dissolve(p=0.5, p_batch=1.0, same_on_batch=False, t=(30, 130))"


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [-1, 1000, (30, 1000), (-3, 5), (100, 50)])
def test_t_out_of_range(t, tiny_dissolver):
    with pytest.raises(DataError, match="t must lie in 0–999"):
        Dissolve(tiny_dissolver, t)


@pytest.mark.parametrize("t", [1.5, "100", (1, 2, 3), (1.0, 2.0), None, ()])
def test_t_that_is_no_step(t, tiny_dissolver):
    with pytest.raises(DataError, match=r"t must be a whole number or \(low, high\)"):
        Dissolve(tiny_dissolver, t)


@pytest.mark.parametrize(
    ("t", "message"), [(1000, "0–999"), (2.5, "whole number"), (torch.arange(4), "each of 6")]
)
def test_t_said_at_the_call_is_checked_too(t, message, tiny, uint8):
    with pytest.raises(DataError, match=message):
        tiny(uint8, t=t)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_that_is_no_probability(p, tiny_dissolver):
    with pytest.raises(DataError, match=r"p must lie in \[0, 1\]"):
        Dissolve(tiny_dissolver, 30, p=p)


@pytest.mark.parametrize(
    "change", [lambda x: x * 255, lambda x: (x - 0.5) / 0.2, lambda x: x.log(), lambda x: x + float("nan")]
)
def test_images_out_of_range(change, tiny, uint8):
    with pytest.raises(DataError, match=r"must lie in \[0, 1\].*before any normalisation"):
        tiny(change(uint8 / 255))


@given(st.floats(-9e-4, 9e-4))
def test_what_rounding_carries_out_of_the_range_is_let_be(tiny, off):
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 1, 8, 2) + off
    assert tiny(x).isfinite().all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 2, 8, 8), "1 or 3"),
        (torch.zeros(1, 8, 8, 3), "1 or 3"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "float in .* or uint8, not torch.int64"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.bool), "float in .* or uint8, not torch.bool"),
        (torch.zeros(1, 2, 1, 8, 8), "shape"),
        (np.zeros((8, 8, 3), np.uint8), r"tensors, not ndarray.*ToImage"),
        ((), "not nothing"),
    ],
)
def test_what_is_no_image(images, message, tiny):
    with pytest.raises(ValueError, match=message):
        tiny(images)


@pytest.mark.parametrize(
    ("model", "scheduler", "message"),
    [
        (lambda: Dissolver(device="cpu"), None, "not fitted"),
        (lambda: 3, None, "cannot dissolve with int"),
        (lambda: nn.Conv2d(1, 1, 1), DDPMScheduler(), "cannot dissolve with Conv2d"),
        (lambda: small_unet(), None, "needs its scheduler"),
        (lambda: small_unet(2), DDPMScheduler(), "takes 2 channels"),
        (lambda: small_unet(out_channels=6), DDPMScheduler(), "from 3 to 6 channels"),
        (lambda: small_unet(num_class_embeds=4), DDPMScheduler(), "asks for a class"),
        (lambda: small_unet(), SimpleNamespace(), "has no alphas_cumprod"),
        (lambda: Stub(cross_attention_dim=8), DDPMScheduler(), "RandomDissolving"),
        (lambda: SimpleNamespace(unet=Stub(), vae=1), None, "RandomDissolving"),
        (lambda: "no-such/model", None, "not a diffusers DDPM folder or hub name"),
    ],
)
def test_models_that_cannot_be_used(model, scheduler, message):
    with pytest.raises(DataError, match=message) as error:
        Dissolve(model(), 100, scheduler=scheduler)
    assert "\n" not in str(error.value)


def test_a_folder_whose_model_cannot_be_used(tmp_path):
    DDPMPipeline(small_unet(num_class_embeds=4), DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="asks for a class"):
        Dissolve(tmp_path, 100)


def test_a_prediction_of_another_kind():
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(DataError, match="not 'flow_prediction'"):
        Dissolve(Stub(), 0, scheduler=scheduler)


def test_a_fit_without_a_dissolver(tmp_path):
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(DataError, match="no dissolver here; fit dia, or dia"):
        Dissolve(tmp_path, 100)
