"""Degenerate text: loops that a drafter predicts perfectly and learns nothing from."""

from __future__ import annotations

import numpy as np

LONGEST_PERIOD = 32
FEWEST_REPEATS = 3
SHORTEST_TEXT = 16
LARGEST_LOOP_SHARE = 0.5


def loop_share(token_ids: np.ndarray, longest_period: int = LONGEST_PERIOD) -> float:
    """Share of `token_ids` [tokens] inside the longest stretch that repeats with one short period.

    A stretch has period p when each token equals the one p places before it; it counts
    once it holds FEWEST_REPEATS copies of its first p tokens.

    Example: a b c c c c d has a stretch of four tokens with period 1: 4 / 7.
    """
    tokens = len(token_ids)
    longest = 0
    for period in range(1, min(longest_period, tokens // FEWEST_REPEATS) + 1):
        run = _longest_run(token_ids[period:] == token_ids[:-period])
        if run + period >= FEWEST_REPEATS * period:
            longest = max(longest, run + period)
    return longest / tokens if tokens else 0.0


def is_degenerate(token_ids: np.ndarray) -> bool:
    """Whether loops make up more than LARGEST_LOOP_SHARE of a text of some length.

    The bounds are ours: a table or a list of imports repeats its punctuation, but
    never half of its tokens exactly.
    """
    return len(token_ids) >= SHORTEST_TEXT and loop_share(token_ids) > LARGEST_LOOP_SHARE


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True in `flags` [n]."""
    breaks = np.flatnonzero(~flags)
    edges = np.concatenate(([-1], breaks, [len(flags)]))
    return int(np.diff(edges).max()) - 1
