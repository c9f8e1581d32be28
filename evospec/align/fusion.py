"""The fusion of target features is trained in units of its own columns."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def column_scale(weight: Tensor) -> Tensor:
    """Norm of each column of a weight [out, in], by their root mean square [in], to the nearest power of two,
    so that scaling and its inverse lose nothing; never 0.

    Raw hidden states have a few dimensions orders of magnitude above the rest, and a trained fusion
    has columns as much smaller there. An optimiser like Adam moves every entry by about the same: without
    this scale it would see little but those dimensions, and overshoot in them.
    """
    norms = weight.float().norm(dim=0)
    typical = norms.pow(2).mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return (norms / typical).clamp(min=1e-4).log2().round().exp2().to(weight.dtype)
