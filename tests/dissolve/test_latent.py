"""Dissolving in the latents of a (tiny, untrained) Stable Diffusion, and the snippets of docs/dissolve.md."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from dia import Dissolve
from dia.core.errors import DataError
from dia.dissolve.latent import LatentDissolver

needs_text = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
WIDTH, LENGTH = 8, 6
PAGE = Path(__file__).parents[2] / "docs" / "dissolve.md"


def tiny_vae(**config):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
            **config,
        ).eval()


def tiny_unet(**config):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return UNet2DConditionModel(
            **{
                "sample_size": 16,
                "block_out_channels": (8, 16),
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 4,
            }
            | config
        ).eval()


def sd_scheduler(prediction="epsilon"):
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def embeds(seed=3):
    return torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def in_latents(t=100, *, vae=None, unet=None, prediction="epsilon", size=None, **options):
    latent = LatentDissolver(
        vae or tiny_vae(), unet or tiny_unet(), sd_scheduler(prediction), embeds(), size=size
    )
    return Dissolve(latent, t, **options)


def save_parts(folder):
    """What a Stable Diffusion folder has without its text encoder."""
    tiny_vae().save_pretrained(folder / "vae")
    tiny_unet().save_pretrained(folder / "unet")
    sd_scheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    """A whole `StableDiffusionPipeline`, written by diffusers."""
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    words = ["<|startoftext|>", "<|endoftext|>", "l", "u", "n", "g", "g</w>", "lu", "lun", "lung</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nl u\nlu n\nlun g</w>\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="<|endoftext|>",
        model_max_length=LENGTH,
    )
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = CLIPTextModel(config).eval()
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    return folder / "model"


# --- the step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("shift", [None, 0.1])
@pytest.mark.parametrize("t", [0, 500, 999])
def test_one_step_on_the_latents_by_hand(prediction, shift, t):
    vae, unet, scheduler = tiny_vae(shift_factor=shift), tiny_unet(), sd_scheduler(prediction)
    x = rand(2, 3, 32, 32)
    y = in_latents(t, vae=vae, unet=unet, prediction=prediction)(x)
    with torch.no_grad():
        z = (vae.encode(x * 2 - 1).latent_dist.mean - (shift or 0)) * 0.18215
        output = unet(z, t, encoder_hidden_states=embeds().expand(2, -1, -1)).sample
        scheduler.set_timesteps(1000)
        clean = scheduler.step(output, t, z, eta=0).pred_original_sample
        expected = (vae.decode(clean / 0.18215 + (shift or 0)).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)


def test_latents_are_not_clamped_and_images_are():
    vae = tiny_vae(scaling_factor=50.0)
    vae.decoder.conv_out.bias.data += torch.tensor([0.0, 3.0, -3.0])
    given = []
    vae.post_quant_conv.register_forward_pre_hook(lambda _, args: given.append(args[0] * 50))
    y = in_latents(500, vae=vae).dissolving(rand(2, 3, 32, 32) * 2 - 1, 500)
    assert given[0].abs().max() > 1.5
    assert (y.min(), y.max()) == (-1, 1)


def test_nothing_is_drawn():
    dissolve, x = in_latents(500), rand(3, 3, 32, 32)
    torch.manual_seed(0)
    first = dissolve(x)
    torch.manual_seed(1)
    assert torch.equal(dissolve(x), first)
    torch.testing.assert_close(dissolve(x[1:2]), first[1:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (2, 3, 28, 28), (2, 1, 40, 31), (1, 3, 70, 224), (3, 5, 5), (0, 3, 16, 16)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_any_shape_and_type_come_back(shape, dtype):
    x = (rand(*shape) * 255).byte() if dtype is torch.uint8 else rand(*shape).to(dtype)
    y = in_latents(200)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("shape", "size", "seen"),
    [
        ((48, 48), None, (32, 32)),  # the model's own size
        ((48, 24), 16, (16, 8)),
        ((48, 48), 64, (48, 48)),
        ((30, 17), None, (32, 20)),  # padded to what VAE and U-Net can halve once each
    ],
)
def test_the_size_at_which_images_are_dissolved(shape, size, seen):
    vae, given = tiny_vae(), []
    vae.encoder.register_forward_pre_hook(lambda _, args: given.append(args[0].shape[-2:]))
    in_latents(vae=vae, size=size)(rand(1, 3, *shape))
    assert given == [seen]


def test_t_of_each_image_its_own():
    dissolve, x = in_latents(0), rand(3, 3, 32, 32)
    mixed = dissolve(x, t=torch.tensor([10, 400, 900]))
    for i, t in enumerate((10, 400, 900)):
        torch.testing.assert_close(mixed[i], dissolve(x[i], t=t), rtol=0, atol=1e-5)


def test_its_networks_can_be_of_16_bits():
    x = rand(1, 3, 32, 32)
    dissolve = in_latents(300)
    expected = dissolve(x)
    assert (dissolve.bfloat16()(x) - expected).abs().mean() < 2e-2
    assert {p.dtype for p in dissolve.parameters()} == {torch.bfloat16}
    assert set(dissolve.networks) == {"vae", "unet"}
    assert not any(p.requires_grad for p in dissolve.parameters())


def test_kornia_dissolves_alike_but_draws_its_latents(monkeypatch):
    """What the page says about kornia: its step, its t, its draw, its sizes and its types."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from kornia.filters.dissolving import _DissolvingWraper_HF

    vae = tiny_vae()
    parts = {"vae": vae, "unet": tiny_unet(), "scheduler": sd_scheduler()}
    theirs = _DissolvingWraper_HF(SimpleNamespace(**parts, tokenizer=None, device="cpu"), 1000)
    theirs.context = torch.cat([embeds(9)[None], embeds()[None]])  # (of no prompt, of the prompt)
    ours, x = in_latents(0), rand(1, 3, 32, 32)

    def dissolve(x, t):
        return theirs.decode_tensor_to_latent(theirs.one_step_dissolve(theirs.encode_tensor_to_latent(x), t))

    assert not torch.equal(dissolve(x, 300), dissolve(x, 300))
    assert dissolve(x.double(), 300).dtype == torch.float32
    assert dissolve(rand(1, 3, 31, 32), 300).shape[-2:] == (30, 32)  # this VAE halves once
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self: self.mode())
    for t in (0, 100, 999):
        torch.testing.assert_close(dissolve(x, t), ours(x, t=t), rtol=0, atol=2e-5)


# --- loading ------------------------------------------------------------------------------------------


def test_with_embeddings_no_text_encoder_is_read(tmp_path):
    x = rand(2, 3, 32, 32)
    dissolve = Dissolve.from_stable_diffusion(save_parts(tmp_path), 300, prompt_embeds=embeds(), p=1.0)
    assert torch.equal(dissolve(x), in_latents(300)(x))
    other = Dissolve.from_stable_diffusion(str(tmp_path), 300, prompt_embeds=embeds(9)[None])
    assert not torch.equal(dissolve(x), other(x))  # the prompt counts
    low = Dissolve.from_stable_diffusion(
        tmp_path, 300, prompt_embeds=embeds(), torch_dtype=torch.bfloat16, local_files_only=True, size=24
    )
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert low.dissolving.settings.size == 24
    assert low(x).dtype == torch.float32


@needs_text
def test_a_folder_and_its_pipeline_dissolve_alike(sd_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder, low_cpu_mem_usage=False)
    x = rand(2, 3, 32, 32)
    y = Dissolve.from_stable_diffusion(sd_folder, 300)(x)
    assert torch.equal(Dissolve.from_stable_diffusion(pipeline, 300)(x), y)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt("", "cpu", 1, False)
    assert theirs.shape == (1, LENGTH, WIDTH)
    assert torch.equal(Dissolve.from_stable_diffusion(pipeline, 300, prompt_embeds=theirs)(x), y)


@needs_text
def test_the_prompt_counts(sd_folder):
    x = rand(1, 3, 32, 32)
    with_word = Dissolve.from_stable_diffusion(sd_folder, 300, prompt="lung")
    assert not torch.equal(with_word(x), Dissolve.from_stable_diffusion(sd_folder, 300)(x))
    with_many = Dissolve.from_stable_diffusion(sd_folder, 300, prompt="lung " * 20)  # cut, not refused
    assert with_many(x).shape == x.shape


# --- errors -------------------------------------------------------------------------------------------


def test_without_transformers_a_prompt_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dia.dissolve.latent.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'dia-anomaly\[latents\]'; or give prompt_embeds"):
        Dissolve.from_stable_diffusion(save_parts(tmp_path), 300, prompt="lung")
    x = rand(1, 3, 32, 32)
    assert Dissolve.from_stable_diffusion(tmp_path, 300, prompt_embeds=embeds())(x).shape == x.shape


def test_no_such_model(tmp_path):
    for name in (tmp_path, "no-such/model"):
        with pytest.raises(DataError, match="not a Stable Diffusion folder or hub name") as error:
            Dissolve.from_stable_diffusion(name, 300, prompt_embeds=embeds())
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="not a Stable Diffusion pipeline"):
        Dissolve.from_stable_diffusion(3, 300)


@pytest.mark.parametrize("shape", [(WIDTH,), (2, LENGTH, WIDTH), (LENGTH, WIDTH + 1)])
def test_embeddings_of_another_shape(shape, tmp_path):
    with pytest.raises(DataError, match=rf"must be \(L, {WIDTH}\)"):
        LatentDissolver(tiny_vae(), tiny_unet(), sd_scheduler(), torch.zeros(shape))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, "does not estimate the noise alone"),
        ({"in_channels": 8, "out_channels": 8}, "takes 8 channels, the VAE gives 4"),
        ({"addition_embed_type": "text"}, "Stable Diffusion XL"),
    ],
)
def test_unets_of_other_kinds(config, message):
    with pytest.raises(DataError, match=message):
        LatentDissolver(tiny_vae(), tiny_unet(**config), sd_scheduler(), embeds())


@pytest.mark.parametrize("t", [1000, (0, 1000)])
def test_t_out_of_range(t):
    with pytest.raises(DataError, match="0–999"):
        in_latents(t)


def test_a_prompted_unet_is_not_taken_for_one_on_pixels(tmp_path):
    with pytest.raises(DataError, match="from_stable_diffusion"):
        Dissolve(tiny_unet(), 100, scheduler=sd_scheduler())


# --- the page -----------------------------------------------------------------------------------------

SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_has_its_snippets():
    assert len(SNIPPETS) >= 6


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_page_runs(snippet, tiny_dissolver, request, tmp_path, monkeypatch):
    """Each stands alone, but for the names that the page's first paragraph explains."""
    from diffusers import DDPMPipeline

    monkeypatch.chdir(tmp_path)
    tiny_dissolver.save(Path("runs/mine/dissolver"))
    DDPMPipeline(tiny_dissolver.unet_, tiny_dissolver.scheduler_).save_pretrained("models/ddpm")
    save_parts(Path("models/stable-diffusion"))
    embedded = embeds()
    np.save("empty_prompt.npy", embedded.numpy())
    if "torchvision" in snippet:
        pytest.importorskip("torchvision")
    if "prompt=" in snippet:
        pytest.importorskip("transformers")
        Path("models/with-text").symlink_to(request.getfixturevalue("sd_folder"))
        snippet = snippet.replace("models/stable-diffusion", "models/with-text")
    names = {"images": rand(4, 3, 48, 40), "masks": (rand(4, 1, 48, 40) > 0.5).float()}
    exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["out"].shape == names["images"].shape
    assert not torch.equal(names["out"].float(), names["images"])
