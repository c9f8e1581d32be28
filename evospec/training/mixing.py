"""Mixing sources by weight: the larger ones are cut down, nothing is repeated.

A source with weight w_i gets the share w_i / Σw of the corpus' tokens. The corpus
is the largest that has these shares without a document in it twice, so the source
with the fewest tokens for its weight is kept whole:

    unit = min_i amount_i / w_i,    kept_i = unit · w_i

Cutting was chosen over a weight per document: a trainer then needs no sampler, an
epoch is each document once, and counts over the corpus (core ranks) are weighed too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def weighted_amounts(amounts: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How much to keep of each source.

    Where no source has a weight, everything is kept; where one has, the others weigh 1.
    A source without anything takes no part.

    Example: amounts 100, 300, 50 with weights 1, 1, None: 50, 50, 50.
    """
    if all(weight is None for weight in weights):
        return list(amounts)
    filled = [1.0 if weight is None else weight for weight in weights]
    units = [amount / weight for amount, weight in zip(amounts, filled, strict=True) if amount]
    unit = min(units, default=0.0)
    return [
        min(amount, round(unit * weight)) if amount else 0
        for amount, weight in zip(amounts, filled, strict=True)
    ]


def choose_documents(lengths: np.ndarray, amount: int, rng: np.random.Generator) -> np.ndarray:
    """Which of some documents to keep so that their `lengths` [documents] add up to about `amount`.

    Returns:
        bool [documents]: a random choice of at most `amount` tokens, short of it by less
        than the longest document; at least one document.
    """
    if int(lengths.sum()) <= amount:
        return np.ones(len(lengths), dtype=bool)
    order = rng.permutation(len(lengths))
    count = int(np.searchsorted(np.cumsum(lengths[order]), amount, side="right"))
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[order[: max(count, 1)]] = True
    return chosen
