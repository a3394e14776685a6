"""Wall and CPU seconds of the commands of a newcomer's first hour, idle and beside two busy neighbours.

    python -m benchmarks.first_hour --before CHECKOUT   # CHECKOUT: a tree of an earlier version

Each command is a process of its own, with default threads, on BreastMNIST as files and on 300 generated PNG
of 224 px. The neighbours are two processes that count. What takes longer than the limit is ended, and the
table says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dia.data import phantoms
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet

from .common import HERE, parser, publish

COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "fit": ["fit", "{data}/normal", "--out", "{work}/run"],
    "score": ["score", "{work}/run", "{data}/new", "--out", "{work}/scores.csv"],
    "evaluate": ["evaluate", "{work}/run", "{data}/labelled", "--normal", "good"],
    "report": ["report", "{work}/run", "{data}/labelled", "--normal", "good", "--out", "{work}/report.html"],
    "export": ["export", "{work}/run", "--out", "{work}/model.onnx"],
}
WITHOUT_DATA = ("--version", "--help")
DATA = ("breastmnist", "300 of 224 px")


def write(images: ImageSet, folder: Path) -> None:
    """Writes images as PNG, those with labels by class."""
    for i, image in enumerate(images.images):
        kind = "" if images.labels is None else "bad" if images.labels[i] else "good"
        file = folder / kind / f"{i:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file)


def prepare(folder: Path, root: str) -> dict[str, Path]:
    """Writes the data and returns their folders by name."""
    made = {"breastmnist": folder / "breast", "300 of 224 px": folder / "large"}
    sets = {
        "breastmnist": (load_training("breastmnist", root), load("breastmnist", "test", root)),
        "300 of 224 px": (phantoms.load("train", size=224, n=200), phantoms.load("test", size=224, n=100)),
    }
    for name, (normals, test) in sets.items():
        write(ImageSet(normals.images), made[name] / "normal")
        write(ImageSet(test.images), made[name] / "new")
        write(test, made[name] / "labelled")
    return made


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keeps as many cores busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def timed(tree: Path, words: list[str], limit: float) -> tuple[float, float, int | None]:
    """Runs a command of a version; returns wall and CPU seconds and its exit status, None if it was ended."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "DIA_"))}
    env |= {"PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    entry = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["dia"]
    module, _, function = entry.partition(":")
    call = [sys.executable, "-c", f"from {module} import {function}; {function}()", *words]
    try:
        quiet = subprocess.DEVNULL
        status: int | None = subprocess.run(
            call, env=env, stdout=quiet, stderr=quiet, stdin=quiet, timeout=limit, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        status = None
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, status


def main() -> None:
    """Measures both versions and publishes `first_hour`."""
    p = parser(__doc__)
    p.add_argument("--before", type=Path, required=True, help="tree of the earlier version")
    p.add_argument("--root", default=str(HERE / "../../shared/data"), help="folder of the data sets")
    p.add_argument("--limit", type=float, default=240, help="seconds after which a command is ended")
    p.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    p.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="neighbours")
    options: argparse.Namespace = p.parse_args()
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        data = prepare(Path(temporary), options.root)
        for busy in options.busy:
            for name in options.data:
                folder = data[name]
                for command, words in COMMANDS.items():
                    if command in WITHOUT_DATA and name != options.data[0]:
                        continue
                    found = {}
                    for which, tree in (("before", options.before.resolve()), ("now", HERE.parent)):
                        work = Path(temporary) / which / str(busy) / name.replace(" ", "_")
                        filled = [w.format(data=folder, work=work) for w in words]
                        work.mkdir(parents=True, exist_ok=True)
                        with neighbours(busy):
                            found[which] = timed(tree, filled, options.limit)
                    row = {
                        "command": command,
                        "data": "" if command in WITHOUT_DATA else name,
                        "neighbours": busy,
                    }
                    for which, (wall, cpu, status) in found.items():
                        note = f"> {options.limit:.0f}" if status is None else "failed" if status else ""
                        row |= {f"{which}, wall s": note or wall, f"{which}, CPU s": note or cpu}
                    rows.append(row)
                    print(row, flush=True)
                    if not any(status for *_, status in found.values()) and found["now"][2] == 0:
                        key = f"{command}, {name}, {busy} neighbours: wall before / now"
                        ratios[key] = found["before"][0] / found["now"][0]
                    if command == "fit" and found["before"][2] is None and found["now"][2] == 0:
                        # the later commands need a model: the idle one of that version
                        idle = Path(temporary) / "before" / "0" / name.replace(" ", "_") / "run"
                        if busy and idle.exists():
                            shutil.copytree(
                                idle, Path(temporary) / "before" / str(busy) / idle.parent.name / "run"
                            )
    publish("first_hour", rows, ratios, limit=options.limit)


if __name__ == "__main__":
    main()
