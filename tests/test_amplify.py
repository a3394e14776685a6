"""Shifts, augmentation, encoder and contrastive training: group laws, ranges, counts, order and resuming."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import dia.amplify.learning as module
from dia.amplify.augment import Augment, AugmentSettings, colour_matrices, crop_grid, crop_matrices
from dia.amplify.encoder import Encoder
from dia.amplify.learning import AmplifySettings, build_encoder, encoder_input, learn
from dia.amplify.loss import contrastive_loss, targets
from dia.amplify.shifts import SHIFTS, cutperm, rotate
from dia.training import batch_indices, seed_step

TINY = AmplifySettings(size=16, width=4, steps=8, batch=6)


def batch(n=3, c=1, h=8, w=None, seed=0):
    return torch.rand(n, c, h, w or h, generator=torch.Generator().manual_seed(seed))


# --- shifts -------------------------------------------------------------------------------------------

four = st.integers(0, 3)


@given(four, four, st.integers(1, 9))
def test_rotations_form_the_cyclic_group(a, b, side):
    x = batch(h=side)
    assert torch.equal(rotate(rotate(x, a), b), rotate(x, (a + b) % 4))


@given(four, four, st.integers(1, 5), st.integers(1, 5))
def test_cutperms_form_the_klein_group(a, b, h, w):
    x = batch(h=2 * h, w=2 * w)
    assert torch.equal(cutperm(cutperm(x, a), b), cutperm(x, a ^ b))


@given(four, st.integers(1, 9), st.integers(1, 9))
def test_each_cutperm_undoes_itself_at_any_size(k, h, w):
    x = batch(h=h, w=w)
    assert torch.equal(cutperm(cutperm(x, k), k), x)


@pytest.mark.parametrize("name", ["rotation", "cutperm"])
def test_the_four_shifts_differ_and_the_first_is_none(name):
    k, shift = SHIFTS[name]
    x = batch(1)
    assert k == 4
    assert torch.equal(shift(x, 0), x)
    assert len({shift(x, i).numpy().tobytes() for i in range(4)}) == 4


def test_shifts_by_hand():
    x = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
    turned = [rotate(x, k).flatten().tolist() for k in range(4)]
    assert turned == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]  # anticlockwise
    cut = [cutperm(x, k).flatten().tolist() for k in range(4)]
    assert cut == [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]


def test_rotation_refuses_what_is_not_square():
    with pytest.raises(ValueError, match=r"not \(8, 6\).*cutperm"):
        rotate(batch(h=8, w=6), 1)


# --- augmentation -------------------------------------------------------------------------------------

areas = st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)).map(sorted).map(tuple)
ratios = st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)).map(sorted).map(tuple)


@given(areas, ratios, st.integers(0, 99))
def test_crops_lie_inside_the_image_within_area_and_ratio(area, ratio, seed):
    torch.manual_seed(seed)
    m = crop_matrices(50, area, ratio).double()
    w, h, x, y = m[:, 0, 0], m[:, 1, 1], m[:, 0, 2], m[:, 1, 2]
    assert (m[:, 0, 1] == 0).all()
    assert (m[:, 1, 0] == 0).all()
    for side, centre in ((w, x), (h, y)):
        assert ((side > 0) & (side <= 1)).all()
        assert (centre.abs() + side <= 1 + 1e-6).all()
    assert (w * h <= area[1] + 1e-5).all()
    free = (w < 1) & (h < 1)
    assert ((w * h)[free] >= area[0] - 1e-5).all()
    aspect = (w / h)[free]
    assert ((aspect >= ratio[0] - 1e-4) & (aspect <= ratio[1] + 1e-4)).all()


def test_the_grid_of_a_crop_is_torchs():
    m = crop_matrices(7, (0.2, 0.9), (0.5, 2))
    torch.testing.assert_close(crop_grid(m, 5, 8), F.affine_grid(m, [7, 1, 5, 8], align_corners=False))


def test_a_crop_takes_the_place_it_names():
    # half the width and height, centred at (+1/2, −1/2): the upper right quarter
    theta = torch.tensor([[[0.5, 0, 0.5], [0, 0.5, -0.5]]])
    x = batch(1, h=8)
    out = F.grid_sample(x, F.affine_grid(theta, [1, 1, 4, 4], align_corners=False), align_corners=False)
    torch.testing.assert_close(out, x[..., :4, 4:])


@pytest.mark.parametrize("scoring", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_range(channels, scoring):
    augment = Augment(AugmentSettings(), channels, scoring=scoring)
    for seed in range(8):
        seed_step(0, seed)
        x = torch.cat([batch(6, channels, 12, 10, seed), torch.zeros(1, channels, 12, 10)])
        x = torch.cat([x, torch.ones(1, channels, 12, 10)])
        y = augment(x)
        assert y.shape == x.shape
        assert -1e-6 <= float(y.min()) <= float(y.max()) <= 1 + 1e-6
        assert not torch.equal(x, y)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_strength_is_no_change(channels):
    still = AugmentSettings((0, 0, 0, 0), 0, 0, (1, 1), (1, 1), 1)
    x = batch(4, channels)
    for scoring in (True, False):
        y = Augment(still, channels, scoring=scoring)(x)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def test_colour_maps_of_known_draws(monkeypatch):
    # every uniform draw is .75: jitter is half its range upwards, and with p = .8 it is applied
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.full(shape, 0.75))
    s = AugmentSettings(jitter=(0.2, 0.4, 0, 0), jitter_p=0.8, grey_p=0.2)
    torch.testing.assert_close(colour_matrices(1, s, 1), torch.tensor([[[1.2, 0.1 * 1.2]]]))
    m = colour_matrices(1, s, 3)[0]
    torch.testing.assert_close(m[:, :3], 1.2 * torch.eye(3))
    torch.testing.assert_close(m[:, 3], torch.full((3,), 0.12))
    halfway = colour_matrices(1, AugmentSettings(jitter=(0, 0, 1, 0), grey_p=0), 3)[0, :, :3]
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(halfway, 1.5 * torch.eye(3) - 0.5 * luma.expand(3, 3))
    third = colour_matrices(1, AugmentSettings(jitter=(0, 0, 0, 2 / 3), grey_p=0), 3)[0, :, :3]
    # a third of the circle takes red to green, green to blue, blue to red
    torch.testing.assert_close(third, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), atol=1e-6, rtol=0)


@given(st.integers(0, 10**6))
def test_colour_maps_leave_grey_pixels_grey(seed):
    torch.manual_seed(seed)
    m = colour_matrices(5, AugmentSettings(), 3)
    out = m[:, :, :3] @ torch.full((3, 1), 0.4) + m[:, :, 3:]
    torch.testing.assert_close(out, out[:, :1].expand(5, 3, 1))


def test_matrix_jitter_of_equal_channels_is_that_of_one_channel():
    s = AugmentSettings()
    grey = batch(6)
    for seed in range(5):
        ys = []
        for channels in (1, 3):
            torch.manual_seed(seed)
            m = colour_matrices(6, s, channels)
            x = grey.expand(-1, channels, -1, -1)
            ys.append(torch.baddbmm(m[:, :, -1:], m[:, :, :-1], x.flatten(2)))
        torch.testing.assert_close(ys[1], ys[0].expand(-1, 3, -1))


def test_rows_of_the_draws_augment_as_in_the_whole_batch():
    augment, x = Augment(AugmentSettings(), 3), batch(8, 3)
    draws = augment.draw(8)
    index = torch.tensor([6, 1, 3])
    torch.testing.assert_close(augment(x[index], draws.rows(index)), augment(x, draws)[index])


def test_hsv_jitter_is_kornias():
    assert Augment(AugmentSettings(colour="hsv"), 3).hsv is not None
    assert Augment(AugmentSettings(colour="hsv"), 1).hsv is None
    assert Augment(AugmentSettings(), 3).hsv is None


def test_grey_makes_the_channels_equal():
    y = Augment(AugmentSettings(grey_p=1), 3)(batch(4, 3))
    torch.testing.assert_close(y[:, 0], y[:, 1])
    torch.testing.assert_close(y[:, 0], y[:, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_scoring_draws_once_for_the_whole_batch(channels):
    scoring = Augment(AugmentSettings(), channels, scoring=True)
    training = Augment(AugmentSettings(), channels)
    one, other = batch(1, channels, 16), batch(1, channels, 16, seed=9)
    for step in range(6):
        seed_step(3, step)
        pair = scoring(torch.cat([one, other, one]))
        torch.testing.assert_close(pair[0], pair[2], rtol=0, atol=1e-6)
        seed_step(3, step)
        torch.testing.assert_close(scoring(one)[0], pair[0], rtol=0, atol=1e-6)
    apart = training(one.repeat(8, 1, 1, 1))
    assert all((apart[i] - apart[0]).abs().max() > 1e-2 for i in range(1, 8))


# --- encoder ------------------------------------------------------------------------------------------


def resnet18_size(channels, width, kernel):
    """Weights of convolutions and batch norms of a ResNet-18, from its description."""
    conv = lambda i, o, k: i * o * k * k + 2 * o  # noqa: E731  # with scale and shift of the norm
    total = conv(channels, width, kernel)
    for stage in range(4):
        inputs, outputs = width * 2 ** max(stage - 1, 0), width * 2**stage
        total += conv(inputs, outputs, 3) + 3 * conv(outputs, outputs, 3)
        total += conv(inputs, outputs, 1) if stage else 0
    return total


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_the_encoder_of_the_paper_is_a_resnet18():
    e = Encoder(3, 4, 64, "cifar")
    assert size(e.stem) + size(e.stages) == resnet18_size(3, 64, 3) == 11_168_832
    assert size(e.project) == 512 * 512 + 512 + 512 * 128 + 128
    assert size(e.shift) == 512 * 4 + 4
    imagenet = Encoder(3, 4, 64, "imagenet")
    assert size(imagenet.stem) + size(imagenet.stages) == 11_176_512  # as in torchvision without fc


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("stem", "side", "grid"),
    [
        ("cifar", 32, 32),
        ("cifar", 28, 28),
        ("imagenet", 64, 16),
        ("patch", 16, 16),
        ("patch", 32, 16),
        ("patch", 64, 16),
        ("patch", 28, 14),
        ("patch", 100, 16),
    ],
)
def test_shapes_for_each_stem(stem, side, grid, channels):
    e = Encoder(channels, 4, 4, stem, side).eval()
    x = batch(2, channels, side)
    with torch.inference_mode():
        assert e.stem(x).shape == (2, 4, grid, grid)
        assert [tuple(v.shape) for v in e(x)] == [(2, 32), (2, 128), (2, 4)]


def test_build_encoder_follows_size_and_channels():
    assert build_encoder((28, 28, 1), replace(TINY, size=64)).stem[0].kernel_size == (3, 3)
    assert build_encoder((224, 200, 3), replace(TINY, size=64)).stem[0].kernel_size == (7, 7)
    assert build_encoder((28, 28, 1), replace(TINY, rgb=True)).stem[0].in_channels == 3
    assert build_encoder((28, 28, 1), replace(TINY, shift="none")).shift.out_features == 1


@pytest.mark.parametrize(
    ("shape", "rgb", "expected"),
    [
        ((20, 20, 1), False, (1, 16, 16)),
        ((10, 12, 1), True, (3, 12, 12)),
        ((30, 9, 3), False, (3, 16, 16)),
        ((16, 16, 3), True, (3, 16, 16)),
    ],
)
def test_encoder_input_is_square_and_within_0_and_1(shape, rgb, expected, make_images):
    x = encoder_input(make_images(2, shape[0], shape[1], shape[2]), replace(TINY, rgb=rgb))
    assert x.shape == (2, *expected)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


# --- batches, views, training -------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 4))
def test_an_epoch_takes_no_image_twice_and_every_image_where_batches_fit(n, size, seed, epoch):
    per_epoch = n // min(size, n)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    taken = np.concatenate([batch_indices(n, size, seed, step) for step in steps])
    assert len(set(taken.tolist())) == len(taken) == per_epoch * min(size, n) > n - size
    assert set(taken.tolist()) <= set(range(n))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [
        np.concatenate([batch_indices(40, 10, seed, 4 * epoch + i) for i in range(4)]).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(o) == list(range(40)) for o in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


class FakeDissolved:
    """Dissolves to the negative, so that a test can tell; remembers what it was asked for."""

    ts = (30, 60)

    def __init__(self, images):
        self.images, self.asked = images, []

    def take(self, index, flip, level):
        self.asked.append((index, flip, level))
        chosen = np.where(flip[:, None, None, None], self.images[index][:, :, ::-1], self.images[index])
        return 255 - chosen


@pytest.mark.parametrize("shift", ["rotation", "cutperm", "none"])
def test_views_come_in_the_order_of_the_loss(shift, make_images):
    x = make_images(10)
    fake = FakeDissolved(x)
    m = module._Amplify(x, fake, replace(TINY, shift=shift), 0)
    index = np.array([7, 2, 5])
    seed_step(0, 0)
    rows = m.views(index)
    k_shifts, turn = SHIFTS[shift]
    b, m_rows = 3, 3 * k_shifts
    assert len(rows) == 3 * m_rows
    for k in range(k_shifts):
        asked, flip, level = fake.asked[k]
        assert asked.tolist() == index.tolist()
        assert len(set(level.tolist())) == 1  # one t for the batch at this shift
        for i in range(b):
            plain = encoder_input(x[index[i]][None], TINY)
            mirrored = encoder_input(x[index[i]][None, :, ::-1], TINY)
            copy = 1 - (mirrored if flip[i] else plain)
            for v, view in enumerate((plain, mirrored, copy)):
                torch.testing.assert_close(rows[(v * k_shifts + k) * b + i], turn(view, k)[0])
    positive, _ = targets(b, k_shifts)
    for a in range(m_rows):  # the positive of a plain row is the mirror image at the same shift
        assert positive[a] == a + m_rows


def test_without_dissolved_copies_there_are_two_views(make_images):
    m = module._Amplify(make_images(10), None, TINY, 0)
    assert m.views(np.arange(3)).shape == (2 * 4 * 3, 1, 16, 16)


def test_every_t_is_drawn(make_images):
    x = make_images(10)
    fake = FakeDissolved(x)
    m = module._Amplify(x, fake, TINY, 0)
    for step in range(6):
        seed_step(0, step)
        m.views(np.arange(3))
    assert {int(level[0]) for _, _, level in fake.asked} == {0, 1}
    assert {bool(f) for _, flip, _ in fake.asked for f in flip} == {True, False}


@pytest.mark.parametrize("dissolved", [True, False])
def test_the_training_loss_is_contrast_plus_shift_classification(dissolved, make_images):
    x = make_images(12)
    s = replace(TINY, shift_weight=0.7, temperature=0.3)
    m = module._Amplify(x, FakeDissolved(x) if dissolved else None, s, 3)
    loss = float(m.training_step(0, 0).detach())

    again = module._Amplify(x, FakeDissolved(x) if dissolved else None, s, 3)
    seed_step(3, 0)
    index = batch_indices(12, 6, 3, 0)
    views = 3 if dissolved else 2
    _, z, logits = again.encoder(again.augment(again.views(index)))
    expected = contrastive_loss(z, *targets(6, 4, views), 0.3).item()
    kinds = [k for _ in range(views) for k in range(4) for _ in range(6)]  # the shift of every row
    log_p = logits.log_softmax(1)
    expected -= 0.7 * sum(float(log_p[r, k]) for r, k in enumerate(kinds)) / len(kinds)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_warms_up_and_comes_down(make_images):
    m = module._Amplify(make_images(10), None, replace(TINY, steps=100, warmup=0.1, lr=0.2), 0)
    made = m.configure_optimizers()
    rates = []
    for _ in range(100):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[10] == pytest.approx(0.2)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def state(encoder):
    return [v.numpy().tobytes() for v in encoder.state_dict().values()]


def test_same_seed_same_bits_and_another_seed_others(make_images, tmp_path):
    x = make_images()

    def run(seed, name):
        s = replace(TINY, steps=3)
        return state(learn(x, FakeDissolved(x), s, seed=seed, device="cpu", workdir=tmp_path / name)[0])

    first = run(0, "a")
    assert first == run(0, "b")
    assert first != run(1, "c")


def test_killed_and_resumed_equals_uninterrupted(make_images, tmp_path, monkeypatch):
    x = make_images()
    whole, seconds = learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "whole")
    assert seconds > 0
    monkeypatch.setattr(module, "train", partial(module.train, checkpoint_every=3))
    real, seen, armed = module._Amplify.training_step, [], [True]

    def training_step(self, batch, index):
        if self.global_step == 5 and armed:
            armed.clear()
            raise RuntimeError("killed")
        seen.append(self.global_step)
        return real(self, batch, index)

    monkeypatch.setattr(module._Amplify, "training_step", training_step)
    with pytest.raises(RuntimeError, match="killed"):
        learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "killed")
    seen.clear()
    resumed, _ = learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "killed", resume=True)
    assert seen == [3, 4, 5, 6, 7]
    assert state(resumed) == state(whole)
    assert not resumed.training
