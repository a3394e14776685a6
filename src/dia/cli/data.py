"""`dia data` and `dia methods`: what data sets and methods there are, and what is in the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from rich.table import Table

from ..core.errors import DataError
from ..data.options import ReadOptions
from .options import Output, Preset, Reading, out, result


def data(
    action: Literal["list", "check"],
    name: str | None = None,
    *,
    size: int | None = None,
    run: str | None = None,
    scores: str | None = None,
    row: str | None = None,
    reading: Reading,
    output: Output,
) -> None:
    """List the known data sets, or check what is in one of them or in a path.

    Nothing is downloaded: the list says where to get a set, and under which licence. The check counts images
    and classes by split and finds duplicates and near-duplicates, also across splits, where they are leaks.
    With --run, --scores or --row it measures how much copies of training images among the test images change
    an AUROC.

    Args:
        action: list shows the known sets; check counts images and finds duplicates and leaks
        name: for check: a known set's name, or a path
        size: side in pixels of the squares to which images are resized, if sizes differ
        run: a folder written by `dia fit`, to measure the effect of copies on its AUROC
        scores: a file of `dia score` for the test split, to measure the effect of copies on its AUROC
        row: a baseline, e.g. trivial:pixels, to measure the effect of copies on its AUROC
        reading: how images are read.
        output: how to print the result.

    Examples:
        dia data list
        dia data check breastmnist --data-root data
        dia data check scans --normal healthy --json
        dia data check breastmnist --data-root data --row trivial:pixels
        dia data check scans --normal healthy --run runs/mine
    """
    from ..data import datasets

    if action == "list":
        known = datasets.known_sets(reading.data_root)
        if output.json:
            return output.show({name: asdict(d) for name, d in known.items()})
        table = Table("name", "title", "normal", "split", "licence", "where")
        for key, d in known.items():
            title = d.title + (" (proxy)" if d.proxy else "")
            table.add_row(key, title, d.normal, d.split, d.licence, d.obtain or d.path)
        return out.print(table)
    if name is None:
        raise DataError("dia data check: name a data set or a path; `dia data list` lists the known ones")
    from ..report.gather import check_data

    options = ReadOptions.of(reading.options(), size=size)
    found = check_data(name, reading.data_root, options, run=run, scores=scores, row=row)
    return output.show(found if output.json else flattened(found))


_SHOWN = 5  # entries of a list


def flattened(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested facts in one level, for a table.

    Args:
        found: facts by name, with others within.
        prefix: stands before each name.
    """
    made: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            made |= flattened(value, f"{prefix}{name} ")
        elif isinstance(value, list) and value and not isinstance(value[0], int | float):
            shown = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in value[:_SHOWN]]
            more = [f"and {len(value) - _SHOWN} more; --json shows all"] * (len(value) > _SHOWN)
            made[prefix + name] = "; ".join([*shown, *more])
        else:
            made[prefix + name] = "none" if value in ([], {}, None) else value
    return made


def methods(*, preset: Preset = "cpu", output: Output) -> None:
    """List the methods: family, paper, published weights, sizes, heatmaps, settings.

    Those of anomalib need `pip install 'dia-anomaly[peers]'`, those with a timm backbone
    `dia-anomaly[backbones]`; `trivial:` rows train nothing.

    Args:
        preset: which settings to show: cpu, gpu or paper
        output: how to print the result.

    Examples:
        dia methods
        dia methods --preset paper --json
    """
    from ..core.settings import flat, plain
    from ..detectors.presets import settings
    from ..detectors.registry import METHODS

    facts: dict[str, dict[str, Any]] = {}
    count = {}
    for name, cls in METHODS.items():
        own = settings(cls.Settings, preset)
        facts[name] = {k: getattr(cls, k) for k in ("family", "paper", "pretrained", "smallest", "extra")}
        facts[name] |= {"side": cls(own).side(), "heatmaps": cls.has_heatmaps(), "settings": plain(own)}
        count[name] = len(flat(own))
    if output.json:
        return output.show(facts)
    table = Table(
        "method", "family", "paper", "published with weights of", "smallest image", "seen at", "heatmaps",
        "settings",
    )  # fmt: skip
    for name, f in facts.items():
        table.add_row(
            name, f["family"], f["paper"] or "–", f["pretrained"] or "–", f"{f['smallest']} px",
            f"{f['side']} px" if f["side"] else "–", "yes" if f["heatmaps"] else "no", str(count[name]),
        )  # fmt: skip
    out.print(table)
    result("anomalib:NAME is any other image model of anomalib; those of the extra `peers` need it installed")
    return result("Settings with their values: --json, or dia fit --method NAME --print-config")
