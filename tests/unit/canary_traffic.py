"""Made-up requests of two arms: what an adapter version's canary sees, many times over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evospec.align.arm import ArmSums

# Chance that a draft token is accepted, by domain: acceptance lengths of 1.3 to 2.5 with chains of 5.
DOMAINS = np.array([0.25, 0.4, 0.5, 0.63])
USELESS = 0.04  # an acceptance length of 1.05
SECONDS_PER_CYCLE = 0.03


@dataclass(frozen=True, slots=True)
class Requests:
    """One entry per request, in the order in which they end; [runs, requests] each."""

    tokens: np.ndarray
    seconds: np.ndarray
    drafts: np.ndarray
    hits: np.ndarray


def draw_requests(
    random: np.random.Generator, shape: tuple[int, int], *, factor: float = 1.0, useless: bool = False
) -> Requests:
    """Requests of four domains, 8 to 512 tokens long, with noise in drafts accepted and in time.

    Of each request's cycles, any share drafted.

    Args:
        factor: on the chance that a draft token is accepted.
        useless: hardly one is, whatever the domain.
    """
    tokens = np.clip(random.geometric(0.01, shape), 8, 512)
    chance = DOMAINS[random.integers(0, len(DOMAINS), shape)] * np.exp(random.normal(0, 0.08, shape))
    chance = np.full(shape, USELESS) if useless else np.minimum(factor * chance, 0.95)
    length = (1 - chance**6) / (1 - chance)
    cycles = np.clip(np.rint(tokens / length * np.exp(random.normal(0, 0.1, shape))), 1, tokens).astype(int)
    drafts = np.clip(np.rint(cycles * random.uniform(0, 1.3, shape)), 1, cycles).astype(int)
    seconds = SECONDS_PER_CYCLE * cycles * np.exp(random.normal(0, 0.15, shape))
    return Requests(tokens, seconds, drafts, random.binomial(drafts, chance))


@dataclass(frozen=True, slots=True)
class Trials:
    """Canaries that run side by side: sums over the requests so far [runs, requests], by `ArmSums` field."""

    canary: dict[str, np.ndarray]
    control: dict[str, np.ndarray]

    @classmethod
    def of(cls, requests: Requests, of_canary: np.ndarray) -> Trials:
        """`of_canary` tells which requests the canary served."""
        return cls(_running_sums(requests, of_canary), _running_sums(requests, ~of_canary))

    def arms(self, run: int, after: int) -> tuple[ArmSums, ArmSums]:
        """Canary and control of a run after its request number `after`."""
        return _arm(self.canary, run, after), _arm(self.control, run, after)


def _running_sums(requests: Requests, of_arm: np.ndarray) -> dict[str, np.ndarray]:
    tokens, seconds, drafts, hits = requests.tokens, requests.seconds, requests.drafts, requests.hits
    parts = {
        "requests": np.ones_like(tokens),
        "drafted_requests": np.ones_like(tokens),
        "tokens": tokens,
        "seconds": seconds,
        "drafts": drafts,
        "hits": hits,
        "tokens_squared": tokens**2,
        "seconds_squared": seconds**2,
        "tokens_seconds": tokens * seconds,
        "drafts_squared": drafts**2,
        "hits_squared": hits**2,
        "drafts_hits": drafts * hits,
    }
    return {name: np.cumsum(np.where(of_arm, part, 0), axis=1) for name, part in parts.items()}


def _arm(sums: dict[str, np.ndarray], run: int, after: int) -> ArmSums:
    return ArmSums(**{name: part[run, after].item() for name, part in sums.items()})
