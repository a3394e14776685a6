"""Copies the results table of the paper (ECCV 2024) into the package, one line per method and data set.

The numbers come from a CSV of the published table; the marks ('extra training data', † and ‡) from the text
of the authors' poster, because that CSV says in their place what is true. Which weights a publication starts
from is not in either: `TRUTH` below says it, with its source. Run once, and again only to check:

    python benchmarks/paper_table.py results_table.csv poster.txt
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "dia" / "evaluate" / "paper_table.csv"
DATASETS = {
    "pneumoniamnist": "pneumoniamnist",
    "breastmnist": "breastmnist",
    "sars_cov_2": "sarscov2ct",
    "kvasir_polyp": "kvasir",
    "retinal_oct": "oct2017",
    "aptos_2019": "aptos2019",
}
NAMES = {"MeanShift": "msc"}  # ours are the lower case of theirs otherwise
POSTER = {"transformaly": "transformly"}  # spelt so there
# Networks whose ImageNet weights, or ImageNet images, the publications start from: their papers, and for
# CFlow, U-Flow, FastFlow and EfficientAD what anomalib 2.7 loads.
TRUTH = {
    "uniad": "efficientnet_b4, ImageNet",
    "cflow": "wide_resnet50_2, ImageNet",
    "uflow": "cait_m48_448 and cait_s24_224, ImageNet",
    "fastflow": "resnet18, ImageNet",
    "kdad": "vgg16, ImageNet",
    "rd4ad": "wide_resnet50_2, ImageNet",
    "transformaly": "vit_base_patch16_384, ImageNet",
    "efficientad": "a network distilled on ImageNet, and ImageNet images",
    "cfa": "wide_resnet50_2, ImageNet",
    "patchcore": "wide_resnet50_2, ImageNet",
    "msc": "resnet152, ImageNet",
}


def marks(poster: str) -> dict[str, tuple[str, str]]:
    """By method in lower case: extra data as printed ('no' for ×, 'yes' for the other sign), † or ‡."""
    found = {}
    for line in poster.splitlines():
        cells = line.split("\t")
        if len(cells) < 4 or not re.fullmatch(r"[×<> ]+", cells[2]):
            continue
        # the poster's text has ticks as < and >, and one × too many for the flows, which are all ×
        signs = cells[2].replace(" ", "")
        names = re.findall(r"([†‡]?)([A-Za-z]\w+)(?: \[\d+\])?", cells[0])
        names = [(mark, n.lower()) for mark, n in names if n not in ("IEE", "Baseline", "Ours")]
        for (mark, name), sign in zip(names, signs, strict=False):
            found[name] = ("no" if sign == "×" else "yes", mark)
    return found


def main(table: Path, poster: Path) -> None:
    """Writes `OUT`."""
    printed = marks(poster.read_text(encoding="utf-8"))
    with table.open(newline="") as source, OUT.open("w", newline="", encoding="utf-8") as target:
        out = csv.writer(target, lineterminator="\n")
        head = ["method", "title", "family", "venue", "extra_data_as_printed", "mark_as_printed"]
        out.writerow([*head, "weights_in_truth", "dataset", "auroc", "std"])
        for row in csv.DictReader(source):
            title = row["method"]
            method = NAMES.get(title, title.lower())
            extra, mark = printed[POSTER.get(title.lower(), title.lower())]
            truth = TRUTH.get(method, "none")
            for theirs, ours in DATASETS.items():
                facts = [method, title, row["family"], row["venue"], extra, mark, truth]
                out.writerow([*facts, ours, *row[theirs].split("±")])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
