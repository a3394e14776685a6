"""The curve over the number of normals: who is fitted on what, and what is said of its end."""

import numpy as np
import pytest

from dia.data.imageset import ImageSet
from dia.evaluate.learning_curve import Point, climbs, learning_curve


def images(n, labels=None):
    made = np.zeros((n, 4, 4, 1), np.uint8)
    made[:, 0, 0, 0] = np.arange(n) % 256
    return ImageSet(made, labels=labels)


def test_each_point_is_of_fits_on_as_many_different_normals():
    fitted = []

    def fit(normals, draw):
        values = normals.images[:, 0, 0, 0]
        assert len(set(values)) == len(values)
        assert (np.diff(values.astype(int)) > 0).all()  # in order: all normals are those of the fit itself
        fitted.append((len(values), draw, tuple(values)))
        return lambda test: np.arange(len(test)) * (1 if len(values) > 10 else -1)

    found = learning_curve(fit, images(60), images(8, [0, 0, 0, 0, 1, 1, 1, 1]), draws=2)
    assert [p.normals for p in found] == [5, 10, 20, 30, 60]
    assert [p.aurocs for p in found] == [(0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (1.0,)]
    assert len({values for *_, values in fitted}) == 9  # no two draws alike


@pytest.mark.parametrize(
    ("half", "all_", "said"),
    [((0.80, 0.81, 0.82), 0.85, "still climbs"), ((0.80, 0.85, 0.9), 0.88, "help little"),
     ((0.85, 0.85, 0.85), 0.854, "help little"), ((0.9, 0.91, 0.9), 0.85, "help little")],
)  # fmt: skip
def test_a_rise_counts_if_it_is_more_than_the_draws_differ(half, all_, said):
    sentence = climbs([Point(5, (0.5,)), Point(20, half), Point(41, (all_,))])
    assert said in sentence
    assert "41 for 20" in sentence


def test_of_few_normals_there_is_no_curve():
    assert "too few" in climbs([Point(7, (0.5,))])
