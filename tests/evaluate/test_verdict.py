"""The verdict: promises that fail are said to fail, drift and untrained rows count, and so do files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.stats import betabinom, binom

from dia.data.imageset import ImageSet, units_of
from dia.detectors.calibration import Calibration, effective
from dia.evaluate.properties import properties_of
from dia.evaluate.verdict import Finding, Verdict, drift, false_alarms, properties, ranking, sample

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1], 100)
SCORES = RNG.normal(size=200) + 2 * LABELS


def flags(k, n):
    return np.arange(n) < k, np.zeros(n, int)


def test_the_rate_seen_is_held_to_the_promise():
    bad = false_alarms(*flags(44, 234), 0.05, 1214)  # what 0.1 called "at most 5 %"
    assert bad.mark == "bad"
    assert "44 of 234 normal images are flagged: 18.8 %, 95 % interval 14 % to 24.4 %" in bad.words
    assert "does not hold" in bad.words
    assert false_alarms(*flags(5, 100), 0.05, 1000).mark == "good"
    within = false_alarms(*flags(8, 100), 0.05, 1000)
    assert within.mark == "good"
    assert "within chance" in within.words
    assert false_alarms(*flags(0, 5), 0.05, 1000).mark == "care"
    assert false_alarms(np.ones(4, bool), None, 0.05, 1000).mark == "unknown"
    assert "too few" in false_alarms(*flags(0, 100), 0.01, 50).words


def test_few_calibration_normals_make_more_false_alarms_chance():
    """A threshold set on 20 normals is a draw itself: a share that condemns one set on 1000 is chance."""
    assert false_alarms(*flags(15, 100), 0.05, 1000).mark == "bad"
    assert false_alarms(*flags(15, 100), 0.05, 20).mark == "good"


def test_a_promise_that_is_kept_is_rarely_called_broken():
    n, m, rate = 60, 39, 0.05
    counts = betabinom(n, 2, m - 1).rvs(2000, random_state=1)
    broken = np.mean([false_alarms(*flags(int(k), n), rate, m).mark == "bad" for k in counts])
    assert broken < 0.025 + 4 * np.sqrt(0.025 / 2000)


def of_volumes(seed, known, new, shared, sizes):
    """Returns arguments of `false_alarms` for slices of volumes exchangeable with those calibrated on.

    A share of a volume's slices has its value and is above all others, so that a volume is flagged whole.
    """
    rng = np.random.default_rng([seed, 8])
    each = rng.choice(sizes, known + new)
    volume = np.repeat(np.arange(known + new), each)
    scores = rng.normal(size=len(volume))
    alike = np.concatenate([np.arange(n) < shared * n for n in each])
    scores[alike] = (100 + rng.normal(size=known + new))[volume[alike]]
    old = volume < known
    flagged = scores[~old] > Calibration.of(scores[old]).threshold(0.05)
    n_effective = effective(units_of(volumes=[str(v) for v in volume[old]]), int(old.sum()))
    return (flagged, np.zeros(len(flagged), int), 0.05, int(old.sum()), volume[~old]), n_effective


@pytest.mark.parametrize(
    ("known", "shared", "sizes"), [(12, 1.0, [20]), (20, 0.95, [20]), (20, 0.95, [1, 40])]
)
def test_a_threshold_set_on_slices_of_few_volumes_is_rarely_called_broken(known, shared, sizes):
    """All slices counted as independent, volumes as good as those of calibration were condemned too often."""
    runs = 250
    made = [of_volumes(seed, known, 100, shared, sizes) for seed in range(runs)]
    broken = [false_alarms(*given, n_effective).mark == "bad" for given, n_effective in made]
    assert sum(broken) <= binom.ppf(0.9999, runs, 0.025)
    before = [false_alarms(*given).mark == "bad" for given, _ in made]
    assert sum(before) > binom.ppf(0.9999, runs, 0.05)
    # and the mean rate is what is said to be promised at most
    seen = np.array([given[0].mean() for given, _ in made])
    said = [false_alarms(*given, n_effective).words.partition("At most ")[2] for given, n_effective in made]
    promised = np.mean([float(words.partition(" %")[0]) / 100 for words in said])
    assert seen.mean() < promised + 4 * seen.std() / np.sqrt(runs)


def test_what_slices_promise_is_said_and_its_breach_found():
    volumes = np.repeat(np.arange(30), 20)
    flagged, labels = volumes < 15, np.zeros(600, int)  # half of the volumes whole
    bad = false_alarms(flagged, labels, 0.05, 240, volumes, 12.0)
    assert bad.mark == "bad"
    # a = 12 of 240 slices, m = 20 of each volume: (12 - 1 + 20) / (240 + 20) = 0.119
    assert "At most 11.9 % were promised, on average: more than the rate of 5 %" in bad.words
    assert "set on slices, which tell as much as 12 volumes or patients of equal size" in bad.words
    some = volumes < 4  # 13.3 %: more than that, by chance
    assert false_alarms(some, labels, 0.05, 240, volumes).mark == "good"
    assert "within chance" in false_alarms(some, labels, 0.05, 240, volumes, 12.0).words
    assert "That agrees" in false_alarms(volumes < 3, labels, 0.05, 240, volumes, 12.0).words
    few = false_alarms(volumes < 4, labels, 0.05, 240, volumes, 4.0)
    assert few.mark == "care"
    assert "So few volumes promise little" in few.words
    single = np.arange(600)
    assert false_alarms(some, labels, 0.05, 240, single, 240.0) == false_alarms(some, labels, 0.05, 240)


def test_copies_as_one_patient_weigh_as_one_image():
    """Flags of 100 patients with six alike images each tell what 100 images do."""
    flagged, labels = flags(11, 100)
    one = false_alarms(flagged, labels, 0.05, 200)
    patients = np.repeat(np.arange(100), 6)
    by_patient = false_alarms(np.repeat(flagged, 6), np.repeat(labels, 6), 0.05, 200, patients)
    assert (one.mark, by_patient.mark) == ("good", "good")
    ends = one.words.partition("interval ")[2].partition(". At")[0]
    assert f"{ends} by patient. At most 5 % were promised" in by_patient.words
    assert "66 of 600 normal images are flagged" in by_patient.words
    assert false_alarms(np.repeat(flagged, 6), np.repeat(labels, 6), 0.05, 200).mark == "bad"
    none = false_alarms(np.zeros(60, bool), np.zeros(60, int), 0.05, 200, np.repeat(np.arange(6), 10))
    assert none.mark == "care"  # six patients, however many images
    apart = false_alarms(flagged, labels, 0.05, 200, np.arange(100))
    assert apart == one


def test_a_property_of_few_patients_proves_little():
    """Two sick and two healthy patients of fifty images each: their images tell them, patients do not."""
    labels, units = np.repeat([0, 1], 100), np.repeat(np.arange(4), 50)
    width = {"width": 10.0 * labels + RNG.normal(size=200)}
    assert properties(labels, SCORES, width).mark == "bad"
    assert properties(labels, SCORES, width, units).mark == "good"


def test_the_ranking_is_judged_by_patient():
    """Ten patients of each class: by image the interval leaves out one half, by patient it does not."""
    rng = np.random.default_rng(2)
    units = np.repeat(np.arange(20), 10)
    scores = np.r_[np.zeros(100), np.full(100, 0.4)] + rng.normal(size=20)[units] + rng.normal(size=200) / 10
    assert ranking("m", LABELS, scores, [])[0].mark == "unknown"
    assert "may be chance" in ranking("m", LABELS, scores, [], units)[0].words


def test_drift_is_about_the_flags():
    words = "DRIFT: these images differ as a whole"
    found = drift({"alarm": True, "words": words, "p": 0.0}, "the normal images")
    assert (found.mark, found.about) == ("bad", "flags")
    assert "DRIFT: the normal images differ" in found.words
    assert drift({"alarm": None, "words": "drift cannot be judged", "p": 1.0}, "x").mark == "unknown"
    assert drift({"alarm": False, "words": "", "p": 0.5}, "x").mark == "good"


def mark(rows, scores=SCORES):
    return ranking("mine", LABELS, scores, rows)[0].mark


def test_a_ranking_must_beat_what_trains_nothing_on_the_same_images():
    weak = RNG.normal(size=200) + 0.5 * LABELS
    assert mark([{"method": "trivial:std", "auroc": 0.64, "scores": weak}]) == "good"
    same = {"method": "trivial:hog", "auroc": 0.92, "scores": SCORES + RNG.normal(size=200) / 10}
    assert mark([same]) == "bad"
    assert mark([]) == "unknown"
    assert mark([{"method": "mine", "auroc": 1.0, "scores": SCORES}]) == "unknown"  # itself is no rival
    assert mark([{"method": "trivial:std", "auroc": 0.6}]) == "good"  # of a ledger: not paired
    assert mark([{"method": "trivial:std", "auroc": 0.99}]) == "bad"
    assert mark([], RNG.normal(size=200)) == "bad"
    turned, beside = ranking("mine", LABELS, -SCORES, [same])
    assert "lower than normal ones" in turned.words
    assert "trivial:hog, which trains nothing, reaches 0.920" in beside.words


def test_a_property_that_tells_the_classes_is_named_in_either_direction():
    size = 1000.0 - 500 * LABELS + RNG.normal(size=200)
    found = properties(LABELS, SCORES, {"the file's size": size, "constant": np.ones(200)})
    assert found.mark == "bad"
    assert "the file's size (smaller in anomalous images)" in found.words
    some = properties(LABELS, 10.0 * LABELS, {"width": RNG.normal(size=200) + 1.2 * LABELS})
    assert some.mark == "care"
    assert properties(LABELS, SCORES, {"width": RNG.normal(size=200)}).mark == "good"
    assert properties(LABELS, SCORES, {"width": np.full(200, np.nan)}).mark == "unknown"


def test_properties_are_read_from_headers_and_pixels(tmp_path):
    x = np.zeros((2, 4, 6, 1), np.uint8)
    x[1, :2] = 9
    paths = {"a": tmp_path / "a.png", "b": tmp_path / "b.jpg"}
    Image.new("L", (60, 40)).save(paths["a"])
    Image.new("RGB", (30, 20)).save(paths["b"])
    found = properties_of(ImageSet(x, names=["a", "b"]), paths)
    assert found["the image's width"].tolist() == [60, 30]
    assert found["its channels"].tolist() == [1, 3]
    assert found["the file's size"].tolist() == [p.stat().st_size for p in paths.values()]
    assert found["the ending .png"].tolist() == [1, 0]
    assert found["the brightest grey level"].tolist() == [0, 9]
    assert found["the share of black pixels"].tolist() == [1, 0.5]
    assert "the file's size" not in properties_of(ImageSet(x))


def test_images_of_one_patient_are_no_independent_images():
    names = [f"person{i // 4}_{i}.png" for i in range(200)]
    found = sample(names, LABELS, ())
    assert found.mark == "care"
    assert "of 50 patients, by their names" in found.words
    assert "unknown number of patients" in sample([f"{i}.png" for i in range(200)], LABELS, ()).words
    slices = sample([f"v#{i}" for i in range(40)], None, [f"v{i % 3}" for i in range(40)])
    assert "of 3 volumes. Intervals are by volume" in slices.words
    known = sample(names, LABELS, (), [name.partition("_")[0] for name in names])
    assert (known.mark, known.words) == ("good", "200 images of 50 patients. Intervals are by patient.")
    some = sample(names, LABELS, (), [None, *names[1:]])  # not all are known
    assert "by their names" in some.words
    assert "so few say little" in sample(["a", "b"], np.array([0, 1]), ()).words


@pytest.mark.parametrize(
    ("of_flags", "of_ranking", "says"),
    [
        ("good", "good", "Nothing was found"),
        ("bad", "good", "Do not rely on the p-values and flags"),
        ("good", "bad", "Do not take the ranking"),
        ("bad", "bad", "Do not trust this result"),
        ("good", "care", "with care"),
        ("unknown", "good", "not all could be judged"),
    ],
)
def test_the_headline_follows_from_the_gravest_finding(of_flags, of_ranking, says):
    patients = Finding("images", "unknown", "")
    found = Verdict([Finding("flags", of_flags, ""), Finding("ranking", of_ranking, ""), patients])
    assert says in found.headline
    assert "without labels" in Verdict([Finding("flags", "good", "")], labelled=False).headline.lower()
