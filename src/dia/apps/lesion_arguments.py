"""The arguments of the commands that paste lesions, `dia stress` and `dia select`. Parses only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from .helptext import ArgumentParser, examples

KINDS = "nodule, intensity, streak, texture, haze, blur, missing, displaced"
Shared = Callable[..., None]


def stress_parser(run: Shared, data: Shared, as_json: Shared) -> ArgumentParser:
    """Of `dia stress`; takes the functions that add what all commands share."""
    stress = ArgumentParser(
        description="""Measure how fine a model sees: paste lesions into normal images, count those flagged.

            Lesions of eight kinds, in several sizes and contrasts, go into normal images the model did not
            train on. Give the images it was fitted on, and its held-out part is taken; or any other normals
            of the same kind. Shown are the share found at the calibrated threshold, with 95 % intervals,
            and the smallest lesion found in 80 % of the images. `dia report` shows it too.

            What was measured is kept: the same command goes on where it was stopped, and more sizes or
            contrasts are added to what is there.

            The lesions are synthetic: this says what the model sees, not what disease looks like.""",
        epilog=examples(
            "dia stress runs/mine scans/normal",
            "dia stress runs/mine scans/other --false_alarm_rate 0.01 --localise",
            "dia stress runs/mine scans/normal --kinds [nodule,haze] --sizes [0.1,0.2,0.4]",
        ),
    )
    run(stress)
    data(stress, "train")
    stress.add_argument("--kinds", type=list[str] | None, help=f"of lesions, as [a,b] (default: {KINDS})")
    stress.add_argument(
        "--sizes", type=list[float], default=[0.08, 0.16, 0.32],
        help="diameters, as shares of the image's shorter side",
    )  # fmt: skip
    stress.add_argument(
        "--contrasts", type=list[float], default=[0.1, 0.2, 0.4, 0.8],
        help="of what is added, as a share of the image's grey range; of what is replaced, how much of it",
    )  # fmt: skip
    stress.add_argument(
        "--false_alarm_rate", type=float | None,
        help="share of normal images to flag at most, on average (default: the one given to `dia fit`)",
    )  # fmt: skip
    stress.add_argument(
        "--localise", action="store_true", help="also whether heatmaps point at the lesions; twice the time"
    )
    stress.add_argument("--images", type=int, default=200, help="normals to paste into at most; 0 for all")
    stress.add_argument("--seed", type=int, default=0, help="of the lesions' places and forms")
    stress.add_argument(
        "--out", type=str | None,
        help="the file of results; pictures go beside it (default: stress.json in RUN, where `dia report` "
        "finds it)",
    )  # fmt: skip
    stress.add_argument("--format", type=Literal["png", "svg"], default="png", help="of the figure")
    stress.add_argument("--overwrite", action="store_true", help="replace a different test in --out")
    as_json(stress)
    return stress
