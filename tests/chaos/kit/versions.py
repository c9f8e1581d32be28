"""Adapter versions, good and bad, published past everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.offer import Offer
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import LORA_A, LORA_B, adapted_linears
from evospec.models.drafter import Drafter
from evospec.wire import Fingerprints, Manifest, VersionState
from services.registry import RedisWeightRegistry

Change = Callable[[Manifest], Manifest]
HARMLESS = 1e-3  # relative to the weights
USELESS = 3.0
RANK = 16  # what the aligner trains by default
FUSION = "fc"


def random_adapter(
    drafter: Drafter, strength: float, seed: int, rank: int = RANK, *, fusion: bool = False
) -> dict[str, Tensor]:
    """A random delta for each linear layer, whose norm is `strength` times the layer's.

    Args:
        fusion: also for the fusion of the target's features, which an aligner leaves alone.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, linear in adapted_linears(drafter).items():
        if name == FUSION and not fusion:
            continue
        out_size, in_size = linear.weight.shape
        a = torch.randn(rank, in_size, generator=random)
        b = torch.randn(out_size, rank, generator=random)
        scale = strength * linear.weight.norm() / (b @ a).norm()
        tensors[name + LORA_A], tensors[name + LORA_B] = a, scale * b
    return tensors


@dataclass(slots=True)
class HandPublisher:
    """Publishes whatever it is given; each time it takes a new epoch, which shuts the aligner out."""

    registry: RedisWeightRegistry
    fingerprints: Fingerprints

    def publish(
        self,
        tensors: dict[str, Tensor],
        *,
        state: VersionState = "stable",
        blob: bytes | None = None,
        change: Change | None = None,
    ) -> int:
        """Returns the version.

        Args:
            blob: bytes to publish in place of the tensors'.
            change: alters the manifest before it is signed.
        """
        epoch = self.registry.acquire_epoch()
        # Replicas can be ahead of a registry that lost its data.
        parent = max(self.registry.newest_version(), *self.registry.acknowledgements().values(), 0)
        adapter = AdapterWeights(parent + 1, tensors)
        blob = adapter.to_bytes() if blob is None else blob
        manifest = Offer(adapter, parent, {}).manifest(blob, epoch, self.fingerprints, state)
        self.registry.publish(manifest if change is None else change(manifest), blob)
        return manifest.version
