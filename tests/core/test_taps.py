import pytest
import torch
from torch import nn

from dia.core.running.taps import met_taps, written_gradients


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    (3, 1, 1, 1), (3, 2, 1, 1), (7, 2, 3, 1), (3, 1, 2, 2), (5, 1, "same", 1), (1, 1, "valid", 1),
])  # fmt: skip
def test_taps_that_meet_a_pixel_are_those_with_a_gradient(n, kernel, stride, padding, dilation):
    conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False)
    conv(torch.ones(1, 1, n, n)).sum().backward()  # in 32 bits: the right gradient is 0 or a positive count
    along = met_taps(n, kernel, stride, padding, dilation)
    assert torch.equal(conv.weight.grad[0, 0] > 0, along[:, None] & along[None, :])


def test_a_tap_over_padding_alone_has_no_gradient_whatever_was_left_there():
    conv = nn.Conv2d(2, 2, 3, 2, 1)
    with written_gradients(conv):
        out = conv(torch.ones(1, 2, 1, 1))
        (out.sum() * float("nan")).backward()
        assert conv.weight.grad[:, :, 1, 1].isnan().all()  # what met a pixel is what it was
        conv.weight.grad[:, :, 1, 1] = 0
        assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))
    assert not conv._forward_pre_hooks
