"""Pictures of the method: cells against the masks of the loss, numbers against plain loops and stubs."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dia.amplify.augment import AugmentSettings
from dia.amplify.contrast import AmplifySettings
from dia.amplify.inputs import untrained_encoder
from dia.amplify.loss import targets
from dia.core.errors import DataError
from dia.data.imageset import ImageSet
from dia.detectors.baselines import Brightness
from dia.detectors.dia import CSI, DIA, CSISettings, DIASettings
from dia.dissolve import DissolverSettings
from dia.report import illustrate as app
from dia.report import method_figures as illustrations
from dia.report.illustrate import illustrate
from dia.report.method_figures import (
    COLOURS,
    EXCLUDED,
    NEGATIVE,
    OUTLINE,
    POSITIVE,
    dissolve_strips,
    pair_masks,
    residual_energy,
    residual_figure,
    residuals,
    save,
    similarities,
    similarity_before_after,
    similarity_figure,
    target_cells,
    target_figure,
    target_matrices,
    target_matrix,
)

AMPLIFY = AmplifySettings(size=16, width=4, steps=6, batch=8, precision="32")
DISSOLVER = DissolverSettings(size=16, widths=(8, 16), steps=3, batch=8, precision="32")
SETTINGS = DIASettings(DISSOLVER, AMPLIFY, ts=(30, 99), samples=1)


@pytest.fixture(scope="module")
def detector(make_images):
    return DIA(SETTINGS, seed=2, device="cpu").fit(make_images(24))


@pytest.fixture(scope="module")
def labelled(make_images):
    return ImageSet(make_images(9, seed=7), np.array([0, 1, 0, 0, 1, 0, 0, 1, 0]))


class Adds:
    """Stands in for a dissolver: adds t grey levels to every pixel."""

    def dissolve(self, images, t):
        return np.stack([np.clip(images.astype(int) + v, 0, 255).astype(np.uint8) for v in t])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def at_centres(figure, path, rows, columns, ax=0):
    """Colours `(rows, columns, 3)` of the saved picture at the middle of each cell."""
    picture, axes = pixels(path), figure.axes[ax]
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    x, y = axes.transData.transform(grid).round().astype(int).T
    return picture[picture.shape[0] - 1 - y, x].reshape(rows, columns, 3)


def rgb(colours):
    return np.array([mpl.colors.to_rgb(c) for c in colours]) * 255


def clipped(figure):
    """Whether anything drawn reaches beyond the picture."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height


# --- target matrix ---------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.sampled_from([2, 3]))
def test_cells_are_the_masks_of_the_loss(batch, shifts, exclude_own, views):
    cells = target_cells(batch, shifts, exclude_own, views)
    positive, excluded = (t.tolist() for t in targets(batch, shifts, views, exclude_own))
    assert cells.shape == (2 * shifts * batch, views * shifts * batch)
    for a, row in enumerate(cells.tolist()):
        for r, cell in enumerate(row):
            assert cell == (POSITIVE if positive[a] == r else EXCLUDED if excluded[a][r] else NEGATIVE)


@pytest.mark.parametrize("exclude_own", [True, False])
@pytest.mark.parametrize(("batch", "shifts", "views"), [(2, 2, 3), (3, 1, 3), (2, 4, 2)])
def test_the_drawn_cells_have_the_colours_of_the_mask(tmp_path, batch, shifts, views, exclude_own):
    figure = target_figure(batch, shifts, (exclude_own,), views)
    path = save(figure, tmp_path / "matrix.png")
    cells = target_cells(batch, shifts, exclude_own, views)
    expected = rgb(COLOURS)[cells]
    np.testing.assert_allclose(at_centres(figure, path, *cells.shape), expected, atol=1)
    assert not clipped(figure)


def test_both_maskings_differ_in_the_own_copies_alone(tmp_path):
    figure = target_figure(2, 2, (True, False))
    path = save(figure, tmp_path / "both.png")
    left, right = (at_centres(figure, path, 8, 12, ax).tolist() for ax in (0, 1))
    differ = {(a, r) for a in range(8) for r in range(12) if left[a][r] != right[a][r]}
    assert differ == {(a, 8 + a % 4) for a in range(8)}
    assert not clipped(figure)
    assert target_matrices(tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_the_red_outline_is_around_the_dissolved_columns(tmp_path):
    figure = target_figure(2, 2)
    picture = pixels(save(figure, tmp_path / "matrix.png")).astype(int)
    red = np.abs(picture - rgb([OUTLINE])[0]).max(-1) < 8
    x, y = figure.axes[0].transData.transform([(7.5, 3.0), (11.5, 3.0), (9.0, -0.5), (9.0, 7.5)]).round().T
    spots = list(zip(picture.shape[0] - 1 - y.astype(int), x.astype(int), strict=True))
    assert all(red[spot] for spot in spots)
    plain = target_figure(2, 2, views=2)  # no dissolved copies: no outline, and none in the legend
    picture = pixels(save(plain, tmp_path / "plain.png")).astype(int)
    assert not (np.abs(picture - rgb([OUTLINE])[0]).max(-1) < 8).any()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_picture_is_the_same_file(tmp_path, ending):
    first, second = (target_matrix(tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert first == second
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "savefig.dpi": 30}):  # not the caller's
        assert target_matrix(tmp_path / f"c.{ending}").read_bytes() == first


def test_svg_text_is_text_and_has_no_date(tmp_path):
    svg = target_matrix(tmp_path / "deep" / "matrix.svg").read_text()
    for words in ("positive: pulled to the anchor", "dissolved copies: the new negatives", ">view 1<"):
        assert words in svg
    assert "dc:date" not in svg


@given(st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=6)
def test_labels_stay_inside_the_picture_and_apart(batch, shifts):
    figure = target_figure(batch, shifts)
    figure.draw_without_rendering()
    assert not clipped(figure)
    labels = [t.get_window_extent() for t in figure.axes[0].texts]
    assert not [1 for i, a in enumerate(labels) for b in labels[:i] if a.overlaps(b)]


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"shifts": 0}])
def test_a_matrix_of_nothing_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match="at least one image and one shift"):
        target_matrix(tmp_path / "m.png", **wrong)


def test_another_ending_is_refused_before_any_work(tmp_path, detector, labelled):
    x = labelled.images
    broken = SimpleNamespace()  # would fail if it were asked
    for draw in (
        lambda p: target_matrix(p),
        lambda p: similarity_before_after(p, broken, x),
        lambda p: residual_energy(p, broken, x, x),
        lambda p: dissolve_strips(p, broken, x, x),
    ):
        with pytest.raises(DataError, match=r"must end in \.png"):
            draw(tmp_path / "picture.jpg")
    with pytest.raises(DataError, match=r"must end in \.png$"):
        dissolve_strips(tmp_path / "strips.svg", Adds(), x, x)


# --- similarities ----------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_pairs_are_those_of_a_plain_loop(batch, shifts, exclude_own):
    masks = pair_masks(batch, shifts, exclude_own)
    place = [(v, k, i) for v in range(3) for k in range(shifts) for i in range(batch)]
    for a, (v, k, i) in enumerate(place[: 2 * shifts * batch]):
        for r, (w, l, j) in enumerate(place):  # noqa: E741
            same = (k, i) == (l, j)
            assert masks["positive"][a, r] == (same and w == 1 - v)
            assert masks["own"][a, r] == (same and w == 2)
            left_out = same and (w == v or w == 1 - v or (w == 2 and exclude_own))
            assert masks["negative"][a, r] == (not left_out)


@pytest.fixture(scope="module")
def measured(detector, make_images, tmp_path_factory):
    path = tmp_path_factory.mktemp("similarity") / "similarity.png"
    return similarity_before_after(path, detector, make_images(3, seed=8), seed=4), path


def test_similarities_are_cosines_of_one_batch(measured):
    numbers, _ = measured
    for when in ("before", "after"):
        matrix = numbers[when]
        assert matrix.shape == (3 * 4 * 3, 3 * 4 * 3)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        np.testing.assert_allclose(matrix.diagonal(), 1, atol=1e-12)
        assert np.abs(matrix).max() <= 1
        assert np.linalg.eigvalsh(matrix).min() > -1e-9  # a Gram matrix
    assert np.abs(numbers["before"] - numbers["after"]).max() > 0.01


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_printed_means_are_those_of_a_plain_loop(measured, when):
    numbers, _ = measured
    matrix, b, k_shifts = numbers[when], 3, 4
    row = {}
    for v in range(3):
        for k in range(k_shifts):
            for i in range(b):
                row[v, k, i] = len(row)
    pairs = [(k, i) for k in range(k_shifts) for i in range(b)]
    positive = [matrix[row[0, k, i], row[1, k, i]] for k, i in pairs]
    own = [matrix[row[v, k, i], row[2, k, i]] for v in (0, 1) for k, i in pairs]
    apart = [(p, q) for p in pairs for q in pairs if p != q]
    others = [matrix[row[v, *p], row[w, *q]] for v in (0, 1) for w in (0, 1, 2) for p, q in apart]
    assert numbers[f"{when}_positive"] == pytest.approx(np.mean(positive))
    assert numbers[f"{when}_own"] == pytest.approx(np.mean(own))
    assert numbers[f"{when}_negative"] == pytest.approx(np.mean(others))


def test_before_and_after_are_drawn_in_one_scale_of_colours(measured):
    numbers, path = measured
    figure = similarity_figure(numbers["before"], numbers["after"], 4, 3)
    again = save(figure, path.with_name("again.png"))
    assert again.read_bytes() == path.read_bytes()
    images = [ax.images[0] for ax in figure.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    assert images[0].get_clim()[0] <= min(numbers["before"].min(), numbers["after"].min())
    text = [ax.get_xlabel() for ax in figure.axes[:2]]
    for when, words in zip(("before", "after"), text, strict=True):
        words = words.replace("−", "-")
        assert f"positives: {numbers[f'{when}_positive']:.2f}" in words
        assert f"own dissolved copies, left out: {numbers[f'{when}_own']:.2f}" in words
    assert not clipped(figure)


def test_the_detector_and_the_callers_random_numbers_stay_as_they_are(detector, make_images):
    x = make_images(2, seed=8)
    state = {k: v.clone() for k, v in detector.encoder_.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = similarities(detector, x, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert not detector.encoder_.training
    for name, value in detector.encoder_.state_dict().items():
        assert torch.equal(value, state[name]), name
    np.testing.assert_array_equal(similarities(detector, x, seed=1), first)
    assert not np.array_equal(similarities(detector, x, seed=2)[1], first[1])


def test_after_is_the_detectors_encoder_and_before_is_not(detector, make_images, monkeypatch):
    one = copy.deepcopy(detector.encoder_)
    torch.nn.init.zeros_(one.project[-1].weight)
    torch.nn.init.ones_(one.project[-1].bias)  # every projection is the same
    monkeypatch.setattr(detector, "encoder_", one)
    before, after = similarities(detector, make_images(2, seed=8))
    np.testing.assert_allclose(after, 1)
    assert before.min() < 0.999


def test_rows_are_in_the_order_of_the_masks(make_images):
    # mirror images of themselves, dissolved by nothing, not augmented: all three views of one are the same
    x = make_images(24, seed=3)
    x[:, :, 8:] = x[:, :, 7::-1]
    still = AugmentSettings(jitter_p=0, crop=(1, 1), ratio=(1, 1))
    s = replace(
        SETTINGS, dissolver=replace(DISSOLVER, kind="identity"), amplify=replace(AMPLIFY, augment=still)
    )
    for matrix in similarities(DIA(s, seed=2, device="cpu").fit(x), x[:3]):
        pairs = {name: matrix[: len(mask)][mask] for name, mask in pair_masks(3, 4).items()}
        np.testing.assert_allclose(pairs["positive"], 1, atol=1e-5)
        np.testing.assert_allclose(pairs["own"], 1, atol=1e-5)
        assert pairs["negative"].max() < 0.9999


def test_an_encoder_not_trained_is_the_same_before_and_after(detector, make_images, monkeypatch):
    untrained = untrained_encoder(detector.shape_, AMPLIFY, detector.seed).eval()
    monkeypatch.setattr(detector, "encoder_", untrained)
    np.testing.assert_array_equal(*similarities(detector, make_images(2, seed=8)))


def test_without_pairs_of_a_kind_there_is_no_mean(make_images, tmp_path):
    s = replace(SETTINGS, amplify=replace(AMPLIFY, shift="none", steps=1))
    detector = DIA(s, seed=2, device="cpu").fit(make_images(24))
    numbers = similarity_before_after(tmp_path / "one.svg", detector, make_images(1))
    assert numbers["after"].shape == (3, 3)
    assert np.isnan(numbers["after_negative"])
    assert "negatives: –" in (tmp_path / "one.svg").read_text()


def test_similarities_need_a_dissolver_an_encoder_and_images_of_the_fit(detector, make_images):
    x = make_images(3)
    with pytest.raises(DataError, match="csi has no dissolver"):
        similarities(CSI(CSISettings(AMPLIFY)), x)
    with pytest.raises(DataError, match="trivial:brightness has no dissolver"):
        similarities(Brightness(), x)
    bare = DIA(replace(SETTINGS, dissolver=replace(DISSOLVER, kind="none")), device="cpu").fit(
        make_images(24)
    )
    with pytest.raises(DataError, match="dia has no dissolver"):
        similarities(bare, x)
    with pytest.raises(DataError, match="dia is not fitted"):
        similarities(DIA(SETTINGS), x)
    for wrong in (make_images(3, 20), make_images(3, 16, 16, 3), x[:0], x[0]):
        with pytest.raises(DataError, match=r"a batch must be \(B, 16, 16, 1\)"):
            similarities(detector, wrong)


# --- strips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normals", "anomalous"), [(3, 2), (2, 0), (0, 1)])
def test_strips_have_a_row_for_each_image_and_a_column_for_each_t(make_images, tmp_path, normals, anomalous):
    x, y = make_images(normals + 1)[:normals], make_images(anomalous + 1, seed=3)[:anomalous]
    ts = [0, 9, 200]
    path = dissolve_strips(tmp_path / "strips.png", Adds(), x, y, ts)
    picture = pixels(path)
    # 16 px are enlarged 8 times; the margins are the sheet's
    left = picture.shape[1] - 4 * 132
    assert picture.shape[0] == 22 + (normals + anomalous) * 132
    assert left > 20
    assert (picture[22:, :left] < 128).any()  # labels of rows
    for i, image in enumerate([*x, *y]):
        for j, t in enumerate([0, *ts]):
            cell = picture[22 + i * 132 :, left + j * 132 :][:128, :128]
            expected = np.clip(image[..., 0].astype(int) + t, 0, 255)
            np.testing.assert_array_equal(cell, expected.repeat(8, 0).repeat(8, 1)[..., None].repeat(3, 2))


def test_strips_of_nothing_or_of_two_sizes_are_refused(make_images, tmp_path):
    x, path = make_images(2), tmp_path / "strips.png"
    for normals, anomalous in ((x[:0], x[:0]), (x, make_images(2, 20)), (x, make_images(2, 16, 16, 3))):
        with pytest.raises(DataError, match="of one size"):
            dissolve_strips(path, Adds(), normals, anomalous, [1])
    with pytest.raises(DataError, match="at least one diffusion step"):
        dissolve_strips(path, Adds(), x, x, [])
    assert not path.exists()


def test_a_t_that_the_dissolver_does_not_know_is_refused(tiny_dissolver, make_images, tmp_path):
    x = make_images(2)
    with pytest.raises(DataError, match="t must lie in 0–999"):
        dissolve_strips(tmp_path / "strips.png", tiny_dissolver, x, x, [1000])
    with pytest.raises(DataError, match="t must lie in 0–999"):
        residual_energy(tmp_path / "energy.png", tiny_dissolver, x, x, [-1])


# --- residuals -------------------------------------------------------------------------------------------


def test_a_constant_added_is_the_residual(tmp_path):
    normals, anomalous = np.full((5, 4, 6, 3), 100, np.uint8), np.full((2, 4, 6, 3), 250, np.uint8)
    numbers = residual_energy(tmp_path / "energy.png", Adds(), normals, anomalous, [20, 3, 3])
    np.testing.assert_array_equal(numbers["ts"], [3, 20])
    np.testing.assert_array_equal(numbers["normal"], np.tile([3.0, 20.0], (5, 1)))
    np.testing.assert_array_equal(numbers["anomalous"], np.tile([3.0, 5.0], (2, 1)))  # 255 is the end
    for name in ("normal_low", "normal_median", "normal_high"):
        np.testing.assert_allclose(numbers[name], [3, 20])
    np.testing.assert_allclose(numbers["anomalous_median"], [3, 5])


def test_the_residual_by_hand():
    class Sets:  # two of four pixels change, by 6 and by −8: √((36 + 64) / 4) = 5
        def dissolve(self, images, t):
            out = images.copy()
            out[:, 0, 0] += 6
            out[:, 1, 1] -= 8
            return np.stack([images, out])

    x = np.full((3, 2, 2, 1), 50, np.uint8)
    np.testing.assert_allclose(residuals(Sets(), x, [0, 1]), [[0, 5]] * 3)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 70), st.just(3), st.just(2), st.just(1))), st.data())
@settings(max_examples=25)
def test_residuals_are_those_of_a_plain_loop(x, data):
    dissolved = data.draw(hnp.arrays(np.uint8, (2, *x.shape)))
    seen = []

    class Table:
        def dissolve(self, images, t):
            start = sum(seen)
            seen.append(len(images))
            return dissolved[:, start : start + len(images)]

    found = residuals(Table(), x, [5, 6])
    assert sum(seen) == len(x)
    for i in range(len(x)):
        for j in range(2):
            pairs = zip(x[i].flatten().tolist(), dissolved[j, i].flatten().tolist(), strict=True)
            mean = sum((p - q) ** 2 for p, q in pairs) / 6
            assert found[i, j] == pytest.approx(mean**0.5)


@given(st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_band_holds_nine_tenths_of_the_normals(n, seed):
    x = np.random.default_rng(seed).integers(0, 200, (n, 1, 1, 1)).astype(np.uint8)

    class Own:  # each image's residual is its own grey level
        def dissolve(self, images, t):
            return np.stack([np.zeros_like(images)] * len(t))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(illustrations, "save", lambda figure, path: path)
        numbers = residual_energy("energy.svg", Own(), x, x[:0], [7, 8])
    low, high, values = numbers["normal_low"], numbers["normal_high"], numbers["normal"]
    inside = ((values >= low) & (values <= high)).mean(0)
    assert (inside >= 0.9 - 2 / n).all()
    for outside in (values < low, values > high):  # and no more than a twentieth lies beyond either end
        assert (outside.mean(0) <= 0.05 + 1 / n).all()
    assert ((low <= numbers["normal_median"]) & (numbers["normal_median"] <= high)).all()
    assert numbers["anomalous"].shape == (0, 2)
    assert np.isnan(numbers["anomalous_median"]).all()


def test_the_curves_are_the_numbers(tiny_dissolver, make_images, tmp_path):
    x, y = make_images(12), make_images(5, seed=9)
    numbers = residual_energy(tmp_path / "energy.svg", tiny_dissolver, x, y, [400, 50])
    expected = []
    for t in (50, 400):
        removed = x.astype(float) - tiny_dissolver.dissolve(x, t)
        expected.append([np.linalg.norm(r) / 16 for r in removed])  # 16 × 16 pixels
    np.testing.assert_allclose(numbers["normal"].T, expected)
    figure = residual_figure(numbers)
    for ax, zero in zip(figure.axes, (0, numbers["normal_median"]), strict=True):
        normal, anomalous = (line.get_ydata() for line in ax.lines)
        np.testing.assert_array_equal(normal, numbers["normal_median"] - zero)
        np.testing.assert_array_equal(anomalous, numbers["anomalous_median"] - zero)
    figure.draw_without_rendering()
    assert not clipped(figure)
    svg = (tmp_path / "energy.svg").read_text()
    for words in ("grey levels", "5–95 % of 12 images", "median of 5 images", "diffusion step t"):
        assert words in svg
    alone = residual_energy(tmp_path / "alone.svg", tiny_dissolver, x, x[:0], [50])
    assert np.isfinite(alone["normal_high"]).all()
    assert "anomalous" not in (tmp_path / "alone.svg").read_text()


def test_a_band_of_no_normals_is_refused(make_images, tmp_path):
    x = make_images(2)
    with pytest.raises(DataError, match="at least one normal"):
        residual_energy(tmp_path / "energy.png", Adds(), x[:0], x)
    with pytest.raises(DataError, match="at least one diffusion step"):
        residual_energy(tmp_path / "energy.png", Adds(), x, x, [])


# --- all of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "svg"])
def test_all_pictures_of_a_detector(detector, labelled, tmp_path, form):
    paths = illustrate(tmp_path / "new", detector, labelled, ts=[50, 400], count=2, form=form)
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    assert [p.name for p in paths] == [
        f"target_matrix.{form}", f"target_matrices.{form}", f"similarity.{form}", "strips.png",
        f"residual_energy.{form}",
    ]  # fmt: skip
    assert pixels(tmp_path / "new" / "strips.png").shape[0] == 22 + 4 * 132
    if form == "svg":
        again = illustrate(tmp_path / "again", detector, labelled, ts=[50, 400], count=2, form=form)
        assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_the_seed_chooses_the_images_and_labels_sort_them(detector, labelled, tmp_path, monkeypatch):
    shown = {}

    def strips(path, dissolver, normals, anomalous, ts):
        shown[seed] = normals, anomalous
        return path

    monkeypatch.setattr(app, "dissolve_strips", strips)
    for name in ("residual_energy", "similarity_before_after", "target_matrix", "target_matrices"):
        monkeypatch.setattr(app, name, lambda *args, **kwargs: None)
    for seed in range(4):
        illustrate(tmp_path, detector, labelled, count=3, seed=seed)
    assert len({normals.tobytes() for normals, _ in shown.values()}) > 1
    for normals, anomalous in shown.values():
        assert {x.tobytes() for x in normals} < {x.tobytes() for x in labelled.images[labelled.labels == 0]}
        assert {x.tobytes() for x in anomalous} == {
            x.tobytes() for x in labelled.images[labelled.labels == 1]
        }


def test_illustrate_says_what_it_cannot_draw(detector, labelled, make_images, tmp_path):
    out = tmp_path / "pictures"
    x = labelled.images
    cases = [
        (CSI(CSISettings(AMPLIFY)), labelled, {}, "csi has no dissolver"),
        (Brightness(), labelled, {}, "trivial:brightness has no dissolver"),
        (DIA(SETTINGS), labelled, {}, "not fitted"),
        (detector, ImageSet(x), {}, "which images are normal"),
        (detector, ImageSet(x, np.ones(9, int)), {}, "at least one normal image"),
        (detector, ImageSet(make_images(2, 20), np.zeros(2, int)), {}, "the model was fitted on"),
        (detector, labelled, {"count": 0}, "count must be at least 1"),
        (detector, labelled, {"ts": []}, "at least one diffusion step"),
        (detector, labelled, {"ts": [1000]}, "t must lie in"),
    ]
    for model, images, wrong, message in cases:
        with pytest.raises(DataError, match=message):
            illustrate(out, model, images, **wrong)
    assert not out.exists()
