"""Draws the pictures of docs/howto/reading-room.md: `python tests/helpers/pictures_room.py`, some minutes.

Fits a model on generated images, serves it, and takes what a Chromium shows. No test.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
FIGURES = ROOT / "docs" / "figures"
SIDE, SLICES, LESION, SERIES = 64, 28, 17, "chest series"


def incoming(folder: Path) -> list[Path]:
    """Phantoms, of which some have a lesion, and a series in Hounsfield units in a folder of its own."""
    from medical_files import dicom_file
    from pydicom.uid import generate_uid

    from dia.data import phantoms

    folder.mkdir()
    found = phantoms.load("test", size=SIDE, n=26, seed=3)
    for i, (image, label) in enumerate(zip(found.images[..., 0], found.labels, strict=True)):
        Image.fromarray(image).save(folder / f"{'ab'[int(label)]}{i:02d}.png")
    plane = phantoms.load("test", size=SIDE, n=2, seed=9).images[0, ..., 0].astype(float)
    y, x = np.mgrid[:SIDE, :SIDE]
    rng, uid = np.random.default_rng(0), generate_uid()
    for k in range(SLICES):
        blob = np.exp(-((y - 38) ** 2 + (x - 25) ** 2) / 14 - ((k - LESION) / 2.2) ** 2)
        grey = np.clip(plane + 110 * blob + rng.normal(0, 1, plane.shape), 0, 255)
        dicom_file(
            folder / SERIES / f"{k:03d}.dcm", np.rint(grey * 6 - 900).astype(np.int16), Modality="CT",
            SeriesInstanceUID=uid, InstanceNumber=k + 1, ImagePositionPatient=[0, 0, 3.0 * k],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[4.5, 4.5], RescaleSlope=1,
            RescaleIntercept=0, WindowCenter=-135, WindowWidth=1530,
        )  # fmt: skip
    return sorted(f for f in folder.iterdir() if f.is_file())


def main() -> None:
    from browsing import ReadingWindow, chromium, serving_room

    from dia.cli.main import main as dia
    from dia.deploy.predictor import Inferencer

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tiny = ["--settings.dissolver.kind", "diffusion", "--settings.dissolver.steps", "250",
            "--settings.dissolver.widths", "[16,32]"]  # fmt: skip
        dia(["fit", "phantom", "--out", str(work / "run"), "--device", "cpu", *tiny, *sys.argv[1:]])
        files = incoming(work / "incoming")
        model = Inferencer(work / "run", device="cpu", normals="phantom")
        with chromium() as browser, serving_room(model, work / "run", work / "room") as url:
            for name, scheme, width, height in (
                ("desktop", "light", 1360, 830), ("volume", "dark", 1360, 830), ("phone", "dark", 390, 844),
            ):  # fmt: skip
                with ReadingWindow(
                    browser, url, width, height, color_scheme=scheme, device_scale_factor=1
                ) as w:
                    w.at("#reader").fill("R. Eader")
                    w.at("#reader").press("Enter")
                    w.drop(files, cases=len(files))
                    w.drop(work / "incoming" / SERIES, cases=len(files) + 1)
                    show(w, name)
                    save(w, name)


def show(w, name: str) -> None:
    """Brings a window into the state of a picture."""
    if name == "volume":
        w.open(SERIES)
        w.press("x")
        w.expect(w.at("#tiles figure:nth-child(2) p")).to_have_text("")
    else:
        top = next(n for n in w.names() if n.startswith("b"))
        w.row(top).click()
        w.shown()
    w.expect(w.at("#findings-words")).not_to_have_text("Looking for findings …")
    if name == "desktop":
        w.expect(w.at("#thumbs button")).to_have_count(4)
        w.expect(w.at("#tiles figure:nth-child(2) p")).to_have_text("")
        w.press("a")
        w.saved()
    w.page.wait_for_load_state("networkidle")
    w.frame()


def save(w, name: str) -> None:
    """Saves a picture, of a phone three side by side."""
    shots = [w.page.screenshot()]
    if name == "phone":  # the list, the image and the findings side by side
        w.at("#tab-list").click()
        shots.insert(0, w.page.screenshot())
        w.at("#tab-case").click()
        shots.append(w.page.screenshot())
    images = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    gap = 16
    whole = Image.new("RGB", (sum(i.width + gap for i in images) - gap, images[0].height), "white")
    for k, image in enumerate(images):
        whole.paste(image, (k * (image.width + gap), 0))
    path = FIGURES / f"room-{name}.png"
    whole.save(path, optimize=True)
    print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
