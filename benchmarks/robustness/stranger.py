"""A stranger's path, timed: from `pip install` of the built wheel in an empty environment to an open report.

Builds the wheel, makes an empty virtual environment and an empty folder, and runs there, in order, every
command of one section of the tutorial (its ```sh and ```python blocks), word for word: only the clone that
is installed is the wheel made of it. The repository is not to be seen from there. Then the report
is opened in a browser, where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ..common import parser, publish

ROOT = Path(__file__).parents[2]
INSTALL = "pip install .\n"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Step(NamedTuple):
    """A block of the page: `sh` or `python`, and its text."""

    language: str
    text: str


def steps(page: str, section: str) -> list[Step]:
    """The blocks to run of one section of a page, in order.

    Raises:
        ValueError: no such section, or nothing to run in it.
    """
    found = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", page, re.M | re.S)
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", found[1], re.M | re.S) if found else []
    if not blocks:
        raise ValueError(f"no commands under '## {section}'")
    return [Step(*block) for block in blocks]


def main() -> None:
    """Prints and writes `results/stranger.json`."""
    p = parser(__doc__)
    p.add_argument("--page", default=str(ROOT / "docs" / "tutorial.md"))
    p.add_argument("--section", default="In five minutes")
    a = p.parse_args()
    path = steps(Path(a.page).read_text(), a.section)
    with tempfile.TemporaryDirectory() as temporary:
        wheels, venv, home = (Path(temporary, name) for name in ("wheels", "venv", "home"))
        home.mkdir()
        wheel = ("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT)
        subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "DIA_"))}
        path_ = f"{venv / 'bin'}{os.pathsep}{env['PATH']}"
        env |= {"PATH": path_, "HOME": str(home)}
        rows = []
        for step in path:
            start = time.perf_counter()
            text = step.text.replace(INSTALL, f"pip install {next(wheels.iterdir())}\n")
            command = ["sh", "-e", "-c", text] if step.language == "sh" else ["python", "-c", text]
            done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            if done.returncode:
                sys.exit(f"{step.text}\nexit status {done.returncode}\n{done.stderr[-2000:]}")
            rows.append({"step": step.text.strip().splitlines()[0][:90], "s": round(seconds, 1)})
        report = next(home.rglob("*.html"))
        rows.append(opened(report))
        rows.append({"step": "all", "s": round(sum(row["s"] for row in rows), 1)})
    publish("stranger", rows, {})


def opened(report: Path) -> dict[str, object]:
    """Opens a page in a headless browser and asks for the text of its heading."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"{report.name} was made, but there is no browser ({', '.join(BROWSERS)}) to open it in")
    start = time.perf_counter()
    page = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", report.as_uri()],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", page, re.S)
    if heading is None or "<img" not in page:
        sys.exit(f"{report.name}: opened, but it has no heading or no pictures")
    title = re.sub(r"<[^>]*>", "", heading[1]).strip()
    return {"step": f"open {report.name}: “{title}”", "s": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    main()
