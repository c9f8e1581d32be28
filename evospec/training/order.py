"""The order in which documents are trained on: endless, random, and the same after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from evospec.training.corpus import length_batches


@dataclass(frozen=True, slots=True)
class Position:
    """The batch to come: its epoch, and its number in that epoch."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """Document indices of one batch, and the position after it."""

    documents: np.ndarray
    following: Position


def batches_from(
    position: Position, lengths: np.ndarray, tokens_per_batch: int, seed: int
) -> Iterator[Serving]:
    """Batches from a position on, without end. Each epoch has a random order of its own, which
    depends on nothing but `seed` and the epoch's number."""
    for epoch in count(position.epoch):
        batches = list(length_batches(lengths, tokens_per_batch, np.random.default_rng((seed, epoch))))
        first = position.batch if epoch == position.epoch else 0
        for number in range(first, len(batches)):
            yield Serving(batches[number], Position(epoch, number + 1))
