"""Models on the Hugging Face hub: writes, pushes and fetches them.

Only JSON and safetensors are fetched, and `Detector.load` reads them: no code and no pickle. A pushed model
says how it was made, but not from which files: paths and names of folders and classes are taken out. Knows
model folders; knows no method.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelCardData, snapshot_download

from ..core.errors import DataError
from ..core.modelfiles import write_sums
from ..data.datasets import CATALOG
from ..data.options import KEPT
from ..detectors import Detector
from ..detectors.saving import DIGESTS, REPLACED, fitted, identity_of
from ..detectors.teaching.taught import FILE as TAUGHT

T = TypeVar("T", bound=Detector)

_FETCHED = ["*.json", "*.safetensors"]
_PUBLIC_FACTS = (
    *("preset", "train_sha256", "versions", "commit", "device", "cpu_count", "adapted", "calibrated"),
    "taught",
    *("read", "range"),  # without them other images than the model's own would be read for it
)
_PRIVATE = {"taught": ("readers", "watch"), "calibrated": ("on",)}  # readers are people, and images lie there
# files that not every model has: those of an earlier one in the same place would be taken for this one's
_OPTIONAL = ("heatmaps.json", DIGESTS, TAUGHT, *map(fitted, REPLACED))
_LOCAL = "a local file"  # replaces a path
_TELLS_NO_PATH = re.compile(r"none|imagenet|sha256:[0-9a-f]+|dia:[0-9a-f]{16}(-\d+-[0-9a-f]+)?")


def from_pretrained(
    name: str | Path,
    *,
    cls: type[T] = Detector,
    device: str = "auto",
    revision: str | None = None,
    **options: Any,
) -> T:
    """Loads a detector from a folder or from the hub. Runs no code from there.

    Args:
        name: a folder that `dia fit` or `save_pretrained` wrote, or "user/name" on the hub.
        cls: the class that the model must have, such as `DIAPlus`; `Detector` takes any method.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        revision: a branch, tag or commit; the newest commit of `main` where None.
        options: further arguments of `huggingface_hub.snapshot_download`, such as `cache_dir`, `token`,
            `force_download` and `local_files_only`.

    Returns:
        The fitted detector.

    Raises:
        DataError: the model does not exist, cannot be read, or has another method.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=_FETCHED, **options))
        except Exception as error:  # the hub has many, and the name may be impossible
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{name}: neither a model folder nor to be had from the hub ({reason})"
            ) from error
    made: Any = Detector.load(folder, device=device)
    wanted = getattr(cls, "method", made.method)
    if made.method != wanted:
        raise DataError(f"{name}: holds {made.method}, not {wanted}; leave cls out to take any method")
    return made


def save_pretrained(
    detector: Detector,
    folder: str | Path,
    *,
    license: str | None = None,
    results: Mapping[str, Any] | None = None,
    data: str = "",
) -> Path:
    """Writes what `push_to_hub` would push, so that you can look at it first.

    Args:
        detector: a fitted detector.
        folder: where to write; it is made if it does not exist. A model in it is replaced.
        license: the model's licence, by the hub's name for it; the card names none where None.
        results: measured values by name, such as `dia evaluate --json` prints. A `dataset` is left out unless
            it is the name of a known set, because it may be a path.
        data: a description of the training images for the card.

    Returns:
        The folder.

    Raises:
        DataError: the detector is not fitted.
    """
    head = ModelCardData(
        library_name="dia-anomaly",
        tags=["anomaly-detection", "one-class", "medical-imaging", detector.method.replace(":", "-")],
        license=license,
        pipeline_tag="image-classification",  # the hub has no tag for anomaly detection
    )
    with tempfile.TemporaryDirectory() as temporary:
        shown = copy.copy(detector)
        if taught := getattr(detector, "facts_", {}).get("taught"):
            shown.facts_ = {**detector.facts_, "taught": public(taught, "taught")}
        saved = shown.save(Path(temporary) / "model")
        for file in saved.rglob("*.json"):
            file.write_text(json.dumps(public(json.loads(file.read_text())), indent=2))
        write_sums(saved)
        card = (saved / "card.md").rename(saved / "README.md")
        text = f"---\n{head.to_yaml()}\n---\n\n{card.read_text()}{_details(detector, results or {}, data)}"
        card.write_text(text, encoding="utf-8")
        for name in _OPTIONAL:
            Path(folder, name).unlink(missing_ok=True)
        return Path(shutil.copytree(saved, folder, dirs_exist_ok=True))


def push_to_hub(
    detector: Detector,
    name: str,
    *,
    license: str | None = None,
    results: Mapping[str, Any] | None = None,
    data: str = "",
    private: bool | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> str:
    """Pushes a model with its card to the hub, in the place of one that is there.

    Args:
        detector: a fitted detector.
        name: "user/name" on the hub.
        license: as for `save_pretrained`.
        results: as for `save_pretrained`.
        data: as for `save_pretrained`.
        private: whether a new repository is private; the account's default where None.
        token: a token that may write; the one of `hf auth login` where None.
        options: further arguments of `huggingface_hub.HfApi.upload_folder`, such as `commit_message`,
            `revision` (the branch) and `create_pr`; `delete_patterns` are by default what an earlier model
            may have there and this one has not.

    Returns:
        The address of the commit.

    Raises:
        DataError: the detector is not fitted.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(detector, folder, license=license, results=results, data=data)
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        options = {"delete_patterns": [*_OPTIONAL], **options}
        return str(api.upload_folder(repo_id=name, folder_path=folder, **options))


def public(config: Any, key: str = "") -> Any:
    """Removes from a saved configuration what names files of this machine.

    Args:
        config: a value of a model folder's JSON: an object, a list, a text or a number.
        key: the name under which it stands. `facts` keep only those that name no file, and of `read` how
            pixels are read; `weights` from a file or run become their sha256; other paths become "a local
            file".

    Returns:
        The configuration to publish.
    """
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k != "_name_or_path"}  # diffusers' own, of where it lay
        if key == "facts":
            kept = {k: v for k, v in kept.items() if k in _PUBLIC_FACTS}
            if isinstance(read := kept.pop("read", None), dict) and read:
                # no levels, in a model of 0.1, have a rule of their own
                kept["read"] = {"levels": "earlier"} | {k: v for k, v in read.items() if k in KEPT}
        kept = {k: v for k, v in kept.items() if k not in _PRIVATE.get(key, ())}
        return {k: public(v, k) for k, v in kept.items()}
    if isinstance(config, list):
        return [public(v, key) for v in config]
    if not isinstance(config, str) or not config:
        return config
    if key == "weights":
        known = identity_of(config)
        return known if known != config or _TELLS_NO_PATH.fullmatch(known) else _LOCAL
    path = Path(config).expanduser()
    local = path.is_absolute() or "\\" in config or (len(path.parts) > 1 and path.exists())
    return _LOCAL if key == "pretrained" or local else config


def _details(detector: Detector, results: Mapping[str, Any], data: str) -> str:
    """The part of the hub's card that follows the model folder's own card."""
    known = {
        "training images": data,
        "threshold": f"{detector.threshold():.6g} (false-alarm rate {detector.false_alarm_rate:g})",
        "settings hash": f"`{detector.settings_hash()}`",
    }
    measured = {  # a set that is not in the catalogue is a path
        k: _shown(public(v, k)) for k, v in results.items() if k != "dataset" or v in CATALOG
    }
    h, w, c = detector.shape_
    rows = "\n".join(f"| {k} | {v} |" for k, v in (known | measured).items() if v)
    return f"""
| | |
|---|---|
{rows}

```python
from dia.deploy.hub import from_pretrained  # pip install dia-anomaly

detector = from_pretrained("USER/NAME")  # reads JSON and safetensors and runs no code
scores = detector.score(images)  # images: (N, {h}, {w}, {c}) uint8; higher = more anomalous
p_values = detector.p_values(scores)  # valid for images like the training images alone
flagged = scores > detector.threshold(false_alarm_rate=0.05)
```
"""


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " – ".join(_shown(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
