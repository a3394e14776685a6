"""The fine-grained contrastive loss, as pure functions of projections. Knows neither images nor networks.

Source: "Dissolving Is Amplifying", ECCV 2024 (target-similarity matrix of its poster); NT-Xent of
SimCLR with the shifted instances of CSI; SimSiam: Chen and He, CVPR 2021, eqs. 1 and 2. Rows are ordered
(view, shift, image): row (v·K + k)·B + i. Views 0 and 1 are plain, view 2, if present, is dissolved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def targets(batch: int, shifts: int, views: int = 3, exclude_own: bool = True) -> tuple[Tensor, Tensor]:
    """Which row each anchor is pulled to, and which rows it does not see.

    Args:
        batch: B images.
        shifts: K shifted instances of each.
        views: 3 with dissolved views, 2 without (CSI).
        exclude_own: leave each anchor's own dissolved copy at the same shift out of its denominator
            (the released default); otherwise that copy is a negative like the other dissolved rows.

    Returns:
        `positive` `(2·K·B,)`, the row of each anchor's other plain view at the same shift; and
        `excluded` `(2·K·B, views·K·B)`, True where a row is not in the denominator. The anchors are
        the undissolved rows; every row neither excluded nor positive is a negative.
    """
    m = shifts * batch
    anchors, rows = torch.arange(2 * m), torch.arange(views * m)
    positive = (anchors + m) % (2 * m)
    same = anchors[:, None] % m == rows[None] % m  # same image at the same shift
    excluded = anchors[:, None] == rows[None]
    if exclude_own:
        excluded = excluded | (same & (rows >= 2 * m)[None])
    return positive, excluded


def contrastive_loss(z: Tensor, positive: Tensor, excluded: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent over the anchors, summed and divided by the number of rows, dissolved ones included.

    −1/R · Σ_a log( exp(s_{a,pos(a)}/τ) / Σ_{r not excluded} exp(s_{a,r}/τ) ), s the cosine similarity.

    Args:
        z: projections `(R, D)`, R = views·K·B, not normalised.
        positive: the row each of A anchors is pulled to, `(A,)` int64; the anchors are the first A rows.
        excluded: True where a row is not in an anchor's denominator, `(A, R)`; both are of `targets`.
        temperature: τ, above 0.

    Returns:
        The loss, a scalar.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # one image, no shifts, two plain views alike
        >>> contrastive_loss(z, *targets(batch=1, shifts=1, views=2)).item()
        0.0
    """
    z = F.normalize(z.float(), dim=1)
    similarity = z[: len(positive)] @ z.T / temperature  # (A, R)
    logits = similarity.masked_fill(excluded, -torch.inf)
    return F.cross_entropy(logits, positive, reduction="sum") / len(z)


def simsiam_loss(p: Tensor, z: Tensor, views: int = 3) -> Tensor:
    """The SimSiam term: −cos(p_v, stop-gradient z_w) over all ordered pairs of views v ≠ w, its mean.

    Args:
        p: predictions `(views·M, D)` from the projections of all views, row v·M + r of view v.
        z: the projections themselves, same shape; no gradient is taken of them.
        views: 3 with dissolved views, 2 without.

    Returns:
        A scalar in [−1, 1].
    """
    p, z = p.float(), z.detach().float()
    others = [z.roll(v * len(z) // views, 0) for v in range(1, views)]
    return -torch.stack([F.cosine_similarity(p, other, dim=1).mean() for other in others]).mean()
