"""`Dissolver`: deterministic, each image alone, resumable, and at home in diffusers' formats."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st

import dia.dissolve.dissolver as module
from dia.core.errors import DataError
from dia.core.running import loop
from dia.core.training import TrainingError, batch_indices
from dia.dissolve import Dissolver, base, load_dissolver

TS = (30, 100, 400)


def levels(a, b):
    """Greatest difference in grey levels."""
    return np.abs(a.astype(int) - b.astype(int)).max()


# --- fitting ------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_others(tiny_dissolver, tiny_settings, make_images, tmp_path):
    x = make_images()
    again = Dissolver(tiny_settings, seed=1, device="cpu").fit(x, workdir=tmp_path / "a")
    other = Dissolver(tiny_settings, seed=2, device="cpu").fit(x, workdir=tmp_path / "b")
    assert again.sha256() == tiny_dissolver.sha256() != other.sha256()
    assert np.array_equal(again.dissolve(x, 100), tiny_dissolver.dissolve(x, 100))
    assert levels(other.dissolve(x, 400), tiny_dissolver.dissolve(x, 400)) > 0


def test_fitting_leaves_the_callers_random_numbers_alone(tiny_settings, make_images, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Dissolver(replace(tiny_settings, steps=1), device="cpu").fit(make_images(), workdir=tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("ema_weights", [True, False])
def test_killed_and_resumed_equals_uninterrupted(
    ema_weights, tiny_settings, make_images, tmp_path, monkeypatch
):
    x, settings = make_images(), replace(tiny_settings, ema_weights=ema_weights)
    whole = Dissolver(settings, device="cpu").fit(x, workdir=tmp_path / "whole")
    monkeypatch.setattr(loop, "train", partial(loop.train, checkpoint_every=3))
    seen = killed_at(5, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        Dissolver(settings, device="cpu").fit(x, workdir=tmp_path / "killed")
    assert seen == [0, 1, 2, 3, 4]
    seen.clear()
    resumed = Dissolver(settings, device="cpu").fit(x, workdir=tmp_path / "killed", resume=True)
    assert seen == [3, 4, 5, 6, 7]  # from the checkpoint after the third step
    assert resumed.sha256() == whole.sha256()
    assert resumed.fit_seconds_ > 0


def test_without_resume_an_old_checkpoint_is_ignored(tiny_settings, tiny_dissolver, make_images, tmp_path):
    x = make_images()
    Dissolver(replace(tiny_settings, steps=2), seed=4, device="cpu").fit(x, workdir=tmp_path)
    over = Dissolver(tiny_settings, seed=1, device="cpu").fit(x, workdir=tmp_path)
    assert over.sha256() == tiny_dissolver.sha256()


def killed_at(step, monkeypatch):
    """Training raises once when it comes to `step`; returns the list of steps that were run."""
    real, seen, armed = module._Training.training_step, [], [True]

    def training_step(self, batch, index):
        if self.global_step == step and armed:
            armed.clear()
            raise RuntimeError("killed")
        seen.append(self.global_step)
        return real(self, batch, index)

    monkeypatch.setattr(module._Training, "training_step", training_step)
    return seen


def test_the_weight_average_by_hand(tiny_settings, make_images, tmp_path):
    def weights(steps, ema_weights):
        s = replace(tiny_settings, steps=steps, cosine=False, ema=0.75, ema_weights=ema_weights)
        d = Dissolver(s, device="cpu").fit(make_images(), workdir=tmp_path / f"{steps}{ema_weights}")
        return d.unet_.state_dict()

    first, second, average = weights(1, False), weights(2, False), weights(2, True)
    moved = 0.0
    for name, value in average.items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name])
        moved = max(moved, float((second[name] - first[name]).abs().max()))
    assert moved > 1e-3


def test_a_loss_that_is_not_finite_stops_training(tiny_settings, make_images, tmp_path, monkeypatch):
    real = module._Training.training_step

    def training_step(self, batch, index):
        loss = real(self, batch, index)
        return loss * float("nan") if self.global_step == 4 else loss

    monkeypatch.setattr(module._Training, "training_step", training_step)
    images = make_images()
    with pytest.raises(TrainingError, match=r"the loss became nan at step 4 \(the last") as error:
        Dissolver(tiny_settings, device="cpu").fit(images, workdir=tmp_path)
    assert error.value.batch == batch_indices(len(images), tiny_settings.batch, 0, 4).tolist()
    assert error.value.of == len(images)


def test_the_loss_of_training_falls(make_images, tmp_path, tiny_settings):
    losses = []

    class Recording(module._Training):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            losses.append(float(loss))
            return loss

    loop.train(
        Recording(make_images(), replace(tiny_settings, steps=40), 0),
        steps=40,
        workdir=tmp_path,
        device="cpu",
    )
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])


# --- dissolving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 24, 256])
def test_the_batch_size_does_not_matter(batch, tiny_dissolver, make_images):
    x = make_images()
    assert levels(tiny_dissolver.dissolve(x, TS, batch=batch), tiny_dissolver.dissolve(x, TS)) <= 1


def test_neighbours_and_order_do_not_matter(tiny_dissolver, make_images):
    x = module.to_tensor(make_images())
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    whole = tiny_dissolver(x, 100)
    torch.testing.assert_close(tiny_dissolver(x[order], 100), whole[order], rtol=0, atol=1e-4)
    for i in (0, 7):
        torch.testing.assert_close(tiny_dissolver(x[i : i + 1], 100), whole[i : i + 1], rtol=0, atol=1e-4)


def test_several_t_are_the_single_ones_stacked(tiny_dissolver, make_images):
    x = make_images()
    many = tiny_dissolver.dissolve(x, TS)
    assert many.shape == (3, *x.shape)
    for j, t in enumerate(TS):
        assert np.array_equal(many[j], tiny_dissolver.dissolve(x, t))
    assert tiny_dissolver.dissolve(x, [50]).shape == (1, *x.shape)
    assert tiny_dissolver.dissolve(x, np.int64(50)).shape == x.shape


def test_t_may_differ_from_image_to_image(tiny_dissolver, make_images):
    x = module.to_tensor(make_images(3))
    mixed = tiny_dissolver(x, torch.tensor(TS))
    for i, t in enumerate(TS):
        torch.testing.assert_close(mixed[i : i + 1], tiny_dissolver(x[i : i + 1], t), rtol=0, atol=1e-4)


def test_images_are_not_changed_in_place(tiny_dissolver, make_images):
    x = make_images()
    before = x.copy()
    tiny_dissolver.dissolve(x, 999)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("size", [(28, 28), (30, 22), (17, 16), (13, 31), (5, 5), (2, 9)])
@pytest.mark.parametrize("limit", [16, 32])
def test_any_size_keeps_its_shape(size, limit, tiny_dissolver, make_images):
    d = Dissolver(replace(tiny_dissolver.settings, size=limit), device="cpu")
    d._adopt(tiny_dissolver.unet_, tiny_dissolver.scheduler_)
    x = make_images(3, *size)
    assert d.dissolve(x, 50).shape == x.shape
    y = d(module.to_tensor(x), 50)
    assert y.shape == (3, 1, *size)
    assert y.isfinite().all()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(1, 1), (1, 3), (3, 3)]),
    st.sampled_from([1, 2, 4, 8]),
)
def test_padding_is_undone_exactly(h, w, channels, multiple):
    x = torch.rand(2, channels[0], h, w, generator=torch.Generator().manual_seed(h * 41 + w)) * 2 - 1
    y, undo = module.fit_in(x, 40, channels[1], multiple)
    assert y.shape[1] == channels[1]
    assert y.shape[2] % multiple == y.shape[3] % multiple == 0
    assert y.shape[2] < h + multiple
    assert y.shape[3] < w + multiple
    torch.testing.assert_close(undo(y), x, rtol=0, atol=1e-6)


@given(st.integers(41, 90), st.integers(1, 90))
def test_larger_images_come_down_to_the_limit_in_proportion(h, w):
    x = torch.linspace(-1, 1, w).expand(1, 1, h, w)
    y, undo = module.fit_in(x, 40, 1, 1)
    assert max(y.shape[2:]) == 40
    assert y.shape[3] * max(h, w) == pytest.approx(w * 40, abs=max(h, w))
    assert undo(y).shape == x.shape
    assert (undo(y) - x).abs().max() <= 4 / max(min(y.shape[3], w), 2)  # a ramp stays a ramp


def test_uint8_survives_the_way_to_the_network_and_back():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    y = module.to_tensor(x)
    assert (float(y.min()), float(y.max())) == (-1, 1)
    assert np.array_equal(base.to_images(y), x)


# --- folders and foreign models -----------------------------------------------------------------------


def test_saved_and_loaded_dissolves_alike(tiny_dissolver, make_images, tmp_path):
    tiny_dissolver.save(tmp_path / "d")
    loaded = load_dissolver(tmp_path / "d", device="cpu")
    x = make_images(6, 28, 20)
    assert np.array_equal(loaded.dissolve(x, TS), tiny_dissolver.dissolve(x, TS))
    assert loaded.settings == tiny_dissolver.settings
    assert loaded.seed == 1
    assert loaded.fit_seconds_ == tiny_dissolver.fit_seconds_
    assert loaded.sha256() == tiny_dissolver.sha256()
    assert not list((tmp_path / "d").rglob("*.bin"))  # safetensors, no pickles


def test_a_saved_dissolver_is_a_diffusers_pipeline(tiny_dissolver, tmp_path):
    tiny_dissolver.save(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    generated = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert generated.shape == (2, 8, 8, 4)  # 16 px in blocks of 2 × 2
    x = torch.rand(1, 4, 8, 8)
    with torch.inference_mode():
        theirs, ours = pipeline.unet(x, 10).sample, tiny_dissolver.unet_(x, 10).sample
    assert torch.allclose(theirs, ours, atol=1e-5)


def foreign(folder, prediction="epsilon", channels=3, schedule="linear"):
    """A DDPM not of our making, in `folder`; returns its pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet = UNet2DModel(
            sample_size=16,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        ).eval()
    scheduler = DDPMScheduler(
        num_train_timesteps=500, beta_schedule=schedule, prediction_type=prediction, clip_sample=True
    )
    pipeline = DDPMPipeline(unet, scheduler)
    pipeline.save_pretrained(folder)
    return pipeline


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_diffusers_ddpm_dissolves_grey_and_rgb(prediction, channels, make_images, tmp_path):
    pipeline = foreign(tmp_path, prediction)
    d = load_dissolver(tmp_path, device="cpu")
    assert d.settings.size == 16
    x = make_images(4, c=channels)
    y = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1).expand(4, 3, 16, 16).contiguous()
    for t in (20, 300):
        with torch.inference_mode():
            output = pipeline.unet(y, t).sample
        clean = pipeline.scheduler.step(output, t, y).pred_original_sample
        clean = clean.mean(1, keepdim=True) if channels == 1 else clean
        expected = ((clean + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        assert np.abs(d.dissolve(x, t) - expected).max() <= 0.51  # rounding
    with pytest.raises(DataError, match="0–499, not 500"):
        d.dissolve(x, 500)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_foreign_grey_model_dissolves_colour_too(channels, make_images, tmp_path):
    foreign(tmp_path, channels=1)
    x = make_images(2, 18, 14, c=channels)
    assert load_dissolver(tmp_path, device="cpu").dissolve(x, 50).shape == x.shape


def test_a_model_of_other_channels_is_refused(make_images, tmp_path):
    foreign(tmp_path, channels=2)
    with pytest.raises(DataError, match="takes 2 channels"):
        load_dissolver(tmp_path, device="cpu").dissolve(make_images(2), 50)


def test_a_pretrained_model_takes_the_place_of_training(make_images, tmp_path):
    foreign(tmp_path / "model")
    settings = module.DissolverSettings(size=16, pretrained=str(tmp_path / "model"))
    fitted = Dissolver(settings, device="cpu").fit(make_images(), workdir=tmp_path / "w")
    assert fitted.sha256() == load_dissolver(tmp_path / "model", device="cpu").sha256()
    fitted.save(tmp_path / "saved")
    again = load_dissolver(tmp_path / "saved", device="cpu")
    assert again.settings == settings
    assert again.sha256() == fitted.sha256()


def test_the_hash_tells_apart_what_dissolves_differently(tmp_path):
    hashes = {
        load_dissolver(foreign_at(tmp_path / str(i), *kind), device="cpu").sha256()
        for i, kind in enumerate(
            [
                ("epsilon", 3, "linear"),
                ("epsilon", 3, "squaredcos_cap_v2"),
                ("v_prediction", 3, "linear"),
                ("sample", 3, "linear"),
            ]
        )
    }
    assert len(hashes) == 4


def foreign_at(folder, *kind):
    foreign(folder, *kind)
    return folder


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [-1, 1000, [30, 1000]])
def test_t_out_of_range(t, tiny_dissolver, make_images):
    with pytest.raises(DataError, match=r"t must lie in 0–999, not (-1|1000)"):
        tiny_dissolver.dissolve(make_images(2), t)


@pytest.mark.parametrize("t", [0, 999])
def test_the_ends_of_the_range_of_t(t, tiny_dissolver, make_images):
    x = make_images(2)
    out = tiny_dissolver.dissolve(x, t)
    assert out.shape == x.shape
    if t == 0:
        assert levels(out, x) < 32  # √(1/ᾱ₀ − 1) = 0.006: next to nothing is removed


def test_not_fitted(make_images):
    with pytest.raises(DataError, match="not fitted"):
        Dissolver(device="cpu").dissolve(make_images(2), 30)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.astype(np.float32), lambda x: x[..., 0], lambda x: np.repeat(x, 2, -1), lambda x: x[0]],
)
def test_images_of_another_type_or_shape(change, tiny_dissolver, make_images):
    with pytest.raises(DataError, match="images must be uint8"):
        tiny_dissolver.dissolve(change(make_images(2)), 30)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(DataError, match="not a diffusers DDPM folder or hub name"):
        load_dissolver(tmp_path, device="cpu")
    with pytest.raises(DataError, match="not a diffusers DDPM folder or hub name"):
        Dissolver(module.DissolverSettings(pretrained="no-such/model"), device="cpu").fit(
            np.zeros((2, 16, 16, 1), np.uint8), workdir=tmp_path
        )
