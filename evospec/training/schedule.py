"""The learning rate over a training run."""

from __future__ import annotations

import math

_LOWEST = 0.05  # of the peak, at both ends
_WARM_STEPS = 10  # a budget of minutes may be spent on compiling: a share alone is no warm-up


def rate_factor(share: float, step: int, warmup: float) -> float:
    """Learning rate relative to its peak: linear warm-up, then half a cosine (Loshchilov, 1608.03983).

    Args:
        share: part of the budget that is spent.
        step: optimiser steps done.
        warmup: part of the budget in which the peak is reached; at least 10 steps.
    """
    warm = min(share / warmup if warmup else 1.0, step / _WARM_STEPS, 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return _LOWEST + (1 - _LOWEST) * min(warm, cosine)
