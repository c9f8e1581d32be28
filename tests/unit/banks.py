"""Random adapters and banks for tiny drafters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evospec.models.bank import Bank
from evospec.models.deltas import LORA_A, LORA_B, Deltas, adapted_linears
from evospec.models.drafter import Drafter
from evospec.models.routes import Routes


def random_deltas(drafter: Drafter, seed: int, size: float = 0.3) -> Deltas:
    """Deltas of rank 2 of all linear layers, large enough that drafts differ from the base's."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, linear in adapted_linears(drafter).items():
        outputs, inputs = linear.weight.shape
        tensors[name + LORA_A] = torch.randn(2, inputs, generator=generator) * size
        tensors[name + LORA_B] = torch.randn(outputs, 2, generator=generator) * size
    return Deltas(tensors)


def routes_to(centres: Tensor, least: float = -1.0, kinds: Sequence[int] | None = None) -> Routes:
    """Routes that compare contexts with centres [centres, dim] as they are; one for each kind, or as told."""
    count, dim = centres.shape
    return Routes(
        centres=centres,
        kinds=torch.arange(count) if kinds is None else torch.tensor(kinds),
        common=torch.zeros(dim),
        spread=torch.ones(dim),
        least=torch.full((count,), least),
    )


def random_bank(drafter: Drafter, kinds: int, seed: int = 0, of: Sequence[int] | None = None) -> Bank:
    """With a centre for each kind, or centres of these kinds."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(kinds if of is None else len(of), drafter.config.target_hidden, generator=generator)
    deltas = (random_deltas(drafter, seed + kind) for kind in range(kinds))
    return Bank(routes_to(centres, kinds=of), tuple(deltas))


def bank_of(centres: Sequence[Tensor], adapters: Sequence[Deltas], least: float = -1.0) -> Bank:
    return Bank(routes_to(torch.stack(list(centres)), least), tuple(adapters))
