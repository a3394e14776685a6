"""Shifts, augmentation, encoder and contrastive training: group laws, ranges, counts, order and resuming."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import dia.amplify.contrast as module
from dia.amplify.augment import Augment, AugmentSettings, Draws, crop_grid, crop_matrices, jitter
from dia.amplify.contrast import AmplifySettings, encoder_input
from dia.amplify.encoder import Encoder
from dia.amplify.inputs import build_encoder
from dia.amplify.loss import contrastive_loss, targets
from dia.amplify.resident import learn
from dia.amplify.shifts import SHIFTS, cutperm, rotate
from dia.core.running import loop
from dia.core.settings import SettingsError
from dia.core.training import batch_indices, seed_step
from dia.detectors.dia import DIA, DIASettings
from dia.detectors.presets import settings

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


def drawn(value=1.0, contrast=1.0, saturation=1.0, hue=0.0, first=True):
    """Draws of one view; the crop is not used."""
    factors = torch.tensor([[value, contrast, saturation, hue]])
    return Draws(factors, torch.tensor([False]), torch.tensor([first]), torch.zeros(1, 2, 3))


def pixels(*rgb):
    """An image `(1, C, 1, N)` of these pixels."""
    return torch.tensor(rgb, dtype=torch.float32).T.reshape(1, -1, 1, len(rgb))


def test_jitter_of_grey_pixels_by_hand():
    x = torch.tensor([0.1, 0.2, 0.6]).view(1, 1, 1, 3)  # mean .3
    for draws, expected in (
        (drawn(value=1.4), [0.14, 0.28, 0.84]),  # brightness multiplies: what is dark stays dark
        (drawn(value=0.6), [0.06, 0.12, 0.36]),
        (drawn(contrast=1.4), [0.02, 0.16, 0.72]),  # .3 + 1.4·(x − .3)
        (drawn(contrast=0.6), [0.18, 0.24, 0.48]),
        (drawn(value=2.0), [0.2, 0.4, 1.0]),  # clamped
        # contrast, then brightness: (.02, .16, .72)·.5; brightness first, mean .15: the same but for clamps
        (drawn(value=0.5, contrast=1.4), [0.01, 0.08, 0.36]),
        (drawn(value=0.5, contrast=1.4, first=False), [0.01, 0.08, 0.36]),
        # the clamp tells the orders apart: contrast 2 gives (0, .1, .9), doubled and clamped (0, .2, 1);
        # doubled first (.2, .4, 1), mean 8/15, then 8/15 + 2·(x − 8/15)
        (drawn(value=2.0, contrast=2.0), [0.0, 0.2, 1.0]),
        (drawn(value=2.0, contrast=2.0, first=False), [0.0, 4 / 15, 1.0]),
    ):
        torch.testing.assert_close(jitter(x, draws).flatten(), torch.tensor(expected))


def test_jitter_of_colours_by_hand():
    x = pixels([0.8, 0.4, 0.2], [0.1, 0.1, 0.1])
    for draws, expected in (
        (drawn(value=0.5), [[0.4, 0.2, 0.1], [0.05, 0.05, 0.05]]),  # of V = max: all channels alike
        (drawn(value=1.5), [[1.0, 0.5, 0.25], [0.15, 0.15, 0.15]]),  # V = 1.2 is clamped to 1
        # saturation 1 − .2/.8 = .75 becomes .375: x − V shrinks to half; grey stays grey
        (drawn(saturation=0.5), [[0.8, 0.6, 0.5], [0.1, 0.1, 0.1]]),
        (drawn(saturation=2.0), [[0.8, 4 / 15, 0.0], [0.1, 0.1, 0.1]]),  # clamped to 1
        # a third of the circle takes red to green, green to blue, blue to red
        (drawn(hue=1 / 3), [[0.2, 0.8, 0.4], [0.1, 0.1, 0.1]]),
        # of each channel about its own mean: .45, .25, .15
        (drawn(contrast=0.5), [[0.625, 0.325, 0.175], [0.275, 0.175, 0.125]]),
    ):
        torch.testing.assert_close(jitter(x, draws), pixels(*expected), atol=1e-5, rtol=1e-5)


def test_the_order_of_colour_jitter_counts():
    x = pixels([0.8, 0.4, 0.2], [0.1, 0.1, 0.1])
    # contrast first: as above, then V·1.5; after: V·1.5 is (1, .5, .25) and (.15, .15, .15), then contrast
    first = [[0.9375, 0.4875, 0.2625], [0.4125, 0.2625, 0.1875]]
    after = [[0.7875, 0.4125, 0.225], [0.3625, 0.2375, 0.175]]
    for turn, expected in ((True, first), (False, after)):
        y = jitter(x, drawn(value=1.5, contrast=0.5, first=turn))
        torch.testing.assert_close(y, pixels(*expected), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 10**6))
def test_jitter_of_equal_channels_is_that_of_one_channel(seed):
    grey = batch(6, seed=seed)
    torch.manual_seed(seed)
    draws = Augment(AugmentSettings(), 1).draw(6)
    wide = jitter(grey.expand(-1, 3, -1, -1), draws)
    torch.testing.assert_close(wide, jitter(grey, draws).expand(-1, 3, -1, -1), atol=1e-5, rtol=1e-5)


def test_the_order_is_drawn_for_the_batch_and_both_come():
    augment = Augment(AugmentSettings(), 1)
    orders = []
    for seed in range(64):
        torch.manual_seed(seed)
        orders.append(augment.draw(5).contrast_first)
    assert all((o == o[0]).all() for o in orders)
    assert {bool(o[0]) for o in orders} == {True, False}  # else 64 fair coins fell alike


def test_rows_of_the_draws_augment_as_in_the_whole_batch():
    augment, x = Augment(AugmentSettings(), 3), batch(8, 3)
    draws = augment.draw(8)
    index = torch.tensor([6, 1, 3])
    torch.testing.assert_close(augment(x[index], draws.rows(index)), augment(x, draws)[index])


def test_grey_makes_the_channels_equal():
    y = Augment(AugmentSettings(grey_p=1), 3)(batch(4, 3))
    torch.testing.assert_close(y[:, 0], y[:, 1])
    torch.testing.assert_close(y[:, 0], y[:, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_one_draw_serves_all_images_alike(channels):
    augment = Augment(AugmentSettings(), channels, scoring=True)
    one, other = batch(1, channels, 16), batch(1, channels, 16, seed=9)
    for step in range(6):
        seed_step(3, step)
        draws = augment.draw(1)
        three = augment(torch.cat([one, other, one]), draws)
        torch.testing.assert_close(three[0], three[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(augment(one, draws)[0], three[0], rtol=0, atol=1e-6)
    apart = Augment(AugmentSettings(), channels)(one.repeat(8, 1, 1, 1))
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
    assert build_encoder((224, 200, 3), replace(TINY, size=64)).stem[0].kernel_size == (3, 3)
    assert build_encoder((224, 200, 3), replace(TINY, size=65)).stem[0].kernel_size == (7, 7)
    assert build_encoder((28, 28, 1), replace(TINY, rgb=True)).stem[0].in_channels == 3
    assert build_encoder((28, 28, 1), replace(TINY, shift="none")).shift.out_features == 1


def maps_of(encoder, side):
    """Side of the encoder's last map."""
    seen = []
    encoder.stages.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    encoder.eval()(torch.zeros(1, encoder.channels, side, side))
    return seen[0]


@pytest.mark.parametrize("preset", ["gpu", "paper"])
@pytest.mark.parametrize("side", [17, 24, 28, 32, 64, 65, 96, 128, 224])
def test_gpu_and_paper_leave_a_map_of_at_least_3_by_3(preset, side):
    s = replace(settings(DIASettings, preset).amplify, width=4)
    assert maps_of(build_encoder((side, side, 1), s), min(side, s.size)) >= 3


@pytest.mark.parametrize("side", [28, 32, 64])
def test_a_stem_that_leaves_a_2_by_2_map_is_refused_before_training(side, make_images):
    amplify = replace(TINY, stem="imagenet", size=224)
    with pytest.raises(
        SettingsError, match=rf"amplify.stem imagenet leaves a 2×2 map of images of {side} px"
    ):
        DIA(DIASettings(amplify=amplify), device="cpu").fit(make_images(24, side))


def test_an_encoder_of_three_channels_takes_grey_images():
    e = Encoder(3, 4, 4).eval()
    x = batch(2, 1, 16)
    for a, b in zip(e(x), e(x.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("shape", "rgb", "expected"),
    [
        ((20, 20, 1), False, (1, 16, 16)),
        ((10, 12, 1), True, (1, 12, 12)),
        ((30, 9, 3), False, (3, 16, 16)),
        ((16, 16, 3), True, (3, 16, 16)),
    ],
)
def test_encoder_input_is_square_and_within_0_and_1(shape, rgb, expected, make_images):
    x = encoder_input(make_images(2, shape[0], shape[1], shape[2]), replace(TINY, rgb=rgb))
    assert x.shape == (2, *expected)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


# --- batches, views, training -------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 5), st.integers(0, 4), st.integers(1, 12))
def test_an_epoch_of_training_fills_its_last_batch_up(n, size, seed, epoch, most):
    s = replace(TINY, batch=size, epoch_batches=most)
    steps = range(epoch * s.batches(n), (epoch + 1) * s.batches(n))
    taken = [batch_indices(n, size, seed, step, s.batches(n)) for step in steps]
    assert {len(t) for t in taken} == {min(size, n)}
    counts = np.bincount(np.concatenate(taken), minlength=n)
    assert counts.max() <= 2
    if len(steps) < most:  # not cut short
        assert counts.min() == 1


@pytest.mark.parametrize(
    ("n", "steps"), [(1214, 38_000), (399, 13_000), (147, 5_000), (983, 31_000), (26_315, 200_000)]
)
def test_the_paper_trains_a_thousand_epochs_of_the_set(n, steps):
    s = settings(DIASettings, "paper").amplify
    assert s.length(n) == steps
    assert replace(s, steps=7).length(n) == 7


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
    m = module.ContrastiveTraining(x, fake, replace(TINY, shift=shift), 0)
    index = np.array([7, 2, 5])
    seed_step(0, 0)
    rows = m.views(index)
    k_shifts, turn = SHIFTS[shift]
    b, m_rows = 3, 3 * k_shifts
    assert len(rows) == 3 * m_rows
    seen = set()
    for k in range(k_shifts):
        asked, flip, level = fake.asked[k]
        assert asked.tolist() == index.tolist()
        assert len(set(level.tolist())) == 1  # one t for the batch at this shift
        for i in range(b):
            plain = encoder_input(x[index[i]][None], TINY)
            mirrored = encoder_input(x[index[i]][None, :, ::-1], TINY)
            copy = 1 - (mirrored if flip[i] else plain)
            of = [rows[(v * k_shifts + k) * b + i] for v in range(3)]
            torch.testing.assert_close(of[2], turn(copy, k)[0])
            # a plain view is x or its mirror image, the same at every shift
            flipped = tuple(bool(torch.equal(v, turn(mirrored, k)[0])) for v in of[:2])
            for v, f in zip(of, flipped, strict=False):
                torch.testing.assert_close(v, turn(mirrored if f else plain, k)[0])
            seen.add((i, flipped))
    assert len(seen) == b
    positive, _ = targets(b, k_shifts)
    for a in range(k_shifts * b):  # the positive of a plain row is the other view at the same shift
        assert positive[a] == a + k_shifts * b


def test_each_plain_view_is_flipped_at_random(make_images):
    x = make_images(10)
    m = module.ContrastiveTraining(x, None, replace(TINY, shift="none"), 0)
    plain = encoder_input(x, TINY)
    flips = []
    for step in range(40):
        seed_step(0, step)
        rows = m.views(np.arange(10)).view(2, 10, 1, 16, 16)
        flips.append([[bool((a != b).any()) for a, b in zip(v, plain, strict=True)] for v in rows])
    pairs = np.array(flips).transpose(1, 0, 2).reshape(2, -1)  # 400 draws of each view
    counts = [(pairs[0] == a)[pairs[1] == b].sum() for a in (0, 1) for b in (0, 1)]
    assert min(counts) > 50  # of 400 in four equal parts; standard deviation 9


def test_without_dissolved_copies_there_are_two_views(make_images):
    m = module.ContrastiveTraining(make_images(10), None, TINY, 0)
    assert m.views(np.arange(3)).shape == (2 * 4 * 3, 1, 16, 16)


def test_every_t_is_drawn(make_images):
    x = make_images(10)
    fake = FakeDissolved(x)
    m = module.ContrastiveTraining(x, fake, TINY, 0)
    for step in range(6):
        seed_step(0, step)
        m.views(np.arange(3))
    assert {int(level[0]) for _, _, level in fake.asked} == {0, 1}
    assert {bool(f) for _, flip, _ in fake.asked for f in flip} == {True, False}


@pytest.mark.parametrize("dissolved", [True, False])
def test_the_training_loss_is_contrast_plus_shift_classification(dissolved, make_images):
    x = make_images(12)
    s = replace(TINY, shift_weight=0.7, temperature=0.3)
    m = module.ContrastiveTraining(x, FakeDissolved(x) if dissolved else None, s, 3)
    loss = float(m.training_step(0, 0).detach())

    again = module.ContrastiveTraining(x, FakeDissolved(x) if dissolved else None, s, 3)
    seed_step(3, 0)
    index = batch_indices(12, 6, 3, 0)
    views = 3 if dissolved else 2
    _, z, logits = again.encoder(again.augment(again.views(index)))
    expected = contrastive_loss(z, *targets(6, 4, views), 0.3).item()
    kinds = [k for _ in range(views) for k in range(4) for _ in range(6)]  # the shift of every row
    log_p = logits.detach().log_softmax(1)
    expected -= 0.7 * sum(float(log_p[r, k]) for r, k in enumerate(kinds)) / len(kinds)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_warms_up_and_comes_down(make_images):
    m = module.ContrastiveTraining(make_images(10), None, replace(TINY, steps=100, warmup=0.1, lr=0.2), 0)
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


def test_killed_and_resumed_equals_uninterrupted(make_images, tmp_path, monkeypatch):
    x = make_images()
    whole, seconds = learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "whole")
    assert seconds > 0
    monkeypatch.setattr(loop, "train", partial(loop.train, checkpoint_every=3))
    real, seen, armed = module.ContrastiveTraining.training_step, [], [True]

    def training_step(self, batch, index):
        if self.global_step == 5 and armed:
            armed.clear()
            raise RuntimeError("killed")
        seen.append(self.global_step)
        return real(self, batch, index)

    monkeypatch.setattr(module.ContrastiveTraining, "training_step", training_step)
    with pytest.raises(RuntimeError, match="killed"):
        learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "killed")
    seen.clear()
    resumed, _ = learn(x, FakeDissolved(x), TINY, device="cpu", workdir=tmp_path / "killed", resume=True)
    assert seen == [3, 4, 5, 6, 7]
    assert state(resumed) == state(whole)
    assert not resumed.training
