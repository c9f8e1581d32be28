"""The core: tokens that are always active, by frequency in the target's own text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class CoreLists:
    """What frequencies say of tokens.

    Attributes:
        core: token ids that are always active.
        frequent: those that fill idle rows, most frequent first.
    """

    core: np.ndarray
    frequent: np.ndarray

    def same(self, other: CoreLists) -> bool:
        """Whether both say the same."""
        return np.array_equal(self.core, other.core) and np.array_equal(self.frequent, other.frequent)


def core_tokens(
    ranks: np.ndarray,
    size: int,
    vocab_size: int,
    always: Iterable[int] = (),
    covered: np.ndarray | None = None,
) -> np.ndarray:
    """The `size` most frequent tokens plus `always` (end-of-sequence and special tokens).

    Tokens the ranks never saw follow in id order: byte-pair ids are merge ranks,
    so a low id is a frequent piece.

    Args:
        ranks: token ids by falling frequency, distinct.
        covered: the only token ids to choose from, distinct; None is all of them.

    Returns:
        Distinct token ids, int64, at most vocab_size of them.
    """
    required = np.fromiter(dict.fromkeys(always), dtype=np.int64)
    choice = np.arange(vocab_size, dtype=np.int64) if covered is None else np.sort(covered)
    if covered is not None:
        required, ranks = required[np.isin(required, choice)], ranks[np.isin(ranks, choice)]
    ranked = ranks[:size].astype(np.int64)
    if len(ranked) < size:
        unseen = np.setdiff1d(choice, ranks, assume_unique=True)
        ranked = np.concatenate((ranked, unseen[: size - len(ranked)]))
    chosen = np.concatenate((required, ranked))
    _, first = np.unique(chosen, return_index=True)
    return chosen[np.sort(first)]
