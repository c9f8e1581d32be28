"""Degenerate text: loops that a drafter predicts perfectly and learns nothing from."""

from __future__ import annotations

import numpy as np

LONGEST_PERIOD = 32
FEWEST_REPEATS = 3
SHORTEST_TEXT = 16
LARGEST_LOOP_SHARE = 0.5
_RUN_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


def loop_share(token_ids: np.ndarray, longest_period: int = LONGEST_PERIOD) -> float:
    """Share of `token_ids` [tokens] inside the longest stretch that repeats with one short period.

    A stretch has period p when each token equals the one p places before it; it counts
    once it holds FEWEST_REPEATS copies of its first p tokens.

    Example: a b c c c c d has a stretch of four tokens with period 1: 4 / 7.
    """
    tokens = len(token_ids)
    most = min(longest_period, tokens // FEWEST_REPEATS)
    if most < 1:
        return 0.0
    periods = np.arange(1, most + 1)
    place = np.arange(tokens)
    later = place + periods[:, None]  # [periods, tokens]
    repeats = (token_ids[np.minimum(later, tokens - 1)] == token_ids) & (later < tokens)
    # How many places in a row have repeated by each place.
    runs = place - np.maximum.accumulate(np.where(repeats, -1, place), axis=1)
    stretches = runs.max(axis=1) + periods
    counted = stretches[stretches >= FEWEST_REPEATS * periods]
    return float(counted.max(initial=0)) / tokens


def is_degenerate(token_ids: np.ndarray) -> bool:
    """Whether loops make up more than LARGEST_LOOP_SHARE of a text of some length.

    The bounds are ours: a table or a list of imports repeats its punctuation, but
    never half of its tokens exactly.
    """
    if len(token_ids) < SHORTEST_TEXT or not may_loop(token_ids):
        return False
    return loop_share(token_ids) > LARGEST_LOOP_SHARE


def may_loop(token_ids: np.ndarray) -> bool:
    """False for most text without long loops, ten times as fast as `loop_share`; true wherever more than
    LARGEST_LOOP_SHARE is one.

    A stretch with period p holds at most p different runs of four tokens, so a text whose
    runs mostly differ has no long stretch. (Runs whose hashes collide count as one.)
    """
    hashed = token_ids.astype(np.uint64)
    hashed = hashed[:-1] * _RUN_FACTOR + hashed[1:]
    hashed = hashed[:-2] * _RUN_FACTOR * _RUN_FACTOR + hashed[2:]
    return len(np.unique(hashed)) <= (1 - LARGEST_LOOP_SHARE) * len(token_ids) + LONGEST_PERIOD
