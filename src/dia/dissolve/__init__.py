"""Dissolving: a diffusion model of normal images removes fine features in one reverse step."""

from .dissolver import Dissolver, DissolverSettings
from .schedule import cosine_alphas_cumprod, one_step

__all__ = ["Dissolver", "DissolverSettings", "cosine_alphas_cumprod", "one_step"]
