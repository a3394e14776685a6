"""The service under load: a real `dia serve`, real clients, every answer compared; its memory and open files.

A tiny model is fitted, and what it says of every file is asked for alone first. Then clients send those files
in mixtures (one image, several, a zip, a DICOM file, broken ones), as many at once as the row says, and every
answer must be what was said alone, to 1 part in 10 000: that is what the service promises of shared batches.
Who is refused because all places are taken asks again; such answers are counted apart. The server's memory,
open files and threads are read from /proc between requests. The clients share the machine's cores with the
server, so its own limit is higher.

    python benchmarks/service_load.py [--requests 10000] [--clients 1 8 32]

writes `results/service_load.json` and the tables between the marks of `docs/reliability.md`.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from dia.benchmark.ledger import update_section
from dia.cli.main import main as dia
from dia.data import phantoms

from ..common import HERE, RESULTS, parser, publish

PAGE = HERE.parent / "docs/reliability.md"
SIDE, EVERY = 32, 500  # pixels; requests between two looks at the server
TOLERANCE = 1e-4  # relative, of scores
TINY = [
    "--settings.dissolver.steps", "4", "--settings.dissolver.widths", "[8,16]",
    "--false_alarm_rate", "0.2",
]  # fmt: skip


PAGE_ROUTES = ("/room/state", "/room/list", "/room/threshold?rate=0.3", "/static/viewer.js", "/train")


class Sent(NamedTuple):
    """A request: its files, and what must come back for them in this order."""

    kind: str
    files: list[tuple[str, bytes]]
    status: int
    images: list[str]  # keys of what is known
    errors: list[str]


# --- what is sent -------------------------------------------------------------------------------------------


def prepare(root: Path) -> dict[str, bytes]:
    """A model in `root/run`, and images by their names."""
    for split, n in (("train", 60), ("test", 40)):
        images = phantoms.load(split, size=SIDE, n=n)
        for i, image in enumerate(images.images):
            path = root / split / f"{split}{i:03d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    dia(["fit", str(root / "train"), "--out", str(root / "run"), "--device", "cpu", *TINY])
    known = {p.name: p.read_bytes() for p in sorted((root / "test").glob("*.png"))}
    for name in list(known)[:8]:
        picture = Image.open(io.BytesIO(known[name]))
        for suffix, size in ((".jpg", (96, 80)), (".tif", (SIDE, SIDE)), (".bmp", (50, 40))):
            buffer = io.BytesIO()
            picture.resize(size).save(buffer, format=Image.registered_extensions()[suffix])
            known[name.replace(".png", suffix)] = buffer.getvalue()
    for name in list(known)[:8]:
        if (made := dicom(known[name])) is not None:
            known[name.replace(".png", ".dcm")] = made
    return known


def dicom(png: bytes) -> bytes | None:
    """The image as a DICOM file of 16 bits; None without pydicom."""
    try:
        import pydicom
        from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    except ImportError:
        return None
    pixels = np.asarray(Image.open(io.BytesIO(png))).astype(np.uint16) * 16
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = pydicom.Dataset()
    ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID = meta, SecondaryCaptureImageStorage, "1.2.3"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelData = 16, 12, 11, pixels.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def draw(chance: random.Random, known: dict[str, bytes], number: int) -> Sent:
    """The next request of a client; names begin with its number, so that no answer fits another's."""
    plain = [n for n in known if not n.endswith(".dcm")]
    kinds = ("one", "several", "zip", "heatmap", "broken", "dicom", "page")
    kind = chance.choices(kinds, (34, 22, 10, 10, 10, 4, 10))[0]
    if kind == "page":
        return Sent(kind, [(chance.choice(PAGE_ROUTES), b"")], 200, [], [])
    dicoms = [n for n in known if n.endswith(".dcm")]
    if kind == "dicom" and dicoms:
        name = chance.choice(dicoms)
        return Sent(kind, [(f"{number}-{name}", known[name])], 200, [name], [])
    if kind == "broken":
        name, cut = chance.choice(plain), chance.randrange(1, 60)
        broken = (f"{number}-broken.png", known[name][:cut])
        if chance.random() < 0.5:
            return Sent(kind, [broken], 422, [], [])
        return Sent(kind, [broken, (f"{number}-{name}", known[name])], 200, [name], [broken[0]])
    names = chance.sample(plain, chance.randrange(2, 9) if kind in ("several", "zip") else 1)
    files = [(f"{number}-{name}", known[name]) for name in names]
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files:
                packed.writestr(f"folder/{name}", data)
        return Sent(kind, [("scans.zip", buffer.getvalue())], 200, names, [])
    return Sent("one" if kind == "dicom" else kind, files, 200, names, [])


def wrong(sent: Sent, answer: httpx.Response, said: dict[str, dict[str, Any]]) -> str:
    """Returns the first difference from the expected answer, or an empty text."""
    if answer.status_code != sent.status:
        return f"{answer.status_code}, not {sent.status}: {answer.text[:200]}"
    if sent.status != 200:
        return ""
    if sent.kind == "page":
        route = sent.files[0][0]
        return "" if answer.text == said[route]["text"] else f"{route}: another text"
    found = answer.json()
    if [e["name"] for e in found["errors"]] != sent.errors:
        return f"errors {found['errors']}"
    if len(found["images"]) != len(sent.images):
        return f"{len(found['images'])} images, not {len(sent.images)}"
    for image, key in zip(found["images"], sent.images, strict=True):
        alone = said[key]
        if not image["name"].endswith(f"-{key}") or not same(image["score"], alone["score"]):
            return f"{image['name']} has {image['score']}, {key} has {alone['score']} alone"
        if image["p_value"] != alone["p_value"] or image["flagged"] != alone["flagged"]:
            return f"{image['name']}: p-value or flag differ"
        if (image["heatmap"] is None) != (sent.kind != "heatmap"):
            return f"{image['name']}: a heatmap where none was asked for, or none"
    return ""


def same(a: float, b: float) -> bool:
    """Returns whether two scores agree to the promised tolerance."""
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


# --- the server ---------------------------------------------------------------------------------------------


@contextmanager
def served(root: Path):  # type: ignore[no-untyped-def]
    """A process of `dia serve`, and its address."""
    command = [
        sys.executable,
        "-m",
        "dia",
        "serve",
        str(root / "run"),
        "--port",
        "0",
        "--store",
        str(root / "marks.sqlite"),
    ]
    log = root / "log"
    env = {k: v for k, v in os.environ.items() if k != "DIA_TOKEN"} | {"TMPDIR": str(root / "tmp")}
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--device", "cpu"],
            stderr=said, stdout=said, env=env,
        )  # fmt: skip
    try:
        while not (found := re.search(r"http://[\d.]+:\d+", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield process, found[0]
    finally:
        process.terminate()
        process.wait(60)


def state(pid: int) -> dict[str, float]:
    """MB of memory that the process holds, its open files and its threads."""
    text = Path(f"/proc/{pid}/status").read_text()
    kb, threads = (int(re.search(rf"{key}:\s+(\d+)", text)[1]) for key in ("VmRSS", "Threads"))  # type: ignore[index]
    return {"mb": kb / 1024, "files": len(os.listdir(f"/proc/{pid}/fd")), "threads": threads}


# --- the clients --------------------------------------------------------------------------------------------


class Load:
    """So many requests by so many clients, each a thread with a connection that it keeps."""

    def __init__(
        self, url: str, pid: int, known: dict[str, bytes], said: dict[str, dict[str, Any]], seed: int
    ):
        self.url, self.pid, self.known, self.said, self.seed = url, pid, known, said, seed
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.images = self.refused = self.done = 0
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.looks: list[dict[str, float]] = []

    def run(self, requests: int, clients: int) -> dict[str, Any]:
        """One row of the table."""
        self._left = requests
        threads = [threading.Thread(target=self._client, args=(c,)) for c in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        p50, p95, p99 = np.percentile(self.seconds, (50, 95, 99)) * 1000
        return {
            "clients": clients, "requests": self.done, "requests/s": self.done / took,
            "images/s": self.images / took, "p50 ms": float(p50), "p95 ms": float(p95), "p99 ms": float(p99),
            "max ms": max(self.seconds) * 1000, "refused, asked again": self.refused,
            "wrong answers": len(self.wrong), "errors": len(self.errors),
        }  # fmt: skip

    def _client(self, client: int) -> None:
        chance = random.Random(f"{self.seed} {client}")
        with httpx.Client(base_url=self.url, timeout=120) as http:
            http.get("/")  # a session
            while True:
                with self.lock:
                    if not self._left:
                        return
                    self._left -= 1
                    number = self._left
                self._one(http, draw(chance, self.known, number))

    def _one(self, http: httpx.Client, sent: Sent) -> None:
        form = {"heatmaps": "raw"} if sent.kind == "heatmap" else {}
        try:
            while True:
                start = time.perf_counter()
                if sent.kind == "page":
                    answer = http.get(sent.files[0][0])
                else:
                    answer = http.post("/score", files=[("files", file) for file in sent.files], data=form)
                seconds = time.perf_counter() - start
                if answer.status_code != 503:
                    break
                with self.lock:
                    self.refused += 1
                time.sleep(float(answer.headers["Retry-After"]))
            problem, error = wrong(sent, answer, self.said), ""
        except httpx.HTTPError as failure:
            problem, error, seconds = "", repr(failure), 0.0
        with self.lock:
            self.done += 1
            self.kinds[sent.kind] += 1
            self.images += len(sent.images)
            self.seconds.append(seconds)
            self.errors += [error] * bool(error)
            self.wrong += [problem] * bool(problem)
            if self.done % EVERY == 0:
                self.looks.append(state(self.pid))


def alone(url: str, known: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Returns the service's answer to each file when nothing else is sent."""
    with httpx.Client(base_url=url, timeout=120) as http:
        answers = {n: http.post("/score", files=[("files", (n, data))]) for n, data in known.items()}
        http.get("/")
        pages = {route: {"text": http.get(route).raise_for_status().text} for route in PAGE_ROUTES}
    return {name: answer.json()["images"][0] for name, answer in answers.items()} | pages


def as_scored(root: Path, said: dict[str, dict[str, Any]]) -> int:
    """Counts the images to which `dia score` gives another score."""
    import csv

    paths = [str(root / name) for name in ("run", "test", "scores.csv")]
    dia(["score", *paths[:2], "--out", paths[2], "--device", "cpu"])
    with (root / "scores.csv").open() as file:
        rows = {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(file)}
    return sum(not same(rows[name], said[name]["score"]) for name in rows)


def slope(looks: list[dict[str, float]]) -> float:
    """MB for a thousand requests more, by least squares over the last 80 % of the looks."""
    mb = [look["mb"] for look in looks][len(looks) // 5 :]
    return float(np.polyfit(np.arange(len(mb)) * EVERY / 1000, mb, 1)[0]) if len(mb) > 1 else 0.0


# --- the page -----------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """Markdown of the rows and of what the server held."""
    rows, held = results["rows"], results["held"]
    lines = [f"| clients | {' | '.join(str(r['clients']) for r in rows)} |", "|---|" + "--:|" * len(rows)]
    for key in list(rows[0])[1:]:
        values = [r[key] for r in rows]
        shown = [f"{v:.0f}" if v >= 10 or isinstance(v, int) else f"{v:.2g}" for v in values]
        lines.append(f"| {key} | {' | '.join(shown)} |")
    lines += ["", "| the server's process | memory, MB | open files | threads |", "|---|--:|--:|--:|"]
    for what, look in held.items():
        lines.append(f"| {what} | {look['mb']:.0f} | {look['files']} | {look['threads']} |")
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(results["kinds"].items(), key=lambda k: -k[1]))
    where = results["environment"]
    lines += [
        "",
        f"- memory over the last 80 % of {sum(r['requests'] for r in rows)} requests: "
        f"**{results['slope']:+.2f} MB for a thousand more**",
        f"- requests: {kinds}; {results['as_scored']} of the files have another score by `dia score`",
        f"- afterwards `/health` had {results['left']} requests and images; {results['files_left']} "
        f"temporary files were left",
        f"\n*{where['device']}, {results['cores']} cores for server "
        f"and clients together, commit {where['commit']}*",
    ]
    return "\n".join(lines)


def main() -> None:
    """Loads, compares, draws."""
    p = parser(__doc__)
    p.add_argument(
        "--requests", type=int, default=10_000, help="in all; a tenth of them for one client alone"
    )
    p.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="at once")
    p.add_argument("--seed", type=int, default=0, help="of what is sent")
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    a = p.parse_args()
    if not a.page:
        measure(a.requests, a.clients, a.seed)
    update_section(PAGE, "SERVICE", tables(json.loads((RESULTS / "service_load.json").read_text())))


def measure(requests: int, clients: list[int], seed: int) -> None:
    """Measures all rows with one server."""
    several = [n for n in clients if n > 1]
    first = requests if not several else requests // 10 if 1 in clients else 0
    shares = {n: (requests - first) // len(several) if n > 1 else first for n in clients}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        known = prepare(root)
        with served(root) as (process, url):
            held = {"at the start": state(process.pid)}
            said = alone(url, known)
            differ = as_scored(root, said)
            rows, looks, kinds = [], [], Counter[str]()
            for n in clients:
                load = Load(url, process.pid, known, said, seed)
                rows.append(load.run(shares[n], n))
                print(rows[-1], *load.wrong[:3], *load.errors[:3], sep="\n", flush=True)
                looks += load.looks
                kinds += load.kinds
                held[f"after {sum(r['requests'] for r in rows)} requests"] = state(process.pid)
            health = httpx.get(f"{url}/health").json()
        publish(
            "service_load", rows, {}, held=held, looks=looks, slope=slope(looks), kinds=dict(kinds),
            known=len(known), as_scored=differ, left=health["active_requests"] + health["waiting_images"],
            files_left=len(list((root / "tmp").rglob("*"))), cores=os.cpu_count(),
        )  # fmt: skip
    if any(row["wrong answers"] or row["errors"] for row in rows):
        raise SystemExit("there were wrong answers or errors")


if __name__ == "__main__":
    main()
