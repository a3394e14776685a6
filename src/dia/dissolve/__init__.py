"""Dissolving: a diffusion model of normal images removes fine features in one reverse step."""

from .base import DissolverSettings, Dissolving
from .controls import Control
from .dissolver import Dissolver, load_dissolver, make_dissolver
from .matching import Match, matched, removed
from .schedule import cosine_alphas_cumprod, one_step

__all__ = [
    "Control", "Dissolver", "DissolverSettings", "Dissolving", "Match", "cosine_alphas_cumprod",
    "load_dissolver", "make_dissolver", "matched", "one_step", "removed",
]  # fmt: skip
