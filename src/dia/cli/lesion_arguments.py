"""The arguments of the commands that paste lesions, `dia stress` and `dia select`. Parses only."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ActionConfigFile

from .help import ArgumentParser, examples
from .shared_arguments import data_arguments, device_argument, json_argument, rate_argument, run_arguments

KINDS = "nodule, intensity, streak, texture, haze, blur, missing, displaced"


def stress_parser() -> ArgumentParser:
    """Of `dia stress`."""
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
    run_arguments(stress)
    data_arguments(stress, "train")
    stress.add_argument("--kinds", type=list[str] | None, help=f"of lesions, as [a,b] (default: {KINDS})")
    stress.add_argument(
        "--sizes", type=list[float], default=[0.08, 0.16, 0.32],
        help="diameters, as shares of the image's shorter side",
    )  # fmt: skip
    stress.add_argument(
        "--contrasts", type=list[float], default=[0.1, 0.2, 0.4, 0.8],
        help="of what is added, as a share of the image's grey range; of what is replaced, how much of it",
    )  # fmt: skip
    rate_argument(stress)
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
    json_argument(stress)
    return stress


def select_parser() -> ArgumentParser:
    """Of `dia select`."""
    select = ArgumentParser(
        description="""Choose method, preset, settings and fusion without labels, by pasted lesions.

            The normals are split: each candidate is fitted on a part, told apart by lesions pasted into
            another, and the choice is judged on a third that had no part in it. Shown are the lesion AUROC
            of each candidate with its interval over the splits, which of them cannot be told from the
            first, and what the choice is worth.

            Lesions are no disease. Within one family of methods this is a weak guide; across families it
            misleads. What was measured is kept in --work; the same command goes on.""",
        epilog=examples(
            "dia select scans/normal --methods [trivial:hog,trivial:blur,trivial:statistics] --fuse 2",
            "dia select scans/normal --methods [csi] --vary '{csi: {amplify.steps: [60, 180, 540]}}'",
            "dia select pneumoniamnist --data_root data --methods [csi,dia,dia+] --presets [cpu,gpu]",
        ),
    )
    select.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    data_arguments(select, "train")
    select.add_argument(
        "--methods", type=list[str],
        default=["trivial:hog", "trivial:statistics", "trivial:blur", "csi", "dia+"],
        help="names of `dia methods`, as [a,b]",
    )  # fmt: skip
    select.add_argument("--presets", type=list[str], default=["cpu"], help="of each method: cpu, gpu, paper")
    select.add_argument(
        "--vary", type=dict[str, dict[str, list[Any]]], default={},
        help="values of a method's settings to try, all combinations, as '{csi: {amplify.steps: [60, 180]}}'",
    )  # fmt: skip
    select.add_argument(
        "--fuse", type=int, default=0,
        help="also try fusions of up to so many candidates, by their conformal p-values; costs no fit",
    )  # fmt: skip
    select.add_argument("--splits", type=int, default=3, help="1 to 5; each fits every candidate once")
    select.add_argument("--seed", type=int, default=0, help="of splits, detectors and lesions")
    select.add_argument("--size", type=int | None, help="read images as squares of this side, as `dia fit`")
    select.add_argument("--channels", type=int | None, help="1 or 3 (default: as the images are)")
    device_argument(select)
    select.add_argument("--work", type=str, default=".work", help="keeps what is finished; safe to delete")
    select.add_argument("--out", type=str, default="selection.json", help="file of results")
    json_argument(select)
    return select
