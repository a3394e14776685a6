"""The contrastive loss against the poster's matrix, a plain loop, and vectors chosen by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dia.amplify.loss import contrastive_loss, targets


def projections(rows, d=5, seed=0):
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Rows of the poster's figure, K = 2 shifts and two samples a and b. Columns are
#   v1: a b a' b' | v2: a b a' b' | dissolved: a b a' b'   (' = second shift)
# x = excluded (white), p = positive (blue), - = negative (lavender, and red in the last third).
OWN_EXCLUDED = """
    x---|p---|x---
    -x--|-p--|-x--
    --x-|--p-|--x-
    ---x|---p|---x
    p---|x---|x---
    -p--|-x--|-x--
    --p-|--x-|--x-
    ---p|---x|---x
"""
OWN_NEGATIVE = """
    x---|p---|----
    -x--|-p--|----
    --x-|--p-|----
    ---x|---p|----
    p---|x---|----
    -p--|-x--|----
    --p-|--x-|----
    ---p|---x|----
"""


@pytest.mark.parametrize(("exclude_own", "figure"), [(True, OWN_EXCLUDED), (False, OWN_NEGATIVE)])
def test_the_target_matrix_of_the_poster(exclude_own, figure):
    positive, excluded = targets(2, 2, 3, exclude_own)
    assert excluded.shape == (8, 12)
    drawn = [["x" if cell else "-" for cell in row] for row in excluded.tolist()]
    for row, column in enumerate(positive.tolist()):
        assert drawn[row][column] == "-"  # never excluded
        drawn[row][column] = "p"
    assert ["".join(row) for row in drawn] == [line.replace("|", "") for line in figure.split()]


def test_without_dissolved_views_the_matrix_is_that_of_csi():
    for exclude_own in (True, False):
        positive, excluded = targets(2, 2, 2, exclude_own)
        assert positive.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
        assert torch.equal(excluded, torch.eye(8, dtype=torch.bool))


def plain(z, b, k_shifts, views, exclude_own, tau):
    """The loss as one reads it, cell by cell."""
    vectors = [[float(c) for c in row] for row in z]
    vectors = [[c / math.sqrt(sum(e * e for e in v)) for c in v] for v in vectors]
    place = [(v, k, i) for v in range(views) for k in range(k_shifts) for i in range(b)]
    total = 0.0
    for a, (v, k, i) in enumerate(place):
        if v == 2:
            continue  # dissolved rows are no anchors
        numerator, denominator = None, 0.0
        for r, (w, l, j) in enumerate(place):  # noqa: E741
            e = math.exp(sum(p * q for p, q in zip(vectors[a], vectors[r], strict=True)) / tau)
            if a == r or (exclude_own and w == 2 and (l, j) == (k, i)):
                continue
            denominator += e
            if w == 1 - v and (l, j) == (k, i):
                numerator = e
        total -= math.log(numerator / denominator)
    return total / len(place)


@pytest.mark.parametrize("exclude_own", [True, False])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(("b", "k"), [(2, 2), (3, 4), (2, 1)])
def test_the_loss_is_that_of_a_plain_loop(b, k, views, exclude_own):
    z = projections(views * k * b)
    loss = contrastive_loss(z, *targets(b, k, views, exclude_own), 0.5)
    assert float(loss) == pytest.approx(plain(z, b, k, views, exclude_own, 0.5), rel=1e-5)


E1, E2 = [3.0, 0.0], [0.0, 0.5]  # orthogonal; lengths must not matter


@pytest.mark.parametrize(
    ("rows", "b", "k", "views", "exclude_own", "expected"),
    [
        # the own copy is not seen: nothing but the positive is left
        ([E1, E1, E2], 1, 1, 3, True, 0.0),
        # the own copy is one negative at cosine 0: log(1 + e⁻²) for two anchors, over three rows
        ([E1, E1, E2], 1, 1, 3, False, 2 / 3 * math.log(1 + math.exp(-2))),
        # CSI, two images alike in both views: two negatives at cosine 0, four anchors over four rows
        ([E1, E2, E1, E2], 2, 1, 2, True, math.log(1 + 2 * math.exp(-2))),
        # CSI, one image and two shifts, which are negatives of each other: the same numbers
        ([E1, E2, E1, E2], 1, 2, 2, True, math.log(1 + 2 * math.exp(-2))),
        # two images, their copies the same as themselves: the other's copy is a third negative
        ([E1, E2, E1, E2, E1, E2], 2, 1, 3, True, 2 / 3 * math.log(1 + 3 * math.exp(-2))),
        # ... and the own copy one at cosine 1
        ([E1, E2, E1, E2, E1, E2], 2, 1, 3, False, 2 / 3 * math.log(2 + 3 * math.exp(-2))),
    ],
)
def test_the_loss_by_hand(rows, b, k, views, exclude_own, expected):
    loss = contrastive_loss(torch.tensor(rows), *targets(b, k, views, exclude_own), 0.5)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("views", [2, 3])
def test_the_divisor_counts_all_rows(views):
    b, k = 3, 2
    positive, excluded = targets(b, k, views)
    z = torch.ones(views * k * b, 4)  # all alike: −log(1 / rows seen) for each anchor
    seen = views * k * b - (views - 1)  # all but itself and, with dissolved views, its own copy
    expected = 2 * k * b * math.log(seen) / (views * k * b)
    assert float(contrastive_loss(z, positive, excluded)) == pytest.approx(expected, rel=1e-6)


@given(st.permutations(range(4)), st.booleans(), st.sampled_from([2, 3]))
def test_the_order_of_the_images_does_not_matter(order, exclude_own, views):
    b, k = 4, 2
    z = projections(views * k * b).reshape(views, k, b, -1)
    t = targets(b, k, views, exclude_own)
    loss = contrastive_loss(z.flatten(0, 2), *t)
    permuted = contrastive_loss(z[:, :, list(order)].flatten(0, 2), *t)
    assert float(permuted) == pytest.approx(float(loss), rel=1e-5)


def test_the_plain_views_and_the_shifts_play_like_parts():
    z = projections(3 * 2 * 3).reshape(3, 2, 3, -1)
    t = targets(3, 2, 3)
    loss = float(contrastive_loss(z.flatten(0, 2), *t))
    assert float(contrastive_loss(z[[1, 0, 2]].flatten(0, 2), *t)) == pytest.approx(loss, rel=1e-5)
    assert float(contrastive_loss(z[:, [1, 0]].flatten(0, 2), *t)) == pytest.approx(loss, rel=1e-5)
    assert float(contrastive_loss(z[[2, 1, 0]].flatten(0, 2), *t)) != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("exclude_own", [True, False])
def test_gradients_reach_the_dissolved_rows(exclude_own):
    z = projections(12).requires_grad_()
    contrastive_loss(z, *targets(2, 2, 3, exclude_own)).backward()
    assert (z.grad[8:].norm(dim=1) > 1e-4).all()


def test_a_lone_dissolved_row_is_pushed_away_only_where_it_is_seen():
    for exclude_own, moved in ((True, False), (False, True)):
        z = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, 0.5]], requires_grad=True)
        contrastive_loss(z, *targets(1, 1, 3, exclude_own)).backward()
        assert bool(z.grad[2].norm() > 0) is moved
