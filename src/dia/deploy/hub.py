"""Models on the Hugging Face hub: saved, pushed, fetched, and their model card.

What is fetched is JSON and safetensors, and is read by `Detector.load`: no code and no pickle. What is pushed
says how a model was made, but not from which files: paths, names of folders and classes stay here. Knows
model folders; knows no method.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from ..core.errors import DataError
from ..core.modelfiles import write_sums
from ..data.datasets import CATALOG
from ..detectors import Detector
from ..detectors.saving import identity_of

T = TypeVar("T", bound=Detector)

FETCHED = ["*.json", "*.safetensors"]
PUBLIC_FACTS = ("preset", "train_sha256", "versions", "commit", "device", "cpu_count", "adapted")
ELSEWHERE = "a local file"  # stands for a path
_TELLS_NO_PATH = re.compile(r"none|imagenet|sha256:[0-9a-f]+|dia:[0-9a-f]{16}(-\d+-[0-9a-f]+)?")


def from_pretrained(
    name: str | Path,
    *,
    cls: type[T] = Detector,
    device: str = "auto",
    revision: str | None = None,
    force_download: bool = False,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> T:
    """The detector in a folder, or under a name on the hub. Runs no code from there.

    Args:
        name: a folder of `dia fit` or `save_pretrained`, or "user/name".
        cls: the method it must be of, such as `DIAPlus`; `Detector` takes any method.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        revision: branch, tag or commit; the newest of `main` where None.
        force_download: also what is in the cache already.
        cache_dir: huggingface_hub's own where None.
        local_files_only: ask no hub; take what is in the cache.
        token: of private models; the one of `hf auth login` where None.

    Returns:
        The fitted detector.

    Raises:
        DataError: no such model, one that cannot be read, or of another method.
    """
    folder = Path(name)
    try:
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    str(name),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=FETCHED,
                )
            )
    except Exception as error:  # of the hub, or of a name that cannot be one
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: neither a model folder nor to be had from the hub ({reason})") from error
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
    """Writes what `push_to_hub` would push: look at it first.

    Args:
        detector: fitted.
        folder: to write to; made where there is none.
        license: of the model, as the hub names it; it is yours to choose, and left out where None.
        results: what was measured, by name, such as `dia evaluate --json` prints; left out where None.
            Its `dataset` is told where it is a known set's name.
        data: what the model was trained on, in your words; without, the card does not say.

    Returns:
        The folder.

    Raises:
        DataError: the detector is not fitted.
    """
    card = {"license": license, "results": results, "data": data}
    _Shown(detector).save_pretrained(folder, model_card_kwargs=card)
    return Path(folder)


def push_to_hub(
    detector: Detector,
    name: str,
    *,
    license: str | None = None,
    results: Mapping[str, Any] | None = None,
    data: str = "",
    **options: Any,
) -> str:
    """Pushes a model with its card to the hub.

    Args:
        detector: fitted.
        name: "user/name" on the hub.
        license: as for `save_pretrained`.
        results: as for `save_pretrained`.
        data: as for `save_pretrained`.
        options: of huggingface_hub's `ModelHubMixin.push_to_hub`: `private`, `token`, `branch`,
            `commit_message`, `create_pr`.

    Returns:
        Where it is.

    Raises:
        DataError: the detector is not fitted.
    """
    card = {"license": license, "results": results, "data": data}
    return str(_Shown(detector).push_to_hub(name, model_card_kwargs=card, **options))


class _Shown(ModelHubMixin):
    """A detector as huggingface_hub's own mixin saves and pushes it."""

    def __new__(cls, *_: Any, **__: Any) -> Self:  # the mixin's would keep a copy of the arguments
        return object.__new__(cls)

    def __init__(self, detector: Detector):
        self.detector = detector

    def _save_pretrained(self, save_directory: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            saved = self.detector.save(Path(temporary) / "model")
            (saved / "card.md").unlink()  # README.md takes its place
            files = sorted(p for p in saved.rglob("*") if p.is_file())
            for file in files:
                target = save_directory / file.relative_to(saved)
                target.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".json":
                    target.write_text(json.dumps(public(json.loads(file.read_text())), indent=2))
                else:
                    target.write_bytes(file.read_bytes())
            write_sums(save_directory, [p.relative_to(saved).as_posix() for p in files])

    def generate_model_card(
        self, *, license: str | None, results: Mapping[str, Any] | None, data: str
    ) -> ModelCard:
        """The model card, YAML head included; see `save_pretrained`."""
        method = self.detector.method.replace(":", "-")
        head = ModelCardData(
            library_name="dia-anomaly",
            tags=["anomaly-detection", "one-class", "medical-imaging", method],
            license=license,
            pipeline_tag="image-classification",  # the nearest the hub has: none is for anomalies
        )
        return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{_card(self.detector, results or {}, data)}")


def public(config: Any, key: str = "") -> Any:
    """A saved configuration without what tells of the machine or the files it was made from.

    Of `facts` only those remain that name no file. Weights that were read from a file or run are told by what
    they are (sha256), other paths replaced by a word.
    """
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k != "_name_or_path"}  # diffusers' own, of where it lay
        if key == "facts":
            kept = {k: v for k, v in kept.items() if k in PUBLIC_FACTS}
        return {k: public(v, k) for k, v in kept.items()}
    if isinstance(config, list):
        return [public(v, key) for v in config]
    if not isinstance(config, str) or not config:
        return config
    if key == "weights":
        known = identity_of(config)
        return known if known != config or _TELLS_NO_PATH.fullmatch(known) else ELSEWHERE
    path = Path(config).expanduser()
    local = path.is_absolute() or "\\" in config or (len(path.parts) > 1 and path.exists())
    return ELSEWHERE if key == "pretrained" or local else config


def _card(of: Any, results: Mapping[str, Any], data: str) -> str:
    h, w, c = of.shape_
    facts = public(of.facts_, "facts")
    weights = public(of.s.weights, "weights") if hasattr(of.s, "weights") else "none: trained from scratch"
    smallest = 1 / (of.n_calibration_ + 1)
    rows = {
        "method": f"`{of.method}`" + (f" ({of.paper})" if of.paper else ""),
        "trained on": f"{of.n_train_} images taken to be normal, and no others" + (f": {data}" * bool(data)),
        "images": f"{h}×{w} pixels, {'grey' if c == 1 else 'RGB'}, uint8",
        "first weights": weights,
        "calibrated on": f"{of.n_calibration_} further normals",
        "threshold": f"{of.threshold():.6g}, for a false-alarm rate of {of.false_alarm_rate:g}",
        "heatmaps": "yes" if of.has_heatmaps() else "no",
        "seed": of.seed,
        "settings hash": f"`{of.settings_hash()}`",
        **{k: facts[k] for k in ("preset", "commit") if facts.get(k)},
        "versions": ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items()),
    }
    text = f"""# {of.method}: a one-class detector of anomalous images

Made with [DIA](https://pypi.org/project/dia-anomaly/) from normal images only. It gives each image a score,
higher where it is less like them, and a p-value from normals held out of training.

**For research. It is not a medical device, and was not validated for any use on patients.**

| | |
|---|---|
{"".join(f"| {k} | {v} |{chr(10)}" for k, v in rows.items() if v != "")}
## How to load it

```python
from dia.deploy.hub import from_pretrained

detector = from_pretrained("USER/NAME")  # reads JSON and safetensors; runs no code from here
scores = detector.score(images)  # (N, {h}, {w}, {c}) uint8; higher = more anomalous
p_values = detector.p_values(scores)
flagged = scores > detector.threshold(false_alarm_rate=0.05)
```

`pip install dia-anomaly` first. `dia.data.readers.read(folder, size=({h}, {w}), channels={c})` reads images
as the model wants them. All its settings are in `config.json`.

"""
    told = "".join(
        f"| {k} | {_told(public(v, k))} |\n"
        for k, v in results.items()
        if k != "dataset" or v in CATALOG  # else it is a path
    )
    if told:
        text += f"## Results\n\nAs given by those who made the model:\n\n| | |\n|---|---|\n{told}\n"
    return (
        text
        + f"""## Limits

- It knows the images it was trained on: another scanner, resolution, crop or population shifts all scores.
  Calibrate anew on normals of your own before you trust a p-value.
- p-values hold for images drawn as the {of.n_calibration_} held-out normals were; none is smaller than
  {smallest:.3g}. A false-alarm rate says nothing of how many anomalies are missed.
- A low score is no proof of health: what is found is what differs from the normals in a way the method sees.
- The weights may hold features of training images, and those of the rows `trivial:pixels` small copies of
  them. Whoever publishes a model publishes these.
"""
    )


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " – ".join(_told(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
