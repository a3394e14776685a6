"""Shared maps: the same features as computed ones, for the same weights and pixels alone."""

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dia.features.lite import EfficientNetLite
from dia.features.networks import normalised
from dia.features.shared import SharedMaps, Spent, saved, shared, sharing
from dia.features.standing import LiteFeatures, LiteResNet

SPACE = 2**30


class Counting(nn.Module):
    """A network of one weight, which counts the images that it sees."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor, self.seen = nn.Parameter(torch.tensor([factor]), requires_grad=False), 0

    def maps(self, x):
        self.seen += len(x)
        return [self.factor * x.mean(1), x.amax((1, 2, 3))]


def ask(network, x):
    return shared(network, x, network.maps)


def images(n, seed=0, side=8):
    levels = torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed))
    return (levels / 255 - 0.5) / 0.5


def test_each_image_is_computed_once_in_whatever_company_it_comes(tmp_path):
    network, x = Counting(), images(6)
    wanted = network.maps(x)
    network.seen = 0
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        for rows in ([0, 1, 2], [2, 1], [5, 0, 3, 4], [4]):
            for got, part in zip(ask(network, x[rows]), wanted, strict=True):
                torch.testing.assert_close(got, part[rows], rtol=0, atol=0)
    assert (network.seen, maps.computed, maps.found) == (6, 6, 4)
    assert maps.saved.wall > 0


def test_another_process_finds_them_and_the_folder_may_go(tmp_path):
    network, x = Counting(), images(3)
    with sharing(SharedMaps(tmp_path, SPACE)):
        ask(network, x)
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        ask(network, x)
        assert (maps.computed, maps.found) == (0, 3)
        for file in tmp_path.iterdir():
            file.unlink()
        ask(network, x)
        assert maps.computed == 3


def test_other_weights_pixels_and_shapes_are_other_entries(tmp_path):
    network, x = Counting(), images(2)
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        ask(network, x)
        ask(network, x + 2 / 255)  # a grey level brighter
        ask(network, images(2, side=4))
        ask(Counting(3.0), x)
        assert maps.found == 0
        ask(Counting(2.0), x)  # the same weights in another object
        assert maps.found == 2


def test_weights_that_were_written_to_count_anew(tmp_path):
    network, x = Counting(), images(2)
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        ask(network, x)
        with torch.no_grad():
            network.factor.mul_(5)
        torch.testing.assert_close(ask(network, x)[0], 5 * 2.0 * x.mean(1))
        network.factor = nn.Parameter(torch.tensor([7.0]), requires_grad=False)
        torch.testing.assert_close(ask(network, x)[0], 7.0 * x.mean(1))
    assert maps.found == 0


def test_a_network_that_learns_is_not_shared(tmp_path):
    network, x = Counting(), images(2)
    network.factor.requires_grad_(True)
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        made = ask(network, x)[0]
        made.sum().backward()
        wanted = x.clone().requires_grad_(True)
        ask(Counting(), wanted)[0].sum().backward()
    assert network.factor.grad is not None
    assert wanted.grad is not None
    assert maps.computed == maps.found == 0
    assert list(tmp_path.iterdir()) == []


def test_outside_and_within_none_nothing_is_shared(tmp_path):
    network, x = Counting(), images(2)
    maps = SharedMaps(tmp_path, SPACE)
    ask(network, x)
    with sharing(maps):
        with sharing(None):
            ask(network, x)
            assert saved() == Spent()
        assert maps.computed == 0
        ask(network, x)
    ask(network, x)
    assert maps.computed == 2
    assert saved() == Spent()


def test_no_more_is_kept_than_there_is_room_for(tmp_path):
    network = Counting()
    with sharing(SharedMaps(tmp_path, 1)):
        ask(network, images(1))
        ask(network, images(4, seed=1))
    assert len(list(tmp_path.iterdir())) == 1  # the one that was begun with room left
    with sharing(SharedMaps(tmp_path, 1)) as later:
        ask(network, images(4, seed=1))
        assert later.computed == 4
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_goes_while_the_folder_is_counted_does_not_matter(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # listed, but not there
    (tmp_path / "entry").write_bytes(b"1234")
    assert SharedMaps(tmp_path, SPACE).bytes == 4


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"{}" * 40])
def test_a_damaged_entry_is_computed_anew(tmp_path, damage):
    network, x = Counting(), images(1)
    with sharing(SharedMaps(tmp_path, SPACE)):
        wanted = ask(network, x)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with sharing(SharedMaps(tmp_path, SPACE)) as maps:
        for got, part in zip(ask(network, x), wanted, strict=True):
            torch.testing.assert_close(got, part)
    assert maps.computed == 1
    assert load_file(file)


def test_two_at_once_leave_whole_entries(tmp_path):
    x, made = images(20), []

    def work(maps):
        network = Counting()
        made.append(maps.maps(network, x, network.maps)[0])

    all_maps = [SharedMaps(tmp_path, SPACE) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(maps,)) for maps in all_maps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert all(torch.equal(part, made[0]) for part in made)
    assert len(list(tmp_path.iterdir())) == 20


def test_both_forms_of_the_network_share_and_score_as_computed(tmp_path):
    """`dia+` takes the network as it is, peers in the place of a ResNet and in ImageNet's normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = EfficientNetLite(0)
    standing = LiteFeatures(LiteResNet(_copy(plain), 0), (1, 2, 3, 4))
    plain, standing = plain.eval().requires_grad_(False), standing.eval().requires_grad_(False)
    x = (images(3, side=64) * 0.5 + 0.5).clamp(0, 1)
    with torch.inference_mode():
        wanted = plain((x - 0.5) / 0.5)[:3], standing(normalised(x))
        with sharing(SharedMaps(tmp_path, SPACE)) as maps:
            for _ in range(2):
                got = plain((x - 0.5) / 0.5)[:3], standing(normalised(x))
                for made, computed in zip(got, wanted, strict=True):
                    for a, b in zip(made, computed, strict=True):
                        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert (maps.computed, maps.found) == (3, 9)


def _copy(network):
    other = EfficientNetLite(0)
    other.load_state_dict(network.state_dict())
    return other
