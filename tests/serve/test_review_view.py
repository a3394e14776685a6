"""How the review page draws: arithmetic of pictures by hand, words escaped, what is missing told."""

import base64
import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from dia.deploy.predictor import Nearest
from dia.serve.review import view
from dia.serve.review.store import Mark
from dia.serve.review.worklist import Row

EVIL = '<img src=x onerror="alert(1)">&'
MARK = Mark(EVIL, "0" * 64, 3.0, 0.04, True, 0.05, "agree", EVIL, EVIL, "2026-01-02T03:04:05+00:00", "m")
ROW = Row("0" * 64, EVIL, np.zeros((4, 6, 1), np.uint8), 3.0, 0.04, None, flagged=True, mark=MARK)


def _decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


@pytest.mark.parametrize(
    ("x", "d", "shown"), [(10, 10, 128), (20, 10, 168), (10, 20, 88), (255, 0, 255), (0, 255, 0)]
)
def test_residual_is_signed_about_mid_grey_four_times(x, d, shown):
    image, dissolved = np.full((2, 3, 3), x, np.uint8), np.full((2, 3, 3), d, np.uint8)
    assert (view._residual(image, dissolved) == shown).all()
    assert view._residual(image, dissolved).shape == (2, 3, 1)


def test_overlay_is_clear_below_the_scale_solid_near_its_end_and_coloured_between():
    heat = view._overlay(np.array([[-1.0, 0.0, 0.375, 0.75, 1.0, 9.0]]))
    assert heat[0, :, 3].tolist() == [0, 0, 128, 255, 255, 255]
    expected = np.rint(np.array(mpl.colormaps["inferno"](0.375)[:3]) * 255)
    assert heat[0, 2, :3].tolist() == expected.tolist()
    assert (heat[0, 4] == heat[0, 5]).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_sent_without_loss(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    assert (_decoded(view._png(pixels)).reshape(pixels.shape) == pixels).all()


@pytest.mark.parametrize(
    "html",
    [
        lambda: view.table([ROW], [ROW], "score", True),
        lambda: view.title(ROW, 1, 1, 0.05),
        lambda: view.state(ROW),
        lambda: view.picture(ROW, None),
        lambda: view.dissolved(ROW, ROW.image, 3),
        lambda: view.nearest(Nearest(ROW.image[None, None], [[EVIL]], np.zeros((1, 1))), ""),
        lambda: view.done(1, 0, [(EVIL, EVIL)]),
    ],
)
def test_names_and_notes_are_never_markup(html):
    text = html()
    assert "<img src=x" not in text
    assert "alert(1)" in text


def test_what_a_method_or_folder_lacks_is_told():
    assert "no heatmaps" in view.picture(ROW, (0.0, 1.0))
    assert "trivial:mean does not dissolve" in view.no_dissolver("trivial:mean")
    assert "None to show: they are elsewhere" in view.nearest(None, "they are elsewhere")
    assert "No images yet" in view.table([], [], "score", True)
    assert "No image is left" in view.table([], [ROW], "score", True)


@pytest.mark.parametrize(
    ("rate", "n", "said"),
    [
        (0.05, 19, "Smallest rate possible here: 5.0 % (19"),
        (0.049, 19, "nothing can be flagged below\n  5.0 %"),
        (0.05, 18, "nothing can be flagged below\n  5.3 %"),
        (0.1, 100, "about 10 would be flagged.\n  Smallest rate possible here: 1.0 %"),
    ],
)
def test_the_rate_is_explained_by_the_number_of_calibration_normals(rate, n, said):
    assert said in view.meaning(rate, n)


def test_a_verdict_about_the_other_flag_is_pointed_out():
    assert "outdated" not in view.state(ROW)
    assert "the flag is the other one" in view.state(replace(ROW, flagged=False))
