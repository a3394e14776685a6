"""What methods marked in test images: pictures of a few, chosen by a rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pictures:
    """Pictures."""
