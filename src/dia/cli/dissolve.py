"""`dia dissolve` and `dia illustrate`: pictures of what dissolving does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError
from ..report.pictures import DISSOLVE_TS, sheet
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

    Dissolving is one reverse step of the diffusion model from the clean image: what the model does not expect
    of a normal image goes first, and more of it with larger t.

    Args:
        run: a `dia fit` folder, or any diffusers DDPM folder
        images: what to dissolve.
        t: diffusion steps, as [50,100]
        count: how many images, evenly chosen
        out: the picture to write
        device: where to dissolve.

    Examples:
        dia dissolve runs/mine scans/new --out strip.png
        dia dissolve runs/mine scans/new --t [30,99,300] --count 4
        dia dissolve models/ddpm phantom  # any unconditional DDPM in the form of diffusers
    """
    from ..detectors.base import FORMAT
    from ..detectors.saving import config_of
    from ..dissolve import load_dissolver

    folder = Path(run)
    config = config_of(folder, FORMAT)
    shape = config.get("shape")
    if shape and not (folder / "dissolver").is_dir():
        raise DataError(f"{folder}: this method has no dissolver; fit dia or dia+")
    dissolver = load_dissolver(folder / "dissolver" if shape else folder, device=device.device)
    size: dict[str, Any] = (
        {"size": (shape[0], shape[1]), "channels": shape[2]}
        if shape
        else {"max_size": dissolver.settings.size}
    )
    read = images.read(config.get("facts"), **size)
    index = np.unique(np.linspace(0, len(read) - 1, count).round().astype(int))
    chosen = read.subset(index)
    dissolved = dissolver.dissolve(chosen.images, t)
    columns = [("image", chosen.images), *((f"t = {s}", d) for s, d in zip(t, dissolved, strict=True))]
    sheet(Path(out), columns, list(chosen.names))
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
    """Draw pictures of the method on your images.

    Images dissolved at several t, what is lost over t; and with an encoder (dia) the target matrix of the
    loss, and similarities before and after training. Needs a model with a dissolver (dia, dia+) and labelled
    images.

    Args:
        model: what to draw.
        images: what to draw it on.
        out: folder of the pictures
        t: diffusion steps, as [50,100]
        count: images of each kind in the strips
        seed: decides which images are chosen
        format: file format of the figures

    Examples:
        dia illustrate runs/mine scans
        dia illustrate runs/mine scans/labelled --normal good --split all --out pictures --format svg
    """
    from ..report.method_figures import illustrate as draw

    detector = model.load()
    for path in draw(
        Path(out), detector, images.read_for(detector), ts=t, count=count, seed=seed, form=format
    ):
        result(str(path))
