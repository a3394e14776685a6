"""The configuration `paper`, held against the published facts, number by number."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from dia.amplify import contrast
from dia.amplify.augment import Augment, crop_matrices
from dia.amplify.inputs import build_encoder
from dia.core.settings import differences, replaced
from dia.detectors.dia import PARTS, DIASettings
from dia.detectors.presets import settings
from dia.dissolve.dissolver import build_unet

PAPER = settings(DIASettings, "paper")


def count(module):
    return sum(p.numel() for p in module.parameters())


def resnet18(stem):
    """Weights of a ResNet-18 without its classifier, by arithmetic."""
    total, inputs = stem + 2 * 64, 64
    for i, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            first = inputs if block == 0 else width
            total += first * width * 9 + width * width * 9 + 2 * 2 * width
            if block == 0 and i > 0:
                total += first * width + 2 * width
        inputs = width
    return total


HEADS = 512 * 512 + 512 + 512 * 128 + 128 + 512 * 4 + 4  # projection 512–512–128, four shifts


@pytest.mark.parametrize(
    ("side", "stem"), [(28, 3 * 64 * 9), (32, 3 * 64 * 9), (64, 3 * 64 * 9), (224, 3 * 64 * 49)]
)
def test_the_encoder_is_a_resnet_18_with_the_stem_of_its_size(side, stem):
    encoder = build_encoder((side, side, 1), PAPER.amplify)  # grey images come as three channels
    assert count(encoder) == resnet18(stem) + HEADS
    assert resnet18(3 * 64 * 49) == 11_176_512  # the well-known number


def test_the_unet_has_the_published_widths():
    # diffusers' blocks, not the official ones, which sum to 36 M (decisions/0004)
    assert (PAPER.dissolver.widths, PAPER.dissolver.size) == ((64, 128, 256, 512), 32)
    assert count(build_unet(1, PAPER.dissolver)) == 39_700_929
    assert count(build_unet(3, PAPER.dissolver)) == 39_700_929 + 2 * (64 * 9) + 2 * (64 * 9 + 1)  # in, out


def test_the_published_values():
    d, a, g = PAPER.dissolver, PAPER.amplify, PAPER.amplify.augment
    assert (d.kind, d.input_range, d.loss, d.lr, d.cosine, d.ema, d.ema_weights, d.hflip) == (
        "diffusion", "right", "l1", 8e-5, False, 0.995, False, True,
    )  # fmt: skip
    assert (a.batch, a.temperature, a.exclude_own, a.dissolved_in_shift, a.shift) == (
        32,
        0.5,
        True,
        True,
        "rotation",
    )
    assert (a.optimizer, a.weight_decay, a.t_per, a.t_sampler) == ("lars", 1e-6, "shift", "uniform")
    assert (a.steps, a.epochs, a.epoch_batches) == (None, 1000, 200)
    assert (a.shift_weight, a.simsiam_weight) == (1.0, 0.0)
    assert (g.jitter, g.jitter_p, g.grey_p, g.crop) == ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, (0.08, 1.0))
    assert (g.ratio, g.score_crop) == ((0.75, 4 / 3), 0.54)
    assert (PAPER.samples, PAPER.score_parts, PAPER.score_draws, PAPER.live) == (10, PARTS, "own", True)
    assert PAPER.ts == tuple(range(30, 100))


def test_what_each_official_release_does_otherwise_is_one_flag_from_paper():
    ranges = replaced(PAPER, {"dissolver.input_range": "released"})
    assert set(differences(ranges, PAPER)) == {"dissolver.input_range"}
    first = replaced(PAPER, {"amplify.exclude_own": False})
    assert set(differences(first, PAPER)) == {"amplify.exclude_own"}


def test_the_learning_rate_at_named_steps():
    pytest.importorskip("timm")
    # the curve depends on shares of the steps alone: a tenth of them, 20 000, of which 200 warm up
    s = replace(PAPER.amplify, steps=20_000, width=8)
    module = contrast.ContrastiveTraining(np.zeros((40, 28, 28, 1), np.uint8), None, s, seed=0)
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert type(optimizer).__name__ == "Lars"
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["trust_coeff"]) == (0.9, 1e-6, 0.001)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20_000):
            rates.append(group["lr"])
            schedule.step()
    assert rates[0] == pytest.approx(0.1)  # .1 …
    assert rates[100] == pytest.approx(0.55)
    assert rates[200] == pytest.approx(1.0)  # … warmed up tenfold
    assert max(rates) == pytest.approx(1.0)
    assert rates[200 + 9_900] == pytest.approx(0.5, abs=1e-3)  # half of the cosine
    assert rates[200 + 4_950] == pytest.approx(0.5 + 0.5 * 2**-0.5, abs=1e-3)
    assert rates[-1] < 1e-6


def test_the_augmentation_stays_within_the_published_ranges():
    torch.manual_seed(0)
    s = PAPER.amplify.augment
    m = crop_matrices(20_000, s.crop, s.ratio)
    area, ratio = m[:, 0, 0] * m[:, 1, 1], m[:, 0, 0] / m[:, 1, 1]
    assert 0.08 <= float(area.min()) < 0.085
    assert 0.97 < float(area.max()) <= 1
    free = (m[:, 0, 0] < 1) & (m[:, 1, 1] < 1)
    assert 0.75 - 1e-4 <= float(ratio[free].min()) < 0.76
    assert 1.32 < float(ratio[free].max()) <= 4 / 3 + 1e-4
    d = Augment(s, 3).draw(20_000)
    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        values = d.factors[:, i]
        assert low - 1e-6 <= float(values.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(values.max()) <= high + 1e-6
    still = (d.factors == torch.tensor([1.0, 1, 1, 0])).all(1)  # of an image all four or none
    assert float(still.float().mean()) == pytest.approx(0.2, abs=0.015)  # jitter with probability .8
    assert float(d.grey.float().mean()) == pytest.approx(0.2, abs=0.015)


def test_the_scoring_crop_has_the_published_area():
    for seed in range(20):
        torch.manual_seed(seed)
        m = Augment(PAPER.amplify.augment, 3, scoring=True).draw(1).crop[0]
        assert float(m[0, 0] * m[1, 1]) == pytest.approx(0.54, abs=1e-5)
