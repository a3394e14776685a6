"""onnxruntime computes the maps that torch does, and where it should not, torch computes."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from dia.detectors.saving import module_tensors
from dia.features import runtime
from dia.features.backbone import load_backbone, restore_backbone
from dia.features.lite import EfficientNetLite


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EfficientNetLite().eval().requires_grad_(False)


@pytest.fixture
def sessions(monkeypatch):
    """Sessions made from here on, by the part of the network."""
    monkeypatch.setattr(runtime, "_sessions", type(runtime._sessions)())
    return runtime._sessions


def by_torch(compute, x):
    """The maps as torch computes them, because gradients are wanted."""
    made = compute(x.clone().requires_grad_())
    return [made.detach()] if isinstance(made, torch.Tensor) else [part.detach() for part in made]


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) < 1e-4 * max(float(b.abs().max()), 1e-3)


SIDES = st.integers(1, 150)


@given(SIDES, SIDES, st.integers(1, 3), st.sampled_from([0, 1, 2]), st.integers(0, 99))
@run_settings(max_examples=25, deadline=None)
def test_maps_are_torchs_at_every_size(height, width, n, variant, seed):
    torch.manual_seed(seed)
    made = EfficientNetLite(variant).eval().requires_grad_(False)
    x = torch.rand(n, 3, height, width) * 2 - 1
    maps, fine = made.all_maps(x), made.fine(x)
    close(maps, by_torch(made.all_maps, x))
    close([fine], by_torch(made.fine, x))


def test_an_images_maps_do_not_hang_on_its_batch(network):
    x = torch.rand(5, 3, 64, 96) * 2 - 1
    for alone, among in zip(network.all_maps(x[3:4]), network.all_maps(x), strict=True):
        assert torch.equal(alone[0], among[3])


def test_changed_weights_give_changed_maps(network, sessions):
    made, x = copy.deepcopy(network), torch.rand(1, 3, 64, 64)
    before = made.fine(x)
    with torch.no_grad():
        made.stem.weight.mul_(2)
    after = made.fine(x)
    assert len(sessions) == 2
    close([after], by_torch(made.fine, x))
    assert not torch.allclose(before, after)


def test_networks_of_equal_weights_share_a_session_and_few_are_kept(network, sessions):
    x = torch.rand(1, 3, 32, 32)
    for made in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        made.fine(x)
    assert len(sessions) == 1
    for seed in range(10):
        torch.manual_seed(seed)
        EfficientNetLite().requires_grad_(False).fine(x)
    assert len(sessions) == 8


def test_weights_made_in_inference_mode_are_never_stale(sessions):
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        made = EfficientNetLite().requires_grad_(False)
        before = made.fine(x)
        made.stem.weight.mul_(2)
        assert not torch.allclose(before, made.fine(x))
    assert not sessions


def test_a_backbone_loaded_in_inference_mode_is_as_any_other(sessions):
    x = torch.rand(1, 3, 32, 32)
    usual = load_backbone("lite0", "lite0")
    state = module_tensors(usual.network, "")
    with torch.inference_mode():
        others = load_backbone("lite0", "lite0"), restore_backbone("lite0", "lite0", state, "")
    for other in others:
        for ours, theirs in zip(other(x), usual(x), strict=True):
            assert torch.equal(ours, theirs)
    assert len(sessions) == 1


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_gradients_graphs_and_mixed_precision_are_torchs(network, sessions):
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    network.fine(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0
    trained = copy.deepcopy(network).requires_grad_(True)
    assert trained.fine(torch.rand(1, 3, 32, 32)).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.fine(torch.rand(1, 3, 32, 32)).dtype == torch.bfloat16
    torch.jit.trace(network, (torch.rand(1, 3, 32, 32),), check_trace=False)
    torch.export.export(network, (torch.rand(2, 3, 32, 32),))
    assert not sessions


def test_threads_of_one_process_share_a_session(network, sessions):
    x, found = torch.rand(2, 3, 64, 64), []
    threads = [threading.Thread(target=lambda: found.append(network.fine(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(sessions) == 1
    assert all(torch.equal(maps, found[0]) for maps in found)
