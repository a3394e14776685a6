"""`dia.Dissolve` where others put augmentations: keypoints, videos, workers of a loader; compiled."""

import re
from pathlib import Path

import pytest
import torch
from kornia.augmentation import AugmentationSequential, ImageSequential, VideoSequential
from torch.utils.data import DataLoader, Dataset

from dia import Dissolve


@pytest.fixture(scope="module")
def dissolve(tiny_dissolver):
    return Dissolve(tiny_dissolver, 100)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 1, 20, 16, generator=torch.Generator().manual_seed(0))


def test_keypoints_pass_through(dissolve, images):
    points = torch.rand(4, 5, 2) * 10
    augment = AugmentationSequential(dissolve, data_keys=["input", "keypoints"])
    out, same = augment(images, points)
    assert torch.equal(same, points)
    assert torch.equal(out, dissolve(images))


@pytest.mark.parametrize("same_on_frame", [True, False])
def test_frames_of_a_video_are_dissolved_each_on_its_own(same_on_frame, dissolve, images):
    video = torch.stack([images, images.flip(-1)], 1)  # (N, T, C, H, W)
    out = VideoSequential(dissolve, data_format="BTCHW", same_on_frame=same_on_frame)(video)
    torch.testing.assert_close(out.flatten(0, 1), dissolve(video.flatten(0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("same_on_frame", [True, False])
def test_a_video_has_one_t_where_frames_share_their_draw(same_on_frame, tiny_dissolver, images):
    dissolve = Dissolve(tiny_dissolver, (0, 999))
    video = images[:2, None].expand(2, 6, 1, 20, 16)
    torch.manual_seed(0)
    out = VideoSequential(dissolve, data_format="BTCHW", same_on_frame=same_on_frame)(video)
    alike = all(torch.allclose(frame, clip[0], atol=1e-5) for clip in out for frame in clip)
    assert alike == same_on_frame


def test_the_snippet_of_the_docs(tiny_dissolver, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "howto" / "pipelines.md"
    tiny_dissolver.save(tmp_path / "runs" / "mine" / "dissolver")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", page.read_text(), re.S)[1], names)
    assert names["dissolved"].shape == names["videos"].shape
    assert not torch.equal(names["dissolved"], names["videos"])


def test_in_a_sequence_of_kornias(dissolve, images):
    assert torch.equal(ImageSequential(dissolve)(images), dissolve(images))


class _Images(Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i])


def test_in_the_workers_of_a_loader(dissolve, images):
    loader = DataLoader(_Images(images, dissolve), batch_size=2, num_workers=2)
    torch.testing.assert_close(torch.cat(list(loader)), dissolve(images), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiled_it_is_the_same(dissolve, images):
    torch.testing.assert_close(
        torch.compile(dissolve, backend="eager")(images), dissolve(images), rtol=0, atol=1e-5
    )
