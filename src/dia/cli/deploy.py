"""`dia export`, `dia push` and `dia serve`: a fitted model for others to use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..serve.limits import Limits
from .options import DataRoot, Images, Model, Output, remark, result


def export(
    run: str,
    *,
    format: str = "onnx",
    out: str | None = None,
    opset: int = 20,
    check: str | None = None,
    split: str = "test",
    normal: str | None = None,
    root: DataRoot,
    output: Output,
) -> None:
    """Export all of scoring as one file that does not need this package.

    The file takes uint8 images of any size and gives score, p-value and heatmap, including resizing, shifts,
    bank and calibration. It is compared with the model before it is kept.

    Args:
        run: a folder written by `dia fit`
        format: onnx, for onnxruntime in any language; there is no other
        out: the file to write; default: the run's name with .onnx
        opset: version of the ONNX operators, from 18
        check: further images on which the file must agree with the model, besides generated ones: a folder,
            .npz, .csv or image, or a known set's name
        split: which images of --check: train, val, test or all
        normal: which classes of --check are normal, as for `dia score`
        root: where the images of --check are.
        output: how to print the result.

    Examples:
        dia export runs/mine --out mine.onnx
        dia export runs/mine --check scans/labelled
        dia score mine.onnx scans/new --out scores.csv
    """
    if format != "onnx":
        raise DataError(f"--format {format}: not known; models are exported as ONNX alone (--format onnx)")
    from ..deploy.export import export as write
    from ..detectors import Detector

    detector = Detector.load(run, device="cpu")
    target = Path(out or f"{Path(run).resolve().name}.onnx")
    checked = Images(data=check, split=split, normal=normal, data_root=root.data_root) if check else None
    images = checked.listing_for(detector) if checked else None
    output.show(write(detector, target, opset=opset, images=images))


def push(
    run: str,
    name: str,
    *,
    public: bool = False,
    license: str | None = None,
    results: str | None = None,
    about_data: str = "",
    out: str | None = None,
) -> None:
    """Publish a model on the Hugging Face hub, with a model card and without local paths.

    A model holds features of its training images: publish it only if you may. With --out nothing leaves this
    machine.

    Args:
        run: a folder written by `dia fit`
        name: user/name on the hub; made if it does not exist
        public: make the model public; a new one is private otherwise
        license: licence of the model, as the hub names it, e.g. cc-by-4.0
        results: file with the output of `dia evaluate --json`, for the card
        about_data: description of the training data, for the card
        out: push nothing; write the files into this folder

    Examples:
        dia push runs/mine user/name --license cc-by-4.0
        dia push runs/mine user/name --out to-be-pushed  # to look at it first
    """
    from ..deploy.hub import push_to_hub, save_pretrained
    from ..detectors import Detector

    try:
        numbers = dict(json.loads(Path(results).read_text())) if results else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{results}: not a JSON object; `dia evaluate --json` prints one") from error
    detector = Detector.load(run, device="cpu")
    card: dict[str, Any] = {"license": license, "results": numbers, "data": about_data}
    if out:
        save_pretrained(detector, out, **card)
        return result(f"{out}: what would be pushed to {name}")
    try:
        return result(str(push_to_hub(detector, name, private=not public, **card)))
    except (OSError, ValueError) as error:  # huggingface_hub's own are among these
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: could not be pushed ({reason}); log in with `hf auth login`") from error


def serve(
    model: Model,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    allow_open: bool = False,
    allowed_hosts: list[str] | None = None,
    page: bool = True,
    store: str = "reviews.sqlite",
    normals: str | None = None,
    root: DataRoot,
    limits: Limits,
) -> None:
    """Open the review page and the HTTP service of a fitted model, until Ctrl-C.

    The page is at http://HOST:PORT/, the documentation of the service at /docs. Nothing is loaded from the
    network, and only this machine can reach it unless --host says otherwise. Marks and notes of the page go
    to one SQLite file (--store).

    Args:
        model: what to serve.
        host: address to listen at; default: this machine alone
        port: 0 for any that is free
        token: password of page and service; better set DIA_TOKEN, as all users of the machine can see
            arguments; default: $DIA_TOKEN, or else none
        allow_open: listen beyond this machine without a token
        allowed_hosts: further host names by which clients may call the service, such as a proxy's
        page: whether to open the page; false leaves the HTTP service alone
        store: file of the page's reviews
        normals: the training images, for neighbours and the colour scale, as a path or known set; default:
            where the model was fitted
        root: where the training images are.
        limits: limits above which requests are refused.

    Examples:
        dia serve runs/mine
        dia serve runs/mine --port 8080 --store marks.sqlite --normals scans/normal
        DIA_TOKEN=secret dia serve runs/mine --host 0.0.0.0 --page false
    """
    from ..serve.server import serve as open_service

    open_service(
        model.run, host=host, port=port, device=model.device,
        token=os.environ.get("DIA_TOKEN") if token is None else token, allow_open=allow_open,
        hosts=allowed_hosts, page=page, store=store, normals=normals, data_root=root.data_root, limits=limits,
        say=remark,
    )  # fmt: skip
