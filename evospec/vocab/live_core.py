"""The core of a whole cluster: token frequencies of live traffic, beside those that the drafter brought."""

from __future__ import annotations

import numpy as np

_PRIOR = 1_000_000.0  # tokens of live traffic that weigh as much as ranks do: about a half-life of them
_HALF_LIFE = 1_000_000.0  # tokens after which a count has halved


class LiveCore:
    """Counts the target's tokens, forgets slowly, and ranks them.

    Ranks say only in which order tokens are frequent: they count as `_PRIOR` tokens that follow Zipf's
    law, so that a core changes only as far as traffic has spoken. The values are ours. Counts are of
    all tenants together: a core shows, in what is drafted fast, which tokens are common in the cluster.

    Args:
        ranks: token ids by falling frequency, distinct; tokens that it leaves out count as never seen.
        size: how many `ranks()` gives, at most.
    """

    __slots__ = ("_counts", "_prior", "_size")

    def __init__(self, ranks: np.ndarray, vocab_size: int, *, size: int) -> None:
        self._size = min(size, vocab_size)
        self._counts = np.zeros(vocab_size)
        self._prior = _zipf(ranks, vocab_size)

    def learn(self, token_ids: np.ndarray) -> None:
        """Counts tokens that the target emitted [n]."""
        self._counts *= 0.5 ** (len(token_ids) / _HALF_LIFE)
        np.add.at(self._counts, token_ids, 1.0)

    def begin_with(self, ranks: np.ndarray) -> None:
        """Takes the ranks of an earlier version in place of those that it knew before any traffic."""
        self._prior = _zipf(ranks, len(self._counts))

    def ranks(self) -> np.ndarray:
        """The most frequent tokens first, the lowest id first among equals, int32 [size]."""
        order = np.argsort(-(self._counts + self._prior), kind="stable")
        return order[: self._size].astype(np.int32)


def _zipf(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """`_PRIOR` tokens, of which the one at rank r has a share in proportion to 1 / r."""
    shares = np.zeros(vocab_size)
    shares[ranks] = 1.0 / np.arange(1, len(ranks) + 1)
    return _PRIOR * shares / max(float(shares.sum()), 1.0)
