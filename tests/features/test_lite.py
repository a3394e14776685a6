"""EfficientNet-Lite: the same network as timm's, with batch normalisation folded in."""

import pytest
import torch

from dia.features.lite import EfficientNetLite

timm = pytest.importorskip("timm")


def published(variant):
    """timm's network with random weights, and statistics such as training leaves: no two channels alike."""
    with torch.random.fork_rng():
        torch.manual_seed(variant)
        theirs = timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=10)
        norms = [m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.normal_(norm.bias, 0, 0.5)
        theirs.train()(torch.rand(8, 3, 64, 64) * 2 - 1)  # variances that keep activations of one size
        for norm in norms:
            norm.running_mean += norm.running_var.sqrt() * torch.randn(norm.num_features) * 0.2
            norm.running_var *= torch.empty(norm.num_features).uniform_(0.5, 2)
    return theirs.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request):
    theirs, ours = published(request.param), EfficientNetLite(request.param).eval().requires_grad_(False)
    ours.load_published(theirs.state_dict())
    return theirs, ours


def images(n, height, width=None):
    random = torch.Generator().manual_seed(height)
    return torch.rand(n, 3, height, width or height, generator=random) * 2 - 1


@pytest.mark.parametrize("shape", [(112, 112), (128, 128), (97, 97), (70, 101)])
def test_the_network_is_timms_at_even_and_odd_sides(pair, shape):
    theirs, ours = pair
    x = images(2, *shape)
    last, maps = theirs.forward_intermediates(x, indices=[2, 3, 4])
    wanted = (*maps, theirs.forward_head(last, pre_logits=True))
    got = ours(x)
    for stride, a, b in zip((8, 16, 32), got, wanted, strict=False):
        assert a.shape[2:] == tuple(-(-side // stride) for side in shape)
        assert a.shape == b.shape
    for a, b in zip(got, wanted, strict=True):
        assert float(b.std()) > 0.1  # nothing has died out on the way
        assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())
    torch.testing.assert_close(ours.fine(x), got[0], rtol=0, atol=0)


def test_an_image_whose_pixels_have_another_layout_in_memory_gives_the_same(pair):
    x = images(2, 64)
    torch.testing.assert_close(
        pair[1](x.to(memory_format=torch.channels_last))[3], pair[1](x)[3], rtol=1e-4, atol=1e-4
    )


@pytest.fixture(scope="module")
def state():
    return published(0).state_dict()


def changed(state, name, tensor):
    return {k: tensor if k == name else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dict(list(s.items())[:60]), "too few tensors"),
        (lambda s: {}, "too few tensors"),
        (lambda s: changed(s, "conv_stem.weight", torch.zeros(32, 1, 3, 3)), r"\(32, 1, 3, 3\) where"),
        (lambda s: changed(s, "blocks.2.0.bn2.weight", torch.zeros(7)), r"\(7,\)"),
        (lambda s: changed(s, "blocks.2.0.bn2.running_var", torch.zeros(1)), r"\(1,\)"),  # would broadcast
        (lambda s: {k: v for k, v in s.items() if k != "blocks.1.0.bn1.bias"}, "where"),
    ],
)
def test_tensors_that_are_too_few_or_of_other_shapes_are_refused(state, change, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLite(0).load_published(change(state))


@pytest.mark.parametrize(("of", "into"), [(1, 0), (0, 1), (0, 2)])
def test_weights_of_another_variant_are_refused(state, of, into):
    other = state if of == 0 else published(of).state_dict()
    with pytest.raises(ValueError, match=r"where|too few"):
        EfficientNetLite(into).load_published(other)
