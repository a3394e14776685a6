"""Images in any form become the uint8 images that files would give; what could mean two things is refused."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dia.api import given as module
from dia.api.given import image_set, listing_of
from dia.core.errors import DataError
from dia.data import imageset
from dia.data.options import ReadOptions
from dia.data.readers import read


class Grey(Dataset):
    """Six grey images as torchvision's sets give them: PIL image and class."""

    def __init__(self, images, transform=lambda x: x):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i, ..., 0])), 0


@pytest.fixture
def grey(make_images):
    return make_images(6, 12, 10)


@pytest.fixture
def colour(make_images):
    return make_images(5, 12, 10, 3)


def to_tensor(image):
    return torch.from_numpy(np.array(image))[None] / 255


@pytest.mark.parametrize("name", [module, imageset], ids=lambda m: m.__name__)
def test_examples_give_what_they_say(name):
    failed, attempted = doctest.testmod(name)
    assert failed == 0 < attempted


FORMS = {
    "N H W C": lambda x: x,
    "N H W": lambda x: x[..., 0],
    "N C H W": lambda x: np.moveaxis(x, 3, 1),
    "float32 in [0, 1]": lambda x: x.astype(np.float32) / 255,
    "float16 in [0, 1]": lambda x: (x / 255).astype(np.float16),
    "uint16": lambda x: x.astype(np.uint16) * 257,
    "tensor": lambda x: torch.from_numpy(x),
    "tensor of floats": lambda x: torch.from_numpy(x).permute(0, 3, 1, 2) / 255,
    "tensor with a gradient": lambda x: (torch.from_numpy(x) / 255).requires_grad_(),
    "list of H W": lambda x: list(x[..., 0]),
    "list of 1 H W": lambda x: [torch.from_numpy(image).permute(2, 0, 1) for image in x],
    "PIL": lambda x: [Image.fromarray(image[..., 0]) for image in x],
    "generator": lambda x: (image for image in x),
    "mappings": lambda x: [{"image": image, "label": 1} for image in x],
    "dataset": Grey,
    "dataset of tensors": lambda x: Grey(x, to_tensor),
    "loader": lambda x: DataLoader(Grey(x, to_tensor), batch_size=4),
    "loader of one batch of three": lambda x: DataLoader(TensorDataset(torch.from_numpy(x[..., 0])), 3),
    "loader without batches": lambda x: DataLoader(Grey(x, to_tensor), batch_size=None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(grey, form):
    found = image_set(FORMS[form](grey))
    np.testing.assert_array_equal(found.images, grey)
    assert found.labels is None


@pytest.mark.parametrize("form", ["N C H W", "tensor of floats", "mappings", "float32 in [0, 1]", "uint16"])
def test_colour_too(colour, form):
    np.testing.assert_array_equal(image_set(FORMS[form](colour)).images, colour)


def test_one_image(grey, colour):
    for one in (grey[0], grey[0, ..., 0], np.moveaxis(grey[0], 2, 0), Image.fromarray(grey[0, ..., 0])):
        np.testing.assert_array_equal(image_set(one).images, grey[:1])
    np.testing.assert_array_equal(image_set(colour[0]).images, colour[:1])
    np.testing.assert_array_equal(image_set([np.moveaxis(colour[0], 2, 0)]).images, colour[:1])


def test_arrays_become_what_files_become(tmp_path, grey):
    deep = grey[0, ..., 0].astype(np.uint16) * 200 + 77
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(grey[1].repeat(3, 2)).convert("P").save(tmp_path / "palette.png")
    for file, given_form in (("deep.png", deep), ("palette.png", Image.open(tmp_path / "palette.png"))):
        np.testing.assert_array_equal(
            image_set(given_form).images, read(tmp_path / file, levels="full").images
        )


def test_grey_among_colour_is_repeated(grey, colour):
    found = image_set([Image.fromarray(colour[0]), Image.fromarray(grey[0, ..., 0])])
    np.testing.assert_array_equal(found.images, [colour[0], grey[0].repeat(3, 2)])


@given(
    arrays.arrays(np.float64, (2, 8, 8), elements=strategies.floats(-900, 300)),
    strategies.sampled_from([np.float64, np.float32, np.int16]),
)
def test_a_stated_range_is_linear(x, kind):
    x = x.astype(kind)
    found = image_set(x, value_range=(-900, 300)).images[..., 0]
    assert np.abs(found - (x.astype(np.float64) + 900) / 1200 * 255).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(image_set(x, value_range=(-900, 300.0)).images, found[..., None])


def test_the_usual_range_is_for_what_is_not_uint8(grey):
    np.testing.assert_array_equal(image_set(grey, usual_range=(0, 4095)).images, grey)
    np.testing.assert_array_equal(image_set(grey.astype(np.float32), usual_range=(0, 255)).images, grey)
    twelve = ((grey.astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16)
    np.testing.assert_array_equal(image_set(twelve, usual_range=(0, 4095)).images, grey)


@pytest.mark.parametrize(
    ("images", "said"),
    {
        "0-255 as float": (np.linspace(0, 255, 128).reshape(2, 8, 8), r"beyond \[0, 1\]; give range="),
        "standardised": (np.linspace(-2, 2, 128).reshape(2, 8, 8), r"beyond \[0, 1\]; give range="),
        "int64": (np.zeros((2, 8, 8), np.int64), r"type int64 .*give range="),
        "8 bits in 16": (np.full((2, 8, 8), 200, np.uint16), "at most 200; .astype"),
        "NaN": (np.full((2, 8, 8), np.nan), "NaN"),
        "text": (np.full((2, 8, 8), "a"), "numbers are needed"),
        "three or colour": (np.zeros((3, 8, 8), np.uint8), "three grey images or one in colour"),
        "thin": (np.zeros((9, 3, 8, 3), np.uint8), r"shape \(9, 3, 8, 3\)"),
        "RGBA": (np.zeros((9, 8, 8, 4), np.uint8), "C is 1"),
        "volumes": (np.zeros((2, 1, 8, 8, 8), np.uint8), "expected"),
        "sizes": ([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], "give size=N"),
        "no images": ([], "no images"),
        "numbers": ([1, 2], "each image is"),
        "a number": (7, "not int"),
        "a batch in a list": ([np.zeros((4, 8, 8, 1), np.uint8)], "one image is"),
        "keys": ([{"pixels": 1}], "no image or img or pixel_values"),
    }.values(),
    ids=str,
)  # fmt: skip
def test_what_is_ambiguous_is_refused_in_one_line(images, said):
    with pytest.raises(DataError, match=said) as refused:
        image_set(images)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [(1, 0), (0, float("inf")), (0, 1, 2), (5, 5)])
def test_a_range_has_two_ends(grey, wrong):
    with pytest.raises(DataError, match="ascending"):
        image_set(grey, value_range=wrong)


def test_a_range_that_is_too_narrow_is_refused(grey):
    with pytest.raises(DataError, match=r"of 0 to 255, beyond range=\(0, 100\)"):
        image_set(grey, value_range=(0, 100))


def test_classes_are_not_all_taken_as_normal(grey):
    items = [(image, name) for image, name in zip(grey, "aabbbc", strict=True)]
    with pytest.raises(DataError, match=r"several classes \(a, b, c\)"):
        image_set(items, one_class=True)
    assert image_set(items).labels is None  # where classes do not matter
    found = image_set(items, ReadOptions(normal="a,c"), one_class=True)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 1, 0])
    with pytest.raises(DataError, match="no image has the label z; there are: a, b, c"):
        image_set(items, ReadOptions(normal="z"))
    batches = DataLoader(TensorDataset(torch.from_numpy(grey), torch.tensor([0, 0, 1, 1, 1, 0])), 4)
    np.testing.assert_array_equal(image_set(batches, ReadOptions(normal="0")).labels, [0, 0, 1, 1, 1, 0])


def test_masks_are_no_labels(grey):
    assert len(image_set(TensorDataset(torch.from_numpy(grey), torch.from_numpy(grey)), one_class=True)) == 6


def test_several_paths_keep_their_names(tmp_path, grey):
    for i, place in enumerate(("a/x.png", "b/x.png", "b/y.png")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(grey[i, ..., 0]).save(tmp_path / place)
    a, b = str(tmp_path / "a" / "x.png"), tmp_path / "b"
    found = listing_of([a, b], ReadOptions(), "test").read()
    assert list(found.names) == [a, f"{b}/x.png", f"{b}/y.png"]
    np.testing.assert_array_equal(found.images, grey[:3])
    with pytest.raises(DataError, match="listed twice"):
        listing_of([a, a], ReadOptions(), "test")


def test_a_memory_map_is_not_copied(tmp_path, grey):
    np.save(tmp_path / "x.npy", grey)
    assert isinstance(image_set(np.load(tmp_path / "x.npy", mmap_mode="r")).images, np.memmap)


def test_patients_are_told_from_paths_or_given(tmp_path, grey):
    for i, folder in enumerate(("p1", "p1", "p2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(grey[i, ..., 0]).save(tmp_path / folder / f"{i}.png")
    paths = [tmp_path / "p1", tmp_path / "p2" / "2.png"]
    found = listing_of(paths, ReadOptions(group_by="folder"), "test")
    assert found.read().patients == ("p1", "p1", "p2")
    assert "3 images of 2 patients" in found.grouped
    with pytest.raises(DataError, match="give an ImageSet with patients="):
        listing_of(grey, ReadOptions(group_by="folder"), "test")
    given = imageset.ImageSet(grey, patients=["a"] * len(grey))
    assert listing_of(given, ReadOptions(), "test").units[0] == "patient a"
