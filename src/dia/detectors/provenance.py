"""What weights are, wherever they lie. Knows files only, and no network.

A run's identity holds its weights by what they are: two copies of a file are the same weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

OWN = "dia:"  # before the folder of a fitted csi or dia, whose encoder is meant


def identity_of(weights: str) -> str:
    """What weights are, wherever they lie: a file by its sha256, `dia:RUN` by how the run was made.

    What is no longer there keeps its name.
    """
    if weights in ("none", "imagenet"):
        return weights
    path = Path(weights.removeprefix(OWN))
    if not weights.startswith(OWN):
        return f"sha256:{sha256_of(path)}" if path.is_file() else weights
    try:
        config = json.loads((path / "config.json").read_text())
        return own_identity(config["settings_hash"], config["seed"], config["facts"]["train_sha256"])
    except (OSError, ValueError, KeyError):  # not there, or fitted without such facts
        file = path / "weights.safetensors"
        return f"{OWN}{sha256_of(file)}" if file.is_file() else weights


def own_identity(settings_hash: str, seed: int, train_sha256: str) -> str:
    """`identity_of` a `dia:RUN` with these settings, this seed and these training images."""
    return f"{OWN}{settings_hash}-{seed}-{train_sha256[:32]}"


def sha256_of(file: Path) -> str:
    """Sixteen hex digits of a file's sha256."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]
