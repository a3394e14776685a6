"""Shared maps of mixed precision are not found by who computes in full precision, nor the other way round."""

import torch
from torch import nn

from dia.features.shared import SharedMaps, shared, sharing


def test_maps_of_mixed_precision_are_entries_of_their_own(tmp_path):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8) * 2 - 1

    def maps():
        return shared(network, x, lambda images: [network(images)])[0]

    with sharing(SharedMaps(tmp_path, 2**20)) as entries:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = maps()
        whole = maps()
        assert (mixed.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(whole, network(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(maps(), mixed)
        assert (entries.computed, entries.found) == (4, 2)
