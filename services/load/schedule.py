"""Which prompt is sent when."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, cycle, islice

import numpy as np

from evospec.bench.prompts import Prompt


def in_order(prompts: Sequence[Prompt], requests: int, every: int | None, seed: int) -> list[Prompt]:
    """The prompts of a run; those of a domain come again when all were used.

    Args:
        every: requests of a domain before the next one, in order of first appearance; None shuffles
            all prompts instead, each time round anew.
    """
    if every is None:
        draws = np.random.default_rng(seed)
        rounds = (draws.permutation(len(prompts)) for _ in count())
        return [prompts[place] for place in islice((place for one in rounds for place in one), requests)]
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_domain.setdefault(prompt.domain, []).append(prompt)
    supplies = [cycle(own) for own in by_domain.values()]
    return [next(supplies[number // every % len(supplies)]) for number in range(requests)]


def poisson_arrivals(rate: float, requests: int, seed: int) -> list[float]:
    """Seconds from the beginning, ascending: gaps between arrivals are exponential with mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, requests)
    return [float(at) for at in np.cumsum(gaps)]
