"""The picture of the review page in its how-to: generated phantoms, a model of `dia demo`, a real browser.

python benchmarks/review_picture.py demo/run docs/review.png
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dia.data import phantom
from dia.detectors import Detector

SEEN = 14  # images, half of them with a lesion
WIDTH, HEIGHT = 1360, 1050


def main(run: str, out: str) -> None:
    """Serves `run`, reviews some phantoms, and writes what is seen to `out`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _files(folder, _side(run))
        command = [sys.executable, "-m", "dia", "serve", run, "--port", "0", "--normals", "phantom",
                   "--store", str(folder / "marks.sqlite")]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            url = next(filter(None, (re.search(r"http://\S+?:\d+", line) for line in server.stdout or ())))[0]
            with sync_playwright() as playwright:
                found = os.environ.get("DIA_BROWSER") or shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
                page.goto(url)
                _review(page, files)
                page.screenshot(path=folder / "page.png")
                browser.close()
        finally:
            server.terminate()
            server.wait()
        seen = np.asarray(Image.open(folder / "page.png").convert("RGB"))
        Image.fromarray((np.round(seen / 5) * 5).astype(np.uint8)).save(out, optimize=True)  # a smaller file


def _side(run: str) -> int:
    return int(Detector.load(run, device="cpu").shape_[0])


def _files(folder: Path, size: int) -> list[str]:
    images = phantom.load("test", size=size, n=SEEN).images[..., 0]
    paths = [folder / f"case-{k:02d}.png" for k in range(1, SEEN + 1)]
    for path, i in zip(paths, np.random.default_rng(0).permutation(SEEN), strict=True):
        Image.fromarray(images[i]).save(path)
    return [str(p) for p in paths]


def _review(page: Page, files: list[str]) -> None:
    page.locator("#drop input[type=file]").set_input_files(files)
    page.locator("#nearest figure").nth(3).wait_for()
    page.locator("#agree").click()
    page.locator("#state .agree").wait_for()
    page.keyboard.press("j")
    page.locator("#list tr[aria-current]:nth-child(2)").wait_for()
    page.locator("#agree").click()
    page.locator("#state .agree").wait_for()
    page.locator("#note textarea").fill("round and dark, upper right")
    page.locator("#state", has_text="Note kept").wait_for()
    page.locator("#title h2").click()
    page.locator("#list .note [title]").wait_for()
    name = page.locator("#title h2").inner_text()
    page.locator(f"#dissolved img[alt^='{name}']").first.wait_for()
    page.locator("#nearest figure").nth(3).wait_for()
    page.wait_for_function("[...document.images].every((image) => image.complete)")


if __name__ == "__main__":
    main(*sys.argv[1:3])
