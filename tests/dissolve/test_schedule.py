"""The one-step formula and its schedule: numbers by hand, diffusers, and the published coefficients."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dia.dissolve import cosine_alphas_cumprod, one_step
from dia.dissolve.pretrained import to_epsilon

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_step_by_hand():
    # ᾱ = 0.64: √(1/0.64) = 1.25 and √(1/0.64 − 1) = 0.75
    x = torch.tensor([0.5, -0.2, 0.9, -0.9]).reshape(1, 1, 2, 2)
    epsilon = torch.tensor([0.2, 0.4, -1.0, 1.0]).reshape(1, 1, 2, 2)
    expected = torch.tensor([0.475, -0.55, 1.0, -1.0]).reshape(1, 1, 2, 2)  # the last two are clamped
    torch.testing.assert_close(one_step(x, epsilon, 0.64), expected)


def test_alpha_bar_of_each_image_is_its_own():
    x, epsilon = torch.full((3, 1, 1, 1), 0.4), torch.full((3, 1, 1, 1), 0.2)
    # ᾱ = 1: x itself; 0.64: 0.5 − 0.15; 0.25: 0.8 − √3·0.2
    expected = torch.tensor([0.4, 0.35, 0.8 - 3**0.5 * 0.2]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(one_step(x, epsilon, torch.tensor([1.0, 0.64, 0.25])), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 30, 50, 100, 130, 200, 400, 700])
def test_one_step_equals_a_scheduler_step_of_diffusers(prediction, t):
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=True,
    )
    x, output = draw(4, 3, 8, 8).clamp(-1, 1), draw(4, 3, 8, 8, seed=1)
    a = scheduler.alphas_cumprod[t].double().expand(4)
    ours = one_step(x, to_epsilon(output, x, a, prediction), a)
    theirs = scheduler.step(output, t, x).pred_original_sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_cosine_schedule_equals_that_of_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert (cosine_alphas_cumprod() - theirs.double()).abs().max() < 3.5e-7  # theirs is float32


@pytest.mark.parametrize(
    ("t", "of_x", "of_epsilon"),
    [
        (30, 1.0018, 0.0596),
        (50, 1.0042, 0.0914),
        (100, 1.0145, 0.1710),
        (130, 1.0239, 0.2197),
        (200, 1.0554, 0.3375),
    ],
)
def test_coefficients_are_those_of_the_paper(t, of_x, of_epsilon):
    a = cosine_alphas_cumprod()[t]
    assert float((1 / a) ** 0.5) == pytest.approx(of_x, abs=1e-4)
    assert float((1 / a - 1) ** 0.5) == pytest.approx(of_epsilon, abs=1e-4)


@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_cosine_schedule_falls_within_0_and_1(steps):
    a = cosine_alphas_cumprod(steps)
    assert a.shape == (steps,)
    assert a[-1] > 0
    assert a[0] < 1
    assert (a.diff() < 0).all()


@given(st.floats(1e-3, 0.999), st.integers(0, 9))
def test_conversions_to_epsilon_round_trip(alpha_bar, seed):
    a = torch.tensor([alpha_bar], dtype=torch.float64)
    clean, epsilon = draw(1, 1, 4, 4, seed=seed), draw(1, 1, 4, 4, seed=seed + 100)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * epsilon
    v = a.sqrt() * epsilon - (1 - a).sqrt() * clean
    outputs = {"epsilon": epsilon, "v_prediction": v, "sample": clean}
    for prediction, output in outputs.items():
        torch.testing.assert_close(to_epsilon(output, noisy, a, prediction), epsilon)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="not 'velocity'"):
        to_epsilon(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([0.5]), "velocity")


shapes = st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 4]), st.integers(1, 7), st.integers(1, 7))


@given(shapes, st.integers(0, 99))
def test_a_batch_is_dissolved_as_its_images_are_one_by_one(shape, seed):
    x, epsilon = draw(*shape, seed=seed), draw(*shape, seed=seed + 100)
    a = torch.from_numpy(np.random.default_rng(seed).uniform(1e-4, 1, shape[0]))
    whole = one_step(x, epsilon, a)
    assert whole.shape == x.shape
    assert whole.abs().max() <= 1
    single = [one_step(x[i : i + 1], epsilon[i : i + 1], float(a[i])) for i in range(len(x))]
    assert torch.equal(whole, torch.cat(single))


@given(shapes, st.integers(0, 99))
def test_no_noise_level_means_no_change_but_the_clamp(shape, seed):
    x = draw(*shape, seed=seed)
    assert torch.equal(one_step(x, draw(*shape, seed=seed + 100), 1.0), x.clamp(-1, 1))


@pytest.mark.parametrize(
    ("epsilon", "alpha_bar"),
    [((2, 1, 4, 5), 0.5), ((2, 1, 4, 4), [0.5, 0.5, 0.5]), ((2, 1, 4, 4), [[0.5], [0.5]])],
)
def test_shapes_that_do_not_fit_are_refused(epsilon, alpha_bar):
    with pytest.raises(ValueError, match="do not fit"):
        one_step(torch.zeros(2, 1, 4, 4), torch.zeros(epsilon), torch.tensor(alpha_bar))
