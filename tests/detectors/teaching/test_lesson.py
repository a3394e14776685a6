"""Which updates are kept, on vectors drawn at random: by chance rarely, with a real direction mostly."""

import numpy as np
import pytest

from dia.detectors.teaching.lesson import FEWEST, LEVEL, Ground, teach
from dia.detectors.teaching.seen import Seen
from dia.detectors.teaching.taught import Learned

NORMALS, SIZE, SCORED = 60, 20, 8  # a score sees the first 8 of 20 numbers


def seen(x):
    away = np.sqrt((x[:, :SCORED] ** 2).sum(1))
    return Seen({"cells": x.astype(np.float32)}, {"cells": away}, {}, np.zeros(len(x)))


def ground(rng, seed):
    normals, each = seen(rng.normal(size=(NORMALS, SIZE))), np.arange(NORMALS)

    def scorer(of):
        return of.distances["cells"]

    return Ground(normals, each, each, scorer, np.sort(scorer(normals)), further=False, seed=seed)


def learned(x, labels, units):
    n = len(x)
    flagged, shas = np.zeros(n, bool), np.zeros((n, 32), np.uint8)
    shas[:, 0] = np.arange(n)
    return Learned(seen(x), labels, flagged, units, np.arange(n, dtype=np.uint64), shas)


def lesson(seed, marks, *, each=1, apart=0.0, known=True):
    """A lesson of marks of patients with `each` images, alike; the anomalous ones lie apart."""
    rng = np.random.default_rng([seed, marks, each])
    patient = np.repeat(np.arange(marks // each), each)
    alike = 0.9 if each > 1 else 0.0
    x = alike * rng.normal(size=(marks, SIZE))[patient] + (1 - alike**2) ** 0.5 * rng.normal(
        size=(marks, SIZE)
    )
    labels = rng.permutation(np.arange(marks // each) % 2)[patient]
    x[:, SCORED] += apart * labels
    return teach(ground(rng, seed), learned(x, labels, patient if known else np.arange(marks)))


def sure(seeds, *args, **how):
    """How often a gain has a p of at most .05."""
    return np.mean([lesson(seed, *args, **how).p <= 0.05 for seed in range(seeds)])


def test_gains_by_random_labels_have_a_small_p_as_often_as_it_says():
    made = [lesson(seed, 24) for seed in range(80)]
    gained = np.mean([one.after > one.before for one in made])
    assert 0.35 < gained < 0.65  # so often any gain would do
    assert np.mean([one.p <= 0.05 for one in made]) < 0.13  # varies by 0.025
    assert np.mean([one.kept for one in made]) < 0.4  # 0.25 varies by 0.05
    assert all(one.kept == (one.p <= LEVEL) for one in made)


def test_a_real_direction_is_kept_mostly():
    assert sure(20, 24, apart=3.0) > 0.8


def test_images_of_a_patient_are_judged_together():
    """Random labels of twelve patients: who knows some of a patient's images knows the others' labels."""
    assert sure(30, 48, each=4) < 0.17  # 0.05 varies by 0.04
    assert sure(12, 48, each=4, known=False) > 0.6


def test_patients_and_not_images_are_counted():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(24, SIZE)), np.repeat([1, 0], 12)
    for patients in (FEWEST - 1, FEWEST):
        units = np.r_[np.arange(12) % patients, 100 + np.arange(12)]
        made = teach(ground(rng, 0), learned(x, labels, units))
        assert (made.p is None) == (patients < FEWEST)
    two = teach(ground(rng, 0), learned(x, labels, np.r_[np.arange(12) % 2, 100 + np.arange(12)]))
    assert not two.kept
    assert "12 marked anomalous, of 2 patients or volumes; 3 are needed to judge an update" in two.words


@pytest.mark.parametrize(("apart", "begins"), [(5.0, "the update is kept: "), (0.0, "cross-validated AUROC")])
def test_words_tell_the_gain_and_its_p(apart, begins):
    made = lesson(1, 40, apart=apart)
    assert made.words.startswith(begins)
    assert f"{made.before:.3f} → {made.after:.3f} (p " in made.words


def test_marks_of_patients_who_have_both_kinds_and_of_anomalies_alone_are_judged():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, SIZE))
    mixed = learned(x, np.arange(30) % 2, np.arange(30) // 5)
    assert 0 <= teach(ground(rng, 0), mixed).p <= 1
    alone = learned(x, np.ones(30, int), np.arange(30) // 5)
    assert 0 <= teach(ground(rng, 0), alone).p <= 1


def test_a_later_lesson_joins_images_to_the_patient_of_one_marked_again():
    x = np.zeros((4, SIZE))
    first = learned(x, np.zeros(4, int), np.array([0, 0, 1, 1]))
    later = learned(x, np.ones(4, int), np.array([0, 1, 2, 2]))
    later.sha256[:, 0] = [0, 10, 11, 12]  # the first image again, and three others
    both = first.then(later)
    assert list(both.sha256[:, 0]) == [1, 2, 3, 0, 10, 11, 12]
    one, *others = both.units
    assert one == both.units[3]  # the first patient's other image is with the one marked again
    assert others[0] == others[1] != one
    assert len(set(both.units)) == 4
    again = both.then(first.take(np.array([3])))
    assert len(set(again.units)) == 4
