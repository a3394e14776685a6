"""Grey levels of images of more than 8 bits: learned from normals, stated, or kept by a model."""

import json
import pickle
import warnings

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from medical_files import dicom_file, nifti_file, tiff_stack
from PIL import Image

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data.formats import volume as volumes
from dia.data.formats.windowing import Stored, View, Window, toned, without_padding
from dia.data.levels import survey
from dia.data.options import ReadOptions
from dia.data.readers import listing, read

RNG = np.random.default_rng(3)


def twelve_bits(n: int, seed: int = 0) -> np.ndarray:
    """`(n, 24, 20)` uint16 of soft shapes, from about 300 to 3000."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :20] / 24
    waves = [np.sin(6 * x + rng.uniform(0, 6)) * np.cos(5 * y + rng.uniform(0, 6)) for _ in range(n)]
    return np.rint(1650 + 1200 * np.stack(waves) + rng.normal(0, 40, (n, 24, 20))).astype(np.uint16)


def by_levels(x: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.floor(np.clip((x - black) / (white - black), 0, 1) * 255 + 0.5).astype(np.uint8)


def write(folder, images: np.ndarray, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(images):
        file = folder / f"{i:03d}.{form}"
        if form == "png":
            Image.fromarray(x).save(file)
        elif form == "tif":
            tifffile.imwrite(file, x)
        elif form == "dcm":
            dicom_file(file, x, bits=16)
        else:
            nifti_file(file, x.T[..., None])


@pytest.mark.parametrize("form", ["png", "tif", "dcm"])
def test_twelve_bits_in_sixteen_keep_their_grey_levels(tmp_path, form):
    x = twelve_bits(30)
    write(tmp_path, x, form)
    black, white = np.percentile(x, (0.1, 99.9))
    found = listing(tmp_path, workers=1)
    assert found.reading.levels == f"{black:.9g}:{white:.9g}"
    images = found.read().images[..., 0]
    np.testing.assert_array_equal(images, by_levels(x, black, white))
    assert len(np.unique(images)) > 200  # of 8 bits by all that 16 allow there are a dozen


def test_an_npz_learns_from_the_normals_of_its_train_split(tmp_path):
    train, test = twelve_bits(20), twelve_bits(6, seed=1) + 700
    labels = np.repeat([0, 1], [16, 4])
    train[16:] += 500
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test, train_labels=labels)
    black, white = np.percentile(train[:16], (0.1, 99.9))
    for split, x in (("train", train), ("test", test)):
        np.testing.assert_array_equal(
            read(tmp_path / "a.npz", split=split).images[..., 0], by_levels(x, black, white)
        )
    np.savez(tmp_path / "b.npz", train_images=train - 2000.0)  # floats, some below 0
    assert len(np.unique(read(tmp_path / "b.npz").images)) > 200


def test_a_test_split_is_read_by_the_levels_of_the_training_normals(tmp_path):
    train, test = twelve_bits(20), twelve_bits(8, seed=1) * 2
    write(tmp_path / "train" / "good", train, "png")
    write(tmp_path / "test" / "good", test[:4], "png")
    write(tmp_path / "test" / "bad", test[4:], "png")
    levels = listing(tmp_path, split="train").reading.levels
    assert listing(tmp_path, split="test").reading.levels == levels
    black, white = map(float, levels.split(":"))
    found = read(tmp_path, split="test", workers=1)
    np.testing.assert_array_equal(found.images[4:, ..., 0], by_levels(test[:4], black, white))


def test_a_part_of_a_listing_is_read_as_the_whole(tmp_path):
    x = twelve_bits(12)
    x[6:] //= 3
    write(tmp_path, x, "png")
    whole = listing(tmp_path)
    np.testing.assert_array_equal(whole.part(6, 12).read().images, whole.read().images[6:])


def test_anomalies_teach_nothing(tmp_path):
    x = twelve_bits(12)
    write(tmp_path / "fine", x, "tif")
    write(tmp_path / "ill", x * 9, "tif")
    alone = listing(tmp_path / "fine").reading.levels
    assert listing(tmp_path, normal="fine", divide=False).reading.levels == alone


def test_negative_and_broken_values(tmp_path):
    hu = np.array([[-1000, -200, 0, 900]] * 3, np.int16)
    tifffile.imwrite(tmp_path / "a.tif", hu)
    for window, wanted in (("-1000:1000", [0, 102, 128, 242]), ("0,2000", [0, 102, 128, 242])):
        assert read(tmp_path / "a.tif", window=window).images[0, 0, :, 0].tolist() == wanted
    assert read(tmp_path / "a.tif").images[0, 0, [0, 3], 0].tolist() == [0, 255]
    x = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    x[3, 4], x[5, 6] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "b.tif", x)
    with pytest.warns(UserWarning, match="1 of 1 images have pixels that are no numbers; drawn black"):
        found = read(tmp_path / "b.tif").images[0, ..., 0]
    assert found[3, 4] == 0
    assert found[5, 6] == 255  # beyond white
    assert found[19, 19] == 255


def test_padding_does_not_decide(tmp_path):
    body = RNG.integers(200, 1200, (16, 16)).astype(np.int16) - 1000
    padded = body.copy()
    padded[:3, :3] = -2000
    at_air = np.where(padded == -2000, body.min(), body)
    one = dicom_file(tmp_path / "1.dcm", padded, PixelPaddingValue=-2000)
    other = dicom_file(tmp_path / "2.dcm", at_air.astype(np.int16))
    for how in ({"window": "full"}, {"window": "lung"}, {"levels": "-900:300"}):
        np.testing.assert_array_equal(read(one, **how).images, read(other, **how).images)
    assert without_padding(padded, -2000, -2000, inverted=True)[0, 0] == body.max()
    assert without_padding(np.full((2, 2), 7), 7, 7).tolist() == [[7, 7], [7, 7]]


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-30000, 30000), min_size=4, max_size=30),
    st.sampled_from(["int16", "int32", "float32", "float64"]),
    st.integers(-5000, 5000),
    st.integers(1, 9000),
)
def test_levels_are_monotone_whatever_the_type(values, kind, black, wide):
    x = np.sort(np.array(values)).astype(kind)
    view = View(levels=Window.between(black, black + wide))
    grey = toned(Stored.of(x), view).astype(int)
    assert (np.diff(grey) >= 0).all()
    np.testing.assert_array_equal(grey, toned(Stored.of(x.astype(np.float64)), view))
    dark = toned(Stored(x, None, inverted=True), view).astype(int)
    assert np.abs(dark + grey - 255).max() <= 1


def test_a_volume_may_have_its_own_percentiles(tmp_path):
    low, high = RNG.normal(100, 20, (9, 8, 7)), RNG.normal(900, 200, (9, 8, 7))
    nifti_file(tmp_path / "a.nii", low.astype(np.float32))
    nifti_file(tmp_path / "b.nii", high.astype(np.float32))
    with pytest.warns(UserWarning, match=r"times as far from black.*--window volume"):
        together = read(tmp_path).images
    assert together[:7].max() < 64  # one scale for both
    found = read(tmp_path, window="volume").images
    assert [int(part.max()) for part in (found[:7], found[7:])] == [255, 255]


def series(folder, pixels, *, uid="1.2.3", damaged=None, **more):
    """A DICOM series of slices `(N, H, W)`, one of whose files may end early."""
    for k, x in enumerate(pixels):
        file = dicom_file(
            folder / f"{(k * 7) % len(pixels):02d}.dcm", x, SeriesInstanceUID=uid, InstanceNumber=k + 1,
            ImagePositionPatient=[0, 0, 2.0 * k], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1], **more,
        )  # fmt: skip
        if k == damaged:
            file.write_bytes(file.read_bytes()[:-200])
    return folder


@pytest.mark.parametrize("kind", ["series", "frames", "inverted", "rescaled", "tiff"])
def test_slices_of_series_and_stacks_are_read_by_the_percentiles_of_all_of_them(tmp_path, kind):
    low, high = twelve_bits(9), twelve_bits(9, seed=1) * 9 + 500
    for name, x in (("a", low), ("b", high)):
        x[0] *= 2  # one slice is brighter than the others
        if kind == "tiff":
            tiff_stack(tmp_path / f"{name}.tif", x)
        elif kind == "frames":
            dicom_file(tmp_path / f"{name}.dcm", x)
        else:
            more = {"inverted": {"PhotometricInterpretation": "MONOCHROME1"}, "series": {}}.get(
                kind, {"RescaleSlope": 2, "RescaleIntercept": -700}
            )
            series(tmp_path / name, x, WindowCenter=900, WindowWidth=50, **more)
    whole = read(tmp_path, window="volume", workers=1)
    assert len({*whole.volumes}) == 2
    for at, x in enumerate((low, high)):
        expected = by_levels(x.astype(float), *np.percentile(x, (0.5, 99.5)))
        expected = 255 - expected if kind == "inverted" else expected
        # halves of a grey level may fall to either side where they are turned round
        found = whole.images[9 * at : 9 * at + 9, ..., 0].astype(int)
        assert np.abs(found - expected).max() <= (kind in ("inverted", "rescaled"))
    # however few of the slices are read, and wherever
    listed = listing(tmp_path, window="volume", slices="4:6", size=16, channels=1)
    assert [e.slice for e in listed.entries] == [4, 5] * 2
    some = read(tmp_path, window="volume", size=16, channels=1).images[[4, 5, 13, 14]]
    np.testing.assert_array_equal(listed.read().images, some)
    for i, part in enumerate(listed.stream(1, workers=2)):
        np.testing.assert_array_equal(part.images, some[i : i + 1])
    away = pickle.loads(pickle.dumps(listing(tmp_path, window="volume").part(4, 6)))
    np.testing.assert_array_equal(away.read().images, whole.images[4:6])


def test_a_series_and_a_volume_of_the_same_values_are_read_alike(tmp_path):
    x = twelve_bits(9)
    nifti_file(tmp_path / "a.nii", np.ascontiguousarray(x.transpose(2, 1, 0)), np.diag([-1.0, -1, 1, 1]))
    expected = read(tmp_path / "a.nii", window="volume").images
    series(tmp_path / "ct", x)
    tiff_stack(tmp_path / "a.tif", x)
    for name in ("ct", "a.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, window="volume").images, expected)


def test_a_stack_is_measured_once_and_what_is_kept_of_it_is_bounded(tmp_path, monkeypatch):
    x = twelve_bits(12)
    tiff_stack(tmp_path / "a.tif", x)
    measured = []

    def ends_of(values):
        measured.append(values.size)
        return tuple(np.percentile(values, (0.5, 99.5)).tolist())

    monkeypatch.setattr(volumes, "ends_of", ends_of)
    listed = listing(tmp_path / "a.tif", window="volume", workers=4)
    listed.read()
    listed.part(3, 9).read()
    assert measured == [x.size]
    monkeypatch.setattr(volumes, "_MEASURED", 12 * 60)
    listing(tmp_path / "a.tif", window="volume").read()
    assert measured[1] < 4 * 12 * 60


@pytest.mark.parametrize("kind", ["series", "tiff"])
def test_a_slice_that_cannot_be_read_measures_nothing_and_leaves_the_others_their_numbers(tmp_path, kind):
    x = twelve_bits(9)
    if kind == "tiff":
        place, name = tiff_stack(tmp_path / "a.tif", x, damaged=4), "a.tif"
    else:
        place, name = series(tmp_path / "ct", x, damaged=4), "ct"
    with pytest.raises(DataError, match="repair it, or leave such files out with --skip-bad"):
        read(place, window="volume")
    listed = listing(place, window="volume", skip_bad=True)
    found, rest = listed.read(), np.delete(x, 4, axis=0)
    assert {*found.volumes} == {name}
    expected = by_levels(rest, *np.percentile(rest, (0.5, 99.5)))
    np.testing.assert_array_equal(found.images[..., 0], expected)
    numbers = {e.name: e.slice for e in listed.entries}
    assert [numbers[name] for name in found.names] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_an_image_without_a_volume_is_refused_by_that_window_in_a_line_with_the_remedy(tmp_path):
    x = twelve_bits(3)
    write(tmp_path / "png", x, "png")
    write(tmp_path / "tif", x, "tif")
    series(tmp_path / "of-one", x[:1])
    for name in ("png", "tif", "of-one"):
        file = next((tmp_path / name).iterdir())
        for options in ({}, {"levels": "full"}):  # as of a fit, and of a model
            with pytest.raises(
                DataError, match=r"no slice of a volume.* give all files of its series"
            ) as error:
                read(file, window="volume", **options)
            assert "\n" not in str(error.value)
        read(file, window="0:4000")


def test_models_of_earlier_read_series_and_stacks_as_they_did(tmp_path):
    x = twelve_bits(5)
    options = ReadOptions().as_fitted({"read": {"window": None}})
    assert options.levels == "earlier"
    tiff_stack(tmp_path / "a.tif", x)
    series(tmp_path / "ct", x)
    for name in ("a.tif", "ct"):
        np.testing.assert_array_equal(read(tmp_path / name, options).images[..., 0], by_levels(x, 0, 65535))


def test_scales_that_differ_bring_advice_that_works(tmp_path):
    """What is advised is then done, and the images of both scales have their grey levels."""
    low, high = twelve_bits(6), twelve_bits(6, seed=1) * 9

    def advice(place):
        with pytest.warns(UserWarning, match="times as far from black") as said:
            listing(place).reading  # noqa: B018
        return next(str(w.message) for w in said if "times as far" in str(w.message))

    for i, x in enumerate((low, high)):
        series(tmp_path / "ct" / str(i), x, uid=f"1.2.{i}")
        series(tmp_path / "mixed" / str(i), x, uid=f"1.2.{i}")
        tiff_stack(tmp_path / "tif" / f"{i}.tif", x)
        write(tmp_path / "png" / str(i), x, "png")
    write(tmp_path / "mixed", low[:1] * 9, "dcm")
    for name in ("ct", "tif"):
        assert advice(tmp_path / name).endswith("give --window volume")
        found = read(tmp_path / name, window="volume").images
        assert [int(part.max()) for part in (found[:6], found[6:])] == [255, 255]
    for name, first in (("png", "0/000.png"), ("mixed", "000.dcm")):
        assert advice(tmp_path / name).endswith(
            f"save each with 8 bits of its own scale: --window volume needs volumes, {first} is in none"
        )


def test_eight_bits_are_taken_as_they_are_in_every_format(tmp_path):
    x = RNG.integers(20, 200, (9, 8), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", x)
    dicom_file(tmp_path / "c.dcm", x)
    nifti_file(tmp_path / "d.nii", x.T[::-1, ::-1, None])
    for name in ("a.png", "b.tif", "c.dcm"):
        np.testing.assert_array_equal(read(tmp_path / name).images[0, ..., 0], x)
    assert set(np.unique(read(tmp_path / "d.nii").images)) == set(np.unique(x))
    with pytest.warns(UserWarning, match="--window lung does nothing for images of 8 bits"):
        read(tmp_path / "a.png", window="lung")


def test_a_few_grey_levels_are_told(tmp_path):
    write(tmp_path, twelve_bits(4), "png")
    with pytest.warns(
        UserWarning, match=r"all its images lie between grey \d+ and \d+ of 255; are black and white"
    ):
        read(tmp_path, window="full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path)


def test_what_was_not_learned_is_refused():
    with pytest.raises(DataError, match="nothing says which values are black and white; give --window"):
        toned(Stored.of(twelve_bits(1)[0]), View())


@pytest.mark.parametrize(
    "text", ["5%", "60%:40%", "-1%:50%", "1%:101%", "3:3", "9:1", "nan:4", "a:b", "1:2:3"]
)
def test_windows_of_two_ends_that_are_none(text):
    with pytest.raises(DataError, match="--window"):
        View.of(text)


def test_percentiles_may_be_chosen(tmp_path):
    x = twelve_bits(10)
    write(tmp_path, x, "png")
    black, white = np.percentile(x, (5, 80))
    reading = listing(tmp_path, window="5%:80%").reading
    assert reading.levels == f"{black:.9g}:{white:.9g}"
    assert reading.kept()["window"] == "5%:80%"
    assert survey(listing(tmp_path).entries, View()).facts() == {
        "images_looked_at": 10, "of_more_than_8_bits": 10, "types": {"uint16": 10},
        "values": [float(x.min()), float(x.max())],
        "black_and_white": "{:.9g}:{:.9g}".format(*np.percentile(x, (0.1, 99.9))),
        "with_pixels_that_are_no_numbers": 0,
    }  # fmt: skip


def test_a_model_reads_every_later_file_by_its_own_levels(tmp_path, capsys):
    """A scan scores the same alone, beside others, and beside much brighter ones."""
    write(tmp_path / "normal", twelve_bits(24), "png")
    run = ["--method", "trivial:pixels", "--out", str(tmp_path / "run"), "--json"]
    main(["fit", str(tmp_path / "normal"), *run])
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["read"]["levels"]
    assert kept == listing(tmp_path / "normal").reading.levels
    assert f"black is {kept.split(':')[0]}" in capsys.readouterr().err
    new = twelve_bits(3, seed=9)
    scores = []
    for folder, images in (("alone", new[:1]), ("beside", np.concatenate([new, new * 15]))):
        write(tmp_path / folder, images, "png")
        out = tmp_path / f"{folder}.csv"
        main(["score", str(tmp_path / "run"), str(tmp_path / folder), "--out", str(out), "--json"])
        scores.append(np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8"))
    assert np.atleast_1d(scores[0])["score"][0] == pytest.approx(scores[1]["score"][0], rel=1e-12)
    main(["data", "check", str(tmp_path / "normal"), "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["grey_levels"]
    assert told["black_and_white"] == kept


def test_a_model_of_eight_bits_reads_deeper_files_by_all_they_allow(tmp_path):
    x = RNG.integers(0, 256, (12, 10), dtype=np.uint8)
    Image.fromarray(x.astype(np.uint16) * 257).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", x.astype(np.uint16) * 257)
    options = ReadOptions().as_fitted({"read": {"levels": "full"}})
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, options).images[0, ..., 0], x)


def test_what_spoils_levels_is_told(tmp_path):
    x = twelve_bits(30).astype(np.float32)
    x[:, :3, :3] = -1e30  # a value for no data
    write(tmp_path / "empty", x, "tif")
    with pytest.warns(UserWarning, match=r"most values of most images lie within 0.00% of black to white"):
        listing(tmp_path / "empty").reading  # noqa: B018
    x = twelve_bits(30)
    write(tmp_path / "mixed", x[:15], "png")
    for i, one in enumerate(x[15:] // 16):
        Image.fromarray(one.astype(np.uint8)).save(tmp_path / "mixed" / f"shallow-{i}.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        listing(tmp_path / "mixed").read()
    texts = " ".join(str(w.message) for w in said)
    assert "15 of 30 images have 8 bits and are taken as they are" in texts
    assert texts.count("of 8 bits, taken as it is") == 1


def test_one_deep_file_among_many_is_found(tmp_path):
    tmp_path.joinpath("a").mkdir()
    for i in range(150):
        Image.fromarray(RNG.integers(0, 256, (6, 5), dtype=np.uint8)).save(tmp_path / "a" / f"{i:03d}.png")
    deep = twelve_bits(1)[0][:6, :5]
    Image.fromarray(deep).save(tmp_path / "a" / "001.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(tmp_path / "a").images[1].max() == 255
        found = read(tmp_path / "a", window="0:6000").images[1, ..., 0]
    np.testing.assert_array_equal(found, by_levels(deep, 0, 6000))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read(tmp_path / "a", window="0:6000")
    assert not [w for w in said if "does nothing" in str(w.message)]


def test_percentiles_are_learned_by_a_fit_and_shown(tmp_path, capsys):
    write(tmp_path / "scans", twelve_bits(24), "png")
    run = str(tmp_path / "run")
    method = ["--method", "trivial:pixels", "--window", "1%:99%"]
    main(["fit", str(tmp_path / "scans"), *method, "--out", run, "--json"])
    capsys.readouterr()
    main(["info", run, "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["window"] == "1%:99%"
    assert told["levels"] == listing(tmp_path / "scans", window="1%:99%").reading.levels
