"""From logits to probabilities and tokens, with random numbers that depend on the request alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

# splitmix64 (Steele et al., OOPSLA 2014), as signed 64-bit integers.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


GREEDY_BELOW = 1e-5  # as in vLLM


class Purpose(IntEnum):
    """What a random number decides; each purpose has numbers of its own."""

    DRAFT = 0
    ACCEPT = 1
    EMIT = 2


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request's tokens are chosen from the target's distribution, and how many.

    `temperature` 0 is greedy, and so is any below GREEDY_BELOW, where dividing would
    overflow. `top_k` 0 and `top_p` 1 are off. Equal seeds (any 64-bit integer) give equal
    outputs as long as drafter and vocabulary are in the same state.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 256
    ignore_eos: bool = False

    def invalid_field(self) -> str | None:
        """Name of the first field whose value can't be served; None when all can."""
        valid = {
            "temperature": 0.0 <= self.temperature < math.inf,
            "top_p": 0.0 < self.top_p <= 1.0,
            "top_k": self.top_k >= 0,
            "seed": -(2**63) <= self.seed < 2**63,
            "max_tokens": self.max_tokens >= 1,
        }
        return next((name for name, holds in valid.items() if not holds), None)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def heat(self) -> float:
        """The temperature that counts: 0 for every greedy one."""
        return 0.0 if self.greedy else self.temperature

    @property
    def truncates(self) -> bool:
        return self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Sampling parameters of the rows of a batch, on the device.

    Attributes:
        temperature: float32 [rows]; 0 is greedy.
        top_p: float32 [rows]; 1 is off.
        top_k: int64 [rows]; 0 is off.
        seeds: int64 [rows].
        any_sampled: whether any row is not greedy, on the host.
        truncated: whether any row uses top_p or top_k, on the host.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    seeds: Tensor
    any_sampled: bool
    truncated: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> SamplingBatch:
        return cls(
            temperature=torch.tensor([param.heat for param in params], device=device),
            top_p=torch.tensor([param.top_p for param in params], device=device),
            top_k=torch.tensor([param.top_k for param in params], device=device),
            seeds=torch.tensor([param.seed for param in params], device=device),
            any_sampled=any(not param.greedy for param in params),
            truncated=any(param.truncates for param in params),
        )

    @property
    def greedy(self) -> Tensor:
        """Which rows are greedy, bool [rows]."""
        return self.temperature == 0

    @property
    def divisor(self) -> Tensor:
        """Temperatures to divide by, 1 for greedy rows, float32 [rows]."""
        return torch.where(self.greedy, 1.0, self.temperature)


def uniforms(seeds: Tensor, positions: Tensor, purpose: Purpose) -> Tensor:
    """Random numbers in [0, 1) that depend on (seed, position, purpose) only.

    Neither batch composition nor draft length changes them, so a request draws the
    same numbers alone and in a batch.

    Args:
        seeds: int64 [rows].
        positions: int64 [rows, n], the position in the request that is decided.

    Returns:
        float64 [rows, n].
    """
    state = _mix(seeds[:, None] + _GOLDEN) + _GOLDEN * (3 * positions + int(purpose) + 1)
    bits = _shift_right(_mix(state), 11)  # 53 bits
    return bits.double() * 2.0**-53


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: PyTorch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def target_probabilities(logits: Tensor, sampling: SamplingBatch) -> Tensor:
    """The target's distribution under temperature, then top-k, then top-p (transformers' order).

    Args:
        logits: float32 [rows, positions, vocab]. Greedy rows count as temperature 1; nobody reads them.

    Returns:
        float32 [rows, positions, vocab], each summing to 1.
    """
    scaled = logits / sampling.divisor[:, None, None]
    if sampling.truncated:
        scaled = _truncate(scaled, sampling)
    return torch.softmax(scaled, dim=-1)


def _truncate(logits: Tensor, sampling: SamplingBatch) -> Tensor:
    vocab = logits.shape[-1]
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    limit = torch.where(sampling.top_k > 0, sampling.top_k.clamp(max=vocab), vocab)
    rank = torch.arange(vocab, device=logits.device)
    values = values.masked_fill(rank >= limit[:, None, None], -torch.inf)
    probabilities = torch.softmax(values, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The token that crosses top_p stays in; the best token always does.
    outside = (before >= sampling.top_p[:, None, None]) & (sampling.top_p < 1.0)[:, None, None]
    outside[..., 0] = False
    values = values.masked_fill(outside, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, values)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF sampling from unnormalised weights.

    Args:
        weights: non-negative, some positive [..., n].
        uniform: float64 in [0, 1) [...].

    Returns:
        int64 [...]; never an index of zero weight.
    """
    cumulative = weights.double().cumsum(dim=-1)
    goal = uniform[..., None] * cumulative[..., -1:]
    # First index whose cumulative weight exceeds the goal: zero weights never do first.
    index = torch.searchsorted(cumulative, goal, right=True).squeeze(-1)
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(index, last)
