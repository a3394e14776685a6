"""The dissolved bank: the pixels of live dissolving, built once, resumable, and never another's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dia.dissolve.bank as module
from dia.core.training import batch_indices, used_indices
from dia.dissolve.bank import DissolvedBank, LiveDissolving

TS = (30, 99, 300)
N = 10


class Counting:
    """A dissolver that counts the images it is given, and fails after so many calls."""

    def __init__(self, dissolver, fail_after=None, name=""):
        self.real, self.left, self.name, self.images = dissolver, fail_after, name, 0

    def dissolve(self, images, t):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.images += len(images)
        return self.real.dissolve(images, t)

    def sha256(self):
        return self.real.sha256() + self.name


@pytest.fixture(scope="module")
def images(make_images):
    return make_images(N, seed=3)


@pytest.fixture(scope="module")
def bank(images, tiny_dissolver, tmp_path_factory):
    return DissolvedBank.build(images, tiny_dissolver, TS, tmp_path_factory.mktemp("bank") / "bank.npy")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 4)  # three chunks for ten images


draws = st.integers(1, 6).flatmap(
    lambda b: st.tuples(
        hnp.arrays(int, b, elements=st.integers(0, N - 1)),
        hnp.arrays(bool, b),
        hnp.arrays(int, b, elements=st.integers(0, len(TS) - 1)),
    )
)


@given(draws)
def test_the_bank_holds_what_live_dissolving_gives(images, tiny_dissolver, bank, draw):
    live = LiveDissolving(images, tiny_dissolver, TS).take(*draw)
    stored = bank.take(*draw)
    assert stored.shape == live.shape == (len(draw[0]), 16, 16, 1)
    assert stored.dtype == live.dtype == np.uint8
    assert np.abs(stored.astype(int) - live.astype(int)).max() <= 1


def test_images_are_mirrored_before_they_are_dissolved(images, tiny_dissolver, bank):
    one, yes, level = np.array([4]), np.array([True]), np.array([2])
    expected = tiny_dissolver.dissolve(images[4:5, :, ::-1], TS[2])
    afterwards = tiny_dissolver.dissolve(images[4:5], TS[2])[:, :, ::-1]
    assert np.abs(bank.take(one, yes, level).astype(int) - expected).max() <= 1
    assert np.abs(expected.astype(int) - afterwards).max() > 1  # the network knows left from right


def test_building_goes_on_where_it_was_stopped(images, tiny_dissolver, bank, tmp_path, small_chunks):
    path = tmp_path / "bank.npy"
    with pytest.raises(KeyboardInterrupt):
        DissolvedBank.build(images, Counting(tiny_dissolver, fail_after=3), TS, path)  # in the second chunk
    counting = Counting(tiny_dissolver)
    resumed = DissolvedBank.build(images, counting, TS, path)
    assert counting.images == 2 * (N - 4)  # plain and mirrored, without the first chunk
    assert np.abs(resumed.array.astype(int) - bank.array.astype(int)).max() <= 1


def test_a_complete_bank_is_opened_and_not_built_again(images, tiny_dissolver, tmp_path):
    path = tmp_path / "bank.npy"
    first = np.array(DissolvedBank.build(images, tiny_dissolver, TS, path).array)
    counting = Counting(tiny_dissolver)
    assert np.array_equal(DissolvedBank.build(images, counting, TS, path).array, first)
    assert counting.images == 0


@pytest.mark.parametrize("change", ["dissolver", "ts", "number"])
def test_the_bank_of_something_else_is_built_anew(change, images, tiny_dissolver, tmp_path):
    path = tmp_path / "bank.npy"
    DissolvedBank.build(images, tiny_dissolver, TS, path)
    counting = Counting(tiny_dissolver, name="another" * (change == "dissolver"))
    ts = (31, *TS[1:]) if change == "ts" else TS
    x = images[:7] if change == "number" else images
    again = DissolvedBank.build(x, counting, ts, path)
    assert counting.images == 2 * len(x)
    assert again.ts == ts
    assert np.abs(again.array[:, 0].astype(int) - tiny_dissolver.dissolve(x, ts)).max() <= 1


def test_a_rebuild_that_was_stopped_does_not_pass_for_the_old_bank(images, tiny_dissolver, tmp_path):
    path = tmp_path / "bank.npy"
    first = np.array(DissolvedBank.build(images, tiny_dissolver, TS, path).array)
    with pytest.raises(KeyboardInterrupt):  # the file is already overwritten, the new marker not yet written
        DissolvedBank.build(images, Counting(tiny_dissolver, fail_after=0, name="another"), TS, path)
    assert np.array_equal(DissolvedBank.build(images, tiny_dissolver, TS, path).array, first)


def test_a_marker_without_its_file_is_not_believed(images, tiny_dissolver, tmp_path):
    path = tmp_path / "bank.npy"
    first = np.array(DissolvedBank.build(images, tiny_dissolver, TS, path).array)
    path.unlink()
    assert json.loads(path.with_suffix(".json").read_text())["done"] == N
    assert np.array_equal(DissolvedBank.build(images, tiny_dissolver, TS, path).array, first)


# --- a part of the images -----------------------------------------------------------------------------


def test_a_bank_of_some_images_holds_their_copies_only(images, bank, tiny_dissolver, tmp_path):
    index = np.array([1, 4, 5, 9])
    counting = Counting(tiny_dissolver)
    some = DissolvedBank.build(images, counting, TS, tmp_path / "bank.npy", index)
    assert some.array.shape[:3] == (len(TS), 2, 4)
    assert counting.images == 2 * 4
    asked, flip, level = np.array([9, 1, 4, 1]), np.array([0, 1, 1, 0], bool), np.array([0, 2, 1, 1])
    differ = np.abs(some.take(asked, flip, level).astype(int) - bank.take(asked, flip, level))
    assert differ.max() <= 1  # those of other batches, rounded to whole grey values


def test_a_bank_of_other_images_is_built_anew(images, tiny_dissolver, tmp_path):
    for index in ([0, 1, 2], [3, 4, 5]):
        counting = Counting(tiny_dissolver)
        made = DissolvedBank.build(images, counting, TS, tmp_path / "bank.npy", np.array(index))
        assert counting.images == 6
        np.testing.assert_array_equal(made.array[0, 0], tiny_dissolver.dissolve(images[index], TS[0]))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5), st.integers(1, 30))
def test_every_image_that_a_batch_holds_is_named_beforehand(n, batch, seed, steps):
    used = used_indices(n, batch, seed, steps)
    asked = np.unique(np.concatenate([batch_indices(n, batch, seed, s) for s in range(steps)]))
    assert (np.diff(used) > 0).all()
    assert set(asked) <= set(used)
    if steps < 2 * (n // min(batch, n)):
        assert set(asked) == set(used)
