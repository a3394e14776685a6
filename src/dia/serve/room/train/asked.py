"""What the page may ask for: the methods to choose from, and the bodies of its requests.

Knows names and limits; imports no method, and so no torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

OF: dict[str, dict[int | str, dict[str, Any]]] = {
    kind: {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}
    for kind in ("image/jpeg", "text/html")
}  # answers that are no JSON, for the description
METHODS: dict[str, tuple[str, str]] = {  # of this package that need no weights from elsewhere: line, warning
    "dia+": ("Compares with all normals in the features of a pretrained network; minutes. The default.", ""),
    "dia": (
        "The published method: learns to dissolve fine structure, then what is left of normals.",
        "Trains two networks: without a GPU at least ten minutes, and hours for many or large images. "
        "No heatmaps.",
    ),
    "csi": (
        "Contrastive learning without dissolving; a baseline to compare with.",
        "Trains a network: without a GPU minutes, and hours for many or large images. No heatmaps.",
    ),
}


class CheckAsked(BaseModel):
    """What is to be looked at: a drop, a set, or once more what the session has.

    Args:
        drop: id of a drop.
        data: name of a set.
        folders: those that hold normals; all that do not say otherwise where None.
        patients: whether each folder is one patient's.
        method: that will be trained.
        rate: of false alarms.
    """

    model_config = ConfigDict(extra="forbid")
    drop: str | None = Field(None, max_length=100)
    data: str | None = Field(None, max_length=300)
    folders: list[str] | None = Field(None, max_length=5000)
    patients: bool = False
    method: str = Field("dia+", max_length=100)
    rate: float = Field(0.05, gt=0, lt=1)


class StartAsked(BaseModel):
    """The training of what was checked.

    Args:
        name: of the run.
        drop: the drop that was checked.
        data: or the set.
        method: as it was checked for.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=100)
    drop: str | None = Field(None, max_length=100)
    data: str | None = Field(None, max_length=300)
    method: str | None = Field(None, max_length=100)


class RunAsked(BaseModel):
    """A run.

    Args:
        run: its name.
    """

    model_config = ConfigDict(extra="forbid")
    run: str = Field(max_length=100)


def methods() -> list[dict[str, str]]:
    """Returns the methods that can be trained here: this package's, and those that plug-ins brought."""
    from ....detectors import registry

    own = [{"name": n, "line": line, "warning": warning} for n, (line, warning) in METHODS.items()]
    others = [n for n in registry.METHODS if n not in registry._BUILT_IN]
    return own + [{"name": n, "line": "A method of a plug-in.", "warning": ""} for n in others]
