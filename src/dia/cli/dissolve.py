"""`dia dissolve` and `dia illustrate`: pictures of what dissolving does. Chooses images; trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError
from ..data.formats.mark import MARKED
from ..deploy.outputs import check_outputs
from ..report.pictures import DISSOLVE_TS, dissolved_columns, sheet
from .options import Device, Images, Model, Output, result


def dissolve(
    run: str,
    images: Images,
    *,
    t: Sequence[int] = DISSOLVE_TS,
    count: int = 8,
    out: str = "dissolved.png",
    device: Device,
) -> None:
    """Draw images dissolved at several t, side by side.

    Dissolving is one reverse step of the diffusion model from the clean image. It first removes what the
    model does not expect in a normal image, and more with larger t.

    Args:
        run: a `dia fit` folder, or any diffusers DDPM folder
        images: the images to dissolve.
        t: diffusion steps, as [50,100]
        count: number of images, evenly chosen
        out: the picture to write
        device: the device to dissolve on.

    Examples:
        dia dissolve runs/mine scans/new --out strip.png
        dia dissolve runs/mine scans/new --t [30,99,300] --count 4
        dia dissolve models/ddpm phantom  # any unconditional DDPM in the form of diffusers
    """
    from ..detectors.saving import config_of
    from ..dissolve import load_dissolver

    if not out.lower().endswith(MARKED):
        raise DataError(f"--out {out}: the name must end in {', '.join(MARKED)}")
    folder = Path(run)
    config = config_of(folder)
    shape = config.shape if config else None
    if shape and not (folder / "dissolver").is_dir():
        raise DataError(f"{folder}: no dissolver here; fit dia, or dia+ with dissolver.kind diffusion")
    dissolver = load_dissolver(folder / "dissolver" if shape else folder, device=device.device)
    size: dict[str, Any] = (
        {"size": (shape[0], shape[1]), "channels": shape[2]}
        if shape
        else {"max_size": dissolver.settings.size}
    )
    read = images.read(config.facts if config else None, **size)
    index = np.unique(np.linspace(0, len(read) - 1, count).round().astype(int))
    chosen = read.subset(index)
    sheet(Path(out), dissolved_columns(dissolver, chosen.images, t), list(chosen.names))
    Output().show({"out": out, "images": len(chosen), "t": t})


def illustrate(
    model: Model,
    images: Images,
    *,
    out: str = "pictures",
    t: Sequence[int] = DISSOLVE_TS,
    count: int = 4,
    seed: int = 0,
    format: Literal["png", "svg"] = "png",
) -> None:
    """Draw figures of the method on your images.

    The figures show images dissolved at several t and how much is removed at each t. With an encoder (dia)
    they also show the target matrix of the loss, and similarities before and after training. The model needs
    a dissolver (dia, or dia+ with --settings.dissolver.kind diffusion), and the images need labels.

    Args:
        model: the model to draw.
        images: the images to draw it on.
        out: folder of the figures
        t: diffusion steps, as [50,100]
        count: images of each kind in the strips
        seed: decides which images are chosen
        format: file format of the figures

    Examples:
        dia illustrate runs/mine scans
        dia illustrate runs/mine scans/labelled --normal good --split all --out pictures --format svg
    """
    from ..report import method_figures

    for name in method_figures.FIGURES:
        check_outputs({"--out": str(Path(out, f"{name}.{'png' if name == 'strips' else format}"))}, [])
    detector = model.load()
    labelled = images.read_for(detector)
    for path in method_figures.illustrate(
        Path(out), detector, labelled, ts=t, count=count, seed=seed, form=format
    ):
        result(str(path))
